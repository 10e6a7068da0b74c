"""How many rounds a line tells of that prints its mean and rates rounded, and not the rounds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

SLACK = 1e-9


class Rounds(NamedTuple):
    """Rounds of one line: their number, and whether the printed digits leave no other."""

    number: int
    exact: bool


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

    Where every round drafted gamma tokens the number is drafted/gamma, if the printed mean agrees; else it is the
    whole number that the printed digits allow, or the middle of those that they allow.

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
            return Rounds(full, True)
    total = sum(rates)
    spread = rate_step / 2 * len(rates)
    low, high = 1.0, float(max(drafted, accepted))  # a round with a draft drafts at least one token
    if mean is not None:
        low = max(low, accepted / (mean - 1 + mean_step / 2) if mean - 1 + mean_step / 2 > 0 else math.inf)
        high = min(high, accepted / (mean - 1 - mean_step / 2) if mean - 1 - mean_step / 2 > 0 else math.inf)
    if rates:
        low = max(low, accepted / (total + spread) if total + spread > 0 else low)
        high = min(high, accepted / (total - spread) if total - spread > 0 else math.inf)
    if accepted == 0 or (mean is None and not rates) or not low <= high * (1 + SLACK) < math.inf:
        return None
    lowest, highest = math.ceil(low * (1 - SLACK)), math.floor(high * (1 + SLACK))
    if lowest > highest:
        return None
    fitting = [n for n in range(lowest, highest + 1) if _counts_fit(n, accepted, rates, rate_step)] if rates and (
        highest - lowest < 64 and highest * rate_step < 1
    ) else []  # fmt: skip
    if len(fitting) == 1 or lowest == highest:
        return Rounds(fitting[0] if fitting else lowest, True)
    return Rounds(fitting[len(fitting) // 2] if fitting else round((lowest + highest) / 2), False)


def agrees(
    rounds: int, accepted: int, mean: float | None, rates: Sequence[float], mean_step: float, rate_step: float
) -> bool:
    """Does the printed mean, or else the sum of the printed rates, fit so many rounds?"""
    if mean is not None:
        return abs(1 + accepted / rounds - mean) <= mean_step / 2 + SLACK
    return not rates or abs(accepted / rounds - sum(rates)) <= rate_step / 2 * len(rates) + SLACK


def _counts_fit(rounds: int, accepted: int, rates: Sequence[float], rate_step: float) -> bool:
    """Is there a whole number of acceptances at every position that prints as its rate, and do they add up?"""
    counts = [round(rate * rounds) for rate in rates]
    near = all(abs(count / rounds - rate) <= rate_step / 2 + SLACK for count, rate in zip(counts, rates, strict=True))
    return near and sum(counts) == accepted
