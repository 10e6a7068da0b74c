"""Statistics of one simulation run: what to drop at its start, and 95% intervals of means, ratios and percentiles.

A run's observations are correlated, so batches of successive ones stand in for independent values. Law is A. M. Law,
"Simulation Modeling and Analysis" (5th ed., 2015). For independent runs see `sim.replication`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtrit

from sim.engine import ratio_interval
from sim.theory import FloatArray

LEVEL = 0.95
MSER_BATCH = 5
LEAST_MSER_BATCHES = 10
CORRELATED = 1.6449
"""the normal deviate above which a lag-1 autocorrelation counts as positive: one-sided, 5% false alarms"""


@dataclass(frozen=True)
class Estimate:
    """A value and its 95% interval."""

    value: float
    lo: float
    hi: float
    count: int
    """independent values, or batches, behind the interval"""
    autocorrelation: float | None = None
    """lag-1 autocorrelation of the batches; None where the values are independent by construction"""
    correlated: bool = False
    """that autocorrelation is above zero (5% false alarms): the interval is too narrow, take longer batches"""

    @property
    def half_width(self) -> float:
        """Half the interval's width."""
        return (self.hi - self.lo) / 2

    @property
    def relative_half_width(self) -> float:
        """Half width / |value|; 0 for a value without spread, inf for a spread around 0."""
        if self.half_width == 0:
            return 0.0
        return self.half_width / abs(self.value) if self.value else math.inf


@dataclass(frozen=True)
class WarmUp:
    """How much of a run's start to drop."""

    observations: int
    """leading observations to drop"""
    run_longer: bool
    """the best cut is the latest one allowed, so that the run may hold no steady state at all"""


def warm_up(series: ArrayLike) -> WarmUp:
    """Find the start of the steady state by MSER-5: the cut with the least marginal standard error of what is left.

    Batches of 5 observations; the cut d minimises sum((y - mean)^2) / (k - d)^2 over the k - d batch means left, and
    drops at most half of them (White, Cobb and Spratt 2000, "A comparison of five steady-state truncation heuristics
    for simulation", WSC; White 1997, Simulation 69:323).

    Args:
        series: one run's output in the order of time [observations].

    Raises:
        ValueError: there are fewer than 50 observations, or one is not finite.
    """
    series = check_series("series", series, MSER_BATCH * LEAST_MSER_BATCHES)
    batches = len(series) // MSER_BATCH
    means = series[: batches * MSER_BATCH].reshape(batches, MSER_BATCH).mean(axis=1)
    # sums from the end, of what is left of the median, keep their digits under a start however far off
    left = (means - np.median(means))[::-1]
    size = np.arange(1, batches + 1)
    spread = np.cumsum(left**2) - np.cumsum(left) ** 2 / size
    latest = batches // 2
    cut = int(np.argmin((spread / size**2)[::-1][: latest + 1]))
    return WarmUp(cut * MSER_BATCH, cut == latest)


def mean_interval(values: ArrayLike) -> Estimate:
    """The mean of independent values with its Student t interval (Law, sec. 9.4.1).

    Args:
        values: one per replication [replications].

    Raises:
        ValueError: there are fewer than two, or one is not finite.
    """
    values = check_series("values", values, 2)
    mean, error = float(values.mean()), float(values.std(ddof=1)) / math.sqrt(len(values))
    half = student(len(values)) * error
    return Estimate(mean, mean - half, mean + half, len(values))


def batch_means(series: ArrayLike, batches: int = 30) -> Estimate:
    """The mean of one steady run with the Student t interval of non-overlapping batch means (Law, sec. 9.5.3).

    The first observations that fill no batch are dropped. The interval covers too little while batches are correlated,
    which `correlated` finds less often than it happens. Measured for AR(1) with coefficient 0.9 and 30 batches: 86% of
    intervals cover with 20 observations a batch (49% flagged), 94% with 100 (8% flagged), 95% with 1000.

    Args:
        series: one run's output without its warm-up [observations].
        batches: how many; 10 to 30 is enough (Schmeiser 1982, Operations Research 30:556).

    Raises:
        ValueError: there are fewer than two observations a batch, or one is not finite.
    """
    means = split(series, batches).mean(axis=1)
    interval = mean_interval(means)
    return Estimate(interval.value, interval.lo, interval.hi, batches, *lag_one(means))


def batch_ratio(numerator: ArrayLike, denominator: ArrayLike, batches: int = 30) -> Estimate:
    """A ratio of two means of one steady run, such as tokens per second, by batches (see `sim.engine.ratio_interval`).

    Args:
        numerator: one run's output without its warm-up [observations].
        denominator: of the same observations [observations].
        batches: as in `batch_means`.

    Raises:
        ValueError: as `batch_means`, or the two differ in length, or the denominators sum to 0.
    """
    above, below = split(numerator, batches).sum(axis=1), split(denominator, batches).sum(axis=1)
    if np.size(numerator) != np.size(denominator):
        raise ValueError(
            f"a ratio needs pairs, got {np.size(numerator)} numerators, {np.size(denominator)} denominators"
        )
    if below.sum() == 0:
        raise ValueError("the denominators of a ratio must not sum to 0; give what each observation is divided by")
    ratio, (lo, hi) = ratio_interval(above, below)
    return Estimate(ratio, lo, hi, batches, *lag_one(above - ratio * below))


def quantile_interval(series: ArrayLike, q: float, batches: int = 20) -> Estimate:
    """A percentile of one steady run: of all observations, with the interval of the shares of each batch below it.

    The share of observations up to the percentile has a batch-means interval q -+ e, and the percentile that of the
    observations at q - e and q + e (Woodruff 1952, JASA 47:635, batches for clusters). `hi` is inf, or `lo` -inf, where
    the run is too short to bound it. A percentile of each batch (Asmussen and Glynn 2007, "Stochastic Simulation",
    sec. III.5a; Nakayama 2014, ACM TOMACS 24(4)) would be biased in short batches: for the 99th percentile of the waits
    of 60,000 M/M/1 requests at load 0.8 its sections cover 84%, and this interval 91%.

    Args:
        series: one run's output without its warm-up [observations].
        q: the percentile as a share, in (0, 1).
        batches: as in `batch_means`.

    Raises:
        ValueError: q is outside (0, 1), or as `batch_means`.
    """
    if not 0 < q < 1:
        raise ValueError(f"q must be in (0, 1), got {q}; 0.99 is the 99th percentile")
    parts = split(series, batches)
    ordered = np.sort(parts, axis=None)

    def at(share: float) -> float:
        if share <= 0 or share >= 1:
            return math.copysign(math.inf, share - 0.5)
        return float(ordered[math.ceil(share * len(ordered)) - 1])

    value = at(q)
    shares = (parts <= value).mean(axis=1)
    half = mean_interval(shares).half_width
    return Estimate(value, at(q - half), at(q + half), batches, *lag_one(shares))


def student(count: int) -> float:
    """The 97.5% quantile of Student's t for the mean of so many values."""
    return float(stdtrit(count - 1, (1 + LEVEL) / 2))


def lag_one(values: FloatArray) -> tuple[float, bool]:
    """Lag-1 autocorrelation, and whether it is above zero by von Neumann's ratio.

    The statistic sqrt((n^2 - 1) / (n - 2)) * (1 - ratio / 2) is close to normal for independent values (Fishman and
    Yarberry 1997, INFORMS J. on Computing 9:296). Values that are all the same count as independent.
    """
    count, off = len(values), values - values.mean()
    square = float(np.square(off).sum())
    if square == 0:
        return 0.0, False
    lag = float(off[1:] @ off[:-1]) / square
    deviate = math.sqrt((count**2 - 1) / (count - 2)) * (1 - float(np.square(np.diff(off)).sum()) / square / 2)
    return lag, deviate > CORRELATED


def split(series: ArrayLike, batches: int) -> FloatArray:
    """Cut a run into batches of equal length [batches, observations], without the first observations that fill none."""
    if batches != int(batches) or batches < 3:
        raise ValueError(f"batches must be a whole number >= 3, got {batches}; 10 to 30 is usual")
    series = check_series("series", series, 2 * batches)
    size = len(series) // batches
    return series[len(series) - batches * size :].reshape(batches, size)


def check_series(name: str, values: ArrayLike, least: int) -> FloatArray:
    """The values as floats, finite, on one axis, and not too few.

    Raises:
        ValueError: naming what is wrong.
    """
    series = np.asarray(values, dtype=np.float64)
    if series.ndim != 1:
        raise ValueError(f"{name} must have one axis, got the shape {series.shape}; give one run's output")
    if len(series) < least:
        raise ValueError(f"{name} must have at least {least} observations, got {len(series)}; run longer")
    if len(wrong := np.flatnonzero(~np.isfinite(series))):
        raise ValueError(
            f"{name} must be finite, got {series[wrong[0]]} at {wrong[0]} and {len(wrong)} such values in all; "
            "say what a missing observation stands for before taking a mean"
        )
    return series
