from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest

from analysis.diagnose.speedup_loss import Lengths, RoundCosts, as_seconds, at_better_length, log_losses, shapley
from analysis.fit.costs import PerRound
from sim.acceptance import PerPositionAcceptance
from sim.engine import simulate
from sim.latency import AffineLatency
from sim.scenario import Scenario


def some_costs(rng: np.random.Generator, rows: int = 50) -> RoundCosts:
    gamma = rng.integers(1, 9, rows).astype(np.float64)
    return RoundCosts(
        tokens=1 + gamma * rng.random(rows),
        ideal_tokens=gamma + 1,
        draft_seconds=rng.exponential(0.01, rows),
        verify_seconds=rng.exponential(0.03, rows),
        other_seconds=rng.exponential(0.002, rows),
        step_forward_seconds=rng.exponential(0.02, rows),
        step_other_seconds=rng.exponential(0.001, rows),
    )


def test_shapley_values_of_the_glove_game() -> None:
    """One left glove and two right ones; a pair is worth 1. The values 2/3, 1/6, 1/6 are in every textbook."""
    worth = shapley(lambda who: np.asarray(float(who[0] and (who[1] or who[2]))), 3)
    np.testing.assert_allclose(worth, [2 / 3, 1 / 6, 1 / 6])


def test_shapley_values_are_the_mean_over_all_orders() -> None:
    costs = some_costs(np.random.default_rng(0))
    ideal = replace(
        costs,
        tokens=costs.ideal_tokens,
        draft_seconds=np.zeros(50),
        verify_seconds=costs.step_forward_seconds,
        other_seconds=costs.step_other_seconds,
    )
    names = ("tokens", "draft_seconds", "verify_seconds", "other_seconds")
    mean = np.zeros((4, 50))
    for order in permutations(range(4)):
        at, before = ideal, np.log(ideal.seconds_per_token)
        for factor in order:
            at = replace(at, **{names[factor]: getattr(costs, names[factor])})
            mean[factor] += (np.log(at.seconds_per_token) - before) / 24
            before = np.log(at.seconds_per_token)
    np.testing.assert_allclose(log_losses(costs), mean, atol=1e-12)


def test_losses_add_up_in_logs_and_in_seconds() -> None:
    costs = some_costs(np.random.default_rng(1))
    losses = log_losses(costs)
    np.testing.assert_allclose(losses.sum(axis=0), np.log(costs.ideal_tokens / costs.speedup))
    seconds = as_seconds(losses, costs.seconds_per_token, costs.ideal_seconds_per_token)
    np.testing.assert_allclose(seconds.sum(axis=0), costs.seconds_per_token - costs.ideal_seconds_per_token)
    np.testing.assert_allclose(losses[0], np.log(costs.ideal_tokens / costs.tokens))


def test_no_loss_is_no_seconds() -> None:
    time = np.array([0.01])
    assert as_seconds(np.zeros((4, 1)), time, time).tolist() == [[0.0]] * 4
    assert as_seconds(np.array([1e-12]), time, time) == pytest.approx(1e-14)


def test_losses_do_not_depend_on_the_unit_of_time() -> None:
    costs = some_costs(np.random.default_rng(2))
    names = ("draft_seconds", "verify_seconds", "other_seconds", "step_forward_seconds", "step_other_seconds")
    slower = replace(costs, **{name: 7 * getattr(costs, name) for name in names})
    np.testing.assert_allclose(log_losses(slower), log_losses(costs))


def test_a_shorter_draft_costs_what_a_simulation_of_it_does() -> None:
    """From gamma 6 to 2, 40,000 rounds each: within 4 standard errors of tokens per round, of a speedup near 1.6."""
    conditional = PerPositionAcceptance((0.7, 0.8, 0.6))
    target, draft = AffineLatency(0.02, 0.001), AffineLatency(0.002)
    rounds, shorter = (
        simulate(Scenario(target, draft, conditional, gamma, rounds=40_000, overhead_seconds=0.003), 5 + gamma)
        for gamma in (6, 2)
    )
    one = np.ones(1)
    costs, expected = (
        RoundCosts(
            one * table["emitted"].mean(), one * (gamma + 1), *(one * table[f"{p}_seconds"].mean() for p in
            ("draft", "verify", "other")), 0.021 * one, 0.0005 * one,
        )
        for table, gamma in ((rounds, 6), (shorter, 2))
    )  # fmt: skip
    tokens = one * np.minimum(rounds["accepted"], 2).mean() + 1
    found = Lengths.fit(rounds).shortened(costs, tokens, 3 * one, 6 * one, 2 * one)
    error = shorter["emitted"].std() / np.sqrt(40_000)
    assert abs(found.tokens - expected.tokens) < 4 * np.sqrt(2) * error
    for name in ("draft_seconds", "verify_seconds", "other_seconds", "ideal_tokens"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name))


def test_a_lookup_costs_the_same_however_much_it_finds() -> None:
    """What a round costs is fitted where draft lengths vary; a fixed cost does not shrink with them."""
    one = np.ones(1)
    costs = RoundCosts(2 * one, 5 * one, one, 3 * one, one, 2 * one, one)
    fixed = Lengths(PerRound(1.0, 0.0), PerRound(1.0, 0.0)).shortened(costs, one, 2 * one, 4 * one, one)
    assert fixed.draft_seconds == 1
    assert fixed.verify_seconds == 2.25
    per_token = Lengths(PerRound(0.0, 2.0), PerRound(1.0, 0.5)).shortened(costs, one, 2 * one, 4 * one, one)
    assert per_token.draft_seconds == 0.25
    assert per_token.other_seconds == 0.5


def test_the_factors_share_what_a_shorter_draft_would_not_gain() -> None:
    losses, shorter = np.array([[2.0], [1.0], [0.5], [0.0]]), np.array([[0.3], [0.6], [0.1], [0.0]])
    rest = at_better_length(np.array([0.5]), losses, shorter)
    assert rest.sum() + 0.5 == pytest.approx(losses.sum())
    np.testing.assert_allclose(rest, 3 * shorter)
    none = at_better_length(np.array([0.5]), losses, np.zeros((4, 1)))
    np.testing.assert_allclose(none, losses * 3 / 3.5)
