"""A Llama forward compiled for fixed shapes: one graph a shape, replayed as a CUDA graph on a GPU.

Compilation pays where launching kernels costs more than running them: small models on a GPU. A graph needs shapes and
addresses that stay, so attention reads the whole capacity of the cache under a mask, slots and positions are tensors,
forwards are padded at the end to 1, 2, 4, 8, 16 or 32 new tokens a row, and keys and values lie in buffers that one
generation hands on to the next. A graph is compiled when its shape (batch, padded width, capacity) first comes up.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from real.cache import KVCache
from real.decoder import Decoder
from real.devices import begin_replay, compile_mode, to_device
from real.llama_decoder import Layer, Linear, LlamaDecoder, Projection, normalise, rotary_rows
from real.tensor_parallel import same_on_all_ranks
from real.tree_attention import Tail, Window, window

WIDTHS = (1, 2, 4, 8, 16, 32)
"""New tokens a row of a compiled forward; longer ones (prefill) run uncompiled, since they are bound by arithmetic."""

STEP = 1024
"""Capacities are rounded up to multiples of so many tokens, so that few shapes come up."""


@dataclass
class Buffers:
    """Keys and values at addresses that stay. A pair is free again when no cache holds the tensors that it lent."""

    pairs: list[tuple[Tensor, Tensor, weakref.ref[Tensor]]] = field(default_factory=list)

    def settle(self, cache: KVCache, like: LlamaDecoder) -> None:
        """Have the cache's keys and values in one of these pairs, moving there what they hold."""
        if any(lent() is cache.keys for _, _, lent in self.pairs if cache.keys is not None):
            return
        capacity = -(-(cache.capacity + WIDTHS[-1]) // STEP) * STEP  # padding is written too
        shape = (cache.layers, cache.batch, like.kv_heads, capacity, like.cosine.shape[-1])
        place = next((i for i, pair in enumerate(self.pairs) if pair[0].shape == shape and pair[2]() is None), None)
        if place is None:
            keys, values = (torch.zeros(shape, dtype=like.dtype, device=like.device) for _ in range(2))
            place = len(self.pairs)
        else:
            keys, values, _ = self.pairs.pop(place)
        lent = [buffer.view(shape) for buffer in (keys, values)]
        for buffer, held in zip(lent, (cache.keys, cache.values), strict=True):
            torch._dynamo.mark_static_address(buffer)
            if held is not None:
                buffer[:, :, :, : held.shape[3]] = held
        cache.keys, cache.values = lent
        self.pairs.insert(place, (keys, values, weakref.ref(cache.keys)))


@dataclass(frozen=True)
class StaticCache:
    """What a layer asks of a cache, with every shape fixed: it writes at slots and sees the whole capacity."""

    keys: Tensor  # [layers, batch, kv_heads, capacity, head_dim]
    values: Tensor

    @property
    def batch(self) -> int:
        """Rows."""
        return self.keys.shape[1]

    def write(self, layer: int, keys: Tensor, values: Tensor, place: Window) -> tuple[Tensor, Tensor]:
        """See `KVCache.write`."""
        assert place.slots is not None
        # One index a dimension: with a slice or a number among them the compiler copies the buffers whole.
        at = torch.arange(self.batch, device=keys.device)[:, None, None]
        heads = torch.arange(keys.shape[1], device=keys.device)[:, None]
        where = (torch.full_like(at, layer), at, heads, place.slots[:, None])
        self.keys.index_put_(where, keys)
        self.values.index_put_(where, values)
        return self.keys[layer], self.values[layer]


class CompiledDecoder:
    """A `LlamaDecoder` whose short forwards are compiled; results are the same up to rounding.

    Attributes:
        eager: the decoder it was made from, over the same weights.

    Raises:
        ValueError: there is no compiler for the device.
    """

    def __init__(self, eager: LlamaDecoder, buffers: Buffers | None = None) -> None:
        self.eager = eager
        self.buffers = Buffers() if buffers is None else buffers
        self.vocab_size, self.layers, self.width = eager.vocab_size, eager.layers, eager.width
        self.dtype, self.device = eager.dtype, eager.device
        self.plain = replace(
            eager, blocks=tuple(map(_unpacked, eager.blocks)), head=partial(F.linear, weight=eager.output_head)
        )
        norms = [norm for one in eager.blocks for norm in (one.attention_norm, one.mlp_norm)]
        for weight in (*norms, eager.norm, eager.embedding, eager.output_head, eager.cosine, eager.sine):
            torch._dynamo.mark_static_address(weight)
        # each decoder counts its own shapes; torch's type stubs lack these two options
        own: dict[str, Any] = {"isolate_recompiles": True, "recompile_limit": 256}
        run = partial(_layers_of, self.plain)
        self.graph = torch.compile(run, mode=compile_mode(self.device), dynamic=False, fullgraph=True, **own)

    def new_cache(self, capacity: int, batch: int = 1, feature_layers: tuple[int, ...] = ()) -> KVCache:
        """See `Decoder.new_cache`."""
        return self.eager.new_cache(capacity, batch, feature_layers)

    def first_layers(self, count: int) -> CompiledDecoder:
        """See `Decoder.first_layers`; the cut model is compiled too, over the same buffers."""
        return CompiledDecoder(self.eager.first_layers(count), self.buffers)

    @torch.inference_mode()
    def forward(
        self, token_ids: Tensor, cache: KVCache, logits_to_keep: int | None = None, tail: Tail | None = None
    ) -> Tensor:
        """See `Decoder.forward`."""
        batch, new = token_ids.shape
        cache.reserve(new)
        self.buffers.settle(cache, self.eager)
        width = next((width for width in WIDTHS if width >= new), None)
        if width is None:
            return self.eager.forward(token_ids, cache, logits_to_keep, tail)
        assert cache.keys is not None
        assert cache.values is not None
        place = self._place(cache, new, width, tail)
        begin_replay(self.device)  # nothing of the last one is read any more
        padded = F.pad(token_ids, (0, width - new))
        logits, taps = self.graph(padded, place, cache.keys, cache.values, cache.feature_layers)
        for tap, output in enumerate(taps):
            assert place.slots is not None
            real = replace(place, slots=place.slots[:, :new])
            cache.write_features(tap, output.view(batch, width, -1)[:, :new], real)
        cache.advance(new)
        first = 0 if logits_to_keep is None else new - logits_to_keep
        kept = logits.view(batch, width, -1)[:, first:new].clone()  # the graph's own output is overwritten next time
        return same_on_all_ranks(kept)

    def _place(self, cache: KVCache, new: int, width: int, tail: Tail | None) -> Window:
        """Slots, positions and mask over the whole capacity; padding comes last and sees all before it."""
        assert cache.keys is not None
        everywhere = torch.arange(cache.keys.shape[3], device=self.device)
        slots = to_device(cache.lengths, self.device)[:, None] + everywhere[:width]
        positions, mask = slots, (everywhere <= slots[..., None])[:, None]
        if tail is not None:
            tree = window(cache.lengths, new, tail, self.device)
            assert tree.positions is not None
            assert tree.mask is not None
            positions = torch.cat([tree.positions.expand(cache.batch, -1), slots[:, new:]], 1)
            mask[:, :, :new] = F.pad(tree.mask, (0, len(everywhere) - tree.end))
        last = len(self.eager.cosine) - 1  # only padding lies beyond
        return Window(None, len(everywhere), slots, positions.clamp_max(last), mask)


def uncompiled(decoder: Decoder) -> Decoder:
    """The decoder behind a compiled one; any other as it is."""
    return decoder.eager if isinstance(decoder, CompiledDecoder) else decoder


def _layers_of(
    model: LlamaDecoder, token_ids: Tensor, place: Window, keys: Tensor, values: Tensor, feature_layers: tuple[int, ...]
) -> tuple[Tensor, list[Tensor]]:
    """`LlamaDecoder.forward` between its buffers: logits [batch x new, vocab], and the outputs of feature layers."""
    cache = StaticCache(keys, values)
    cosine, sine = rotary_rows(model.cosine, model.sine, place, token_ids.shape[1])
    hidden = model.embedding[token_ids.reshape(-1)]
    outputs = {}
    for index, block in zip(model.indices, model.blocks, strict=True):
        hidden = block(hidden, cache, index, cosine, sine, place)  # type: ignore[arg-type]  # all that a layer asks of it
        outputs[index + 1] = hidden
    logits = model.head(normalise(hidden, model.norm, model.epsilon)).to(model.dtype)
    return logits, [outputs[layer] for layer in feature_layers]


def _unpacked(block: Layer) -> Layer:
    names = ("query_key_value", "attention_output", "gate_up", "down")
    dense: dict[str, Any] = {name: _dense(getattr(block, name)) for name in names}
    return replace(block, **dense)


def _dense(linear: Linear) -> Linear:
    """The same map over a weight that torch.compile can trace, at an address that stays."""
    assert isinstance(linear, Projection)
    weight = linear.dense()
    torch._dynamo.mark_static_address(weight)
    return partial(F.linear, weight=weight)
