"""alpha of every verification rule, in closed form from p and q.

alpha is the chance that a drafted token is accepted, given that it was reached (Leviathan et al. 2023, Def. 3.1); for
several candidates, that one of them is. Each is a sum over the vocabulary, so it prices a rule without running it.
"""

from __future__ import annotations

import numpy as np

from analysis.losslessness.rows import Floats, check_rows
from analysis.losslessness.rules import positive_part


def rejection_alpha(p: Floats, q: Floats) -> Floats:
    """Sum min(p, q) = 1 - TV(p, q), the most any coupling attains (Leviathan et al. 2023, Cor. 3.6)."""
    return np.asarray(np.minimum(*_pair(p, q)).sum(-1))


def exact_match_alpha(p: Floats, q: Floats) -> Floats:
    """Sum p q: two independent samples agree."""
    target, draft = _pair(p, q)
    return np.asarray((target * draft).sum(-1))


def greedy_alpha(p: Floats, q: Floats) -> Floats:
    """q at the argmax of p: a sampled draft hits the one token that greedy decoding takes."""
    target, draft = _pair(p, q)
    return np.asarray(np.take_along_axis(draft, target.argmax(-1)[..., None], axis=-1)[..., 0])


def lenient_alpha(p: Floats, q: Floats, lenience: float) -> Floats:
    """Sum min(q, p / lenience) (Leviathan et al. 2023, App. A.5)."""
    target, draft = _pair(p, q)
    return np.asarray(np.minimum(draft, target / lenience).sum(-1))


def typical_alpha(p: Floats, q: Floats, epsilon: float = 0.09, delta: float = 0.3) -> Floats:
    """q of the tokens with p > min(epsilon, delta exp(-H(p))) (Cai et al. 2024, arXiv:2401.10774)."""
    target, draft = _pair(p, q)
    logs = np.log(target, out=np.zeros_like(target), where=target > 0)
    threshold = np.minimum(epsilon, delta * np.exp((target * logs).sum(-1, keepdims=True)))
    return np.asarray(np.where(target > threshold, draft, 0.0).sum(-1))


def multi_round_alpha(p: Floats, q: Floats, k: int) -> float:
    """1 - prod_s (1 - sum min(p_s, q)), p_{s+1} = norm((p_s - q)+), for k independent candidates from one q [vocab].

    The acceptance of each round depends on p_s alone, not on the rejected token (Miao et al. 2024, arXiv:2305.09781).
    """
    target, draft = _pair(p, q)
    missed = 1.0
    for _ in range(k):
        missed *= 1.0 - float(np.minimum(target, draft).sum())
        target = _normalised(positive_part(target[None], draft[None])[0])
    return 1.0 - missed


def without_replacement_alpha(p: Floats, q: Floats, k: int) -> float:
    """Chance that one of k distinct candidates is accepted, summed over what the rejected ones were; q is [vocab].

    Unlike with replacement the next q depends on the rejected token, so this is a tree of vocab^(k-1) branches
    (Chen et al. 2024, arXiv:2402.12374).
    """
    target, draft = _pair(p, q)
    accepted = float(np.minimum(target, draft).sum())
    if k == 1:
        return accepted
    left = _normalised(positive_part(target[None], draft[None])[0])
    for token in np.flatnonzero(draft > target):
        rejected = float(draft[token] - target[token])
        rest = np.where(np.arange(len(draft)) == token, 0.0, draft)
        if rest.sum() > 0:
            accepted += rejected * without_replacement_alpha(left, _normalised(rest), k - 1)
        else:
            untried = np.arange(len(draft)) != token
            accepted += rejected * without_replacement_alpha(left, _normalised(untried.astype(float)), k - 1)
    return accepted


def block_expected_accepted(p: Floats, q: Floats) -> float:
    """Expected accepted tokens of block verification for rows p [gamma+1, vocab] and q [gamma, vocab] without context.

    sum_i E[w_i], w_i = min(1, w_{i-1} p_i(x_i) / q_i(x_i)), since P(at least i accepted | x_1..x_i) = w_i (Sun et al.
    2024, arXiv:2403.10444); enumerates vocab^gamma paths. Rejection sampling's is sum_i prod_{j<=i} sum min(p_j, q_j).
    """
    weights, chances, expected = np.ones(1), np.ones(1), 0.0
    for target, draft in zip(p[:-1], q, strict=True):
        ratio = np.divide(target, draft, out=np.zeros_like(target), where=draft > 0)
        weights = np.minimum(1.0, weights[:, None] * ratio).reshape(-1)
        chances = (chances[:, None] * draft).reshape(-1)
        expected += float(chances @ weights)
    return expected


def _pair(p: Floats, q: Floats) -> tuple[Floats, Floats]:
    target, draft = check_rows("p", p), check_rows("q", q)
    if target.shape != draft.shape:
        raise ValueError(f"p and q must have one shape, got {target.shape} and {draft.shape}")
    return target, draft


def _normalised(weights: Floats) -> Floats:
    return np.asarray(weights / weights.sum())
