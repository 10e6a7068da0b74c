"""Tables that stay small however long the log is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.engine_logs.clock import Clock, elapsed_seconds, printed_times

FLUSH = 4096
SERIES_ROWS = 65_536
"""a time series is halved in resolution whenever it would have twice as many rows"""
TABLE_ROWS = 200_000
"""rows of requests or steps that are kept; the totals count all of them"""


class Series:
    """What was logged over time: one row per log line, or per 2, 4, 8, ... lines where there are too many.

    Columns are summed when rows are merged, or averaged for the names in `means`; the time and the source are the
    first row's.
    """

    def __init__(self, sums: Sequence[str], means: Sequence[str] = ()) -> None:
        self.columns = ("seconds", "source", "lines", *sums, *means)
        self.means = len(means)
        self.clock: Clock | None = None
        self.sources: dict[str, int] = {}
        self.buffer: list[tuple[float | None, ...]] = []
        self.parts: list[NDArray[np.float64]] = []
        self.rows = 0
        self.stride = 1

    def add(self, time: tuple[Clock, float] | None, source: str, values: Sequence[float | None]) -> None:
        """Add a row; the values are those of the columns after `lines`, None where one is missing."""
        seconds = np.nan
        if time is not None and self.clock in (None, time[0]):
            self.clock, seconds = time
        code = self.sources.setdefault(source, len(self.sources)) if len(self.sources) < FLUSH else 0
        self.buffer.append((seconds, code, 1.0, *values))  # NumPy turns None into NaN
        if len(self.buffer) == FLUSH:
            self._flush()

    def _flush(self) -> None:
        part = self._merged(np.array(self.buffer, dtype=np.float64), self.stride)
        self.buffer = []
        self.parts.append(part)
        self.rows += len(part)
        if self.rows >= 2 * SERIES_ROWS:
            part = self._merged(np.concatenate(self.parts), 2)
            self.parts, self.rows, self.stride = [part], len(part), 2 * self.stride

    def _merged(self, rows: NDArray[np.float64], stride: int) -> NDArray[np.float64]:
        """Groups of `stride` successive rows as one row each."""
        if stride == 1 or len(rows) == 0:
            return rows
        starts = np.arange(0, len(rows), stride)
        merged = np.empty((len(starts), rows.shape[1]))
        merged[:, :2] = rows[starts, :2]
        known = ~np.isnan(rows[:, 2:])
        counts = np.add.reduceat(known, starts, axis=0, dtype=np.float64)
        sums = np.add.reduceat(np.where(known, rows[:, 2:], 0.0), starts, axis=0)
        with np.errstate(invalid="ignore", divide="ignore"):
            means = sums / counts
        merged[:, 2:] = np.where(counts > 0, sums, np.nan)
        if self.means:
            merged[:, -self.means :] = means[:, -self.means :]
        return merged

    def frame(self) -> pd.DataFrame | None:
        """The series: `timestamp` as the log prints it, `elapsed_seconds` since the first row, and the columns."""
        if self.buffer:
            part = self._merged(np.array(self.buffer, dtype=np.float64), self.stride)
            self.buffer = []
            self.parts.append(part)
        if not self.parts:
            return None
        rows = np.concatenate(self.parts)
        self.parts = [rows]
        names = np.array([*self.sources, ""], dtype=object)
        table = pd.DataFrame(rows[:, 2:], columns=list(self.columns[2:]))
        table.insert(0, "timestamp", pd.Series(printed_times(self.clock, rows[:, 0]), dtype=object))
        table.insert(1, "elapsed_seconds", elapsed_seconds(self.clock, rows[:, 0]))
        table.insert(2, "source", pd.Series(names[rows[:, 1].astype(np.int64)], dtype=object))
        return table.astype({"lines": np.int64})


class Rows:
    """Rows of a table up to a number of them; how many more there were is counted."""

    def __init__(self, columns: Sequence[str], most: int = TABLE_ROWS) -> None:
        self.columns = list(columns)
        self.most = most
        self.kept: list[tuple[Any, ...]] = []
        self.added = 0

    def add(self, *values: Any) -> None:
        """Add a row of one value a column."""
        self.added += 1
        if len(self.kept) < self.most:
            self.kept.append(values)

    def frame(self) -> pd.DataFrame | None:
        """The rows that were kept, or None where there are none; columns without a value are left out."""
        if not self.kept:
            return None
        table = pd.DataFrame(self.kept, columns=self.columns)
        return table.loc[:, table.notna().any()]

    def warning(self, of: str) -> list[str]:
        """A sentence about rows that were not kept, if there are any."""
        left = self.added - len(self.kept)
        return [f"the table of {of} holds the first {len(self.kept):,} of {self.added:,}; totals count all"] * (
            left > 0
        )
