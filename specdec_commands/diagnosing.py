"""`specdec diagnose`: why speculation is slower than it could be."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from specdec_commands.console import print_json, print_table
from specdec_commands.options import Json, Seed

if TYPE_CHECKING:
    from analysis.diagnose import Diagnosis
    from analysis.diagnose.causes import Cause

LEAST_SHARE = 0.01
"""of the loss, from which the table shows a cause; JSON has them all"""


def diagnose(
    file: Annotated[
        Path,
        typer.Argument(help="A run folder, a round table (.parquet, .jsonl), or a log of vLLM, SGLang, llama.cpp, ..."),
    ],
    baseline: Annotated[
        Path | None,
        typer.Option(
            help="The same without speculation, a round table or a log that holds times; left out, the plain steps "
            "(gamma 0) in the round table."
        ),
    ] = None,
    draft: Annotated[str | None, typer.Option(help="Which draft, where the table holds several.")] = None,
    gamma: Annotated[int | None, typer.Option(help="Which draft length, where the table holds several.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the waterfall figure (PNG, PDF) and its data (CSV).")
    ] = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Say what keeps the speedup below the ideal, cause by cause, and what to do about each.

    The ideal is what a good draft (an acceptance rate of 0.8, or the run's own where that is better) emits in a round,
    for the price of one plain step. Causes share the loss by Shapley values; a cause's seconds per token are what it
    costs.

    Examples:

    - `specdec diagnose docs/lab --draft early-exit:24 --gamma 1 --out figures`
    - `specdec diagnose server.log --baseline without.log`
    """
    from analysis.diagnose.logs import diagnose_files

    found = diagnose_files(file, baseline, draft, gamma, seed)
    if out is not None:
        from paper_figs.waterfall import draw

        what = f"{found.draft or 'draft'} at gamma {found.gamma:g}" if found.gamma else "draft"
        draw(found, out, f"{file.name}: {what}, {found.rounds or 0:,} rounds of {found.requests or 0:,} requests")
    if as_json:
        print_json(found.to_json())
        return
    _print(found)


def _print(found: Diagnosis) -> None:
    """The verdict, the split of a round, the causes, the warnings."""
    typer.echo(f"{found.verdict}\n")
    names = {"draft": "draft", "verify": "verify", "other": "other", "total": "speculative", "baseline": "plain step"}
    rows = []
    for key, label in names.items():
        value, interval = found.split[f"{key}_ms_per_token"], found.split[f"{key}_ms_per_token_ci"]
        if value is not None:
            rows.append((label, f"{value:.4g}", "" if interval is None else "{:.4g} to {:.4g}".format(*interval)))
    if rows:
        print_table(("part of a round", "ms per token", "95% interval"), rows)
        typer.echo("")
    shown = [one for one in found.causes if one.share is None or one.share >= LEAST_SHARE]
    if shown:
        print_table(
            ("cause", "share", "ms per token", "95% interval", "remedy"),
            [(one.name, *_cells(one), one.remedy) for one in shown],
        )
    small = [one.name for one in found.causes if one not in shown]
    if small:
        typer.echo(f"below {LEAST_SHARE:.0%} of the loss: {', '.join(small)}")
    if found.gains:
        typer.echo(f"no loss but a gain: {', '.join(one.name for one in found.gains)}")
    for warning in found.warnings:
        typer.echo(f"warning: {warning}", err=True)


def _cells(cause: Cause) -> tuple[str, str, str]:
    """Share, milliseconds per token and their interval."""
    share = "" if cause.share is None else f"{cause.share:.0%}"
    cost = "" if cause.seconds_per_token is None else f"{1e3 * cause.seconds_per_token:.4g}"
    bounds = cause.seconds_per_token_ci
    return share, cost, "" if bounds is None else "{:.4g} to {:.4g}".format(*(1e3 * bound for bound in bounds))
