"""Numbers as logs print them: checked, or the line is malformed."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

MOST_TOKENS = 10**15
"""No counter of an engine goes beyond this; what does is damage."""

NUMBER = re.compile(rb"\s*(-?\d{1,18}(?:\.\d{1,18})?(?:[eE][-+]?\d{1,2})?)(?!\.?\d|[a-z_])")
"""a number that nothing belongs to but a unit: '%', ' tokens', or the next message of another process"""
NOT_A_NUMBER = re.compile(rb"\s*[-+]?(?:nan|inf(?:inity)?|n/a|none|null)\b", re.IGNORECASE)


class Malformed(ValueError):
    """A line or object that has a format's mark but cannot be read as one; it is skipped and counted."""


def whole(value: Any, name: str) -> int:
    """A count as an int >= 0.

    Raises:
        Malformed: it is not a whole number in [0, MOST_TOKENS].
    """
    number = real(value, name)
    if number != int(number) or not 0 <= number <= MOST_TOKENS:
        raise Malformed(f"{name} is {value!r}, not a whole number from 0 to {MOST_TOKENS:.0e}")
    return int(number)


def real(value: Any, name: str) -> float:
    """A finite number.

    Raises:
        Malformed: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Malformed(f"{name} is {shortened(value)}, not a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise Malformed(f"{name} is {value if isinstance(value, float) else 'too large'}, not a finite number")
    return number


def length(value: Any, name: str) -> float:
    """A mean acceptance length, or another number that cannot be negative.

    Raises:
        Malformed: it is not a finite number >= 0.
    """
    number = real(value, name)
    if number < 0:
        raise Malformed(f"{name} is {number:g}, less than 0")
    return number


def share(value: Any, name: str) -> float:
    """A number in [0, 1].

    Raises:
        Malformed: it is not.
    """
    number = real(value, name)
    if not 0 <= number <= 1:
        raise Malformed(f"{name} is {number:g}, not in [0, 1]")
    return number


def rounding(value: float) -> float:
    """How far a number in JSON may be from what it was rounded from: half a unit of its last decimal.

    Two decimals at least are taken for printed: JSON writes 3.20 as 3.2.
    """
    text = repr(float(value))
    return 0.0 if "e" in text else 0.5 * 10.0 ** -max(2, len(text.partition(".")[2]))


def wholes(value: Any, name: str) -> list[int]:
    """Counts by index, from a list or from an object such as {"0": 39, "3": 3}, whose missing indexes are 0.

    Raises:
        Malformed: an entry is not a count, or an index is not one of 0 to 9999.
    """
    if isinstance(value, Mapping):
        entries: dict[int, int] = {}
        for key, count in value.items():
            if not (isinstance(key, str) and key.isascii() and key.isdigit() and len(key) <= 4):
                raise Malformed(f"{name} has the index {shortened(key)}, not one of 0 to 9999")
            entries[int(key)] = whole(count, name)
        return [entries.get(index, 0) for index in range(max(entries, default=-1) + 1)]
    if not isinstance(value, list):
        raise Malformed(f"{name} is {shortened(value)}, not a list of counts")
    return [whole(count, name) for count in value]


def shares(value: Any, name: str) -> list[float]:
    """Numbers in [0, 1].

    Raises:
        Malformed: an entry is not.
    """
    if not isinstance(value, list):
        raise Malformed(f"{name} is {shortened(value)}, not a list of rates")
    return [share(entry, name) for entry in value]


def first(record: Mapping[str, Any], *names: str) -> Any:
    """The value under the first of the names that is there and not null: a field under its names over the versions."""
    for name in names:
        if record.get(name) is not None:
            return record[name]
    return None


def printed_number(text: bytes, name: str) -> float | None:
    """The number that text starts with; None for nan, inf, n/a.

    Raises:
        Malformed: it starts with neither.
    """
    found = NUMBER.match(text)
    if found:
        return float(found[1])
    if NOT_A_NUMBER.match(text):
        return None
    raise Malformed(f"{name} is {shortened(text)}, not a number")


def printed_count(text: bytes, name: str) -> int:
    """The whole number that text starts with.

    Raises:
        Malformed: it does not start with one, or it is beyond MOST_TOKENS.
    """
    number = printed_number(text, name)
    if number is None or number != int(number) or not 0 <= number <= MOST_TOKENS:
        raise Malformed(f"{name} is {shortened(text)}, not a whole number from 0 to {MOST_TOKENS:.0e}")
    return int(number)


def fields(text: bytes) -> dict[bytes, list[bytes]]:
    """'a: 1, b: 2, 3, c: 4' as {a: [1], b: [2, 3], c: [4]}: by key, in whatever order a version prints them."""
    found: dict[bytes, list[bytes]] = {}
    current: list[bytes] = []
    for piece in text.split(b", "):
        key, colon, value = piece.partition(b": ")
        if colon:
            current = found[key] = [value]
        else:
            current.append(piece)
    return found


def shortened(value: Any) -> str:
    """A value for a message of one line."""
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else repr(value)
    text = " ".join(text.split())
    return f"{text[:60]}..." if len(text) > 63 else text or "empty"


def objects(value: Any, keys: frozenset[str]) -> Iterator[tuple[dict[str, Any], tuple[dict[str, Any], ...]]]:
    """Objects anywhere inside a JSON value that have one of the keys, each with the objects around it, outermost first.

    What is inside such an object is not searched: it belongs to it.
    """
    waiting: list[tuple[Any, tuple[dict[str, Any], ...]]] = [(value, ())]
    while waiting:
        item, around = waiting.pop()
        if isinstance(item, dict):
            if not keys.isdisjoint(item):
                yield item, around
                continue
            waiting.extend((part, (*around, item)) for part in reversed(list(item.values())) if _holds(part))
        elif isinstance(item, list):
            waiting.extend((part, around) for part in reversed(item) if _holds(part))


def _holds(value: Any) -> bool:
    return isinstance(value, dict | list)
