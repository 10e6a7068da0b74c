"""A distilled head as a source of draft logits: it reads the target's features and keeps a cache of one layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from real.cache import KVCache
from real.devices import head_dtype, to_device
from real.distilled_head import DistilledHead, unit
from real.draft_sources import last_of
from real.llama_decoder import Layer, LlamaDecoder, Projection, rotary_rows
from real.requests import Batch
from real.tree_attention import Tail, window


class HeadSource:
    """See `real.distilled_head` for what the head computes; this is the same in packed weights, step by step.

    Place t of the head's cache belongs to the target's feature after token t and to token t + 1, so n known tokens make
    n - 1 places, and a one-token prompt makes none: its first round drafts nothing.
    """

    def __init__(self, head: DistilledHead, target: LlamaDecoder) -> None:
        shape = head.shape
        wanted = (target.width, target.heads, target.kv_heads, target.cosine.shape[1], target.layers)
        found = (shape.width, shape.heads, shape.kv_heads, shape.head_dim, shape.feature_layers[-1])
        if wanted != found or int(head.vocabulary.max()) >= target.vocab_size:
            raise ValueError(
                f"the draft head was trained for a target with (width, heads, KV heads, head size, layers) {found}, "
                f"this one has {wanted}; train one with `specdec distill`"
            )
        self.target = target
        self.feature_layers = shape.feature_layers
        self.target_ids: Tensor | None = head.vocabulary.to(target.device)
        self.vocab_size = target.vocab_size
        self.epsilon = shape.epsilon
        self.dtype = head_dtype(target.device, target.dtype)
        weights = {name: value.detach().to(target.device) for name, value in head.named_parameters()}
        packed = {
            name: Projection(weights[name].to(self.dtype))
            for name in ("query_key_value", "attention_output", "gate_up", "down", "mix")
        }
        self.mix = packed.pop("mix")
        self.mix_own = Projection(
            weights["mix"][:, (len(shape.feature_layers) - 1) * shape.width :].to(self.dtype).contiguous()
        )
        self.layer = Layer(
            attention_norm=weights["attention_norm"].to(self.dtype), mlp_norm=weights["mlp_norm"].to(self.dtype),
            heads=shape.heads, kv_heads=shape.kv_heads, epsilon=shape.epsilon, **packed,
        )  # fmt: skip
        self.norm = weights["norm"].to(self.dtype)
        self.score = Projection(target.output_head[head.vocabulary].to(self.dtype))
        self.embedding = unit(target.embedding).to(self.dtype)
        self.cosine, self.sine = target.cosine.to(self.dtype), target.sine.to(self.dtype)

    def start(self, batch: Batch, target_cache: KVCache) -> None:
        """See `LogitSource.start`."""
        self.target_cache = target_cache
        self.taps = [target_cache.feature_layers.index(layer) for layer in self.feature_layers]
        self.cache = KVCache(1, batch.token_ids.shape[1], batch.rows)
        self.known = [0] * batch.rows

    def catch_up(self, batch: Batch) -> Tensor:
        """See `LogitSource.catch_up`."""
        features = self.target_cache.features
        assert features is not None
        places = [length - 1 for length in batch.lengths]
        self.cache.rollback(self.known)
        missing = [place - known for place, known in zip(places, self.known, strict=True)]
        tokens = batch.latest(missing)
        if len(missing) == 1:
            seen = features[:, self.known[0] : places[0]]
        else:
            first = to_device(self.known, features.device)[:, None]
            where = (first + torch.arange(max(missing), device=features.device)).clamp_max(features.shape[1] - 1)
            seen = features[torch.arange(batch.rows, device=features.device)[:, None], where]
        if self.taps != list(range(len(self.target_cache.feature_layers))):
            seen = seen[:, :, self.taps]
        read = torch.cat([seen.flatten(2).to(self.dtype), self.embedding[tokens]], dim=-1)
        hidden = self._run(self.mix(read.flatten(0, 1)), tokens.shape, None)
        self.known = places
        self.cache.rollback(places)
        last = last_of(hidden, missing)
        self.outputs = last[:, None]
        return self._score(last)

    def extend(self, local_ids: Tensor, parents: Sequence[int] = (), tail: Tail | None = None) -> Tensor:
        """See `LogitSource.extend`."""
        assert self.target_ids is not None
        places = [place + 1 for place in parents] if tail is not None else [-1]
        own = torch.cat([unit(self.outputs[:, places]), self.embedding[self.target_ids[local_ids]]], dim=-1)
        hidden = self._run(self.mix_own(own.flatten(0, 1)), local_ids.shape, tail)
        self.outputs = torch.cat([self.outputs, hidden], dim=1)
        return self._score(hidden)

    def keep_rows(self, rows: Sequence[int]) -> None:
        """See `LogitSource.keep_rows`."""
        self.cache.keep_rows(rows)
        self.known = [self.known[row] for row in rows]

    def _run(self, mixed: Tensor, shape: torch.Size, tail: Tail | None) -> Tensor:
        """[rows, new, width] outputs of the layer."""
        place = window(self.cache.lengths, shape[1], tail, mixed.device)
        cosine, sine = rotary_rows(self.cosine, self.sine, place, shape[1])
        hidden = self.layer(mixed, self.cache, 0, cosine, sine, place)
        self.cache.advance(shape[1])
        return hidden.view(*shape, -1)

    def _score(self, hidden: Tensor) -> Tensor:
        """[..., cut] float32 logits over the head's vocabulary."""
        normed = F.rms_norm(hidden, hidden.shape[-1:], self.norm, self.epsilon)
        return self.score(normed.reshape(-1, normed.shape[-1])).view(*hidden.shape[:-1], -1).float()
