"""`specdec plan`: whether to speculate, how long to draft, and what to tell the engine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from specdec_commands.console import print_json, print_table
from specdec_commands.options import Json, Seed


def plan(
    target: Annotated[str | None, typer.Option(help="Target: an architecture's name, or its config.json.")] = None,
    draft: Annotated[
        str | None,
        typer.Option(
            help="Draft: as the target, or ngram, prompt-lookup[:N], suffix; a head's repository with "
            "--draft-cost-ratio; a run's draft with --from."
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(help="Device that both run on, such as h100 or 'NVIDIA H100 80GB HBM3'; by a roofline."),
    ] = None,
    acceptance: Annotated[
        str | None,
        typer.Option(
            help="An alpha, conditional acceptances by position ('0.8,0.7,0.6'), a round table or run folder, a "
            "speculation profile, an engine's log, or what `specdec import` printed or wrote of one."
        ),
    ] = None,
    acceptance_ci: Annotated[str | None, typer.Option(help="95% bounds of an alpha, as 'LO,HI'.")] = None,
    acceptance_rounds: Annotated[int | None, typer.Option(help="Rounds behind acceptances given as numbers.")] = None,
    run: Annotated[
        Path | None,
        typer.Option(
            "--from", help="A folder of `specdec lab` or `specdec measure`: latency and acceptance, measured."
        ),
    ] = None,
    categories: Annotated[
        str | None, typer.Option(help="Plan for these categories of the run's prompts, with commas; all if left out.")
    ] = None,
    target_latency: Annotated[
        Path | None, typer.Option(help="JSON of the target's latency, instead of --device.")
    ] = None,
    draft_latency: Annotated[Path | None, typer.Option(help="JSON of the draft's latency.")] = None,
    draft_cost_ratio: Annotated[
        float | None, typer.Option(help="A draft head's forward over a target's with one token (EAGLE, MTP).")
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(help="How engines call the draft: draft_model, ngram, suffix, eagle, eagle3, mtp; by its name."),
    ] = None,
    batches: Annotated[str | None, typer.Option(help="Batches, with commas; 1,8,32, or 1 with --from.")] = None,
    contexts: Annotated[
        str | None,
        typer.Option(help="Tokens of a request at the middle of its output, with commas; 1024, or the run's mean."),
    ] = None,
    output_tokens: Annotated[
        int | None,
        typer.Option(help="Of each request, whose last round is cut; without end if left out, 256 under --rate."),
    ] = None,
    max_gamma: Annotated[int, typer.Option(help="Longest draft to consider.")] = 16,
    max_tree_tokens: Annotated[int, typer.Option(help="Largest tree to consider, where ranks were measured.")] = 16,
    max_batch: Annotated[
        int | None, typer.Option(help="Largest batch to search for the crossover; what memory holds, at most 4096.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="Of the weights: bf16, fp16, fp8, int8, int4, ...")] = "bf16",
    draft_dtype: Annotated[str | None, typer.Option(help="Of the draft's weights; as the target's.")] = None,
    kv_dtype: Annotated[str, typer.Option(help="Of the KV cache.")] = "bf16",
    tensor_parallel: Annotated[int, typer.Option(help="Devices that share the target.")] = 1,
    draft_tensor_parallel: Annotated[
        int | None, typer.Option(help="Devices that share the draft; as many as share the target, if left out.")
    ] = None,
    overhead_seconds: Annotated[float, typer.Option(help="Host time of every round and every plain step.")] = 0.0,
    baseline_overhead_seconds: Annotated[
        float | None, typer.Option(help="Host time of a step without speculation, where it differs.")
    ] = None,
    proposal_seconds: Annotated[float, typer.Option(help="Host time of every lookup.")] = 0.0,
    price_per_hour: Annotated[
        float | None, typer.Option(help="Of all devices; gives money per million tokens.")
    ] = None,
    rate: Annotated[
        float | None, typer.Option(help="Also simulate a server with so many requests a second, with and without.")
    ] = None,
    prompt_tokens: Annotated[int, typer.Option(help="Of each request under --rate.")] = 512,
    requests: Annotated[int, typer.Option(help="Of each replication under --rate.")] = 300,
    replications: Annotated[int, typer.Option(help="Under --rate; the interval is over these.")] = 5,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Say which draft length is best at each batch, what it brings, where it stops paying, and the flags for engines.

    Says "do not use it" (gamma 0, speedup 1) where that is the answer. Intervals are 95%; the plan says what they hold.

    Examples:

    - `specdec plan --target llama-3.1-8b --draft llama-3.2-1b --device h100 --acceptance 0.7 --batches 1,8,32`
    - `specdec plan --target qwen3-8b --draft ngram --device l40s --acceptance vllm.log --price-per-hour 1.5`
    - `specdec plan --from docs/lab --draft prompt-lookup --batches 1`
    """
    from analysis.plan.inputs import Wanted
    from analysis.plan.load import Load
    from analysis.plan.output import make_plan
    from sim.scenario_parts import read_scenario

    sizes = [] if batches is None else [int(number) for number in _numbers("--batches", batches, whole=True)]
    bounds = None if acceptance_ci is None else _numbers("--acceptance-ci", acceptance_ci)
    if bounds is not None and len(bounds) != 2:
        raise ValueError(f"--acceptance-ci must be two numbers, as 0.7,0.8, got {acceptance_ci!r}")
    load = None
    if rate is not None:
        load = Load(rate, prompt_tokens, output_tokens or 256, requests, replications, batch_limit=max_batch or 256)
    found = make_plan(
        Wanted(
            target=target,
            draft=draft,
            device=device,
            target_latency=None if target_latency is None else read_scenario(target_latency),
            draft_latency=None if draft_latency is None else read_scenario(draft_latency),
            run=run,
            categories=() if categories is None else tuple(categories.split(",")),
            draft_cost_ratio=draft_cost_ratio,
            method=method,
            acceptance=acceptance,
            acceptance_ci=None if bounds is None else (bounds[0], bounds[1]),
            acceptance_rounds=acceptance_rounds,
            batches=tuple(sizes),
            contexts=() if contexts is None else tuple(_numbers("--contexts", contexts)),
            output_tokens=output_tokens,
            max_gamma=max_gamma,
            max_tree_tokens=max_tree_tokens,
            max_batch=max_batch,
            dtype=dtype.lower(),
            draft_dtype=None if draft_dtype is None else draft_dtype.lower(),
            kv_dtype=kv_dtype.lower(),
            tensor_parallel=tensor_parallel,
            draft_tensor_parallel=draft_tensor_parallel,
            overhead_seconds=overhead_seconds,
            baseline_overhead_seconds=baseline_overhead_seconds,
            proposal_seconds=proposal_seconds,
            price_per_hour=price_per_hour,
            load=load,
            seed=seed,
        )
    )
    if as_json:
        print_json(found)
        return
    _print(found)


def _print(found: dict[str, Any]) -> None:
    """The plan for people: a row per batch, then where it stops paying, the flags, and what else to know."""
    head = ["context", "batch", "gamma", "speedup", "95% interval", "tokens/round", "TPOT [ms]", "without [ms]"]
    money = any("price" in row for row in found["batches"])
    rows = []
    for row in found["batches"]:
        cells = [
            f"{row['context']:g}",
            str(row["batch"]),
            str(row["gamma"]),
            f"{row['speedup']:.3f}",
            "{:.3f} to {:.3f}".format(*row["speedup_ci"]),
            f"{row['block_efficiency']:.2f}",
            f"{1e3 * row['tpot_seconds']:.3f}",
            f"{1e3 * row['baseline_tpot_seconds']:.3f}",
        ]
        if money:
            price = row["price"]
            cells.append(f"{price['per_million_tokens']:.3f} ({price['baseline_per_million_tokens']:.3f})")
        rows.append(tuple(cells))
    print_table((*head, "per M tokens (without)") if money else tuple(head), rows)
    for row in found["batches"]:
        typer.echo(f"batch {row['batch']}: {row['reason']}")
        if row["tree"]:
            typer.echo(
                "  best tree {tree}: {speedup:.3f}x, {block_efficiency:.2f} tokens a round".format(**row["tree"])
            )
        if row["memory"] and not row["memory"]["fits"]:
            typer.echo(f"  memory holds {row['memory']['most_batch']} requests of that context")
    for limit in found["contexts"]:
        beyond = f"above {limit['searched_batches']}"
        first, low, high = (
            beyond if batch is None else str(batch)
            for batch in (limit["crossover_batch"], *limit["crossover_batch_ci"])
        )
        typer.echo(f"context {limit['context']:g}: stops paying at batch {first} (95%: {low} to {high})")
    if "load" in found:
        load = {name: value for name, value in found["load"].items() if name.endswith("ratio")}
        typer.echo(
            "under load: " + ", ".join(f"{name} {value:.3f}" for name, value in load.items() if value is not None)
        )
    for engine, text in found["emit"].items():
        if engine != "notes" and text:
            typer.echo(f"{engine}:\n{text}")
    for text in (found["interval"], *found["remarks"]):
        typer.echo(f"- {text}")
    for engine, text in found["emit"]["notes"].items():
        typer.echo(f"- {engine}: {text}")


def _numbers(option: str, text: str, whole: bool = False) -> list[float]:
    """Numbers with commas between."""
    try:
        return [int(part) if whole else float(part) for part in text.split(",")]
    except ValueError as error:
        kind = "whole numbers" if whole else "numbers"
        raise ValueError(f"{option} must be {kind} with commas between, got {text!r}") from error
