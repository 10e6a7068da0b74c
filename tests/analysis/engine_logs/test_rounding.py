"""The number of rounds behind printed means and rates."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from analysis.engine_logs.rounding import rounds_behind


@st.composite
def lines(draw: st.DrawFn) -> tuple[int, list[int], bool]:
    """Rounds, acceptances by position (falling), and whether every round drafted in full."""
    rounds = draw(st.integers(1, 3000))
    counts = [draw(st.integers(0, rounds))]
    for _ in range(draw(st.integers(0, 6))):
        counts.append(draw(st.integers(0, counts[-1])))
    return rounds, counts, draw(st.booleans())


@given(lines())
def test_the_rounds_found_print_the_same_line(case: tuple[int, list[int], bool]) -> None:
    rounds, counts, full = case
    accepted, gamma = sum(counts), len(counts)
    drafted = rounds * gamma if full else max(accepted, rounds)
    mean, rates = round(1 + accepted / rounds, 2), [round(count / rounds, 3) for count in counts]
    found = rounds_behind(accepted, drafted, gamma, mean, rates)
    if full:
        assert found == (rounds, True)
        return
    if accepted == 0:
        assert found is None or found.number == drafted // gamma  # nothing was accepted: only full drafts tell
        return
    assert found is not None
    assert abs(1 + accepted / found.number - mean) <= 0.005 + 1e-6 or found.number == drafted // gamma
    if found.exact and found.number != drafted / gamma:
        assert found.number == rounds
    assert math.isclose(found.number, rounds, rel_tol=0.005 / max(mean - 1.005, 0.005) + 0.5 / rounds + 0.01) or (
        found.number == drafted / gamma
    )


def test_a_line_without_mean_and_rates_tells_its_rounds_by_full_drafts_only() -> None:
    assert rounds_behind(30, 40, None, None, []) is None
    assert rounds_behind(30, 40, 4, None, []) == (10, True)
    assert rounds_behind(30, 42, 4, None, []) is None


def test_numbers_that_no_rounds_can_give_are_no_rounds() -> None:
    assert rounds_behind(100, 100, None, 9.0, [0.1]) is None
    assert rounds_behind(5, 5, None, 1.0, []) is None
