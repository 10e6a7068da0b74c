"""From logits to the probabilities that decoding samples from.

Speculative sampling is lossless with respect to the distribution that the target is *sampled* from, so the same
settings must shape both sides: the target's logits and the draft's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SamplingSettings:
    """How a distribution is shaped before sampling; the names are transformers' generation-config names.

    Attributes:
        temperature: divides the logits; 0 is greedy decoding.
        top_k: keep the k most likely tokens.
        top_p: keep the smallest set of most likely tokens whose probability reaches p (Holtzman et al. 2020).
        min_p: keep tokens at least min_p times as likely as the most likely one (Nguyen et al. 2024).

    Raises:
        ValueError: a value is out of its range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature must be >= 0 and finite, got {self.temperature}; use 0 for greedy decoding")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be >= 1, got {self.top_k}; use None to keep every token")
        for name in ("top_p", "min_p"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise ValueError(f"{name} must be in (0, 1], got {value}; use None to keep every token")

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature == 0


def probabilities(logits: Tensor, settings: SamplingSettings) -> Tensor:
    """Shape logits into sampling probabilities: temperature, then top-k, then top-p, then min-p.

    The order and the tie rules are those of transformers' logits warpers: top-k keeps every token tied with the k-th,
    and top-p always keeps the most likely token.

    Args:
        logits: [..., vocab], any float dtype.
        settings: temperature must be positive; greedy decoding never needs probabilities.

    Returns:
        [..., vocab], float32 or float64 (as the logits; half precision is widened), rows sum to one.
    """
    if settings.greedy:
        raise ValueError("temperature 0 has no sampling distribution; take the argmax of the logits")
    if logits.dtype not in (torch.float32, torch.float64):
        logits = logits.float()
    if settings.temperature != 1:
        logits = logits / settings.temperature
    if settings.top_k is not None and settings.top_k < logits.shape[-1]:
        kth = torch.topk(logits, settings.top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    if settings.top_p is not None and settings.top_p < 1:
        descending, order = torch.sort(logits, dim=-1, descending=True)
        before = torch.softmax(descending, dim=-1).cumsum(dim=-1).roll(1, dims=-1)
        before[..., 0] = 0
        drop = torch.zeros_like(before, dtype=torch.bool).scatter(-1, order, before >= settings.top_p)
        logits = logits.masked_fill(drop, -torch.inf)
    if settings.min_p is not None:
        floor = logits.max(dim=-1, keepdim=True).values + torch.log(torch.tensor(settings.min_p, dtype=logits.dtype))
        logits = logits.masked_fill(logits < floor, -torch.inf)
    return torch.softmax(logits, dim=-1)
