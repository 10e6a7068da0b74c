"""`specdec figures`: the figures of the field and of this lab, drawn again from first principles and from runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from specdec_commands.console import Progress, print_json, print_table
from specdec_commands.options import Json


def figures(
    listed: Annotated[bool, typer.Option("--list", help="Say which figures there are, and draw none.")] = False,
    only: Annotated[list[str] | None, typer.Option(help="Draw this figure; may be given several times.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Draw every figure.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for PNG, PDF, CSV and index.html.")] = Path("paper_figs/out"),
    run: Annotated[
        Path | None,
        typer.Option(help="Run folder, on any machine, for lab_predictions and lab_waterfall; else the committed run."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Draw the figures of the papers and of this lab, each as PNG and PDF with its data as CSV, and a contact sheet.

    No GPU and no model: what was measured lies in the package with the command that measured it. All take two minutes,
    most of them the server under load. The contact sheet, index.html, shows every figure in the folder, those of other
    calls too. The exit code is 1 where a figure could not be made.

    Examples:

    - `specdec figures --list`
    - `specdec figures --only leviathan_fig2`
    - `specdec figures --only lab_predictions --run docs/lab`
    - `specdec figures --all --out figures`
    """
    from paper_figs import catalogue
    from paper_figs.contact_sheet import write_contact_sheet

    if [listed, every, bool(only)].count(True) != 1:
        raise ValueError("give --all, --list, or --only with a figure's name, and one of them only")
    if listed:
        _list(as_json)
        return
    names = list(catalogue.FIGURES if every else dict.fromkeys(only or ()))
    for name in names:
        catalogue.module_of(name)
    if run is not None and not set(names) & set(catalogue.OF_A_RUN):
        raise ValueError(
            f"--run is read by {' and '.join(catalogue.OF_A_RUN)} alone, got {', '.join(names)}; leave it out"
        )
    if not out.is_dir() and any(place.exists() and not place.is_dir() for place in (out, *out.parents)):
        raise ValueError(f"--out must be a folder, but {out} is or lies below a file; name another place")
    made, failed = [], []
    with Progress(quiet=as_json) as progress:
        for place, found in enumerate(catalogue.make_all(names, out, run), start=1):
            if isinstance(found, catalogue.Made):
                made.append(found)
            else:
                failed.append(found)
            progress("figures", place, len(names), names[min(place, len(names) - 1)])
    page = write_contact_sheet(out) if made else None
    if as_json:
        rows = [
            {"name": one.name, "seconds": one.seconds, "caption": one.caption, "source": one.source}
            | {kind: str(path) for kind, path in one.paths.items()}
            for one in made
        ]
        errors = [{"name": name, "error": error} for name, error in failed]
        print_json({"figures": rows, "failed": errors, "contact_sheet": None if page is None else str(page)})
    else:
        if made:
            print_table(("figure", "seconds"), [(one.name, f"{one.seconds:.1f}") for one in made])
            typer.echo(f"{len(made)} figures; contact sheet: {page}")
        for name, error in failed:
            typer.echo(f"{name}: {error}", err=True)
    if failed:
        raise typer.Exit(1)


def _list(as_json: bool) -> None:
    """Names and what they show; with --json their sources too."""
    from paper_figs import catalogue

    rows = [(name, catalogue.title_of(name)) for name in catalogue.FIGURES]
    if as_json:
        sources = {name: catalogue.module_of(name).SOURCE for name in catalogue.FIGURES}
        print_json([{"name": name, "title": title, "source": sources[name]} for name, title in rows])
        return
    print_table(("figure", "what it shows"), rows)
