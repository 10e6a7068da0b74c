from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import f_oneway

from analysis.diagnose.acceptance_findings import (
    FALSE_ALARM_RATE,
    STRONG_RATIO,
    better_half,
    falls_over_log,
    find_reasons,
)
from analysis.diagnose.trends import residuals, trend, variance_test
from sim.acceptance import AcceptanceModel, BetaAcceptance, MarkovAcceptance, PartialProposals, PerPositionAcceptance
from sim.engine import simulate
from sim.latency import ConstantLatency
from sim.scenario import Scenario
from tests.analysis.planted import falling_rounds

CONTEXT, TIME = "acceptance_falls_with_context", "acceptance_falls_over_time"
UNREPRESENTATIVE = "unrepresentative_prompts"


def speculative(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["gamma"] > 0].reset_index(drop=True)


@pytest.mark.parametrize(
    ("name", "falls"), [(CONTEXT, {"by_context": 0.6}), (TIME, {"by_output": 1.2}), (TIME, {"by_clock": 0.5})]
)
def test_a_fall_of_acceptance_is_found_and_told_from_others(name: str, falls: dict[str, float]) -> None:
    """Prompts of many lengths tell context from output. In 12 runs; power was 30 of 30 on other seeds."""
    found = []
    for seed in range(12):
        findings = find_reasons(speculative(falling_rounds(np.random.default_rng([1, seed]), **falls)))
        found.append({one.name for one in findings} - {UNREPRESENTATIVE})
    assert sum(names == {name} for names in found) >= 11, found


@pytest.mark.parametrize(
    ("name", "requests", "falls"), [(CONTEXT, 1, {"by_context": 0.2}), (TIME, 3, {"by_clock": 0.9})]
)
def test_a_fall_is_found_in_few_requests(name: str, requests: int, falls: dict[str, float]) -> None:
    """Of one request, successive parts tell; of several on one clock, that the next does not start afresh."""
    found = []
    for seed in range(12):
        rng = np.random.default_rng([2, seed])
        table = speculative(falling_rounds(rng, requests=requests, tokens=3000 // requests, **falls))
        if "by_clock" in falls:  # along the whole run, within requests too
            table = run_down(table, rng)
        found.append({one.name for one in find_reasons(table)} - {UNREPRESENTATIVE})
    assert sum(names == {name} for names in found) >= 11, found


def run_down(table: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """The same with acceptance that falls with every round, from 0.9 to 0.2."""
    share = np.arange(len(table)) / len(table)
    passes = rng.random((len(table), 4)) < (0.9 - 0.7 * share)[:, None]
    accepted = np.minimum(np.cumprod(passes, axis=1).sum(axis=1), table["drafted"])
    return table.assign(accepted=accepted, emitted=accepted + 1)


def test_longer_prompts_that_are_accepted_less_are_found_where_outputs_are_short() -> None:
    table = speculative(falling_rounds(np.random.default_rng(13), by_context=0.8, tokens=30, requests=60))
    findings = {one.name: one for one in find_reasons(table)}
    assert CONTEXT in findings
    evidence = findings[CONTEXT].evidence
    assert evidence["mean_context_first_quarter"] < evidence["mean_context_last_quarter"]
    assert table.loc[findings[CONTEXT].reference, "context"].max() <= table["context"].quantile(0.25)


@pytest.mark.parametrize(
    "acceptance",
    [
        PerPositionAcceptance((0.6, 0.8, 0.9)),
        MarkovAcceptance(0.85, 0.5),
        BetaAcceptance(30, 6),
        PartialProposals(PerPositionAcceptance((0.7, 0.9)), (0.5, 0.2, 0.3)),
    ],
)
def test_what_is_the_same_everywhere_raises_no_alarm(acceptance: AcceptanceModel) -> None:
    """Four tests at 1% in 60 runs: more than 10 alarms have a chance of 1 in 10,000, a test at 15% gives about 11."""
    scenario = Scenario(
        ConstantLatency(1.0), None, acceptance, 3, requests=24, max_new_tokens=60, last_round="shortened",
        request_devices="own",
    )  # fmt: skip
    alarms = sum(len(find_reasons(simulate(scenario, seed))) for seed in range(60))
    assert alarms <= 10


def test_few_requests_raise_no_alarm_either() -> None:
    """One test at 1% in 200 runs of 1 to 5 requests: more than 8 alarms have a chance of 1 in 2,000."""
    alarms = 0
    for seed in range(200):
        scenario = Scenario(
            ConstantLatency(1.0), None, BetaAcceptance(30, 6), 3, requests=1 + seed % 5, rounds=100,
            request_devices="own",
        )  # fmt: skip
        alarms += sum(one.name != UNREPRESENTATIVE for one in find_reasons(simulate(scenario, seed)))
    assert alarms <= 8


def test_prompts_that_differ_strongly_are_found_with_their_categories() -> None:
    rng = np.random.default_rng(3)
    table = falling_rounds(rng, by_clock=0.8, tokens=100)
    number = table["request_id"].astype(int)
    table = speculative(table.assign(category=np.where(number < 12, "code", "chat"), start_seconds=0.0))
    (finding,) = find_reasons(table)
    assert finding.name == UNREPRESENTATIVE
    assert list(finding.evidence["block_efficiency_by_category"]) == ["chat", "code"]
    good, poor = (finding.evidence[f"block_efficiency_{half}_half"] for half in ("better", "other"))
    assert good > STRONG_RATIO * poor
    assert table.loc[finding.reference, "emitted"].mean() == pytest.approx(good)
    assert (table.loc[finding.reference, "category"] == "code").mean() > 0.8


def test_the_better_half_is_not_better_by_luck() -> None:
    """Of 400 requests that do not differ, 8 rounds each, within 4 standard errors of equal.

    Halves that are chosen and judged on the same rounds differ by 1.2 times.
    """
    accepted = np.random.default_rng(4).binomial(4, 0.4, (400, 8))
    means = np.sort(1 + accepted.mean(axis=1))
    assert means[200:].mean() > 1.2 * means[:200].mean()
    table = pd.DataFrame({"request_id": np.repeat(np.arange(400).astype(str), 8), "emitted": 1 + accepted.ravel()})
    better, other = (table.loc[half, "emitted"] for half in better_half(table))
    assert len(better) == len(other) == 1600
    assert abs(better.mean() - other.mean()) < 4 * np.sqrt(2 / 1600) * table["emitted"].std()
    assert not np.any(better_half(table.head(24)))


def test_residuals_have_mean_zero_where_positions_differ_and_drafts_are_cut_short() -> None:
    rng = np.random.default_rng(5)
    drafted = rng.integers(0, 5, 4000)
    passes = rng.random((4000, 4)) < [0.3, 0.9, 0.5, 0.7]
    accepted = np.minimum(np.cumprod(passes, axis=1).sum(axis=1), drafted)
    table = pd.DataFrame({"drafted": drafted, "accepted": accepted, "emitted": accepted + 1})
    residual, tested = residuals(table)
    np.testing.assert_array_equal(tested, np.minimum(drafted, accepted + 1))
    for length in range(5):
        own = residual[drafted == length]
        assert abs(own.mean()) <= 4 * own.std() / np.sqrt(len(own))


def test_trend_is_least_squares_within_groups() -> None:
    rng = np.random.default_rng(6)
    group = np.repeat(np.arange(20), 30)
    x = rng.random(600) + group
    tested = np.ones(600)
    residual = 0.5 * x - 3 * group + rng.standard_normal(600) * 0.1
    found = trend(residual, tested, x, group, group)
    assert abs(found.slope - 0.5) < 4 * found.error
    assert found.error == pytest.approx(0.1 / np.sqrt(600 / 12), rel=0.5)
    assert found.p_value > 1 - 1e-6
    assert trend(-residual, tested, x, group, group).p_value < 1e-6
    assert trend(residual, tested, group.astype(float), group, group).p_value == 1


def test_clustering_allows_for_rounds_that_depend_on_each_other() -> None:
    """Random walks within 20 clusters have trends by chance; without clusters most would be called significant."""
    rng = np.random.default_rng(7)
    group, x = np.repeat(np.arange(20), 50), np.tile(np.arange(50.0), 20)
    alone = np.arange(1000)
    walks = rng.standard_normal((200, 20, 50)).cumsum(axis=2).reshape(200, 1000)
    clustered = [trend(walk, np.ones(1000), x, group, group).p_value < FALSE_ALARM_RATE for walk in walks]
    naive = [trend(walk, np.ones(1000), x, group, alone).p_value < FALSE_ALARM_RATE for walk in walks]
    assert sum(clustered) <= 8  # of 2 expected; a false alarm in 4,000 seeds
    assert sum(naive) > 40


def test_variance_test_is_scipy_s() -> None:
    rng = np.random.default_rng(8)
    group = rng.integers(0, 6, 100)
    values = rng.standard_normal(100) + 0.3 * group
    expected = f_oneway(*(values[group == one] for one in range(6))).pvalue
    assert variance_test(values, group) == pytest.approx(expected)
    assert variance_test(values, np.arange(100)) == 1
    assert variance_test(np.ones(100), group) == 1
    assert variance_test(group.astype(float), group) == 0


def test_a_fall_over_an_engine_s_log_is_found() -> None:
    rng = np.random.default_rng(9)
    rounds = rng.integers(200, 400, 200)
    steady, falling = (
        pd.DataFrame(
            {
                "rounds": rounds,
                "emitted": rounds + rng.binomial(3 * rounds, 0.6 - slope * np.arange(200) / 200),
                "elapsed_seconds": 10.0 * np.arange(200),
            }
        )
        for slope in (0.0, 0.2)
    )
    assert falls_over_log(steady) is None
    found = falls_over_log(falling)
    assert found is not None
    assert found.name == TIME
    assert found.evidence["block_efficiency_first_quarter"] > found.evidence["block_efficiency_last_quarter"] + 0.3
    assert falls_over_log(falling.assign(elapsed_seconds=np.nan)) is not None
    assert falls_over_log(falling.head(10)) is None
