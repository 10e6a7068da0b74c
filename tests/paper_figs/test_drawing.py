"""Every figure as a reader meets it: at a column's width, in grey, with nothing cut off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from paper_figs import catalogue
from paper_figs.style import COLUMN_INCHES, LINES, kinds, new_figure, palette, style
from tests.paper_figs.cheap import cheap_data

LEAST_POINTS = 6.0


def cut_off(figure: Figure) -> float:
    """By how many inches the drawn artists reach beyond the canvas."""
    figure.canvas.draw()
    box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    return float(max(-box.x0, -box.y0, box.x1 - width, box.y1 - height))


def smallest_font(figure: Figure) -> float:
    """In points, of all text that says something."""
    texts: list[Any] = figure.findobj(Text)
    return min(text.get_fontsize() for text in texts if text.get_visible() and text.get_text().strip())


def same_in_grey(figure: Figure) -> list[str]:
    """Labelled lines of one panel that differ in nothing but colour."""
    found = []
    for axes in figure.axes:
        seen = set()
        for line in axes.get_lines():
            label = str(line.get_label())
            if label.startswith("_"):
                continue
            look = (
                str(line._unscaled_dash_pattern),
                line.get_marker(),
                line.get_fillstyle(),
                str(line.get_markerfacecolor()) == "none",
            )  # type: ignore[attr-defined]
            found += [label] if look in seen else []
            seen.add(look)
    return found


@pytest.mark.parametrize("name", catalogue.FIGURES)
def test_figure_is_readable_at_a_column_s_width(name: str) -> None:
    figure = catalogue.module_of(name).draw(cheap_data(name))
    assert figure.get_size_inches()[0] == pytest.approx(COLUMN_INCHES)
    assert cut_off(figure) <= 0.01
    assert smallest_font(figure) >= LEAST_POINTS
    assert same_in_grey(figure) == []
    for axes in figure.axes:
        assert axes.get_xlabel() or axes.get_ylabel() or axes.get_title(loc="left") or name == "mutants_by_tests"


def test_what_is_unreadable_is_caught() -> None:
    with style():
        figure = new_figure()
        axes = figure.add_subplot()
        axes.plot([0, 1], [0, 1], color="blue", label="a")
        axes.plot([0, 1], [1, 0], color="red", label="b")
        assert cut_off(figure) <= 0.01
        assert same_in_grey(figure) == ["b"]
        assert smallest_font(figure) >= LEAST_POINTS
        axes.annotate("far out", (1, 1), (60, 0), textcoords="offset points", fontsize=5)
        figure.set_layout_engine("none")
        assert cut_off(figure) > 0.1
        assert smallest_font(figure) == 5


def test_no_two_kinds_share_line_marker_or_grey() -> None:
    looks = kinds(len(LINES))
    for key in ("linestyle", "marker", "color"):
        assert len({str(look[key]) for look in looks}) == len(looks)
    with pytest.raises(ValueError, match="6 lines can be told apart without colour, got 7"):
        kinds(7)
    # luminance of the first two, which most figures use (Rec. 709)
    first, second = (float(np.dot([0.2126, 0.7152, 0.0722], colour)) for colour in palette(2))
    assert abs(first - second) > 0.2


def test_the_same_data_gives_the_same_files(tmp_path: Path) -> None:
    first, second = (catalogue.make("leviathan_fig5", tmp_path / name) for name in ("a", "b"))
    for suffix in ("png", "pdf", "csv"):
        assert first.paths[suffix].read_bytes() == second.paths[suffix].read_bytes()
