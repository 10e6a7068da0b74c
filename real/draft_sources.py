"""Models as sources of draft logits: with a KV cache of their own, or writing into the target's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from real.cache import KVCache
from real.decoder import Decoder
from real.devices import to_device
from real.requests import Batch
from real.tree_attention import Tail


class LogitSource(Protocol):
    """What `ModelDraft` drafts from: logits after the known tokens, then after tokens it has drafted itself."""

    feature_layers: tuple[int, ...]
    """layers of the target whose outputs are read from its cache"""
    target_ids: Tensor | None
    """[local] int64, the target's id of each token of the source's vocabulary; None where they are the same"""
    vocab_size: int
    """of the target"""

    def start(self, batch: Batch, target_cache: KVCache) -> None:
        """Begin sequences."""

    def catch_up(self, batch: Batch) -> Tensor:
        """[rows, local] logits after each row's known tokens; whatever was drafted before is forgotten."""

    def extend(self, local_ids: Tensor, parents: Sequence[int] = (), tail: Tail | None = None) -> Tensor:
        """[rows, new, local] logits after drafted tokens [rows, new] in the source's vocabulary.

        Args:
            parents: for each new token the place of its parent among the tokens forwarded so far in this round, -1 for
                the last known token; left out for the next token of a chain.
            tail: what the new tokens see of those forwarded in this round; None in a chain.
        """

    def keep_rows(self, rows: Sequence[int]) -> None:
        """Forget every other row."""


def last_of(logits: Tensor, counts: Sequence[int]) -> Tensor:
    """[rows, vocab] logits after each row's last true token, of [rows, max(counts) or 1, vocab]."""
    if logits.shape[1] == 1:
        return logits[:, 0]
    index = to_device(counts, logits.device) - 1
    return logits[torch.arange(len(counts), device=logits.device), index]


class OwnCache:
    """A causal LM with the target's vocabulary and a KV cache of its own."""

    feature_layers: tuple[int, ...] = ()
    target_ids: Tensor | None = None

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self.vocab_size = decoder.vocab_size

    def start(self, batch: Batch, target_cache: KVCache) -> None:
        """Prefill all known tokens but the last."""
        self.cache = self.decoder.new_cache(batch.token_ids.shape[1], batch.rows)
        known = [length - 1 for length in batch.lengths]
        if max(known) > 0:
            self.decoder.forward(batch.token_ids[:, : max(known)], self.cache, logits_to_keep=1)
            self.cache.rollback(known)

    def catch_up(self, batch: Batch) -> Tensor:
        """See `LogitSource.catch_up`."""
        self.cache.rollback([length - 1 for length in batch.lengths])
        missing = [length - held for length, held in zip(batch.lengths, self.cache.lengths, strict=True)]
        keep = 1 if min(missing) == max(missing) else None
        logits = last_of(self.decoder.forward(batch.latest(missing), self.cache, logits_to_keep=keep), missing)
        self.cache.rollback(batch.lengths)
        return logits

    def extend(self, local_ids: Tensor, parents: Sequence[int] = (), tail: Tail | None = None) -> Tensor:
        """See `LogitSource.extend`."""
        return self.decoder.forward(local_ids, self.cache, tail=tail)

    def keep_rows(self, rows: Sequence[int]) -> None:
        """See `LogitSource.keep_rows`."""
        self.cache.keep_rows(rows)


class SharedCache:
    """Some layers of the target, or a copy of them in fewer bits, over the target's own KV cache.

    What the target wrote for the known tokens is what these layers would have written, or better; so nothing is
    prefilled and nothing caught up. What is drafted is written beyond the target's length, and overwritten there by
    the verification.
    """

    feature_layers: tuple[int, ...] = ()
    target_ids: Tensor | None = None

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self.vocab_size = decoder.vocab_size

    def start(self, batch: Batch, target_cache: KVCache) -> None:
        """See `LogitSource.start`."""
        self.target_cache = target_cache

    def catch_up(self, batch: Batch) -> Tensor:
        """See `LogitSource.catch_up`."""
        self.cache = self.target_cache.view()
        return self.decoder.forward(batch.latest([1] * batch.rows), self.cache)[:, 0]

    def extend(self, local_ids: Tensor, parents: Sequence[int] = (), tail: Tail | None = None) -> Tensor:
        """See `LogitSource.extend`."""
        return self.decoder.forward(local_ids, self.cache, tail=tail)

    def keep_rows(self, rows: Sequence[int]) -> None:
        """Nothing to forget: the target's cache has done it."""
