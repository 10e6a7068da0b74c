"""A Llama forward written out in full: a handful of tensor operations a layer, over preallocated buffers.

Decoding a small model on a CPU is bound by two things that have nothing to do with the model: Python between the
operations, and a matrix library that repacks the whole weight whenever it multiplies a few rows. So the projections
that share an input are fused, and weights are packed once, when the model is taken over.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from real.cache import KVCache
from real.decoder import Cache, check_layers


class Projection:
    """A linear map x @ weight.T, its weight packed once for the matrix library where that pays.

    Attributes:
        weight: [out, in], as the model stores it, or packed by oneDNN on a CPU.
    """

    def __init__(self, weight: Tensor) -> None:
        self.packed = (
            weight.device.type == "cpu"
            and weight.dtype in (torch.float32, torch.bfloat16)
            and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        )
        rows_hint = 8  # the layout is the same for any number of rows; packing wants one named
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, rows_hint) if self.packed else weight

    def __call__(self, x: Tensor) -> Tensor:
        """[rows, in] -> [rows, out]."""
        if not self.packed:
            return F.linear(x, self.weight)
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, None, "none", [], "")
        return product


@dataclass(frozen=True)
class Layer:
    """The weights of one decoder layer, the projections that share an input fused."""

    attention_norm: Tensor  # [hidden]
    query_key_value: Projection  # [(heads + 2 kv_heads) head_dim, hidden]
    attention_output: Projection  # [hidden, heads head_dim]
    mlp_norm: Tensor  # [hidden]
    gate_up: Projection  # [2 intermediate, hidden]
    down: Projection  # [hidden, intermediate]


@dataclass(frozen=True)
class LlamaDecoder:
    """A Llama-shaped model (grouped-query attention, RMS norm, SwiGLU, rotary positions, no biases), batch 1."""

    embedding: Tensor  # [vocab, hidden]
    blocks: tuple[Layer, ...]
    norm: Tensor  # [hidden]
    head: Projection  # [vocab, hidden]
    cosine: Tensor  # [positions, head_dim]
    sine: Tensor  # [positions, head_dim], the first half negated: see `_rotate`
    heads: int
    kv_heads: int
    epsilon: float

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
            blocks=tuple(_layer(block) for block in model.model.layers),
            norm=model.model.norm.weight.detach(),
            head=Projection(model.lm_head.weight.detach()),
            cosine=cosine[0].detach(),
            sine=torch.cat([-sine[0, :, :half], sine[0, :, half:]], dim=-1).detach(),
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            epsilon=config.rms_norm_eps,
        )

    @property
    def vocab_size(self) -> int:
        """Entries of the vocabulary."""
        return self.embedding.shape[0]

    @property
    def layers(self) -> int:
        """Decoder layers."""
        return len(self.blocks)

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

    def new_cache(self, capacity: int) -> KVCache:
        """An empty cache for `capacity` tokens.

        Raises:
            ValueError: the model has no positions for so many.
        """
        if capacity > len(self.cosine):
            raise ValueError(f"{capacity} tokens asked for, the model has positions for {len(self.cosine)}")
        head_dim = self.cosine.shape[1]
        return KVCache.allocate(self.layers, self.kv_heads, capacity, head_dim, self.dtype, self.device)

    def first_layers(self, count: int) -> LlamaDecoder:
        """See `Decoder.first_layers`."""
        check_layers(count, self.layers)
        return replace(self, blocks=self.blocks[:count])

    @torch.inference_mode()
    def forward(self, token_ids: Tensor, cache: Cache, logits_to_keep: int | None = None) -> Tensor:
        """See `Decoder.forward`."""
        assert isinstance(cache, KVCache)
        new = len(token_ids)
        cache.reserve(new)
        start, end = cache.length, cache.length + new
        cosine, sine = self.cosine[start:end], self.sine[start:end]
        mask = None
        if new > 1:
            mask = torch.ones(new, end, dtype=torch.bool, device=self.device).tril_(start)
        hidden = self.embedding[token_ids]
        for index, block in enumerate(self.blocks):
            hidden = hidden + self._attend(
                block, hidden, cache.keys[index], cache.values[index], cosine, sine, mask, end
            )
            normed = F.rms_norm(hidden, hidden.shape[-1:], block.mlp_norm, self.epsilon)
            gate, up = block.gate_up(normed).chunk(2, dim=-1)
            hidden = hidden + block.down(F.silu(gate) * up)
        cache.length = end
        if logits_to_keep is not None:
            hidden = hidden[-logits_to_keep:]
        return self.head(F.rms_norm(hidden, hidden.shape[-1:], self.norm, self.epsilon))

    def _attend(
        self,
        block: Layer,
        hidden: Tensor,
        keys: Tensor,
        values: Tensor,
        cosine: Tensor,
        sine: Tensor,
        mask: Tensor | None,
        end: int,
    ) -> Tensor:
        """Self-attention of the new tokens over the cache, their keys and values written first."""
        new = len(hidden)
        normed = F.rms_norm(hidden, hidden.shape[-1:], block.attention_norm, self.epsilon)
        fused = block.query_key_value(normed).view(new, self.heads + 2 * self.kv_heads, -1).transpose(0, 1)
        rotated = _rotate(fused[: self.heads + self.kv_heads], cosine, sine)
        keys[:, end - new : end] = rotated[self.heads :]
        values[:, end - new : end] = fused[self.heads + self.kv_heads :]
        attended = F.scaled_dot_product_attention(
            rotated[None, : self.heads], keys[None, :, :end], values[None, :, :end], attn_mask=mask, enable_gqa=True
        )
        return block.attention_output(attended[0].transpose(0, 1).reshape(new, -1))


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


def _layer(block: Any) -> Layer:
    attention, mlp = block.self_attn, block.mlp
    fused = torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight])
    return Layer(
        attention_norm=block.input_layernorm.weight.detach(),
        query_key_value=Projection(fused.detach()),
        attention_output=Projection(attention.o_proj.weight.detach()),
        mlp_norm=block.post_attention_layernorm.weight.detach(),
        gate_up=Projection(torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]).detach()),
        down=Projection(mlp.down_proj.weight.detach()),
    )


def _rotate(x: Tensor, cosine: Tensor, signed_sine: Tensor) -> Tensor:
    """Rotary positions (Su et al. 2021): x cos + (-x2, x1) sin, the minus sign already in `signed_sine`."""
    return torch.addcmul(x * cosine, x.roll(x.shape[-1] // 2, dims=-1), signed_sine)
