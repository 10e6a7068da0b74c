"""Published speedups: a table of one row a configuration, read and checked.

`paper_figs/data/README.md` says what each column holds. Blank cells are inputs that a source does not give; anything
else that can't be read is refused, by row and column.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import NamedTuple

TEXT = ("source", "target", "draft", "hardware", "note", "alpha_kind", "context_len")
AT_LEAST: Mapping[str, float] = {"batch": 1, "gamma": 1, "tau": 1, "alpha": 0, "alpha_iid_from_tau": 0, "c": 0}
AT_MOST: Mapping[str, float] = {"alpha": 1, "alpha_iid_from_tau": 1}
ABOVE_ZERO = (
    *("draft_latency_ms", "target_latency_ms", "verify_latency_ms"),
    *("speedup_measured", "speedup_predicted_by_source"),
)
NUMBERS = (*AT_LEAST, *ABOVE_ZERO)
WHOLE = ("batch", "gamma")
COLUMNS = (*TEXT, *NUMBERS)
"""columns that a table must have; `table`, `task`, `row_class` and any others are optional"""


class Range(NamedTuple):
    """A value and the least and the most that it may be."""

    value: float
    lo: float
    hi: float


class TreeShape(NamedTuple):
    """What a note says of a drafted tree; None where it does not say."""

    tokens: int | None
    """drafted"""
    depth: int | None
    """draft passes"""


@dataclass(frozen=True)
class PublishedRow:
    """One configuration; numbers are ranges of half a unit of the last printed digit on either side."""

    number: int
    """place in the table, from 1"""
    text: Mapping[str, str]
    numbers: Mapping[str, Range | None]
    """None where the cell is blank"""
    tree: TreeShape | None
    """None for a chain"""

    def given(self, name: str) -> Range | None:
        """The number of a column."""
        return self.numbers[name]

    @property
    def gamma(self) -> int | None:
        """Draft length in tokens."""
        gamma = self.numbers["gamma"]
        return None if gamma is None else round(gamma.value)

    @property
    def depth(self) -> int | None:
        """Most drafted tokens that a round can accept: a tree's depth, else gamma."""
        return self.tree.depth if self.tree and self.tree.depth else self.gamma

    @property
    def context_tokens(self) -> float | None:
        """Mean context: "128+128" is a prompt of 128 tokens and as many generated."""
        counts = [float(count) for count in re.findall(r"\d+(?:\.\d+)?", self.text["context_len"])]
        return counts[0] + sum(counts[1:]) / 2 if counts else None

    @property
    def counts_per_chain(self) -> bool:
        """Whether alpha is accepted over proposed tokens, those after the first rejection included."""
        return "accepted/proposed" in self.text["alpha_kind"]


def read_published(path: Path) -> list[PublishedRow]:
    """Read a table of published speedups.

    Raises:
        ValueError: the file can't be read, lacks a column or has no rows, or a cell is no number or out of its range;
            the row (from 1, below the head) and the column are named.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, restval="", strict=True)
            table = list(reader)
            names = list(reader.fieldnames or ())
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is not a readable CSV of published speedups: {error}") from error
    missing = [name for name in COLUMNS if name not in names]
    if missing:
        raise ValueError(f"{path} lacks the columns {missing}; a column may be blank, but its name must be there")
    if not table:
        raise ValueError(f"{path} has no rows; give one row a configuration")
    for number, record in enumerate(table, start=1):
        if None in record:
            raise ValueError(f"{path}, row {number}: must have {len(names)} cells, got more; quote cells with commas")
    table = [{name: text.strip() for name, text in record.items()} for record in table]
    halves = {name: half_units([(cells["source"], cells[name]) for cells in table]) for name in NUMBERS}
    rows = []
    for number, cells in enumerate(table, start=1):
        where = f"{path}, row {number}, column"
        if not cells["source"]:
            raise ValueError(f"{where} source: must name where the numbers are from, got a blank")
        numbers = {
            name: read_number(f"{where} {name}", name, cells[name], halves[name][cells["source"]]) for name in NUMBERS
        }
        shape = tree_shape(f"{cells.get('row_class', '')} {cells['note']}")
        row = PublishedRow(number, cells, numbers, shape)
        check_tokens(where, row)
        rows.append(row)
    return rows


def half_units(cells: Iterable[tuple[str, str]]) -> dict[str, float]:
    """Half a unit of the last digit printed, by source.

    A source's longest fraction counts, since files drop zeros at the end.

    Args:
        cells: (source, text) of one column.
    """
    decimals: dict[str, int] = {}
    for source, text in cells:
        try:
            exponent = Decimal(text).as_tuple().exponent
        except InvalidOperation:  # blank, or refused later by `read_number`
            exponent = 0
        printed = -exponent if isinstance(exponent, int) else 0
        decimals[source] = max(printed, decimals.get(source, 0))
    return {source: 0.5 * 10.0**-most for source, most in decimals.items()}


def read_number(where: str, name: str, text: str, half: float) -> Range | None:
    """The number of a cell, None for a blank one; counts are exact, and a range ends where the column's does.

    Raises:
        ValueError: it is no number, or out of the column's range.
    """
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{where}: must be a number or blank, got {text!r}") from None
    least, most = AT_LEAST.get(name, 0.0), AT_MOST.get(name, math.inf)
    if not least <= value <= most or value == math.inf or (name in ABOVE_ZERO and value == 0):
        limit = f"in [{least:g}, {most:g}]" if most < math.inf else f"finite and >= {least:g}"
        limit = "finite and > 0" if name in ABOVE_ZERO else limit
        raise ValueError(f"{where}: must be {limit}, got {text}; leave it blank where the source does not say")
    if name in WHOLE:
        if value != int(value):
            raise ValueError(f"{where}: must be a whole number, got {text}")
        return Range(value, value, value)
    if name not in ABOVE_ZERO and half == 0.5:
        half = 0.0  # an acceptance or a cost ratio of 0 or 1 is meant as it stands
    half = min(half, value / 2)  # what is printed is not nothing
    return Range(value, max(least, value - half), min(most, value + half))


def tree_shape(text: str) -> TreeShape | None:
    """What a note says of a tree: "TREE size=16 depth=3", "TREE (128, 10)", or "TREE 5x8" for 5 chains of 8."""
    if "tree" not in text.lower():
        return None
    if pair := re.search(r"\((\d+)\s*,\s*(\d+)\)", text):
        return TreeShape(int(pair[1]), int(pair[2]))
    if chains := re.search(r"\b(\d+)\s*[x×]\s*(\d+)\b", text):
        return TreeShape(int(chains[1]) * int(chains[2]), int(chains[2]))
    size, depth, nodes = (
        re.search(pattern, text, re.IGNORECASE)
        for pattern in (r"\bsize\s*[=:]?\s*(\d+)", r"\bdepth\s*[=:]?\s*(\d+)", r"\b(\d+)[\s-]*(?:nodes|tokens)\b")
    )
    tokens = size or nodes
    return TreeShape(int(tokens[1]) if tokens else None, int(depth[1]) if depth else None)


def check_tokens(where: str, row: PublishedRow) -> None:
    """Refuse a row whose rounds emit more tokens than they can.

    Raises:
        ValueError: tau exceeds what all drafted tokens and the bonus come to.
    """
    tau, depth = row.given("tau"), row.depth
    if tau is not None and depth is not None and tau.lo > depth + 1:
        raise ValueError(
            f"{where} tau: must be at most {depth + 1}, the {depth} drafted tokens of a path and the bonus, "
            f"got {tau.value:g}; tau is tokens per target forward"
        )
