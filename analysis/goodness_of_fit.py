"""Is acceptance iid? Two tests that say when it is not, and where."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import chi2

from analysis.fit.acceptance import binomial_log_likelihood, count_acceptance

Array = NDArray[np.float64]

LEAST_EXPECTED = 5.0


@dataclass(frozen=True)
class TestResult:
    """A statistic and the chance of one at least as large if acceptance is iid."""

    __test__ = False  # not a test case of pytest

    statistic: float
    p_value: float


@dataclass(frozen=True)
class GoodnessOfFit:
    """Both tests, and their joint verdict at a false-alarm rate of 5%."""

    positions: TestResult
    """do positions of the draft differ? G-test, chi-square"""
    requests: TestResult
    """do requests differ more than their tokens' coin flips? permutation test"""

    @property
    def iid_rejected(self) -> bool:
        """Whether either test rejects at 2.5% (Bonferroni over the two)."""
        return min(self.positions.p_value, self.requests.p_value) < 0.025

    @property
    def verdict(self) -> str:
        """The outcome in words."""
        found = [
            name
            for name, test in (("positions differ", self.positions), ("requests differ", self.requests))
            if test.p_value < 0.025
        ]
        return "iid fits" if not found else "not iid: " + " and ".join(found)


def goodness_of_fit(rounds: pd.DataFrame, rng: np.random.Generator, permutations: int = 999) -> GoodnessOfFit:
    """Test the iid model on the rounds of one draft.

    Raises:
        ValueError: no drafted token was tested.
    """
    return GoodnessOfFit(position_test(rounds), request_test(rounds, rng, permutations))


def position_test(rounds: pd.DataFrame) -> TestResult:
    """Likelihood-ratio test of one alpha against one conditional acceptance per position.

    Conditional acceptances are a saturated model of the accepted counts, so where nothing is cut this is the G-test of
    the accepted-token histogram against the truncated geometric distribution; with cuts it stays right, because it
    counts only tokens that were tested. Positions are pooled from the deep end until each cell expects at least 5
    passes and 5 failures (Cochran 1954).
    """
    counts = count_acceptance(rounds)
    tested, passed = counts.tested.sum(axis=0), counts.passed.sum(axis=0)
    alpha = passed.sum() / tested.sum()
    cells: list[tuple[float, float]] = []
    waiting = np.zeros(2)
    for cell in np.column_stack([tested, passed])[::-1]:
        waiting += cell
        if waiting[0] * min(alpha, 1 - alpha) >= LEAST_EXPECTED:
            cells.append((waiting[0], waiting[1]))
            waiting = np.zeros(2)
    if len(cells) < 2:
        return TestResult(0.0, 1.0)
    # The shallowest positions may fall short; they join the cell next to them.
    cells[-1] = (cells[-1][0] + waiting[0], cells[-1][1] + waiting[1])
    pooled = np.array(cells)
    statistic = 2 * (
        binomial_log_likelihood(pooled[:, 0], pooled[:, 1]) - binomial_log_likelihood(tested.sum(), passed.sum())
    )
    return TestResult(statistic, float(chi2.sf(statistic, len(cells) - 1)))


def request_test(rounds: pd.DataFrame, rng: np.random.Generator, permutations: int = 999) -> TestResult:
    """Permutation test of overdispersion between requests.

    The statistic is Pearson's, the sum over requests of (passed - alpha * tested)^2 / tested. If requests do not differ
    then rounds are exchangeable between them, so shuffling rounds among requests gives its distribution, however
    positions differ and however few tokens a request has.
    """
    drafted, accepted, emitted = (rounds[name].to_numpy(np.float64) for name in ("drafted", "accepted", "emitted"))
    tests = np.minimum(drafted, emitted)
    passed = np.minimum(accepted, tests)
    request = pd.factorize(rounds["request_id"])[0]
    kept = tests > 0
    request, tests, passed = request[kept], tests[kept], passed[kept]
    order = np.argsort(request, kind="stable")
    starts = np.flatnonzero(np.diff(request[order], prepend=-1))
    if len(starts) < 2:
        return TestResult(0.0, 1.0)
    residual = passed - passed.sum() / tests.sum() * tests
    shuffled = rng.permuted(np.tile(np.arange(len(tests)), (permutations, 1)), axis=1)
    which = np.vstack([order, shuffled])
    spread = np.add.reduceat(residual[which], starts, axis=1) ** 2 / np.add.reduceat(tests[which], starts, axis=1)
    statistic = spread.sum(axis=1)
    extreme = int((statistic[1:] >= statistic[0] - 1e-9).sum())
    return TestResult(float(statistic[0]), (1 + extreme) / (1 + permutations))
