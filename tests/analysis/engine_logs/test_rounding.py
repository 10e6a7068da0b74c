"""The number of rounds behind printed means and rates."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from analysis.engine_logs.rounding import Rounds, mean_rates, rounds_behind


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
        assert found == Rounds(rounds, rounds, rounds)
        return
    assert found is not None
    assert found.fewest <= found.number <= found.most
    assert abs(1 + accepted / found.number - mean) <= 0.005 + 1e-6 or found.number == drafted / gamma
    assert found.fewest <= rounds <= found.most or found.number == drafted / gamma  # taken for full drafts


def test_a_line_without_mean_and_rates_tells_its_rounds_by_full_drafts_only() -> None:
    assert rounds_behind(30, 40, None, None, []) is None
    assert rounds_behind(30, 40, 4, None, []) == Rounds(10, 10, 10)
    assert rounds_behind(30, 42, 4, None, []) is None


def test_where_nothing_was_accepted_the_draft_length_bounds_the_rounds() -> None:
    assert rounds_behind(0, 7, 3, 1.0, [0.0, 0.0, 0.0]) == Rounds(5, 3, 7)
    assert rounds_behind(0, 7, None, 1.0, []) is None


def test_a_line_that_contradicts_itself_is_read_by_the_part_that_agrees_with_its_counts() -> None:
    assert rounds_behind(60, 95, 2, 9.0, [0.8, 0.4]) == Rounds(50, 50, 50)  # 60/50 = 0.8 + 0.4, not 9 - 1
    assert rounds_behind(80, 90, 2, 3.0, [1.0, 1.0]) == Rounds(40, 40, 40)  # more drafted than 40 rounds can


def test_numbers_that_no_rounds_can_give_are_no_rounds() -> None:
    assert rounds_behind(100, 100, None, 9.0, [0.1]) is None
    assert rounds_behind(5, 5, None, 1.0, []) is None


def test_the_rates_of_one_line_come_out_as_they_were_printed() -> None:
    printed = [index / 1000 for index in range(1001)]
    for rounds in (3, 45, 87, 6393):
        assert mean_rates([rate * rounds for rate in printed], rounds) == tuple(printed)
    assert mean_rates([3 * 0.2 + 0.4], 4) == (0.25,)
