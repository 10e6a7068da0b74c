"""`specdec report`: an HTML page of whatever another command wrote."""

from __future__ import annotations

from pathlib import Path
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
            "or `import` print with --json."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("report.html"),
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Write a run, import, plan, diagnosis, comparison or sweep as one HTML page that needs nothing beside it.

    Tables, plots with their intervals, and how it was made: the command, to be copied. The page fits a screen of any
    width, light or dark, and paper. To report a plan or a diagnosis, send what it prints with --json into a file.

    Examples:

    - `specdec report docs/lab --out lab.html`
    - `specdec report server.log`
    - `specdec report plan.json --out plan.html`
    """
    from analysis.html_report import write_html_report

    page = write_html_report(path, out, seed, command_line() or "")
    if as_json:
        sections = [section.title for section in page.sections]
        print_json({"out": str(out), "kind": page.kind, "title": page.title, "sections": sections})
        return
    typer.echo(f"{page.kind}: {page.title}\n{' '.join(page.lead)}\npage: {out}")
