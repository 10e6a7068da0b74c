"""`specdec serve-sim`, `specdec replay` and `specdec latency`: serving without a GPU."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from specdec_commands.console import Progress, command_line, estimate_cells, print_json, print_table
from specdec_commands.options import Json, Seed

if TYPE_CHECKING:
    from sim.latency import LatencyModel


def serve_sim(
    scenario: Annotated[Path, typer.Argument(help="A scenario file (YAML); examples are in sim/scenarios.")],
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="Change a key, as in --set policy.gamma=2; may be repeated.")
    ] = None,
    baseline: Annotated[
        bool, typer.Option("--baseline", help="Also run without speculation, on the same requests, and compare.")
    ] = False,
    replications: Annotated[int, typer.Option(help="Independent runs; from 2 on, intervals are over these.")] = 1,
    relative_half_width: Annotated[
        float | None,
        typer.Option(help="Go on replicating until every mean's interval is as narrow, as a share of the mean."),
    ] = None,
    seed: Seed = 0,
    out: Annotated[Path | None, typer.Option(help="Folder for the request and step tables of the first run.")] = None,
    as_json: Json = False,
) -> None:
    """Simulate a server under load: arrivals, queue, prefill, batched decoding with or without speculation.

    Prints TTFT (arrival to first token), TPOT (a request's mean time per token after it), ITL (time between two
    emissions: a whole round under speculation), throughput, goodput, queue and memory, each with a 95% interval.

    Examples:

    - `specdec serve-sim sim/scenarios/policies_under_load.yaml --baseline`
    - `specdec serve-sim sim/scenarios/dsi.yaml --replications 3`
    - `specdec serve-sim my.yaml --set arrivals.rate=20 --set policy.gamma=2 --out runs/serving`
    """
    from sim.serving.study import run_study

    with Progress(quiet=as_json) as progress:
        study = run_study(
            scenario,
            changes or [],
            seed,
            baseline=baseline,
            replications=replications,
            relative_half_width=relative_half_width,
            progress=progress,
            out=out,
            command=command_line(),
        )
    if as_json:
        print_json(study.to_json())
        return
    other = study.baseline or {}
    plain = {name: f"{value:.5g}" for name, value in other.items()}
    rows = [
        (name.replace(".", " "), f"{value:.5g}", _interval(study.intervals, name), plain.get(name, ""))
        for name, value in study.values.items()
    ]
    rows += [
        (name.replace("_", " "), f"{value:.4f}", _interval(study.ratio_intervals, name), "")
        for name, value in study.ratios.items()
    ]
    print_table(("", "estimate", "95% interval", "without speculation" if other else ""), rows)
    for remark in study.remarks:
        typer.echo(remark)


def _interval(intervals: Mapping[str, tuple[float, float]], name: str) -> str:
    return "{:.5g} to {:.5g}".format(*intervals[name]) if name in intervals else ""


def replay(
    trace: Annotated[
        Path, typer.Argument(help='JSONL, one request a line: {"prompt_len": int, "accept_lengths": [int, ...]}.')
    ],
    gamma: Annotated[int, typer.Option(help="Draft length in tokens; 0 decodes without a draft.")],
    target_latency: Annotated[
        Path, typer.Option(help="JSON of the target's latency, of kind constant, affine, table or roofline.")
    ],
    draft_latency: Annotated[Path | None, typer.Option(help="JSON of the draft's latency; free if left out.")] = None,
    batch: Annotated[int, typer.Option(help="Copies of each request that decode together.")] = 1,
    overhead_seconds: Annotated[float, typer.Option(help="Host time of every round and every plain step.")] = 0.0,
    baseline_overhead_seconds: Annotated[
        float | None, typer.Option(help="Host time of a step without speculation, where it differs.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Replay a positional acceptance trace at any draft length and batch, prefill included.

    Entry i of accept_lengths is the number of tokens that a round starting at output position i emits if its draft is
    long enough; a shorter draft emits min(entry, gamma + 1). Every request runs once, as a batch of copies of itself.

    Example, with two files of one line each:

    - `echo '{"prompt_len": 64, "accept_lengths": [4, 3, 2, 1, 5, 4, 3, 2, 1, 1]}' > trace.jsonl`
    - `echo '{"kind": "affine", "fixed_seconds": 0.02, "seconds_per_token": 0.0001}' > target.json`
    - `specdec replay trace.jsonl --gamma 3 --batch 16 --target-latency target.json`
    """
    from sim.replay import read_positional_trace, replay_summary
    from sim.replay import replay as run

    target = _read_latency(target_latency)
    draft = None if draft_latency is None else _read_latency(draft_latency)
    recorded = read_positional_trace(trace)
    result = replay_summary(
        run(recorded, gamma, batch, target, draft, overhead_seconds, baseline_overhead_seconds), batch
    )
    if as_json:
        print_json(result)
        return
    print_table(
        ("", "estimate", "95% interval over requests"),
        [
            ("speedup", *estimate_cells(result, "speedup")),
            ("block efficiency [tokens/round]", *estimate_cells(result, "block_efficiency")),
        ],
    )
    typer.echo(
        f"{result['tokens_per_second']:,.1f} output tokens/s, {result['baseline_tokens_per_second']:,.1f} without "
        f"speculation; {result['requests']} requests, batch {batch}"
    )


def latency(
    architecture: Annotated[str, typer.Option(help="A name such as llama-3.1-8b, or a transformers config.json.")],
    device: Annotated[str, typer.Option(help="A device such as h100, a100, l4, mi300x.")],
    batch: Annotated[int, typer.Option(help="Requests in the forward.")] = 1,
    context: Annotated[int, typer.Option(help="Tokens that each request has in its KV cache.")] = 1024,
    new_tokens: Annotated[str, typer.Option(help="New tokens of each request; several with commas.")] = "1",
    dtype: Annotated[str, typer.Option(help="Of the weights: bf16, fp16, fp8, int8, int4, ...")] = "bf16",
    tensor_parallel: Annotated[int, typer.Option(help="Devices that share the model.")] = 1,
    as_json: Json = False,
) -> None:
    """Price a forward by a roofline: seconds by group of operators, and how a verification compares with one token.

    Examples:

    - `specdec latency --architecture llama-3.1-8b --device h100 --batch 8 --context 4096 --new-tokens 1,4,8`
    """
    from sim.latency import latency_from_json

    try:
        counts = [int(number) for number in new_tokens.split(",")]
    except ValueError as error:
        raise ValueError(f"--new-tokens must be whole numbers with commas between, got {new_tokens!r}") from error
    names = {"architecture": architecture, "device": device, "dtype": dtype, "tensor_parallel": tensor_parallel}
    model: Any = latency_from_json({"kind": "roofline", **names})
    one = float(model.forward_seconds(batch, 1, context))
    rows: list[dict[str, Any]] = []
    for count in counts:
        by_group = {name: float(seconds) for name, seconds in model.group_seconds(batch, count, context).items()}
        total = float(model.forward_seconds(batch, count, context))
        rows.append({"new_tokens": count, "seconds": total, "verify_ratio": total / one, "groups": by_group})
    if as_json:
        print_json({**names, "batch": batch, "context": context, "assumed": model.reached.assumed, "forwards": rows})
        return
    groups = list(rows[0]["groups"])
    print_table(
        ("new tokens", *(f"{name} [ms]" for name in groups), "all [ms]", "verify ratio"),
        [
            (
                str(row["new_tokens"]),
                *(f"{1e3 * row['groups'][name]:.3f}" for name in groups),
                f"{1e3 * row['seconds']:.3f}",
                f"{row['verify_ratio']:.3f}",
            )
            for row in rows
        ],
    )
    if model.reached.assumed:
        typer.echo(f"the efficiency of {device} is assumed to be that fitted on an H100")


def _read_latency(path: Path) -> LatencyModel:
    from sim.latency import latency_from_json

    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is not a readable latency: {error}") from error
    if not isinstance(value, Mapping):
        raise ValueError(f"{path} must hold an object with a kind, got {type(value).__name__}")
    return latency_from_json(value)
