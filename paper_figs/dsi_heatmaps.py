"""DSI, Fig. 2: distributed speculation, draft-then-verify and the target alone, by draft latency and acceptance."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

from paper_figs.style import COLUMN_INCHES, letter, new_figure, style
from sim.topologies.dsi_heatmap import dsi_heatmap

NAME = "dsi_heatmaps"
SOURCE = "after Timor et al. 2025, DSI, arXiv:2405.14105, Fig. 2; simulated by sim.topologies.dsi_heatmap"
CAPTION = (
    "Speed of one way of decoding over another, by the draft's latency and its acceptance rate: draft-then-verify (SI, "
    "five tokens a round), the target alone (non-SI), and distributed speculation (DSI, seven target servers, the "
    "least lookahead that its eq. 1 allows). SI loses to the target where the draft is slow or poor (left of and above "
    "the line at 1); DSI loses nowhere. 50 tokens, mean of {repeats} simulated requests a cell; largest relative "
    "standard error {error:.1%}."
)
PANELS = {
    "si_over_non_si": "SI over non-SI",
    "dsi_over_non_si": "DSI over non-SI",
    "dsi_over_si": "DSI over SI",
    "dsi_over_best": "DSI over the faster",
}
LEVELS = (0.5, 1.0, 1.5, 2.0, 3.0, 5.0)


def data(points: int = 25, repeats: int = 100, tokens: int = 50, si_lookahead: int = 5, seed: int = 0) -> pd.DataFrame:
    """Mean latencies over the grid, and the ratios that the figure draws.

    Args:
        points: drafts' latencies from 2% of a target step to a whole one, and as many acceptance rates from 0 to 1.
        repeats: requests of each cell.
        tokens: of a request.
        si_lookahead: drafted tokens of an SI round.
        seed: the same random numbers in every cell.

    Returns:
        The columns of `sim.topologies.dsi_heatmap.dsi_heatmap`, in target steps, and one column for each of `PANELS`.
    """
    drafts, alphas = np.linspace(0.02, 1.0, points), np.linspace(0.0, 1.0, points)
    table = dsi_heatmap(drafts, alphas, seed, tokens=tokens, si_lookahead=si_lookahead, repeats=repeats)
    table["si_over_non_si"] = table["non_si_seconds"] / table["si_seconds"]
    table["dsi_over_non_si"] = table["non_si_seconds"] / table["dsi_seconds"]
    table["dsi_over_si"] = table["si_seconds"] / table["dsi_seconds"]
    table["dsi_over_best"] = np.minimum(table["si_seconds"], table["non_si_seconds"]) / table["dsi_seconds"]
    return table.assign(repeats=repeats)


def caption(table: pd.DataFrame) -> str:
    """The caption with the run's own precision."""
    error = max((table[f"{kind}_error"] / table[f"{kind}_seconds"]).max() for kind in ("si", "dsi"))
    return CAPTION.format(repeats=int(table["repeats"].iloc[0]), error=float(error))


def draw(table: pd.DataFrame) -> Figure:
    """Four maps on one scale."""
    with style():
        figure = new_figure(COLUMN_INCHES, 1.2 * COLUMN_INCHES)
        panels = figure.subplots(2, 2, sharex=True, sharey=True)
        norm = LogNorm(0.3, 6)
        meshes = [_map(axes, table, name, norm) for axes, name in zip(panels.flat, PANELS, strict=True)]
        bar = figure.colorbar(meshes[0], ax=panels, location="bottom", aspect=35, pad=0.03, extend="both")
        bar.set_label("Speed of the first over the second (×)")
        bar.ax.xaxis.set_major_locator(FixedLocator([0.3, *LEVELS]))
        bar.ax.xaxis.set_minor_locator(NullLocator())
        bar.ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        for axes in panels[:, 0]:
            axes.set_ylabel("Draft [target steps]")
        for axes in panels[1]:
            axes.set_xlabel("Acceptance rate α")
        letter(list(panels.flat), list(PANELS.values()))
        return figure


def _map(axes: Axes, table: pd.DataFrame, name: str, norm: LogNorm) -> QuadMesh:
    """One map with labelled contours; the one at 1, where both are as fast, is thick."""
    grid = table.pivot_table(index="draft_seconds", columns="alpha", values=name)
    x, y, values = grid.columns.to_numpy(), grid.index.to_numpy(), grid.to_numpy()
    mesh = axes.pcolormesh(x, y, values, cmap="cividis", norm=norm, shading="nearest", rasterized=True)
    levels = [level for level in LEVELS if values.min() < level < values.max()]
    for level in levels:
        dark = level >= 1.5
        line = axes.contour(
            x, y, values, levels=[level], colors="black" if dark else "white", linewidths=1.4 if level == 1 else 0.6
        )
        # the longest piece alone: in a corner the labels of short ones would lie upon each other
        longest = max(line.allsegs[0], key=len)
        if len(longest) > len(x) / 4:
            axes.clabel(line, fmt="%g", fontsize=6, manual=[tuple(longest[len(longest) // 2])])
    return mesh
