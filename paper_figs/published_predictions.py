"""Published speedups beside what the simulator says of them, source by source."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from analysis.published import predict_published, score_published
from analysis.published.rows import read_published
from paper_figs import PUBLISHED
from paper_figs.style import COLUMN_INCHES, GUIDE, new_figure, palette, style

NAME = "published_predictions"
SOURCE = "arXiv:2211.17192, arXiv:2408.11049, arXiv:2402.12374 and repositories; see paper_figs/data/README.md"
CAPTION = (
    "Speedup predicted from a source's own acceptance and latencies against the one it measured: {rows} configurations "
    "of {sources} sources, mean absolute error and number of rows above each panel. Thick bars: what is uncertain in "
    "the inputs; thin bars: with what the intervals of all other sources missed (aim 95%), which hold {held:.0%} of "
    "the measured values. Dashed: equality. No measured speedup enters a prediction."
)
SHORT = {
    "arXiv:2211.17192": "Leviathan",
    "arXiv:2408.11049": "MagicDec",
    "arXiv:2402.12374": "SpecInfer trees",
    "Fu 2026": "Fu",
    "Jella": "Jella et al.",
    "shreyansh26": "shreyansh26",
}
"""how a source's name begins, and what its panel is called"""
TICKS = (0.5, 1, 2, 4)


def data(path: Path = PUBLISHED) -> pd.DataFrame:
    """The rows that are predicted, as `analysis.published.predict_published` gives them, with their source's panel.

    Args:
        path: the published speedups.
    """
    rows = read_published(path)
    table = predict_published(rows, reference=rows)
    table = table[table["error_percent"].notna()].reset_index(drop=True)
    panel = [next(short for start, short in SHORT.items() if source.startswith(start)) for source in table["source"]]
    return table.assign(panel=panel)


def caption(table: pd.DataFrame) -> str:
    """The caption with the scores."""
    held = table["covered"].astype(np.float64).mean()
    return CAPTION.format(rows=len(table), sources=table["panel"].nunique(), held=held)


def draw(table: pd.DataFrame) -> Figure:
    """A panel a source, all on the same logarithmic axes."""
    scores = score_published(table.assign(source=table["panel"]))
    errors = dict(zip(scores["source"], scores["mape"], strict=True))
    low, high = 0.95 * table["lo"].min(), 1.05 * table[["hi", "measured"]].max().max()
    ours = palette(1)[0]
    with style():
        figure = new_figure(COLUMN_INCHES, 0.82 * COLUMN_INCHES)
        panels = figure.subplots(2, 3, sharex=True, sharey=True)
        for axes, (name, rows) in zip(panels.flat, table.groupby("panel", sort=False), strict=True):
            axes.plot([low, high], [low, high], color=GUIDE, linewidth=0.7, linestyle=(0, (4, 2)), zorder=0)
            axes.vlines(rows["measured"], rows["lo"], rows["hi"], color=GUIDE, linewidth=0.4, zorder=1)
            axes.vlines(rows["measured"], rows["lo_inputs"], rows["hi_inputs"], color=ours, linewidth=1.2, zorder=2)
            axes.plot(rows["measured"], rows["predicted"], "o", color=ours, markersize=2.2, markeredgewidth=0)
            axes.set_title(f"{name}\n{errors[str(name)]:.1f}%, {len(rows)} rows", loc="left", fontsize=6.5)
            axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high), aspect="equal")
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_ticks(TICKS, [f"{tick:g}" for tick in TICKS])
                axis.set_minor_locator(NullLocator())
        figure.supxlabel("Measured speedup (×)", fontsize=7.5)
        figure.supylabel("Predicted speedup (×)", fontsize=7.5)
        return figure
