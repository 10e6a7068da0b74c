"""MLC-LLM: `draft_count` and `accept_count` by position, in the engine's metrics.

Position 0 is the token that the target itself would have predicted: it is always accepted, and counts the rounds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from analysis.engine_logs.cumulative import Counters
from analysis.engine_logs.evidence import Evidence
from analysis.engine_logs.values import Malformed, wholes

MOST_POSITIONS = 10_000


class Metrics:
    """Objects with `draft_count` and `accept_count`; the counts grow from the engine's start or its last reset."""

    signs: tuple[bytes, ...] = ()
    markers: tuple[bytes, ...] = ()
    keys: frozenset[str] = frozenset({"accept_count"})

    def __init__(self) -> None:
        self.counters = Counters()

    def end_file(self) -> None:
        """Readings of one engine may stand in several files."""

    def line(self, text: bytes) -> None:
        """This format is JSON."""

    def record(self, record: Mapping[str, Any], around: Sequence[Mapping[str, Any]]) -> None:
        """Read the counts once."""
        drafted, accepted = (
            wholes(record.get("draft_count"), "draft_count"),
            wholes(record["accept_count"], "accept_count"),
        )
        if not drafted or len(drafted) != len(accepted) or len(drafted) > MOST_POSITIONS:
            raise Malformed(f"{len(drafted)} positions drafted and {len(accepted)} accepted")
        if any(good > all_ for good, all_ in zip(accepted, drafted, strict=True)):
            raise Malformed("more tokens accepted than drafted at a position")
        counts = {f"drafted {i}": n for i, n in enumerate(drafted)} | {
            f"accepted {i}": n for i, n in enumerate(accepted)
        }
        self.counters.read(counts)

    def evidence(self) -> Evidence | None:
        """The last reading, and earlier lives of the engine."""
        if self.counters.readings == 0:
            return None
        positions = len({name for name in (*self.counters.latest, *self.counters.before) if name.startswith("d")})
        drafted, accepted = (
            [int(self.counters.since_start(f"{kind} {position}") or 0) for position in range(positions)]
            for kind in ("drafted", "accepted")
        )
        rounds = drafted[0]
        notes, warnings = [], []
        if accepted[0] == drafted[0]:
            notes.append("position 0 is the target's own token, always accepted; drafted positions are 1 and on")
            drafted, accepted = drafted[1:], accepted[1:]
        else:
            warnings.append(
                "position 0 is not always accepted, as it is where it stands for the target's own token; "
                "it was taken for the first drafted one"
            )
        if drafted and min(drafted) < rounds:
            notes.append(
                "not every round drafted every position: that lowers the marginal acceptance of late positions"
            )
        if self.counters.restarts:
            notes.append(f"the counts started again from zero {self.counters.restarts} times; all were added up")
        return Evidence(
            "MLC-LLM metrics", "positions",
            rounds=rounds, drafted=sum(drafted), accepted=sum(accepted),
            marginal=tuple(count / rounds for count in accepted) if rounds else None,
            gamma=len(drafted) or None,
            warnings=tuple(warnings), notes=tuple(notes),
        )  # fmt: skip
