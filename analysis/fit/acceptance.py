"""Fit acceptance by maximum likelihood on censored rounds.

A round tests drafted tokens one by one until the first rejection. A round accepted whole is right-censored: the next
token was never tested. A round cut by a stop or by the length limit tells only about the tokens it emitted. Counting
tests and passes by position holds all of that exactly: given that a token was tested, it passes with its conditional
acceptance, so the likelihood is a product of binomials (the discrete-time hazard likelihood of survival analysis).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import betaln, expit, logit, xlog1py, xlogy
from scipy.stats import norm, t

Array = NDArray[np.float64]

MOST_WORTH = 10.0


@dataclass(frozen=True)
class AcceptanceCounts:
    """Tests and passes of drafted tokens, by request and position [requests, positions]."""

    request: tuple[str, ...]
    category: tuple[str, ...]
    """of each request"""
    tested: Array
    passed: Array
    """whole numbers from accept and reject, or sums of min(1, p/q) of the tested tokens"""
    weight: float = 1.0
    """what one test of `passed` is worth in accept-or-reject tests; above 1 for sums of min(1, p/q)"""


@dataclass(frozen=True)
class Estimate:
    """A value and its 95% interval."""

    value: float
    lo: float
    hi: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.lo:.3f}, {self.hi:.3f}]"


@dataclass(frozen=True)
class AcceptanceFit:
    """The three models of acceptance, fitted to the same rounds."""

    requests: int
    tested: int
    alpha: Estimate
    """iid model; the interval respects clustering by request (see `clustered_rate`)"""
    alpha_wilson: Estimate
    """the same value; Wilson's interval, right only if every token is independent"""
    alpha_from_probability: Estimate | None
    """from min(1, p/q) of the tested tokens, clustered by request; None where the table has no probabilities"""
    conditional_acceptance: tuple[Estimate, ...]
    """per-position model, Wilson intervals; as deep as rounds were tested"""
    beta: tuple[float, float]
    """beta model: a and b of the requests' alphas; (inf, inf) in the ratio of alpha where requests do not differ"""
    log_likelihood: dict[str, float]
    aic: dict[str, float]
    best: str
    """the model with the least AIC: 'iid', 'per-position' or 'beta'"""


def count_acceptance(rounds: pd.DataFrame, probabilities: bool = False) -> AcceptanceCounts:
    """Count tests and passes in a round table.

    A round tested min(drafted, emitted) tokens: the accepted ones that reached the output, and the rejected one if its
    correction did. With `probabilities`, a test counts its min(1, p/q) instead of 0 or 1, which has the same mean and
    less variance (Rao-Blackwell), and the weight says how much less.

    Raises:
        ValueError: no token was tested, or probabilities are asked for and a round lacks them.
    """
    drafted, accepted, emitted = (rounds[name].to_numpy() for name in ("drafted", "accepted", "emitted"))
    tests = np.minimum(drafted, emitted)
    if not tests.sum():
        raise ValueError("no drafted token was tested in these rounds; acceptance cannot be fitted")
    request, name = pd.factorize(rounds["request_id"])
    position = np.arange(int(tests.max()))
    is_tested = position < tests[:, None]
    values = (position < accepted[:, None]).astype(np.float64)
    weight = 1.0
    if probabilities:
        values = _probabilities(rounds, drafted, len(position))
        values, weight = np.where(is_tested, values, 0.0), _worth(values[is_tested])
    tested, passed = (np.zeros((len(name), len(position))) for _ in range(2))
    np.add.at(tested, request, is_tested.astype(np.float64))
    np.add.at(passed, request, np.where(is_tested, values, 0.0))
    first = rounds.groupby("request_id", sort=False).first()
    category = first["category"].astype(str) if "category" in rounds else pd.Series("", index=first.index)
    return AcceptanceCounts(tuple(map(str, name)), tuple(category), tested, passed, weight)


def has_probabilities(rounds: pd.DataFrame) -> bool:
    """Whether every round that drafted tokens says min(1, p/q) for them."""
    return "accept_probability" in rounds and bool(
        rounds.loc[rounds["drafted"] > 0, "accept_probability"].notna().all()
    )


def fit_acceptance(rounds: pd.DataFrame) -> AcceptanceFit:
    """Fit the iid, per-position and beta models to the rounds of one draft.

    Raises:
        ValueError: no drafted token was tested.
    """
    counts = count_acceptance(rounds)
    tested, passed = counts.tested.sum(axis=0), counts.passed.sum(axis=0)
    by_request = counts.tested.sum(axis=1), counts.passed.sum(axis=1)
    a, b, beta_likelihood = fit_beta(*by_request)
    likelihood = {
        "iid": binomial_log_likelihood(tested.sum(), passed.sum()),
        "per-position": binomial_log_likelihood(tested, passed),
        "beta": beta_likelihood,
    }
    parameters = {"iid": 1, "per-position": len(tested), "beta": 2}
    aic = {name: 2 * parameters[name] - 2 * value for name, value in likelihood.items()}
    from_probability = None
    if has_probabilities(rounds):
        smooth = count_acceptance(rounds, probabilities=True)
        from_probability = clustered_rate(smooth.tested.sum(axis=1), smooth.passed.sum(axis=1))
    return AcceptanceFit(
        requests=len(counts.request),
        tested=int(tested.sum()),
        alpha=clustered_rate(*by_request),
        alpha_wilson=wilson(float(tested.sum()), float(passed.sum())),
        alpha_from_probability=from_probability,
        conditional_acceptance=tuple(wilson(n, k) for n, k in zip(tested.tolist(), passed.tolist(), strict=True)),
        beta=(a, b),
        log_likelihood=likelihood,
        aic=aic,
        best=min(aic, key=aic.__getitem__),
    )


def wilson(tested: float, passed: float, level: float = 0.95) -> Estimate:
    """A proportion with Wilson's score interval (Wilson 1927), which holds its level at 0 and at 1 too."""
    z2 = norm.ppf((1 + level) / 2) ** 2
    rate = passed / tested
    centre = (passed + z2 / 2) / (tested + z2)
    reach = np.sqrt(z2 * (rate * (1 - rate) * tested + z2 / 4)) / (tested + z2)
    # At 0 and 1 an end equals the rate, but for rounding.
    return Estimate(rate, float(np.clip(centre - reach, 0.0, rate)), float(np.clip(centre + reach, rate, 1.0)))


def clustered_rate(tested: Array, passed: Array, level: float = 0.95) -> Estimate:
    """Passes per test with an interval that respects clustering: `tested` and `passed` are [requests].

    The ratio estimator's linearised variance (Cochran 1977, eq. 6.13) with Student's t on requests - 1 degrees of
    freedom, laid out on the logit scale. Where requests show no spread at all (one request, nothing passed, everything
    passed) there is nothing to cluster over, and the interval is Wilson's.
    """
    requests, total, rate = len(tested), float(tested.sum()), float(passed.sum() / tested.sum())
    residual = passed - rate * tested
    variance = requests / max(requests - 1, 1) * float(residual @ residual) / total**2
    if requests == 1 or variance == 0:
        return wilson(total, float(passed.sum()), level)
    reach = t.ppf((1 + level) / 2, requests - 1) * np.sqrt(variance) / (rate * (1 - rate))
    return Estimate(rate, float(expit(logit(rate) - reach)), float(expit(logit(rate) + reach)))


def binomial_log_likelihood(tested: Array | float, passed: Array | float) -> float:
    """Greatest log-likelihood of binomial cells, each with its own probability, up to the ordering of the tests."""
    tested, passed = np.asarray(tested, dtype=np.float64), np.asarray(passed, dtype=np.float64)
    rate = passed / np.maximum(tested, 1)
    return float((xlogy(passed, rate) + xlog1py(tested - passed, -rate)).sum())


def fit_beta(tested: Array, passed: Array) -> tuple[float, float, float]:
    """Maximum likelihood of requests whose alphas are Beta(a, b): `tested` and `passed` are [requests].

    A request's rounds multiply to alpha^passed * (1 - alpha)^(tested - passed), whose mean under Beta(a, b) is
    B(a + passed, b + failed) / B(a, b) (the censored beta-geometric likelihood).

    Returns:
        a, b, and the log-likelihood. The concentration a + b is searched in [0.1, 10^5]: at the upper end requests do
        not differ.
    """
    failed = tested - passed
    rate = (passed.sum() + 0.5) / (tested.sum() + 1)

    def loss(free: Array) -> float:
        a, b = _beta_parameters(free)
        return -float((betaln(a + passed, b + failed) - betaln(a, b)).sum())

    starts = [np.array([logit(rate), np.log(size)]) for size in (3.0, 30.0, 1000.0)]
    bounds = [(-12.0, 12.0), (np.log(0.1), np.log(1e5))]
    found = min((minimize(loss, start, method="L-BFGS-B", bounds=bounds) for start in starts), key=lambda r: r.fun)
    a, b = _beta_parameters(found.x)
    return a, b, -float(found.fun)


def _beta_parameters(free: Array) -> tuple[float, float]:
    mean, size = float(expit(free[0])), float(np.exp(free[1]))
    return mean * size, (1 - mean) * size


def _probabilities(rounds: pd.DataFrame, drafted: NDArray[np.int64], depth: int) -> Array:
    """min(1, p/q) as [rounds, depth], 0 beyond what was drafted."""
    if not has_probabilities(rounds):
        raise ValueError("a round lacks accept_probability; fit from accept and reject instead (probabilities=False)")
    width = max(depth, int(drafted.max()))
    table = np.zeros((len(rounds), width))
    rows = [row for row, count in zip(rounds["accept_probability"], drafted, strict=True) if count]
    table[np.arange(width) < drafted[:, None]] = np.concatenate(rows)
    return table[:, :depth]


def _worth(values: Array) -> float:
    """Accept-or-reject tests that one probability is worth: the ratio of their variances, held in [1, 10]."""
    mean, variance = float(values.mean()), float(values.var())
    coin = mean * (1 - mean)
    return max(coin / max(variance, coin / MOST_WORTH), 1.0) if coin > 0 else 1.0
