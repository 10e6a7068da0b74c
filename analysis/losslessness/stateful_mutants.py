"""Mutants whose bug is not in the rule: in the order of the output, in shared noise, in state kept between rounds."""

from __future__ import annotations

import numpy as np

from analysis.losslessness.rows import Floats, Ints, draft_tokens, draw, emit
from analysis.losslessness.rules import Sampler, rejection_marginals, residual


def _both(p: Floats, q: Floats, n: int) -> tuple[Floats, Floats]:
    """p and q with a row for each round."""
    return (np.array(np.broadcast_to(x, (n, *x.shape[-2:]))) for x in (p, q))  # type: ignore[return-value]  # a pair


def _verify(p: Floats, q: Floats, draft_ids: Ints, rng: np.random.Generator) -> Ints:
    accepted = (rng.random((len(draft_ids), 1)) < rejection_marginals(p, q, draft_ids)).sum(-1)
    return emit(draft_ids, accepted, draw(residual(p, q, draft_ids, accepted), rng))


def _correct(p: Floats, q: Floats, n: int, rng: np.random.Generator) -> Ints:
    return _verify(p, q, draft_tokens(q, n, rng), rng)


def bonus_missing(p: Floats, q: Floats, n: int, rng: np.random.Generator) -> Ints:
    """The free token after a full acceptance is dropped."""
    tokens = _correct(p, q, n, rng)
    tokens[:, -1] = -1
    return tokens


def correction_first(p: Floats, q: Floats, n: int, rng: np.random.Generator) -> Ints:
    """The last token of the round is put before the accepted ones."""
    tokens = _correct(p, q, n, rng)
    length = (tokens >= 0).sum(1)
    order = (np.arange(tokens.shape[1]) - 1) % length[:, None]
    return np.where(tokens >= 0, np.take_along_axis(tokens, order, axis=1), -1)


def rejected_token_kept(p: Floats, q: Floats, n: int, rng: np.random.Generator) -> Ints:
    """The rejected token stays in the output, in front of its correction."""
    draft_ids = draft_tokens(q, n, rng)
    tokens = _verify(p, q, draft_ids, rng)
    rejected = np.flatnonzero(tokens[:, -1] < 0)
    place = (tokens[rejected] >= 0).sum(1) - 1
    tokens[rejected, place + 1] = tokens[rejected, place]
    tokens[rejected, place] = draft_ids[rejected, place]
    return tokens


def eos_swallowed(p: Floats, q: Floats, n: int, rng: np.random.Generator) -> Ints:
    """The highest token, taken for EOS, is dropped from a round that emits anything else."""
    tokens = _correct(p, q, n, rng)
    eos = p.shape[-1] - 1
    gone = (tokens == eos) & ((tokens >= 0).sum(1, keepdims=True) > 1)
    gone[:, 0] &= tokens[:, 1] != eos
    keep = np.argsort(gone | (tokens < 0), axis=1, kind="stable")
    kept = np.take_along_axis(np.where(gone, -1, tokens), keep, axis=1)
    return np.where(kept[:, :1] < 0, tokens, kept)


def stale_draft_cache(p: Floats, q: Floats, n: int, rng: np.random.Generator) -> Ints:
    """Every round drafts from the row of the round before, and verifies with its own."""
    p, q = _both(p, q, n)
    return _verify(p, q, draft_tokens(np.roll(q, 1, axis=0), n, rng), rng)


def rows_mixed_up(p: Floats, q: Floats, n: int, rng: np.random.Generator) -> Ints:
    """Rounds of a batch of two get each other's rows."""
    p, q = _both(p, q, n)
    neighbour = (np.arange(n) ^ 1).clip(max=n - 1)
    return _correct(p[neighbour], q[neighbour], n, rng)


def seed_reused(p: Floats, q: Floats, n: int, rng: np.random.Generator) -> Ints:
    """64 seeds serve all rounds in turn, so that round i repeats the uniforms of round i - 64."""
    p, q = _both(p, q, n)
    seed = int(rng.integers(2**32))
    span = 64  # rounds that one seeding serves, as when a server seeds each request
    tokens = np.empty((n, p.shape[1]), dtype=np.int64)
    for start in range(span):
        rows = np.arange(start, n, span)
        if len(rows):
            tokens[rows] = _replay(p[rows], q[rows], np.random.default_rng([seed, start]))
    return tokens


def _replay(p: Floats, q: Floats, rng: np.random.Generator) -> Ints:
    """One round's uniforms used for all the rows given."""
    n, gamma = len(p), q.shape[1]
    uniform = np.tile(rng.random(gamma + 2), (n, 1))
    draft_ids = np.stack([draw(q[:, j], rng, uniform[:, j]) for j in range(gamma)], axis=1)
    accepted = (uniform[:, gamma, None] < rejection_marginals(p, q, draft_ids)).sum(-1)
    return emit(draft_ids, accepted, draw(residual(p, q, draft_ids, accepted), rng, uniform[:, gamma + 1]))


def _gumbel(weights: Floats, noise: Floats) -> Ints:
    """argmax of ln w - ln noise, noise exponential: a draw from w that uses one noise vector for each row."""
    return np.asarray((noise / np.maximum(weights, 1e-300)).argmin(-1))


def noise_shared_with_draft(p: Floats, q: Floats, n: int, rng: np.random.Generator) -> Ints:
    """The correction is drawn with the Gumbel noise that drew the rejected token."""
    p, q = _both(p, q, n)
    noise = rng.exponential(size=q.shape)
    draft_ids = _gumbel(q, noise)
    accepted = (rng.random((n, 1)) < rejection_marginals(p, q, draft_ids)).sum(-1)
    padded = np.concatenate([noise, rng.exponential(size=(n, 1, p.shape[-1]))], axis=1)
    return emit(draft_ids, accepted, _gumbel(residual(p, q, draft_ids, accepted), padded[np.arange(n), accepted]))


def noise_every(period: int) -> Sampler:
    """Rounds `period` apart share the noise of their last tokens: every marginal is right, the pairs are not."""

    def sampler(p: Floats, q: Floats, n: int, rng: np.random.Generator) -> Ints:
        draft_ids = draft_tokens(q, n, rng)
        accepted = (rng.random((n, 1)) < rejection_marginals(p, q, draft_ids)).sum(-1)
        noise = rng.exponential(size=(n, p.shape[-1]))
        second = (np.arange(n) // period) % 2 == 1
        noise[second] = noise[np.flatnonzero(second) - period]
        return emit(draft_ids, accepted, _gumbel(residual(p, q, draft_ids, accepted), noise))

    return sampler


def uniform_shared_with_correction(p: Floats, q: Floats, n: int, rng: np.random.Generator) -> Ints:
    """The uniform that rejected the draft also picks the correction."""
    draft_ids = draft_tokens(q, n, rng)
    uniform = rng.random(n)
    accepted = (uniform[:, None] < rejection_marginals(p, q, draft_ids)).sum(-1)
    return emit(draft_ids, accepted, draw(residual(p, q, draft_ids, accepted), rng, uniform))


def draft_replayed(p: Floats, q: Floats, n: int, rng: np.random.Generator) -> Ints:
    """Every second round drafts with the uniforms of the round before: the draft worker's generator is not advanced."""
    p, q = _both(p, q, n)
    uniform = rng.random(q.shape[:2])
    uniform[1::2] = uniform[: n - 1 : 2][: len(uniform[1::2])]
    draft_ids = np.stack([draw(q[:, j], rng, uniform[:, j]) for j in range(q.shape[1])], axis=1)
    return _verify(p, q, draft_ids, rng)
