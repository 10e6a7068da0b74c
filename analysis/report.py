"""The report of a run, in Markdown: what was predicted, what was measured, and why they differ."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.compare import Score, score
from analysis.fit import Calibration
from analysis.report_tables import (
    ReportTable,
    acceptance_table,
    comparison_table,
    costs_table,
    latency_table,
    machine_table,
    misses_sentences,
    misses_table,
    source_table,
)
from sim.records import RunMetadata, write_atomically

NAME = "report.md"


def write_report(
    folder: Path,
    metadata: RunMetadata,
    calibration: Calibration,
    comparison: pd.DataFrame,
    figure: Path | None = None,
) -> Path:
    """Write report.md into a run folder, atomically.

    Args:
        folder: the run folder.
        metadata: what the run was made with.
        calibration: the fits.
        comparison: from `analysis.compare.compare`.
        figure: the predicted-vs-measured PNG, inside the folder.

    Returns:
        The report's path.

    Raises:
        ValueError: the comparison holds no held-out configuration.
    """
    sections = [
        headline(score(comparison)),
        f"![Predicted against measured speedup]({figure.name})" if figure else "",
        "## Held-out configurations\n\n" + _section(comparison_table(comparison[comparison["held_out"]])),
        "## Where it misses\n\n" + misses_section(comparison[comparison["held_out"]]),
        calibrated_section(comparison),
        "## Acceptance\n\n" + acceptance_section(calibration),
        "## Latency\n\n" + latency_section(calibration),
        "## The rest of a round\n\n" + costs_section(calibration),
        "## The source's speedup table\n\n" + _section(source_table()),
        "## Machine and run\n\n" + _section(machine_table(metadata)),
    ]
    text = "# Predicted and measured speedup\n\n" + "\n\n".join(part for part in sections if part) + "\n"
    path = folder / NAME
    write_atomically(path, lambda part: Path(part).write_text(text))
    return path


def headline(result: Score) -> str:
    """The score in three sentences."""
    error, coverage = result.mean_absolute_percentage_error, result.coverage
    return (
        f"Over {result.configs} held-out configurations the mean absolute percentage error of the predicted speedup is "
        f"**{error.value:.1f}%** (95% interval {error.lo:.1f}% to {error.hi:.1f}%). The 95% predictive intervals hold "
        f"**{round(coverage.value * result.configs)} of {result.configs}** measured values "
        f"({100 * coverage.value:.0f}%, 95% interval {100 * coverage.lo:.0f}% to {100 * coverage.hi:.0f}%). "
        f"The worst is `{result.worst_config}`, off by {result.worst_error_percent:+.1f}%, "
        f"mostly from {result.worst_part}."
    )


def misses_section(rows: pd.DataFrame) -> str:
    """The error of every configuration over the parts of a round, and in words where the interval missed."""
    sentences = "\n".join(f"- {sentence}" for sentence in misses_sentences(rows))
    return f"{sentences}\n\n{_section(misses_table(rows))}"


def calibrated_section(comparison: pd.DataFrame) -> str:
    """The score on calibrated configurations, apart; empty where the comparison has none."""
    if comparison["held_out"].all():
        return ""
    result = score(comparison, held_out=False)
    return (
        "## Calibrated configurations\n\n"
        f"On the {result.configs} configurations that calibration saw, which prove nothing but would show a fit that "
        f"cannot describe its own data, the error is {result.mean_absolute_percentage_error.value:.1f}%."
    )


def acceptance_section(calibration: Calibration) -> str:
    """Acceptance by draft and category, the tests of the iid model, and the pooled rates that predictions use."""
    return _section(acceptance_table(calibration))


def latency_section(calibration: Calibration) -> str:
    """Fitted levels and slopes, and how far the measured cells lie from them."""
    return _section(latency_table(calibration))


def costs_section(calibration: Calibration) -> str:
    """In-situ factors, and what a round costs outside its forwards."""
    return _section(costs_table(calibration))


def markdown(head: Sequence[str], body: Sequence[Sequence[Any]]) -> str:
    """A Markdown table; bars in cells are escaped."""
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def _section(table: ReportTable) -> str:
    """A table in Markdown, under what it shows."""
    return "\n\n".join(part for part in (table.note, markdown(table.head, table.body)) if part)
