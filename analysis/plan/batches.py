"""What batches of our own loop cost over what its sweeps say: factors from rounds that were decoded together.

A sweep times rows of one context; rows of a batch differ in theirs, and a part of a round is work on the host for every
row. So each part gets a factor at each measured batch, as forwards at batch 1 have theirs (`analysis.fit.costs`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.fit.costs import BaselineCosts, DraftCosts, PerRound
from analysis.fit.latency import winsorise
from analysis.interruptions import cap_interruptions
from analysis.pooling import Array, Index
from sim.records import ROUND_SECONDS, check_rounds

FEWEST_FORWARDS = 5


@dataclass(frozen=True)
class BatchFactors:
    """Measured over priced seconds of each part at one batch."""

    step: float = 1.0
    """of a step without speculation, all of it"""
    draft: float = 1.0
    verify: float = 1.0
    other: float = 1.0


def draft_seconds(costs: DraftCosts, batch: Index, drafted: Index, context: Array | float, row: Index) -> Array:
    """Seconds of drafting for a batch, each row's draft as long as the longest; a lookup takes its time for every row.

    Arguments broadcast.
    """
    if isinstance(costs.draft, PerRound):
        return np.asarray(costs.draft.seconds(drafted) * batch * np.ones(np.shape(row)))
    return drafted * costs.draft.at(row).forward_seconds(batch, 1, context + (drafted - 1) / 2)


def batch_factors(rounds: pd.DataFrame, baseline: BaselineCosts, costs: DraftCosts) -> dict[int, BatchFactors]:
    """Fit the factors of every batch in a round table: rounds of one draft and steps without, decoded in batches.

    Only forwards with the whole batch count; requests that end leave smaller ones.

    Raises:
        ValueError: the table breaks its schema, or a batch has too few forwards.
    """
    check_rounds(rounds)
    rows = cap_interruptions(rounds)
    # rows of one forward share its clock; of a clock that started with each batch, no two forwards show the same time
    keys = ["draft", "gamma", "start_seconds"]
    seconds = {name: (name, "first") for name in ROUND_SECONDS}
    forwards = rows.groupby(keys, sort=False).agg(
        batch=("batch", "first"), size=("batch", "size"), drafted=("drafted", "max"), context=("context", "mean"),
        **seconds,
    )  # fmt: skip
    largest = int(forwards["batch"].max())
    whole = forwards[(forwards["batch"] == largest) & (forwards["size"] == largest)].reset_index()
    steps, own = whole[whole["gamma"] == 0], whole[whole["gamma"] > 0]
    if min(len(steps), len(own)) < FEWEST_FORWARDS:
        raise ValueError(
            f"batch {largest} needs at least {FEWEST_FORWARDS} forwards of the whole batch with and without the draft, "
            f"got {len(own)} and {len(steps)}; decode more tokens"
        )
    fit, at = np.zeros((), dtype=np.int64), np.int64(largest)
    step = baseline.forward.forward_seconds(at, 1, steps["context"]) + baseline.other_seconds
    drafted, context = own["drafted"].to_numpy(), own["context"].to_numpy(np.float64)
    drafting = draft_seconds(costs, np.asarray(at), drafted, context, fit)
    verifying = costs.verify.forward_seconds(at, drafted + 1, context)
    return {
        largest: BatchFactors(
            step=location(steps["verify_seconds"] + steps["other_seconds"], step),
            draft=location(own["draft_seconds"], drafting),
            verify=location(own["verify_seconds"], verifying),
            other=location(own["other_seconds"], costs.other.seconds(drafted)),
        )
    }


def location(measured: pd.Series[float], priced: Array) -> float:
    """The Huber location of measured over priced seconds, on the log scale; 1 where nothing took time."""
    used = (measured.to_numpy() > 0) & (priced > 0)
    if not used.any():
        return 1.0
    return float(np.exp(winsorise(np.log(measured.to_numpy()[used] / priced[used])).mean()))
