"""llama.cpp: the running statistics of its draft sources.

`statistics draft-eagle3: #calls(b,g,a) = 1 87 87, #gen drafts = 87, ..., dur(b,g,a) = 0.005, 325.555, 0.114 ms`: counts
since the server's start, one line per source after each request. Rates and mean are over the rounds in which the
source drafted; `dur` holds the time it took.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from analysis.engine_logs.clock import read_clock
from analysis.engine_logs.cumulative import Counters
from analysis.engine_logs.evidence import Evidence
from analysis.engine_logs.identities import Identities
from analysis.engine_logs.llama_cpp import rates_by_position
from analysis.engine_logs.rounding import mean_rates
from analysis.engine_logs.rows import Series
from analysis.engine_logs.values import Malformed, printed_count, printed_number

STATISTICS = re.compile(rb"statistics\s+(\S+?):\s*(#calls.*)$")
DURATIONS = re.compile(rb"dur\(b,g,a\) = *([\d.]+), *([\d.]+), *([\d.]+) ms")


class Statistics:
    """Statistics lines; the last line of each draft source counts."""

    signs: tuple[bytes, ...] = (b"#gen tokens = ", b"#acc tokens = ")
    markers: tuple[bytes, ...] = (b"#gen tokens = ",)
    keys: frozenset[str] = frozenset()

    def __init__(self) -> None:
        self.counters: dict[bytes, Counters] = {}
        self.rates: dict[bytes, list[tuple[int, list[float]]]] = {}
        self.identities = Identities()
        self.series = Series(("rounds", "drafted", "accepted", "draft_seconds"))

    def end_file(self) -> None:
        """A rotated log goes on."""

    def record(self, record: Mapping[str, Any], around: Sequence[Mapping[str, Any]]) -> None:
        """This format is no JSON."""

    def line(self, text: bytes) -> None:
        """Read one draft source's counts."""
        found = STATISTICS.search(text)
        if not found:
            raise Malformed("it does not read 'statistics NAME: #calls = ..., #gen drafts = ...'")
        source = found[1]
        entries = {key.strip(): value for key, _, value in (part.partition(b"=") for part in found[2].split(b", #"))}
        drafts, drafted, accepted = (
            printed_count(entries[key], key.decode()) if key in entries else None
            for key in (b"gen drafts", b"gen tokens", b"acc tokens")
        )
        if drafts is None or drafted is None or accepted is None:
            raise Malformed("it lacks '#gen drafts', '#gen tokens' or '#acc tokens'")
        if accepted > drafted:
            raise Malformed(f"{accepted} tokens accepted of {drafted} drafted")
        calls = entries.get(b"#calls(b,g,a)", b"").split()
        rounds = printed_count(calls[2], "#calls") if len(calls) == 3 else drafts
        counts = {"rounds": rounds, "drafted": drafted, "accepted": accepted, "draft_seconds": _draft_seconds(found[2])}
        known = {name: value for name, value in counts.items() if value is not None}
        rates = rates_by_position(found[2])
        lives = self.rates.setdefault(source, [])
        if rounds and lives and lives[-1][1] and b"acc rate/pos" not in entries:
            raise Malformed("it is cut before its rates by position, which lines before it hold")
        self._compare(source, rounds, accepted, entries.get(b"mean acc len"), rates)
        counters = self.counters.setdefault(source, Counters())
        restarts = counters.restarts
        grown = counters.read(known)
        if counters.restarts > restarts or not lives:
            lives.append((rounds, rates))
        lives[-1] = rounds, rates
        self.series.add(
            read_clock(text[: found.start()]),
            source.decode("utf-8", "replace"),
            [grown.get(name) for name in ("rounds", "drafted", "accepted", "draft_seconds")],
        )

    def _compare(self, source: bytes, rounds: int, accepted: int, mean: bytes | None, rates: list[float]) -> None:
        where = source.decode("utf-8", "replace")
        if mean is not None and rounds:
            self.identities.compare(
                "mean acceptance length = 1 + accepted/rounds",
                ("the printed mean", printed_number(mean, "the mean")), ("1 + accepted/rounds", 1 + accepted / rounds),
                0.005, where,
            )  # fmt: skip
        if rates and rounds:
            self.identities.compare(
                "accepted/rounds = sum of per-position rates",
                ("accepted/rounds", accepted / rounds), ("the sum", sum(rates)), 0.0005 * len(rates), where,
            )  # fmt: skip

    def evidence(self) -> Evidence | None:
        """The last counts of each draft source, added up."""
        if not self.counters:
            return None
        total = {
            name: sum(counters.since_start(name) or 0 for counters in self.counters.values())
            for name in ("rounds", "drafted", "accepted", "draft_seconds")
        }
        timed = all("draft_seconds" in counters.latest for counters in self.counters.values())
        lives = [life for source in self.rates.values() for life in source if life[0] > 0]
        rounds = int(total["rounds"])
        rated = rounds > 0 and bool(lives) and all(rates for _, rates in lives)
        marginal = [0.0] * max((len(rates) for _, rates in lives), default=0)
        for count, rates in lives:
            for position, rate in enumerate(rates):
                marginal[position] += count * rate
        names = ", ".join(source.decode("utf-8", "replace") for source in sorted(self.counters)[:8])
        notes = [f"counts since the server's start of the draft sources {names}; rounds are those in which one drafted"]
        warnings = [
            f"the statistics of {source.decode('utf-8', 'replace')} fall {counters.restarts} times, of restarts or of "
            "slots that count apart; all were added up as restarts"
            for source, counters in self.counters.items()
            if counters.restarts
        ]
        return Evidence(
            "llama.cpp statistics", "positions" if rated else "totals",
            rounds=rounds, drafted=int(total["drafted"]), accepted=int(total["accepted"]),
            marginal=mean_rates(marginal, rounds) if rated else None,
            marginal_tolerance=0.0005 * len(marginal),
            draft_seconds=total["draft_seconds"] if timed else None, doubts=2 * bool(warnings),
            series=self.series.frame(), checks=self.identities.checks(), warnings=tuple(warnings), notes=tuple(notes),
        )  # fmt: skip


def _draft_seconds(text: bytes) -> float | None:
    """The second of `dur(b,g,a) = begin, generate, accept ms`."""
    found = DURATIONS.search(text)
    return None if found is None else (printed_number(found[2], "dur") or 0.0) / 1e3
