"""The loss between the ideal speedup and the measured one, split over the parts of a round.

Ideal: the tokens per round that a good draft gives, at the price of one plain step of the target. Measured: fewer
tokens, and a round that also drafts, verifies several tokens at once, and does more on the host than a plain step. So

    log(ideal / measured) = log of seconds per token, with all four factors as they are, less the same as they would be.

Each factor's part is its Shapley value: the mean, over all orders in which the factors could turn from ideal to real,
of what its own turn costs (Shapley 1953, "A value for n-person games"). It depends on no order, and the four add up to
the whole. Logs become seconds through the logarithmic mean of the two times (Ang 2004), which keeps the sum exact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from math import factorial

import numpy as np
import pandas as pd

from analysis.fit.costs import PerRound, fit_per_round
from sim.theory import FloatArray

Coalition = tuple[bool, ...]

FACTORS = ("acceptance", "draft", "verify", "overhead")

GOOD_ACCEPTANCE = 0.8
"""Acceptance rate of a good draft: three quarters of the rates published for model pairs lie below it (upper quartile
0.81, paper_figs/data/published_speedups.csv). No draft has all it proposes accepted, so the rest is no loss that
anything could bring back."""


@dataclass(frozen=True)
class RoundCosts:
    """Means per round, and those of a plain step; each [rows], row 0 the estimate and the others bootstrap draws."""

    tokens: FloatArray
    """emitted: the block efficiency"""
    ideal_tokens: FloatArray
    """with a good draft"""
    draft_seconds: FloatArray
    verify_seconds: FloatArray
    other_seconds: FloatArray
    step_forward_seconds: FloatArray
    """the target's forward of one token, in a plain step"""
    step_other_seconds: FloatArray
    """the rest of a plain step"""
    plain: bool = True
    """False where no plain step was timed, and a verification of this run stands in for its forward"""

    @property
    def seconds_per_token(self) -> FloatArray:
        """Of speculative decoding."""
        return (self.draft_seconds + self.verify_seconds + self.other_seconds) / self.tokens

    @property
    def step_seconds(self) -> FloatArray:
        """Seconds per token without speculation."""
        return self.step_forward_seconds + self.step_other_seconds

    @property
    def ideal_seconds_per_token(self) -> FloatArray:
        """Of as many tokens as a good draft gives, for the price of a plain step."""
        return self.step_seconds / self.ideal_tokens

    @property
    def speedup(self) -> FloatArray:
        """Autoregressive over speculative seconds per token."""
        return self.step_seconds / self.seconds_per_token


def shapley(value: Callable[[Coalition], FloatArray], players: int) -> FloatArray:
    """Exact Shapley values [players, ...] of a game whose `value` is asked once for each of the 2^players coalitions.

    phi_i is the sum over coalitions S without i of |S|! (n - |S| - 1)! / n! (v(S + i) - v(S)) (Shapley 1953).
    """
    worth = {coalition: value(coalition) for coalition in product((False, True), repeat=players)}
    parts = []
    for i in range(players):
        without = [coalition for coalition in worth if not coalition[i]]
        gains = [
            factorial(sum(coalition))
            * factorial(players - sum(coalition) - 1)
            * (worth[(*coalition[:i], True, *coalition[i + 1 :])] - worth[coalition])
            for coalition in without
        ]
        parts.append(np.sum(gains, axis=0) / factorial(players))
    return np.stack(parts)


def log_losses(costs: RoundCosts) -> FloatArray:
    """What each of FACTORS adds to the log of seconds per token [4, rows]; they sum to log(ideal / measured speedup).

    A negative part is a gain: a verification cheaper than the plain step's forward, say.
    """

    def log_seconds(real: Coalition) -> FloatArray:
        tokens = costs.tokens if real[0] else costs.ideal_tokens
        draft = costs.draft_seconds if real[1] else np.zeros_like(costs.tokens)
        verify = costs.verify_seconds if real[2] else costs.step_forward_seconds
        other = costs.other_seconds if real[3] else costs.step_other_seconds
        return np.asarray(np.log((draft + verify + other) / tokens))

    return shapley(log_seconds, len(FACTORS))


def as_seconds(log_loss: FloatArray, measured: FloatArray, ideal: FloatArray) -> FloatArray:
    """Log losses [..., rows] as seconds per token; those of all factors sum to measured less ideal ones."""
    log_ratio = np.log(measured / ideal)
    even = np.isclose(log_ratio, 0, rtol=0, atol=1e-9)
    return log_loss * np.where(even, measured, (measured - ideal) / np.where(even, 1.0, log_ratio))


@dataclass(frozen=True)
class Lengths:
    """How the seconds of a round change with the number of drafted tokens."""

    draft: PerRound
    other: PerRound

    @classmethod
    def fit(cls, rounds: pd.DataFrame) -> Lengths:
        """Fit the fixed part and the part per token where draft lengths vary.

        Where they do not, drafting is taken to cost the same for every token, as a draft model's forwards do, and the
        rest of the round to cost the same whatever is drafted.
        """
        if np.ptp(rounds["drafted"].to_numpy()) == 0:
            return cls(PerRound(0.0, 1.0), PerRound(1.0, 0.0))
        return cls(fit_per_round(rounds, "draft_seconds"), fit_per_round(rounds, "other_seconds"))

    def shortened(
        self, costs: RoundCosts, tokens: FloatArray, ideal: FloatArray, drafted: FloatArray, kept: FloatArray
    ) -> RoundCosts:
        """The costs of a round that drafts at most gamma tokens.

        The target accepts a prefix, so a shorter draft accepts what fits of it. Verification is interpolated between
        the plain step's one token and the measured width.

        Args:
            costs: as measured, at the longer length.
            tokens: emitted per round at the shorter length [rows].
            ideal: the same with a good draft [rows].
            drafted: mean drafted tokens as measured [rows], above 0.
            kept: mean drafted tokens at the shorter length [rows].
        """

        def scaled(seconds: FloatArray, cost: PerRound) -> FloatArray:
            whole, less = (cost.fixed_seconds + cost.seconds_per_drafted * count for count in (drafted, kept))
            return np.where(whole > 0, seconds * less / np.where(whole > 0, whole, 1.0), seconds)

        wider = costs.verify_seconds - costs.step_forward_seconds
        return replace(
            costs,
            tokens=tokens,
            ideal_tokens=ideal,
            draft_seconds=scaled(costs.draft_seconds, self.draft),
            verify_seconds=costs.step_forward_seconds + wider * kept / drafted,
            other_seconds=scaled(costs.other_seconds, self.other),
        )


def at_better_length(gain: FloatArray, losses: FloatArray, shorter: FloatArray) -> FloatArray:
    """Losses [4, rows] where a shorter draft gains so much [rows], which then is a cause of its own.

    The rest is shared as the factors share their loss at the shorter length [4, rows]. For a draft that is too long
    makes acceptance look worse than it is: late tokens are seldom reached, however good the draft.
    """
    left = shorter.sum(axis=0) > 0
    shares = np.where(left, shorter, losses)
    return np.asarray(shares * (losses.sum(axis=0) - gain) / shares.sum(axis=0))
