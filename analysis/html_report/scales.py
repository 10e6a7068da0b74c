"""From values to coordinates: linear and logarithmic scales with round numbers on them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """From values to coordinates."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False
    whole: bool = False
    """whether only whole numbers stand on it"""

    def __call__(self, value: float) -> float:
        """The coordinate of a value."""
        low, high, at = (math.log(one) for one in (self.low, self.high, value)) if self.logarithmic else (
            self.low, self.high, value
        )  # fmt: skip
        return round(self.start + (at - low) / (high - low) * (self.end - self.start), 2)

    @property
    def ticks(self) -> list[float]:
        """Round numbers inside the scale."""
        if self.logarithmic:
            found = [
                one
                for power in range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
                for one in (10.0**power, 2 * 10.0**power, 5 * 10.0**power)
                if self.low <= one <= self.high
            ]
            if len(found) > 1:
                return found
        found = round_numbers(self.low, self.high)
        return [one for one in found if one == int(one)] if self.whole else found


def fit_scale(
    numbers: Iterable[float], start: float, end: float, logarithmic: bool = False, pinned: float | None = None
) -> Scale:
    """A scale that holds all numbers with a little room, except where an end is pinned; whole if they all are."""
    found = list(numbers)
    low, high = min(found), max(found)
    if logarithmic:
        room = (high / low) ** 0.05 if high > low else 1.2
        return Scale(low / room, high * room, start, end, True)
    room = 0.05 * (high - low) or 0.1 * abs(high) or 1.0
    whole = all(one == int(one) for one in found)
    return Scale(low if low == pinned else low - room, high if high == pinned else high + room, start, end, whole=whole)


def round_numbers(low: float, high: float, most: int = 6) -> list[float]:
    """At most `most` multiples of 1, 2 or 5 times a power of ten from low to high."""
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(power * one for one in (1, 2, 5, 10, 20) if (high - low) / (power * one) <= most - 1)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]
