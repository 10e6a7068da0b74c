"""Rows of public traces: the formats, their lines taken apart, and their fields checked."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sim.acceptance import IntArray
from sim.theory import FloatArray
from sim.workload.laws import MOST_TOKENS

BLOCK_CHARACTERS = 2**24
"""text read at a time"""
NANOSECONDS = 10**9
NOT_A_TIME = np.iinfo(np.int64).min
"""what NumPy and pandas hold for a timestamp that is none"""
SHOWN = 80
"""characters of a value in a message"""
NUMBER = r"^-?(\d{1,18}(\.\d*)?|\.\d+)([eE][+-]?\d{1,2})?$"
TIMESTAMP = r"^(19|20)\d\d-\d\d-\d\d[ T]\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:\d\d)?$"


@dataclass(frozen=True)
class TraceFormat:
    """Where a format keeps what, and in which unit."""

    time: str
    prompt: str
    output: str
    units: int
    """units of its time in a second; timestamps are counted in nanoseconds"""
    resolution: int
    """steps in a second that are written"""
    start: str
    """time 0 of a written file where nothing else is said"""
    layout: str = "csv"
    zero_output: str = "below 1"
    """what is wrong with a request without output tokens"""

    @property
    def fields(self) -> tuple[str, str, str]:
        """The fields that are read. Output before prompt, since a failed request may have neither."""
        return self.time, self.output, self.prompt


FORMATS = {
    "azure": TraceFormat("TIMESTAMP", "ContextTokens", "GeneratedTokens", NANOSECONDS, 10**7, "2000-01-01 00:00:00"),
    "burstgpt": TraceFormat(
        "Timestamp", "Request tokens", "Response tokens", 1, 10**6, "0", zero_output="a failed request"
    ),
    "mooncake": TraceFormat("timestamp", "input_length", "output_length", 10**3, 10**3, "0", "jsonl"),
}


class Rows(NamedTuple):
    """Some lines of a file, taken apart."""

    line: IntArray
    """line numbers, from 1"""
    text: Sequence[str]
    """the lines"""
    fields: tuple[pa.StringArray, ...]
    """the texts of `TraceFormat.fields`, empty where missing"""
    shapeless: NDArray[np.bool_]
    """lines that could not be taken apart"""
    shape: str
    """what is wrong with these"""


class Broken(NamedTuple):
    """The first thing that is wrong with a row."""

    line: int
    field: str
    value: str
    reason: str


class Requests(NamedTuple):
    """Unbroken rows."""

    line: IntArray
    time: NDArray[Any]
    """in the format's unit: int64 nanoseconds or float64"""
    output: FloatArray
    prompt: FloatArray


def blocks(path: Path) -> Iterator[tuple[IntArray, list[str]]]:
    """Line numbers and lines of a text file, plain or gzip, without the blank ones.

    Bytes that are not UTF-8 become U+FFFD, so that only their row is broken.

    Raises:
        ValueError: the file cannot be read.
    """
    first = 1
    try:
        with path.open("rb") as raw:
            zipped = raw.peek(2)[:2] == b"\x1f\x8b"
            stream = cast(IO[bytes], gzip.GzipFile(fileobj=raw)) if zipped else raw
            text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="replace", newline="\n")
            while lines := text.readlines(BLOCK_CHARACTERS):
                kept = [k for k, line in enumerate(lines) if not line.isspace()]
                if kept:
                    yield np.array(kept, dtype=np.int64) + first, [lines[k] for k in kept]
                first += len(lines)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def split_csv(layout: TraceFormat, header: list[str], line: IntArray, text: Sequence[str]) -> Rows:
    """Take lines of comma-separated values apart."""
    column = pa.array(text, pa.string())
    # a comma for each column, so that missing fields are empty ones
    parts = pc.split_pattern(pc.binary_join_element_wise(column, "," * len(header), ""), ",")
    fields = tuple(pc.utf8_trim_whitespace(pc.list_element(parts, header.index(field))) for field in layout.fields)
    shapeless = pc.greater_equal(pc.count_substring(column, ","), len(header)).to_numpy(zero_copy_only=False)
    return Rows(line, text, fields, shapeless, f"a row of more than the header's {len(header)} fields")


def split_jsonl(layout: TraceFormat, header: list[str], line: IntArray, text: Sequence[str]) -> Rows:
    """Take lines of JSON objects apart; a string or a truth value keeps its quotes or name, so it is no number."""
    fields: list[tuple[str, ...]] = []
    shapeless = np.zeros(len(text), dtype=bool)
    for k, entry in enumerate(text):
        try:
            row = json.loads(entry)
            values = [row.get(field) for field in header]
            fields.append(tuple("" if value is None else repr(value) for value in values))
        except (ValueError, AttributeError, RecursionError):
            shapeless[k] = True
            fields.append(("",) * len(header))
    columns = tuple(pa.array(column, pa.string()) for column in zip(*fields, strict=True))
    return Rows(line, text, columns, shapeless, "not a JSON object")


def check_rows(layout: TraceFormat, rows: Rows) -> tuple[Requests, list[Broken]]:
    """The unbroken requests among rows, and the others in the order of their lines."""
    wrong = np.zeros(len(rows.line), dtype=bool)
    broken: list[Broken] = []

    def note(field: str, values: Sequence[str] | pa.StringArray, holds: NDArray[np.bool_], reason: str) -> None:
        for k in np.flatnonzero(holds & ~wrong).tolist():
            broken.append(Broken(int(rows.line[k]), field, str(values[k]).strip()[:SHOWN], reason))
        wrong[holds] = True

    note("row", rows.text, rows.shapeless, rows.shape)
    parsed = []
    for field, texts in zip(layout.fields, rows.fields, strict=True):
        note(field, texts, pc.equal(texts, "").to_numpy(zero_copy_only=False), "missing")
        if field == layout.time:
            values = parse_times(layout, texts)
            note(field, texts, no_time(values), "not a time")
        else:
            values = parse_numbers(texts)
            note(field, texts, np.isnan(values), "not a finite number")
            note(field, texts, values != np.floor(values), "not a whole number")
            note(field, texts, (values == 0) & (field == layout.output), layout.zero_output)
            note(field, texts, values < 1, "below 1")
            note(field, texts, values > MOST_TOKENS, f"above {MOST_TOKENS}")
        parsed.append(values)
    time, output, prompt = (values[~wrong] for values in parsed)
    return Requests(rows.line[~wrong], time, output, prompt), sorted(broken)


def parse_numbers(column: pa.StringArray) -> FloatArray:
    """Texts as floats, NaN where they are no finite number."""
    finite = pc.match_substring_regex(column, NUMBER)
    numbers: FloatArray = pc.cast(pc.if_else(finite, column, "nan"), pa.float64()).to_numpy(zero_copy_only=False)
    return numbers


def parse_times(layout: TraceFormat, column: pa.StringArray) -> NDArray[Any]:
    """Texts in the format's unit, NaN or `NOT_A_TIME` where they are no time; timestamps without a zone are UTC."""
    if layout.units != NANOSECONDS:
        return parse_numbers(column)
    texts = pc.if_else(pc.match_substring_regex(column, TIMESTAMP), column, None).to_pandas()
    stamps = pd.to_datetime(texts, format="ISO8601", utc=True, errors="coerce").to_numpy("datetime64[ns]")
    return np.asarray(stamps.view(np.int64))


def no_time(times: NDArray[Any]) -> NDArray[np.bool_]:
    """Where `parse_times` found no time."""
    missing: NDArray[np.bool_] = np.isnan(times) if times.dtype.kind == "f" else times == NOT_A_TIME
    return missing
