"""Coverage is the share of seeded synthetic runs whose interval holds the true value.

A share of n runs is compared with what it must be within 4 binomial standard errors: 6.3e-5 false alarms a cell. Where
an interval is known to cover less than its nominal 95%, the share was measured once over 20,000 runs, 2,000 of a queue.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.signal import lfilter
from scipy.stats import norm

from sim.engine import ratio_interval
from sim.output_analysis import (
    Estimate,
    batch_means,
    batch_ratio,
    lag_one,
    mean_interval,
    quantile_interval,
    warm_up,
)
from sim.queueing import mm1_mean_wait, mm1_sojourn_quantile, waiting_times

Runs = NDArray[np.float64]


def autoregressive(phi: float, runs: int, observations: int, start: float | None = None, seed: int = 1) -> Runs:
    """AR(1) around 0 with unit noise, from its steady state or from `start` [runs, observations]."""
    noise = np.random.default_rng(seed).standard_normal((runs, observations))
    noise[:, 0] = noise[:, 0] / math.sqrt(1 - phi**2) if start is None else start
    return np.asarray(lfilter([1], [1, -phi], noise, axis=1))


def steady_waits(load: float, runs: int, observations: int, seed: int = 2) -> Runs:
    """Waits in an M/M/1 queue with mean service 1, from the steady state [runs, observations].

    The work that the first arrival finds is as the wait is: none, or exponential (Gross et al., sec. 2.2).
    """
    rng = np.random.default_rng(seed)
    found = rng.exponential(1 / (1 - load), (runs, 1)) * (rng.random((runs, 1)) < load)
    services = np.concatenate([found, rng.exponential(1, (runs, observations))], axis=1)
    gaps = rng.exponential(1 / load, (runs, observations))
    return waiting_times(np.concatenate([np.zeros((runs, 1)), np.cumsum(gaps, axis=1)], axis=1), services)[:, 1:]


def coverage(interval: Callable[[Runs], Estimate], series: Runs, truth: float) -> float:
    return float(np.mean([estimate.lo <= truth <= estimate.hi for estimate in map(interval, series)]))


def within(share: float, known: float, runs: int) -> bool:
    return abs(share - known) <= 4 * math.sqrt(known * (1 - known) / runs)


@pytest.mark.parametrize("count", [2, 3, 10, 30])
def test_mean_intervals_of_independent_values_cover_95_percent(count: int) -> None:
    values = np.random.default_rng(count).normal(7, 3, (2000, count))
    assert within(coverage(mean_interval, values, 7), 0.95, 2000)


@pytest.mark.parametrize(("phi", "observations"), [(0.0, 60), (0.5, 3000), (-0.5, 3000), (0.9, 30_000)])
def test_batch_means_cover_95_percent_where_batches_are_long(phi: float, observations: int) -> None:
    series = autoregressive(phi, 600, observations)
    assert within(coverage(batch_means, series, 0), 0.95, 600)


@pytest.mark.parametrize(
    ("observations", "batches", "known", "flagged"), [(600, 30, 0.861, 0.492), (600, 10, 0.930, 0.077)]
)
def test_short_batches_of_a_correlated_run_undercover_as_known(
    observations: int, batches: int, known: float, flagged: float
) -> None:
    """AR(1) with coefficient 0.9, whose memory is ten observations: batches of 20 and of 60."""
    estimates = [batch_means(series, batches) for series in autoregressive(0.9, 2000, observations)]
    assert within(float(np.mean([e.lo <= 0 <= e.hi for e in estimates])), known, 2000)
    assert within(float(np.mean([e.correlated for e in estimates])), flagged, 2000)


def test_that_check_catches_an_interval_that_takes_observations_as_independent() -> None:
    """The mutant covers 35% where batch means cover 95%."""
    assert not within(coverage(mean_interval, autoregressive(0.9, 300, 3000), 0), 0.95, 300)


@pytest.mark.parametrize(
    ("load", "observations", "runs", "known"),
    [(0.5, 30_000, 300, 0.95), (0.8, 60_000, 200, 0.934), (0.8, 6000, 500, 0.877)],
)
def test_batch_means_of_queueing_waits_cover_as_known(load: float, observations: int, runs: int, known: float) -> None:
    """At load 0.8 a wait remembers hundreds of requests: 6,000 of them are too few, and 60,000 all but enough."""
    waits = steady_waits(load, runs, observations)
    assert within(coverage(batch_means, waits, float(mm1_mean_wait(load, 1))), known, runs)


def test_autocorrelation_is_lag_1_and_flags_independent_values_5_percent_of_the_time() -> None:
    values = np.array([1.0, 2.0, 4.0, 3.0, 0.0])
    lag, correlated = lag_one(values)
    assert lag == pytest.approx(((-1) * 0 + 0 * 2 + 2 * 1 + 1 * (-2)) / 10)
    assert not correlated
    assert lag_one(np.ones(5)) == (0.0, False)
    independent = np.random.default_rng(3).standard_normal((4000, 30))
    assert within(float(np.mean([lag_one(row)[1] for row in independent])), 0.05, 4000)
    assert lag_one(np.sin(np.arange(30) / 5))[1]


def test_a_batch_ratio_is_the_engines_interval_over_batches() -> None:
    rng = np.random.default_rng(4)
    tokens, seconds = rng.integers(1, 6, 1000), rng.exponential(1, 1000)
    got = batch_ratio(tokens, seconds, batches=30)
    above, below = (part[10:].reshape(30, 33).sum(axis=1).astype(float) for part in (tokens, seconds))
    value, interval = ratio_interval(above, below)
    assert [got.value, got.lo, got.hi] == pytest.approx([value, *interval])
    assert (got.autocorrelation, got.correlated) == lag_one(above - value * below)
    assert got.count == 30


def test_batch_ratios_cover_95_percent() -> None:
    """Tokens go with seconds, and both remember: the ratio of their means is 3 / 2."""
    memory = autoregressive(0.8, 1000, 3000)
    noise = np.random.default_rng(5).standard_normal((1000, 3000))
    pairs = zip(3 + 0.2 * memory + 0.3 * noise, 2 + 0.3 * memory, strict=True)
    estimates = [batch_ratio(tokens, seconds) for tokens, seconds in pairs]
    assert within(float(np.mean([e.lo <= 1.5 <= e.hi for e in estimates])), 0.95, 1000)


@pytest.mark.parametrize("q", [0.5, 0.9, 0.99])
def test_quantile_intervals_cover_95_percent_of_independent_and_of_correlated_runs(q: float) -> None:
    exponential = np.random.default_rng(6).exponential(1, (600, 4000))
    assert within(coverage(lambda s: quantile_interval(s, q), exponential, -math.log(1 - q)), 0.95, 600)
    truth = float(norm.ppf(q)) / math.sqrt(1 - 0.5**2)
    assert within(coverage(lambda s: quantile_interval(s, q), autoregressive(0.5, 600, 4000), truth), 0.95, 600)


@pytest.mark.parametrize(
    ("observations", "runs", "known", "unbounded"), [(60_000, 150, 0.908, 0.06), (6000, 600, 0.835, 0.866)]
)
def test_the_99th_percentile_of_queueing_waits_covers_as_known(
    observations: int, runs: int, known: float, unbounded: float
) -> None:
    """A load of 0.8 has few busy periods that reach it. Most intervals of a short run are without end, and say so."""
    truth = float(mm1_sojourn_quantile(0.8, 1, 1 - 0.01 / 0.8))
    estimates = [quantile_interval(series, 0.99) for series in steady_waits(0.8, runs, observations)]
    assert within(float(np.mean([e.lo <= truth <= e.hi for e in estimates])), known, runs)
    assert within(float(np.mean([e.hi == math.inf for e in estimates])), unbounded, runs)


def test_a_quantile_is_that_of_all_observations() -> None:
    series = np.random.default_rng(7).permutation(1000).astype(float)
    for q in (0.001, 0.25, 0.5, 0.9, 0.9999):
        got = quantile_interval(series, q)
        assert got.value == np.quantile(series, q, method="inverted_cdf")
        assert got.lo <= got.value <= got.hi


def test_warm_up_is_the_cut_with_the_least_marginal_standard_error() -> None:
    rng = np.random.default_rng(8)
    for start in (0.0, 5.0, 1e6):
        series = autoregressive(0.8, 1, 400, start, seed=int(rng.integers(99)))[0]
        means = series.reshape(80, 5).mean(axis=1)
        errors = [np.square(means[d:] - means[d:].mean()).sum() / (80 - d) ** 2 for d in range(41)]
        assert warm_up(series).observations == 5 * int(np.argmin(errors))
        assert warm_up(np.append(series, [9.0, 9.0])).observations == 5 * int(np.argmin(errors))


def test_dropping_the_warm_up_cuts_the_bias_of_a_start_far_off() -> None:
    """From 50, AR(1) with coefficient 0.9 adds 50 / (1 - 0.9) / 2000 = 0.25 to the mean of 2,000 observations.

    The cut leaves less than a tenth of it. Batches that hold no start differ less, so intervals narrow and still cover.
    """
    runs = autoregressive(0.9, 400, 2000, start=50)
    cuts = [warm_up(series) for series in runs]
    kept = [series[cut.observations :] for series, cut in zip(runs, cuts, strict=True)]
    error = 1 / (1 - 0.9) / math.sqrt(2000 * 400)
    assert abs(runs.mean() - 0.25) <= 4 * error
    assert abs(np.mean([series.mean() for series in kept])) <= 0.025 + 4 * error
    assert not any(cut.run_longer for cut in cuts)
    before, after = ([batch_means(series, 10) for series in group] for group in (runs, kept))
    assert within(float(np.mean([e.lo <= 0 <= e.hi for e in after])), 0.937, 400)
    assert np.mean([e.half_width for e in after]) < 0.8 * np.mean([e.half_width for e in before])


def test_a_run_without_a_steady_state_is_flagged() -> None:
    assert warm_up(np.arange(1000.0)).run_longer
    assert warm_up(np.arange(1000.0)).observations == 500
    assert warm_up(np.full(1000, 0.1)).observations == 0


def test_relative_half_width_of_nothing_and_of_zero() -> None:
    assert Estimate(2.0, 1.5, 2.5, 9).relative_half_width == 0.25
    assert Estimate(-2.0, -2.5, -1.5, 9).relative_half_width == 0.25
    assert Estimate(0.0, 0.0, 0.0, 9).relative_half_width == 0
    assert Estimate(0.0, -1.0, 1.0, 9).relative_half_width == math.inf
    assert Estimate(1.0, 0.5, math.inf, 9).relative_half_width == math.inf


LONG = np.random.default_rng(9).standard_normal(100)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: warm_up(LONG[:49]), "series must have at least 50 observations, got 49; run longer"),
        (lambda: batch_means(LONG[:59]), "series must have at least 60 observations, got 59; run longer"),
        (lambda: batch_means(LONG, 2), "batches must be a whole number >= 3, got 2"),
        (lambda: batch_means(LONG, 10.5), r"batches must be a whole number >= 3, got 10\.5"),  # type: ignore[arg-type]
        (lambda: batch_means([*LONG, math.nan, math.nan]), "series must be finite, got nan at 100 and 2 such values"),
        (lambda: batch_means(LONG.reshape(2, 50)), r"series must have one axis, got the shape \(2, 50\)"),
        (lambda: mean_interval([1.0]), "values must have at least 2 observations, got 1"),
        (lambda: batch_ratio(LONG, LONG[:90]), "a ratio needs pairs, got 100 numerators, 90 denominators"),
        (lambda: batch_ratio(LONG, 0 * LONG), "denominators of a ratio must not sum to 0"),
        (lambda: quantile_interval(LONG, 99), r"q must be in \(0, 1\), got 99; 0\.99 is the 99th percentile"),
    ],
)
def test_bad_input_is_named(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
