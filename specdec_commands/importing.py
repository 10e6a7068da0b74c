"""`specdec import`: what another engine's log says about acceptance."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from specdec_commands.console import command_line, print_json, print_table
from specdec_commands.options import Json

if TYPE_CHECKING:
    from analysis.engine_logs import ImportedLog


def import_log(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...",
            help="A log, packed or not, or - for standard input; parts of a rotated log; two metrics pages, earlier "
            "one first; a benchmark's result; or a round table or run folder of this program.",
        ),
    ],
    engine: Annotated[
        str,
        typer.Option(
            help="vllm, sglang, llama.cpp, tensorrt-llm, spec-bench, mlc-llm, speculation-profile, specdec, or auto."
        ),
    ] = "auto",
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for import.json, speculation_profile.json where acceptance by position is known, and the "
            "log's series, requests, steps or rounds as Parquet."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Import the speculative-decoding statistics of another engine's log, and check that its numbers agree.

    What a log does not hold stays missing. Numbers that disagree, lines that cannot be read and counts that are easily
    misread are named in the warnings.

    Examples:

    - `specdec import docs/lab`
    - `specdec import server.log --json`
    - `specdec import before.prom after.prom`
    - `specdec import vllm.log.1 vllm.log --engine vllm --out runs/vllm`
    """
    from analysis.engine_logs import read_log

    log = read_log(files, engine)
    if out is not None:
        _write(log, out)
    if as_json:
        print_json(log.summary())
        return
    print_table(("", log.format), _rows(log))
    for warning in log.warnings:
        typer.echo(f"warning: {warning}")
    for note in log.notes:
        typer.echo(f"note: {note}")


def _rows(log: ImportedLog) -> list[tuple[str, str]]:
    """The numbers that the log holds, for people."""
    numbers = {
        "engine": log.engine,
        "rounds": log.rounds,
        "drafted tokens": log.drafted,
        "accepted tokens": log.accepted,
        "emitted tokens": log.emitted,
        "mean acceptance length [tokens/round]": log.mean_acceptance_length,
        "its mean over requests": log.mean_acceptance_length_per_request,
        "marginal acceptance": log.marginal_acceptance,
        "conditional acceptance": log.conditional_acceptance,
        "draft length": log.gamma,
        "draft seconds": log.draft_seconds,
    }
    rows = [(name, _cell(value)) for name, value in numbers.items() if value is not None]
    held = sum(check.compared > 0 and check.failed == 0 for check in log.checks)
    return [*rows, ("identities that hold", f"{held} of {len(log.checks)}")]


def _cell(value: str | int | float | tuple[float | None, ...]) -> str:
    if isinstance(value, tuple):
        return ", ".join("none" if rate is None else f"{rate:.4f}" for rate in value)
    if isinstance(value, str):
        return value
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def _write(log: ImportedLog, folder: Path) -> None:
    """Write the summary, the profile and the tables, each file atomically."""
    from analysis.acceptance.profile import profile_of, write_profile
    from analysis.acceptance.sources import of_log
    from sim.records import write_atomically, write_json, write_rounds

    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--out {folder} is a file; name a folder")
    for name in ("series", "requests", "steps"):
        table = getattr(log, name)
        if table is not None:
            write_atomically(folder / f"{name}.parquet", partial(table.to_parquet, index=False))
    if log.round_table is not None:
        write_rounds(log.round_table, folder / "rounds.parquet")
    if log.marginal_acceptance is not None:
        try:
            write_profile(profile_of(of_log(log)), folder / "speculation_profile.json")
        except ValueError as error:  # the log's rates are those of no draft; its other numbers are written all the same
            typer.echo(f"no speculation profile: {error}", err=True)
    write_json(log.summary() | {"command": command_line()}, folder / "import.json")
