"""A lab run: speedups predicted from calibration beside those measured on held-out configurations."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from analysis.compare import score
from paper_figs.style import COLUMN_INCHES, GUIDE, INK, MARKERS, new_figure, palette, style
from sim.records import read_metadata

NAME = "lab_predictions"
SOURCE = "this lab, specdec lab (docs/lab unless another run folder is given)"
CAPTION = (
    "Predicted against measured speedup of {configs} held-out configurations of {target} on {device}: draft lengths "
    "and prompts that calibration never saw. Bars: 95% intervals, predictive ones upright. Mean absolute error "
    "{error:.1f}% [{low:.1f}, {high:.1f}]; {coverage:.0%} of the measured values lie in the predicted intervals."
)
RUN = Path(__file__).parents[1] / "docs" / "lab"
FILLS: tuple[Literal["full", "none", "left", "bottom", "right", "top"], ...] = (
    "full",
    "none",
    "left",
    "bottom",
    "right",
    "top",
)
MARK: dict[str, Any] = {"linestyle": "none", "markersize": 4.6, "markeredgewidth": 0.8, "markerfacecoloralt": "white"}
BAND = 0.05


def data(run: Path = RUN) -> pd.DataFrame:
    """The held-out rows of a run's comparison, with the run's target and device.

    Args:
        run: a folder that `specdec lab` wrote.

    Raises:
        ValueError: the folder holds no comparison.
    """
    path = run / "comparison.csv"
    if not path.is_file():
        raise ValueError(
            f"{run} holds no comparison.csv; give --run a folder of `specdec lab`, or `specdec compare` it"
        )
    metadata = read_metadata(run / "run.json")
    table = pd.read_csv(path)
    return table[table["held_out"]].reset_index(drop=True).assign(target=metadata.target, device=metadata.device)


def caption(table: pd.DataFrame) -> str:
    """The caption with the run's own score."""
    found = score(table)
    error = found.mean_absolute_percentage_error
    return CAPTION.format(
        configs=found.configs, target=table["target"].iloc[0], device=table["device"].iloc[0], error=error.value,
        low=error.lo, high=error.hi, coverage=found.coverage.value,
    )  # fmt: skip


def draw(table: pd.DataFrame) -> Figure:
    """A mark a configuration: its shape and colour are the category, its filling the draft.

    Raises:
        ValueError: there are more categories or drafts than can be told apart without colour.
    """
    drafts, categories = (list(dict.fromkeys(table[name])) for name in ("draft", "category"))
    if len(drafts) > len(FILLS) or len(categories) > len(MARKERS):
        raise ValueError(
            f"{len(FILLS)} drafts and {len(MARKERS)} categories can be told apart in one figure, got {len(drafts)} and "
            f"{len(categories)}; `specdec compare` draws them by colour"
        )
    looks = dict(zip(categories, zip(MARKERS, palette(len(categories)), strict=False), strict=True))
    with style():
        figure = new_figure(COLUMN_INCHES, 1.2 * COLUMN_INCHES)
        axes = figure.add_subplot()
        _guides(axes, table)
        for row in table.to_dict("records"):
            marker, colour = looks[row["category"]]
            bar: dict[str, Any] = {"color": colour, "linewidth": 0.5, "alpha": 0.6}
            axes.hlines(row["predicted"], row["measured_lo"], row["measured_hi"], **bar)
            axes.vlines(row["measured"], row["predicted_lo"], row["predicted_hi"], **bar)
            fill = FILLS[drafts.index(row["draft"])]
            axes.plot(row["measured"], row["predicted"], marker=marker, fillstyle=fill, color=colour, **MARK)
        axes.set(xlabel="Measured speedup (×)", ylabel="Predicted speedup (×)", aspect="equal")
        marks: list[Line2D | Patch] = [
            Line2D([], [], marker=marker, color=colour, label=name, **MARK) for name, (marker, colour) in looks.items()
        ]
        marks += [
            Line2D([], [], marker="o", color=INK, fillstyle=fill, label=name, **MARK)
            for name, fill in zip(drafts, FILLS, strict=False)
        ]
        marks.append(Patch(facecolor=GUIDE, alpha=0.3, linewidth=0, label=f"within {BAND:.0%}"))
        figure.legend(handles=marks, loc="outside upper center", ncols=3, columnspacing=1.2, handletextpad=0.3)
        return figure


def _guides(axes: Axes, table: pd.DataFrame) -> None:
    """Limits that hold every interval, the line of equality with the band around it, and the lines of breaking even."""
    columns = [f"{name}{end}" for name in ("predicted", "measured") for end in ("", "_lo", "_hi")]
    values = table[columns].to_numpy(np.float64)
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    margin = max(0.04 * (high - low), 0.02 * high)
    ends = np.array([low - margin, high + margin])
    axes.fill_between(ends, ends * (1 - BAND), ends * (1 + BAND), color=GUIDE, alpha=0.18, linewidth=0, zorder=0)
    axes.plot(ends, ends, color=GUIDE, linewidth=0.7, zorder=1)
    for line in (axes.axvline, axes.axhline):
        line(1, color=GUIDE, linewidth=0.5, linestyle=(0, (1, 2)), zorder=1)
    axes.set(xlim=tuple(ends), ylim=tuple(ends))
