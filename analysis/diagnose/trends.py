"""Tests on rounds: does acceptance fall with something, and do groups of rounds differ?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import f as f_distribution
from scipy.stats import t as t_distribution

from sim.records import chain_depth
from sim.theory import FloatArray


@dataclass(frozen=True)
class Trend:
    """Passes per tested token against some x, at equal positions of the draft and within groups."""

    slope: float
    error: float
    """standard error of the slope, clustered"""
    p_value: float
    """one-sided: the chance of a fall as steep where there is none"""


def residuals(rounds: pd.DataFrame) -> tuple[FloatArray, FloatArray]:
    """Passed tokens less those expected at equal positions, and tested tokens, of each round.

    A round tests its drafted tokens one by one until the first rejection or cut, so this is a martingale difference:
    its mean is 0 however many tokens were drafted, as long as a position's chance is the same everywhere.
    """
    emitted = rounds["emitted"].to_numpy()
    tested = np.minimum(chain_depth(rounds).to_numpy(), emitted)
    passed = np.minimum(rounds["accepted"].to_numpy(), tested)
    position = np.arange(int(tested.max(initial=0)))[:, None]
    reached, went_on = (tested > position).sum(axis=1), (passed > position).sum(axis=1)
    expected = np.concatenate([[0.0], np.cumsum(went_on / np.maximum(reached, 1))])
    return passed - expected[tested], tested.astype(np.float64)


def trend(
    residual: FloatArray, tested: FloatArray, x: FloatArray, group: NDArray[np.intp], cluster: NDArray[np.intp]
) -> Trend:
    """Least squares of residuals on x within groups, tested tokens as weights.

    The variance is clustered and approximates a jackknife over clusters (CR3: Bell & McCaffrey 2002), so rounds of one
    cluster may depend on each other in any way. Student's t has one degree of freedom less than there would be clusters
    of equal leverage. NaN where x does not vary within groups, with a p-value of 1.
    """
    weight = np.bincount(group, tested)
    weight = np.where(weight > 0, weight, 1.0)
    centred = x - (np.bincount(group, tested * x) / weight)[group]
    own = residual - tested * (np.bincount(group, residual) / weight)[group]
    spread = float((tested * centred**2).sum())
    if spread <= 1e-12 * float((tested * x**2).sum()):
        return Trend(np.nan, np.nan, 1.0)
    slope = float((own * centred).sum()) / spread
    score = np.bincount(cluster, (own - slope * tested * centred) * centred)
    leverage = np.bincount(cluster, tested * centred**2) / spread
    error = float(np.sqrt(((score / (1 - np.minimum(leverage, 0.99))) ** 2).sum())) / spread
    freedom = max(1 / float((leverage**2).sum()) - 1, 1.0)
    return Trend(slope, error, float(t_distribution.cdf(slope / error, freedom)) if error > 0 else 1.0)


def variance_test(values: FloatArray, group: NDArray[np.intp]) -> float:
    """p-value of one-way analysis of variance (Fisher 1925); 1 where a group has fewer than 2 values on average."""
    size = np.bincount(group)
    groups = int((size > 0).sum())
    inner = len(values) - groups
    if groups < 2 or inner < groups:
        return 1.0
    means = np.bincount(group, values) / np.maximum(size, 1)
    within = float(((values - means[group]) ** 2).sum())
    between = float((size * (means - values.mean()) ** 2)[size > 0].sum())
    if within == 0:
        return 0.0 if between > 0 else 1.0
    return float(f_distribution.sf(between / (groups - 1) / (within / inner), groups - 1, inner))
