from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from analysis.goodness_of_fit import TestResult, goodness_of_fit, position_test, request_test
from sim.acceptance import AcceptanceModel, BetaAcceptance, IidAcceptance, PerPositionAcceptance

RUNS = 300


def outputs_of(model: AcceptanceModel, rng: np.random.Generator, requests: int = 12, tokens: int = 30) -> pd.DataFrame:
    """Outputs of a fixed length, as a run measures them: the last round is cut."""
    drafted, accepted = model.sample(rng, 5, tokens, requests)
    before = np.cumsum(accepted + 1, axis=1) - (accepted + 1)
    happens = before < tokens
    request = np.broadcast_to(np.arange(requests)[:, None], happens.shape)[happens]
    emitted = np.minimum(accepted + 1, tokens - before)[happens]
    return pd.DataFrame(
        {"request_id": request, "drafted": drafted[happens], "accepted": accepted[happens], "emitted": emitted}
    )


def rejection_rate(model: AcceptanceModel, test: Callable[[pd.DataFrame, np.random.Generator], TestResult]) -> float:
    rng = np.random.default_rng(11)
    return float(np.mean([test(outputs_of(model, rng), rng).p_value < 0.05 for _ in range(RUNS)]))


def of_positions(rounds: pd.DataFrame, rng: np.random.Generator) -> TestResult:
    del rng
    return position_test(rounds)


def of_requests(rounds: pd.DataFrame, rng: np.random.Generator) -> TestResult:
    return request_test(rounds, rng, permutations=199)


@pytest.mark.parametrize("test", [of_positions, of_requests])
@pytest.mark.parametrize("alpha", [0.4, 0.8])
def test_false_alarm_rate_is_near_five_percent(
    test: Callable[[pd.DataFrame, np.random.Generator], TestResult], alpha: float
) -> None:
    """300 runs of 12 outputs of 30 tokens: above 0.10 a test that holds 5% comes in 0.02% of seeds.

    Over 1000 runs: positions 0.051 and 0.044, requests 0.056 and 0.026 (at alpha 0.4 and 0.8).
    """
    assert rejection_rate(IidAcceptance(alpha), test) <= 0.10


def test_position_test_has_power_against_falling_acceptance() -> None:
    """Acceptance falling from 0.9 to 0.5 within a draft is found in at least 80% of runs (0.996 of 1000)."""
    assert rejection_rate(PerPositionAcceptance((0.9, 0.8, 0.7, 0.6, 0.5)), of_positions) >= 0.8


def test_request_test_has_power_against_beta_requests_and_keeps_quiet_about_positions() -> None:
    """Requests as Beta(4, 2) are found in at least 80% of runs; positions alone alarm it in no more than 10%.

    Over 1000 runs: 0.976 and 0.037.
    """
    assert rejection_rate(BetaAcceptance(4, 2), of_requests) >= 0.8
    assert rejection_rate(PerPositionAcceptance((0.9, 0.8, 0.7, 0.6, 0.5)), of_requests) <= 0.10


def test_verdict_names_what_differs() -> None:
    rng = np.random.default_rng(0)
    iid = goodness_of_fit(outputs_of(IidAcceptance(0.7), rng, requests=30), rng)
    assert not iid.iid_rejected
    assert iid.verdict == "iid fits"
    positions = goodness_of_fit(outputs_of(PerPositionAcceptance((0.95, 0.4, 0.9, 0.4)), rng, requests=60), rng)
    assert positions.iid_rejected
    assert "positions differ" in positions.verdict
    requests = goodness_of_fit(outputs_of(BetaAcceptance(1, 1), rng, requests=60), rng)
    assert "requests differ" in requests.verdict


def test_too_little_data_gives_no_alarm() -> None:
    rounds = pd.DataFrame({"request_id": ["a", "a"], "drafted": [2, 2], "accepted": [2, 0], "emitted": [3, 1]})
    test = goodness_of_fit(rounds, np.random.default_rng(0))
    assert (test.positions.p_value, test.requests.p_value) == (1.0, 1.0)
