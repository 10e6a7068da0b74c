"""A draft with another vocabulary: it proposes only tokens that both models have.

Token-level intersection (Timor et al. 2025, arXiv:2502.05202, Algorithm 4): the draft's law is restricted to the tokens
that occur in both vocabularies and normalised there, so every drafted token is one of the target's and rejection
sampling stays lossless. What the target emits may be no token of the draft's; so the draft reads the text anew in its
own tokens, as far back as they changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from real.cache import KVCache
from real.decoder import Decoder
from real.draft_sources import last_of
from real.llama_decoder import LlamaDecoder
from real.requests import Batch
from real.tree_attention import Tail


class TranslatedSource:
    """A causal LM over the intersection of its own vocabulary with the target's."""

    feature_layers: tuple[int, ...] = ()

    def __init__(self, decoder: Decoder, tokenizer: Any, target: Decoder, target_tokenizer: Any) -> None:
        own, wanted = tokenizer.get_vocab(), target_tokenizer.get_vocab()
        shared = sorted(set(own) & set(wanted), key=wanted.__getitem__)
        shared = [token for token in shared if wanted[token] < target.vocab_size and own[token] < decoder.vocab_size]
        special = {*tokenizer.all_special_tokens, *target_tokenizer.all_special_tokens}
        if not set(shared) - special:
            raise ValueError(
                "draft and target have no token in common; choose a draft whose tokenizer is of the same kind "
                "(both byte-level BPE, or both SentencePiece)"
            )
        self.decoder = decoder
        self.tokenizer = tokenizer
        self.target_tokenizer = target_tokenizer
        self.vocab_size = target.vocab_size
        self.own_ids = torch.tensor([own[token] for token in shared], device=decoder.device)
        self.target_ids: Tensor | None = torch.tensor([wanted[token] for token in shared], device=decoder.device)

    def start(self, batch: Batch, target_cache: KVCache) -> None:
        """See `LogitSource.start`."""
        self.read: list[list[int]] = [[] for _ in range(batch.rows)]
        capacity = 4 * batch.token_ids.shape[1]  # a token of the target's may take several of the draft's
        own = self.decoder
        most = len(own.cosine) if isinstance(own, LlamaDecoder) else getattr(own, "attended", None)
        self.cache = own.new_cache(min(capacity, most or capacity), batch.rows)

    def catch_up(self, batch: Batch) -> Tensor:
        """See `LogitSource.catch_up`."""
        texts = [self._translate(tokens) for tokens in batch.tokens]
        same = [_common(old, new[:-1]) for old, new in zip(self.read, texts, strict=True)]
        self.cache.rollback(same)
        missing = [len(text) - kept for text, kept in zip(texts, same, strict=True)]
        fed = torch.zeros(batch.rows, max(missing), dtype=torch.long)
        for row, (text, kept) in enumerate(zip(texts, same, strict=True)):
            fed[row, : missing[row]] = torch.tensor(text[kept:])
        logits = last_of(self.decoder.forward(fed.to(self.decoder.device), self.cache), missing)
        self.read = texts
        self.cache.rollback([len(text) for text in texts])
        return logits[:, self.own_ids]

    def extend(self, local_ids: Tensor, parents: Sequence[int] = (), tail: Tail | None = None) -> Tensor:
        """See `LogitSource.extend`."""
        return self.decoder.forward(self.own_ids[local_ids], self.cache, tail=tail)[..., self.own_ids]

    def keep_rows(self, rows: Sequence[int]) -> None:
        """See `LogitSource.keep_rows`."""
        self.cache.keep_rows(rows)
        self.read = [self.read[row] for row in rows]

    def _translate(self, tokens: list[int]) -> list[int]:
        """The same text in the draft's tokens."""
        text = self.target_tokenizer.decode(tokens, skip_special_tokens=False)
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def _common(old: Sequence[int], new: Sequence[int]) -> int:
    """Length of the shared beginning."""
    return next((place for place, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
