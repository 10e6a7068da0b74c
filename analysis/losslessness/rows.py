"""Rows of probabilities in bulk: check them, pick one per round, draw from them.

A sampler under test gets p as [gamma+1, vocab], the same every round, or as [n, gamma+1, vocab], one for each round;
q likewise with gamma rows. These functions take both, and never build the larger where the smaller will do.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def check_rows(name: str, p: Any, tolerance: float = 1e-6) -> Floats:
    """Return `p` as float64, every row along its last axis a distribution.

    Raises:
        ValueError: naming the first row that is negative somewhere, not finite, or does not sum to one.
    """
    rows = np.asarray(p, dtype=np.float64)
    if rows.ndim < 1 or rows.shape[-1] < 1:
        raise ValueError(f"{name} must have a vocabulary axis, got shape {rows.shape}")
    total = rows.sum(-1)
    bad = ~(np.abs(total - 1) <= tolerance) | (rows < 0).any(-1)
    if bad.any():
        where = tuple(int(i) for i in np.argwhere(bad)[0])
        raise ValueError(
            f"{name} row {where} is not a distribution: it sums to {total[where]:.6g}, its least entry is "
            f"{rows[where].min():.6g}; normalise it, and pass probabilities rather than logits"
        )
    return rows


def check_pair(p: Any, q: Any) -> tuple[Floats, Floats]:
    """Return p [..., gamma+1, vocab] and q [..., gamma, vocab] as float64, checked row by row.

    Raises:
        ValueError: the shapes do not belong together, or a row is no distribution.
    """
    target, draft = check_rows("p", p), check_rows("q", q)
    expected = (*target.shape[:-2], target.shape[-2] - 1, target.shape[-1]) if target.ndim >= 2 else None
    if draft.shape != expected:
        raise ValueError(
            f"p must be [..., gamma+1, vocab] and q [..., gamma, vocab], got {target.shape} and {draft.shape}; "
            "the target has one row more, for the bonus token"
        )
    return target, draft


def at(p: Floats, ids: Ints) -> Floats:
    """[n, k] p[.., j, ids[:, j]] of tokens ids [n, k]; p is [rows, vocab] or [n, rows, vocab], k <= rows."""
    n, k = ids.shape
    rows, vocab = p.shape[-2:]
    start = np.arange(k) * vocab
    if p.ndim == 3:
        start = start + (np.arange(n) * (rows * vocab))[:, None]
    return np.asarray(p.reshape(-1).take(start + ids))


def row(p: Floats, index: Ints) -> Floats:
    """Row `index` [n] of p [rows, vocab] or [n, rows, vocab] -> [n, vocab]; zero past the last row."""
    rows, vocab = p.shape[-2:]
    padded = np.concatenate([p, np.zeros((*p.shape[:-2], 1, vocab))], axis=-2)
    flat = index if p.ndim == 2 else index + np.arange(len(index)) * (rows + 1)
    return padded.reshape(-1, vocab).take(flat, axis=0)


def draw(weights: Floats, rng: np.random.Generator, uniform: Floats | None = None) -> Ints:
    """One index for each row of unnormalised weights [n, vocab], by inversion; weight zero is never drawn."""
    cumulative = np.cumsum(weights, axis=-1)
    u = rng.random(len(weights)) if uniform is None else uniform
    return np.asarray((cumulative <= (u * cumulative[:, -1])[:, None]).sum(-1))


def draft_tokens(q: Floats, n: int, rng: np.random.Generator) -> Ints:
    """[n, gamma] tokens, column j drawn from q[j] ([gamma, vocab]) or from q[:, j] ([n, gamma, vocab])."""
    uniform = rng.random((n, q.shape[-2]))
    columns = [
        np.searchsorted(c := np.cumsum(q[j]), uniform[:, j] * c[-1], side="right")
        if q.ndim == 2
        else draw(q[:, j], rng, uniform[:, j])
        for j in range(q.shape[-2])
    ]
    return np.stack(columns, axis=1) if columns else np.empty((n, 0), dtype=np.int64)


def emit(draft_ids: Ints, accepted: Ints, next_token: Ints) -> Ints:
    """[n, gamma+1] what a round puts out: the accepted tokens, then the correction or bonus token, then -1."""
    n, gamma = draft_ids.shape
    tokens = np.full((n, gamma + 1), -1, dtype=np.int64)
    tokens[:, :gamma] = np.where(np.arange(gamma) < accepted[:, None], draft_ids, -1)
    tokens[np.arange(n), accepted] = next_token
    return tokens


def total_variation(a: Floats, b: Floats) -> float:
    """Half the summed absolute difference of two laws."""
    return float(0.5 * np.abs(a - b).sum())
