"""Statistical tests compare a mean with its closed form within 4 standard errors: 6.3e-5 false alarms a cell."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import beta

from sim.acceptance import IidAcceptance
from sim.confidence import ConfidenceAcceptance
from sim.controllers import ConfidenceThreshold, Controller, OffAboveLoad, RejectionThreshold
from sim.engine import Engine, run_rounds, simulate, simulate_speedup
from sim.latency import AffineLatency, ConstantLatency
from sim.records import check_rounds
from sim.scenario import Scenario

MODELS = {
    "calibrated": ConfidenceAcceptance(4, 1),
    "too sure": ConfidenceAcceptance(2, 2, calibration=2.5),
    "too modest": ConfidenceAcceptance(0.7, 0.4, calibration=0.3),
    "always accepted": ConfidenceAcceptance(1, 1, calibration=0.0),
}
RATIOS = Scenario(ConstantLatency(1.0), ConstantLatency(0.1), ConfidenceAcceptance(4, 1), rounds=20_000)


def drawn(model: ConfidenceAcceptance, controller: Controller, rounds: int = 50_000, seed: int = 0) -> np.ndarray:
    """Drafted and accepted tokens of one request's rounds [2, rounds]."""
    rng = np.random.default_rng(seed)
    return np.array(model.sample_confident(rng, controller.max_gamma, rounds, 1, controller.keep_drafting))[:, 0]


def check_mean(values: np.ndarray, expected: float) -> None:
    assert abs(values.mean() - expected) <= 4 * values.std() / math.sqrt(len(values)) + 1e-12


@pytest.mark.parametrize("name", MODELS)
def test_alpha_is_the_mean_chance_of_acceptance(name: str) -> None:
    model = MODELS[name]
    mean, _ = quad(lambda c: c**model.calibration * beta.pdf(c, model.a, model.b), 0, 1)
    assert model.alpha == pytest.approx(mean, rel=1e-6)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("gamma", [0, 1, 5])
def test_block_efficiency_matches_leviathan_eq_1_at_the_mean_chance(name: str, gamma: int) -> None:
    """12 cells: false alarms 0.08%."""
    model = MODELS[name]
    draws = model.sample(np.random.default_rng(1), gamma, rounds=50_000)
    assert draws.drafted.strides == (0, 0), "every round drafts as much"
    check_mean(1.0 + draws.accepted[0], model.expected_block_efficiency(gamma))
    assert model.expected_block_efficiency(gamma) == IidAcceptance(model.alpha).expected_block_efficiency(gamma)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("gamma", "threshold"), [(1, 0.5), (4, 0.3), (4, 0.7), (12, 0.8), (12, 0.0), (12, 1.0)])
def test_rounds_under_a_threshold_match_their_closed_form(name: str, gamma: int, threshold: float) -> None:
    """24 cells of 2 means: false alarms 0.3%. The mutant takes confidence and acceptance for independent."""
    model = MODELS[name]
    drafted, accepted = drawn(model, ConfidenceThreshold(gamma, threshold))
    expected = model.expected_round(gamma, threshold)
    check_mean(drafted, expected.drafted)
    check_mean(1 + accepted, expected.emitted)
    if name == "too sure" and (gamma, threshold) == (12, 0.8):
        passing = model.expected_round(2, threshold).drafted - 1
        mutant = 1 + model.alpha * ((passing * model.alpha) ** np.arange(gamma)).sum()
        assert abs(1 + accepted.mean() - mutant) > 4 * accepted.std() / math.sqrt(len(accepted))


def test_a_threshold_of_0_never_stops_and_one_of_1_always_does() -> None:
    model = MODELS["calibrated"]
    always = model.sample(np.random.default_rng(0), 6, 1000)
    for gamma in (1, 6):
        drafted, accepted = drawn(model, ConfidenceThreshold(gamma, 0.0), 1000)
        assert (drafted == gamma).all()
        np.testing.assert_array_equal(accepted, np.minimum(always.accepted[0], gamma), "the same random numbers")
    assert model.expected_round(6, 0.0) == pytest.approx((6, model.expected_block_efficiency(6)))
    assert (drawn(model, ConfidenceThreshold(6, 1.0), 1000)[0] == 1).all()
    assert model.expected_round(6, 1.0) == pytest.approx((1, 1 + model.alpha))
    assert model.expected_round(0, 0.5) == (0, 1)


def test_a_stopped_draft_accepts_what_fits_of_the_whole_one() -> None:
    model = MODELS["too sure"]
    whole = drawn(model, ConfidenceThreshold(8, 0.0))
    for controller in (ConfidenceThreshold(8, 0.6), RejectionThreshold(8, 0.6), ConfidenceThreshold(8, 0.2, "entropy")):
        drafted, accepted = drawn(model, controller)
        np.testing.assert_array_equal(accepted, np.minimum(whole[1], drafted))
        assert len(set(drafted.tolist())) > 3


def test_entropy_is_that_of_the_law_it_describes() -> None:
    """Confidence on one token, the rest on 7 others."""
    model = ConfidenceAcceptance(1, 1, tail=7)
    for c in (0.0, 0.125, 0.4, 0.9, 1.0):
        law = np.array([c] + [(1 - c) / 7] * 7)
        expected = -sum(p * math.log(p) for p in law if p)
        assert model.entropy(c) == pytest.approx(expected, abs=1e-12)
    assert model.entropy(0.125) == pytest.approx(math.log(8)), "the most that 8 tokens have"
    assert (np.diff(model.entropy(np.linspace(0.125, 1, 50))) < 0).all()


def test_adaedl_s_entropy_rule_is_a_confidence_threshold_here() -> None:
    """Entropy falls as confidence rises, so there is one confidence below which AdaEDL's bound stops the draft."""
    model = ConfidenceAcceptance(4, 1, tail=50)
    rule = ConfidenceThreshold(8, 0.5, "entropy")
    grid = np.linspace(1 / 51, 1, 200_001)
    edge = float(grid[np.argmax(rule.keep_drafting(grid, model.entropy(grid), grid))])
    np.testing.assert_array_equal(drawn(model, rule), drawn(model, ConfidenceThreshold(8, edge)))


@pytest.mark.parametrize("threshold", [0.2, 0.5])
def test_rejection_drafts_as_the_product_of_confidences_says(threshold: float) -> None:
    """E[drafted] at gamma 3 is 1 + P(c1 >= 1 - h) + P(c1 c2 >= 1 - h); 2 cells: false alarms 0.013%.

    The mutant goes by the last token's confidence alone; power above 0.999.
    """
    model = MODELS["calibrated"]
    least = 1 - threshold
    both, _ = quad(lambda c: beta.pdf(c, 4, 1) * beta.sf(least / c, 4, 1), least, 1)
    drafted = drawn(model, RejectionThreshold(3, threshold))[0]
    check_mean(drafted, 1 + beta.sf(least, 4, 1) + both)
    mutant = drawn(model, ConfidenceThreshold(3, least))[0]
    assert abs(mutant.mean() - drafted.mean()) > 4 * drafted.std() / math.sqrt(len(drafted))


def test_the_best_rejection_threshold_beats_the_best_confidence_threshold() -> None:
    """SpecDec++'s theorem: with known chances the best policy goes by the chance that some token is rejected.

    The best of 9 thresholds each, on the same rounds; the lead is 16 standard errors at this size. A product that
    leaves out the last token has none.
    """
    grid = np.linspace(0.1, 0.9, 9)
    best = {}
    for kind in (ConfidenceThreshold, RejectionThreshold):
        runs = [drawn(ConfidenceAcceptance(1.2, 0.6), kind(10, float(threshold)), 20_000) for threshold in grid]
        best[kind] = max(runs, key=lambda run: (1 + run[1]).sum() / (1 + 0.1 * run[0]).sum())
    drafted, accepted = best[RejectionThreshold]
    rate = (1 + accepted).sum() / (1 + 0.1 * drafted).sum()
    their_drafted, their_accepted = best[ConfidenceThreshold]
    lead = (accepted - rate * 0.1 * drafted) - (their_accepted - rate * 0.1 * their_drafted)
    assert lead.mean() > 4 * lead.std() / math.sqrt(len(lead))


@pytest.mark.parametrize("engine", ["numpy", "simpy"])
@pytest.mark.parametrize("threshold", [0.5, 0.8])
def test_speedup_under_a_threshold_matches_its_closed_form(engine: Engine, threshold: float) -> None:
    """Emitted tokens over drafted ones at 0.1 and a verification at 1; the interval is 2 standard errors of 60 batches.

    4 cells, 4 standard errors of a Student t with 59 degrees: false alarms 4 * 1.8e-4 = 0.07%.
    """
    scenario = replace(RATIOS, controller=ConfidenceThreshold(8, threshold))
    result = simulate_speedup(scenario, 1, engine)
    expected = ConfidenceAcceptance(4, 1).expected_round(8, threshold)
    lo, hi = result["speedup_ci"]
    assert abs(result["speedup"] - expected.emitted / (1 + 0.1 * expected.drafted)) <= 4 * (hi - lo) / 2 / 2.0


def test_both_engines_give_the_same_table_bit_for_bit() -> None:
    scenario = Scenario(
        AffineLatency(0.9, 0.1, 1e-4), AffineLatency(0.05, 0.01, 1e-5), ConfidenceAcceptance(4, 1), prompt_tokens=40,
        max_new_tokens=200, controller=RejectionThreshold(8, 0.6), requests=3, request_devices="own",
    )  # fmt: skip
    table = simulate(scenario, 5)
    check_rounds(table)
    assert table.equals(simulate(scenario, 5, "simpy"))
    check_rounds(simulate(replace(scenario, request_devices="shared", last_round="shortened"), 5))


def test_a_stopping_controller_can_be_switched_off_above_a_load() -> None:
    """A simulated request is a batch of one, so nothing changes."""
    inner = ConfidenceThreshold(8, 0.6)
    on = run_rounds(replace(RATIOS, rounds=200, controller=inner), 2)
    off_above = run_rounds(replace(RATIOS, rounds=200, controller=OffAboveLoad(inner, 1)), 2)
    np.testing.assert_array_equal(on.drafted, off_above.drafted)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ConfidenceAcceptance(0.0, 1), r"Beta's a must be finite and > 0, got 0\.0"),
        (lambda: ConfidenceAcceptance(1, math.inf), "Beta's b must be finite and > 0, got inf"),
        (lambda: ConfidenceAcceptance(1, 1, -0.5), r"calibration must be finite and >= 0, got -0\.5"),
        (lambda: ConfidenceAcceptance(1, 1, tail=0.5), r"tail must be finite and >= 1 token, got 0\.5"),
        (lambda: MODELS["calibrated"].expected_round(4, 40), r"threshold must be in \[0, 1\], got 40"),
        (lambda: MODELS["calibrated"].expected_round(-1, 0.4), "gamma must be a whole number >= 0, got -1"),
    ],
)
def test_bad_values_are_named(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
