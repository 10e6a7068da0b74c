"""The KV cache of a batch: buffers of a fixed capacity and one length a row, which moves forward and back.

Rejected tokens are forgotten by moving a row's length back: what lies beyond it is overwritten by the next forward.
Rows of a batch accept different numbers of tokens, so every row writes at its own length.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from real.devices import to_device
from real.tree_attention import Window


class KVCache:
    """Keys and values of a batch of sequences, in buffers that the first forward allocates.

    Attributes:
        capacity: tokens that fit in a row.
        lengths: tokens held by each row; the next forward writes a row from here.
        keys, values: [layers, batch, kv_heads, capacity, head_dim]; None before the first forward.
        feature_layers: layers whose output is kept per token beside keys and values, for drafts that read it; layer L
            is the output of the first L layers.
        features: [batch, capacity, feature layers, width] of those outputs, each divided by its root mean square;
            None before the first forward, or where nobody reads them.
    """

    def __init__(self, layers: int, capacity: int, batch: int = 1, feature_layers: tuple[int, ...] = ()) -> None:
        self.layers = layers
        self.capacity = capacity
        self.lengths = [0] * batch
        self.keys: Tensor | None = None
        self.values: Tensor | None = None
        self.feature_layers = feature_layers
        self.features: Tensor | None = None

    @property
    def batch(self) -> int:
        """Rows."""
        return len(self.lengths)

    @property
    def bytes_per_token(self) -> int:
        """Of keys and values, all layers together; 0 before the first forward."""
        if self.keys is None or self.values is None:
            return 0
        return sum(x.nbytes // (x.shape[1] * x.shape[3]) for x in (self.keys, self.values))

    def reserve(self, new_tokens: int) -> None:
        """Refuse to write beyond the end.

        Raises:
            ValueError: the tokens do not fit.
        """
        longest = max(self.lengths)
        if longest + new_tokens > self.capacity:
            raise ValueError(
                f"KV cache holds {self.capacity} tokens, {longest} are used and {new_tokens} more were asked for; "
                "allocate prompt + max_new_tokens + gamma + 1"
            )

    def write(self, layer: int, keys: Tensor, values: Tensor, window: Window) -> tuple[Tensor, Tensor]:
        """Put one layer's new keys and values [batch, kv_heads, new, head_dim] in place.

        Returns:
            Views [batch, kv_heads, window.end, head_dim] of everything that the new tokens may look at.
        """
        if self.keys is None or self.values is None:  # zeros: what is masked must still be finite
            shape = (self.layers, self.batch, keys.shape[1], self.capacity)
            self.keys = keys.new_zeros((*shape, keys.shape[-1]))
            self.values = values.new_zeros((*shape, values.shape[-1]))
        all_keys, all_values = self.keys[layer], self.values[layer]
        if window.start is not None:
            all_keys[:, :, window.start : window.end] = keys
            all_values[:, :, window.start : window.end] = values
        else:
            rows = torch.arange(self.batch, device=keys.device)[:, None]
            all_keys[rows, :, window.slots] = keys.transpose(1, 2)
            all_values[rows, :, window.slots] = values.transpose(1, 2)
        return all_keys[:, :, : window.end], all_values[:, :, : window.end]

    def write_features(self, tap: int, output: Tensor, window: Window) -> None:
        """Keep the output [batch, new, width] of a feature layer."""
        if self.features is None:
            shape = (self.batch, self.capacity, len(self.feature_layers), output.shape[-1])
            self.features = output.new_zeros(shape)
        normed = output * torch.rsqrt(output.float().pow(2).mean(-1, keepdim=True) + 1e-6).to(output.dtype)
        if window.start is not None:
            self.features[:, window.start : window.end, tap] = normed
        else:
            self.features[torch.arange(self.batch, device=output.device)[:, None], window.slots, tap] = normed

    def advance(self, new_tokens: int) -> None:
        """Count tokens that a forward has written into every row."""
        self.lengths = [length + new_tokens for length in self.lengths]

    def rollback(self, lengths: int | Sequence[int]) -> None:
        """Forget every token from a row's length on; a row that is already shorter stays as it is."""
        wanted = [lengths] * self.batch if isinstance(lengths, int) else lengths
        self.lengths = [min(old, new) for old, new in zip(self.lengths, wanted, strict=True)]

    @torch.inference_mode()
    def keep_slots(self, row: int, base: int, slots: Sequence[int]) -> None:
        """Move the entries at `slots` of a row to base, base + 1, ... and end the row there: a tree's accepted path."""
        end = base + len(slots)
        if list(slots) != list(range(base, end)):
            assert self.keys is not None
            assert self.values is not None
            index = to_device(slots, self.keys.device)
            self.keys[:, row, :, base:end] = self.keys[:, row].index_select(2, index)
            self.values[:, row, :, base:end] = self.values[:, row].index_select(2, index)
            if self.features is not None:
                self.features[row, base:end] = self.features[row].index_select(0, index)
        self.lengths[row] = end

    @torch.inference_mode()
    def keep_rows(self, rows: Sequence[int]) -> None:
        """Drop every other row: requests that have ended."""
        if self.keys is not None and self.values is not None:
            index = to_device(rows, self.keys.device)
            self.keys, self.values = self.keys.index_select(1, index), self.values.index_select(1, index)
            if self.features is not None:
                self.features = self.features.index_select(0, index)
        self.lengths = [self.lengths[row] for row in rows]

    def copy(self) -> KVCache:
        """The same tokens in buffers of its own."""
        twin = self.view()
        twin.keys, twin.values = (None if x is None else x.clone() for x in (self.keys, self.values))
        twin.features = None if self.features is None else self.features.clone()
        twin.feature_layers = self.feature_layers
        return twin

    def view(self) -> KVCache:
        """The same keys and values with lengths of its own, without features: what early exit drafts into."""
        twin = KVCache(self.layers, self.capacity, self.batch)
        twin.lengths = list(self.lengths)
        twin.keys, twin.values = self.keys, self.values
        return twin
