"""Columns of a sweep's table from whatever runs return: whole numbers, floats, booleans or text, and null for missing.

A column takes one type however its rows fall into parts: whole numbers and floats become floats; any other mixture
becomes text, in which a whole number is written without a decimal point whatever its type was. Lists and mappings
are JSON text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from sim.sweep.design import canonical

RESULT = "result."
"""what the names of results begin with in a part, so that they cannot meet the part's own columns"""


def plain(value: Any) -> Any:
    """The value as what a column can hold: None, bool, int, float or str.

    Raises:
        TypeError: it is no plain data.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | float | str):
        return value
    if isinstance(value, int):
        return value if -(2**63) <= value < 2**63 else float(value)
    return canonical(value)


def type_of(value: Any) -> pa.DataType:
    """The column type that holds a plain value."""
    if value is None:
        return pa.null()
    if isinstance(value, bool):
        return pa.bool_()
    if isinstance(value, int):
        return pa.int64()
    return pa.float64() if isinstance(value, float) else pa.string()


def common_type(types: Iterable[pa.DataType]) -> pa.DataType:
    """The column type that holds values of all these types."""
    kinds = set(types) - {pa.null()}
    if len(kinds) <= 1:
        return kinds.pop() if kinds else pa.null()
    return pa.float64() if kinds == {pa.int64(), pa.float64()} else pa.string()


def text(value: Any) -> str | None:
    """A plain value as the entry of a text column."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return canonical(value)


def column(values: Sequence[Any]) -> pa.Array:
    """A column of plain values, in their common type."""
    kind = common_type(map(type_of, values))
    if kind == pa.float64():
        values = [None if value is None else float(value) for value in values]
    return pa.array(map(text, values) if kind == pa.string() else values, type=kind)


def cast(array: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    """A column in the common type of several."""
    if kind == pa.string() and array.type != kind:
        return pa.chunked_array([pa.array(map(text, array.to_pylist()), type=kind)])
    return array.cast(kind, safe=False)  # a whole number beyond 2**53 loses digits as a float


def part_table(rows: Mapping[str, Sequence[Any]], results: Sequence[Mapping[str, Any]]) -> pa.Table:
    """The table of one chunk: point, point_id, error and wall_seconds from `rows`, then every result by name."""
    kinds = {"point": pa.int64(), "point_id": pa.string(), "error": pa.string(), "wall_seconds": pa.float64()}
    columns = {name: pa.array(rows[name], type=kind) for name, kind in kinds.items()}
    for name in sorted({name for result in results for name in result}):
        columns[RESULT + name] = column([result.get(name) for result in results])
    return pa.table(columns)


def result_names(stored: Iterable[str], taken: Iterable[str]) -> dict[str, str]:
    """The table's name of each result in parts: its own, or one more `result.` while another column has that."""
    used = set(taken)
    names: dict[str, str] = {}
    for column_name in sorted(stored):
        name = column_name.removeprefix(RESULT)
        while name in used:
            name = RESULT + name
        used.add(name)
        names[column_name] = name
    return names
