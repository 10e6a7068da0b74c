"""Spec-Bench answer files: one question a line, with the tokens emitted in every round (`accept_lengths`).

Entries count the bonus token; those of some forks do not, which the number of new tokens tells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from analysis.engine_logs.evidence import Evidence
from analysis.engine_logs.identities import Identities
from analysis.engine_logs.requests import Request, RequestSums
from analysis.engine_logs.values import Malformed, first, real, whole, wholes

FORMAT = "Spec-Bench answers"
COLUMNS = ("category", "seconds")


class Answers:
    """Choices with `accept_lengths`; whether these count the bonus token is decided over all of them."""

    signs: tuple[bytes, ...] = ()
    markers: tuple[bytes, ...] = ()
    keys: frozenset[str] = frozenset({"accept_lengths"})

    def __init__(self) -> None:
        self.with_bonus, self.without_bonus = RequestSums(FORMAT, COLUMNS), RequestSums(FORMAT, COLUMNS)
        self.rounds = self.listed = self.zeros = self.longest = 0
        self.new_tokens = self.steps = self.turns = 0
        self.counted = self.stepped = self.timed = 0
        self.seconds = self.timed_tokens = self.speed_sum = 0.0

    def end_file(self) -> None:
        """Answers stand for themselves."""

    def line(self, text: bytes) -> None:
        """This format is JSON."""

    def record(self, record: Mapping[str, Any], around: Sequence[Mapping[str, Any]]) -> None:
        """Read one choice."""
        tokens, seconds, steps = (_total(record.get(key), key) for key in ("new_tokens", "wall_time", "decoding_steps"))
        lengths = _lengths(record["accept_lengths"], steps)
        new_tokens = None if tokens is None else whole(tokens, "new_tokens")
        question = around[-1] if around else {}
        name = first(question, "question_id")
        index = record.get("index")
        request_id = f"{self.with_bonus.requests if name is None else name}{f'.{index}' if index else ''}"[:200]
        category = question.get("category")
        extras = (None if category is None else str(category)[:200], seconds)
        for sums, bonus in ((self.with_bonus, 1), (self.without_bonus, 0)):
            accepted = [max(length - bonus, 0) for length in lengths]
            sums.add(
                Request(
                    request_id, rounds=len(lengths), output_tokens=new_tokens, step_accepted=accepted, extras=extras
                )
            )
        self.rounds += len(lengths)
        self.listed += sum(lengths)
        self.zeros += lengths.count(0)
        self.longest = max(self.longest, *lengths, 1)
        self.turns += len(record["new_tokens"]) if isinstance(record.get("new_tokens"), list) else 1
        if new_tokens is not None:
            self.counted += 1
            self.new_tokens += new_tokens
        if steps is not None:
            self.stepped += 1
            self.steps += whole(steps, "decoding_steps")
        if tokens and seconds and seconds > 0:
            self.timed += 1
            self.seconds += seconds
            self.timed_tokens += tokens
            self.speed_sum += tokens / seconds

    def evidence(self) -> Evidence | None:
        """All answers together."""
        choices = self.with_bonus.requests
        if choices == 0:
            return None
        known = self.counted == choices
        apart = abs(self.listed + self.rounds - self.new_tokens)
        bonus = self.zeros == 0 and not (
            known and apart < abs(self.listed - self.new_tokens) and apart <= self.turns * (self.longest + 1)
        )
        notes = ["emitted tokens are the sum of accept_lengths"] if bonus else []
        if not bonus:
            notes.append("accept_lengths leave out the bonus token: a round emits one token more")
        found = (self.with_bonus if bonus else self.without_bonus).evidence(notes=notes)
        if found is None:
            return None
        emitted = self.listed + (0 if bonus else self.rounds)
        identities = Identities()
        if known:
            identities.compare(
                "sum of accept_lengths = new tokens (to the last round of each turn)",
                ("the sum", emitted), ("new tokens", self.new_tokens), self.turns * self.longest,
            )  # fmt: skip
        if self.stepped == choices:
            identities.compare(
                "entries of accept_lengths = decoding steps (to one a turn)",
                ("entries", self.rounds), ("decoding steps", self.steps), self.turns,
            )  # fmt: skip
        return replace(
            found, emitted=emitted, checks=(*found.checks, *identities.checks()), notes=(*found.notes, *self._speeds())
        )

    def _speeds(self) -> list[str]:
        if self.timed == 0:
            return []
        return [
            f"{self.timed_tokens / self.seconds:.2f} tokens per second over all answers; the benchmark's own figure, "
            f"{self.speed_sum / self.timed:.2f}, is a mean over answers, and its baseline counts re-tokenised text: "
            "do not divide the one by the other"
        ]


def _lengths(value: Any, steps: float | None) -> list[int]:
    """The entries; those of all turns where there is a list for each, and a pair's first where a fork keeps pairs."""
    if not isinstance(value, list):
        raise Malformed("accept_lengths is no list")
    lists = [entry for entry in value if isinstance(entry, list)]
    if len(lists) == len(value) != steps == sum(map(len, lists)):
        value = [length for entry in lists for length in entry]
    return wholes([entry[0] if isinstance(entry, list) and entry else entry for entry in value], "accept_lengths")


def _total(value: Any, name: str) -> float | None:
    """The sum over turns, or the one number."""
    if value is None:
        return None
    return sum(real(part, name) for part in value) if isinstance(value, list) else real(value, name)
