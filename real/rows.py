"""Rows of probabilities on a device: draw from them, pick one, check them, without a host sync."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Randomness = torch.Generator | Sequence[torch.Generator | None] | None
"""One generator for all rows, or one for each entry of the first (batch) dimension: then a row draws the same numbers
whatever other rows are beside it. A row whose entry is None draws nothing and gets zeros."""


def uniforms(shape: Sequence[int], device: torch.device, generator: Randomness) -> Tensor:
    """float64 uniforms in [0, 1).

    Raises:
        ValueError: there is a generator for each row, but another number of rows.
    """
    if generator is None or isinstance(generator, torch.Generator):
        return torch.rand(shape, dtype=torch.float64, device=device, generator=generator)
    if not shape or len(generator) != shape[0]:
        raise ValueError(f"{len(generator)} generators given for rows {list(shape)}; give one generator a row")
    rows = [
        torch.zeros(shape[1:], dtype=torch.float64, device=device)
        if own is None
        else torch.rand(shape[1:], dtype=torch.float64, device=device, generator=own)
        for own in generator
    ]
    return rows[0][None] if len(rows) == 1 else torch.stack(rows)


def draw(weights: Tensor, generator: Randomness) -> Tensor:
    """Sample an index per row of unnormalised weights [..., vocab] with no host sync (see `invert`)."""
    return invert(weights, uniforms(weights.shape[:-1], weights.device, generator))


def invert(weights: Tensor, uniform: Tensor) -> Tensor:
    """The index at which the cumulative sum of weights [..., vocab] passes a uniform [...], in float64.

    A token of weight zero is never drawn: its cumulative sum does not rise, and a uniform below 1 times the total
    rounds to less than the total.
    """
    cumulative = weights.to(torch.float64).cumsum(-1)
    return torch.searchsorted(cumulative, uniform[..., None] * cumulative[..., -1:], right=True).squeeze(-1)


def positive_part(p: Tensor, q: Tensor) -> Tensor:
    """(p - q)+ along the last axis, or p where nothing is left (p = q up to rounding: a rejection of chance ~0)."""
    excess = (p - q).clamp_min(0.0)
    return torch.where(excess.sum(-1, keepdim=True) > 0, excess, p)


def pad_row(x: Tensor) -> Tensor:
    """Append a row of zeros: [..., rows, vocab] -> [..., rows+1, vocab]."""
    return torch.nn.functional.pad(x, (0, 0, 0, 1))


def row(x: Tensor, index: Tensor) -> Tensor:
    """Row `index` [...] of x [..., rows, vocab]; the row past the last is zero."""
    last = x.shape[-2]
    if last == 0:
        return x.new_zeros((*index.shape, x.shape[-1]))
    where = index.clamp_max(last - 1)[..., None, None].expand(*index.shape, 1, x.shape[-1])
    return x.gather(-2, where).squeeze(-2) * (index < last)[..., None]


def one_hot(draft_ids: Tensor, like: Tensor) -> Tensor:
    """[..., gamma, vocab] the q of a deterministic draft, in the dtype and vocabulary of `like`; zero for id -1."""
    zeros = like.new_zeros((*draft_ids.shape, like.shape[-1]))
    return zeros.scatter(-1, draft_ids.clamp_min(0)[..., None], (draft_ids >= 0)[..., None].to(like.dtype))


def at(x: Tensor, ids: Tensor) -> Tensor:
    """x[..., id] along the last axis for ids [...]; what id -1 reads is meaningless."""
    return x.gather(-1, ids.clamp_min(0)[..., None]).squeeze(-1)


def check_shapes(p: Tensor, q: Tensor | None, draft_ids: Tensor) -> None:
    """Raise ValueError unless p is [..., gamma+1, vocab], q [..., gamma, vocab] and draft_ids [..., gamma]."""
    if p.dim() < 2 or p.shape[:-1] != (*draft_ids.shape[:-1], draft_ids.shape[-1] + 1):
        raise ValueError(
            f"p must be [..., gamma+1, vocab] for draft_ids [..., gamma], got {list(p.shape)} and "
            f"{list(draft_ids.shape)}; the target also gives a row after the last drafted token"
        )
    if q is not None and q.shape != (*draft_ids.shape, p.shape[-1]):
        raise ValueError(f"q must be {[*draft_ids.shape, p.shape[-1]]} beside p {list(p.shape)}, got {list(q.shape)}")


def check_rows(name: str, x: Tensor, blank: Tensor | None = None) -> None:
    """Raise ValueError naming the first row of `x` that is no distribution; on a device the values are left unread.

    Rows where `blank` is set must be zero instead: nothing was drafted there. Sums may miss one by the square root of
    the dtype's epsilon: 1.5e-8 in float64, 3.5e-4 in float32.
    """
    if x.device.type != "cpu":
        return
    total = x.sum(-1)
    wanted = 1.0 if blank is None else (~blank).double()
    bad = ~((total - wanted).abs() <= torch.finfo(x.dtype).eps ** 0.5) | (x.amin(-1) < 0)
    if bool(bad.any()):
        where = tuple(bad.nonzero()[0].tolist())
        raise ValueError(
            f"{name} row {where} is not a distribution: it sums to {float(total[where]):.6g}, its least entry is "
            f"{float(x[where].min()):.6g}; pass probabilities (softmax of the logits), not logits"
        )
