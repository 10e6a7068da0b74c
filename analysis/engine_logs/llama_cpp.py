"""llama.cpp: the summary of its speculative examples, the server's lines per request, and response timings."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from analysis.engine_logs.evidence import Evidence
from analysis.engine_logs.requests import Request, RequestSums, request_name
from analysis.engine_logs.rounding import mean_rates, rounds_behind
from analysis.engine_logs.values import Malformed, printed_count, printed_number, share, shortened, whole

SUMMARY = re.compile(rb"(?:^|\s|:\s)(n_draft|n_predict|n_drafted|n_accept|accept(?: rate)?)\s*=\s*(\S+?)%?\s*$")
SLOT = re.compile(rb"id\s+(\d+)\s*\|\s*task\s+(-?\d+)")
EVAL = re.compile(rb"(?<!prompt )\beval time\s*=\s*(\d[\d.]*) ms\s*/\s*(\d+) (?:tokens|runs)")
ACCEPTANCE = re.compile(rb"draft acceptance(?: rate)?\s*=\s*(\S+)\s*\(\s*(\d+) accepted\s*/\s*(\d+) generated\)")
MEAN = re.compile(rb"mean (?:acceptance length|len)\s*=\s*(\d+\.\d\d|-?nan)")
RATES = re.compile(rb"(?:acceptance rate per position|#acc rate/pos)\s*=\s*\(([\d., ]*)(\)?)")
PENDING = 1000
"""requests whose decoding time was read and whose acceptance may follow"""


class Summary:
    """`n_draft`, `n_predict`, `n_drafted`, `n_accept` at the end of `llama-speculative` and `-simple`."""

    signs: tuple[bytes, ...] = (b"n_drafted",)
    markers: tuple[bytes, ...] = (b"n_draft", b"n_predict", b"n_accept", b"accept ")
    keys: frozenset[str] = frozenset()

    def __init__(self) -> None:
        self.run: dict[str, bytes] = {}
        self.sums = RequestSums("llama.cpp summary", tolerance=0.000_005)

    def end_file(self) -> None:
        """A run ends with its file."""
        self._end_run()

    def record(self, record: Mapping[str, Any], around: Sequence[Mapping[str, Any]]) -> None:
        """This format is no JSON."""

    def line(self, text: bytes) -> None:
        """Read a row of the summary."""
        found = SUMMARY.search(text)
        if not found:
            return
        name = found[1].decode().removesuffix(" rate")
        if name in self.run and "n_accept" in self.run:
            self._end_run()
        self.run[name] = found[2]

    def _end_run(self) -> None:
        run, self.run = self.run, {}
        if "n_drafted" not in run or "n_accept" not in run:
            return
        predicted = printed_count(run["n_predict"], "n_predict") if "n_predict" in run else None
        drafted, accepted = (printed_count(run[name], name) for name in ("n_drafted", "n_accept"))
        if predicted is not None and predicted < accepted:
            raise Malformed(f"n_predict {predicted} is less than n_accept {accepted}")
        rate = printed_number(run.get("accept", b"nan"), "accept")
        asked = printed_number(run.get("n_draft", b"nan"), "n_draft")
        self.sums.add(
            Request(
                request_id=str(self.sums.requests),
                rounds=None if predicted is None else predicted - accepted,
                drafted=drafted,
                accepted=accepted,
                output_tokens=predicted,
                gamma=int(asked) if asked and asked >= 1 else None,
                rate=None if rate is None else share(rate / 100, "accept"),
            )
        )

    def evidence(self) -> Evidence | None:
        """All runs together."""
        return self.sums.evidence(
            notes=["rounds are n_predict - n_accept: each round adds its accepted tokens and one"]
        )


class ServerLines:
    """The server's line per request: `slot print_timing: id 1 | task 0 | draft acceptance = 0.64479 (...), ...`."""

    signs: tuple[bytes, ...] = (b"draft acceptance = ", b"draft acceptance rate = ")
    markers: tuple[bytes, ...] = (*signs, b"eval time =")
    keys: frozenset[str] = frozenset()

    def __init__(self) -> None:
        self.sums = RequestSums("llama.cpp server lines", ("slot", "eval_seconds"), tolerance=0.000_005)
        self.eval: dict[tuple[bytes, bytes], tuple[float, int]] = {}
        self.by_position: list[float] = []
        self.rated = self.rated_rounds = self.estimated = self.fewest = self.most = 0

    def end_file(self) -> None:
        """Requests stand for themselves."""

    def record(self, record: Mapping[str, Any], around: Sequence[Mapping[str, Any]]) -> None:
        """This format is no JSON."""

    def line(self, text: bytes) -> None:
        """Read a request's acceptance, or the decoding time that stands before it."""
        slot = SLOT.search(text)
        who = (slot[1], slot[2]) if slot else (b"", b"")
        if timed := EVAL.search(text):
            if len(self.eval) >= PENDING:
                self.eval.clear()
            self.eval[who] = (printed_number(timed[1], "eval time") or 0) / 1e3, printed_count(timed[2], "tokens")
            return
        if b"draft acceptance" not in text:
            return
        found = ACCEPTANCE.search(text)
        if not found:
            raise Malformed("it does not read 'draft acceptance = R (N accepted / M generated)'")
        accepted, drafted = printed_count(found[2], "accepted"), printed_count(found[3], "generated")
        printed = MEAN.search(text)
        if printed is None and text[found.end() :].startswith(b","):
            raise Malformed("it is cut before its mean ends")
        mean = printed_number(printed[1], "the mean") if printed else None
        rates = rates_by_position(text)
        rounds = rounds_behind(accepted, drafted, len(rates) or None, mean, rates) if drafted else None
        seconds, tokens = self.eval.pop(who, (None, None))
        self.sums.add(
            Request(
                request_id=f"task {who[1].decode()}" if slot else str(self.sums.requests),
                rounds=rounds.number if rounds else None,
                drafted=drafted,
                accepted=accepted,
                output_tokens=tokens,
                mean=mean if rounds is None else None,
                rate=printed_number(found[1], "the rate"),
                extras=(int(who[0][:9]) if slot else None, seconds),
            )
        )
        if rounds:
            self.estimated += not rounds.exact
            self.fewest += rounds.fewest
            self.most += rounds.most
        if mean is not None and rates:
            self.sums.identities.compare(
                "mean acceptance length = 1 + sum of per-position rates",
                ("the printed mean", mean), ("1 + the sum", 1 + sum(rates)), 0.005 + 0.0005 * len(rates),
                f"task {who[1].decode()}",
            )  # fmt: skip
        if rates and rounds:
            self.rated += 1
            self.rated_rounds += rounds.number
            self.by_position.extend([0.0] * (len(rates) - len(self.by_position)))
            for position, rate in enumerate(rates):
                self.by_position[position] += rate * rounds.number

    def evidence(self) -> Evidence | None:
        """All requests together."""
        requests, known = self.sums.requests, self.sums.known["rounds"]
        notes = ["rounds are not printed; they follow from accepted tokens, mean and rates"] * (known > 0)
        if self.estimated:
            notes.append(
                f"the printed digits of {self.estimated:,} of {known:,} lines allow several numbers of rounds: "
                f"in all from {self.fewest:,} to {self.most:,}"
            )
        if 0 < known < requests:
            notes.append(f"{requests - known:,} of {requests:,} requests do not tell their rounds")
        if 0 < self.rated < requests:
            notes.append(f"acceptance by position is of the {self.rated:,} requests that hold it")
        if self.rated_rounds == 0:
            found = self.sums.evidence(notes)
        else:
            marginal = mean_rates(self.by_position, self.rated_rounds)
            tolerance = 0.0005 * len(marginal) + 0.005 * (self.estimated > 0)
            found = self.sums.evidence(notes, marginal, tolerance if self.rated == requests else None)
        return None if found is None else replace(found, doubts=1)


class Timings:
    """`timings.draft_n` and `timings.draft_n_accepted` of the server's responses."""

    signs: tuple[bytes, ...] = ()
    markers: tuple[bytes, ...] = ()
    keys: frozenset[str] = frozenset({"draft_n_accepted"})

    def __init__(self) -> None:
        self.sums = RequestSums("llama.cpp response timings", ("eval_seconds",))

    def end_file(self) -> None:
        """Requests stand for themselves."""

    def line(self, text: bytes) -> None:
        """This format is JSON."""

    def record(self, record: Mapping[str, Any], around: Sequence[Mapping[str, Any]]) -> None:
        """Read one response's timings."""
        predicted, milliseconds = record.get("predicted_n"), record.get("predicted_ms")
        drafted = record.get("draft_n")
        self.sums.add(
            Request(
                request_id=request_name(around, self.sums.requests),
                drafted=None if drafted is None else whole(drafted, "draft_n"),
                accepted=whole(record["draft_n_accepted"], "draft_n_accepted"),
                output_tokens=None if predicted is None else whole(predicted, "predicted_n"),
                extras=(milliseconds / 1e3 if isinstance(milliseconds, int | float) else None,),
            )
        )

    def evidence(self) -> Evidence | None:
        """All responses together."""
        return self.sums.evidence(notes=["the responses hold no number of rounds, so no mean acceptance length"])


def rates_by_position(text: bytes) -> list[float]:
    """Marginal acceptance by position in a server line or in statistics; empty where there is none."""
    found = RATES.search(text)
    if not found:
        return []
    if not found[2]:
        raise Malformed(f"its rates by position, {shortened(found[1])}, are cut")
    numbers = [printed_number(part, "a rate by position") for part in found[1].split(b",") if part.strip()]
    return [share(number, "a rate by position") for number in numbers]
