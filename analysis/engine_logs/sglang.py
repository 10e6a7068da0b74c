"""SGLang: the decode log line, the statistics of single requests, and server information."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from analysis.engine_logs.clock import read_clock
from analysis.engine_logs.evidence import Evidence
from analysis.engine_logs.requests import Request, RequestSums, output_tokens, request_name
from analysis.engine_logs.rows import Series
from analysis.engine_logs.values import Malformed, fields, first, printed_number, real, share, whole, wholes

MARK = b"Decode batch"
LENGTH = b"accept len: "
RANK = re.compile(rb"\b((?:[A-Z]{2}\d+)(?: [A-Z]{2}\d+)*)\]")


class LogLines:
    """Lines `[2026-08-23 09:06:21 TP0] Decode batch, #running-req: 1, ..., accept len: 3.55, accept rate: 0.51, ...`.

    A line covers the steps since the line before it. It holds no counts (some builds add `spec tokens` and
    `spec rounds`), so the mean over lines is weighted by running requests: each line covers equally many steps.
    """

    signs: tuple[bytes, ...] = (LENGTH,)
    markers: tuple[bytes, ...] = (LENGTH,)
    keys: frozenset[str] = frozenset()

    def __init__(self) -> None:
        self.series = Series(
            ("rounds", "emitted"), ("accept_length", "accept_rate", "running_requests", "tokens_per_second")
        )
        self.lines = self.idle = self.weightless = 0
        self.plain = self.weighted = self.weight = 0.0
        self.rounds = self.emitted = self.counted = 0
        self.gamma_without_bonus = _Interval()
        self.gamma_with_bonus = _Interval()

    def end_file(self) -> None:
        """Lines stand for themselves."""

    def record(self, record: Mapping[str, Any], around: Sequence[Mapping[str, Any]]) -> None:
        """This format is no JSON."""

    def line(self, text: bytes) -> None:
        """Read every decode message in the line."""
        prefix, *messages = text.split(MARK)
        for message in messages:
            if LENGTH in message:
                self._message(prefix, message)

    def _message(self, prefix: bytes, message: bytes) -> None:
        found = fields(message.lstrip(b" .,[]0123456789"))
        length = _number(found, b"accept len")
        if length is None or length == 0:
            self.idle += 1
            return
        if length < 0 or length > 10_000:
            raise Malformed(f"an accept length of {length:g}")
        if b"." not in found[b"accept len"][0] or len(found[b"accept len"][0].partition(b".")[2]) < 2:
            raise Malformed("its accept length is cut")
        rate, running = _number(found, b"accept rate"), _number(found, b"#running-req")
        rounds, tokens = (_number(found, key) for key in (b"spec rounds", b"spec tokens"))
        self.lines += 1
        self.plain += length
        self.weightless += running is None
        weight = max(running or 1.0, 1.0)
        self.weighted += weight * length
        self.weight += weight
        if rounds is not None and tokens is not None:
            self.rounds += whole(rounds, "spec rounds")
            self.emitted += whole(tokens, "spec tokens")
            self.counted += 1
        if rate:
            self.gamma_without_bonus.meet(length - 1, rate)
            self.gamma_with_bonus.meet(length, rate)
        rank = RANK.search(prefix)
        self.series.add(
            read_clock(prefix),
            rank[1].decode() if rank else "",
            (rounds, tokens, length, rate, running, _number(found, b"gen throughput (token/s)")),
        )

    def evidence(self) -> Evidence | None:
        """All lines together."""
        if self.lines == 0:
            warning = f"all {self.idle:,} lines are of idle times: nothing was drafted"
            return Evidence("SGLang log lines", "mean", warnings=(warning,)) if self.idle else None
        counted = self.counted == self.lines and self.rounds > 0
        gamma, notes = self._gamma()
        weighted = self.weighted / self.weight if self.weightless == 0 else self.plain / self.lines
        if not counted and self.lines > 1:
            notes.append(
                f"the lines hold no counts: the mean is over {self.lines:,} lines"
                + (
                    f", weighted by running requests (unweighted {self.plain / self.lines:.4f})"
                    if self.weightless == 0
                    else ", each with the same weight"
                )
            )
        return Evidence(
            "SGLang log lines", "totals" if counted else "mean",
            rounds=self.rounds if counted else None, emitted=self.emitted if counted else None,
            accepted=self.emitted - self.rounds if counted and self.emitted >= self.rounds else None,
            mean=self.emitted / self.rounds if counted else weighted,
            gamma=gamma, series=self.series.frame(), notes=tuple(notes),
        )  # fmt: skip

    def _gamma(self) -> tuple[int | None, list[str]]:
        """The draft length: rate = (length - 1)/gamma, or in older versions length/(gamma + 1)."""
        plain, older = self.gamma_without_bonus.whole(), self.gamma_with_bonus.whole()
        if plain is not None:
            return plain, ["gamma is (accept length - 1) / accept rate"]
        if older is not None and older > 1:
            return older - 1, [
                "the accept rate counts the bonus token, as older versions do: gamma + 1 = length / rate"
            ]
        return None, []


class _Interval:
    """The ratios length/rate that all lines' printed digits allow."""

    def __init__(self) -> None:
        self.low, self.high = 0.0, math.inf

    def meet(self, length: float, rate: float) -> None:
        if rate > 0.005:
            self.low = max(self.low, (length - 0.005) / (rate + 0.005))
            self.high = min(self.high, (length + 0.005) / (rate - 0.005))

    def whole(self) -> int | None:
        """The only whole number >= 1 between the bounds."""
        low, high = max(1, math.ceil(self.low - 1e-9)), self.high + 1e-9
        return low if low <= high < low + 1 else None


class Requests:
    """Objects with `spec_verify_ct`: a response's `meta_info`, or `sglext.spec_tokens_details`.

    Older versions name their fields differently, divide all completion tokens by the verifications, and some builds
    count the bonus token in the histogram.
    """

    signs: tuple[bytes, ...] = ()
    markers: tuple[bytes, ...] = ()
    keys: frozenset[str] = frozenset({"spec_verify_ct", "spec_accept_length"})

    def __init__(self) -> None:
        self.sums = RequestSums("SGLang per-request metrics")
        self.with_prefill = self.with_bonus = 0

    def end_file(self) -> None:
        """Requests stand for themselves."""

    def line(self, text: bytes) -> None:
        """This format is JSON."""

    def record(self, record: Mapping[str, Any], around: Sequence[Mapping[str, Any]]) -> None:
        """Read one request's statistics."""
        accepted = _count(record, "spec_num_correct_drafts", "spec_accepted_drafts", "spec_accept_token_num")
        drafted = _count(record, "spec_num_proposed_drafts", "spec_proposed_drafts", "spec_draft_token_num")
        rounds = _count(record, "spec_verify_ct")
        listed = first(record, "spec_correct_drafts_histogram", "spec_accept_histogram")
        histogram = wholes(listed, "the histogram") if listed else None
        output = _count(record, "completion_tokens")
        mean = _mean(record)
        if histogram is not None:
            histogram = self._without_bonus(histogram, accepted, mean)
        if mean is not None and rounds and accepted is not None and output is not None:
            with_prefill = abs(mean - output / rounds) < 1e-6 < abs(mean - 1 - accepted / rounds)
            self.with_prefill += with_prefill
            mean = None if with_prefill else mean
        even = rounds and drafted is not None and drafted % rounds == 0
        rate = first(record, "spec_accept_rate")
        self.sums.add(
            Request(
                request_id=request_name((*around, record), self.sums.requests),
                rounds=rounds,
                drafted=drafted,
                accepted=accepted,
                output_tokens=output if output is not None else output_tokens(around),
                histogram=histogram,
                gamma=drafted // rounds if even and rounds and drafted else None,
                mean=mean,
                rate=None if rate is None else share(rate, "spec_accept_rate"),
            )
        )

    def _without_bonus(self, histogram: list[int], accepted: int | None, mean: float | None) -> list[int]:
        """The histogram by accepted drafted tokens; one that counts emitted tokens is moved down by one."""
        rounds, total = sum(histogram), sum(j * count for j, count in enumerate(histogram))
        if rounds == 0 or histogram[0] > 0:
            return histogram
        expected = accepted if accepted is not None else round((mean - 1) * rounds) if mean is not None else None
        if expected is None or expected == total or abs(expected - (total - rounds)) > abs(expected - total):
            return histogram
        self.with_bonus += 1
        return histogram[1:]

    def evidence(self) -> Evidence | None:
        """All requests together."""
        notes = []
        if self.with_prefill:
            notes.append(
                f"spec_accept_length of {self.with_prefill:,} requests is completion tokens / verifications and counts "
                "prefill's token; the mean here is 1 + accepted/verifications"
            )
        if self.with_bonus:
            notes.append(f"the histogram of {self.with_bonus:,} requests counted the bonus token; it was taken out")
        return self.sums.evidence(notes=notes)


class ServerInfo:
    """`avg_spec_accept_length` in the server's information: the mean since its start, one per scheduler."""

    signs: tuple[bytes, ...] = ()
    markers: tuple[bytes, ...] = ()
    keys: frozenset[str] = frozenset({"avg_spec_accept_length"})

    def __init__(self) -> None:
        self.means: list[float] = []

    def end_file(self) -> None:
        """Readings stand for themselves."""

    def line(self, text: bytes) -> None:
        """This format is JSON."""

    def record(self, record: Mapping[str, Any], around: Sequence[Mapping[str, Any]]) -> None:
        """Read one scheduler's mean."""
        mean = record["avg_spec_accept_length"]
        if mean is not None and real(mean, "avg_spec_accept_length") > 0 and len(self.means) < 1_000_000:
            self.means.append(real(mean, "avg_spec_accept_length"))

    def evidence(self) -> Evidence | None:
        """The mean of the readings."""
        if not self.means:
            return None
        notes = [f"the mean is over {len(self.means):,} readings, each with the same weight"] * (len(self.means) > 1)
        return Evidence("SGLang server information", "mean", mean=sum(self.means) / len(self.means), notes=tuple(notes))


def _mean(record: Mapping[str, Any]) -> float | None:
    """`spec_accept_length`; 0 stands for a request without speculation."""
    mean = first(record, "spec_accept_length")
    if mean is None or real(mean, "spec_accept_length") == 0:
        return None
    return real(mean, "spec_accept_length")


def _count(record: Mapping[str, Any], *names: str) -> int | None:
    value = first(record, *names)
    return None if value is None else whole(value, names[0])


def _number(found: dict[bytes, list[bytes]], key: bytes) -> float | None:
    return printed_number(found[key][0], key.decode()) if key in found else None
