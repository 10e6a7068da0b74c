"""Leviathan et al. 2023, Table 1: operations and speed, printed and computed."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from paper_figs.style import COLUMN_INCHES, GUIDE, letter, new_figure, palette, style
from sim.theory import operations_increase, speedup

NAME = "leviathan_table1"
SOURCE = "Leviathan et al. 2023, arXiv:2211.17192, Table 1; computed by Thms 3.8 and 3.11 at c = ĉ = 0"
CAPTION = (
    "Table 1 of Leviathan et al.: speed and arithmetic operations against decoding without a draft, as printed "
    "(diamonds) and as computed here (dots), for a draft that costs nothing."
)
PRINTED: tuple[tuple[float, int, float, float], ...] = (
    (0.6, 2, 1.53, 1.96),
    (0.7, 3, 1.58, 2.53),
    (0.8, 2, 1.23, 2.44),
    (0.8, 5, 1.63, 3.69),
    (0.9, 2, 1.11, 2.71),
    (0.9, 10, 1.60, 6.86),
)
"""(alpha, gamma, operations, speed)"""


def data() -> pd.DataFrame:
    """The table's rows with our own values.

    Returns:
        alpha, gamma, operations_printed, speed_printed, operations, speed.
    """
    table = pd.DataFrame(PRINTED, columns=["alpha", "gamma", "operations_printed", "speed_printed"])
    table["operations"] = operations_increase(table["alpha"], table["gamma"], 0.0)
    table["speed"] = speedup(table["alpha"], table["gamma"], 0.0)
    return table


def draw(table: pd.DataFrame) -> Figure:
    """A row a configuration; printed values are rings around the computed ones."""
    place = np.arange(len(table))
    colour, ring = palette(2)
    with style():
        figure = new_figure(COLUMN_INCHES, 0.75 * COLUMN_INCHES)
        panels = figure.subplots(1, 2, sharey=True)
        for axes, name, label in zip(panels, ("speed", "operations"), ("Speed (×)", "Operations (×)"), strict=True):
            axes.hlines(place, 1, table[name], color=GUIDE, linewidth=0.6)
            axes.plot(table[f"{name}_printed"], place, "D", markersize=6.5, markerfacecolor="none", color=ring)
            axes.plot(table[name], place, "o", markersize=2.6, color=colour)
            axes.set_xlabel(label)
            axes.set_xlim(1, 1 + 1.3 * (table[name].max() - 1))
            for y, value in zip(place, table[f"{name}_printed"], strict=True):
                axes.annotate(f"{value:.2f}", (value, y), (5, 0), textcoords="offset points", va="center", fontsize=6)
        names = [f"α = {row.alpha:g}, γ = {row.gamma}" for row in table.itertuples()]
        panels[0].set_yticks(place, names)
        panels[0].set_ylim(len(table) - 0.5, -0.5)
        handles = [
            panels[0].plot([], [], "o", markersize=2.6, color=colour, label="computed")[0],
            panels[0].plot([], [], "D", markersize=5, markerfacecolor="none", color=ring, label="printed")[0],
        ]
        figure.legend(handles=handles, loc="outside upper center", ncols=2)
        letter(panels, ["Speed", "Operations"])
        return figure
