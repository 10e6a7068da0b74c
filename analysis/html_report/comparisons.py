"""The page of a comparison: predicted beside measured speedups, and old beside new for a regression check."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.compare import COMPARISON_COLUMNS, PARTS, score
from analysis.html_report.document import (
    Page,
    Part,
    Prose,
    Section,
    Table,
    again,
    ends,
    facts,
    from_report,
    interval,
    number,
    plain,
)
from analysis.html_report.plots import SERIES, Row, Series, Value, plot_rows, plot_xy
from analysis.report import headline
from analysis.report_tables import comparison_table, misses_sentences, misses_table

REST = ("error_percent", "covered", "prompts", "tokens", "log_error", *(f"log_error_{part}" for part in PARTS))


def read_comparison(path: Path) -> pd.DataFrame:
    """Read a comparison.csv.

    Raises:
        ValueError: it cannot be read, or lacks a column.
    """
    try:
        return _checked(pd.read_csv(path), str(path))
    except (OSError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise ValueError(f"{path} is not a readable comparison: {error}") from error


def comparison_page(comparison: pd.DataFrame, name: str, seed: int, made: Sequence[Part] = ()) -> Page:
    """The page of a comparison without its run; `made` says more of how it was made."""
    return Page(
        kind="comparison",
        title=f"Predicted and measured speedup: {name}",
        lead=comparison_lead(comparison, seed),
        sections=tuple(comparison_sections(comparison)),
        made=(facts("What was compared", {"file": name, "configurations": len(comparison)}), *made),
        seed=seed,
    )


def compared_page(found: Mapping[str, Any], name: str, seed: int) -> Page:
    """The page of what `specdec compare --json` prints."""
    rows = pd.DataFrame(found["configurations"])
    bounds = [column for column in rows if str(column).endswith(("_lo", "_hi"))]
    return comparison_page(_checked(rows.astype(dict.fromkeys(bounds, np.float64)), name), name, seed, again(found))


def comparison_lead(comparison: pd.DataFrame, seed: int) -> tuple[str, ...]:
    """The score of the held-out configurations in words."""
    if not comparison["held_out"].any():
        return ("Calibration saw every configuration, so the comparison proves nothing.",)
    return (plain(headline(score(comparison, seed=seed))),)


def comparison_sections(comparison: pd.DataFrame) -> list[Section]:
    """Plots and tables of the held-out configurations, and the calibrated ones apart."""
    held_out, seen = comparison[comparison["held_out"]], comparison[~comparison["held_out"]]
    sections = []
    if len(held_out):
        misses = from_report("100 × log(predicted / measured), by part of the round", misses_table(held_out))
        sections = [
            Section("Held-out configurations", (*_plots(held_out), _table("Held-out configurations", held_out))),
            Section("Where it misses", (Prose(tuple(map(plain, misses_sentences(held_out))), listed=True), misses)),
        ]
    if len(seen):
        note = Prose(("These show whether a fit can describe its own data, and prove nothing else.",))
        sections.append(Section("Calibrated configurations", (note, _table("Calibrated configurations", seen))))
    return sections


def check_page(found: Mapping[str, Any], name: str) -> Page:
    """The page of what `specdec check --json` prints."""
    rows = [
        Row(one["quantity"], (Value(100 * one["change"], *_percent(one["change_interval"])),))
        for one in found["comparisons"]
    ]
    plot = plot_rows("Change from old to new", "percent", rows, reference=0.0)
    body = tuple(
        (
            one["quantity"],
            number(one["old"]),
            number(one["new"]),
            f"{100 * one['change']:+.1f}%",
            interval(one["change_interval"], 100),
            f"{-100 * one['allowed_drop']:.1f}%",
            number(one["p_value"]),
            "regressed" if one["regressed"] else "passed",
        )
        for one in found["comparisons"]
    )
    span = f"{100 * found['confidence']:g}% interval, %"
    head = ("quantity", "old", "new", "change", span, "allowed", "p", "verdict")
    parts: list[Part] = [*([] if plot is None else [plot]), Table("Old and new", head, body)]
    parts.append(Prose(tuple(f"{one['quantity']}: {one['test']}" for one in found["comparisons"]), listed=True))
    sections = [Section("What changed", tuple(parts))]
    if found["warnings"]:
        sections.append(Section("Warnings", (Prose(tuple(found["warnings"]), listed=True),)))
    said = "Something fell by more than allowed." if found["regressed"] else "Nothing fell by more than allowed."
    made = facts("What was checked", {"file": name, "confidence": found["confidence"]})
    return Page("regression check", f"Regression check: {name}", (said,), tuple(sections), (made, *again(found)))


def _plots(rows: pd.DataFrame) -> list[Part]:
    """Predicted over measured by draft, and both beside each other for every configuration."""
    groups = [(str(draft), part) for draft, part in rows.groupby("draft", sort=False)]
    parts: list[Part] = []
    for start in range(0, len(groups), SERIES):
        series = [
            Series(
                draft,
                tuple((_value(row, "measured"), _value(row, "predicted")) for row in _records(part)),
                joined=False,
                names=tuple(f"γ {row['gamma']}, {row['category']}" for row in _records(part)),
            )
            for draft, part in groups[start : start + SERIES]
        ]
        axes = ("measured speedup (×)", "predicted speedup (×)")
        note = "On the dashed line the prediction is right. Whiskers are 95% intervals."
        scatter = plot_xy("Predicted over measured speedup", axes, series, diagonal=True, note=note)
        parts += [] if scatter is None else [scatter]
    both = [
        Row(f"{row['draft']}, γ {row['gamma']}, {row['category']}", (_value(row, "predicted"), _value(row, "measured")))
        for row in _records(rows)
    ]
    beside = plot_rows("Speedup by configuration", "speedup (×)", both, ("predicted", "measured"), reference=1.0)
    return [*parts, *([] if beside is None else [beside])]


def _table(caption: str, rows: pd.DataFrame) -> Table:
    return from_report(caption, comparison_table(rows))


def _records(rows: pd.DataFrame) -> list[dict[Any, Any]]:
    return rows.to_dict("records")


def _value(row: Mapping[Any, Any], name: str) -> Value:
    return Value(float(row[name]), float(row[f"{name}_lo"]), float(row[f"{name}_hi"]))


def _percent(bounds: Any) -> tuple[float | None, float | None]:
    low, high = ends(bounds)
    return (None if low is None else 100 * low), (None if high is None else 100 * high)


def _checked(comparison: pd.DataFrame, name: str) -> pd.DataFrame:
    missing = [column for column in (*COMPARISON_COLUMNS, *REST) if column not in comparison]
    if missing or comparison.empty:
        wrong = f"lacks the columns {missing}" if missing else "has no rows"
        raise ValueError(f"{name} {wrong}; `specdec compare FOLDER` writes a comparison.csv")
    return comparison.astype({"held_out": bool, "covered": bool})
