"""The p and q that a black-box sampler is tried on, each design aimed at one family of bugs.

A bug shows only where p and q let it. One row used for another is invisible when all rows are equal; a leak of the
rejected tokens is plain when q is p in reverse and hidden when they agree; a bonus token needs rounds that accept
everything. So the harness uses six designs, and every one fits any vocabulary from 3 tokens up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.losslessness.rows import Floats, Ints


@dataclass(frozen=True)
class Design:
    """Target and draft rows of every context type a round may have."""

    name: str
    p: Floats
    """[types, gamma+1, vocab]; each round has one type, drawn afresh."""
    q: Floats
    """[types, gamma, vocab]."""
    share: float
    """Fraction of all rounds that this design gets."""
    aim: str
    """The family of bugs it is there to show."""

    @property
    def stationary(self) -> bool:
        """Whether every row of p is the same, so that the whole output is one iid stream."""
        return bool((self.p == self.p[:1, :1]).all())

    def rounds(self, n: int, rng: np.random.Generator) -> tuple[Ints, Floats, Floats]:
        """Types [n] of the next n rounds, and the p and q to hand to the sampler, 3-D only where types differ."""
        types = rng.integers(len(self.p), size=n)
        if len(self.p) == 1:
            return types, self.p[0].copy(), self.q[0].copy()
        return types, self.p[types], self.q[types]


def default_designs(gamma: int, vocab: int) -> tuple[Design, ...]:
    """The six designs for a draft length and a vocabulary.

    Raises:
        ValueError: gamma < 1, or vocab < 3: with two tokens even pairs can be blind to noise shared between rounds.
    """
    if gamma < 1:
        raise ValueError(f"gamma must be >= 1, got {gamma}; without drafted tokens there is nothing to verify")
    if vocab < 3:
        raise ValueError(f"vocab must be >= 3, got {vocab}; two tokens hide noise shared between rounds")
    rng = np.random.default_rng([gamma, vocab, 2211_17192])
    zipf = _normalised(1.0 / np.arange(1, vocab + 1))
    shuffled = np.stack([[rng.permutation(zipf) for _ in range(gamma + 1)] for _ in range(3)])
    other = np.stack([[rng.permutation(zipf) for _ in range(gamma)] for _ in range(3)])
    mild = _normalised(np.arange(1, vocab + 1) ** -0.7)
    peak = _normalised(np.where(np.arange(vocab) == vocab // 2, 20.0 * vocab, 1.0))
    tokens = np.arange(vocab)
    no_tail = _normalised(np.where(tokens < vocab - max(1, vocab // 4), zipf[::-1], 0.0))
    no_head = _normalised(np.where(tokens > 0, zipf, 0.0))

    def same(p: Floats, q: Floats) -> tuple[Floats, Floats]:
        return np.tile(p, (1, gamma + 1, 1)), np.tile(q, (1, gamma, 1))

    return (
        Design(
            "stationary", *same(mild, 0.8 * mild + 0.2 * mild[::-1]), 0.60, "dependence at any lag, in one iid stream"
        ),
        Design("reversed", *same(zipf, zipf[::-1].copy()), 0.10, "leaks of rejected tokens, shared noise"),
        Design(
            "positions", shuffled[:1], 0.7 * shuffled[:1, :-1] + 0.3 * other[:1], 0.10, "rows off by one, the bonus row"
        ),
        Design(
            "contexts", shuffled, 0.8 * shuffled[:, :-1] + 0.2 * other, 0.10, "stale caches, rows of another request"
        ),
        Design("peaked", *same(peak, 0.98 * peak + 0.02 / vocab), 0.05, "low temperature, the bonus token, rounding"),
        Design("zeros", *same(no_tail, no_head), 0.05, "truncation on one side, tokens that must not appear"),
    )


def _normalised(weights: NDArray[Any]) -> Floats:
    return np.asarray(weights / weights.sum(), dtype=np.float64)
