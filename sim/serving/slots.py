"""The requests that a replica decodes: numbers for each, side by side in order of admission."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sim.acceptance import IntArray
from sim.theory import FloatArray


class RequestDraws(NamedTuple):
    """What the rounds of one request draft at most and accept, by round or by output position."""

    drafted: NDArray[np.int16] | None
    """None: always as many as asked for"""
    accepted: NDArray[np.int16]


REQUEST, ROW, CONTEXT, REMAINING, TURN, ROUNDS, DRAFTED, ACCEPTED = range(8)


class Slots:
    """Requests that decode together; every property is a view [count]."""

    def __init__(self, limit: int, output_tokens: int) -> None:
        """Room for `limit` requests of at most `output_tokens` each."""
        self.count = 0
        self._numbers = np.zeros((8, limit), dtype=np.int64)
        self._last_emission = np.zeros(limit)
        self._free_rows = list(range(limit))
        self._accepted: NDArray[np.int16] = np.zeros((limit, output_tokens), dtype=np.int16)
        self._drafted: NDArray[np.int16] | None = None

    @property
    def request(self) -> IntArray:
        """Which request it is."""
        return self._numbers[REQUEST, : self.count]

    @property
    def context(self) -> IntArray:
        """Tokens known: prompt and output so far."""
        return self._numbers[CONTEXT, : self.count]

    @property
    def remaining(self) -> IntArray:
        """Tokens still to emit."""
        return self._numbers[REMAINING, : self.count]

    @property
    def rounds(self) -> IntArray:
        """Rounds since the request joined; as the next two."""
        return self._numbers[ROUNDS, : self.count]

    @property
    def drafted(self) -> IntArray:
        """Drafted tokens."""
        return self._numbers[DRAFTED, : self.count]

    @property
    def accepted(self) -> IntArray:
        """Accepted tokens."""
        return self._numbers[ACCEPTED, : self.count]

    @property
    def last_emission(self) -> FloatArray:
        """When the request last emitted a token, in seconds."""
        return self._last_emission[: self.count]

    def join(
        self, request: int, context: int, remaining: int, turn: int, last_emission: float, draws: RequestDraws | None
    ) -> None:
        """Give a request a slot.

        Args:
            request: which one.
            context: tokens known.
            remaining: tokens still to emit.
            turn: entry of `draws` that its next round reads.
            last_emission: when it last emitted a token, in seconds.
            draws: of its rounds; None where nothing is drafted.
        """
        row = self._free_rows.pop()
        self._numbers[:, self.count] = (request, row, context, remaining, turn, 0, 0, 0)
        self._last_emission[self.count] = last_emission
        self.count += 1
        if draws is None:
            return
        self._accepted[row, : len(draws.accepted)] = draws.accepted
        if draws.drafted is not None:
            if self._drafted is None:
                self._drafted = np.zeros_like(self._accepted)
            self._drafted[row, : len(draws.drafted)] = draws.drafted

    def upcoming(self, steps: int, asked: int) -> tuple[IntArray | None, IntArray]:
        """Tokens that the next rounds draft, None where always as many as asked for, and accept [steps, count].

        Entries after a request's last round mean nothing.
        """
        if asked == 0:
            return None, np.zeros((steps, self.count), dtype=np.int64)
        turns = self._numbers[TURN, : self.count] + np.arange(steps)[:, None]
        place = self._numbers[ROW, : self.count], np.minimum(turns, self._accepted.shape[1] - 1)
        accepted = np.minimum(self._accepted[place], asked).astype(np.int64)
        if self._drafted is None:
            return None, accepted
        drafted = np.minimum(self._drafted[place], asked).astype(np.int64)
        return drafted, np.minimum(accepted, drafted)

    def advance(
        self, emitted: IntArray, rounds: IntArray, drafted: IntArray, accepted: IntArray, by_position: bool
    ) -> None:
        """Add what every request did [count]."""
        self.context[:] += emitted
        self.remaining[:] -= emitted
        self._numbers[TURN, : self.count] += emitted if by_position else rounds
        self.rounds[:] += rounds
        self.drafted[:] += drafted
        self.accepted[:] += accepted

    def draws_of(self, slot: int) -> RequestDraws:
        """A copy of the draws of the request in a slot."""
        row = self._numbers[ROW, slot]
        return RequestDraws(None if self._drafted is None else self._drafted[row].copy(), self._accepted[row].copy())

    def keep(self, kept: NDArray[np.bool_]) -> None:
        """Free the slots of all other requests [count]."""
        self._free_rows += self._numbers[ROW, : self.count][~kept].tolist()
        count = int(kept.sum())
        self._numbers[:, :count] = self._numbers[:, : self.count][:, kept]
        self._last_emission[:count] = self._last_emission[: self.count][kept]
        self.count = count
