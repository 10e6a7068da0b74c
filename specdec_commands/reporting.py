"""`specdec report`: an HTML page of whatever another command wrote."""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from specdec_commands.console import command_line, print_json
from specdec_commands.options import Json, Seed


def report(
    path: Annotated[
        Path,
        typer.Argument(
            help="A folder of `lab`, `measure`, `serve-sim --out` or `import --out`, a round table, a table of "
            "`sweep`, an engine's log, a comparison.csv, or what `plan`, `diagnose`, `compare`, `check`, `serve-sim` "
            "or `import` print with --json; - reads a log or such JSON from standard input."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("report.html"),
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Write a run, import, plan, diagnosis, comparison or sweep as one HTML page that needs nothing beside it.

    Tables, plots with their intervals, and how it was made: the command, to be copied. The page fits a screen of any
    width, light or dark, and paper. A plan or a diagnosis is reported from what it prints with --json.

    Examples:

    - `specdec report docs/lab --out lab.html`
    - `specdec report server.log`
    - `specdec plan --from docs/lab --draft prompt-lookup --json | specdec report - --out plan.html`
    """
    from analysis.html_report import write_html_report

    command = command_line() or ""
    if str(path) == "-":
        with TemporaryDirectory() as folder:
            copy = Path(folder) / "standard input"
            copy.write_bytes(sys.stdin.buffer.read())
            try:
                page = write_html_report(copy, out, seed, command)
            except ValueError as error:
                raise ValueError(str(error).replace(str(copy), copy.name)) from error
    else:
        page = write_html_report(path, out, seed, command)
    if as_json:
        sections = [section.title for section in page.sections]
        print_json({"out": str(out), "kind": page.kind, "title": page.title, "sections": sections})
        return
    typer.echo(f"{page.kind}: {page.title}\n{' '.join(page.lead)}\npage: {out}")
