"""Statistical tests compare a mean with its closed form within 4 standard errors: 6.3e-5 false alarms a cell."""

import math
from typing import Any

import numpy as np
import pytest

from sim.acceptance import (
    BLOCK,
    AcceptanceModel,
    BetaAcceptance,
    IidAcceptance,
    MarkovAcceptance,
    PartialProposals,
    PerPositionAcceptance,
    TraceAcceptance,
)

MODELS: dict[str, AcceptanceModel] = {
    "iid": IidAcceptance(0.8),
    "iid, never": IidAcceptance(0.0),
    "iid, always": IidAcceptance(1.0),
    "per position": PerPositionAcceptance((0.9, 0.5, 0.7)),
    "beta": BetaAcceptance(3.0, 1.5),
    "markov, sticky": MarkovAcceptance(0.9, 0.3),
    "markov, alternating": MarkovAcceptance(0.2, 0.9),
    "partial iid": PartialProposals(IidAcceptance(0.8), (0.5, 0.2, 0.1, 0.2)),
    "partial beta": PartialProposals(BetaAcceptance(3.0, 1.5), (0.1, 0.0, 0.9)),
}
TRACE = TraceAcceptance(((1, 3, 2, 5, 1, 1), (4, 1, 2)))


@pytest.mark.parametrize("gamma", [0, 1, 2, 5, 16])
@pytest.mark.parametrize("name", MODELS)
def test_block_efficiency_matches_its_closed_form(name: str, gamma: int) -> None:
    """45 cells: false alarms 45 * 6.3e-5 = 0.3%. Requests are independent, so their means carry the standard error."""
    draws = MODELS[name].sample(np.random.default_rng(1), gamma, rounds=50, requests=4000)
    per_request = 1 + draws.accepted.mean(axis=1)
    error = per_request.std(ddof=1) / math.sqrt(len(per_request))
    assert abs(per_request.mean() - MODELS[name].expected_block_efficiency(gamma)) <= 4 * error + 1e-12


def test_that_check_catches_a_model_that_forgets_the_bonus_on_the_last_position() -> None:
    """The mutant drafts one token less than it says; power at this size is above 0.999 for alpha^gamma >= 0.01."""
    draws = IidAcceptance(0.8).sample(np.random.default_rng(1), 4, rounds=50, requests=4000)
    per_request = 1 + draws.accepted.mean(axis=1)
    error = per_request.std(ddof=1) / math.sqrt(len(per_request))
    assert abs(per_request.mean() - IidAcceptance(0.8).expected_block_efficiency(5)) > 4 * error


@pytest.mark.parametrize("name", [*MODELS, "trace"])
def test_rounds_keep_their_bounds_and_seeds_give_identical_draws(name: str) -> None:
    model: Any = MODELS.get(name, TRACE)
    for gamma in (0, 1, 7, 300):
        one, two = (model.sample(np.random.default_rng(3), gamma, 40, 5) for _ in range(2))
        assert one.drafted.shape == one.accepted.shape == (5, 40)
        assert (one.accepted >= 0).all()
        assert (one.accepted <= one.drafted).all()
        assert (one.drafted <= gamma).all()
        np.testing.assert_array_equal(one.accepted, two.accepted)
        np.testing.assert_array_equal(one.drafted, two.drafted)


def test_accepted_counts_follow_the_truncated_geometric_distribution() -> None:
    """P(j) = alpha^j (1 - alpha), P(gamma) = alpha^gamma; across block borders; 6 cells: false alarms 0.04%."""
    rounds, alpha, gamma = 3 * BLOCK + 17, 0.7, 5
    accepted = IidAcceptance(alpha).sample(np.random.default_rng(4), gamma, rounds).accepted
    expected = np.append(alpha ** np.arange(gamma) * (1 - alpha), alpha**gamma)
    error = np.sqrt(expected * (1 - expected) / rounds)
    assert (np.abs(np.bincount(accepted[0]) / rounds - expected) <= 4 * error).all()


def test_per_position_acceptance_is_the_conditional_it_was_given() -> None:
    """Positions 0-4 given that they were reached; 5 cells: false alarms 0.03%."""
    model = PerPositionAcceptance((0.9, 0.5, 0.7))
    accepted = model.sample(np.random.default_rng(5), 5, 200_000).accepted
    for i, expected in enumerate((0.9, 0.5, 0.7, 0.7, 0.7)):
        reached = (accepted >= i).sum()
        error = math.sqrt(expected * (1 - expected) / reached)
        assert abs((accepted > i).sum() / reached - expected) <= 4 * error


def test_beta_requests_differ_and_iid_ones_do_not() -> None:
    """Between-request variance of gamma = 1 rounds is that of Beta(2, 2), 1/20, and that of sampling, 0.2/1000."""
    accepted = BetaAcceptance(2, 2).sample(np.random.default_rng(6), 1, 1000, 4000).accepted
    assert accepted.mean(axis=1).var() == pytest.approx(1 / 20 + 0.2 / 1000, rel=0.08)
    assert IidAcceptance(0.5).sample(np.random.default_rng(6), 1, 1000, 4000).accepted.mean(axis=1).var() < 0.001


@pytest.mark.parametrize(("after_accept", "after_reject"), [(0.9, 0.3), (0.2, 0.9), (1.0, 0.4), (0.6, 0.6)])
def test_markov_rounds_are_those_of_a_walk_round_by_round(after_accept: float, after_reject: float) -> None:
    """The bulk sampler against a plain loop: P(first accepted | last round whole or not); 8 cells: 0.05%."""
    gamma = 2
    model = MarkovAcceptance(after_accept, after_reject)
    accepted = model.sample(np.random.default_rng(7), gamma, 200, 500).accepted
    whole = accepted[:, :-1] == gamma
    for state, expected in ((whole, after_accept), (~whole, after_reject)):
        count = int(state.sum())
        if count:
            error = math.sqrt(expected * (1 - expected) / count)
            assert abs((accepted[:, 1:][state] > 0).mean() - expected) <= 4 * error


def test_markov_with_equal_chances_is_iid() -> None:
    for gamma in (1, 4, 9):
        expected = IidAcceptance(0.6).expected_block_efficiency(gamma)
        assert MarkovAcceptance(0.6, 0.6).expected_block_efficiency(gamma) == pytest.approx(expected, rel=1e-12)


def test_trace_replays_each_position_and_starts_again_at_its_end() -> None:
    """Trace 0 at gamma 5 visits 0, 1, 4, 5, 0; trace 1 visits 0, then 4 mod 3 = 1, 2, (2 + 2) mod 3 = 1."""
    draws = TRACE.sample(np.random.default_rng(0), 5, rounds=4, requests=3)
    np.testing.assert_array_equal(draws.accepted + 1, [[1, 3, 1, 1], [4, 1, 2, 1], [1, 3, 1, 1]])
    np.testing.assert_array_equal(draws.drafted, 5)
    short = TRACE.sample(np.random.default_rng(0), 1, rounds=4, requests=1)
    np.testing.assert_array_equal(short.accepted + 1, [[1, 2, 2, 1]])


def test_trace_drafts_what_was_available() -> None:
    trace = TraceAcceptance(((3, 1, 1, 2),), available=((1, 0, 9, 0),))
    draws = trace.sample(np.random.default_rng(0), 4, rounds=4)
    np.testing.assert_array_equal(draws.drafted, [[1, 4, 0, 1]])
    np.testing.assert_array_equal(draws.accepted, [[1, 0, 0, 1]])


@pytest.mark.parametrize("gamma", [0, 1, 2, 3, 8])
def test_trace_block_efficiency_is_that_of_endless_replay(gamma: int) -> None:
    """Random traces; a walk of n rounds is within one trace of its cycle's mean, so within 20/n."""
    rng = np.random.default_rng(8)
    trace = TraceAcceptance(tuple(tuple(rng.integers(1, 7, size).tolist()) for size in (1, 2, 13, 20)))
    walked = 1 + trace.sample(rng, gamma, 20_000, 4).accepted.mean()
    assert trace.expected_block_efficiency(gamma) == pytest.approx(walked, abs=20 * 7 / 20_000)


def test_partial_proposals_draft_as_often_as_given() -> None:
    """P(drafted = 0, 1, 2, gamma) = 0.5, 0.2, 0.1, 0.2 at gamma 6; 4 cells: false alarms 0.03%."""
    drafted = (
        PartialProposals(IidAcceptance(0.5), (0.5, 0.2, 0.1, 0.2)).sample(np.random.default_rng(9), 6, 100_000).drafted
    )
    expected = np.array([0.5, 0.2, 0.1, 0.0, 0.0, 0.0, 0.2])
    error = np.sqrt(expected * (1 - expected) / drafted.size)
    assert (np.abs(np.bincount(drafted[0]) / drafted.size - expected) <= 4 * error).all()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: IidAcceptance(1.01), r"alpha must be in \[0, 1\], got 1\.01"),
        (lambda: IidAcceptance(math.nan), r"alpha must be in \[0, 1\], got nan"),
        (lambda: PerPositionAcceptance((0.5, -0.1)), r"conditional acceptance must be in \[0, 1\], got -0\.1"),
        (lambda: PerPositionAcceptance(()), "at least one position"),
        (lambda: BetaAcceptance(0.0, 1.0), r"Beta's a must be finite and > 0, got 0\.0"),
        (lambda: BetaAcceptance(1.0, math.inf), "Beta's b must be finite"),
        (lambda: MarkovAcceptance(0.5, 2.0), r"after_reject must be in \[0, 1\], got 2\.0"),
        (lambda: TraceAcceptance(()), "at least one position"),
        (lambda: TraceAcceptance(((1, 2), ())), "at least one position"),
        (lambda: TraceAcceptance(((1, 0),)), "at least 1 token, got a trace entry 0"),
        (lambda: TraceAcceptance(((1, 2),), ((1,),)), "one entry for each entry"),
        (lambda: TraceAcceptance(((1, 2),), ((1, -1),)), "available tokens must be >= 0, got -1"),
        (lambda: PartialProposals(IidAcceptance(0.5), (0.5, 0.4)), r"available must sum to 1, got 0\.9"),
        (lambda: PartialProposals(TRACE, (0.5, 0.5)), "got TraceAcceptance"),  # type: ignore[arg-type]  # refused
        (lambda: IidAcceptance(0.5).expected_block_efficiency(-1), "gamma must be a whole number >= 0, got -1"),
        (lambda: IidAcceptance(0.5).sample(np.random.default_rng(0), -1, 3), "gamma must be a whole number >= 0"),
    ],
)
def test_bad_input_is_named(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
