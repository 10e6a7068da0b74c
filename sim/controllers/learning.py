"""Draft-length policies that weigh tokens against seconds: by known costs, by trial, and by foresight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike

from sim.controllers.policy import Decision, RoundCosts, RoundOutcome, check_max_gamma
from sim.theory import check_cost, check_gamma, check_probability
from sim.trees import IntArray

BATCH_SIZES = 32
"""powers of two that a bandit tells apart"""


@dataclass(eq=False)
class Goodput:
    """The draft length of most expected tokens per second, from known costs and an estimated acceptance rate.

    SmartSpec, later TurboSpec (Liu et al. 2024, "Optimizing Speculative Decoding for Serving Large Language Models
    Using Goodput", arXiv:2406.14066): eq. 1 of Leviathan et al. for every row over the seconds of a round of that
    batch. The acceptance rate is accepted / tested tokens of all rows, where the first rejected token of a draft is the
    last one tested. Older rounds count less, and prior tokens never fade; so where speculation was switched off (length
    0), the estimate drifts to the prior, and if the prior pays, speculation is tried again. New requests start from
    what earlier ones taught.
    """

    costs: RoundCosts
    max_gamma: int
    prior_alpha: float = 0.7
    prior_tokens: float = 5.0
    """tested tokens that the prior is worth"""
    decay: float = 0.99
    """weight of a round relative to the one after it; 1 never forgets"""
    stops_early: ClassVar[bool] = False
    foresees: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_costs(self.costs, self.max_gamma)
        check_probability("prior_alpha", self.prior_alpha)
        check_probability("decay", self.decay)
        if not 0 < self.prior_tokens < np.inf:
            raise ValueError(f"prior_tokens must be finite and > 0, got {self.prior_tokens}; 1 is a weak prior")
        self._lengths = np.arange(self.max_gamma + 1)
        self._accepted = self._tested = 0.0

    @property
    def alpha(self) -> float:
        """The current estimate of the acceptance rate."""
        return (self.prior_alpha * self.prior_tokens + self._accepted) / (self.prior_tokens + self._tested)

    def next_gamma(self, batch: int = 1) -> int:
        """See `Controller`; the shortest of equals."""
        tokens = np.cumsum(self.alpha**self._lengths)  # eq. 1 as the sum that it is
        return int(np.argmax(tokens / self.costs.seconds(batch)[: self.max_gamma + 1]))

    def keep_drafting(self, confidence: ArrayLike, entropy: ArrayLike, all_accepted: ArrayLike) -> Decision:
        """See `Controller`."""
        del confidence, entropy, all_accepted
        return True

    def foresee(self, accepted: IntArray) -> None:
        """Nothing to know ahead."""

    def observe(self, outcome: RoundOutcome) -> None:
        """Update the estimate."""
        accepted = int(outcome.accepted.sum())
        tested = accepted + np.count_nonzero(outcome.accepted < outcome.drafted)
        self._accepted = self.decay * self._accepted + accepted
        self._tested = self.decay * self._tested + tested

    def reset(self) -> None:
        """Nothing to forget."""


@dataclass(eq=False)
class Bandit:
    """The draft length with the best upper confidence bound on its tokens per second; costs need not be known.

    UCB1 (Auer, Cesa-Bianchi and Fischer 2002, "Finite-time Analysis of the Multiarmed Bandit Problem") with draft
    lengths as arms: tokens over seconds of all its rounds, as a share of the fastest round seen, plus
    exploration * sqrt(2 ln t / n). What pays depends on the batch, so batches of 1, 2 to 3, 4 to 7, ... rows are learnt
    apart. An arm takes hundreds of rounds to tell from its neighbours, so it keeps what it learnt over requests.
    """

    gammas: Sequence[int]
    exploration: float = 0.3
    """1 is UCB1's own, which holds for any rewards in [0, 1]; rounds vary less than that"""
    seed: int = 0
    """of the order in which lengths are first tried and ties are broken"""
    stops_early: ClassVar[bool] = False
    foresees: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_gamma(self.gammas)
        if not self.gammas or len(set(self.gammas)) < len(self.gammas):
            raise ValueError(f"gammas must be different draft lengths, at least one, got {list(self.gammas)}")
        check_cost("exploration", self.exploration)
        self._arms = [int(gamma) for gamma in np.random.default_rng(self.seed).permutation(self.gammas)]
        self._plays, self._tokens, self._seconds = np.zeros((3, BATCH_SIZES, len(self._arms)))
        self._fastest = np.zeros(BATCH_SIZES)

    @property
    def max_gamma(self) -> int:
        """The longest arm."""
        return max(self._arms)

    def next_gamma(self, batch: int = 1) -> int:
        """See `Controller`; first every length once."""
        size = batch_size(batch)
        plays = self._plays[size]
        if not plays.all():
            return self._arms[int(np.argmin(plays))]
        share = self._tokens[size] / self._seconds[size] / self._fastest[size]
        bound = share + self.exploration * np.sqrt(2 * np.log(plays.sum()) / plays)
        return self._arms[int(np.argmax(bound))]

    def keep_drafting(self, confidence: ArrayLike, entropy: ArrayLike, all_accepted: ArrayLike) -> Decision:
        """See `Controller`."""
        del confidence, entropy, all_accepted
        return True

    def foresee(self, accepted: IntArray) -> None:
        """Nothing to know ahead."""

    def observe(self, outcome: RoundOutcome) -> None:
        """Credit the length that was asked for.

        Raises:
            ValueError: it is none of the arms, or the round took no time.
        """
        if outcome.gamma not in self._arms or outcome.seconds == 0:
            raise ValueError(
                f"a bandit over {sorted(self._arms)} needs rounds of those lengths that take > 0 seconds, got {outcome}"
            )
        size, arm, tokens = batch_size(outcome.batch), self._arms.index(outcome.gamma), int(outcome.emitted.sum())
        self._plays[size, arm] += 1
        self._tokens[size, arm] += tokens
        self._seconds[size, arm] += outcome.seconds
        self._fastest[size] = max(self._fastest[size], tokens / outcome.seconds)

    def reset(self) -> None:
        """Nothing to forget."""


@dataclass(eq=False)
class Oracle:
    """The best draft length for what the coming forward would accept: what no policy that cannot foresee it beats.

    Of all policies, the one of most tokens per second in the long run maximises tokens - rate * seconds in every round,
    where `rate` is its own long-run rate, the root of E[max over lengths of (tokens - rate * seconds)] = 0 (Dinkelbach
    1967, "On Nonlinear Fractional Programming", Management Science 13). The root is found by Dinkelbach's iteration,
    one step a round: here `rate` is that of all rounds so far with the coming one, at its best length. A rate too low
    or too high leads to choices that run faster than the low one and slower than the high one, so it settles at the
    root. Every batch size has a rate of its own: a second spent on a few rows must not be weighed by what it would
    bring with many, for how many there are is the load's doing.

    The bound, on the rate of each batch size, holds where the costs are those of the simulation, every draft is as long
    as asked for, and what a round accepts depends on no earlier choice (so not for a trace, replayed by position).
    """

    costs: RoundCosts
    max_gamma: int
    stops_early: ClassVar[bool] = False
    foresees: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_costs(self.costs, self.max_gamma)
        self._lengths = np.arange(self.max_gamma + 1)
        self._sums: dict[int, tuple[float, float]] = {}
        self._foreseen: IntArray | None = None

    def rate(self, batch: int = 1) -> float:
        """Tokens per second of all rounds so far with that many rows; NaN before the first."""
        tokens, seconds = self._sums.get(batch, (np.nan, np.nan))
        return tokens / seconds

    def foresee(self, accepted: IntArray) -> None:
        """See `Controller`."""
        self._foreseen = np.atleast_1d(accepted)

    def next_gamma(self, batch: int = 1) -> int:
        """See `Controller`; the shortest of equals.

        Raises:
            ValueError: `foresee` was not told of that many rows since the last round.
        """
        if self._foreseen is None or len(self._foreseen) != batch:
            told = 0 if self._foreseen is None else len(self._foreseen)
            raise ValueError(
                f"an oracle must foresee each of the {batch} rows of the coming forward, but was told of {told}; only "
                "a simulator can tell"
            )
        before_tokens, before_seconds = self._sums.get(batch, (0.0, 0.0))
        tokens = batch + np.minimum(self._foreseen[:, None], self._lengths).sum(axis=0)
        seconds = self.costs.seconds(batch)[: self.max_gamma + 1]
        # the best ratio of sums is the rate at which the best tokens - rate * seconds makes up for all rounds before
        return int(np.argmax((before_tokens + tokens) / (before_seconds + seconds)))

    def keep_drafting(self, confidence: ArrayLike, entropy: ArrayLike, all_accepted: ArrayLike) -> Decision:
        """See `Controller`."""
        del confidence, entropy, all_accepted
        return True

    def observe(self, outcome: RoundOutcome) -> None:
        """Count the round's tokens and seconds."""
        tokens, seconds = self._sums.get(outcome.batch, (0.0, 0.0))
        self._sums[outcome.batch] = (tokens + int(outcome.emitted.sum()), seconds + outcome.seconds)
        self._foreseen = None

    def reset(self) -> None:
        """Nothing to forget."""


def batch_size(batch: int) -> int:
    """The power of two that a batch has reached: 0 for 1 row, 1 for 2 and 3, 2 for 4 to 7."""
    return int(batch).bit_length() - 1


def check_costs(costs: RoundCosts, max_gamma: int) -> None:
    """Check that every draft length has its cost.

    Raises:
        ValueError: max_gamma is no longest draft, or longer than the costs reach.
    """
    if costs.max_gamma < check_max_gamma(max_gamma):
        raise ValueError(
            f"costs are known for drafts of at most {costs.max_gamma} tokens, but max_gamma is {max_gamma}; time "
            "longer ones, or lower max_gamma"
        )
