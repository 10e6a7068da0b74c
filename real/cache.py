"""The KV cache: buffers of a fixed capacity and a length that moves forward and back.

Rejected tokens are forgotten by moving the length back: what lies beyond it is overwritten by the next forward.
"""

from __future__ import annotations

import torch
from torch import Tensor


class KVCache:
    """Keys and values of one sequence, preallocated.

    Attributes:
        keys, values: [layers, kv_heads, capacity, head_dim].
        length: tokens held; the next forward writes from here.
    """

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys = keys
        self.values = values
        self.length = 0

    @classmethod
    def allocate(
        cls, layers: int, kv_heads: int, capacity: int, head_dim: int, dtype: torch.dtype, device: torch.device
    ) -> KVCache:
        """An empty cache for `capacity` tokens."""
        shape = (layers, kv_heads, capacity, head_dim)
        return cls(torch.zeros(shape, dtype=dtype, device=device), torch.zeros(shape, dtype=dtype, device=device))

    @property
    def capacity(self) -> int:
        """Tokens that fit."""
        return self.keys.shape[2]

    def reserve(self, new_tokens: int) -> None:
        """Refuse to write beyond the end.

        Raises:
            ValueError: the tokens do not fit.
        """
        if self.length + new_tokens > self.capacity:
            raise ValueError(
                f"KV cache holds {self.capacity} tokens, {self.length} are used and {new_tokens} more were asked for; "
                "allocate prompt + max_new_tokens + gamma + 1"
            )

    def rollback(self, length: int) -> None:
        """Forget every token from `length` on; a cache that is already shorter stays as it is."""
        self.length = min(self.length, length)

    def copy(self) -> KVCache:
        """The same tokens in buffers of its own."""
        twin = KVCache(self.keys.clone(), self.values.clone())
        twin.length = self.length
        return twin

    def view(self) -> KVCache:
        """The same buffers with a length of its own: what early exit drafts into."""
        shared = KVCache(self.keys, self.values)
        shared.length = self.length
        return shared
