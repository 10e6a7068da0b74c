"""`specdec distill`: train a draft head for a target."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from specdec_commands.console import Progress, print_json, print_table
from specdec_commands.loading import load_if_it_fits
from specdec_commands.options import DEFAULT_TARGET, Device, Json, Seed, TargetName, Threads


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

    Examples:

    - `specdec distill --target smollm2-135m-instruct --minutes 120 --out runs/head --seed 0`
    """
    import pandas as pd

    from paper_figs.distillation_curve import draw
    from real import distill as training

    loaded = load_if_it_fits(target, device, None, threads)
    with Progress(quiet=as_json) as progress:
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
        print_json(result | {"out": str(out)})
        return
    print_table(
        ("drafted token", "alpha", "greedy agreement"),
        [(str(k), f"{result[f'alpha_{k}']:.3f}", f"{result[f'agreement_{k}']:.3f}") for k in range(1, plan.unroll + 1)],
    )
    typer.echo(f"on a held-out shard, at temperature 1; use it with --draft {out}")
