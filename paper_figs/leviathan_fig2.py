"""Leviathan et al. 2023, Fig. 2: expected tokens of a round against the acceptance rate."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from paper_figs.style import COLUMN_INCHES, GUIDE, INK, kinds, new_figure, style
from sim.theory import expected_tokens

NAME = "leviathan_fig2"
SOURCE = "after Leviathan et al. 2023, arXiv:2211.17192, Fig. 2; eq. 1"
CAPTION = (
    "Expected tokens of a round, (1 − α^(γ+1))/(1 − α), against the acceptance rate α for several draft lengths γ. "
    "Grey: a draft without end, 1/(1 − α)."
)
TOP = 11.0


def data(gammas: Sequence[int] = (1, 2, 3, 5, 7, 10), points: int = 201) -> pd.DataFrame:
    """Expected tokens over acceptance rates, and the limit of long drafts.

    Returns:
        alpha, one column gamma_N for each draft length, and `limit` = 1/(1 - alpha), NaN at 1.
    """
    alpha = np.linspace(0, 1, points)
    columns = {f"gamma_{gamma}": expected_tokens(alpha, gamma) for gamma in gammas}
    limit = np.divide(1.0, 1 - alpha, out=np.full(points, np.nan), where=alpha < 1)
    return pd.DataFrame({"alpha": alpha, **columns, "limit": limit})


def draw(table: pd.DataFrame) -> Figure:
    """One line a draft length, marked every tenth of alpha."""
    names = [str(name) for name in table.columns if str(name).startswith("gamma_")]
    every = max(1, (len(table) - 1) // 10)
    with style():
        figure = new_figure(COLUMN_INCHES, 0.85 * COLUMN_INCHES)
        axes = figure.add_subplot()
        axes.plot(table["alpha"], table["limit"], color=GUIDE, linewidth=0.8)
        axes.annotate("γ → ∞", (1 - 1 / 8.5, 8.5), (-3, 0), textcoords="offset points", ha="right", color=INK)
        for name, look in zip(reversed(names), kinds(len(names)), strict=True):
            axes.plot(table["alpha"], table[name], markevery=every, label=f"γ = {name.removeprefix('gamma_')}", **look)
        axes.set(xlabel="Acceptance rate α", ylabel="Expected tokens per round", xlim=(0, 1), ylim=(1, TOP + 0.2))
        axes.legend(loc="upper left", handlelength=3.2)
        return figure
