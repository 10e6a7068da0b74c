"""TensorRT-LLM: statistics of iterations (`specDecodingStats`) and of single choices (`speculative_decoding`)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from analysis.engine_logs.clock import read_clock
from analysis.engine_logs.evidence import Evidence
from analysis.engine_logs.identities import Identities
from analysis.engine_logs.requests import Request, RequestSums, output_tokens, request_name
from analysis.engine_logs.rows import Series
from analysis.engine_logs.values import Malformed, first, length, real, rounding, share, whole, wholes

MONTH_FIRST = re.compile(r"\b(\d\d)-(\d\d)-(\d{4})\b")


class Iterations:
    """One object per iteration; each request with draft tokens in it is one round."""

    signs: tuple[bytes, ...] = ()
    markers: tuple[bytes, ...] = ()
    keys: frozenset[str] = frozenset({"specDecodingStats", "spec_decoding_stats"})

    def __init__(self) -> None:
        self.identities = Identities()
        self.series = Series(("rounds", "drafted", "accepted", "draft_seconds", "iteration_seconds"))
        self.iterations = self.idle = self.counted = self.timed = 0
        self.rounds = self.drafted = self.accepted = 0
        self.draft_seconds = self.mean_sum = 0.0
        self.means = 0

    def end_file(self) -> None:
        """Iterations stand for themselves."""

    def line(self, text: bytes) -> None:
        """This format is JSON."""

    def record(self, record: Mapping[str, Any], around: Sequence[Mapping[str, Any]]) -> None:
        """Read one iteration."""
        stats = first(record, "specDecodingStats", "spec_decoding_stats")
        if stats is None:
            return
        if not isinstance(stats, Mapping):
            raise Malformed("its specDecodingStats is no object")
        drafted = whole(first(stats, "numDraftTokens", "num_draft_tokens"), "numDraftTokens")
        accepted = whole(first(stats, "numAcceptedTokens", "num_accepted_tokens"), "numAcceptedTokens")
        if accepted > drafted:
            raise Malformed(f"{accepted} tokens accepted of {drafted} drafted")
        self.iterations += 1
        if drafted == 0:
            self.idle += 1
            return
        requests = first(stats, "numRequestsWithDraftTokens", "num_requests_with_draft_tokens")
        stated = first(stats, "acceptanceLength", "acceptance_length")
        rounds = None if requests is None else whole(requests, "numRequestsWithDraftTokens")
        mean = None if stated is None else length(stated, "acceptanceLength")
        if rounds:
            self.counted += 1
            self.rounds += rounds
            self.identities.compare(
                "acceptanceLength = 1 + accepted/requests with draft tokens",
                ("acceptanceLength", mean), ("1 + accepted/requests", 1 + accepted / rounds),
                max(1e-4, rounding(mean or 0.0)),
                f"iteration {record.get('iter', self.iterations)}",
            )  # fmt: skip
        if mean is not None:
            self.means += 1
            self.mean_sum += mean
        self.drafted += drafted
        self.accepted += accepted
        draft, whole_iteration = (
            _seconds(first(where, "iterLatencyMS", "iter_latency_ms")) for where in (stats, record)
        )
        if draft is not None:
            self.timed += 1
            self.draft_seconds += draft
        printed = record.get("timestamp")
        time = read_clock(_year_first(printed).encode("utf-8", "replace")) if isinstance(printed, str) else None
        self.series.add(time, "", (rounds, drafted, accepted, draft, whole_iteration))

    def evidence(self) -> Evidence | None:
        """All iterations together."""
        active = self.iterations - self.idle
        if self.iterations == 0:
            return None
        counted = active > 0 and self.counted == active
        notes = ["rounds are requests with draft tokens, summed over iterations"] * counted
        mean = None
        if not counted and self.means == active and active:
            mean = self.mean_sum / active
            notes.append("the iterations do not hold their requests: the mean is over iterations")
        return Evidence(
            "TensorRT-LLM iteration statistics", "totals",
            rounds=self.rounds if counted else None, drafted=self.drafted, accepted=self.accepted, mean=mean,
            draft_seconds=self.draft_seconds if active and self.timed == active else None,
            series=self.series.frame(), checks=self.identities.checks(),
            warnings=("nothing was drafted in any iteration",) * (active == 0), notes=tuple(notes),
        )  # fmt: skip


class Requests:
    """Choices with `avg_decoded_tokens_per_iter` and `speculative_decoding`; also the latter alone."""

    signs: tuple[bytes, ...] = ()
    markers: tuple[bytes, ...] = ()
    keys: frozenset[str] = frozenset({"avg_decoded_tokens_per_iter", "total_accepted_draft_tokens"})

    def __init__(self) -> None:
        self.sums = RequestSums("TensorRT-LLM per-request metrics")

    def end_file(self) -> None:
        """Requests stand for themselves."""

    def line(self, text: bytes) -> None:
        """This format is JSON."""

    def record(self, record: Mapping[str, Any], around: Sequence[Mapping[str, Any]]) -> None:
        """Read one choice."""
        inner = record.get("speculative_decoding")
        stats = inner if isinstance(inner, Mapping) else record
        mean, rate = record.get("avg_decoded_tokens_per_iter"), stats.get("acceptance_rate")
        listed = stats.get("acceptance_histogram")
        count = {
            name: None if stats.get(name) is None else whole(stats[name], name)
            for name in ("num_spec_steps", "total_draft_tokens", "total_accepted_draft_tokens", "num_spec_tokens")
        }
        if mean is None and count["total_accepted_draft_tokens"] is None:
            return  # speculation was off for this request
        self.sums.add(
            Request(
                request_id=request_name(around, self.sums.requests),
                rounds=count["num_spec_steps"],
                drafted=count["total_draft_tokens"],
                accepted=count["total_accepted_draft_tokens"],
                output_tokens=output_tokens(around),
                histogram=None if listed is None else wholes(listed, "acceptance_histogram"),
                gamma=count["num_spec_tokens"],
                mean=None if mean is None else real(mean, "avg_decoded_tokens_per_iter"),
                rate=None if rate is None else share(rate, "acceptance_rate"),
            )
        )

    def evidence(self) -> Evidence | None:
        """All choices together."""
        return self.sums.evidence()


def _year_first(text: str) -> str:
    """'09-16-2026 05:26:57' with the year in front, as other engines have it."""
    return MONTH_FIRST.sub(r"\3-\1-\2", text[:100])


def _seconds(milliseconds: Any) -> float | None:
    return None if milliseconds is None else real(milliseconds, "iterLatencyMS") / 1e3
