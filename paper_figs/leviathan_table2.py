"""Leviathan et al. 2023, Table 2: measured speedups of T5-XXL beside their predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from paper_figs import PUBLISHED
from paper_figs.style import COLUMN_INCHES, GUIDE, new_figure, palette, style
from sim.theory import speedup

NAME = "leviathan_table2"
SOURCE = "Leviathan et al. 2023, arXiv:2211.17192, Table 2 and the table of predictions in App. A.3 (their c and α)"
CAPTION = (
    "Speedups of T5-XXL on one TPU v4 by three drafts, two tasks and two temperatures: measured (diamonds), predicted "
    "by the authors (rings), and by Theorem 3.8 from the printed α, γ and c (dots; bars: what the rounding of α and c "
    "leaves open)."
)
HALF_STEP = 0.005
"""alpha and c are printed to two decimals"""


def data(path: Path = PUBLISHED) -> pd.DataFrame:
    """The twelve rows with our own predictions.

    Args:
        path: the published speedups.

    Returns:
        task, draft, temperature, gamma, alpha, cost_ratio, measured, authors_prediction, and our `predicted` with the
        bounds `predicted_lo`, `predicted_hi` over all alpha and c that round to the printed ones.
    """
    rows = pd.read_csv(path)
    rows = rows[rows["source"].str.contains("2211.17192", regex=False)].reset_index(drop=True)
    table = rows[["task", "draft", "temperature", "gamma", "alpha"]].copy()
    table["temperature"] = table["temperature"].astype(float)
    table["cost_ratio"] = rows["c"]
    table["measured"] = rows["speedup_measured"]
    table["authors_prediction"] = rows["speedup_predicted_by_source"]
    alpha, cost = table["alpha"].to_numpy(), table["cost_ratio"].to_numpy()
    gamma = table["gamma"].to_numpy()
    table["predicted"] = speedup(alpha, gamma, cost)
    table["predicted_lo"] = speedup(alpha - HALF_STEP, gamma, cost + HALF_STEP)
    table["predicted_hi"] = speedup(alpha + HALF_STEP, gamma, cost - HALF_STEP)
    return table


def draw(table: pd.DataFrame) -> Figure:
    """A row a configuration, the tasks apart."""
    place = np.arange(len(table)) + 0.7 * (pd.factorize(table["task"])[0])
    ours, measured, theirs = palette(3)
    with style():
        figure = new_figure(COLUMN_INCHES, 0.95 * COLUMN_INCHES)
        axes = figure.add_subplot()
        ends = table[["measured", "predicted"]]
        axes.hlines(place, ends.min(axis=1), ends.max(axis=1), color=GUIDE, linewidth=0.5, zorder=0)
        axes.hlines(place, table["predicted_lo"], table["predicted_hi"], color=ours, linewidth=1.4)
        look: dict[str, Any] = {"linestyle": "none"}
        axes.plot(table["predicted"], place, marker="o", color=ours, markersize=3, label="computed", **look)
        axes.plot(
            table["authors_prediction"], place, marker="o", color=theirs, markersize=6, markerfacecolor="none",
            label="authors' prediction", **look,
        )  # fmt: skip
        axes.plot(table["measured"], place, marker="D", color=measured, markersize=4, label="measured", **look)
        names = [
            f"{row.task}, T = {row.temperature:g}, {str(row.draft).split()[0].removeprefix('T5-')}, γ = {row.gamma:g}"
            for row in table.itertuples()
        ]
        axes.set_yticks(place, names)
        axes.tick_params(axis="y", length=0)
        axes.set(xlabel="Speedup (×)", xlim=(1, 3.6), ylim=(place.max() + 0.6, -0.6))
        figure.legend(loc="outside upper center", ncols=3, columnspacing=0.8, handletextpad=0.2)
        return figure
