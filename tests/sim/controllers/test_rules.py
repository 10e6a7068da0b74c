"""What a controller is told of a round, and the controllers that follow a rule."""

import math
from typing import Any

import numpy as np
import pytest

from sim.controllers import (
    ConfidenceThreshold,
    Costs,
    FixedGamma,
    Heuristic,
    OffAboveLoad,
    Oracle,
    RejectionThreshold,
    RoundOutcome,
)


def one(gamma: int, accepted: int, drafted: int | None = None) -> RoundOutcome:
    """A round of a single request."""
    return RoundOutcome(gamma, gamma if drafted is None else drafted, accepted, accepted + 1, 1.0)


def rows(gamma: int, drafted: list[int], accepted: list[int]) -> RoundOutcome:
    """A round of a batch."""
    return RoundOutcome(gamma, drafted, accepted, np.array(accepted) + 1, 1.0)


def test_numbers_are_a_batch_of_one_row() -> None:
    alone, batch = one(4, 2), rows(4, [4, 0, 3], [2, 0, 3])
    assert (alone.batch, batch.batch) == (1, 3)
    for name, value in (("drafted", 4), ("accepted", 2), ("emitted", 3)):
        assert getattr(alone, name).tolist() == [value]
        assert getattr(batch, name).dtype == np.int64


def test_fixed_costs_hold_for_every_batch() -> None:
    costs = Costs(0.25, (1.0, 1.5, 2.0))
    assert costs.max_gamma == 2
    assert costs.seconds(1).tolist() == costs.seconds(64).tolist() == [1.0, 1.75, 2.5]


def test_the_heuristic_follows_transformers_schedule() -> None:
    """update_candidate_strategy: num_assistant_tokens += 2 if all matched, else max(1, num_assistant_tokens - 1)."""
    rng = np.random.default_rng(0)
    heuristic, expected = Heuristic(5, 1000), 5
    for _ in range(500):
        assert heuristic.next_gamma() == expected
        matches = expected if rng.random() < 0.3 else int(rng.integers(0, expected))
        heuristic.observe(one(expected, matches))
        if matches == expected:
            expected += 2
        else:
            expected = max(1, expected - 1)


def test_the_heuristic_keeps_its_bounds_and_starts_afresh() -> None:
    heuristic = Heuristic(3, 6)
    lengths = []
    for accepted, drafted in [(3, 3), (5, 5), (6, 6), (0, 0), (2, 2), (0, 6), (1, 5)]:
        heuristic.observe(one(heuristic.next_gamma(), accepted, drafted))
        lengths.append(heuristic.next_gamma())
    assert lengths == [5, 6, 6, 6, 6, 5, 4], "at most 6; a round without a draft says nothing; a short whole one does"
    for _ in range(9):
        heuristic.observe(one(heuristic.next_gamma(), 0))
    assert heuristic.next_gamma() == 1
    heuristic.reset()
    assert heuristic.next_gamma() == 3


def test_the_heuristic_goes_by_the_half_of_a_batch() -> None:
    """Rows that drafted nothing have no say, and nothing is learnt where there are no others."""
    heuristic = Heuristic(5, 16)
    lengths = []
    for drafted, accepted in [
        ([5, 5, 5, 5], [5, 5, 2, 0]),
        ([5, 5, 0, 0, 0], [5, 1, 0, 0, 0]),
        ([5, 5, 0, 0, 0], [1, 1, 0, 0, 0]),
        ([5, 5, 5], [5, 0, 0]),
        ([0, 0], [0, 0]),
    ]:
        heuristic.observe(rows(16, drafted, accepted))
        lengths.append(heuristic.next_gamma(len(drafted)))
    assert lengths == [7, 9, 8, 7, 7]


def test_the_heuristic_can_shrink_by_a_factor() -> None:
    """Additive increase, multiplicative decrease: 3 more, or half; transformers' own falls by one."""
    additive, multiplicative = Heuristic(8, 40), Heuristic(8, 40, increase=3, decrease=0, factor=0.5)
    lengths = []
    for whole in (True, True, False, False, False, False, False):
        for heuristic in (additive, multiplicative):
            gamma = heuristic.next_gamma()
            heuristic.observe(one(gamma, gamma if whole else 0))
        lengths.append((additive.next_gamma(), multiplicative.next_gamma()))
    assert lengths == [(10, 11), (12, 14), (11, 7), (10, 3), (9, 1), (8, 1), (7, 1)]


def test_confidence_stops_where_the_draft_is_unsure() -> None:
    by_confidence = ConfidenceThreshold(8, 0.4)
    assert by_confidence.next_gamma() == by_confidence.max_gamma == 8
    assert [by_confidence.keep_drafting(c, 9.0, 0.0) for c in (0.39, 0.4, 1.0)] == [False, True, True]


def test_entropy_stops_at_adaedls_bound() -> None:
    """1 - sqrt(0.2 H) is 0.3 at H = 2.45."""
    by_entropy = ConfidenceThreshold(8, 0.3, "entropy")
    assert [by_entropy.keep_drafting(0.0, h, 0.0) for h in (-1e-9, 2.44, 2.46, 9.0)] == [True, True, False, False]


def test_rejection_stops_where_some_token_is_too_likely_rejected() -> None:
    """The chance that some token is rejected, 1 - 0.9 * 0.8 * 0.7, passes 0.4 at the third token."""
    by_rejection = RejectionThreshold(8, 0.4)
    assert by_rejection.next_gamma() == by_rejection.max_gamma == 8
    confidence = np.array([0.9, 0.8, 0.7])
    kept = by_rejection.keep_drafting(confidence, 9.0, np.cumprod(confidence))
    np.testing.assert_array_equal(kept, [True, True, False])
    assert RejectionThreshold(8, 0.25).keep_drafting(0.75, 9.0, 0.75), "only a greater chance stops a draft"


def test_drafting_is_off_above_a_load() -> None:
    """The inner heuristic counts its own rounds only, so a busy spell leaves its length as it was."""
    off_above = OffAboveLoad(Heuristic(5, 16), 2)
    assert (off_above.max_gamma, off_above.stops_early) == (16, False)
    assert [off_above.next_gamma(batch) for batch in (1, 2, 3, 256)] == [5, 5, 0, 0]
    off_above.observe(rows(5, [5, 5], [5, 5]))
    assert off_above.next_gamma(1) == 7
    off_above.observe(rows(5, [5, 5, 5], [0, 0, 0]))
    assert off_above.next_gamma(1) == 7
    off_above.reset()
    assert off_above.next_gamma(1) == 5
    confident = OffAboveLoad(ConfidenceThreshold(6, 0.4), 2)
    assert confident.stops_early
    assert np.array_equal(confident.keep_drafting([0.3, 0.5], [1.0, 1.0], [0.3, 0.5]), [False, True])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FixedGamma(-1), "gamma must be a whole number >= 0, got -1"),
        (lambda: Heuristic(9, 8), "initial must be a whole number from 1 to the maximum 8, got 9"),
        (lambda: Heuristic(0, 8), "initial must be a whole number from 1 to the maximum 8, got 0"),
        (lambda: Heuristic(1, 0), r"longest draft must be a whole number >= 1, got 0; FixedGamma\(0\)"),
        (lambda: Heuristic(1, 8, increase=-1), "increase must be a whole number >= 0, got -1"),
        (lambda: Heuristic(1, 8, decrease=0.5), r"decrease must be a whole number >= 0, got 0\.5"),  # type: ignore[arg-type]  # refused
        (lambda: Heuristic(1, 8, factor=0.0), r"factor must be > 0 and at most 1, got 0\.0"),
        (lambda: ConfidenceThreshold(4, 40), r"threshold must be in \[0, 1\], got 40"),
        (lambda: ConfidenceThreshold(4, 0.4, "mood"), "must be 'confidence' or 'entropy', got 'mood'"),  # type: ignore[arg-type]  # refused
        (lambda: RejectionThreshold(0, 0.4), "longest draft must be a whole number >= 1, got 0"),
        (lambda: RejectionThreshold(4, -0.1), r"threshold must be in \[0, 1\], got -0\.1"),
        (lambda: OffAboveLoad(FixedGamma(2), 0), "max_batch must be a whole number >= 1, got 0"),
        (lambda: OffAboveLoad(Oracle(Costs(0.1, [1.0, 1.1]), 1), 8), "Oracle switches itself off where drafts do not"),
        (lambda: RoundOutcome(3, 4, 0, 1, 1.0), "accepted <= drafted <= gamma .*, got gamma 3, drafted 4, .* in row 0"),
        (
            lambda: RoundOutcome(3, [3, 2], [0, 3], [1, 4], 1.0),
            "got gamma 3, drafted 2, accepted 3, emitted 4 in row 1",
        ),
        (lambda: RoundOutcome(3, 3, -1, 1, 1.0), "accepted -1, emitted 1 in row 0"),
        (lambda: RoundOutcome(3, 3, 0, 0, 1.0), "and emitted >= 1, got .* emitted 0 in row 0"),
        (lambda: RoundOutcome(3, [3, 3], [0], [1, 1], 1.0), "one of each kind for each of at least 1 row, got drafted"),
        (lambda: RoundOutcome(3, [], [], [], 1.0), r"at least 1 row, got drafted \[\]"),
        (lambda: RoundOutcome(3, 3, 1.5, 2, 1.0), r"whole numbers of tokens, .* accepted 1\.5"),
        (lambda: RoundOutcome(3, 3, 0, 1, math.nan), "finite seconds >= 0, got nan"),
        (lambda: Costs(-0.1, [1.0, 1.1]), "draft_seconds must be finite and >= 0, got -0.1"),
        (lambda: Costs(0.1, [0.0, 1.1]), r"entry > 0 for each of 0, 1, 2, ... drafted tokens, got \[0\.0, 1\.1\]"),
        (lambda: Costs(0.1, []), r"entry > 0 for each of 0, 1, 2, ... drafted tokens, got \[\]"),
    ],
)
def test_bad_values_are_named(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
