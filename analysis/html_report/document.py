"""What a page holds, as plain data: sections of prose, tables, plots and listings. A template turns it into HTML."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from analysis.report_tables import ReportTable

NUMBER = re.compile(r"[-+]?[\d.,]+(e[-+]?\d+)?[%×]?( \[[^\]]*\]| ?\([^)]*\)| to [-+]?[\d.,]+(e[-+]?\d+)?[%×]?)?")
EMPTY = ("", "unknown", "none")
Bounds = Sequence[float | None] | None


@dataclass(frozen=True)
class Table:
    """A table; the first cell of a row names it."""

    kind: ClassVar[str] = "table"
    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""

    @property
    def numeric(self) -> tuple[bool, ...]:
        """Which columns hold numbers, and are set flush right."""
        columns = zip(*self.rows, strict=True) if self.rows else ([] for _ in self.head)
        return tuple(_is_numeric(column) for column in columns)


@dataclass(frozen=True)
class Prose:
    """Sentences, each a paragraph, or an item of a list."""

    kind: ClassVar[str] = "prose"
    sentences: tuple[str, ...]
    listed: bool = False


@dataclass(frozen=True)
class Listing:
    """Text as it is: a command, flags of an engine, lines of a log."""

    kind: ClassVar[str] = "listing"
    caption: str
    text: str


@dataclass(frozen=True)
class Line:
    """A straight stroke."""

    x1: float
    y1: float
    x2: float
    y2: float
    style: str


@dataclass(frozen=True)
class Box:
    """A filled rectangle."""

    x: float
    y: float
    width: float
    height: float
    style: str


@dataclass(frozen=True)
class Label:
    """Text in a plot."""

    x: float
    y: float
    text: str
    anchor: str
    style: str


@dataclass(frozen=True)
class Mark:
    """One value of a plot: its symbol, its interval, and the words shown when it is pointed at or focused."""

    x: float
    y: float
    series: int
    words: str
    strokes: tuple[Line, ...] = ()
    box: Box | None = None


@dataclass(frozen=True)
class Curve:
    """A line through the values of a series."""

    points: str
    series: int


@dataclass(frozen=True)
class Plot:
    """A drawing with the values behind it."""

    kind: ClassVar[str] = "plot"
    title: str
    note: str
    width: float
    height: float
    lines: tuple[Line, ...]
    labels: tuple[Label, ...]
    curves: tuple[Curve, ...]
    marks: tuple[Mark, ...]
    legend: tuple[str, ...]
    values: Table


Part = Table | Prose | Listing | Plot


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it."""

    title: str
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Page:
    """A whole report."""

    kind: str
    """what was reported: 'run', 'import', 'plan', 'diagnosis', 'comparison', 'sweep', ..."""
    title: str
    lead: tuple[str, ...]
    """what it says, in a few sentences"""
    sections: tuple[Section, ...]
    made: tuple[Part, ...]
    """how what is reported was made"""
    seed: int | None = None
    """of the bootstraps that were run for the page; None where none was"""


AGAIN = "The command that makes it again"


def again(found: Mapping[str, Any]) -> list[Part]:
    """The command that a document names as its maker, where it names one."""
    command = found.get("command")
    return [Listing(AGAIN, str(command))] if command else []


def from_report(caption: str, table: ReportTable) -> Table:
    """A table of the Markdown report, without Markdown's marks."""
    head = tuple(table.head) if any(table.head) else ("name", "value")
    rows = tuple(tuple(plain(str(cell)) for cell in row) for row in table.body)
    return Table(caption, head, rows, plain(table.note))


def plain(markdown: str) -> str:
    """Text without the marks of emphasis and code."""
    return markdown.replace("**", "").replace("`", "")


def facts(caption: str, values: Mapping[str, Any], note: str = "") -> Table:
    """Names and values in two columns; what is not known is left out."""
    rows = tuple((name, shown(value)) for name, value in values.items() if value is not None and value != "")
    return Table(caption, ("name", "value"), rows, note)


def shown(value: Any) -> str:
    """A value in words: numbers to four digits, lists with commas, None as 'unknown'."""
    match value:
        case None:
            return "unknown"
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            return number(value)
        case Mapping():
            return ", ".join(f"{name} {shown(one)}" for name, one in value.items())
        case str():
            return value
        case Iterable():
            return ", ".join(map(shown, value))
    return str(value)


def number(value: float | None, digits: int = 4) -> str:
    """A number to some significant digits; 'unknown' where there is none."""
    if value is None or not math.isfinite(value):
        return "unknown"
    if abs(value) >= 10**digits:
        return f"{value:,.0f}" if abs(value) < 1e12 else f"{value:.{digits}g}"
    return f"{value:.{digits}g}"


def interval(bounds: Bounds, scale: float = 1.0, digits: int = 4) -> str:
    """A 95% interval in words; empty where there is none."""
    ends = [None if end is None or not math.isfinite(end) else scale * end for end in bounds or ()]
    if not ends or all(end is None for end in ends):
        return ""
    return " to ".join("open" if end is None else number(end, digits) for end in ends)


def ends(bounds: Bounds) -> tuple[float | None, float | None]:
    """Both ends of an interval; None where it has none."""
    low, high = bounds or (None, None)
    return low, high


def with_interval(value: float | None, bounds: Bounds, scale: float = 1.0) -> str:
    """A value and its interval in one cell."""
    if value is None or not math.isfinite(value):
        return "unknown"
    span = interval(bounds, scale)
    return f"{number(scale * value)} [{span}]" if span else number(scale * value)


def _is_numeric(column: Iterable[str]) -> bool:
    cells = [cell for cell in column if cell not in EMPTY]
    return bool(cells) and all(NUMBER.fullmatch(cell) for cell in cells)
