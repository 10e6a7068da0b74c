"""Which experts the tokens of a forward are routed to: how many distinct ones, when some are more popular."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike

from sim.theory import FloatArray, check_cost

STEP = 0.125
"""of the integration in log time; halving it changes no inclusion probability by 1e-13"""


def distinct_experts(
    experts: int, per_token: int, tokens: ArrayLike, popularity: float | Sequence[float] | FloatArray = 0.0
) -> FloatArray:
    """Expected number of distinct experts that a layer's tokens are routed to.

    Each token chooses `per_token` distinct experts, independently of the other tokens: the sum over experts of
    1 - (1 - pi)^tokens, with pi the expert's `inclusion_probabilities`. Uniform popularity gives
    experts * (1 - (1 - per_token/experts)^tokens). Tokens of one text choose alike, and touch somewhat fewer.

    Args:
        experts: routed experts of the layer.
        per_token: experts that a token is routed to.
        tokens: tokens in the forward, all requests together; a mean need not be whole.
        popularity: the exponent s of a Zipf law, expert i drawn in proportion to (i + 1)^-s, 0 for uniform; or one
            weight per expert.

    Raises:
        ValueError: a count is out of its range, or popularity does not fit.
    """
    tokens = check_cost("tokens", tokens)
    if np.ndim(popularity) == 0 and popularity == 0:
        check_choice(experts, per_token)
        return experts * (1 - (1 - per_token / experts) ** tokens[()])
    missed = (1 - inclusion_probabilities(experts, per_token, popularity)) ** tokens[..., np.newaxis]
    return np.asarray((1 - missed).sum(axis=-1))[()]


def inclusion_probabilities(
    experts: int, per_token: int, popularity: float | Sequence[float] | FloatArray
) -> FloatArray:
    """Chance that one token is routed to each expert; they sum to `per_token`.

    A token draws its experts one after another without replacement, each in proportion to popularity among those left.
    So does a router that takes the top k of (log popularity + Gumbel noise) (Kool et al. 2019, arXiv:1903.06059). These
    are the first k of independent exponential clocks whose rates are the popularities, hence

        pi_i = integral over t of p_i exp(-p_i t) P(fewer than k of the other clocks rang before t),

    computed by the trapezoidal rule in log t, which converges geometrically here.

    Args:
        experts: routed experts of the layer.
        per_token: experts that a token is routed to.
        popularity: see `distinct_experts`.

    Returns:
        Probabilities [experts], read-only.

    Raises:
        ValueError: a count is out of its range, popularity has another length, is negative or not finite, or has fewer
            than `per_token` experts above zero.
    """
    check_choice(experts, per_token)
    if np.ndim(popularity) == 0:
        exponent = float(popularity)  # type: ignore[arg-type]  # it has no axis, so it is a number
        if not 0 <= exponent < np.inf:
            raise ValueError(f"a Zipf exponent must be finite and >= 0, got {exponent:g}; 0 is uniform routing")
        rates = np.arange(1.0, experts + 1) ** -exponent
    else:
        rates = np.asarray(popularity, dtype=np.float64)
    if rates.shape != (experts,):
        raise ValueError(f"popularity must have one weight for each of {experts} experts, got shape {rates.shape}")
    if not ((rates >= 0) & (rates < np.inf)).all():
        raise ValueError(f"popularity must be finite and >= 0, got a least weight of {rates.min():g}")
    if np.count_nonzero(rates) < per_token:
        raise ValueError(
            f"popularity must be > 0 for the {per_token} experts of a token at least, got {np.count_nonzero(rates)}; "
            "weights of 0 are never chosen, and a Zipf exponent above 100 makes some"
        )
    return _inclusion(tuple((rates / rates.max()).tolist()), per_token)


@lru_cache(maxsize=64)
def _inclusion(rates: tuple[float, ...], chosen: int) -> FloatArray:
    """`inclusion_probabilities` for rates whose greatest is 1."""
    rate = np.asarray(rates)
    # before the first moment no clock has rung, after the last the `chosen` fastest have, both but for 1e-16
    first, last = np.log(1e-17 / rate.sum()), np.log(40 / np.sort(rate)[-chosen])
    time = np.exp(np.arange(first, last + STEP, STEP))
    rung = -np.expm1(-rate[:, np.newaxis] * time)
    before = _counts(rung, chosen)
    after = _counts(rung[::-1], chosen)[::-1]
    at_most = np.cumsum(after, axis=1)[:, ::-1]  # fewer than `chosen` in all: a before, at most chosen - 1 - a after
    fewer = (before * at_most).sum(axis=1)
    density = rate[:, np.newaxis] * time * np.exp(-rate[:, np.newaxis] * time)
    # rounding may leave a sure expert above 1 by 1e-15
    inclusion: FloatArray = np.minimum(STEP * (density * fewer).sum(axis=1), 1.0)
    inclusion.flags.writeable = False
    return inclusion


def _counts(rung: FloatArray, chosen: int) -> FloatArray:
    """P(exactly n of the clocks ahead of clock i have rung), n < chosen: [clocks, chosen, times]."""
    counts = np.zeros((len(rung), chosen, rung.shape[1]))
    counts[0, 0] = 1
    for i in range(len(rung) - 1):
        counts[i + 1] = counts[i] * (1 - rung[i])
        counts[i + 1, 1:] += counts[i, :-1] * rung[i]
    return counts


def check_choice(experts: int, per_token: int) -> None:
    """Refuse a choice of more experts than there are.

    Raises:
        ValueError: naming both counts.
    """
    if not 1 <= per_token <= experts:
        raise ValueError(f"experts per token must be 1 to the layer's {experts} experts, got {per_token}")
