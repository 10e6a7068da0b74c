"""Laws of acceptance: how many of the drafted tokens a round accepts, and the numbers that are quoted about it.

A round drafts gamma tokens and accepts the first few of them. Its law is the chance of each number of accepted tokens;
alpha, conditional and marginal acceptance and the mean length are numbers about it. Marginals are all of the law, a
mean length is one number of it: many laws share it, and engines choose different ones for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from scipy.optimize import brentq

from sim.theory import check_gamma, check_probability

LONGEST_DRAFT = 1024
SAME = 1e-9
"""rates and lengths closer than this are equal but for rounding"""


@dataclass(frozen=True)
class AcceptanceLaw:
    """How many of gamma drafted tokens a round accepts, where every round drafts all gamma."""

    name: str
    """'iid', 'minimum-variance', or 'measured': given by position"""
    marginal: tuple[float, ...]
    """chance that positions 0..i are all accepted [gamma]; never rising"""

    @property
    def gamma(self) -> int:
        """Draft length in tokens."""
        return len(self.marginal)

    @property
    def conditional(self) -> tuple[float | None, ...]:
        """Chance of position i once i-1 was accepted [gamma]; None where no round gets that far."""
        return conditional_of(self.marginal)

    @property
    def histogram(self) -> tuple[float, ...]:
        """Chance of 0, 1, ..., gamma accepted tokens."""
        edges = (1.0, *self.marginal, 0.0)
        return tuple(before - after for before, after in pairwise(edges))

    @property
    def mean_accepted(self) -> float:
        """Drafted tokens accepted per round."""
        return math.fsum(self.marginal)

    @property
    def mean_length(self) -> float:
        """Tokens emitted per round, bonus or correction included (block efficiency)."""
        return math.fsum((1.0, *self.marginal))

    @property
    def variance(self) -> float:
        """Variance of the accepted tokens of a round: E[n^2] = sum of (2i + 1) * marginal_i."""
        second = math.fsum((2 * i + 1) * rate for i, rate in enumerate(self.marginal))
        return max(second - self.mean_accepted**2, 0.0)

    @property
    def alpha(self) -> float:
        """Leviathan's alpha with which eq. 1 gives this mean length; acceptance itself only for iid tokens."""
        return alpha_of_mean(self.mean_length, self.gamma)


def iid(alpha: float, gamma: int) -> AcceptanceLaw:
    """Independent tokens, each accepted with the chance alpha once it is reached (Leviathan et al. 2023, Sec. 3.1)."""
    return AcceptanceLaw("iid", marginal_of([alpha] * gamma))


def alpha_of_mean(mean_length: float, gamma: float) -> float:
    """The alpha whose expected tokens per round are `mean_length` [Leviathan et al. 2023, eq. 1, solved for alpha].

    Args:
        mean_length: tokens emitted per round.
        gamma: draft length; one that is not whole, a mean of draft lengths, is put into eq. 1 as it is.

    Raises:
        ValueError: the length is outside [1, gamma + 1].
    """
    if not 0 < gamma <= LONGEST_DRAFT:
        raise ValueError(f"gamma must be above 0 and at most {LONGEST_DRAFT} drafted tokens, got {gamma}")
    if not 1 - SAME <= mean_length <= gamma + 1 + SAME:
        raise ValueError(f"a mean length must be in [1, {gamma + 1:g}] at gamma {gamma:g}, got {mean_length:g}")
    return solve_alpha(mean_length, gamma)


def solve_alpha(tokens: float, gamma: float) -> float:
    """Eq. 1 solved for alpha, of any gamma above 0; 0 for a token or less in a round, 1 for gamma + 1 or more."""
    if tokens <= 1:
        return 0.0
    if tokens >= gamma + 1:
        return 1.0
    # Eq. 1 rises, for whole gamma with a slope of at least 1, so that alpha is as exact as the tokens.
    return float(brentq(lambda alpha: _tokens(alpha, gamma) - tokens, 0.0, 1.0, xtol=1e-15))


def _tokens(alpha: float, gamma: float) -> float:
    """Eq. 1 for any draft length above 0."""
    if alpha in (0.0, 1.0):
        return 1.0 + alpha * gamma
    return math.expm1((gamma + 1) * math.log(alpha)) / (alpha - 1)


def minimum_variance(mean_length: float, gamma: int) -> AcceptanceLaw:
    """The law with the least variance for its mean: the whole number of tokens below it, or the one above.

    Marginals are 1 up to floor(mean - 1), then its fraction, then 0; vLLM's synthetic_acceptance_length, SGLang's
    match-expected and TensorRT-LLM's forced acceptance draw it. The variance is fraction * (1 - fraction).
    """
    accepted = mean_length - 1
    whole = int(accepted)
    rates = [1.0] * whole + [accepted - whole] + [0.0] * gamma
    return AcceptanceLaw("minimum-variance", tuple(rates[:gamma]))


def marginal_of(conditional: Sequence[float | None]) -> tuple[float, ...]:
    """Marginal acceptance: running products; None, where no round got that far, counts as 0."""
    product, marginal = 1.0, []
    for rate in conditional:
        product *= rate or 0.0
        marginal.append(product)
    return tuple(marginal)


def conditional_of(marginal: Sequence[float]) -> tuple[float | None, ...]:
    """Conditional acceptance: ratios of neighbours; None where the position before is never accepted."""
    before = (1.0, *marginal[:-1])
    return tuple(rate / last if last > 0 else None for rate, last in zip(marginal, before, strict=True))


def check_marginal(marginal: Sequence[float], slack: float = 0.0) -> None:
    """Marginal acceptance is a chance at every position and never rises.

    Raises:
        ValueError: naming the first position where it is not so.
    """
    check_probability("marginal acceptance", marginal)
    for position, (before, rate) in enumerate(pairwise(marginal), 1):
        if rate > before + slack:
            raise ValueError(
                f"marginal acceptance must not rise, got {before} then {rate} at position {position}; "
                "are these conditional rates (--conditional)?"
            )


def draft_length(gamma: int) -> int:
    """The draft length, checked.

    Raises:
        ValueError: it is not a whole number of 1 to LONGEST_DRAFT tokens.
    """
    check_gamma(gamma)
    if not 1 <= gamma <= LONGEST_DRAFT:
        raise ValueError(f"gamma must be 1 to {LONGEST_DRAFT} drafted tokens, got {gamma}")
    return int(gamma)
