"""A run's lost speedup, cause by cause: the waterfall of its most measured configuration, or of one that is named."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from analysis.diagnose import diagnose
from paper_figs.lab_predictions import RUN
from paper_figs.style import style
from paper_figs.waterfall import plot, steps_of
from sim.records import read_rounds

NAME = "lab_waterfall"
SOURCE = "this lab, specdec diagnose (docs/lab unless another run folder is given)"
CAPTION = (
    "From the ideal speedup, the tokens per round at an acceptance rate of 0.8 (or at the run's own, if better) for "
    "the price of one step, to the measured one: {draft} at γ = {gamma:.0f}, {rounds:,} rounds. Causes share the loss "
    "by Shapley values; percentages are their shares of its logarithm, milliseconds what "
    "a cause costs of each token, thin lines are 95% intervals."
)


def data(run: Path = RUN, draft: str | None = None, gamma: int | None = None) -> pd.DataFrame:
    """The steps of `paper_figs.waterfall`, with the configuration's draft, gamma and rounds.

    Args:
        run: a folder of `specdec lab` or `specdec measure`.
        draft: which draft; None: that with the most rounds at one draft length.
        gamma: which draft length; None: likewise.
    """
    rounds = read_rounds(run / "rounds.parquet")
    drafted = rounds[rounds["gamma"] > 0]
    if "phase" in drafted:
        drafted = drafted[drafted["phase"] != "calibration"]
    for name, wanted in (("draft", draft), ("gamma", gamma)):
        drafted = drafted if wanted is None else drafted[drafted[name] == wanted]
    if drafted.empty:
        raise ValueError(f"{run} holds no rounds of draft {draft or 'any'} at gamma {gamma or 'any'}; measure some")
    draft, gamma = drafted[["draft", "gamma"]].value_counts().index[0]
    found = diagnose(rounds, draft=draft, gamma=int(gamma))
    return steps_of(found).assign(draft=draft, gamma=int(gamma), rounds=found.rounds or 0)


def caption(table: pd.DataFrame) -> str:
    """The caption with the configuration."""
    row = table.iloc[0]
    return CAPTION.format(draft=row["draft"], gamma=row["gamma"], rounds=int(row["rounds"]))


def draw(table: pd.DataFrame) -> Figure:
    """See `paper_figs.waterfall`."""
    steps = table.drop(columns=["draft", "gamma", "rounds"])
    with style():
        return plot(steps)
