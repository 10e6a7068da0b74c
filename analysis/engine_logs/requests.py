"""Statistics of single requests, added up: the engines differ only in the names of their fields."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.engine_logs.evidence import Evidence
from analysis.engine_logs.identities import Identities
from analysis.engine_logs.rows import Rows
from analysis.engine_logs.values import Malformed, first, rounding, whole

STEP_ROWS = 2_000_000
"""rounds that are kept as rows; the totals count all of them"""
LONGEST_DRAFT = 10_000
COLUMNS = ("request_id", "rounds", "drafted", "accepted", "output_tokens", "mean_acceptance_length", "gamma")


@dataclass(frozen=True)
class Request:
    """One request's counts; None where its log has no such field."""

    request_id: str
    rounds: int | None = None
    drafted: int | None = None
    accepted: int | None = None
    output_tokens: int | None = None
    """tokens of the whole output, prefill's first token included"""
    histogram: Sequence[int] | None = None
    """rounds with 0, 1, 2, ... accepted tokens"""
    gamma: int | None = None
    mean: float | None = None
    """mean acceptance length as the log states it"""
    rate: float | None = None
    """accepted/drafted as the log states it"""
    step_accepted: Sequence[int] | None = None
    step_drafted: Sequence[int] | None = None
    extras: tuple[object, ...] = ()
    """values of the table's further columns"""

    def __post_init__(self) -> None:
        if self.rounds is None and self.accepted is None and self.mean is None and self.histogram is None:
            raise Malformed(f"request {self.request_id} has neither counts nor a mean")
        if self.accepted is not None and self.drafted is not None and self.accepted > self.drafted:
            raise Malformed(f"{self.accepted} tokens accepted of {self.drafted} drafted")
        if self.mean is not None and self.mean < 0:
            raise Malformed(f"a mean acceptance length of {self.mean:g}")
        longest = max(len(self.histogram or ()) - 1, *(self.step_accepted or ()), *(self.step_drafted or ()), 0)
        if longest > LONGEST_DRAFT:
            raise Malformed(f"a round of {longest} tokens")
        if self.step_drafted is not None and len(self.step_drafted) != len(self.step_accepted or ()):
            raise Malformed(f"{len(self.step_accepted or ())} steps accepted and {len(self.step_drafted)} drafted")
        if any(good > all_ for good, all_ in zip(self.step_accepted or (), self.step_drafted or (), strict=False)):
            raise Malformed("a step accepted more tokens than it drafted")


class RequestSums:
    """Sums over requests, their table, and the identities that each must satisfy.

    `tolerance` is of the stated means and rates: half a unit of the last printed digit, where their own digits do not
    tell it.
    """

    def __init__(self, format_name: str, extra_columns: Sequence[str] = (), tolerance: float = 1e-6) -> None:
        self.format = format_name
        self.tolerance = tolerance
        self.identities = Identities()
        self.rows = Rows((*COLUMNS, *extra_columns))
        self.requests = 0
        self.idle = 0
        self.sums: Counter[str] = Counter()
        self.known: Counter[str] = Counter()
        self.gammas: set[int | None] = set()
        self.histogram: list[int] = []
        self.tested: list[int] = []
        self.mean_sum = 0.0
        self.steps = _Steps()

    def add(self, request: Request) -> None:
        """Check a request's identities and add it to the sums."""
        where = f"request {request.request_id}"
        rounds, accepted, histogram = request.rounds, request.accepted, request.histogram
        if histogram is None and request.step_accepted is not None:
            histogram = np.bincount(np.asarray(request.step_accepted, dtype=np.int64), minlength=1).tolist()
        if histogram is not None:
            counted, weighted = sum(histogram), sum(j * count for j, count in enumerate(histogram))
            self.identities.compare("sum_j h_j = rounds", ("the sum", counted), ("rounds", rounds), where=where)
            self.identities.compare(
                "sum_j j*h_j = accepted", ("the sum", weighted), ("accepted", accepted), where=where
            )
            rounds = counted if rounds is None else rounds
            accepted = weighted if accepted is None else accepted
            _add_to(self.histogram, histogram)
            self.known["histogram"] += 1
            gamma = request.gamma or 0
            if request.step_drafted is None and len(histogram) <= gamma + 1 and request.drafted == gamma * counted:
                reached = list(accumulate(reversed(histogram)))[::-1]  # rounds that tested position 0, 1, 2, ...
                _add_to(self.tested, reached[:gamma])
                self.known["tested"] += 1
        mean = self._mean(request, rounds, accepted, where)
        for name, value in (("rounds", rounds), ("drafted", request.drafted), ("accepted", accepted)):
            if value is not None:
                self.sums[name] += value
                self.known[name] += 1
        self.requests += 1
        if len(self.gammas) < 2:
            self.gammas.add(request.gamma)
        self.rows.add(
            request.request_id, rounds, request.drafted, accepted, request.output_tokens, mean, request.gamma,
            *request.extras,
        )  # fmt: skip
        if request.step_accepted is not None:
            self._add_steps(request, where)

    def _mean(self, request: Request, rounds: int | None, accepted: int | None, where: str) -> float | None:
        """The request's mean, checked against what is stated; None for a request that drafted nothing."""
        if rounds == 0:
            self.idle += 1
            return None
        counted = 1 + accepted / rounds if rounds and accepted is not None else None
        self.identities.compare(
            "mean acceptance length = 1 + accepted/rounds",
            ("the stated mean", request.mean), ("1 + accepted/rounds", counted), self._tolerance(request.mean), where,
        )  # fmt: skip
        rate = accepted / request.drafted if request.drafted and accepted is not None else None
        self.identities.compare(
            "acceptance rate = accepted/drafted",
            ("the stated rate", request.rate), ("accepted/drafted", rate), self._tolerance(request.rate), where,
        )  # fmt: skip
        mean = request.mean if counted is None else counted
        if mean is not None:
            self.mean_sum += mean
            self.known["mean"] += 1
        return mean

    def _tolerance(self, stated: float | None) -> float:
        return self.tolerance if stated is None else max(self.tolerance, rounding(stated))

    def _add_steps(self, request: Request, where: str) -> None:
        accepted = np.asarray(request.step_accepted, dtype=np.int64)
        compare = self.identities.compare
        compare("steps = rounds", ("steps", len(accepted)), ("rounds", request.rounds), where=where)
        compare("accepted by step", ("the sum", int(accepted.sum())), ("accepted", request.accepted), where=where)
        drafted = None
        if request.step_drafted is not None:
            drafted = np.asarray(request.step_drafted, dtype=np.int64)
            compare("drafted by step", ("the sum", int(drafted.sum())), ("drafted", request.drafted), where=where)
            reached = np.bincount(np.minimum(drafted, accepted + 1), minlength=1)  # tokens tested in each round
            _add_to(self.tested, reached[::-1].cumsum()[::-1][1:].tolist())
            self.known["tested"] += 1
        self.known["steps"] += 1
        self.steps.add(request.request_id, drafted, accepted)

    def evidence(
        self,
        notes: Sequence[str] = (),
        marginal: tuple[float, ...] | None = None,
        marginal_tolerance: float | None = 1e-9,
    ) -> Evidence | None:
        """The sums, or None where there was no request.

        `marginal` is acceptance by position where there are no histograms, its tolerance that of `Evidence`.
        """
        if self.requests == 0:
            return None
        gamma = next(iter(self.gammas)) if len(self.gammas) == 1 else None
        rounds, drafted, accepted = (self._sum(name) for name in ("rounds", "drafted", "accepted"))
        histogram = self._histogram(gamma)
        active = self.requests - self.idle
        per_request = self.mean_sum / active if active and self.known["mean"] == active else None
        told = list(notes)
        if rounds is None and per_request is not None:
            told.append("the log has no number of rounds: the mean is over requests")
        if gamma and rounds and drafted is not None and drafted < gamma * rounds and histogram:
            told.append(
                f"{drafted:,} tokens were drafted in {rounds:,} rounds, fewer than gamma {gamma} in each: "
                "shorter drafts lower the marginal acceptance of late positions"
            )
        if len(self.gammas) > 1 and None not in self.gammas and histogram:
            told.append("the draft length changes: shorter drafts lower the marginal acceptance of late positions")
        return Evidence(
            self.format,
            self._level(histogram, marginal, counted=(rounds, drafted, accepted) != (None, None, None)),
            rounds=rounds,
            drafted=drafted,
            accepted=accepted,
            mean=per_request if rounds is None else None,
            mean_per_request=per_request,
            marginal=marginal,
            marginal_tolerance=marginal_tolerance,
            conditional=self._conditional(histogram),
            histogram=histogram,
            gamma=gamma,
            requests=self.rows.frame(),
            steps=self.steps.frame() if self.known["steps"] == self.requests else None,
            checks=self.identities.checks(),
            warnings=tuple(self.rows.warning("requests")),
            notes=tuple(told),
        )

    def _sum(self, name: str) -> int | None:
        """A sum, or None unless every request has the count."""
        return int(self.sums[name]) if self.known[name] == self.requests else None

    def _histogram(self, gamma: int | None) -> tuple[int, ...] | None:
        """Summed over requests, with a place for every position up to gamma."""
        if self.known["histogram"] < self.requests or sum(self.histogram) == 0:
            return None
        missing = min(gamma or 0, LONGEST_DRAFT) + 1 - len(self.histogram)
        return tuple(self.histogram + [0] * missing)

    def _level(self, histogram: tuple[int, ...] | None, marginal: tuple[float, ...] | None, counted: bool) -> str:
        if histogram:
            return "steps" if self.known["steps"] == self.requests else "histogram"
        if marginal:
            return "positions"
        return "totals" if counted else "mean"

    def _conditional(self, histogram: tuple[int, ...] | None) -> tuple[float | None, ...] | None:
        """Acceptance given that a position was drafted and reached, where every round's draft length is known."""
        if histogram is None or self.known["tested"] < self.requests:
            return None
        tested = self.tested + [0] * len(histogram)
        passed = [sum(histogram[position + 1 :]) for position in range(len(histogram) - 1)]
        return tuple(good / tried if tried else None for good, tried in zip(passed, tested, strict=False))


def request_name(around: Sequence[Mapping[str, Any]], number: int) -> str:
    """The id of the innermost object around that has one, else the number of the request in the file."""
    for outer in reversed(around):
        name = first(outer, "id", "rid", "request_id", "question_id")
        if isinstance(name, str | int):
            return str(name)[:200]
    return str(number)


def output_tokens(around: Sequence[Mapping[str, Any]]) -> int | None:
    """`completion_tokens` of the objects around, or of the usage in one of them."""
    for outer in reversed(around):
        usage = outer.get("usage")
        tokens = first(outer, "completion_tokens")
        if tokens is None and isinstance(usage, Mapping):
            tokens = usage.get("completion_tokens")
        if tokens is not None:
            return whole(tokens, "completion_tokens")
    return None


class _Steps:
    """The rounds of requests, up to STEP_ROWS of them."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, int]] = []
        self.parts: list[tuple[NDArray[np.int32] | None, NDArray[np.int32]]] = []
        self.count = 0

    def add(self, request_id: str, drafted: NDArray[np.int64] | None, accepted: NDArray[np.int64]) -> None:
        self.count += len(accepted)
        if self.count <= STEP_ROWS:
            self.requests.append((request_id, len(accepted)))
            self.parts.append((None if drafted is None else drafted.astype(np.int32), accepted.astype(np.int32)))

    def frame(self) -> pd.DataFrame | None:
        if not self.parts:
            return None
        names, lengths = zip(*self.requests, strict=True)
        columns: dict[str, object] = {
            "request_id": np.repeat(np.array(names, dtype=object), lengths),
            "step": np.concatenate([np.arange(length, dtype=np.int32) for length in lengths]),
        }
        drafted = [part for part, _ in self.parts if part is not None]
        if len(drafted) == len(self.parts):
            columns["drafted"] = np.concatenate(drafted)
        columns["accepted"] = np.concatenate([part for _, part in self.parts])
        return pd.DataFrame(columns)


def _add_to(sums: list[int], counts: Sequence[int]) -> None:
    sums.extend([0] * (len(counts) - len(sums)))
    for index, count in enumerate(counts):
        sums[index] += count
