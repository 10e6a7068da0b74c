"""A Llama forward written out in full: a handful of tensor operations a layer, over preallocated buffers.

Decoding a small model on a CPU is bound by two things that have nothing to do with the model: Python between the
operations, and a matrix library that repacks the whole weight whenever it multiplies a few rows. So the projections
that share an input are fused, and weights are packed once, when the model is taken over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from real.cache import KVCache
from real.decoder import check_feature_layers, check_layers
from real.devices import packs_weights
from real.tensor_parallel import same_on_all_ranks
from real.tree_attention import Tail, Window, window


class Projection:
    """A linear map x @ weight.T, its weight packed once for the matrix library where that pays.

    Attributes:
        weight: [out, in], as the model stores it, or packed by oneDNN on a CPU.
    """

    def __init__(self, weight: Tensor) -> None:
        self.packed = packs_weights(weight.device, weight.dtype)
        rows_hint = 8  # the layout is the same for any number of rows; packing wants one named
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, rows_hint) if self.packed else weight

    def __call__(self, x: Tensor) -> Tensor:
        """[rows, in] -> [rows, out]."""
        if not self.packed:
            return F.linear(x, self.weight)
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, None, "none", [], "")
        return product

    def dense(self) -> Tensor:
        """[out, in] the weight as the model stores it."""
        return self.weight.to_dense() if self.packed else self.weight


Linear = Callable[[Tensor], Tensor]
"""A linear map [rows, in] -> [rows, out]: a `Projection`, or one with quantised weights."""


@dataclass(frozen=True)
class Layer:
    """One decoder layer, the projections that share an input fused."""

    attention_norm: Tensor | None  # [hidden]; None where the next projection has it (see `normalise`)
    query_key_value: Linear  # [(heads + 2 kv_heads) head_dim, hidden]
    attention_output: Linear  # [hidden, heads head_dim]
    mlp_norm: Tensor | None  # [hidden]
    gate_up: Linear  # [2 intermediate, hidden]
    down: Linear  # [hidden, intermediate]
    heads: int
    kv_heads: int
    epsilon: float

    def __call__(
        self, hidden: Tensor, cache: KVCache, index: int, cosine: Tensor, sine: Tensor, place: Window
    ) -> Tensor:
        """[batch x new tokens, hidden] -> the same; keys and values go to layer `index` of the cache."""
        hidden = hidden + self._attend(hidden, cache, index, cosine, sine, place)
        normed = normalise(hidden, self.mlp_norm, self.epsilon)
        gate, up = self.gate_up(normed).chunk(2, dim=-1)
        return hidden + self.down(F.silu(gate) * up)

    def _attend(
        self, hidden: Tensor, cache: KVCache, index: int, cosine: Tensor, sine: Tensor, place: Window
    ) -> Tensor:
        """Self-attention of the new tokens over the cache, their keys and values written first."""
        normed = normalise(hidden, self.attention_norm, self.epsilon)
        fused = (
            self.query_key_value(normed)
            .to(hidden.dtype)
            .view(cache.batch, -1, self.heads + 2 * self.kv_heads, cosine.shape[-1])
        )
        fused = fused.transpose(1, 2)
        rotated = rotate(fused[:, : self.heads + self.kv_heads], cosine, sine)
        keys, values = cache.write(index, rotated[:, self.heads :], fused[:, self.heads + self.kv_heads :], place)
        attended = F.scaled_dot_product_attention(
            rotated[:, : self.heads], keys, values, attn_mask=place.mask, enable_gqa=True
        )
        return self.attention_output(attended.transpose(1, 2).reshape(len(hidden), -1))


def normalise(hidden: Tensor, weight: Tensor | None, epsilon: float) -> Tensor:
    """The root-mean-square norm, or, with no weight, division by the vector norm.

    The latter is one operation instead of five; a copy of a model that can do without epsilon has the weight and
    sqrt(width) in the projection that reads the result.
    """
    if weight is None:
        direction: Tensor = hidden / torch.linalg.vector_norm(hidden, dim=-1, keepdim=True)
        return direction
    return F.rms_norm(hidden, hidden.shape[-1:], weight, epsilon)


def rotary_rows(cosine: Tensor, sine: Tensor, place: Window, new: int) -> tuple[Tensor, Tensor]:
    """The rows of the tables [positions, head_dim] for new tokens: [new, head_dim] or [batch, 1, new, head_dim]."""
    if place.positions is None:
        return cosine[place.end - new : place.end], sine[place.end - new : place.end]
    return cosine[place.positions][:, None], sine[place.positions][:, None]


@dataclass(frozen=True)
class LlamaDecoder:
    """A Llama-shaped model (grouped-query attention, RMS norm, SwiGLU, rotary positions, no biases)."""

    embedding: Tensor  # [vocab, hidden]
    blocks: tuple[Layer, ...]
    indices: tuple[int, ...]  # which layer of the model, and so of its cache, each block is
    norm: Tensor | None  # [hidden]
    head: Linear  # [vocab, hidden]
    cosine: Tensor  # [positions, head_dim]
    sine: Tensor  # [positions, head_dim], the first half negated: see `_rotate`
    heads: int
    kv_heads: int
    epsilon: float
    intermediate: int
    output_head: Tensor  # [vocab, hidden], as stored: `head` may have packed it

    @classmethod
    def from_transformers(cls, model: Any, positions: int = 8192) -> LlamaDecoder:
        """Take over the weights of a `LlamaForCausalLM`; they are shared where they need no fusing.

        Raises:
            ValueError: the model has a shape this forward does not cover; use `TransformersDecoder`.
        """
        reason = unsupported(model)
        if reason:
            raise ValueError(f"LlamaDecoder does not cover this model ({reason}); use TransformersDecoder")
        config = model.config
        device, dtype = model.device, model.dtype
        positions = min(positions, config.max_position_embeddings)
        cosine, sine = model.model.rotary_emb(
            torch.zeros(1, dtype=dtype, device=device), torch.arange(positions, device=device)[None]
        )
        half = sine.shape[-1] // 2
        return cls(
            embedding=model.model.embed_tokens.weight.detach(),
            blocks=tuple(_layer(block, config) for block in model.model.layers),
            indices=tuple(range(config.num_hidden_layers)),
            norm=model.model.norm.weight.detach(),
            head=Projection(model.lm_head.weight.detach()),
            cosine=cosine[0].detach(),
            sine=torch.cat([-sine[0, :, :half], sine[0, :, half:]], dim=-1).detach(),
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            epsilon=config.rms_norm_eps,
            intermediate=config.intermediate_size,
            output_head=model.lm_head.weight.detach(),
        )

    @property
    def vocab_size(self) -> int:
        """Entries of the vocabulary."""
        return self.embedding.shape[0]

    @property
    def layers(self) -> int:
        """Decoder layers, those left out of the middle counted: as many as a cache keeps."""
        return self.indices[-1] + 1

    @property
    def width(self) -> int:
        """Hidden size."""
        return self.embedding.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights and the cache."""
        return self.embedding.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embedding.device

    def new_cache(self, capacity: int, batch: int = 1, feature_layers: tuple[int, ...] = ()) -> KVCache:
        """See `Decoder.new_cache`.

        Raises:
            ValueError: the model has no positions for so many tokens, or no such layers.
        """
        if capacity > len(self.cosine):
            raise ValueError(f"{capacity} tokens asked for, the model has positions for {len(self.cosine)}")
        check_feature_layers(feature_layers, self.layers)
        return KVCache(self.layers, capacity, batch, feature_layers)

    def first_layers(self, count: int) -> LlamaDecoder:
        """See `Decoder.first_layers`."""
        check_layers(count, self.layers)
        return self.without_layers(range(count, self.layers))

    def without_layers(self, skipped: Iterable[int]) -> LlamaDecoder:
        """The same model without some layers (0 is the first); the others keep their places in the cache."""
        gone = set(skipped)
        kept = [(index, block) for index, block in zip(self.indices, self.blocks, strict=True) if index not in gone]
        if not kept or not gone <= set(self.indices):
            raise ValueError(f"layers to skip must leave at least one of 0 to {self.layers - 1}, got {sorted(gone)}")
        return replace(self, indices=tuple(i for i, _ in kept), blocks=tuple(block for _, block in kept))

    @torch.inference_mode()
    def forward(
        self, token_ids: Tensor, cache: KVCache, logits_to_keep: int | None = None, tail: Tail | None = None
    ) -> Tensor:
        """See `Decoder.forward`."""
        batch, new = token_ids.shape
        cache.reserve(new)
        place = window(cache.lengths, new, tail, self.device)
        cosine, sine = rotary_rows(self.cosine, self.sine, place, new)
        hidden = self.embedding[token_ids.reshape(-1)]
        for index, block in zip(self.indices, self.blocks, strict=True):
            hidden = block(hidden, cache, index, cosine, sine, place)
            if index + 1 in cache.feature_layers:
                cache.write_features(cache.feature_layers.index(index + 1), hidden.view(batch, new, -1), place)
        cache.advance(new)
        if logits_to_keep is not None:
            hidden = hidden.view(batch, new, -1)[:, -logits_to_keep:].reshape(-1, self.width)
        logits = self.head(normalise(hidden, self.norm, self.epsilon)).to(self.dtype)
        return same_on_all_ranks(logits.view(batch, -1, self.vocab_size))


def unsupported(model: Any) -> str:
    """Why `LlamaDecoder` does not cover a model; empty if it does."""
    config = model.config
    if config.model_type != "llama":
        return f"model type {config.model_type}"
    if config.attention_bias or config.mlp_bias:
        return "projections with biases"
    if config.hidden_act != "silu":
        return f"activation {config.hidden_act}"
    if (
        "dynamic" in config.rope_parameters.get("rope_type", "")
        or config.rope_parameters.get("rope_type") == "longrope"
    ):
        return "rotary frequencies that depend on the length"
    return ""


def _layer(block: Any, config: Any) -> Layer:
    attention, mlp = block.self_attn, block.mlp
    fused = torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight])
    return Layer(
        attention_norm=block.input_layernorm.weight.detach(),
        query_key_value=Projection(fused.detach()),
        attention_output=Projection(attention.o_proj.weight.detach()),
        mlp_norm=block.post_attention_layernorm.weight.detach(),
        gate_up=Projection(torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]).detach()),
        down=Projection(mlp.down_proj.weight.detach()),
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        epsilon=config.rms_norm_eps,
    )


def rotate(x: Tensor, cosine: Tensor, signed_sine: Tensor) -> Tensor:
    """Rotary positions (Su et al. 2021): x cos + (-x2, x1) sin, the minus sign already in `signed_sine`."""
    return torch.addcmul(x * cosine, x.roll(x.shape[-1] // 2, dims=-1), signed_sine)
