"""Predicted against measured speedup, one mark a configuration, with both intervals."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from analysis.compare import COMPARISON_COLUMNS
from paper_figs.style import COLUMN_INCHES, GUIDE, INK, MARKERS, new_figure, palette, save_alone, style

NAME = "predicted_vs_measured"
BAND = 0.05
Fill = Literal["full", "none", "left", "bottom", "right", "top"]
FILLS: tuple[Fill, ...] = ("full", "none", "left", "bottom", "right", "top")
SIZES = (4.6, 6.8)
"""of marks in points: drafts beyond the sixth are drawn larger"""
SHAPES = (*MARKERS, "p", "<")


def draw(comparison: pd.DataFrame, out_dir: Path, caption: str = "") -> dict[str, Path]:
    """Draw configurations of a comparison into files.

    Args:
        comparison: from `analysis.compare.compare`.
        out_dir: gets predicted_vs_measured.png, .pdf and .csv.
        caption: what was measured, on what, and where the data come from; printed under the figure.

    Returns:
        The paths by suffix: 'png', 'pdf', 'csv'.

    Raises:
        ValueError: the comparison lacks a column, has no rows, or has more drafts or categories than can be told apart.
    """
    with style():
        return save_alone(figure_of(comparison), comparison, out_dir, NAME, caption)


def figure_of(comparison: pd.DataFrame) -> Figure:
    """A mark a configuration: its shape and colour are the category, its filling the draft.

    Bars are 95% intervals, the band is within 5% of equality; an interval that does not exist is not drawn.

    Raises:
        ValueError: the comparison lacks a column, has no rows, or has more drafts or categories than can be told apart
            without colour.
    """
    missing = [name for name in COMPARISON_COLUMNS if name not in comparison]
    if missing:
        raise ValueError(f"a comparison to draw needs the columns {missing}")
    if comparison.empty:
        raise ValueError("the comparison has no configurations to draw")
    drafts, categories = (list(dict.fromkeys(comparison[name])) for name in ("draft", "category"))
    fillings = list(product(SIZES, FILLS))
    if len(drafts) > len(fillings) or len(categories) > len(SHAPES):
        raise ValueError(
            f"{len(fillings)} drafts and {len(SHAPES)} categories can be told apart in one figure, "
            f"got {len(drafts)} and {len(categories)}; draw fewer"
        )
    by_draft = {name: _filling(*found) for name, found in zip(drafts, fillings, strict=False)}
    by_category: dict[str, dict[str, Any]] = {
        name: {"marker": shape, "color": colour}
        for name, shape, colour in zip(categories, SHAPES, palette(len(categories)), strict=False)
    }
    with style():
        figure = new_figure(COLUMN_INCHES, 1.2 * COLUMN_INCHES)
        axes = figure.add_subplot()
        _guides(axes, comparison)
        for row in comparison.to_dict("records"):
            look = by_category[row["category"]]
            bar: dict[str, Any] = {"color": look["color"], "linewidth": 0.5, "alpha": 0.6}
            axes.hlines(row["predicted"], row["measured_lo"], row["measured_hi"], **bar)
            axes.vlines(row["measured"], row["predicted_lo"], row["predicted_hi"], **bar)
            axes.plot(row["measured"], row["predicted"], **look, **by_draft[row["draft"]])
        axes.set(xlabel="Measured speedup (×)", ylabel="Predicted speedup (×)", aspect="equal")
        marks: list[Line2D | Patch] = [
            Line2D([], [], label=name, **look, **_filling(SIZES[0], "full")) for name, look in by_category.items()
        ]
        marks += [Line2D([], [], marker="o", color=INK, label=name, **look) for name, look in by_draft.items()]
        marks.append(Patch(facecolor=GUIDE, alpha=0.3, linewidth=0, label=f"within {BAND:.0%}"))
        figure.legend(handles=marks, loc="outside upper center", ncols=3, columnspacing=1.2, handletextpad=0.3)
        return figure


def _filling(size: float, fill: Fill) -> dict[str, Any]:
    """How a draft's marks are drawn."""
    edge = {"markeredgewidth": 0.8, "markerfacecoloralt": "white"}
    return {"markersize": size, "fillstyle": fill, "linestyle": "none", **edge}


def _guides(axes: Axes, comparison: pd.DataFrame) -> None:
    """Limits that hold every interval, the line of equality with the band around it, and the lines of breaking even."""
    columns = [name for name in COMPARISON_COLUMNS if name.startswith(("predicted", "measured"))]
    values = comparison[columns].to_numpy(np.float64)
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    margin = max(0.04 * (high - low), 0.02 * high)
    ends = np.array([max(low - margin, 0.0), high + margin])
    axes.fill_between(ends, ends * (1 - BAND), ends * (1 + BAND), color=GUIDE, alpha=0.18, linewidth=0, zorder=0)
    axes.plot(ends, ends, color=GUIDE, linewidth=0.7, zorder=1)
    for line in (axes.axvline, axes.axhline):
        line(1, color=GUIDE, linewidth=0.5, linestyle=(0, (1, 2)), zorder=1)
    axes.set(xlim=tuple(ends), ylim=tuple(ends))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10]))
