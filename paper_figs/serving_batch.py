"""Speedup against batch size by draft-length policy: why a fixed draft stops paying, and what goodput brings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

from paper_figs import PUBLISHED
from paper_figs.style import COLUMN_INCHES, GUIDE, intervals, kinds, letter, new_figure, style
from sim.architectures.catalogue import find_architecture
from sim.controllers import Controller
from sim.controllers.latency_costs import LatencyCosts
from sim.controllers.learning import Goodput
from sim.controllers.rules import FixedGamma, OffAboveLoad
from sim.hardware import find_device
from sim.roofline import RooflineLatency
from sim.theory import expected_tokens

NAME = "serving_batch"
SOURCE = (
    "(a) after Liu et al. 2024, SmartSpec, arXiv:2406.14066, computed by sim.roofline; (b) measured by Jella et al. "
    "2026 (paper_figs/data); the trend: Liu et al. 2025, Speculative Decoding: Performance or Illusion?, "
    "arXiv:2601.11580"
)
CAPTION = (
    "Speedup against the requests in a batch. (a) Llama 3.1 8B with a Llama 3.2 1B draft on one H100, priced by the "
    "roofline: 1024 tokens of context, α = 0.7, no host time; the goodput policy knows α and the costs. (b) Measured "
    "under vLLM on an H100: Llama 3.1 8B with an EAGLE-3 head, mean of three tasks, bars from the least to the "
    "greatest."
)
TARGET, DRAFT, DEVICE = "llama-3.1-8b", "llama-3.2-1b", "h100"
LABELS = {
    "goodput": "goodput, γ ≤ 8",
    "fixed 5": "γ = 5",
    "fixed 3": "γ = 3",
    "fixed 1": "γ = 1",
    "off above 32": "γ = 5, off above 32",
}
MEASURED_GAMMAS = (1, 2, 3, 4)


def data(
    batches: Sequence[int] = (1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 192, 256), alpha: float = 0.7, context: int = 1024
) -> pd.DataFrame:
    """Speedup by batch and policy, priced, then measured.

    Args:
        batches: requests that decode together.
        alpha: acceptance rate, iid.
        context: tokens of each request.

    Returns:
        panel ('priced', 'measured'), policy, batch, gamma (chosen), speedup, speedup_lo, speedup_hi (NaN where priced;
        else over tasks).
    """
    device = find_device(DEVICE)
    target, draft = (RooflineLatency(find_architecture(name), device) for name in (TARGET, DRAFT))
    costs = LatencyCosts(draft, target, 8, context)
    goodput = Goodput(costs, 8, prior_alpha=alpha, prior_tokens=1e9)
    fixed = {f"fixed {gamma}": FixedGamma(gamma) for gamma in (1, 3, 5)}
    policies: dict[str, Controller] = {"goodput": goodput, **fixed, "off above 32": OffAboveLoad(FixedGamma(5), 32)}
    rows = []
    for name, policy in policies.items():
        for batch in batches:
            gamma = policy.next_gamma(batch)
            seconds = costs.seconds(batch)
            speedup = float(expected_tokens(alpha, gamma) * seconds[0] / seconds[gamma])
            rows.append(("priced", name, batch, gamma, speedup, np.nan, np.nan))
    for (length, size), found in measured().groupby(["gamma", "batch"])["speedup_measured"]:
        gamma = int(str(length))
        rows.append(("measured", f"fixed {gamma}", int(str(size)), gamma, found.mean(), found.min(), found.max()))
    columns = ["panel", "policy", "batch", "gamma", "speedup", "speedup_lo", "speedup_hi"]
    return pd.DataFrame(rows, columns=columns)


def measured(path: Path = PUBLISHED) -> pd.DataFrame:
    """Published speedups by batch, one row a task; a task measured twice counts once, by its mean."""
    rows = pd.read_csv(path)
    rows = rows[(rows["table"] == "eagle3_batch/curves.csv") & rows["gamma"].isin(MEASURED_GAMMAS)]
    tasks = rows.groupby(["gamma", "batch", "task"])["speedup_measured"].mean().reset_index()
    return tasks.astype({"gamma": int})


def draw(table: pd.DataFrame) -> Figure:
    """Priced above, measured below, on one axis of batches."""
    with style():
        figure = new_figure(COLUMN_INCHES, 1.5 * COLUMN_INCHES)
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=[1.2, 1])
        _lines(above, table[table["panel"] == "priced"], LABELS)
        _lines(
            below, table[table["panel"] == "measured"], {f"fixed {gamma}": f"γ = {gamma}" for gamma in MEASURED_GAMMAS}
        )
        below.set_xlabel("Batch [requests]")
        letter([above, below], ["Priced, with a draft model", "Measured, with EAGLE-3"])
        return figure


def _lines(axes: Axes, table: pd.DataFrame, labels: dict[str, str]) -> None:
    """A line a policy, on a logarithmic axis of batches."""
    apart = 1.0 if table["speedup_lo"].isna().all() else 1.06
    for place, ((name, label), look) in enumerate(zip(labels.items(), kinds(len(labels)), strict=True)):
        rows = table[table["policy"] == name]
        batch = rows["batch"] * apart ** (place - (len(labels) - 1) / 2)
        intervals(axes, batch, rows["speedup_lo"], rows["speedup_hi"], look["color"])
        axes.plot(batch, rows["speedup"], label=label, **look)
    axes.axhline(1, color=GUIDE, linewidth=0.7)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator([1, 4, 16, 64, 256]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:.0f}"))
    axes.set_ylabel("Speedup (×)")
    axes.legend(loc="best", handlelength=3.2)
