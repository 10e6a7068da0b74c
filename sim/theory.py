"""Closed forms of speculative decoding: acceptance, tokens per round, speedup and operations.

Numbers in brackets are those of Leviathan, Kalman and Matias, "Fast Inference from Transformers via Speculative
Decoding" (ICML 2023, arXiv:2211.17192). Every function broadcasts over arrays and returns a float for numbers.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]

SOURCE_TABLE: tuple[tuple[float, int, float], ...] = ((0.7, 4, 2.1), (0.7, 8, 2.5), (0.8, 4, 2.5), (0.8, 8, 3.3))
"""(alpha, gamma, speedup) as the source algorithm prints them; see `source_table`."""


def acceptance_rate(p: ArrayLike, q: ArrayLike) -> FloatArray:
    """Chance that a token drafted from q is accepted for p: the sum of min(p, q) [Def. 3.1, Thm 3.5].

    The mean of this over contexts is alpha [Cor. 3.6].

    Args:
        p: the target's probabilities [..., vocab].
        q: the draft's probabilities [..., vocab].

    Returns:
        Acceptance rates [...].

    Raises:
        ValueError: the vocabularies differ, or a last axis is not a probability distribution.
    """
    p, q = check_distribution("p", p), check_distribution("q", q)
    if p.shape[-1] != q.shape[-1]:
        raise ValueError(f"p and q must share one vocabulary, got {p.shape[-1]} and {q.shape[-1]} entries")
    overlap: FloatArray = np.minimum(p, q).sum(axis=-1)
    return np.minimum(overlap, 1.0)


def divergence_lk(p: ArrayLike, q: ArrayLike) -> FloatArray:
    """D_LK(p, q): the sum of |p - (p + q)/2|, one minus the acceptance rate [Def. 3.2, Lemma 3.3].

    It is the total variation distance: symmetric, 0 for equal distributions, 1 for disjoint supports [Cor. 3.4].

    Args:
        p: the target's probabilities [..., vocab].
        q: the draft's probabilities [..., vocab].

    Returns:
        Divergences [...], each in [0, 1].

    Raises:
        ValueError: as `acceptance_rate`.
    """
    return 1.0 - acceptance_rate(p, q)


def expected_tokens(alpha: ArrayLike, gamma: ArrayLike) -> FloatArray:
    """Expected tokens emitted per round, the bonus or correction token included [eq. 1].

    (1 - alpha^(gamma+1)) / (1 - alpha) for independent acceptances, gamma + 1 at alpha = 1.

    Raises:
        ValueError: alpha is outside [0, 1], or gamma is not a whole number >= 0.
    """
    alpha, gamma = check_probability("alpha", alpha), check_gamma(gamma)
    with np.errstate(divide="ignore", invalid="ignore"):
        # log and expm1 keep all digits where alpha is close to 1 and the plain form cancels.
        tokens = -np.expm1((gamma + 1) * np.log(alpha)) / (1 - alpha)
    return np.where(alpha == 1, gamma + 1, tokens)[()]


def expected_tokens_per_position(conditional: ArrayLike) -> FloatArray:
    """Expected tokens per round when position i is accepted with its own probability once it is reached.

    1 + the sum of the cumulative products; for equal entries this is eq. 1.

    Args:
        conditional: conditional acceptance [..., gamma]; gamma may be 0.

    Returns:
        Expected tokens [...].
    """
    marginal = np.cumprod(check_probability("conditional acceptance", conditional), axis=-1, dtype=np.float64)
    return np.asarray(1.0 + marginal.sum(axis=-1))[()]


def speedup(alpha: ArrayLike, gamma: ArrayLike, cost_ratio: ArrayLike, verify_ratio: ArrayLike = 1.0) -> FloatArray:
    """Expected factor by which the wall time shrinks [Thm 3.8, generalised to a verification that costs more].

    eq. 1 / (gamma * cost_ratio + verify_ratio); with verify_ratio = 1 this is the theorem.

    Args:
        alpha: acceptance rate.
        gamma: draft length in tokens.
        cost_ratio: one draft forward / one target forward with one new token [Def. 3.7].
        verify_ratio: one target forward with gamma + 1 new tokens / with one.

    Raises:
        ValueError: an argument is out of its range.
    """
    cost_ratio = check_cost("cost_ratio", cost_ratio)
    verify_ratio = check_cost("verify_ratio", verify_ratio)
    if np.any(verify_ratio == 0):
        raise ValueError("verify_ratio must be > 0, got 0.0; 1 means that verification costs one target forward")
    return expected_tokens(alpha, gamma) / (check_gamma(gamma) * cost_ratio + verify_ratio)


def operations_increase(alpha: ArrayLike, gamma: ArrayLike, operations_ratio: ArrayLike) -> FloatArray:
    """Expected factor by which the arithmetic operations grow [Thm 3.11].

    (gamma * operations_ratio + gamma + 1) / eq. 1.

    Args:
        alpha: acceptance rate.
        gamma: draft length in tokens.
        operations_ratio: operations per token of the draft / of the target [Def. 3.10].
    """
    gamma = check_gamma(gamma)
    operations_ratio = check_cost("operations_ratio", operations_ratio)
    return (gamma * operations_ratio + gamma + 1) / expected_tokens(alpha, gamma)


def pays(alpha: ArrayLike, cost_ratio: ArrayLike) -> NDArray[np.bool_]:
    """Whether some draft length makes decoding faster, with a verification that costs one forward [Cor. 3.9]."""
    return np.greater(check_probability("alpha", alpha), check_cost("cost_ratio", cost_ratio))


def speedup_bound(alpha: ArrayLike, cost_ratio: ArrayLike) -> FloatArray:
    """The speedup that the best draft length reaches at least where it pays: (1 + alpha)/(1 + cost_ratio) [Cor. 3.9].

    It is the speedup at gamma = 1.
    """
    return (1 + check_probability("alpha", alpha)) / (1 + check_cost("cost_ratio", cost_ratio))


def best_gamma(
    alpha: float,
    cost_ratio: float,
    verify_ratio: float | Callable[[int], float] = 1.0,
    max_gamma: int = 64,
) -> int:
    """The draft length with the greatest expected speedup [Sec. 3.5], found by trying them all.

    Args:
        alpha: acceptance rate.
        cost_ratio: one draft forward / one target forward with one new token.
        verify_ratio: one number for every draft length, or a function of the new tokens in the target's forward
            (gamma + 1), in units of a forward with one.
        max_gamma: the longest draft to consider; it is the answer where longer is always better.

    Returns:
        The draft length, the shortest one of equals; 0 where no draft is faster than autoregressive decoding.
    """
    lengths = np.arange(1, int(check_gamma(max_gamma)) + 1)
    ratios = np.array([verify_ratio(n + 1) for n in lengths.tolist()]) if callable(verify_ratio) else verify_ratio
    return int(np.argmax(np.concatenate([[1.0], speedup(alpha, lengths, cost_ratio, ratios)])))


def source_approximation(alpha: ArrayLike, gamma: ArrayLike) -> FloatArray:
    """The source algorithm's own speedup formula, 1 / (1 - alpha + alpha/gamma): an approximation, not eq. 1.

    It counts no draft time, and it is wrong at gamma = 1, where it says 1 whatever alpha is.

    Raises:
        ValueError: gamma is below 1, or alpha outside [0, 1].
    """
    alpha, gamma = check_probability("alpha", alpha), check_gamma(gamma)
    if np.any(gamma < 1):
        raise ValueError(f"gamma must be >= 1 in the source's approximation, got {gamma.min():g}; use expected_tokens")
    return 1 / (1 - alpha + alpha / gamma)


def source_table() -> pd.DataFrame:
    """The source's printed speedups beside its own formula and the exact expected tokens (eq. 1).

    Returns:
        A DataFrame with the columns alpha, gamma, printed, formula and exact.
    """
    table = pd.DataFrame(SOURCE_TABLE, columns=["alpha", "gamma", "printed"])
    table["formula"] = source_approximation(table["alpha"], table["gamma"])
    table["exact"] = expected_tokens(table["alpha"], table["gamma"])
    return table


def check_probability(name: str, values: ArrayLike) -> FloatArray:
    """The values as floats, each in [0, 1].

    Raises:
        ValueError: naming the first value that is not, NaN included.
    """
    array = np.asarray(values, dtype=np.float64)
    wrong = ~((array >= 0) & (array <= 1))
    if wrong.any():
        raise ValueError(f"{name} must be in [0, 1], got {array[wrong][0]}; give a probability, not a percentage")
    return array


def check_gamma(values: ArrayLike) -> FloatArray:
    """The draft lengths as floats, each a whole number >= 0.

    Raises:
        ValueError: naming the first value that is not.
    """
    array = np.asarray(values, dtype=np.float64)
    wrong = ~((array >= 0) & (array < np.inf) & (array == np.floor(array)))
    if wrong.any():
        raise ValueError(f"gamma must be a whole number >= 0, got {array[wrong][0]:g}; 0 means autoregressive decoding")
    return array


def check_cost(name: str, values: ArrayLike) -> FloatArray:
    """The values as floats, each finite and not negative.

    Raises:
        ValueError: naming the first value that is not.
    """
    array = np.asarray(values, dtype=np.float64)
    wrong = ~((array >= 0) & (array < np.inf))
    if wrong.any():
        raise ValueError(f"{name} must be finite and >= 0, got {array[wrong][0]}")
    return array


def check_distribution(name: str, values: ArrayLike) -> FloatArray:
    """The values as floats, each last axis a probability distribution (sums within 1e-3, as half precision leaves it).

    Raises:
        ValueError: naming the first value or sum that is not.
    """
    array = check_probability(name, values)
    if array.ndim == 0:
        raise ValueError(f"{name} must have a vocabulary axis, got the single number {array}")
    sums = array.sum(axis=-1)
    wrong = np.abs(sums - 1) > 1e-3
    if wrong.any():
        raise ValueError(f"{name} must sum to 1 over the vocabulary, got {sums[wrong][0]}; apply a softmax to logits")
    return array
