"""Every figure as a reader meets it: at a column's width, in grey, with nothing cut off."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path as Folder
from typing import Any

import numpy as np
import pytest
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.path import Path
from matplotlib.text import Text

from paper_figs import catalogue
from paper_figs.style import COLUMN_INCHES, LINES, caption_below, kinds, new_figure, palette, style
from tests.paper_figs.cheap import cheap_data

LEAST_POINTS = 6.0


def cut_off(figure: Figure) -> float:
    """By how many inches the drawn artists reach beyond the canvas."""
    figure.canvas.draw()
    box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    return float(max(-box.x0, -box.y0, box.x1 - width, box.y1 - height))


def written(figure: Figure) -> list[Text]:
    """Text that a reader sees; ticks beyond an axis's limits and those of a twin's hidden axis are not drawn."""
    beyond = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            drawn = axis._update_ticks() if axis.get_visible() else []  # type: ignore[attr-defined]
            rest = [tick for tick in (*axis.majorTicks, *axis.minorTicks) if tick not in drawn]
            beyond |= {text for tick in rest for text in (tick.label1, tick.label2)}
    texts: list[Any] = figure.findobj(Text)
    return [text for text in texts if text.get_visible() and text.get_text().strip() and text not in beyond]


def text_on_text(figure: Figure) -> list[tuple[str, str]]:
    """Pairs of texts whose boxes share more than an edge."""
    figure.canvas.draw()
    boxes = [(text.get_text(), text.get_window_extent().padded(-1)) for text in written(figure)]
    return [(one, other) for (one, a), (other, b) in combinations(boxes, 2) if a.overlaps(b)]


def text_cut_by_its_panel(figure: Figure) -> list[str]:
    """Texts that are clipped at the edge of their axes."""
    figure.canvas.draw()
    found = []
    for text in written(figure):
        if text.get_clip_on() and (panel := text.get_clip_box()) is not None:
            (left, bottom, right, top), box = panel.padded(1).extents, text.get_window_extent()
            if box.x0 < left or box.y0 < bottom or box.x1 > right or box.y1 > top:
                found.append(text.get_text())
    return found


def legend_on_data(figure: Figure) -> list[str]:
    """Lines, markers and intervals that run below the legend of their panel."""
    figure.canvas.draw()
    found = []
    for axes in figure.axes:
        if (legend := axes.get_legend()) is None:
            continue
        box = legend.get_window_extent()
        for line in axes.get_lines():
            drawn = line.get_transform().transform_path(line.get_path())
            ends = drawn.vertices[np.isfinite(drawn.vertices).all(axis=1)]
            joined = line.get_linestyle() != "None" and len(ends) > 1
            if box.count_contains(ends) or (joined and Path(ends).intersects_bbox(box, filled=False)):
                found.append(str(line.get_label()))
        for bars in axes.collections:
            if isinstance(bars, LineCollection):
                ends = [bars.get_transform().transform(one) for one in bars.get_segments() if len(one)]
                found += ["interval" for one in ends if Path(one).intersects_bbox(box, filled=False)]
    return found


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
    assert text_on_text(figure) == []
    assert text_cut_by_its_panel(figure) == []
    assert legend_on_data(figure) == []
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
        assert text_on_text(figure) == []
        axes.annotate("on it", (1, 1), (62, 0), textcoords="offset points")
        assert text_on_text(figure) == [("far out", "on it")]
        axes.text(0.99, 0.5, "over the edge", clip_on=True)
        assert text_cut_by_its_panel(figure) == ["over the edge"]
        axes.legend(loc="upper left")
        assert legend_on_data(figure) == ["b"]


@pytest.mark.parametrize("words", ["Short.", "word " * 60])
def test_a_caption_below_is_readable_and_whole(words: str) -> None:
    with style():
        figure = new_figure()
        figure.add_subplot().set_xlabel("x")
        caption_below(figure, words)
        assert cut_off(figure) <= 0.01
        assert smallest_font(figure) >= LEAST_POINTS
        assert text_on_text(figure) == []


def test_no_two_kinds_share_line_marker_or_grey() -> None:
    looks = kinds(len(LINES))
    for key in ("linestyle", "marker", "color"):
        assert len({str(look[key]) for look in looks}) == len(looks)
    with pytest.raises(ValueError, match="6 lines can be told apart without colour, got 7"):
        kinds(7)
    # luminance of the first two, which most figures use (Rec. 709)
    first, second = (float(np.dot([0.2126, 0.7152, 0.0722], colour)) for colour in palette(2))
    assert abs(first - second) > 0.2


def test_the_same_data_gives_the_same_files(tmp_path: Folder) -> None:
    first, second = (catalogue.make("leviathan_fig5", tmp_path / name) for name in ("a", "b"))
    assert b"CreationDate" not in first.paths["pdf"].read_bytes()
    for suffix in ("png", "pdf", "csv"):
        assert first.paths[suffix].read_bytes() == second.paths[suffix].read_bytes()
