"""Where everything in a plot stands: axes, marks with their 95% intervals, and the words of each mark.

Coordinates are those of the drawing's own 420 units, which stay legible from a phone's width to a page's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from analysis.html_report.document import Box, Curve, Label, Line, Mark, Plot, Table, interval, number
from analysis.html_report.scales import Scale, fit_scale

WIDTH = 420.0
LEFT, RIGHT, TOP, BOTTOM = 12.0, 14.0, 10.0, 40.0
Y_LABELS = 52.0
"""room for the numbers of a vertical axis"""
ROW_HEIGHT, ROW_STEP = 22.0, 14.0
"""a row's label, and each value under it"""
XY_HEIGHT = 300.0
LONGEST_LABEL = 54
SERIES = 6
"""symbols and colours that can be told apart"""


@dataclass(frozen=True)
class Value:
    """A number and its 95% interval, where it has one."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def finite(self) -> tuple[float, ...]:
        """Its numbers that can be drawn."""
        return tuple(one for one in (self.value, self.low, self.high) if one is not None and math.isfinite(one))

    @property
    def words(self) -> str:
        """The number and its interval."""
        span = interval((self.low, self.high))
        return f"{number(self.value)}, 95% interval {span}" if span else number(self.value)


@dataclass(frozen=True)
class Row:
    """A labelled row: a value for each series, None where it has none."""

    label: str
    values: tuple[Value | None, ...]
    bar_from: float | None = None
    """where a bar to the first value starts"""


@dataclass(frozen=True)
class Series:
    """Values over x, in order."""

    name: str
    points: tuple[tuple[Value, Value], ...]
    joined: bool = True
    names: tuple[str, ...] = ()
    """of the points, where each has one"""


def plot_rows(
    title: str,
    axis: str,
    rows: Sequence[Row],
    series: Sequence[str] = ("",),
    *,
    note: str = "",
    reference: float | None = None,
    from_zero: bool = False,
    logarithmic: bool = False,
) -> Plot | None:
    """Values beside one another on one horizontal axis, a row for each name.

    Args:
        title: of the plot.
        axis: what is drawn, with its unit.
        rows: from top to bottom.
        series: what each value of a row is.
        note: what to know of the plot.
        reference: where a thin line crosses all rows, such as a speedup of 1.
        from_zero: whether the axis begins at 0.
        logarithmic: whether equal factors are equal lengths; every number must be above 0.

    Returns:
        The plot; None where there is nothing finite to draw.

    Raises:
        ValueError: there are more series than can be told apart.
    """
    _check_series(series)
    numbers = [one for row in rows for value in row.values if value is not None for one in value.finite]
    numbers += [row.bar_from for row in rows if row.bar_from is not None]
    if not any(value is not None and math.isfinite(value.value) for row in rows for value in row.values):
        return None
    extra = [0.0] if from_zero else [] if reference is None else [reference]
    scale = fit_scale([*numbers, *extra], LEFT, WIDTH - RIGHT, logarithmic, pinned=0.0 if from_zero else None)
    lines: list[Line] = []
    labels: list[Label] = []
    marks: list[Mark] = []
    y = TOP
    for row in rows:
        labels.append(Label(LEFT, y + 13, _short(row.label), "start", "name"))
        y += ROW_HEIGHT
        for index, value in enumerate(row.values):
            if value is None or not math.isfinite(value.value):
                continue
            name = f"{row.label}, {series[index]}" if series[index] else row.label
            bar = None
            if row.bar_from is not None and index == 0:
                edges = sorted((scale(row.bar_from), scale(value.value)))
                bar = Box(edges[0], y - 1, round(edges[1] - edges[0], 2), 8, "bar")
            strokes = _strokes(value, scale, y + 3, across=True)
            marks.append(Mark(scale(value.value), y + 3, index, f"{name}: {value.words}; {axis}", strokes, bar))
            y += ROW_STEP
    bottom = y + 4
    for tick in scale.ticks:
        lines.append(Line(scale(tick), TOP, scale(tick), bottom, "grid"))
        labels.append(Label(scale(tick), bottom + 14, number(tick), "middle", "tick"))
    if reference is not None:
        lines.append(Line(scale(reference), TOP, scale(reference), bottom, "reference"))
    labels.append(Label(WIDTH / 2, bottom + 32, axis, "middle", "axis"))
    legend = tuple(series) if len(series) > 1 else ()
    return Plot(title, note, WIDTH, bottom + BOTTOM, tuple(lines), tuple(labels), (), tuple(marks), legend,
                _row_values(title, rows, series))  # fmt: skip


def plot_xy(
    title: str,
    axes: tuple[str, str],
    series: Sequence[Series],
    *,
    note: str = "",
    reference: float | None = None,
    from_zero: bool = False,
    diagonal: bool = False,
) -> Plot | None:
    """Values over x, a symbol and a colour for each series.

    Args:
        title: of the plot.
        axes: what x and y are, with their units.
        series: at most SERIES.
        note: what to know of the plot.
        reference: where a thin level line stands, such as a speedup of 1.
        from_zero: whether the y axis begins at 0.
        diagonal: whether x and y share a scale and the line of equality is drawn.

    Returns:
        The plot; None where there is nothing finite to draw.

    Raises:
        ValueError: there are more series than can be told apart.
    """
    _check_series([one.name for one in series])
    points = [(x, y) for one in series for x, y in one.points if math.isfinite(x.value) and math.isfinite(y.value)]
    if not points:
        return None
    across = [one for x, _ in points for one in x.finite]
    up = [one for _, y in points for one in y.finite] + ([] if reference is None else [reference])
    if diagonal:
        across = up = [*across, *up]
    left, bottom = LEFT + Y_LABELS, XY_HEIGHT - BOTTOM
    x_scale = fit_scale(across, left, WIDTH - RIGHT)
    y_scale = fit_scale([*up, 0.0] if from_zero else up, bottom, TOP + 12, pinned=0.0 if from_zero else None)
    lines, labels = _xy_axes(x_scale, y_scale, axes)
    if reference is not None:
        lines.append(Line(left, y_scale(reference), WIDTH - RIGHT, y_scale(reference), "reference"))
    if diagonal:
        low, high = x_scale.low, x_scale.high
        lines.append(Line(x_scale(low), y_scale(low), x_scale(high), y_scale(high), "reference"))
    marks, curves = [], []
    for index, one in enumerate(series):
        placed = [
            (words, x, y) for words, x, y in _named(one, axes) if math.isfinite(x.value) and math.isfinite(y.value)
        ]
        if one.joined and len(placed) > 1:
            curves.append(Curve(" ".join(f"{x_scale(x.value)},{y_scale(y.value)}" for _, x, y in placed), index))
        for words, x, y in placed:
            at = x_scale(x.value), y_scale(y.value)
            strokes = (*_strokes(x, x_scale, at[1], across=True), *_strokes(y, y_scale, at[0], across=False))
            marks.append(Mark(*at, index, words, strokes))
    legend = tuple(one.name for one in series) if len(series) > 1 else ()
    return Plot(title, note, WIDTH, XY_HEIGHT, tuple(lines), tuple(labels), tuple(curves), tuple(marks), legend,
                _xy_values(title, axes, series))  # fmt: skip


def _named(series: Series, axes: tuple[str, str]) -> list[tuple[str, Value, Value]]:
    """Every point with its words."""
    names = series.names or ("",) * len(series.points)
    return [
        (
            ", ".join(part for part in (series.name, name) if part)
            + (": " if series.name or name else "")
            + f"{axes[0]} {x.words}; {axes[1]} {y.words}",
            x,
            y,
        )
        for name, (x, y) in zip(names, series.points, strict=True)
    ]


def _xy_axes(x_scale: Scale, y_scale: Scale, axes: tuple[str, str]) -> tuple[list[Line], list[Label]]:
    """Grid lines, their numbers and the names of both axes."""
    lines, labels = [], []
    for tick in x_scale.ticks:
        lines.append(Line(x_scale(tick), y_scale.end, x_scale(tick), y_scale.start, "grid"))
        labels.append(Label(x_scale(tick), y_scale.start + 14, number(tick), "middle", "tick"))
    for tick in y_scale.ticks:
        lines.append(Line(x_scale.start, y_scale(tick), x_scale.end, y_scale(tick), "grid"))
        labels.append(Label(x_scale.start - 6, y_scale(tick) + 4, number(tick), "end", "tick"))
    labels.append(Label((x_scale.start + x_scale.end) / 2, y_scale.start + 32, axes[0], "middle", "axis"))
    labels.append(Label(LEFT, TOP + 4, axes[1], "start", "axis"))
    return lines, labels


def _strokes(value: Value, scale: Scale, at: float, across: bool) -> tuple[Line, ...]:
    """An interval with a cap at each end; an end that is open goes to the edge of the plot, without a cap."""
    bounds = [None if end is None or not math.isfinite(end) else scale(end) for end in (value.low, value.high)]
    if bounds == [None, None]:
        return ()
    low, high = (edge if end is None else end for end, edge in zip(bounds, (scale.start, scale.end), strict=True))
    pieces = [(low, at, high, at), *((end, at - 3, end, at + 3) for end in bounds if end is not None)]
    return tuple(Line(*(piece if across else _swapped(piece)), "interval") for piece in pieces)


def _swapped(piece: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    return piece[1], piece[0], piece[3], piece[2]


def _short(label: str) -> str:
    """A label that fits; the mark's own words have it whole."""
    return label if len(label) <= LONGEST_LABEL else label[: LONGEST_LABEL - 1] + "…"


def _row_values(title: str, rows: Sequence[Row], series: Sequence[str]) -> Table:
    """The numbers behind rows."""
    head: list[str] = []
    for name in series:
        head += [name or "value", f"95% interval of {name}" if name else "95% interval"]
    body = []
    for row in rows:
        cells = [row.label]
        for value in row.values:
            cells += ["", ""] if value is None else [number(value.value), interval((value.low, value.high))]
        body.append(tuple(cells))
    return Table(f"{title}: values", ("", *head), tuple(body))


def _xy_values(title: str, axes: tuple[str, str], series: Sequence[Series]) -> Table:
    """The numbers behind series; columns that would be empty are left out."""
    rows = [
        (one.name, name, number(x.value), interval((x.low, x.high)), number(y.value), interval((y.low, y.high)))
        for one in series
        for name, (x, y) in zip(one.names or ("",) * len(one.points), one.points, strict=True)
    ]
    head = ("series", "point", axes[0], f"95% interval of {axes[0]}", axes[1], f"95% interval of {axes[1]}")
    kept = [i for i in range(len(head)) if any(row[i] for row in rows)]
    return Table(f"{title}: values", tuple(head[i] for i in kept), tuple(tuple(row[i] for i in kept) for row in rows))


def _check_series(names: Sequence[str]) -> None:
    if len(names) > SERIES:
        raise ValueError(f"{SERIES} series can be told apart in one plot, got {len(names)}; draw fewer in each")
