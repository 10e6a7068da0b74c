"""`speculation_profile.json`: acceptance of a draft checkpoint, as published beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from analysis.engine_logs.evidence import Evidence
from analysis.engine_logs.identities import Identities
from analysis.engine_logs.values import Malformed, length, rounding, shares, whole

PRINTED = 5e-7
"""rates are rounded to six decimals"""


class Profile:
    """One profile; histogram keys are tokens emitted per round, from 1 on."""

    signs: tuple[bytes, ...] = ()
    markers: tuple[bytes, ...] = ()
    keys: frozenset[str] = frozenset({"marginal_accept_rates", "conditional_accept_rates", "accept_length_model"})

    def __init__(self) -> None:
        self.found: Evidence | None = None
        self.profiles = 0

    def end_file(self) -> None:
        """A profile is one object."""

    def line(self, text: bytes) -> None:
        """This format is JSON."""

    def record(self, record: Mapping[str, Any], around: Sequence[Mapping[str, Any]]) -> None:
        """Read a profile; where several are given, the first counts."""
        self.profiles += 1
        if self.found is None:
            self.found = _read(record)

    def evidence(self) -> Evidence | None:
        """The profile."""
        return self.found


def _read(record: Mapping[str, Any]) -> Evidence:
    number = record.get("num_speculative_tokens")
    gamma = None if number is None else whole(number, "num_speculative_tokens")
    if record.get("measured") is False:
        warning = "the profile says that it was not measured: its rates are placeholders and were left out"
        return Evidence("speculation profile", "mean", gamma=gamma, warnings=(warning,))
    marginal, conditional = (
        None if record.get(name) is None else shares(record[name], name)
        for name in ("marginal_accept_rates", "conditional_accept_rates")
    )
    mean, per_request = (
        None if record.get(name) is None else length(record[name], name)
        for name in ("mean_accept_length", "mean_accept_length_per_request")
    )
    identities = Identities()
    notes, warnings = [], []
    try:
        histogram = _histogram(record.get("acceptance_length_histogram"))
    except Malformed as problem:
        histogram = None
        warnings.append(f"the profile's histogram was left out: {problem}")
    if marginal is None and conditional is not None:
        marginal = [_product(conditional[: position + 1]) for position in range(len(conditional))]
    if marginal is not None and conditional is not None:
        for position, rate in enumerate(conditional[: len(marginal)]):
            before = marginal[position - 1] if position else 1.0
            printed = (rate, marginal[position], *marginal[:position][-1:])
            identities.compare(
                "marginal acceptance = product of conditional acceptance",
                ("the marginal rate", marginal[position]), ("the product", before * rate),
                max(4 * PRINTED, sum(map(rounding, printed))),
                f"position {position}",
            )  # fmt: skip
    rounds = sum(histogram) if histogram else None
    if mean is not None and per_request is None:
        notes.append("the profile does not say whether its mean is over rounds or over requests")
    if record.get("accept_length_model") == "measured_per_k":
        notes.append("accept_length_model is measured_per_k: these rates hold for this draft length only")
    if record.get("verification_method") not in (None, "longest_prefix"):
        notes.append(f"verification_method is {record['verification_method']!r}: rates by position may not apply")
    if marginal is None and mean is None:
        raise Malformed("the profile holds neither rates nor a mean")
    return Evidence(
        "speculation profile",
        "histogram" if histogram else "positions" if marginal is not None else "mean",
        rounds=rounds,
        accepted=sum(j * count for j, count in enumerate(histogram)) if histogram else None,
        mean=mean,
        mean_per_request=per_request,
        marginal=None if marginal is None else tuple(marginal),
        marginal_tolerance=sum(max(PRINTED, rounding(printed)) for printed in (*(marginal or ()), mean or 0.0)),
        conditional=None if conditional is None else tuple(conditional),
        histogram=tuple(histogram) if histogram else None,
        gamma=gamma,
        checks=identities.checks(),
        warnings=tuple(warnings),
        notes=tuple(notes),
    )


def _histogram(value: Any) -> list[int] | None:
    """Rounds with 0, 1, 2, ... accepted tokens, from rounds by tokens emitted, 1-based."""
    if not isinstance(value, Mapping) or not value:
        return None
    counts: dict[int, int] = {}
    for key, count in value.items():
        if not (isinstance(key, str) and key.isascii() and key.isdigit() and 1 <= int(key[:5]) <= 10_000):
            raise Malformed(f"the histogram has the length {key!r}, not one of 1 to 10000")
        counts[int(key)] = whole(count, "acceptance_length_histogram")
    return [counts.get(length, 0) for length in range(1, max(counts) + 1)]


def _product(rates: Sequence[float]) -> float:
    product = 1.0
    for rate in rates:
        product *= rate
    return product
