"""Has a new system lost acceptance length or speedup against an old one, by more than is allowed and beyond noise?

The null hypothesis is that the ratio new/old is at least 1 - the drop allowed; its log is tested one-sided. Noise comes
from the best that a file holds. With rows of requests it is their scatter, for rounds of one request are alike: each
request is left out in turn (the jackknife of a ratio, Miller 1974), and requests that both systems decoded are compared
in pairs. Acceptance by position, or totals, give the noise of independent rounds, which is too small where requests
differ. A bare mean gives none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri, stdtr, stdtrit

from analysis.acceptance.laws import SAME, AcceptanceLaw
from analysis.acceptance.sources import MeasuredAcceptance

Array = NDArray[np.floating[Any]]

POWER = 0.8
"""at which `detectable_drop` is stated"""
LENGTH, SPEEDUP = "mean acceptance length", "speedup"


@dataclass(frozen=True, eq=False)
class Quantity:
    """One number of one system, and its noise on the log scale."""

    value: float
    noise: str
    """where the noise is from: 'requests', 'rounds', 'bound on rounds' or 'unknown'"""
    variance: float | None
    """of the log of the value; None where nothing tells"""
    freedom: float
    """degrees of freedom of that variance"""
    left_out: pd.Series[float] | None = None
    """log of the value without each request in turn, by request"""


@dataclass(frozen=True)
class Comparison:
    """One number of both systems and the verdict on it."""

    quantity: str
    old: float
    new: float
    change: float
    """new/old - 1"""
    change_interval: tuple[float, float] | None
    """two-sided, at the level's confidence"""
    allowed_drop: float
    test: str
    p_value: float | None
    """chance of a drop at least as large if the true one is the drop allowed; None where noise is unknown"""
    level: float
    """regressed where p_value is below"""
    detectable_drop: float | None
    """smallest true drop that this test finds in 80% of such comparisons"""
    regressed: bool


@dataclass(frozen=True)
class Regression:
    """All comparisons; the chance of any false alarm is at most 1 - confidence (Bonferroni)."""

    regressed: bool
    confidence: float
    comparisons: tuple[Comparison, ...]
    warnings: tuple[str, ...]


def check_regression(
    new: MeasuredAcceptance,
    old: MeasuredAcceptance,
    max_length_drop: float = 0.05,
    max_speedup_drop: float = 0.05,
    confidence: float = 0.95,
) -> Regression:
    """Compare the mean acceptance length of two systems and, where both have a baseline, their speedup.

    Args:
        new: the system to judge.
        old: the one it is judged against.
        max_length_drop: share by which the mean length may fall.
        max_speedup_drop: share by which the speedup may fall.
        confidence: 1 - the chance of a false alarm, over both numbers together.

    Raises:
        ValueError: a setting is out of its range, or nothing can be compared.
    """
    for name, drop in (("max_length_drop", max_length_drop), ("max_speedup_drop", max_speedup_drop)):
        if not 0 <= drop < 1:
            raise ValueError(f"{name} must be a share in [0, 1), got {drop}; 0.05 allows a drop of 5%")
    if not 0.5 < confidence < 1:
        raise ValueError(f"confidence must be in (0.5, 1), got {confidence}")
    told = [f"{system.name}: {warning}" for system in (new, old) for warning in system.warnings]
    pairs = []
    length, remarks = _lengths(new, old)
    told += remarks
    if length is not None:
        pairs.append((LENGTH, *length, max_length_drop))
    if new.speedup is not None and old.speedup is not None:
        pairs.append((SPEEDUP, speedup_of(new.speedup), speedup_of(old.speedup), max_speedup_drop))
        told.append(
            "the speedup's noise is that between prompts; what changed on the machine between runs is not in it"
        )
    elif new.speedup is not None or old.speedup is not None:
        lacking = old.name if new.speedup is not None else new.name
        told.append(
            f"speedup was not compared: {lacking} has none (it needs rounds without a draft, of the same prompts)"
        )
    if not pairs:
        raise ValueError(f"nothing to compare: {new.name} and {old.name} share neither a mean length nor a speedup")
    level = (1 - confidence) / len(pairs)
    comparisons = tuple(compare_quantities(*pair, level) for pair in pairs)
    told += [warning for one in pairs for warning in _noise_warnings(*one[:3])]
    return Regression(any(one.regressed for one in comparisons), confidence, comparisons, tuple(told))


def compare_quantities(name: str, new: Quantity, old: Quantity, allowed_drop: float, level: float) -> Comparison:
    """Test one-sided whether log(new/old) is below log(1 - allowed_drop)."""
    shift, bound = math.log(new.value / old.value), math.log1p(-allowed_drop)
    error, freedom, how = _standard_error(new, old)
    interval = p_value = detectable = None
    if error is None:
        regressed = shift < bound - SAME
        test = "plain comparison: noise cannot be told"
    else:
        p_value = _below((shift - bound) / error, freedom) if error > 0 else float(shift >= bound - SAME)
        reach = _quantile(1 - level / 2, freedom) * error
        interval = (math.expm1(shift - reach), math.expm1(shift + reach))
        detectable = -math.expm1(bound - (_quantile(1 - level, freedom) + _quantile(POWER, freedom)) * error)
        regressed = p_value < level
        test = f"one-sided {'z' if math.isinf(freedom) else f't({freedom:.1f})'} test of log(new/old), {how}"
    return Comparison(
        quantity=name,
        old=old.value,
        new=new.value,
        change=new.value / old.value - 1,
        change_interval=interval,
        allowed_drop=allowed_drop,
        test=test,
        p_value=p_value,
        level=level,
        detectable_drop=detectable,
        regressed=bool(regressed),
    )


def length_over_rounds(measured: MeasuredAcceptance) -> Quantity | None:
    """The mean length over rounds, with the best noise that the measurement holds; None where it has no such mean."""
    requests, rounds = measured.requests, measured.rounds
    if requests is not None and len(requests) > 1:
        emitted = requests["rounds"] + requests["accepted"]
        return _from_requests([(emitted, 1.0), (requests["rounds"], -1.0)])
    mean = measured.mean_length
    if mean is None:
        return None
    if rounds is None or rounds < 2 or (measured.marginal is None and measured.gamma is None):
        return Quantity(mean, "unknown", None, math.inf)
    if measured.marginal is not None:
        noise, variance = "rounds", AcceptanceLaw("measured", measured.marginal).variance * rounds / (rounds - 1)
    else:
        # The largest variance of whole numbers in [0, gamma] with this mean: all or nothing (Bhatia & Davis 2000).
        noise, variance = "bound on rounds", max((mean - 1) * ((measured.gamma or 0) - (mean - 1)), 0.0)
    return Quantity(mean, noise, variance / rounds / mean**2, math.inf)


def length_over_requests(measured: MeasuredAcceptance) -> Quantity | None:
    """The mean over requests of each one's mean length; None where it is unknown."""
    requests = measured.requests
    if requests is not None and len(requests) > 1:
        means = 1 + requests["accepted"] / requests["rounds"]
        return _from_requests([(means, 1.0), (pd.Series(1.0, index=means.index), -1.0)])
    mean = measured.mean_length_per_request
    return None if mean is None else Quantity(mean, "unknown", None, math.inf)


def speedup_of(prompts: pd.DataFrame) -> Quantity:
    """Baseline seconds per token / speculative seconds per token, both summed over the same prompts."""
    ratio = [("baseline_seconds", 1.0), ("baseline_tokens", -1.0), ("seconds", -1.0), ("tokens", 1.0)]
    return _from_requests([(prompts[name], power) for name, power in ratio])


def _from_requests(factors: Sequence[tuple[pd.Series[float], float]]) -> Quantity:
    """A product of sums over requests, each to the power 1 or -1; its noise by leaving each request out in turn."""
    logs = sum(power * math.log(part.sum()) for part, power in factors)
    requests = len(factors[0][0])
    if requests < 2:
        return Quantity(math.exp(logs), "unknown", None, math.inf)
    left_out = pd.Series(0.0, index=factors[0][0].index)
    for part, power in factors:
        values = part.to_numpy(np.float64)
        left_out += power * np.log(values.sum() - values)
    return Quantity(math.exp(logs), "requests", _jackknife(left_out.to_numpy()), requests - 1.0, left_out)


def _jackknife(left_out: Array) -> float:
    """Variance of a statistic from its values without each of n cases: (n-1)/n * sum of squares about their mean."""
    count = len(left_out)
    return float((count - 1) / count * ((left_out - left_out.mean()) ** 2).sum())


def _below(value: float, freedom: float) -> float:
    """Chance that Student's t, or a normal variable for infinite degrees of freedom, is below a value."""
    return float(ndtr(value) if math.isinf(freedom) else stdtr(freedom, value))


def _quantile(chance: float, freedom: float) -> float:
    return float(ndtri(chance) if math.isinf(freedom) else stdtrit(freedom, chance))


def _standard_error(new: Quantity, old: Quantity) -> tuple[float | None, float, str]:
    """Standard error of log(new/old), its degrees of freedom, and how it was come by."""
    one, other = new.left_out, old.left_out
    if one is not None and other is not None and one.index.sort_values().equals(other.index.sort_values()):
        difference = (one - other.reindex(one.index)).to_numpy()
        return math.sqrt(_jackknife(difference)), len(difference) - 1.0, "requests in pairs, each left out in turn"
    if new.variance is None or old.variance is None:
        return None, math.inf, ""
    total = new.variance + old.variance
    parts = [one.variance**2 / one.freedom for one in (new, old) if one.variance]
    freedom = total**2 / sum(parts) if sum(parts) > 0 else math.inf
    sides = {"requests": "requests left out in turn", "rounds": "independent rounds"}
    names = [
        sides.get(side.noise, "independent rounds with the largest variance that their mean allows")
        for side in (new, old)
    ]
    return math.sqrt(total), freedom, names[0] if names[0] == names[1] else f"new: {names[0]}; old: {names[1]}"


def _lengths(new: MeasuredAcceptance, old: MeasuredAcceptance) -> tuple[tuple[Quantity, Quantity] | None, list[str]]:
    """The mean lengths that can be compared, like with like: over rounds, or else over requests."""
    told = []
    if new.gamma is not None and old.gamma is not None and new.gamma != old.gamma:
        told.append(f"draft lengths differ, new {new.gamma} and old {old.gamma} tokens: the mean length depends on it")
    over_rounds = length_over_rounds(new), length_over_rounds(old)
    if over_rounds[0] is not None and over_rounds[1] is not None:
        return (over_rounds[0], over_rounds[1]), told
    over_requests = length_over_requests(new), length_over_requests(old)
    if over_requests[0] is not None and over_requests[1] is not None:
        told.append("mean lengths are means over requests, for one of the files has no other")
        return (over_requests[0], over_requests[1]), told
    either = [one or other for one, other in zip(over_rounds, over_requests, strict=True)]
    if either[0] is None or either[1] is None:
        return None, told
    told.append("one mean length is over rounds and the other over requests: they differ even for one system")
    return (either[0], either[1]), told


def _noise_warnings(name: str, new: Quantity, old: Quantity) -> list[str]:
    sources = {new.noise, old.noise}
    if "unknown" in sources:
        return [f"cannot tell noise in the {name}: a file holds no more than a mean or one request"]
    if sources & {"rounds", "bound on rounds"}:
        return [f"the noise of the {name} is that of independent rounds, too small where requests differ"]
    if min(new.freedom, old.freedom) < 9:
        fewest = int(min(new.freedom, old.freedom)) + 1
        return [f"the noise of the {name} is that between {fewest} requests only"]
    return []
