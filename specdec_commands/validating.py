"""`specdec validate-published`: what the simulator says of speedups that others measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from specdec_commands.console import json_records, print_json, print_table
from specdec_commands.options import Json


def validate_published(
    file: Annotated[
        Path | None,
        typer.Argument(help="CSV of published speedups; the committed paper_figs/data/published_speedups.csv if none."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Also write the predictions row by row (.csv).")] = None,
    as_json: Json = False,
) -> None:
    """Predict published speedups from their own acceptance and latencies, and score the predictions by source.

    Errors are in percent of the measured speedup: mean of their sizes, mean with sign, and largest; beside them the
    mean of the plain formula (Leviathan et al. 2023, Thm 3.8) and of the source's own prediction, and the share of the
    95% intervals that hold what was measured. No measured speedup enters a prediction; an interval is as much wider
    than its inputs tell as those of the other committed sources had to be. Rows that leave out an input say so in the
    file of `--out`.

    Examples:

    - `specdec validate-published --out predictions.csv`
    """
    from analysis.published import predict_published, score_published
    from analysis.published.rows import read_published
    from paper_figs import PUBLISHED
    from sim.records import write_atomically

    reference = read_published(PUBLISHED)
    predictions = predict_published(reference if file is None else read_published(file), reference)
    scores = score_published(predictions)
    if out is not None:
        write_atomically(out, lambda part: predictions.to_csv(part, index=False))
    predicted = int(predictions["predicted"].notna().sum())
    if as_json:
        print_json({"rows": len(predictions), "predicted": predicted, "sources": json_records(scores)})
        return
    print_table(
        ("source", "rows", "predicted", "error", "bias", "largest", "formula", "source's own", "covered"),
        [_cells(row) for row in scores.to_dict(orient="records")],
    )
    held = predictions["covered"].dropna().astype(float)
    shown = f"; intervals hold {held.mean():.0%} of the measured" if len(held) else ""
    typer.echo(f"{predicted} of {len(predictions)} rows predicted{shown}")
    for row in scores[scores["reason"].notna()].to_dict(orient="records"):
        typer.echo(f"not predicted in {row['source']}: {row['rows'] - row['predicted']} rows, most for {row['reason']}")
    if out is not None:
        typer.echo(f"row by row: {out}")


def _cells(row: dict[Any, Any]) -> tuple[str, ...]:
    """A source's scores as cells, blank where there is none; the formula says on how many rows, if not on all."""
    errors = [_percent(row[name]) for name in ("mape", "bias", "max_error", "formula_mape", "source_mape")]
    if 0 < row["formula_rows"] < row["predicted"]:
        errors[3] += f" ({row['formula_rows']} rows)"
    covered = "" if row["coverage"] != row["coverage"] else f"{row['coverage']:.0%}"
    return (str(row["source"]), str(row["rows"]), str(row["predicted"]), *errors, covered)


def _percent(value: float) -> str:
    """A number in percent, blank for NaN."""
    return "" if value != value else f"{value:.1f}%"
