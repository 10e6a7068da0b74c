"""How many rounds a line tells of that prints its mean and rates rounded, and not the rounds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

SLACK = 1e-9


class Rounds(NamedTuple):
    """Rounds of one line: the number taken, and the fewest and the most that the printed digits allow."""

    number: int
    fewest: int
    most: int

    @property
    def exact(self) -> bool:
        """Do the printed digits leave no other number?"""
        return self.fewest == self.most


def rounds_behind(
    accepted: int,
    drafted: int,
    gamma: int | None,
    mean: float | None,
    rates: Sequence[float],
    mean_step: float = 0.01,
    rate_step: float = 0.001,
) -> Rounds | None:
    """Find the rounds from 1 + accepted/rounds and from accepted-by-position/rounds, both rounded.

    Where every round drafted gamma tokens the number is drafted/gamma, if the printed mean or the rates agree; else it
    is the whole number that the printed digits allow, or the middle of those that they allow. A round drafts between
    one token and the longest draft: that bounds the number unless the line contradicts itself.

    Args:
        accepted: drafted tokens accepted in all rounds.
        drafted: tokens drafted in all rounds.
        gamma: draft length, or None where it is not known.
        mean: printed mean acceptance length, bonus token included, or None.
        rates: printed marginal acceptance by position, or nothing.
        mean_step: step between two printed means, 0.01 for two decimals.
        rate_step: step between two printed rates.

    Returns:
        The rounds, or None where the line does not tell them.
    """
    if gamma and drafted > 0 and drafted % gamma == 0:
        full = drafted // gamma
        if agrees(full, accepted, mean, rates, mean_step, rate_step):
            return Rounds(full, full, full)
    longest = max(gamma or 0, len(rates))
    if accepted == 0 and not longest:
        return None
    bounded = (max(1.0, drafted / longest) if longest else 1.0, float(drafted))
    anything = (1.0, math.inf)
    for (low, high), stated, shares in (
        (bounded, mean, rates),
        (bounded, mean, ()),
        (bounded, None, rates),
        (anything, mean, rates),
        (anything, mean, ()),
    ):
        found = _allowed(accepted, low, high, stated, shares, mean_step, rate_step)
        if found is not None:
            return found
    return None


def mean_rates(weighted: Sequence[float], rounds: int) -> tuple[float, ...]:
    """Printed rates, each already times its line's rounds and summed, as means over all rounds.

    One line's rates come out as they were printed, and rounding never makes one greater than 1.
    """
    return tuple(min(1.0, round(rate / rounds, 12)) for rate in weighted)


def agrees(
    rounds: int, accepted: int, mean: float | None, rates: Sequence[float], mean_step: float, rate_step: float
) -> bool:
    """Does the printed mean or the sum of the printed rates fit so many rounds, or is neither printed?"""
    fits_mean = mean is not None and abs(1 + accepted / rounds - mean) <= mean_step / 2 + SLACK
    fits_rates = bool(rates) and abs(accepted / rounds - sum(rates)) <= rate_step / 2 * len(rates) + SLACK
    return fits_mean or fits_rates or (mean is None and not rates)


def _allowed(
    accepted: int,
    low: float,
    high: float,
    mean: float | None,
    rates: Sequence[float],
    mean_step: float,
    rate_step: float,
) -> Rounds | None:
    """The whole numbers from low to high that print as the mean and as the rates; None where there is none."""
    for shown, spread in (
        (None if mean is None else mean - 1, mean_step / 2),
        (sum(rates) if rates else None, rate_step / 2 * len(rates)),
    ):
        if shown is not None:
            low = max(low, accepted / (shown + spread) if shown + spread > 0 else math.inf)
            high = min(high, accepted / (shown - spread) if shown - spread > 0 else math.inf)
    if (mean is None and not rates) or not low <= high * (1 + SLACK) < math.inf:
        return None
    lowest, highest = math.ceil(low * (1 - SLACK)), math.floor(high * (1 + SLACK))
    if lowest > highest:
        return None
    fitting = [n for n in range(lowest, highest + 1) if _counts_fit(n, accepted, rates, rate_step)] if rates and (
        highest - lowest < 64 and highest * rate_step < 1
    ) else []  # fmt: skip
    if fitting:
        return Rounds(fitting[len(fitting) // 2], fitting[0], fitting[-1])
    return Rounds(round((lowest + highest) / 2), lowest, highest)


def _counts_fit(rounds: int, accepted: int, rates: Sequence[float], rate_step: float) -> bool:
    """Is there a whole number of acceptances at every position that prints as its rate, and do they add up?"""
    counts = [round(rate * rounds) for rate in rates]
    near = all(abs(count / rounds - rate) <= rate_step / 2 + SLACK for count, rate in zip(counts, rates, strict=True))
    return near and sum(counts) == accepted
