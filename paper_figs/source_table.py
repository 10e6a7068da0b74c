"""The source lab's speedup table and its formula 1/(1 - alpha + alpha/gamma), beside the exact law."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from paper_figs.style import COLUMN_INCHES, INK, letter, new_figure, palette, style
from sim.theory import expected_tokens, source_approximation
from sim.theory import source_table as printed_table

NAME = "source_table"
SOURCE = "the source algorithm of this lab; exact: Leviathan et al. 2023, arXiv:2211.17192, eq. 1"
CAPTION = (
    "(a) The four speedups that the source lab prints, its own formula 1/(1 − α + α/γ), and the expected tokens of a "
    "round, (1 − α^(γ+1))/(1 − α), which they stand for: the speedup with a draft that costs nothing. (b) Error of the "
    "formula against the exact law: it is never above it, and at γ = 1 it says 1 whatever α is."
)

LABEL_PLACES = {-40: (0.8, 1.4), -30: (0.55, 1.8), -20: (0.69, 7.0), -10: (0.47, 9.0), -5: (0.36, 12.0)}
"""near which point (alpha, gamma) each contour is labelled: inside the panel and apart from the others"""


def data(alphas: Sequence[float] = tuple(np.linspace(0, 1, 101)), longest: int = 16) -> pd.DataFrame:
    """The formula and the exact law over a grid, after the rows that the source prints.

    Args:
        alphas: acceptance rates of the grid.
        longest: draft lengths from 1 to this.

    Returns:
        alpha, gamma, printed (NaN on the grid), formula, exact, error_percent (of the formula).
    """
    alpha, gamma = (axis.ravel() for axis in np.meshgrid(alphas, np.arange(1, longest + 1)))
    grid = pd.DataFrame(
        {
            "alpha": alpha,
            "gamma": gamma,
            "printed": np.nan,
            "formula": source_approximation(alpha, gamma),
            "exact": expected_tokens(alpha, gamma),
        }
    )
    table = pd.concat([printed_table(), grid], ignore_index=True)
    table["error_percent"] = 100 * (table["formula"] / table["exact"] - 1)
    return table


def draw(table: pd.DataFrame) -> Figure:
    """The printed rows above, the error over the grid below."""
    with style():
        figure = new_figure(COLUMN_INCHES, 1.35 * COLUMN_INCHES)
        above, below = figure.subplots(2, 1, height_ratios=[1, 1.35])
        printed = table["printed"].notna()
        _rows(above, table[printed])
        _errors(below, table[~printed], figure)
        letter([above, below], ["The printed table", "Error of the formula"])
        return figure


def _rows(axes: Axes, rows: pd.DataFrame) -> None:
    """Three markers for each printed configuration."""
    place = np.arange(len(rows))
    looks = zip(("exact", "formula", "printed"), ("o", "s", "D"), palette(3), (-0.18, 0.0, 0.18), strict=True)
    for name, marker, colour, shift in looks:
        label = {"exact": "exact", "formula": "the source's formula", "printed": "printed"}[name]
        axes.vlines(place + shift, 1, rows[name], color=colour, linewidth=0.6)
        axes.plot(place + shift, rows[name], marker, color=colour, markersize=4, label=label)
    axes.set_xticks(place, [f"α = {row.alpha:g}\nγ = {row.gamma:g}" for row in rows.itertuples()])
    axes.set(ylabel="Speedup (×)", ylim=(1, 1.12 * rows["exact"].max()), xlim=(-0.5, 3.5))
    axes.legend(loc="upper left", handletextpad=0.3)


def _errors(axes: Axes, grid: pd.DataFrame, figure: Figure) -> None:
    """A map of the error, with contours that can be read without colour."""
    errors = grid.pivot_table(index="gamma", columns="alpha", values="error_percent")
    x, y = errors.columns.to_numpy(), errors.index.to_numpy()
    mesh = axes.pcolormesh(
        x, y, errors.to_numpy(), cmap="cividis", vmin=-50, vmax=0, shading="nearest", rasterized=True
    )
    for level, place in LABEL_PLACES.items():
        colour = "white" if level <= -30 else "black"
        lines = axes.contour(x, y, errors.to_numpy(), levels=[level], colors=colour, linewidths=0.7, linestyles="-")
        axes.clabel(lines, fmt=lambda value: f"−{-value:.0f}%", fontsize=6, manual=[place])
    axes.set(xlabel="Acceptance rate α", ylabel="Draft length γ [tokens]")
    axes.set_yticks([1, 4, 8, 12, 16])
    bar = figure.colorbar(mesh, ax=axes, pad=0.02, aspect=18)
    bar.set_label("Formula over exact, less 1 [%]", color=INK)
