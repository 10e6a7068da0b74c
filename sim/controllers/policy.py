"""What a draft-length policy is: what it is asked before a forward, what it is told after it, what it knows of costs.

One policy serves a whole batch: it chooses one draft length for all rows of the coming forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sim.theory import FloatArray, check_cost
from sim.trees import IntArray

Decision = bool | NDArray[np.bool_]
"""Whether to go on: one for each row asked about, or one for all."""


@dataclass(frozen=True, init=False, eq=False)
class RoundOutcome:
    """What one forward of a batch did, row by row; numbers are a batch of one row."""

    gamma: int
    """draft length asked for"""
    drafted: IntArray
    """tokens that the draft proposed, at most gamma [batch]"""
    accepted: IntArray
    """drafted tokens that the target accepted [batch]"""
    emitted: IntArray
    """tokens added to the output, bonus or correction included [batch]"""
    seconds: float
    """time of the round, without waiting for a busy device"""

    def __init__(self, gamma: int, drafted: ArrayLike, accepted: ArrayLike, emitted: ArrayLike, seconds: float) -> None:
        columns = [np.atleast_1d(np.asarray(column)) for column in (drafted, accepted, emitted)]
        shape = columns[0].shape
        if len(shape) != 1 or not shape[0] or any(c.shape != shape or c.dtype.kind not in "iu" for c in columns):
            raise ValueError(
                "a round needs whole numbers of tokens, one of each kind for each of at least 1 row, got drafted "
                f"{drafted!r}, accepted {accepted!r}, emitted {emitted!r}"
            )
        drafts, accepts, emits = (column.astype(np.int64, copy=False) for column in columns)
        fits = (accepts >= 0) & (accepts <= drafts) & (drafts <= gamma) & (emits >= 1)
        if not fits.all():
            row = int(np.argmin(fits))
            raise ValueError(
                f"a round needs 0 <= accepted <= drafted <= gamma and emitted >= 1, got gamma {gamma}, drafted "
                f"{drafts[row]}, accepted {accepts[row]}, emitted {emits[row]} in row {row}"
            )
        if not 0 <= seconds < np.inf:
            raise ValueError(f"a round needs finite seconds >= 0, got {seconds}")
        values = {"gamma": gamma, "drafted": drafts, "accepted": accepts, "emitted": emits, "seconds": seconds}
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def batch(self) -> int:
        """Rows of the forward."""
        return len(self.drafted)


class Controller(Protocol):
    """Anything that chooses draft lengths."""

    @property
    def max_gamma(self) -> int:
        """The longest draft that it ever asks for, which caches are sized for."""
        ...

    @property
    def stops_early(self) -> bool:
        """Whether `keep_drafting` must be asked; if not, the draft's probabilities need not leave the device."""
        ...

    @property
    def foresees(self) -> bool:
        """Whether `foresee` must be told what would be accepted, which nobody knows but a simulator."""
        ...

    def next_gamma(self, batch: int = 1) -> int:
        """Draft length of the next forward, 0 for a plain step of the target; asking twice changes nothing.

        Args:
            batch: rows of that forward.
        """
        ...

    def keep_drafting(self, confidence: ArrayLike, entropy: ArrayLike, all_accepted: ArrayLike) -> Decision:
        """Whether to draft another token; asked after each one but the last, and that one is kept either way.

        Arguments are arrays over rows, or numbers. The answer follows from them alone: a simulator asks for whole runs
        at once, before it tells of any round. A policy that does not stop early says True.

        Args:
            confidence: largest probability of the law that the token was drawn from.
            entropy: that law's entropy, in nats.
            all_accepted: product of the round's confidences so far, this token's included: the chance that all its
                tokens are accepted, as far as the draft can tell.
        """
        ...

    def foresee(self, accepted: IntArray) -> None:
        """Hear what each row of the coming forward would accept of max_gamma drafted tokens [batch]."""
        ...

    def observe(self, outcome: RoundOutcome) -> None:
        """Learn from a finished forward; called once for the whole batch."""
        ...

    def reset(self) -> None:
        """Prepare for a new request, or a new batch of them."""
        ...


class RoundCosts(Protocol):
    """What a controller that weighs costs knows of the machine."""

    @property
    def max_gamma(self) -> int:
        """The longest draft whose cost is known."""
        ...

    def seconds(self, batch: int) -> FloatArray:
        """Seconds of a round that drafts 0, 1, 2, ... tokens for each row of a batch, each > 0 [max_gamma + 1]."""
        ...


@dataclass(frozen=True)
class Costs:
    """Costs measured at one batch size, and taken to hold at every other."""

    draft_seconds: float
    """one draft forward"""
    verify_seconds: Sequence[float]
    """entry n: one target forward that verifies n drafted tokens (n + 1 new ones) [max_gamma + 1]; with the overhead of
    a round where there is one"""
    _seconds: FloatArray = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_cost("draft_seconds", self.draft_seconds)
        verify = check_cost("verify_seconds", self.verify_seconds)
        if verify.ndim != 1 or not len(verify) or not verify.all():
            raise ValueError(
                "verify_seconds must have an entry > 0 for each of 0, 1, 2, ... drafted tokens, got "
                f"{self.verify_seconds}; time those forwards"
            )
        object.__setattr__(self, "_seconds", np.arange(len(verify)) * self.draft_seconds + verify)

    @property
    def max_gamma(self) -> int:
        """The longest draft whose verification was timed."""
        return len(self.verify_seconds) - 1

    def seconds(self, batch: int) -> FloatArray:
        """See `RoundCosts`; the same for every batch."""
        del batch
        return self._seconds


def check_max_gamma(value: int) -> int:
    """A longest draft, a whole number >= 1."""
    if value < 1 or value != int(value):
        raise ValueError(
            f"the longest draft must be a whole number >= 1, got {value}; FixedGamma(0) decodes autoregressively"
        )
    return value
