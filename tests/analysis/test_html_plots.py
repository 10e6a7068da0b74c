"""Where the values of a plot stand, and what is said of them."""

from __future__ import annotations

import numpy as np
import pytest

from analysis.html_report.document import Plot, Table
from analysis.html_report.plots import Row, Series, Value, plot_rows, plot_xy
from analysis.html_report.scales import fit_scale, round_numbers


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.97, 1.03), (-3.0, 1200.0), (1e-6, 2e-6), (0.0, 7.0)])
def test_ticks_are_round_inside_and_not_too_many(low: float, high: float) -> None:
    ticks = round_numbers(low, high)
    assert 2 <= len(ticks) <= 6
    steps = np.diff(ticks)
    assert np.allclose(steps, steps[0], rtol=1e-6)
    assert low - 1e-9 <= ticks[0] <= ticks[-1] <= high + 1e-9
    assert round(float(steps[0] / 10 ** np.floor(np.log10(steps[0]) + 1e-9)), 6) in (1, 2, 5)


def test_a_scale_keeps_order_and_ends() -> None:
    for logarithmic in (False, True):
        scale = fit_scale([0.5, 2.0, 8.0], 10, 410, logarithmic)
        at = [scale(value) for value in (0.5, 2.0, 8.0)]
        assert 10 < at[0] < at[1] < at[2] < 410
    assert at[1] - at[0] == pytest.approx(at[2] - at[1], abs=0.02)


@pytest.mark.parametrize(
    ("numbers", "ticks"), [([1], [1]), ([1, 2], [1, 2]), ([1, 2, 3], [1, 2, 3]), ([1, 1.5], [1, 1.2, 1.4])]
)
def test_no_position_stands_between_two_positions(numbers: list[float], ticks: list[float]) -> None:
    assert [one for one in fit_scale(numbers, 0, 400).ticks if one >= 1] == ticks


def test_intervals_are_drawn_from_end_to_end() -> None:
    plot = plot_rows("t", "x", [Row("a", (Value(2.0, 1.0, 4.0),)), Row("b", (Value(3.0, 1.0, None),))])
    assert plot is not None
    whole, opened = plot.marks
    assert len(whole.strokes) == 3
    assert whole.strokes[0].x1 < whole.x < whole.strokes[0].x2
    assert len(opened.strokes) == 2  # no cap at the open end
    assert opened.strokes[0].x2 > whole.strokes[0].x1
    assert "95% interval 1 to open" in opened.words


def test_what_is_not_finite_is_left_out_and_nothing_draws_nothing() -> None:
    nan = float("nan")
    plot = plot_xy("t", ("x", "y"), [Series("", ((Value(1), Value(2)), (Value(2), Value(nan))))])
    assert plot is not None
    assert len(plot.marks) == 1
    assert plot_xy("t", ("x", "y"), [Series("", ((Value(1), Value(nan)),))]) is None
    assert plot_rows("t", "x", [Row("a", (None,))]) is None


def test_more_series_than_can_be_told_apart_are_refused() -> None:
    with pytest.raises(ValueError, match="6 series can be told apart in one plot, got 7"):
        plot_rows("t", "x", [Row("a", (Value(1),) * 7)], tuple("abcdefg"))


def test_every_number_of_a_plot_is_in_its_table() -> None:
    points = ((Value(1), Value(0.25, 0.125, 0.5)),)
    plot = plot_xy("t", ("x", "y"), [Series("a", points, names=("p",)), Series("b", points, names=("q",))])
    assert isinstance(plot, Plot)
    assert plot.values.rows == (("a", "p", "1", "0.25", "0.125 to 0.5"), ("b", "q", "1", "0.25", "0.125 to 0.5"))
    assert Table("", ("", "x"), (("a", "1.5 [1 to 2]"), ("b", "unknown"))).numeric == (False, True)
