"""`specdec measure`: one draft against decoding without it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from specdec_commands.console import Progress, command_line, estimate_cells, print_json, print_table
from specdec_commands.loading import load_if_it_fits, longest_prompt_tokens, sampling_settings
from specdec_commands.options import (
    DEFAULT_TARGET,
    Compile,
    Device,
    Draft,
    Dtype,
    Json,
    MinP,
    Prompts,
    Seed,
    TargetName,
    Temperature,
    Threads,
    TopK,
    TopP,
)

if TYPE_CHECKING:
    from real.loading import Target
    from real.optimized_speculative import DraftLength


def measure(
    draft: Draft,
    out: Annotated[Path, typer.Option(help="Folder for the round table and the run's metadata.")],
    gamma: Annotated[int, typer.Option(help="Draft length in tokens; the longest that a controller may choose.")] = 4,
    tree: Annotated[
        str | None,
        typer.Option(
            help="Draft a tree: siblings a level ('3,2,1'), 'parents:-1,-1,0', or 'best:N', the best of N tokens for "
            "the acceptance in --acceptance."
        ),
    ] = None,
    acceptance: Annotated[
        Path | None, typer.Option(help="A folder that `measure --tree` wrote: what 'best:N' is the best tree for.")
    ] = None,
    controller: Annotated[
        str,
        typer.Option(
            help="Chooses the draft length: fixed, heuristic, confidence:0.4, entropy:0.3, rejection:0.7, bandit, "
            "goodput, off_above:8:NAME."
        ),
    ] = "fixed",
    rule: Annotated[
        str | None,
        typer.Option(
            help="Verification rule above temperature 0: for chains rejection_sampling, block_verification or "
            "exact_match, for trees multi_round or without_replacement; typical_acceptance and lenience change the "
            "distribution."
        ),
    ] = None,
    batch: Annotated[int, typer.Option(help="Prompts decoded together, without a draft as with it.")] = 1,
    target: TargetName = DEFAULT_TARGET,
    temperature: Temperature = 0.0,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    prompts: Prompts = None,
    limit: Annotated[int | None, typer.Option(help="Measure the first so many prompts of every category.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Output tokens per prompt.")] = 64,
    seed: Seed = 0,
    device: Device = "cpu",
    dtype: Dtype = None,
    compiled: Compile = False,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Measure one draft against decoding without it, on the same machine, prefill excluded.

    `loop_efficiency` is the measured speedup over the one computed from the forwards' own medians. Beside the rounds,
    `architecture.json` records how a forward's cost grows with its tokens (and the experts they touch), and KV bytes.

    Examples:

    - `specdec measure --draft prompt-lookup --gamma 6 --limit 2 --out runs/lookup`
    - `specdec measure --draft distilled --tree 3,2,1 --temperature 1 --out runs/tree`
    - `specdec measure --draft int8 --gamma 4 --batch 4 --out runs/batch`
    """
    from analysis.measurement import summarise_measurement
    from real import experiment
    from real.candidate_verification import rule_named
    from real.loading import load_draft
    from real.measure import Configuration
    from real.prompt_sets import EMBEDDED_PROMPTS, first_of_each, read_prompts
    from real.tensor_parallel import world

    settings = sampling_settings(temperature, top_k, top_p, min_p)
    chosen = first_of_each(read_prompts(prompts), limit)
    verification = None if rule is None else rule_named(rule)
    if tree is not None and controller != "fixed":
        raise ValueError(f"--tree {tree} fixes what is drafted; leave --controller {controller} out, or the tree")
    loaded = load_if_it_fits(
        target, device, dtype, threads, drafts=[draft], batch=batch, caches=3, compiled=compiled,
        tokens=longest_prompt_tokens(chosen) + max_new_tokens + gamma,
    )  # fmt: skip
    source = load_draft(draft, loaded, settings)
    rank = world()[0]
    if rank > 0:  # torchrun's other processes run along; the first one owns the folder and speaks
        out = Path(tempfile.mkdtemp()) / "run"
    with Progress(quiet=as_json or rank > 0) as progress:
        length = _draft_length(loaded, source, gamma, tree, acceptance, controller, batch, seed)
        policy = "" if isinstance(length, int) else f"tree:{length}" if tree is not None else controller
        rounds = experiment.measure(
            loaded, chosen, Configuration(source, length, verification, policy, rule), out,
            max_new_tokens=max_new_tokens, settings=settings, seed=seed, progress=progress, batch=batch,
            command=command_line(world()[1]), prompts_file=prompts or EMBEDDED_PROMPTS,
        )  # fmt: skip
    if rank > 0:
        return
    result = summarise_measurement(rounds)
    if as_json:
        print_json(result)
        return
    print_table(
        ("", "measured", "95% interval"),
        [
            ("speedup", *estimate_cells(result, "speedup")),
            ("block efficiency [tokens/round]", *estimate_cells(result, "block_efficiency")),
            ("alpha", *estimate_cells(result, "alpha")),
            ("tokens per second", f"{result['tokens_per_second']:.2f}", ""),
            ("baseline tokens per second", f"{result['baseline_tokens_per_second']:.2f}", ""),
            ("loop efficiency", f"{result['loop_efficiency']:.3f}", ""),
        ],
    )


def _draft_length(
    target: Target,
    draft: Any,
    gamma: int,
    tree: str | None,
    acceptance: Path | None,
    controller: str,
    batch: int,
    seed: int,
) -> DraftLength:
    """What the options ask to draft; the goodput controller's costs are timed here."""
    from real.measure import time_costs
    from sim.controllers import parse_controller
    from sim.records import read_rounds
    from sim.tree_search import best_tree, tree_acceptance
    from sim.trees import TokenTree

    if tree is not None and tree.startswith("best:"):
        if acceptance is None or not tree[5:].isdigit():
            raise ValueError(f"--tree {tree} needs the form best:N and --acceptance with a folder of `measure --tree`")
        table = tree_acceptance(read_rounds(acceptance / "rounds.parquet")).acceptance
        return best_tree(table, int(tree[5:]))
    if tree is not None:
        return TokenTree.parse(tree)
    if controller == "fixed":
        return gamma
    costs = time_costs(target, draft, gamma, batch, seed) if "goodput" in controller else None
    return parse_controller(controller, gamma, costs, seed)
