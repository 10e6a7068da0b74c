"""Correct samplers in numpy, written apart from the torch rules, so that each can be held against the other.

A chain rule is two pure functions, its marginal acceptance and its correction weights; `chain_sampler` turns the pair
into a sampler that draws its own draft tokens, a million rounds a second on one core.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.losslessness.rows import Floats, Ints, at, draft_tokens, draw, emit, row

Sampler = Callable[[Floats, Floats, int, np.random.Generator], Ints]
"""`sampler(p, q, n, rng) -> int [n, gamma+1]`: row i is round i of one stream, -1 after the last emitted token."""


@dataclass(frozen=True)
class Rule:
    """A chain rule as pure functions of p, q and the drafted tokens [n, gamma]."""

    marginal_acceptance: Callable[[Floats, Floats, Ints], Floats]
    """[n, gamma] P(at least i+1 tokens accepted | the drafted tokens)."""
    correction: Callable[[Floats, Floats, Ints, Ints], Floats]
    """[n, vocab] weights of the token that follows `accepted` [n] drafted ones."""
    draft: Callable[[Floats], Floats] = lambda q: q
    """The law the tokens are really drafted from; anything but q itself is a bug that a mutant stands for."""


def chain_sampler(rule: Rule) -> Sampler:
    """The sampler of a chain rule: gamma uniforms to draft, one to accept, one for the last token."""

    def sampler(p: Floats, q: Floats, n: int, rng: np.random.Generator) -> Ints:
        draft_ids = draft_tokens(rule.draft(q), n, rng)
        accepted = (rng.random((n, 1)) < rule.marginal_acceptance(p, q, draft_ids)).sum(-1)
        return emit(draft_ids, accepted, draw(rule.correction(p, q, draft_ids, accepted), rng))

    return sampler


def ratio(p: Floats, q: Floats, draft_ids: Ints) -> Floats:
    """[n, gamma] p(x) / q(x) of the drafted tokens; 0 where p is 0."""
    return at(p, draft_ids) / np.maximum(at(q, draft_ids), np.finfo(np.float64).tiny)


def rejection_marginals(p: Floats, q: Floats, draft_ids: Ints) -> Floats:
    """prod min(1, p/q) (Leviathan et al. 2023, arXiv:2211.17192, Algorithm 1)."""
    return np.asarray(np.cumprod(np.minimum(1.0, ratio(p, q, draft_ids)), axis=-1), dtype=np.float64)


def positive_part(p: Floats, q: Floats) -> Floats:
    """(p - q)+ along the last axis; p where nothing is left."""
    excess = np.maximum(p - q, 0.0)
    empty = excess.sum(-1) <= 0
    if empty.any():
        excess[empty] = p[empty]
    return excess


def residual(p: Floats, q: Floats, draft_ids: Ints, accepted: Ints) -> Floats:
    """(p - q)+ at the first rejected position, p for the bonus token (Leviathan et al. 2023, Algorithm 1)."""
    return positive_part(row(p, accepted), row(q, accepted))


def block_weights(p: Floats, q: Floats, draft_ids: Ints) -> Floats:
    """[n, gamma+1] w_0 = 1, w_i = min(1, w_{i-1} p/q) (Sun et al. 2024, arXiv:2403.10444, Algorithm 2)."""
    steps = ratio(p, q, draft_ids)
    weights = np.ones((len(draft_ids), draft_ids.shape[1] + 1))
    for i in range(draft_ids.shape[1]):
        weights[:, i + 1] = np.minimum(1.0, weights[:, i] * steps[:, i])
    return weights


def block_marginals(p: Floats, q: Floats, draft_ids: Ints) -> Floats:
    """1 - prod_{k >= i} (1 - h_k), h_k = e_k / (e_k + 1 - w_k), e_k = sum (w_k p_k - q_k)+ (Sun et al. 2024)."""
    weights = block_weights(p, q, draft_ids)
    miss = np.ones(draft_ids.shape)
    for k in range(1, weights.shape[1]):
        excess = weights[:, k, None] * p[..., k, :]
        if k < draft_ids.shape[1]:
            excess = np.maximum(excess - q[..., k, :], 0.0)
        total = excess.sum(-1) + 1.0 - weights[:, k]
        miss[:, k - 1] = np.where(total > 0, (1.0 - weights[:, k]) / np.where(total > 0, total, 1.0), 0.0)
    return np.asarray(1.0 - np.cumprod(miss[:, ::-1], axis=-1)[:, ::-1], dtype=np.float64)


def block_correction(p: Floats, q: Floats, draft_ids: Ints, accepted: Ints) -> Floats:
    """(w p - q)+ after the accepted block of weight w (Sun et al. 2024)."""
    weight = np.take_along_axis(block_weights(p, q, draft_ids), accepted[:, None], axis=-1)
    return positive_part(weight * row(p, accepted), row(q, accepted))


def exact_match_marginals(p: Floats, q: Floats, draft_ids: Ints) -> Floats:
    """prod p(x): sample from p and accept while the sample is the drafted token."""
    return np.asarray(np.cumprod(at(p, draft_ids), axis=-1), dtype=np.float64)


def without_drafted(p: Floats, draft_ids: Ints, accepted: Ints) -> Floats:
    """[n, vocab] p at the first rejected position without the drafted token; p whole for the bonus token."""
    weights = row(p, accepted)
    rejected = np.flatnonzero(accepted < draft_ids.shape[1])
    weights[rejected, draft_ids[rejected, accepted[rejected]]] = 0.0
    return positive_part(weights, np.zeros(1))


def candidate_sampler(k: int, replacement: bool) -> Sampler:
    """k candidates at every position, verified in turn, each against what the earlier ones left of p.

    With replacement it is SpecInfer's multi-round sampling (Miao et al. 2024, arXiv:2305.09781); without,
    the candidates are distinct and q loses each tried one (Sequoia: Chen et al. 2024, arXiv:2402.12374).
    """
    return tree_sampler(k, drawn_with_replacement=replacement, verified_with_replacement=replacement)


def tree_sampler(
    k: int, drawn_with_replacement: bool, verified_with_replacement: bool, update_residual: bool = True
) -> Sampler:
    """The candidate sampler with each of its parts named, so that a mutant can break one of them."""

    def sampler(p: Floats, q: Floats, n: int, rng: np.random.Generator) -> Ints:
        gamma, vocab = q.shape[-2:]
        tokens = np.full((n, gamma + 1), -1, dtype=np.int64)
        alive = np.arange(n)
        for j in range(gamma):
            target = np.broadcast_to(p[..., j, :], (n, vocab))[alive]
            draft = np.broadcast_to(q[..., j, :], (n, vocab))[alive]
            tokens[alive, j], hit = _verify_candidates(
                target, draft, k, rng, drawn_with_replacement, verified_with_replacement, update_residual
            )
            alive = alive[hit]
        tokens[alive, gamma] = draw(np.broadcast_to(p[..., gamma, :], (n, vocab))[alive], rng)
        return tokens

    return sampler


def _verify_candidates(
    target: Floats,
    draft: Floats,
    k: int,
    rng: np.random.Generator,
    drawn_with_replacement: bool,
    verified_with_replacement: bool,
    update_residual: bool,
) -> tuple[Ints, NDArray[np.bool_]]:
    """Tokens [n] and whether a candidate was accepted [n]; `target` and `draft` are [n, vocab]."""
    n = len(target)
    rounds = np.arange(n)
    source, proposal = draft.copy(), draft.copy()
    tokens = np.full(n, -1, dtype=np.int64)
    open_ = np.ones(n, dtype=bool)
    for _ in range(k):
        candidate = draw(source, rng)
        chance = target[rounds, candidate] / np.maximum(proposal[rounds, candidate], np.finfo(np.float64).tiny)
        hit = open_ & (rng.random(n) < chance)
        tokens[hit] = candidate[hit]
        open_ &= ~hit
        if update_residual:
            target = positive_part(target, proposal)
            target /= target.sum(-1, keepdims=True)
        if not drawn_with_replacement:
            source = _without(source, candidate)
        if not verified_with_replacement:
            proposal = _without(proposal, candidate)
    last = target if update_residual else positive_part(target, proposal)
    tokens[open_] = draw(last[open_], rng)
    return tokens, ~open_


def _without(q: Floats, token: Ints) -> Floats:
    """q [n, vocab] without one token for each row, renormalised; a q that ran empty spreads over the others."""
    left = q.copy()
    left[np.arange(len(q)), token] = 0.0
    total = left.sum(-1, keepdims=True)
    return np.where(total > 0, left / np.where(total > 0, total, 1.0), 1.0 / q.shape[-1])


REJECTION_SAMPLING = Rule(rejection_marginals, residual)
BLOCK_VERIFICATION = Rule(block_marginals, block_correction)
EXACT_MATCH = Rule(exact_match_marginals, lambda p, q, draft_ids, accepted: without_drafted(p, draft_ids, accepted))

RULES: dict[str, Rule] = {
    "rejection_sampling": REJECTION_SAMPLING,
    "block_verification": BLOCK_VERIFICATION,
    "exact_match": EXACT_MATCH,
}
CORRECT: dict[str, Sampler] = {name: chain_sampler(rule) for name, rule in RULES.items()} | {
    "multi_round": candidate_sampler(3, replacement=True),
    "without_replacement": candidate_sampler(2, replacement=False),
}
"""Samplers that every test here must pass."""
