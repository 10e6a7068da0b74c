"""Times as log lines print them, in seconds."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Clock = Literal["date", "year unknown", "uptime"]

FULL = re.compile(rb"([12]\d{3}-\d\d-\d\d)[ T](\d\d):(\d\d):(\d\d)(?:[.,](\d{1,6}))?")
YEARLESS = re.compile(rb"\b(\d\d-\d\d) (\d\d):(\d\d):(\d\d)\b")
UPTIME = re.compile(rb"(?:^|\s)(\d{1,9})\.(\d\d)\.(\d{3})\.(\d{3}) [A-Z]\b")
LEAP_YEAR = datetime(2000, 1, 1, tzinfo=UTC)
"""a year in which every printed day exists"""
DAY_SECONDS = 86_400.0


def read_clock(prefix: bytes) -> tuple[Clock, float] | None:
    """The time that stands before a message, and of which kind it is; None where there is none.

    Returns:
        'date': seconds since 1970, the log's own time zone taken as UTC; 'year unknown': seconds since 1 January;
        'uptime': seconds since the process started (minutes.seconds.milliseconds.microseconds, as llama.cpp prints it).
    """
    if found := FULL.search(prefix):
        day = _day(found[1])
        fraction = float(b"0." + found[5]) if found[5] else 0.0
        return None if day is None else ("date", day + _time_of_day(found[2], found[3], found[4]) + fraction)
    if found := YEARLESS.search(prefix):
        day = _day(b"2000-" + found[1])
        since = None if day is None else day - LEAP_YEAR.timestamp()
        return None if since is None else ("year unknown", since + _time_of_day(found[2], found[3], found[4]))
    if found := UPTIME.search(prefix):
        minutes, seconds, milliseconds, microseconds = map(int, found.groups())
        return "uptime", 60.0 * minutes + seconds + milliseconds / 1e3 + microseconds / 1e6
    return None


@lru_cache(maxsize=64)
def _day(text: bytes) -> float | None:
    """Seconds since 1970 at the start of a day 'YYYY-MM-DD'; None where there is no such day."""
    try:
        return datetime(int(text[:4]), int(text[5:7]), int(text[8:]), tzinfo=UTC).timestamp()
    except ValueError:
        return None


def _time_of_day(hours: bytes, minutes: bytes, seconds: bytes) -> float:
    return 3600.0 * int(hours) + 60.0 * int(minutes) + int(seconds)


def printed_times(kind: Clock | None, seconds: NDArray[np.float64]) -> list[str | None]:
    """Seconds of `read_clock` as the log prints them, to the second; None where they are missing."""
    if kind is None or kind == "uptime":
        return [None] * len(seconds)
    start, layout = (datetime(1970, 1, 1, tzinfo=UTC), "%Y-%m-%d %H:%M:%S") if kind == "date" else (LEAP_YEAR, "")
    layout = layout or "%m-%d %H:%M:%S"
    return [None if value != value else (start + timedelta(seconds=value)).strftime(layout) for value in seconds]


def elapsed_seconds(kind: Clock | None, seconds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Seconds since the first row; a jump back of half a year is a new year where the year is unknown."""
    known = seconds[~np.isnan(seconds)]
    if kind is None or len(known) == 0:
        return np.full(len(seconds), np.nan)
    if kind == "year unknown":
        steps = np.diff(np.where(np.isnan(seconds), known[0], seconds), prepend=known[0])
        seconds = seconds + 366 * DAY_SECONDS * np.cumsum(steps < -183 * DAY_SECONDS)
    elapsed: NDArray[np.float64] = seconds - known[0]
    return elapsed
