"""From the ideal speedup to the measured one, cause by cause."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from textwrap import wrap
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

from analysis.diagnose import Diagnosis
from analysis.diagnose.causes import Cause
from paper_figs.style import COLUMN_INCHES, GUIDE, new_figure, palette, save_alone, style

NAME = "waterfall"
IDEAL, MEASURED = "ideal", "measured"
COLOURS = dict(zip((MEASURED, "cause", "gain"), palette(3), strict=True)) | {IDEAL: (0.55, 0.55, 0.55)}
TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 3, 5, 10, 20, 50, 100)
FINE_TICKS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 4, 5, 6, 7, 8, 9, 10)
BEHIND = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
FINE_RANGE = 2.5
"""largest over smallest speedup up to which the axis needs finer ticks"""


def steps_of(diagnosis: Diagnosis) -> pd.DataFrame:
    """The steps of the waterfall, one row each: the ideal, every cause and gain, and the measured speedup.

    A cause divides the speedup by the same factor wherever it stands, so on a log scale the length of its bar does not
    depend on the order.

    Returns:
        step, kind ('ideal', 'cause', 'gain', 'measured'), speedup_before, speedup_after with `_lo` and `_hi` (95%,
        given the step before), share (of the loss), ms_per_token with `_lo` and `_hi`; NaN where there is none.

    Raises:
        ValueError: the diagnosis has no speedup.
    """
    if diagnosis.speedup is None or diagnosis.ideal_speedup is None:
        raise ValueError("a waterfall ends at the measured speedup, which is not known; give a baseline")
    before = diagnosis.ideal_speedup
    rows: list[dict[str, Any]] = [
        {"step": IDEAL, "kind": IDEAL, "speedup_before": 1.0, "speedup_after": before},
    ]
    for kind, group in (("cause", diagnosis.causes), ("gain", diagnosis.gains)):
        for one in group:
            rows.append(_step(one, kind, before))
            before = float(rows[-1]["speedup_after"])
    low, high = diagnosis.speedup_ci or (np.nan, np.nan)
    rows.append(
        {"step": MEASURED, "kind": MEASURED, "speedup_before": 1.0, "speedup_after": diagnosis.speedup}
        | {"speedup_after_lo": low, "speedup_after_hi": high}
    )
    numbers = ["share", "ms_per_token", "ms_per_token_lo", "ms_per_token_hi"]
    columns = ["step", "kind", "speedup_before", "speedup_after", "speedup_after_lo", "speedup_after_hi", *numbers]
    return pd.DataFrame(rows, columns=columns)


def draw(diagnosis: Diagnosis, out_dir: Path, caption: str = "") -> dict[str, Path]:
    """Draw the waterfall on a log scale, with 95% intervals, each cause's share of the loss and what it costs.

    Args:
        diagnosis: with a speedup.
        out_dir: gets waterfall.png, .pdf and .csv.
        caption: what was measured, on what, and where the data come from; printed under the figure.

    Returns:
        The paths by suffix: 'png', 'pdf', 'csv'.

    Raises:
        ValueError: the diagnosis has no speedup.
    """
    steps = steps_of(diagnosis)
    with style():
        return save_alone(plot(steps), steps, out_dir, NAME, caption)


def plot(steps: pd.DataFrame) -> Figure:
    """The figure of what `steps_of` returns, one column wide, in the style that is in force."""
    figure = new_figure(COLUMN_INCHES, 0.75 + 0.26 * len(steps))
    axes = figure.add_subplot()
    _bars(axes, steps)
    _axes(axes, steps)
    return figure


def _step(cause: Cause, kind: str, before: float) -> dict[str, Any]:
    """One cause as a row."""
    assert cause.log_loss is not None  # known wherever the speedup is
    low, high = cause.log_loss_ci or (np.nan, np.nan)
    row: dict[str, Any] = {
        "step": cause.name,
        "kind": kind,
        "speedup_before": before,
        "speedup_after": before * np.exp(-cause.log_loss),
        "speedup_after_lo": before * np.exp(-high),
        "speedup_after_hi": before * np.exp(-low),
        "share": cause.share,
    }
    if cause.seconds_per_token is not None:
        row["ms_per_token"] = 1e3 * cause.seconds_per_token
    if cause.seconds_per_token_ci is not None:
        row["ms_per_token_lo"], row["ms_per_token_hi"] = (1e3 * bound for bound in cause.seconds_per_token_ci)
    return row


def _bars(axes: Axes, steps: pd.DataFrame) -> None:
    """A bar a step, its interval, and its numbers; thin lines carry the running speedup from step to step."""
    for y, row in enumerate(steps.to_dict("records")):
        ends = sorted((row["speedup_before"], row["speedup_after"]))
        axes.barh(y, ends[1] - ends[0], left=ends[0], height=0.62, color=COLOURS[row["kind"]], linewidth=0, zorder=2)
        axes.hlines(y, row["speedup_after_lo"], row["speedup_after_hi"], color="#222222", linewidth=0.8, zorder=4)
        axes.plot(
            [row["speedup_after_lo"], row["speedup_after_hi"]],
            [y, y],
            linestyle="none",
            marker="|",
            color="#222222",
            markersize=3.5,
            markeredgewidth=0.8,
            zorder=4,
        )
        if y + 1 < len(steps):
            axes.vlines(row["speedup_after"], y + 0.31, y + 0.69, color=GUIDE, linewidth=0.6, zorder=1)
        right = np.nanmax([*ends, row["speedup_after_hi"]])
        axes.annotate(
            _label(row),
            (right, y),
            (3, 0),
            textcoords="offset points",
            va="center",
            fontsize=6.5,
            zorder=3,
            bbox=BEHIND,
        )


def _label(row: Mapping[Any, Any]) -> str:
    """A total's speedup; a cause's share of the loss and what it costs."""
    if row["kind"] in (IDEAL, MEASURED):
        return f"{row['speedup_after']:.2f}×"
    return f"{'gain' if row['kind'] == 'gain' else format(row['share'], '.0%')}, {row['ms_per_token']:.3g} ms"


def _axes(axes: Axes, steps: pd.DataFrame) -> None:
    """A log axis in plain numbers that holds every bar, interval and label, and the line of breaking even."""
    values = steps[[name for name in steps if str(name).startswith("speedup")]].to_numpy(np.float64)
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    room = (high / low) ** 0.04
    axes.set_xscale("log")
    axes.set_xlim(low / room, high * room**8)
    axes.set_ylim(len(steps) - 0.4, -0.6)
    known = FINE_TICKS if high / low < FINE_RANGE else TICKS
    ticks = [tick for tick in known if low / room <= tick <= high * room]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.minorticks_off()
    axes.axvline(1, color=GUIDE, linewidth=0.6, linestyle=(0, (1, 2)), zorder=0)
    axes.set_yticks(range(len(steps)), ["\n".join(wrap(str(step).replace("_", " "), 16)) for step in steps["step"]])
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("Speedup (×); % of the loss, ms per token")
