"""Statistical tests compare a rate with its closed form within 4 standard errors: 6.3e-5 false alarms a cell."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.special import stdtrit

from sim.acceptance import IidAcceptance, MarkovAcceptance, PerPositionAcceptance
from sim.engine import simulate_speedup
from sim.latency import AffineLatency, ConstantLatency, TableLatency
from sim.records import ROUND_SECONDS, check_rounds, summarise
from sim.scenario import Scenario
from sim.theory import expected_tokens, speedup
from sim.topologies.pearl import pearl
from sim.topologies.theory import pearl_cycle, pearl_tokens_per_second

BASE = Scenario(
    ConstantLatency(1.0), ConstantLatency(0.125), IidAcceptance(0.8), 8, max_new_tokens=10_000, draft_device="own"
)
AFFINE = replace(
    BASE,
    target=AffineLatency(0.4, 0.02, 1e-4),
    draft=AffineLatency(0.05, 0.01, 1e-5),
    gamma=5,
    prompt_tokens=30,
    max_new_tokens=400,
    overhead_seconds=0.01,
    category="chat",
)


def two_prices(gamma: int, verify: float) -> TableLatency:
    """1 s for one new token, `verify` for gamma."""
    rows = [{"batch": 1, "new_tokens": n, "context": 0, "seconds": s} for n, s in ((1, 1.0), (gamma, verify))]
    return TableLatency(rows)


def error_of(summary: dict[str, float]) -> float:
    """The standard error behind a speedup's interval of 60 batches."""
    return (summary["speedup_hi"] - summary["speedup_lo"]) / 2 / float(stdtrit(59, 0.975))


@pytest.mark.parametrize("conditional", [(0.2,), (0.5,), (0.8,), (0.95,), (0.9, 0.5, 0.7), (0.3, 0.99, 0.9, 0.6)])
@pytest.mark.parametrize(("gamma", "draft", "verify"), [(1, 0.1, 1.0), (4, 0.1, 1.3), (8, 0.125, 1.0), (8, 0.3, 1.2)])
def test_rate_matches_renewal_reward(conditional: tuple[float, ...], gamma: int, draft: float, verify: float) -> None:
    """24 cells: false alarms 24 * 6.3e-5 = 0.15%."""
    scenario = replace(
        BASE,
        target=two_prices(gamma, verify) if gamma > 1 else ConstantLatency(1.0),
        draft=ConstantLatency(draft),
        acceptance=PerPositionAcceptance(conditional),
        gamma=gamma,
    )
    run = pearl(scenario, 11)
    expected = pearl_tokens_per_second(conditional, gamma, draft, 1.0, verify)
    assert abs(run.summary["speedup"] - expected) <= 4 * error_of(run.summary) + 1e-3 * (gamma == 1)


def test_that_check_catches_a_bonus_token_and_the_formula_of_draft_then_verify() -> None:
    """A step that is accepted whole already emits its last token as the draft's own; a bonus would count it twice."""
    run = pearl(replace(BASE, acceptance=IidAcceptance(0.95)), 11)
    whole = (run.table["drafted"] > 0) & (run.table["accepted"] == run.table["drafted"])
    goes_on = whole & (run.table["drafted"].shift(-1, fill_value=0) > 0)
    expected, error = pearl_tokens_per_second(0.95, 8, 0.125, 1.0, 1.0), error_of(run.summary)
    assert abs((run.summary["tokens"] + goes_on.sum()) / run.summary["seconds"] - expected) > 4 * error
    assert abs(run.summary["speedup"] - speedup(0.95, 8, 0.125)) > 4 * error


def test_draft_length_adapts_to_one_over_one_minus_alpha() -> None:
    """Tokens from one correction to the next, beyond what any fixed draft of 8 reaches."""
    table = pearl(BASE, 3).table
    starts = np.flatnonzero(table["drafted"] == 0)
    tokens = np.add.reduceat(table["emitted"].to_numpy(), starts)[:-1]
    error = tokens.std(ddof=1) / math.sqrt(len(tokens))
    assert abs(tokens.mean() - pearl_cycle(0.8, 8)[0]) <= 4 * error
    assert abs(tokens.mean() - expected_tokens(0.8, 8)) > 4 * error


def test_a_draft_that_is_always_right_hides_its_drafting_and_one_that_never_is_costs_nothing_if_it_is_fast() -> None:
    right = pearl(replace(BASE, acceptance=IidAcceptance(1.0), max_new_tokens=81), 0)
    assert right.table["emitted"].tolist() == [1] + [8] * 10
    assert right.summary["seconds"] == 11
    assert right.summary["wasted_draft_forwards"] == 8 - 1, "what was drafted ahead of the end"
    wrong = pearl(replace(BASE, acceptance=IidAcceptance(0.0), max_new_tokens=50), 0)
    assert wrong.summary["speedup"] == 1
    assert wrong.summary["wasted_draft_forwards"] == wrong.summary["draft_forwards"] == 8 * 50


def test_rejection_wastes_what_was_drafted_ahead() -> None:
    """Two right, then one wrong: pre-verify emits 1, post-verify of 3 finds 1 right and corrects the next."""
    run = pearl(replace(BASE, acceptance=PerPositionAcceptance((1.0, 1.0, 0.0)), gamma=4, max_new_tokens=9), 0)
    assert run.table["drafted"].tolist() == [0, 3] * 3
    assert run.table["accepted"].tolist() == [0, 1] * 3
    assert run.table["emitted"].tolist() == [1, 2] * 3
    assert run.summary["draft_forwards"] == 24
    assert run.summary["wasted_draft_forwards"] == 24 - 6


@pytest.mark.parametrize("scenario", [AFFINE, replace(AFFINE, gamma=1), replace(AFFINE, draft=ConstantLatency(0.5))])
def test_the_table_keeps_its_identities_and_prices_every_row(scenario: Scenario) -> None:
    table = pearl(scenario, 5).table
    check_rounds(table)
    summarise(table)
    assert table["emitted"].sum() == 400
    assert not table["cut"].to_numpy()[:-1].any()
    wall = table[list(ROUND_SECONDS)].sum(axis=1).to_numpy()
    np.testing.assert_allclose(table["start_seconds"], np.cumsum(wall) - wall, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(
        table["verify_seconds"], scenario.target.forward_seconds(1, table["drafted"] + 1, table["context"])
    )
    assert set(table["drafted"]) <= {0, scenario.gamma - 1}
    assert set(table["category"]) == {"chat"}


def test_pearl_beats_draft_then_verify_on_the_same_devices() -> None:
    run = pearl(BASE, 1)
    slower = simulate_speedup(replace(BASE, max_new_tokens=None, rounds=5000), 1)
    assert run.summary["speedup_lo"] > slower["speedup_ci"][1]


def test_seeds_give_identical_runs_and_other_seeds_do_not() -> None:
    pd.testing.assert_frame_equal(pearl(AFFINE, 1).table, pearl(AFFINE, np.random.default_rng(1)).table)
    assert not pearl(AFFINE, 1).table.equals(pearl(AFFINE, 2).table)


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="iid or per-position, got MarkovAcceptance"):
        pearl(replace(BASE, acceptance=MarkovAcceptance(0.9, 0.2)), 0)
    with pytest.raises(ValueError, match="pearl ends at max_new_tokens, got rounds 5"):
        pearl(replace(BASE, max_new_tokens=None, rounds=5), 0)
    with pytest.raises(ValueError, match="pearl has the draft on a device of its own"):
        pearl(replace(BASE, draft_device="shared"), 0)
