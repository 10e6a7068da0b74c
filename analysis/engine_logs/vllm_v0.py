"""vLLM V0 (before 0.9): `Speculative metrics: Draft acceptance rate: 0.655, System efficiency: 0.649, ...`.

The counts grow from the start of the process. "Accepted" counts every token that the verification would take, those
after the first rejection too, so the tokens emitted per round are not 1 + accepted/rounds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from analysis.engine_logs.clock import read_clock
from analysis.engine_logs.cumulative import Counters
from analysis.engine_logs.evidence import Evidence
from analysis.engine_logs.identities import Identities
from analysis.engine_logs.rows import Series
from analysis.engine_logs.values import Malformed, fields, printed_count, printed_number

MARK = b"Speculative metrics:"
COUNTS = {
    "gamma": b"Number of speculative tokens",
    "accepted": b"Number of accepted tokens",
    "drafted": b"Number of draft tokens",
    "emitted": b"Number of emitted tokens",
}


class LogLines:
    """The log line of V0; the last line of each process counts."""

    signs: tuple[bytes, ...] = (MARK,)
    markers: tuple[bytes, ...] = (MARK,)
    keys: frozenset[str] = frozenset()

    def __init__(self) -> None:
        self.counters = Counters()
        self.identities = Identities()
        self.series = Series(("drafted", "accepted", "emitted"))
        self.gammas: set[int] = set()

    def end_file(self) -> None:
        """A rotated log goes on."""

    def record(self, record: Mapping[str, Any], around: Sequence[Mapping[str, Any]]) -> None:
        """This format is no JSON."""

    def line(self, text: bytes) -> None:
        """Read the last message in the line."""
        prefix, _, message = text.rpartition(MARK)
        found = fields(message.strip())
        lacking = [key.decode() for key in COUNTS.values() if key not in found]
        if lacking:
            raise Malformed(f"it lacks {', '.join(map(repr, lacking))}")
        counts = {name: printed_count(found[key][0], key.decode()) for name, key in COUNTS.items()}
        gamma = counts.pop("gamma")
        if gamma == 0:
            raise Malformed("the number of speculative tokens is 0")
        if len(self.gammas) < 2:
            self.gammas.add(gamma)
        if not self._compare(found, gamma, counts) and b"." not in found[COUNTS["emitted"]][0]:
            raise Malformed("it is cut inside its last number")
        grown = self.counters.read(counts)
        self.series.add(read_clock(prefix), "", [grown[name] for name in ("drafted", "accepted", "emitted")])

    def _compare(self, found: dict[bytes, list[bytes]], gamma: int, counts: dict[str, int]) -> bool:
        """The identities of one line; does the efficiency, which depends on the last number, agree?"""
        if counts["drafted"] == 0:
            return True
        rate = printed_number(found.get(b"Draft acceptance rate", [b"nan"])[0], "the rate")
        efficiency = printed_number(found.get(b"System efficiency", [b"nan"])[0], "the efficiency")
        self.identities.compare(
            "draft acceptance rate = accepted/drafted",
            ("the printed rate", rate), ("accepted/drafted", counts["accepted"] / counts["drafted"]), 0.0005,
        )  # fmt: skip
        most = counts["drafted"] / gamma * (gamma + 1)
        return self.identities.compare(
            "system efficiency = emitted/((K+1) rounds)",
            ("the printed efficiency", efficiency), ("emitted/((K+1) rounds)", counts["emitted"] / most), 0.0005,
        )  # fmt: skip

    def evidence(self) -> Evidence | None:
        """All processes together."""
        if self.counters.readings == 0:
            return None
        drafted, accepted, emitted = (
            int(self.counters.since_start(name) or 0) for name in ("drafted", "accepted", "emitted")
        )
        gamma = next(iter(self.gammas)) if len(self.gammas) == 1 else None
        whole_rounds = gamma is not None and drafted % gamma == 0 and drafted > 0
        rounds = drafted // gamma if gamma is not None and whole_rounds else None
        mean = emitted * gamma / drafted if gamma is not None and drafted else None
        warnings = []
        if rounds and accepted != emitted - rounds:
            warnings.append(
                f"accepted {accepted:,} counts tokens after the first rejection too; emitted - rounds is "
                f"{emitted - rounds:,}, so the mean acceptance length is emitted/rounds = {emitted / rounds:.4f}, "
                f"not 1 + accepted/rounds = {1 + accepted / rounds:.4f}"
            )
        if gamma is None:
            warnings.append("the number of speculative tokens changes, so rounds and mean are not known")
        elif drafted == 0:
            warnings.append("nothing was drafted")
        elif not whole_rounds:
            warnings.append(f"drafted {drafted:,} is no multiple of {gamma} tokens: the mean is approximate")
        notes = ["rounds are drafted tokens / speculative tokens per round"] * whole_rounds
        if self.counters.restarts:
            notes.append(f"the counts started again from zero {self.counters.restarts} times; all were added up")
        return Evidence(
            "vLLM V0 log lines", "totals",
            rounds=rounds, drafted=drafted, accepted=accepted, emitted=emitted, mean=mean, gamma=gamma,
            series=self.series.frame(), checks=self.identities.checks(), warnings=tuple(warnings), notes=tuple(notes),
        )  # fmt: skip
