"""Leviathan et al. 2023, Fig. 4: speedup and operations against the acceptance rate."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from paper_figs.style import COLUMN_INCHES, kinds, letter, new_figure, style
from sim.theory import operations_increase, speedup

NAME = "leviathan_fig4"
SOURCE = "after Leviathan et al. 2023, arXiv:2211.17192, Fig. 4; Thms 3.8 and 3.11 at c = ĉ = 0"
CAPTION = (
    "(a) Speedup and (b) increase of arithmetic operations against the acceptance rate α for several draft lengths γ, "
    "with a draft that costs nothing (c = ĉ = 0): what is gained in time is paid in operations on rejected tokens."
)


def data(gammas: Sequence[int] = (1, 3, 5, 7, 10), points: int = 201) -> pd.DataFrame:
    """Speedup and operations over acceptance rates, with a free draft.

    Returns:
        alpha, gamma, speedup, operations (both as factors).
    """
    alpha, gamma = (axis.ravel() for axis in np.meshgrid(np.linspace(0, 1, points), gammas))
    return pd.DataFrame(
        {
            "alpha": alpha,
            "gamma": gamma,
            "speedup": speedup(alpha, gamma, 0.0),
            "operations": operations_increase(alpha, gamma, 0.0),
        }
    )


def draw(table: pd.DataFrame) -> Figure:
    """Two panels that share the acceptance rate and the legend."""
    groups = list(table.groupby("gamma"))
    with style():
        figure = new_figure(COLUMN_INCHES, 1.25 * COLUMN_INCHES)
        above, below = figure.subplots(2, 1, sharex=True)
        for axes, name in ((above, "speedup"), (below, "operations")):
            for (gamma, rows), look in zip(groups, kinds(len(groups)), strict=True):
                every = max(1, (len(rows) - 1) // 10)
                axes.plot(rows["alpha"], rows[name], markevery=every, label=f"γ = {gamma}", **look)
            axes.set_xlim(0, 1)
        above.set_ylabel("Speedup (×)")
        below.set(ylabel="Operations (×)", xlabel="Acceptance rate α")
        above.set_ylim(1, table["speedup"].max())
        below.set_ylim(1, table["operations"].max())
        above.legend(loc="upper left", handlelength=3.2)
        letter([above, below], ["Speedup", "Arithmetic operations"])
        return figure
