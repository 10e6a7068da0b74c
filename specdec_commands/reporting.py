"""`specdec report`: an HTML page of whatever another command wrote."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from specdec_commands.console import print_json
from specdec_commands.options import Json, Seed


def report(
    path: Annotated[
        Path,
        typer.Argument(
            help="A folder of `lab`, `measure`, `serve-sim --out` or `import --out`, a round table, an engine's log, a "
            "comparison.csv, or what `plan`, `diagnose`, `compare`, `check`, `serve-sim` or `import` print with --json."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("report.html"),
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Write a run, import, plan, diagnosis or comparison as one HTML page that needs nothing beside it.

    Tables, plots with their intervals, and how it was made; for a screen of any width, light or dark, and for paper.

    Examples: `specdec report runs/lab --out lab.html`, `specdec report server.log`,
    `specdec plan --target llama-3.1-8b --draft llama-3.2-1b --device h100 --acceptance 0.7 --json > plan.json` and
    `specdec report plan.json`
    """
    from analysis.html_report import write_html_report

    command = shlex.join(["specdec", "report", str(path), "--out", str(out), "--seed", str(seed)])
    page = write_html_report(path, out, seed, command)
    if as_json:
        sections = [section.title for section in page.sections]
        print_json({"out": str(out), "kind": page.kind, "title": page.title, "sections": sections})
        return
    typer.echo(f"{page.kind}: {page.title}\n{' '.join(page.lead)}\npage: {out}")
