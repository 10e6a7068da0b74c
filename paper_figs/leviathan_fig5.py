"""Leviathan et al. 2023, Fig. 5: rounds on a time axis, drawn from simulated traces."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from paper_figs.style import COLUMN_INCHES, new_figure, palette, style
from sim.acceptance import IidAcceptance
from sim.engine import Scenario, simulate
from sim.latency import ConstantLatency

NAME = "leviathan_fig5"
SOURCE = "in the style of Leviathan et al. 2023, arXiv:2211.17192, Fig. 5; simulated by sim.engine"
CAPTION = (
    "The same 16 tokens decoded with γ = 7, with γ = 3 and without a draft: one simulated trace each, at α = 0.8 and a "
    "draft step of 0.1 target steps (iid acceptance, one seed, no encoder). Numbers: tokens that each verification "
    "emits, the correction or bonus token included."
)


def data(
    gammas: Sequence[int] = (7, 3, 0), alpha: float = 0.8, cost_ratio: float = 0.1, tokens: int = 16, seed: int = 10
) -> pd.DataFrame:
    """Every forward of the traces.

    Args:
        gammas: draft lengths, 0 for none.
        alpha: acceptance rate, iid.
        cost_ratio: one draft forward / one target forward.
        tokens: to decode.
        seed: of acceptance.

    Returns:
        gamma, round, what ('draft' or 'target'), start, seconds (in target forwards), emitted (0 for drafts).
    """
    rows = []
    for gamma in gammas:
        acceptance = IidAcceptance(alpha) if gamma else None
        draft = ConstantLatency(cost_ratio) if gamma else None
        trace = simulate(Scenario(ConstantLatency(1.0), draft, acceptance, gamma, max_new_tokens=tokens), seed)
        for one in trace.to_dict("records"):
            start = float(one["start_seconds"])
            for _ in range(one["drafted"]):
                rows.append((gamma, one["round_index"], "draft", start, cost_ratio, 0))
                start += cost_ratio
            rows.append((gamma, one["round_index"], "target", start, one["verify_seconds"], one["emitted"]))
    return pd.DataFrame(rows, columns=["gamma", "round", "what", "start", "seconds", "emitted"])


def draw(table: pd.DataFrame) -> Figure:
    """One row of blocks a draft length."""
    gammas = list(dict.fromkeys(table["gamma"]))
    with style():
        figure = new_figure(COLUMN_INCHES, 0.62 * COLUMN_INCHES)
        axes = figure.add_subplot()
        for place, gamma in enumerate(gammas):
            _row(axes, place, table[table["gamma"] == gamma])
        names = [f"γ = {gamma}" if gamma else "no draft" for gamma in gammas]
        axes.set_yticks(range(len(gammas)), names)
        axes.tick_params(axis="y", length=0)
        axes.set(xlabel="Time [target steps]", ylim=(len(gammas) - 0.45, -0.55))
        axes.set_xlim(0, 1.02 * (table["start"] + table["seconds"]).max())
        draft, target = palette(2)
        handles = [
            Patch(facecolor=draft, label="draft forward"),
            Patch(facecolor=target, label="target forward (verification)"),
        ]
        figure.legend(handles=handles, loc="outside upper center", ncols=2)
        return figure


def _row(axes: Axes, place: int, rows: pd.DataFrame) -> None:
    """The forwards of one trace, and what each verification emits."""
    colours = dict(zip(("draft", "target"), palette(2), strict=True))
    for what, group in rows.groupby("what"):
        height = 0.36 if what == "draft" else 0.6
        axes.barh(
            place, group["seconds"], left=group["start"], height=height, color=colours[str(what)], edgecolor="white",
            linewidth=0.4,
        )  # fmt: skip
    targets = rows[rows["what"] == "target"]
    if targets["emitted"].max() == 1:
        return
    middle = targets["start"] + targets["seconds"] / 2
    for x, emitted in zip(middle, targets["emitted"], strict=True):
        axes.text(x, place, str(emitted), ha="center", va="center", fontsize=6.5, color="black")
