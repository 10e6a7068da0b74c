"""`speculation_profile.json`: the acceptance of a draft, published beside it.

The format is that of NVIDIA Model-Optimizer's specdec_bench (schema 1.0). It holds both conventions of acceptance by
position (conditional, as Dynamo reads it, and marginal, as vLLM does), both means (over rounds and over requests), and
a histogram keyed by tokens emitted per round, so from 1 on. What is not known is null, never zero.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.acceptance.laws import check_marginal, conditional_of, marginal_of
from sim.records import write_json

if TYPE_CHECKING:
    from analysis.acceptance.sources import MeasuredAcceptance

SCHEMA_VERSION = "1.0"
MEAN_TOLERANCE = 0.02
"""tokens by which the mean may differ from 1 + the sum of marginals, as the format's own check has it"""
ROUNDING = 1e-6
"""rates are printed with six decimals"""
CHAIN_METHODS = ("eagle", "eagle1", "eagle2", "eagle3", "draft_model")
BLOCK_METHODS = ("dflash", "dspark")
"""Which methods draft a longer chain by going on from a shorter one, and which plan the whole block anew; as the
format's producer has it."""
LONGEST_ROUND = 100_000


@dataclass(frozen=True)
class SpeculationProfile:
    """A profile's fields under their own names; None where unknown."""

    schema_version: str = SCHEMA_VERSION
    measured: bool = True
    """False for a placeholder beside a draft that nobody measured; it holds no rates then"""
    method: str | None = None
    num_speculative_tokens: int | None = None
    """gamma"""
    conditional_accept_rates: tuple[float | None, ...] | None = None
    """None at positions that no round reached"""
    marginal_accept_rates: tuple[float, ...] | None = None
    mean_accept_length: float | None = None
    """tokens emitted per round, over rounds"""
    mean_accept_length_per_request: float | None = None
    acceptance_length_histogram: Mapping[int, int] | None = None
    """rounds by tokens emitted, from 1 on"""
    accept_length_model: str | None = None
    """'chain_analytic': holds for shorter drafts too; 'measured_per_k': for this draft length only"""
    verification_method: str | None = None
    other: Mapping[str, Any] = field(default_factory=dict)
    """keys that this program does not know, kept as they were"""

    def document(self) -> dict[str, Any]:
        """The profile as JSON has it, its consistency check made anew."""
        known = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "other"}
        counts = self.acceptance_length_histogram
        if counts is not None:
            known["acceptance_length_histogram"] = {str(length): counts[length] for length in sorted(counts)}
        other = dict(self.other)
        validation = dict(other.pop("validation", None) or {})
        if (check := self.mean_consistency()) is not None:
            validation["mean_consistency"] = check
        return {**known, "validation": validation or None, **other}

    def mean_consistency(self) -> dict[str, Any] | None:
        """Is the mean 1 + the sum of marginals? None where one of them is unknown."""
        if self.mean_accept_length is None or self.marginal_accept_rates is None:
            return None
        implied = math.fsum((1.0, *self.marginal_accept_rates))
        delta = abs(implied - self.mean_accept_length)
        return {
            "implied_mean_accept_length": implied,
            "reported_mean_accept_length": self.mean_accept_length,
            "abs_delta": delta,
            "tolerance": MEAN_TOLERANCE,
            "passed": delta <= MEAN_TOLERANCE,
        }

    def warnings(self) -> list[str]:
        """What in a readable profile does not fit together."""
        found = []
        if not self.measured:
            found.append("the profile says that it was not measured: its rates are placeholders and were left out")
        check = self.mean_consistency()
        if check is not None and not check["passed"]:
            found.append(
                f"mean_accept_length is {self.mean_accept_length:.6g}, but 1 + the sum of marginal_accept_rates is "
                f"{check['implied_mean_accept_length']:.6g}: was num_speculative_tokens smaller than the run's?"
            )
        if self.marginal_accept_rates is not None and self.conditional_accept_rates is not None:
            excess = _excess(self.conditional_accept_rates, self.marginal_accept_rates)
            if max(excess) > 1e-3:
                found.append(
                    f"conditional_accept_rates multiply to up to {max(excess):.3g} more than marginal_accept_rates, "
                    "as where some rounds drafted fewer tokens; the marginal rates are used"
                )
        counts, mean = self.acceptance_length_histogram, self.mean_accept_length
        if counts and mean is not None:
            by_count = sum(length * count for length, count in counts.items()) / sum(counts.values())
            if abs(by_count - mean) > MEAN_TOLERANCE:
                found.append(
                    f"mean_accept_length is {mean:.6g}, but the histogram's mean is {by_count:.6g}: "
                    "is it the mean over requests?"
                )
        if counts and self.num_speculative_tokens is not None and max(counts) > self.num_speculative_tokens + 1:
            found.append(
                f"the histogram has rounds of {max(counts)} tokens, more than num_speculative_tokens "
                f"{self.num_speculative_tokens} allows"
            )
        if self.verification_method not in (None, "longest_prefix") and self.marginal_accept_rates is not None:
            found.append(f"verification_method is '{self.verification_method}': rates by position may not describe it")
        return found


def read_profile(path: Path) -> SpeculationProfile:
    """Read a profile.

    Raises:
        ValueError: it is not readable, or holds what no measurement can give; one line.
    """
    try:
        document = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a readable speculation profile: {error}") from error
    try:
        return parse_profile(document)
    except ValueError as error:
        raise ValueError(f"{path} is a broken speculation profile: {error}") from error


def write_profile(profile: SpeculationProfile, path: Path) -> None:
    """Write a profile atomically."""
    write_json(profile.document(), path)


def parse_profile(document: Any) -> SpeculationProfile:
    """A profile from its JSON value; unknown keys are kept, and placeholders of what was not measured are not.

    Raises:
        ValueError: naming the field and what is wrong with it.
    """
    if not isinstance(document, dict):
        raise ValueError(f"it must be a JSON object, got {type(document).__name__}")
    version = document.get("schema_version")
    if version is None:
        raise ValueError("it lacks schema_version")
    if str(version).split(".")[0] != SCHEMA_VERSION.split(".")[0]:
        raise ValueError(f"its schema version is {version!r}, this program knows {SCHEMA_VERSION}")
    measured = document.get("measured", True)
    if not isinstance(measured, bool):
        raise ValueError(f"measured must be true or false, got {measured!r}")
    if not isinstance(document.get("validation"), dict | None):
        raise ValueError(f"validation must be an object or null, got {document['validation']!r}")
    known = {one.name for one in fields(SpeculationProfile)} - {"other"}
    gamma = _number(document, "num_speculative_tokens", 1, LONGEST_ROUND)
    if gamma is not None and gamma != int(gamma):
        raise ValueError(f"num_speculative_tokens must be a whole number, got {gamma}")
    profile = SpeculationProfile(
        schema_version=str(version),
        measured=measured,
        num_speculative_tokens=None if gamma is None else int(gamma),
        method=_text(document, "method"),
        accept_length_model=_text(document, "accept_length_model"),
        verification_method=_text(document, "verification_method"),
        other={name: value for name, value in document.items() if name not in known},
        **(_measurements(document, gamma) if measured else {}),
    )
    numbers = (
        *(profile.marginal_accept_rates, profile.conditional_accept_rates),
        *(profile.mean_accept_length, profile.acceptance_length_histogram),
    )
    if measured and all(one is None for one in numbers):
        raise ValueError("it says measured, but holds no rates, no mean and no histogram")
    return profile


def profile_of(measured: MeasuredAcceptance, method: str | None = None) -> SpeculationProfile:
    """What was measured, as a profile.

    Both vectors describe all rounds, so that the mean is 1 + the sum of marginals, as the format has it: where some
    rounds drafted fewer tokens, they are smaller than acceptance given that a position was drafted.
    """
    method = method if method is not None else measured.method
    model = measured.accept_length_model
    if model is None and method is not None and method.lower() in (*CHAIN_METHODS, *BLOCK_METHODS):
        model = "chain_analytic" if method.lower() in CHAIN_METHODS else "measured_per_k"
    counts, marginal = measured.histogram, measured.marginal
    return SpeculationProfile(
        method=method,
        num_speculative_tokens=measured.gamma,
        conditional_accept_rates=None if marginal is None else conditional_of(marginal),
        marginal_accept_rates=marginal,
        mean_accept_length=measured.mean_length,
        mean_accept_length_per_request=measured.mean_length_per_request,
        acceptance_length_histogram=None if counts is None else {j + 1: n for j, n in enumerate(counts) if n},
        accept_length_model=model,
        verification_method=measured.verification_method,
    )


def _measurements(document: Mapping[str, Any], gamma: float | None) -> dict[str, Any]:
    """The measured fields, checked against each other."""
    conditional = _rates(document, "conditional_accept_rates", gamma, unreached=True)
    marginal = _rates(document, "marginal_accept_rates", gamma)
    if marginal is not None:
        check_marginal(marginal, ROUNDING)
        if conditional is not None and min(_excess(conditional, marginal)) < -1e-3:
            raise ValueError(
                "conditional_accept_rates multiply to less than marginal_accept_rates; were the two swapped?"
            )
    longest = LONGEST_ROUND if gamma is None else gamma + 1
    return {
        "conditional_accept_rates": conditional,
        "marginal_accept_rates": marginal,
        "mean_accept_length": _number(document, "mean_accept_length", 1, longest),
        "mean_accept_length_per_request": _number(document, "mean_accept_length_per_request", 1, longest),
        "acceptance_length_histogram": _histogram(document.get("acceptance_length_histogram")),
    }


def _excess(conditional: Sequence[float | None], marginal: Sequence[float]) -> list[float]:
    """By how much products of conditional rates exceed marginal rates, by position."""
    return [product - rate for product, rate in zip(marginal_of(conditional), marginal, strict=False)]


def _text(document: Mapping[str, Any], name: str) -> str | None:
    value = document.get(name)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{name} must be a text or null, got {value!r}")
    return value


def _number(document: Mapping[str, Any], name: str, low: float, high: float) -> float | None:
    value = document.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high + ROUNDING:
        raise ValueError(f"{name} must be a number in [{low:g}, {high:g}] or null, got {value!r}")
    return float(value)


def _rates(document: Mapping[str, Any], name: str, gamma: float | None, unreached: bool = False) -> Any:
    values = document.get(name)
    if values is None:
        return None
    if not isinstance(values, list) or not values:
        raise ValueError(f"{name} must be a list of rates or null, got {values!r}")
    for position, rate in enumerate(values):
        if unreached and rate is None:
            continue
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate <= 1:
            raise ValueError(f"{name} must be rates in [0, 1], got {rate!r} at position {position}")
    if gamma is not None and len(values) != gamma:
        raise ValueError(f"{name} has {len(values)} rates, but num_speculative_tokens is {gamma:g}")
    return tuple(None if rate is None else float(rate) for rate in values)


def _histogram(value: Any) -> dict[int, int] | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise ValueError(f"acceptance_length_histogram must be an object of counts or null, got {value!r}")
    counts = {}
    for key, count in value.items():
        if not (key.isascii() and key.isdigit() and len(key) < 7 and 1 <= int(key) <= LONGEST_ROUND):
            raise ValueError(f"acceptance_length_histogram is keyed by tokens emitted, from 1 on, got the key '{key}'")
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            raise ValueError(f"acceptance_length_histogram must hold counts of rounds, got {count!r} for length {key}")
        counts[int(key)] = count
    if sum(counts.values()) == 0:
        raise ValueError("acceptance_length_histogram counts no round; leave it null where nothing was counted")
    return counts
