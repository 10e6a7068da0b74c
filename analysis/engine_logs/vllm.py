"""vLLM (V1): the periodic log line and the statistics of single requests.

Every log line counts the rounds since the line before it. The keys of the line came in several orders, some builds add
`Current speculative depth`, the first ones printed neither mean nor rates, and some means left out the bonus token.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from analysis.engine_logs.clock import read_clock
from analysis.engine_logs.evidence import Evidence
from analysis.engine_logs.identities import Identities
from analysis.engine_logs.requests import Request, RequestSums, output_tokens, request_name
from analysis.engine_logs.rounding import Rounds, mean_rates, rounds_behind
from analysis.engine_logs.rows import Series
from analysis.engine_logs.values import Malformed, fields, length, printed_number, real, share, shortened, whole, wholes

MARK = b"SpecDecoding metrics:"
SOURCE = re.compile(rb"\(([A-Za-z_]\w*(?: pid=\d+)?)\)|\b(Engine \d+)")
COUNT = re.compile(rb"(\d{1,15}) tokens")
RATES = b"Per-position acceptance rate"
SPEED = b"Accepted throughput"
SUM_OF_RATES = "mean acceptance length = 1 + sum of per-position rates"
MOST_DRAFTED = "drafted <= draft length x rounds"
RATE = "average draft acceptance rate = accepted/drafted"


class LogLines:
    """Lines `SpecDecoding metrics: Mean acceptance length: 3.00, ..., Accepted: 90 tokens, ...`."""

    signs: tuple[bytes, ...] = (MARK,)
    markers: tuple[bytes, ...] = (MARK,)
    keys: frozenset[str] = frozenset()

    def __init__(self) -> None:
        self.identities = Identities()
        self.series = Series(
            ("rounds", "drafted", "accepted"), ("accepted_tokens_per_second", "drafted_tokens_per_second")
        )
        self.lines = self.idle = self.estimated = self.unknown = self.without_bonus = self.short = 0
        self.drafted = self.accepted = self.rounds = self.fewest = self.most = self.accepted_in_rounds = 0
        self.by_position: list[float] = []
        self.with_rates = self.rated_rounds = 0
        self.means, self.mean_sum = 0, 0.0
        self.gammas: set[int] = set()

    def end_file(self) -> None:
        """Lines stand for themselves."""

    def record(self, record: Mapping[str, Any], around: Sequence[Mapping[str, Any]]) -> None:
        """This format is no JSON."""

    def line(self, text: bytes) -> None:
        """Read the line; where two processes wrote into one another, every whole message in it."""
        prefix, *messages = text.split(MARK)
        for message in messages:
            self._message(prefix, message)

    def _message(self, prefix: bytes, message: bytes) -> None:
        found = fields(message.strip())
        drafted, accepted = _tokens(found, b"Drafted"), _tokens(found, b"Accepted")
        mean = _number(found, b"Mean acceptance length")
        if drafted is None or accepted is None:
            if mean is None or self.lines or not found.keys().isdisjoint((b"Drafted", b"Accepted", SPEED)):
                raise Malformed("it lacks 'Accepted: N tokens' or 'Drafted: N tokens'")
            self.means += 1
            self.mean_sum += length(mean, "the mean")
            return
        if accepted > drafted:
            raise Malformed(f"{accepted} tokens accepted of {drafted} drafted")
        rates = _rates(found.get(RATES, []))
        speeds = _number(found, b"Accepted throughput"), _number(found, b"Drafted throughput")
        rate = found.get(b"Avg Draft acceptance rate") or found.get(b"Draft acceptance rate") or [b""]
        percent = printed_number(rate[0], "the rate") if b"%" in rate[0] else None
        depth = _number(found, b"Current speculative depth")
        self.lines += 1
        if drafted == 0:
            self.idle += 1
            return
        if rates and mean is not None:
            mean = self._checked_mean(mean, rates)
            if next(reversed(found)) == RATES and 1 + sum(rates) < mean - _rounding(rates):
                rates = []  # cut after one of them
        if percent is not None:
            shown = ("the printed rate in %", percent), ("accepted/drafted in %", 100 * accepted / drafted)
            self.identities.compare(RATE, *shown, 0.05)
        gamma = int(depth) if depth else len(rates)
        rounds = rounds_behind(accepted, drafted, gamma or None, mean, rates)
        if rounds and rates:
            most = max(gamma, len(rates)) * rounds.most
            self.identities.compare(MOST_DRAFTED, ("drafted", max(drafted, most)), ("draft length x rounds", most))
        self._count(rounds, drafted, accepted, rates, gamma)
        source = SOURCE.search(prefix)
        self.series.add(
            read_clock(prefix),
            (source[1] or source[2]).decode("ascii", "replace") if source else "",
            (rounds.number if rounds else None, drafted, accepted, *speeds),
        )

    def _checked_mean(self, mean: float, rates: list[float]) -> float:
        """The mean with the bonus token in it, compared with the rates of the same line."""
        total, tolerance = sum(rates), _rounding(rates)
        if abs(mean - total) <= tolerance:
            self.without_bonus += 1
            mean += 1
        self.identities.compare(SUM_OF_RATES, ("the printed mean", mean), ("1 + the sum", 1 + total), tolerance)
        return mean

    def _count(self, found: Rounds | None, drafted: int, accepted: int, rates: list[float], gamma: int) -> None:
        self.drafted += drafted
        self.accepted += accepted
        if gamma and len(self.gammas) < 2:
            self.gammas.add(gamma)
        if found is None:
            self.unknown += 1
            return
        rounds = found.number
        self.estimated += not found.exact
        self.rounds += rounds
        self.fewest += found.fewest
        self.most += found.most
        self.accepted_in_rounds += accepted
        self.short += drafted < gamma * rounds
        if rates:
            self.with_rates += 1
            self.rated_rounds += rounds
            self.by_position.extend([0.0] * (len(rates) - len(self.by_position)))
            for position, rate in enumerate(rates):
                self.by_position[position] += rate * rounds

    def evidence(self) -> Evidence | None:
        """All lines together."""
        if self.lines == 0:
            return self._means_only()
        counted = self.unknown == 0 and self.lines > self.idle
        rounds = self.rounds if counted else None
        rated = self.rated_rounds > 0
        every = self.with_rates == self.lines - self.idle - self.unknown
        return Evidence(
            "vLLM log lines",
            "positions" if rated else "totals",
            rounds=rounds,
            drafted=self.drafted,
            accepted=self.accepted,
            mean=1 + self.accepted_in_rounds / self.rounds if self.rounds else None,
            marginal=mean_rates(self.by_position, self.rated_rounds) if rated else None,
            marginal_tolerance=0.0005 * len(self.by_position) + 0.005 * (self.estimated > 0) if every else None,
            gamma=next(iter(self.gammas)) if len(self.gammas) == 1 else None,
            series=self.series.frame(),
            checks=self.identities.checks(),
            warnings=tuple(self._warnings()),
            notes=tuple(self._notes()),
        )

    def _warnings(self) -> list[str]:
        active = self.lines - self.idle
        warnings = []
        if self.means:
            warnings.append(f"{self.means:,} lines that hold no counts were left out")
        if active == 0:
            warnings.append(f"all {self.lines:,} lines are of idle times: nothing was drafted")
        if self.unknown:
            mean = "the mean is of the others" if self.rounds else "the mean is not known"
            warnings.append(f"{self.unknown:,} of {active:,} lines do not tell their rounds: {mean}")
        if self.without_bonus:
            warnings.append(
                f"the mean of {self.without_bonus:,} lines leaves out the bonus token (it equals the sum of the "
                "per-position rates); 1 was added"
            )
        return warnings

    def _notes(self) -> list[str]:
        notes = ["rounds are not printed; they follow from drafted tokens, draft length, mean and rates of each line"]
        if self.estimated:
            notes.append(
                f"the printed digits of {self.estimated:,} of {self.lines - self.idle:,} lines allow several numbers "
                f"of rounds: in all from {self.fewest:,} to {self.most:,}, a mean from "
                f"{1 + self.accepted_in_rounds / self.most:.4f} to {1 + self.accepted_in_rounds / self.fewest:.4f}"
            )
        if self.short:
            notes.append(
                f"in {self.short:,} lines fewer tokens were drafted than draft length x rounds: "
                "shorter drafts lower the marginal acceptance of late positions"
            )
        if 0 < self.with_rates < self.lines - self.idle:
            notes.append(f"acceptance by position is of the {self.with_rates:,} lines that hold it")
        if len(self.gammas) > 1:
            notes.append("the draft length changes within the log")
        return notes

    def _means_only(self) -> Evidence | None:
        if self.means == 0:
            return None
        return Evidence(
            "vLLM log lines",
            "mean",
            mean=self.mean_sum / self.means,
            notes=("the lines hold no counts: the mean is over lines, each with the same weight",),
        )


class Requests:
    """Objects with `num_accepted_draft_tokens` and `num_spec_steps`, from `--per-request-spec-decode-metrics`."""

    signs: tuple[bytes, ...] = ()
    markers: tuple[bytes, ...] = ()
    keys: frozenset[str] = frozenset({"num_accepted_draft_tokens"})

    def __init__(self) -> None:
        self.sums = RequestSums("vLLM per-request metrics")

    def end_file(self) -> None:
        """Requests stand for themselves."""

    def line(self, text: bytes) -> None:
        """This format is JSON."""

    def record(self, record: Mapping[str, Any], around: Sequence[Mapping[str, Any]]) -> None:
        """Read one request's statistics."""
        count = {
            name: None if record.get(name) is None else whole(record[name], name)
            for name in ("num_spec_steps", "num_draft_tokens", "num_accepted_draft_tokens", "num_spec_tokens")
        }
        steps = {
            name: None if record.get(name) is None else wholes(record[name], name)
            for name in ("acceptance_histogram", "per_step_accepted", "per_step_drafted")
        }
        mean, rate = record.get("mean_acceptance_length"), record.get("draft_acceptance_rate")
        self.sums.add(
            Request(
                request_id=request_name(around, self.sums.requests),
                rounds=count["num_spec_steps"],
                drafted=count["num_draft_tokens"],
                accepted=count["num_accepted_draft_tokens"],
                output_tokens=output_tokens(around),
                histogram=steps["acceptance_histogram"],
                gamma=count["num_spec_tokens"],
                mean=None if mean is None else real(mean, "mean_acceptance_length"),
                rate=None if rate is None else share(rate, "draft_acceptance_rate"),
                step_accepted=steps["per_step_accepted"],
                step_drafted=steps["per_step_drafted"],
            )
        )

    def evidence(self) -> Evidence | None:
        """All requests together."""
        return self.sums.evidence()


def _tokens(found: dict[bytes, list[bytes]], key: bytes) -> int | None:
    """A count 'N tokens'; without the unit the line was cut inside the number."""
    values = found.get(key)
    if values is None:
        return None
    count = COUNT.match(values[0])
    if count is None:
        raise Malformed(f"'{key.decode()}' is {shortened(values[0])}, not 'N tokens'")
    return int(count[1])


def _number(found: dict[bytes, list[bytes]], key: bytes) -> float | None:
    values = found.get(key)
    return None if values is None else printed_number(values[0], key.decode())


def _rates(values: list[bytes]) -> list[float]:
    """Per-position rates; empty where a line prints nan, as it does after idle times."""
    if not values:
        return []
    if len(values) > 1 and _decimals(values[-1]) < _decimals(values[0]):
        raise Malformed(f"the last per-position rate, {shortened(values[-1])}, is cut")
    rates = []
    for value in values:
        rate = printed_number(value, "a per-position rate")
        if rate is None:
            return []
        rates.append(rate if 0 <= rate <= 1 else share(rate, "a per-position rate"))
    return rates


def _rounding(rates: list[float]) -> float:
    """How far rounding may take a printed mean from 1 + the sum of printed rates."""
    return 0.005 + 0.0005 * len(rates) + 1e-9


def _decimals(value: bytes) -> int:
    """Decimals of a printed rate, 3 at most."""
    return len(value.partition(b".")[2][:3].rstrip())
