"""What serving benchmarks print: `vllm bench serve` and SGLang's `bench_serving`; and sums over their runs.

Both report times per output token (TPOT) and between outputs (ITL). With vLLM an output is one round's tokens, so mean
ITL / mean TPOT is close to the mean acceptance length: a check that needs no counter of the server.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from analysis.engine_logs.evidence import Evidence
from analysis.engine_logs.identities import Identities
from analysis.engine_logs.rounding import mean_rates
from analysis.engine_logs.rows import Rows
from analysis.engine_logs.values import Malformed, length, printed_number, rounding, share, whole

TIMES_TOLERANCE = 0.05
"""relative; ITL is a mean over rounds and TPOT one over requests, and ITL counts the last, cut round too"""
TIMES = "mean ITL / mean TPOT = mean acceptance length (to 5%)"

LABELS = {
    b"Acceptance rate (%)": "rate",
    b"Acceptance length": "mean",
    b"Accept length": "mean",
    b"Drafts": "rounds",
    b"Draft tokens": "drafted",
    b"Accepted tokens": "accepted",
    b"Mean TPOT (ms)": "tpot_ms",
    b"Mean ITL (ms)": "itl_ms",
    b"Successful requests": "requests",
    b"Benchmark duration (s)": "duration_seconds",
    b"Output token throughput (tok/s)": "output_tokens_per_second",
}
BEFORE = rb"(?:^|\W)(?<![a-z] )"
"""what stands before a row's name: the prefix of a container or a job, but no further word of the name"""
ROW = re.compile(BEFORE + b"(" + b"|".join(map(re.escape, LABELS)) + rb"):\**\s+([-\d.naif]+)\s*$")
POSITION = re.compile(BEFORE + rb"Position (\d{1,4}):\**\s+([-\d.]+)\s*%?\s*$")
RESULT = b"Serving Benchmark Result"


class Runs:
    """Benchmark runs, each with its own numbers, added up."""

    def __init__(self, format_name: str, chunk_times: bool) -> None:
        """`chunk_times` says that ITL is the time between chunks, as vLLM measures it, not between tokens."""
        self.format = format_name
        self.chunk_times = chunk_times
        self.identities = Identities()
        self.rows = Rows(
            ("run", "rounds", "drafted", "accepted", "mean_acceptance_length", "itl_ms", "tpot_ms", "requests",
             "duration_seconds", "output_tokens_per_second")
        )  # fmt: skip
        self.runs = 0
        self.sums = {"rounds": 0, "drafted": 0, "accepted": 0}
        self.known = dict.fromkeys(self.sums, 0)
        self.means: list[float] = []
        self.by_position: list[float] = []
        self.with_rates = 0
        self.gammas: set[int | None] = set()
        self.short_lists = 0

    def add(self, run: Mapping[str, float | None], rates: Sequence[float]) -> None:
        """Add a run.

        Raises:
            Malformed: a number is impossible.
        """
        count = {
            name: None if run.get(name) is None else whole(run[name], name)
            for name in ("rounds", "drafted", "accepted")
        }
        rounds, drafted, accepted = count["rounds"], count["drafted"], count["accepted"]
        if accepted is not None and drafted is not None and accepted > drafted:
            raise Malformed(f"{accepted} tokens accepted of {drafted} drafted")
        for name in ("mean", "itl_ms", "tpot_ms"):
            if run.get(name) is not None:
                length(run[name], name)
        where, compare = f"run {self.runs}", self.identities.compare
        counted = 1 + accepted / rounds if rounds and accepted is not None else None
        mean = counted if counted is not None else run.get("mean")
        compare(
            "acceptance length = 1 + accepted/drafts",
            ("the printed length", run.get("mean")), ("1 + accepted/drafts", counted), rounding(run.get("mean") or 0.0),
            where,
        )  # fmt: skip
        rate = 100 * accepted / drafted if drafted and accepted is not None else None
        compare(
            "acceptance rate = accepted/drafted",
            ("the printed rate in %", run.get("rate")), ("accepted/drafted in %", rate),
            rounding(run.get("rate") or 0.0), where,
        )  # fmt: skip
        gamma: int | None = len(rates)
        if rates and rounds and drafted and drafted > len(rates) * rounds:
            self.short_lists += 1
            gamma = drafted // rounds if drafted % rounds == 0 else None
        elif rates:
            compare(
                "acceptance length = 1 + sum of per-position rates",
                ("the length", mean), ("1 + the sum", 1 + sum(rates)), sum(map(rounding, (*rates, mean or 0.0))), where,
            )  # fmt: skip
        itl, tpot = run.get("itl_ms"), run.get("tpot_ms")
        if self.chunk_times and mean is not None and itl and tpot:
            compare(TIMES, ("ITL/TPOT", itl / tpot), ("the length", mean), TIMES_TOLERANCE * mean, where)
        for name, value in count.items():
            if value is not None:
                self.sums[name] += value
                self.known[name] += 1
        if mean is not None:
            self.means.append(mean)
        if rates:
            self.with_rates += 1
            self.gammas.add(gamma)
            self.by_position.extend([0.0] * (len(rates) - len(self.by_position)))
            for position, good in enumerate(rates):
                self.by_position[position] += good * (rounds or 1)
        self.rows.add(
            self.runs, rounds, drafted, accepted, mean, itl, tpot,
            *(run.get(name) for name in ("requests", "duration_seconds", "output_tokens_per_second")),
        )  # fmt: skip
        self.runs += 1

    def evidence(self, requests: pd.DataFrame | None = None) -> Evidence | None:
        """All runs together."""
        if self.runs == 0:
            return None
        sums = {name: self.sums[name] if self.known[name] == self.runs else None for name in self.sums}
        rounds = sums["rounds"]
        weight = rounds if rounds is not None else int(self.runs == 1)
        rated = self.with_rates == self.runs and weight > 0
        mean = sum(self.means) / len(self.means) if self.means and rounds is None else None
        notes = [f"{self.runs} benchmark runs were added up"] * (self.runs > 1)
        if self.runs > 1 and rounds is None:
            notes.append("the mean is over runs, each with the same weight")
        warnings = [
            f"{self.short_lists} of {self.runs} runs list fewer positions than were drafted: the others are missing"
        ] * (self.short_lists > 0)
        level = "positions" if rated else "totals" if rounds is not None else "mean"
        return Evidence(
            self.format, level,
            rounds=rounds, drafted=sums["drafted"], accepted=sums["accepted"], mean=mean,
            marginal=mean_rates(self.by_position, weight) if rated else None,
            marginal_tolerance=None,  # compared run by run
            gamma=next(iter(self.gammas)) if rated and len(self.gammas) == 1 else None,
            series=self.rows.frame(), requests=requests, checks=self.identities.checks(),
            warnings=tuple(warnings), notes=tuple(notes),
        )  # fmt: skip


class PrintedRuns:
    """The printed report; a run ends where the next one begins or repeats a row."""

    keys: frozenset[str] = frozenset()

    def __init__(self, format_name: str, labels: Iterable[bytes], chunk_times: bool) -> None:
        self.runs = Runs(format_name, chunk_times)
        own = tuple(label + b":" for label in labels)
        shared = (b"Mean TPOT (ms):", b"Mean ITL (ms):", b"Benchmark duration (s):", b"Successful requests:")
        self.signs = own[:2]
        self.markers = (*own, *shared, b"Output token throughput (tok/s):", RESULT)
        self.run: dict[str, float | None] = {}
        self.rates: list[float] = []

    def record(self, record: Mapping[str, Any], around: Sequence[Mapping[str, Any]]) -> None:
        """This format is no JSON."""

    def end_file(self) -> None:
        """A run ends with its file."""
        self._end_run()

    def line(self, text: bytes) -> None:
        """Read a row of the report."""
        if RESULT in text:
            self._end_run()
        elif found := POSITION.search(text):
            percent = printed_number(found[2], "a rate") or 0.0
            rate = share(round(percent / 100, 6), "a per-position rate")
            if int(found[1]) != len(self.rates):
                raise Malformed(f"position {int(found[1])} follows {len(self.rates)} positions")
            self.rates.append(rate)
        elif found := ROW.search(text):
            name = LABELS[found[1]]
            if name in self.run:
                self._end_run()
            self.run[name] = printed_number(found[2], found[1].decode())

    def _end_run(self) -> None:
        run, rates = self.run, self.rates
        self.run, self.rates = {}, []
        if run.get("mean") is not None or run.get("rounds") is not None:
            self.runs.add(run, rates)

    def evidence(self) -> Evidence | None:
        """All runs together."""
        return self.runs.evidence()


def vllm_printed() -> PrintedRuns:
    """What `vllm bench serve` prints."""
    own = (b"Acceptance length", b"Acceptance rate (%)", b"Drafts", b"Draft tokens", b"Accepted tokens")
    found = PrintedRuns("vLLM benchmark report", own, chunk_times=True)
    found.markers = (*found.markers, b" Position ")
    return found


def sglang_printed() -> PrintedRuns:
    """What SGLang's `bench_serving` prints."""
    return PrintedRuns("SGLang benchmark report", (b"Accept length",), chunk_times=False)
