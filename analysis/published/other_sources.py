"""How far the intervals of other sources missed, and intervals widened by as much.

The interval of a row holds what is uncertain in its inputs, but not what its source leaves out: engine time, a slow
baseline, acceptance averaged in another way. What that comes to is seen only where speedups were measured, so a row's
interval is widened by what the intervals of all OTHER sources missed. No row of its own source takes part: what is
covered, source by source, is what would have been covered before that source was known. This is conformalised
quantile regression, each end on its own (Romano, Patterson, Candès 2019, arXiv:1905.03222), with the distributions of
sources pooled, each of equal weight (CDF pooling: Dunn, Wasserman, Ramdas 2023, arXiv:1809.07441). With half a dozen
sources the level is an aim, not a guarantee, so coverage is counted and printed.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

LEVEL = 0.95
FEWEST_SOURCES = 3
"""below this many others, what they missed says nothing of a new one"""


class Missed(NamedTuple):
    """Factors that widen an interval: below 1 for its lower end, above 1 for its upper end."""

    lower: float
    upper: float


def missed_by_others(reference: pd.DataFrame, source: str) -> Missed:
    """By what factors the intervals of the other sources would have had to be wider, on either side.

    Each end is the quantile that leaves out half of what a 95% interval may miss, over all rows of other sources; a
    source counts once however many rows it has, and an interval is never made narrower.

    Args:
        reference: as `analysis.published.predict_published` gives it: `source`, `measured`, `half_printed`, `lo_inputs`
            and `hi_inputs`; rows without a prediction or a measurement are left out.
        source: the one to be predicted, whose rows are left out.

    Returns:
        No widening where fewer than three other sources have such rows.
    """
    others = reference[(reference["source"] != source)].dropna(subset=["lo_inputs", "measured"])
    if others["source"].nunique() < FEWEST_SOURCES:
        return Missed(1.0, 1.0)
    weights = 1 / others.groupby("source")["source"].transform("size").to_numpy(np.float64)
    measured, half = others["measured"].to_numpy(np.float64), others["half_printed"].to_numpy(np.float64)
    below = np.log((measured + half) / others["lo_inputs"].to_numpy(np.float64))
    above = np.log((measured - half) / others["hi_inputs"].to_numpy(np.float64))
    tail = (1 + LEVEL) / 2
    return Missed(
        float(np.exp(-max(0.0, weighted_quantile(-below, weights, tail)))),
        float(np.exp(max(0.0, weighted_quantile(above, weights, tail)))),
    )


def weighted_quantile(values: NDArray[np.float64], weights: NDArray[np.float64], share: float) -> float:
    """The least value that has at least this share of the weight at or below it."""
    order = np.argsort(values)
    reached = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(reached, share * reached[-1])])
