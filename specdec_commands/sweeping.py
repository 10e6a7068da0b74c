"""`specdec sweep`: a grid or a Latin hypercube of simulations."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from specdec_commands.console import Progress, print_json
from specdec_commands.options import Json


def sweep(
    design: Annotated[Path, typer.Argument(help="A sweep file (YAML); an example is sim/scenarios/sweep.yaml.")],
    out: Annotated[Path, typer.Option(help="The table to write (Parquet), a row per point.")],
    jobs: Annotated[int | None, typer.Option(help="Processes; as many as there are cores if left out.")] = None,
    dask: Annotated[
        str | None, typer.Option(help="Address of a Dask scheduler, such as tcp://host:8786, instead of --jobs.")
    ] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Run points again that failed before.")] = False,
    as_json: Json = False,
) -> None:
    """Run a scenario at every point of a grid or a Latin hypercube over any of its keys.

    Interrupted, it goes on where it stopped: finished points are not run again. A point that fails is a row with its
    error, and does not stop the rest; the exit code is then 1.

    Examples:

    - `specdec sweep sim/scenarios/sweep.yaml --out runs/sweep.parquet`
    """
    from sim.sweep import run_sweep
    from sim.sweep.reading import read_design

    with Progress(quiet=as_json) as progress:
        result = run_sweep(
            read_design(design),
            out,
            jobs=jobs,
            dask=dask,
            retry_failed=retry_failed,
            progress=lambda done, total: progress("points", done, total, ""),
        )
    if as_json:
        print_json(
            {
                "path": str(result.path),
                "points": result.points,
                "done_before": result.done_before,
                "failed": result.failed,
                "first_error": result.first_error,
            }
        )
    else:
        typer.echo(f"{result.points:,} points in {result.path}, {result.done_before:,} of them from before")
        if result.failed:
            typer.echo(f"{result.failed:,} failed, the first with: {result.first_error}", err=True)
    raise typer.Exit(1 if result.failed else 0)
