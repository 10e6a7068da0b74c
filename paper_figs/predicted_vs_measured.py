"""Predicted against measured speedup, one point a configuration, with both intervals."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from textwrap import wrap
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from analysis.compare import COMPARISON_COLUMNS
from paper_figs.style import COLUMN_INCHES, MARKERS, new_figure, palette, save, style

NAME = "predicted_vs_measured"
BAND = 0.05
GUIDE = "#8a8a8a"


def draw(comparison: pd.DataFrame, out_dir: Path, caption: str = "") -> dict[str, Path]:
    """Draw every configuration of a comparison: the held-out ones filled, the calibrated ones hollow.

    Shape is the draft source, colour the prompt category; bars are 95% intervals, the band is within 5% of equality.

    Args:
        comparison: from `analysis.compare.compare`.
        out_dir: gets predicted_vs_measured.png, .pdf and .csv.
        caption: what was measured, on what, and where the data come from; printed under the figure.

    Returns:
        The paths by suffix: 'png', 'pdf', 'csv'.

    Raises:
        ValueError: the comparison lacks a column, has no rows, or has more drafts or categories than can be told apart.
    """
    missing = [name for name in COMPARISON_COLUMNS if name not in comparison]
    if missing:
        raise ValueError(f"a comparison to draw needs the columns {missing}")
    if comparison.empty:
        raise ValueError("the comparison has no configurations to draw")
    drafts, categories = (list(dict.fromkeys(comparison[name])) for name in ("draft", "category"))
    if len(drafts) > len(MARKERS):
        raise ValueError(f"{len(MARKERS)} drafts can be told apart in one figure, got {len(drafts)}; draw fewer")
    shapes = dict(zip(drafts, MARKERS, strict=False))
    colours = dict(zip(categories, palette(len(categories)), strict=True))
    with style():
        figure = new_figure(COLUMN_INCHES, 1.18 * COLUMN_INCHES)
        axes = figure.add_subplot()
        low, high = _limits(comparison)
        _guides(axes, low, high)
        # Hollow points go under filled ones.
        for row in comparison.sort_values("held_out", kind="stable").to_dict("records"):
            _point(axes, row, shapes[row["draft"]], colours[row["category"]])
        axes.set(xlim=(low, high), ylim=(low, high), xlabel="Measured speedup (×)", ylabel="Predicted speedup (×)")
        axes.set_aspect("equal")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10]))
        calibrated = not bool(comparison["held_out"].all())
        handles = _legend(shapes, colours, calibrated)
        figure.legend(handles=handles, loc="outside upper center", ncols=3, columnspacing=1.4, handlelength=1.4)
        if caption:
            figure.supxlabel("\n".join(wrap(caption, 80)), fontsize=5.5, color="#555555", x=0.5, linespacing=1.3)
        return save(figure, comparison, out_dir, NAME, caption)


def _limits(comparison: pd.DataFrame) -> tuple[float, float]:
    """Limits that hold every interval on both axes, with a margin."""
    columns = [name for name in COMPARISON_COLUMNS if name.startswith(("predicted", "measured"))]
    values = comparison[columns].to_numpy(np.float64)
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    margin = max(0.04 * (high - low), 0.02 * high)
    return max(low - margin, 0.0), high + margin


def _guides(axes: Axes, low: float, high: float) -> None:
    """The line of equality, the band around it, and where speculative decoding breaks even."""
    ends = np.array([low, high])
    axes.fill_between(ends, ends * (1 - BAND), ends * (1 + BAND), color=GUIDE, alpha=0.18, linewidth=0, zorder=0)
    axes.plot(ends, ends, color=GUIDE, linewidth=0.7, zorder=1)
    if low < 1 < high:
        axes.axvline(1, color=GUIDE, linewidth=0.5, linestyle=(0, (1, 2)), zorder=1)
        axes.axhline(1, color=GUIDE, linewidth=0.5, linestyle=(0, (1, 2)), zorder=1)


def _point(axes: Axes, row: dict[Hashable, Any], marker: str, colour: tuple[float, float, float]) -> None:
    """One configuration with its intervals; an interval that does not exist is not drawn."""
    held_out = bool(row["held_out"])
    bar: dict[str, Any] = {"color": colour, "linewidth": 0.5, "alpha": 0.4 if held_out else 0.25, "zorder": 2}
    axes.hlines(row["predicted"], row["measured_lo"], row["measured_hi"], **bar)
    axes.vlines(row["measured"], row["predicted_lo"], row["predicted_hi"], **bar)
    face, edge = (colour, "white") if held_out else ("white", colour)
    axes.plot(
        row["measured"],
        row["predicted"],
        marker=marker,
        markersize=4.4,
        markerfacecolor=face,
        markeredgecolor=edge,
        markeredgewidth=0.5 if held_out else 0.8,
        linestyle="none",
        zorder=4 if held_out else 3,
    )


def _legend(
    shapes: dict[str, str], colours: dict[str, tuple[float, float, float]], calibrated: bool
) -> list[Line2D | Patch]:
    """Entries for three columns of one length: shapes and guides, then categories over two columns."""
    dot: dict[str, Any] = {"linestyle": "none", "markersize": 4.4, "markeredgewidth": 0}
    guides: list[Line2D | Patch] = [
        Line2D([], [], marker=marker, color="#444444", label=draft, **dot) for draft, marker in shapes.items()
    ]
    if calibrated:
        hollow = dot | {"markeredgewidth": 0.8, "markerfacecolor": "white", "markeredgecolor": "#444444"}
        guides.append(Line2D([], [], marker="o", label="calibrated", **hollow))
    guides.append(Patch(facecolor=GUIDE, alpha=0.3, linewidth=0, label="within 5%"))
    bars = [Line2D([], [], color=colour, linewidth=3, label=category) for category, colour in colours.items()]
    half = -(-len(bars) // 2)
    columns = (guides, bars[:half], bars[half:])
    rows = max(len(column) for column in columns)
    blank = Line2D([], [], linestyle="none", label=" ")
    return [entry for column in columns for entry in (*column, *[blank] * (rows - len(column)))]
