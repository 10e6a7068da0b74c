"""Leviathan et al. 2023, Fig. 3: the best draft length against the acceptance rate."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from paper_figs.style import COLUMN_INCHES, kinds, new_figure, style
from sim.theory import best_gamma

NAME = "leviathan_fig3"
SOURCE = "after Leviathan et al. 2023, arXiv:2211.17192, Fig. 3; Thm 3.8"
CAPTION = (
    "The draft length of greatest expected speedup, (1 − α^(γ+1)) / ((1 − α)(γc + 1)), against the acceptance rate α, "
    "for several costs c of a draft step over a target step; 0 where no draft pays (α ≤ c). The axis ends at 25, "
    "but towards α = 1 the best length grows without end."
)


def data(costs: Sequence[float] = (0.01, 0.02, 0.05, 0.1, 0.2), points: int = 199, longest: int = 256) -> pd.DataFrame:
    """The best draft length by acceptance rate and cost.

    Args:
        costs: of a draft step over a target step.
        points: acceptance rates from 0 to below 1, where longer is always better.
        longest: draft length to try.

    Returns:
        alpha, and one column cost_C for each cost ratio.

    Raises:
        ValueError: a best draft may be longer than `longest`.
    """
    alpha = np.linspace(0, 1, points + 1)[:-1]
    columns = {f"cost_{c:g}": [best_gamma(a, c, max_gamma=longest) for a in alpha.tolist()] for c in costs}
    greatest = max(map(max, columns.values()))
    if greatest >= longest:
        raise ValueError(f"the best draft length may be above {longest}, the longest tried; give a greater `longest`")
    return pd.DataFrame({"alpha": alpha, **columns})


def draw(table: pd.DataFrame) -> Figure:
    """One staircase a cost."""
    names = [str(name) for name in table.columns if str(name).startswith("cost_")]
    with style():
        figure = new_figure(COLUMN_INCHES, 0.8 * COLUMN_INCHES)
        axes = figure.add_subplot()
        for name, look in zip(names, kinds(len(names), marked=False), strict=True):
            axes.step(table["alpha"], table[name], where="mid", label=f"c = {name.removeprefix('cost_')}", **look)
        axes.set(xlabel="Acceptance rate α", ylabel="Best draft length γ [tokens]", xlim=(0, 1), ylim=(-0.4, 25))
        axes.legend(loc="upper left", handlelength=3.2)
        return figure
