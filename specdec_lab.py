"""The `specdec` command line: the only place that knows every folder; imports lazily."""

from __future__ import annotations

import json
import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray
    from torch import Tensor

    from analysis.fit import Calibration
    from real.loading import Target
    from real.optimized_speculative import DraftLength
    from real.prompt_sets import Prompt
    from real.sampling import SamplingSettings

app = typer.Typer(
    name="specdec",
    help="Predict, measure and explain the speedup of speculative decoding.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, for machines.")]
Seed = Annotated[int, typer.Option(help="Seed; the same seed gives the same result.")]
TargetName = Annotated[str, typer.Option("--target", help="Embedded model, local folder or hub id of the target.")]
Temperature = Annotated[float, typer.Option(help="Sampling temperature; 0 is greedy.")]
TopK = Annotated[int | None, typer.Option(help="Keep the k most likely tokens, of target and draft alike.")]
TopP = Annotated[float | None, typer.Option(help="Keep the most likely tokens up to this probability.")]
MinP = Annotated[float | None, typer.Option(help="Keep tokens at least this likely relative to the likeliest.")]
Prompts = Annotated[
    Path | None, typer.Option(help='JSONL of {"prompt": ...} or Spec-Bench questions; the embedded set if left out.')
]
Draft = Annotated[
    str,
    typer.Option(
        help="distilled, int8[:L], int8-skip:A-B, early-exit:L, prompt-lookup[:N], suffix[:DEPTH], synthetic:ALPHA, "
        "suffix+NAME (a lookup, and another draft where it finds nothing), a local folder or a hub id."
    ),
]
Device = Annotated[str, typer.Option(help="'cpu', 'cuda', 'cuda:1', ...")]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; by default what suits the device.")]
Compile = Annotated[
    bool, typer.Option("--compile", help="Compile the forwards, as CUDA graphs on a GPU; minutes, the first time.")
]
Threads = Annotated[int | None, typer.Option(help="CPU threads; by default as many as torch takes.")]
RunFolder = Annotated[Path, typer.Argument(help="A folder that `specdec lab` or `specdec measure` wrote.")]

DEFAULT_TARGET = "smollm2-135m-instruct"


@app.command()
def simulate(
    alpha: Annotated[float, typer.Option(help="Acceptance rate: chance that a reached drafted token is accepted.")],
    gamma: Annotated[int, typer.Option(help="Draft length in tokens; 0 decodes without a draft.")],
    cost_ratio: Annotated[float, typer.Option(help="One draft forward / one target forward with one new token.")],
    verify_ratio: Annotated[float, typer.Option(help="One target forward with gamma+1 new tokens / with one.")] = 1.0,
    rounds: Annotated[int, typer.Option(help="Rounds to simulate.")] = 200_000,
    seed: Seed = 0,
    engine: Annotated[str, typer.Option(help="'numpy', 'simpy', or 'auto': numpy where nothing contends.")] = "auto",
    out: Annotated[Path | None, typer.Option(help="Also write the round table (.parquet or .jsonl).")] = None,
    as_json: Json = False,
) -> None:
    """Simulate one request and print its speedup, with 95% intervals. No GPU, no model.

    Times are in units of one target forward with one new token.

    Example: `specdec simulate --alpha 0.8 --gamma 5 --cost-ratio 0.05 --verify-ratio 1.2`
    """
    from sim import engine as engines
    from sim.records import write_rounds
    from sim.theory import expected_tokens, speedup

    scenario = engines.ratio_scenario(alpha, gamma, cost_ratio, verify_ratio, rounds)
    result = engines.simulate_speedup(scenario, seed, engine)  # type: ignore[arg-type]  # checked there, with advice
    if out is not None:
        write_rounds(engines.simulate(scenario, seed, engine), out)  # type: ignore[arg-type]  # as above
    if as_json:
        _print_json(result)
        return
    exact = float(expected_tokens(alpha, gamma)), float(speedup(alpha, gamma, cost_ratio, verify_ratio))
    _print_table(
        ("", "simulated", "95% interval", "closed form"),
        [
            ("block efficiency [tokens/round]", *_estimate(result, "block_efficiency"), f"{exact[0]:.4f}"),
            ("speedup", *_estimate(result, "speedup"), f"{exact[1]:.4f}"),
        ],
    )
    typer.echo(f"{result['rounds']:,} rounds, {result['rounds_per_second']:,.0f} rounds simulated per second")


@app.command()
def theory(as_json: Json = False) -> None:
    """Print the source algorithm's speedup table beside its formula and the exact expected tokens per round.

    The formula 1/(1 - alpha + alpha/gamma) is an approximation; exact is Leviathan et al. 2023, eq. 1.
    """
    from sim.theory import source_table

    table = source_table()
    if as_json:
        _print_json(table.to_dict(orient="records"))
        return
    _print_table(
        ("alpha", "gamma", "printed", "formula", "exact E[tokens]"),
        [
            (f"{r.alpha:g}", f"{r.gamma}", f"{r.printed:.1f}", f"{r.formula:.3f}", f"{r.exact:.3f}")
            for r in table.itertuples()
        ],
    )


@app.command()
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
        typer.Option(help="Chooses the draft length: fixed, heuristic, confidence:0.4, entropy:0.3, bandit, goodput."),
    ] = "fixed",
    rule: Annotated[
        str | None, typer.Option(help="Verification rule by name; the lossless default if left out.")
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

    Examples: `specdec measure --draft prompt-lookup --gamma 6 --limit 2 --out runs/lookup`,
    `specdec measure --draft distilled --tree 3,2,1 --temperature 1 --out runs/tree`,
    `specdec measure --draft int8 --gamma 4 --batch 4 --out runs/batch`
    """
    from analysis.measurement import summarise_measurement
    from real import experiment
    from real.candidate_verification import rule_named
    from real.loading import load_draft
    from real.measure import Configuration
    from real.prompt_sets import first_of_each, read_prompts
    from real.tensor_parallel import world

    settings = _settings(temperature, top_k, top_p, min_p)
    chosen = first_of_each(read_prompts(prompts), limit)
    verification = None if rule is None else rule_named(rule)
    if tree is not None and controller != "fixed":
        raise ValueError(f"--tree {tree} fixes what is drafted; leave --controller {controller} out, or the tree")
    loaded = _load(
        target, device, dtype, threads, drafts=[draft], batch=batch, caches=3, compiled=compiled,
        tokens=_longest(chosen) + max_new_tokens + gamma,
    )  # fmt: skip
    source = load_draft(draft, loaded, settings)
    rank = world()[0]
    if rank > 0:  # torchrun's other processes run along; the first one owns the folder and speaks
        out = Path(tempfile.mkdtemp()) / "run"
    with _Progress(quiet=as_json or rank > 0) as progress:
        length = _draft_length(loaded, source, gamma, tree, acceptance, controller, batch, seed)
        policy = "" if isinstance(length, int) else f"tree:{length}" if tree is not None else controller
        rounds = experiment.measure(
            loaded, chosen, Configuration(source, length, verification, policy), out,
            max_new_tokens=max_new_tokens, settings=settings, seed=seed, progress=progress, batch=batch,
        )  # fmt: skip
    if rank > 0:
        return
    result = summarise_measurement(rounds)
    if as_json:
        _print_json(result)
        return
    _print_table(
        ("", "measured", "95% interval"),
        [
            ("speedup", *_estimate(result, "speedup")),
            ("block efficiency [tokens/round]", *_estimate(result, "block_efficiency")),
            ("alpha", *_estimate(result, "alpha")),
            ("tokens per second", f"{result['tokens_per_second']:.2f}", ""),
            ("baseline tokens per second", f"{result['baseline_tokens_per_second']:.2f}", ""),
            ("loop efficiency", f"{result['loop_efficiency']:.3f}", ""),
        ],
    )


@app.command()
def distill(
    out: Annotated[Path, typer.Option(help="Folder for samples, checkpoint, curve and head.safetensors.")],
    target: TargetName = DEFAULT_TARGET,
    minutes: Annotated[
        float | None, typer.Option(help="Plan for so many minutes: a third to sample, the rest to train.")
    ] = None,
    shards: Annotated[
        int | None, typer.Option(help="Instead of --minutes: shards of 49,152 sampled positions.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Instead of --minutes: optimiser steps.")] = None,
    seed: Seed = 0,
    device: Device = "cpu",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Train a draft head (EAGLE-3's manner) for a Llama-shaped target from the target's own samples.

    The target writes questions and answers; one decoder layer learns to guess its next words. `--minutes` is turned
    into numbers of shards and steps by timing a few of each, and the plan is printed and kept: the same plan and seed
    give the same head. Ctrl-C keeps what is done; the same command goes on. `--draft DIR` uses the result.

    Example: `specdec distill --target smollm2-135m-instruct --minutes 120 --out runs/head --seed 0`
    """
    import pandas as pd

    from paper_figs.distillation_curve import draw
    from real import distill as training

    with _Progress(quiet=as_json) as progress:
        progress("load the models", 0, 1, target)
        loaded = _load(target, device, None, threads)
        plan = training.make_plan(loaded, out, minutes=minutes, shards=shards, steps=steps, seed=seed)
        if not as_json:
            typer.echo(f"{plan.positions:,} positions, {plan.steps:,} steps: the same as "
                       f"--shards {plan.shards} --steps {plan.steps}", err=True)  # fmt: skip
        try:
            training.train(loaded, plan, out, progress)
        except KeyboardInterrupt:
            typer.echo(f"interrupted; {out} keeps what is done. The same command goes on.", err=True)
            raise typer.Exit(130) from None
    curve = training.read_curve(out)
    caption = f"{target}, {plan.positions:,} positions of its own samples, {plan.steps:,} steps, seed {seed}"
    draw(pd.DataFrame(curve), plan.positions, out, caption)
    result = curve[-1]
    if as_json:
        _print_json(result | {"out": str(out)})
        return
    _print_table(
        ("drafted token", "alpha", "greedy agreement"),
        [(str(k), f"{result[f'alpha_{k}']:.3f}", f"{result[f'agreement_{k}']:.3f}") for k in range(1, plan.unroll + 1)],
    )
    typer.echo(f"on a held-out shard, at temperature 1; use it with --draft {out}")


@app.command()
def lab(
    out: Annotated[Path, typer.Option(help="Run folder.")],
    target: TargetName = DEFAULT_TARGET,
    draft: Annotated[
        list[str] | None,
        typer.Option(help="NAME@CALIBRATED:MEASURED,...: a draft, the gamma to calibrate it at, and those to predict."),
    ] = None,
    temperature: Temperature = 1.0,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    prompts: Prompts = None,
    calibration_prompts: Annotated[int, typer.Option(help="Calibration prompts per category.")] = 8,
    evaluation_prompts: Annotated[int, typer.Option(help="Held-out prompts per category.")] = 10,
    max_new_tokens: Annotated[int, typer.Option(help="Output tokens per prompt and configuration.")] = 18,
    seed: Seed = 0,
    device: Device = "cpu",
    dtype: Dtype = None,
    compiled: Compile = False,
    threads: Threads = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in the folder, if there is one.")] = False,
    as_json: Json = False,
) -> None:
    """Calibrate, predict configurations that calibration never saw, measure them, and compare.

    Writes rounds.parquet, forwards.parquet, run.json, comparison.csv, report.md and the figure (PNG, PDF, CSV). Ctrl-C
    keeps what is measured; `--resume` goes on from there.

    Example: `specdec lab --out runs/lab --draft prompt-lookup@5:2,3 --draft early-exit:24@2:1`
    """
    from real import experiment
    from real.prompt_sets import read_prompts
    from real.tensor_parallel import world

    if world()[1] > 1:
        raise ValueError(
            "`specdec lab` runs in one process; measure a target that needs several with `specdec measure`"
        )
    plan = experiment.Plan(
        drafts=tuple(experiment.DraftPlan.parse(text) for text in draft or experiment.DEFAULT_DRAFTS),
        settings=_settings(temperature, top_k, top_p, min_p),
        calibration_prompts=calibration_prompts,
        evaluation_prompts=evaluation_prompts,
        max_new_tokens=max_new_tokens,
        contexts=(64, 256),
        repeats=12,
        seed=seed,
    )
    prompt_set = read_prompts(prompts)
    with _Progress(quiet=as_json) as progress:
        progress("load the models", 0, 1, target)
        loaded = _load(
            target, device, dtype, threads, drafts=[one.name for one in plan.drafts], compiled=compiled,
            tokens=max(_longest(prompt_set), *plan.contexts) + max_new_tokens + plan.new_tokens[-1],
            caches=2 + sum(len(one.evaluation_gammas) for one in plan.drafts),
        )  # fmt: skip
        try:
            experiment.run(loaded, prompt_set, plan, out, resume, progress)
        except KeyboardInterrupt:
            again = shlex.join(["specdec", *(word for word in sys.argv[1:] if word != "--resume"), "--resume"])
            typer.echo(f"interrupted; {out} keeps what is measured so far. Resume with: {again}", err=True)
            raise typer.Exit(130) from None
    _compare(out, seed, as_json)


@app.command()
def fit(folder: RunFolder, seed: Seed = 0, as_json: Json = False) -> None:
    """Fit latency and acceptance to a run's calibration rounds, and say where a fit is poor.

    Example: `specdec fit runs/lab`
    """
    from analysis.fit_summary import fit_summary
    from analysis.report import acceptance_section, costs_section, latency_section

    calibration = _calibrate(folder, seed)
    if as_json:
        _print_json(fit_summary(calibration))
        return
    for section in (acceptance_section, latency_section, costs_section):
        typer.echo(section(calibration) + "\n")


@app.command()
def predict(
    folder: RunFolder,
    draft: Annotated[str | None, typer.Option(help="A calibrated draft; all of them if left out.")] = None,
    gamma: Annotated[list[int] | None, typer.Option(help="Draft lengths to predict, e.g. --gamma 2 --gamma 4.")] = None,
    prompts: Annotated[int, typer.Option(help="Prompts a measurement would have; sets the interval's width.")] = 8,
    max_new_tokens: Annotated[int, typer.Option(help="Output tokens per prompt.")] = 32,
    prompt_tokens: Annotated[int, typer.Option(help="Length of a prompt in tokens.")] = 100,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Predict the speedup of any draft length and category from a run's calibration, with 95% predictive intervals.

    Example: `specdec predict runs/lab --draft prompt-lookup --gamma 2 --gamma 5`
    """
    from analysis import predict as prediction

    calibration = _calibrate(folder, seed)
    names = [draft] if draft else sorted(calibration.drafts)
    design = prediction.make_design(calibration, names, gamma or [1, 2, 3, 4], prompts, max_new_tokens, prompt_tokens)
    table = prediction.predict(calibration, design, seed)
    if as_json:
        _print_json(_records(table))
        return
    _print_table(
        ("draft", "gamma", "category", "speedup", "95% interval"),
        [
            (row["draft"], str(row["gamma"]), row["category"], *_bounded(row, "predicted"))
            for row in table.to_dict(orient="records")
        ],
    )


@app.command()
def compare(folder: RunFolder, seed: Seed = 0, as_json: Json = False) -> None:
    """Predict a run's held-out configurations again and compare with what was measured; rewrites report and figure.

    Example: `specdec compare runs/lab`
    """
    _compare(folder, seed, as_json)


@app.command()
def check_sampler(
    sampler: Annotated[
        str | None, typer.Argument(help="module:callable; the current directory is searched too.")
    ] = None,
    gamma: Annotated[int, typer.Option(help="Draft length in tokens.")] = 4,
    vocab: Annotated[int, typer.Option(help="Vocabulary size of the trial, at least 3.")] = 8,
    max_samples: Annotated[
        int | None, typer.Option(help="Rounds at most; by default what detects a total variation of 0.005 everywhere.")
    ] = None,
    seed: Seed = 0,
    self_test: Annotated[bool, typer.Option("--self-test", help="Try the harness on samplers of known worth.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder for check.json and a plot of where the mass moved.")] = None,
    as_json: Json = False,
) -> None:
    """Test whether a sampler is lossless: exit code 0 if it is, 1 if not, 2 on bad use.

    The sampler is `sampler(p, q, n, rng) -> int array [n, gamma+1]` with p [gamma+1, vocab] or [n, gamma+1, vocab] and
    q alike with gamma rows. It drafts from q itself; row i is round i of one stream, emitted tokens first, -1 after the
    last. A correct sampler is called lossy with probability 1e-9 at most.

    Example: `specdec check-sampler my_engine.sampling:verify --gamma 4 --vocab 8`
    """
    from analysis import losslessness

    if self_test:
        rows = losslessness.self_test(seed, max_samples)
        if as_json:
            _print_json([asdict(row) | {"right": row.right} for row in rows])
        else:
            typer.echo(losslessness.markdown(rows))
        raise typer.Exit(0 if all(row.right for row in rows) else 1)
    if sampler is None:
        raise ValueError("name a sampler as module:callable, or ask for --self-test")
    tested = losslessness.load_callable(sampler)
    if not as_json:
        planned = losslessness.plan(gamma, vocab, max_samples)
        typer.echo(
            f"up to {planned.rounds:,} rounds, {planned.hypotheses:,} hypotheses; a total variation of "
            f"{planned.detectable_tv:.4f} at any position or pair is detected with 99.9% power",
            err=True,
        )
    try:
        result = losslessness.check(tested, gamma, vocab, max_samples, seed)
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(f"{sampler} raised {type(error).__name__}: {error}") from error
    if out is not None:
        from paper_figs.mass_moved import draw
        from sim.records import write_json

        write_json(result.to_dict(), out / "check.json")
        draw(result, out, sampler)
    if as_json:
        _print_json(result.to_dict())
    else:
        typer.echo(f"{result.verdict}\n\n{result.table()}")
    raise typer.Exit(0 if result.lossless else 1)


@app.command()
def greedy_diff(
    draft: Draft,
    gamma: Annotated[int, typer.Option(help="Draft length in tokens.")] = 4,
    target: TargetName = DEFAULT_TARGET,
    prompts: Prompts = None,
    limit: Annotated[int | None, typer.Option(help="Compare the first so many prompts of every category.")] = 1,
    max_new_tokens: Annotated[int, typer.Option(help="Output tokens per prompt.")] = 64,
    device: Device = "cpu",
    dtype: Dtype = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Compare greedy outputs without and with a draft; call each first difference a numeric tie or a bug.

    Exit code 0 where there is no bug, else 1.

    Example: `specdec greedy-diff --draft prompt-lookup --gamma 6`
    """
    from analysis.losslessness import classify_divergence
    from real.greedy_diff import GREEDY, greedy_pair
    from real.loading import load_draft
    from real.prompt_sets import first_of_each, read_prompts

    chosen = first_of_each(read_prompts(prompts), limit)
    loaded = _load(target, device, dtype, threads)
    source = load_draft(draft, loaded, GREEDY)
    found = []
    with _Progress(quiet=as_json) as progress:
        for index, prompt in enumerate(chosen):
            progress("greedy", index, len(chosen), prompt.id)
            pair = greedy_pair(loaded, source, loaded.encode(prompt.text), gamma, max_new_tokens)
            divergence = classify_divergence(
                pair.reference,
                pair.other,
                _array(pair.reference_logits),
                _array(pair.other_logits),
                dtype=str(loaded.decoder.dtype).removeprefix("torch."),
                width=loaded.decoder.width,
                layers=loaded.decoder.layers,
            )
            found.append({"prompt": prompt.id, **divergence.to_dict()})
        progress("greedy", len(chosen), len(chosen), "")
    if as_json:
        _print_json(found)
    else:
        _print_table(("prompt", "verdict"), [(row["prompt"], row["verdict"]) for row in found])
    raise typer.Exit(1 if any(row["kind"] == "bug" for row in found) else 0)


def _compare(folder: Path, seed: int, as_json: bool) -> None:
    """Predict from the calibration rounds, compare with the evaluation rounds, write the report and the figure."""
    from analysis.compare import compare, measured, score
    from analysis.predict import design_of, predict
    from analysis.report import headline, write_report
    from paper_figs.predicted_vs_measured import draw
    from sim.records import read_metadata, read_rounds, write_atomically

    metadata, rounds = read_metadata(folder / "run.json"), read_rounds(folder / "rounds.parquet")
    calibration = _calibrate(folder, seed)
    predictions = predict(calibration, design_of(rounds, metadata.settings["max_new_tokens"]), seed)
    comparison = compare(predictions, measured(rounds, seed))
    write_atomically(folder / "comparison.csv", lambda part: comparison.to_csv(part, index=False))
    caption = f"{metadata.target} on {metadata.device}, {metadata.threads} threads, {metadata.dtype}"
    held_out = comparison[comparison["held_out"]]
    figure = draw(held_out, folder, caption)
    report = write_report(folder, metadata, calibration, comparison, figure["png"])
    result = score(comparison, seed=seed)
    if as_json:
        _print_json({**asdict(result), "configurations": _records(comparison), "report": str(report)})
        return
    _print_table(
        ("configuration", "predicted", "95% interval", "measured", "95% interval", "error"),
        [
            (
                row["config"],
                *_bounded(row, "predicted"),
                *_bounded(row, "measured"),
                f"{row['error_percent']:+.1f}%",
            )
            for row in held_out.to_dict(orient="records")
        ],
    )
    typer.echo(headline(result).replace("**", "") + f"\nreport: {report}")


def _calibrate(folder: Path, seed: int) -> Calibration:
    from analysis.fit import calibrate
    from sim.forwards import read_forwards
    from sim.records import read_rounds

    return calibrate(read_rounds(folder / "rounds.parquet"), read_forwards(folder / "forwards.parquet"), seed)


def _settings(temperature: float, top_k: int | None, top_p: float | None, min_p: float | None) -> SamplingSettings:
    from real.sampling import SamplingSettings

    return SamplingSettings(temperature, top_k, top_p, min_p)


def _load(
    target: str,
    device: str,
    dtype: str | None,
    threads: int | None,
    drafts: Sequence[str] = (),
    *,
    compiled: bool = False,
    batch: int = 1,
    tokens: int = 0,
    caches: int = 1,
) -> Target:
    """The target, if it and its drafts fit (see `real.memory.check_fits`)."""
    import torch

    from real.devices import parse_device, parse_dtype
    from real.loading import load_target
    from real.memory import check_fits

    if threads is not None:
        torch.set_num_threads(threads)
    where, kind = parse_device(device), parse_dtype(dtype)
    check_fits(target, drafts, where, kind, batch=batch, tokens=tokens, caches=caches)
    return load_target(target, where, kind, compiled=compiled)


def _longest(prompts: Sequence[Prompt]) -> int:
    """Tokens of the longest prompt, at two letters a token: more than any tokenizer makes of English."""
    return max((len(prompt.text) for prompt in prompts), default=0) // 2


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
    costs = time_costs(target, draft, gamma, batch, seed) if controller == "goodput" else None
    return parse_controller(controller, gamma, costs, seed)


class _Progress:
    """A progress bar per stage on stderr; silent with --json."""

    def __init__(self, quiet: bool) -> None:
        from rich import progress
        from rich.console import Console

        self.bars = progress.Progress(
            progress.TextColumn("{task.description:14}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TimeElapsedColumn(),
            progress.TimeRemainingColumn(),
            progress.TextColumn("{task.fields[detail]}"),
            console=Console(stderr=True),
            disable=quiet,
        )
        self.tasks: dict[str, Any] = {}

    def __enter__(self) -> _Progress:
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def __call__(self, stage: str, done: int, total: int, detail: str) -> None:
        if stage not in self.tasks:
            for task in self.tasks.values():
                self.bars.update(task, completed=self.bars.tasks[task].total, detail="")
            self.tasks[stage] = self.bars.add_task(stage, total=total, detail=detail)
        self.bars.update(self.tasks[stage], completed=done, total=total, detail=detail)


def _estimate(result: dict[str, Any], name: str) -> tuple[str, str]:
    if result[name] is None:
        return "none", ""
    interval = result[f"{name}_ci"]
    return f"{result[name]:.4f}", f"{interval[0]:.4f} to {interval[1]:.4f}" if interval else "one prompt only"


def _array(logits: Tensor | None) -> NDArray[np.float64] | None:
    return None if logits is None else logits.double().cpu().numpy()


def _bounded(row: Mapping[Any, Any], name: str) -> tuple[str, str]:
    low, high = row[f"{name}_lo"], row[f"{name}_hi"]
    return f"{row[name]:.3f}", "one prompt only" if low != low else f"{low:.3f} to {high:.3f}"


def _records(table: pd.DataFrame) -> list[dict[Any, Any]]:
    """Rows for JSON, which has no NaN: what is missing is null."""
    return table.astype(object).where(table.notna(), None).to_dict(orient="records")


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, allow_nan=False, default=_plain))


def _plain(value: Any) -> Any:
    """NumPy numbers and arrays as JSON's own."""
    return value.tolist()


def _print_table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(*map(escape, head), box=None, pad_edge=False)
    for row in rows:
        table.add_row(*map(escape, row))
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def main() -> None:
    """Run the command line: errors in one line, exit code 2 for bad use and 130 for Ctrl-C."""
    try:
        app(standalone_mode=True)
    except ValueError as error:
        typer.echo(f"specdec: {error}", err=True)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
