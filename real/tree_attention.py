"""Where the new tokens of a forward go, and what each may look at: causal chains, token trees, ragged batches.

A forward appends its tokens to the cache in the order in which they are given. In a chain each sees all before it. In
a token tree a token sees the context and its own ancestors, and its position is its depth below the context, so
siblings share a position. Rows of a batch have different lengths; nothing here assumes that they agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from real.devices import to_device


@dataclass(frozen=True)
class Tail:
    """What the new tokens see of the last slots, those of a token tree; before the tail they see everything.

    Attributes:
        visible: [new, width] bool, or [batch, new, width] where rows differ: the tail is the last `width` slots, the
            new ones included; new token i sees tail slot j.
        depths: [new] or [batch, new] int64, positions of the new tokens, counted from the first slot of the tail.
    """

    visible: Tensor
    depths: Tensor


@dataclass(frozen=True)
class Window:
    """Slots, positions and mask of one forward.

    Attributes:
        start: first new slot where all rows agree on it, else None.
        end: slots that attention reads.
        slots: [batch, new] int64, where each new token is written; None where `start` says it all.
        positions: [batch, new] int64, for rotary embeddings; None where they are start ... end - 1.
        mask: bool, True where a new token may look, broadcastable to [batch, heads, new, end]; None for one token a
            row that sees everything.
    """

    start: int | None
    end: int
    slots: Tensor | None
    positions: Tensor | None
    mask: Tensor | None


def window(lengths: Sequence[int], new: int, tail: Tail | None, device: torch.device) -> Window:
    """Place `new` tokens a row behind rows of the given lengths."""
    end = max(lengths) + new
    same = min(lengths) == max(lengths)
    start = end - new if same else None
    if same and tail is None:
        mask = None
        if new > 1:
            mask = torch.ones(new, end, dtype=torch.bool, device=device).tril_(end - new)
        return Window(start, end, None, None, mask)
    lengths_column = to_device(lengths, device)[:, None]
    slots = lengths_column + torch.arange(new, device=device)
    everywhere = torch.arange(end, device=device)
    if tail is None:
        return Window(start, end, slots, slots, (everywhere <= slots[..., None])[:, None])
    width = tail.visible.shape[-1]
    first = lengths_column + new - width
    offset = everywhere - first[..., None]  # [batch, 1, end], slot numbers counted from the tail's first
    inside = (offset >= 0) & (offset < width)
    visible = tail.visible if tail.visible.dim() == 3 else tail.visible[None]
    where = offset.clamp(0, width - 1).expand(-1, new, -1)
    seen = visible.expand(len(lengths), -1, -1).gather(-1, where)
    return Window(start, end, slots, first + tail.depths, ((offset < 0) | (inside & seen))[:, None])
