"""Shapes of language models, and the work of one forward: operations, and bytes of weights, cache and activations.

Known shapes are in `sim.architectures.catalogue`, the reader of config.json in `sim.architectures.config`, the law of
expert routing in `sim.architectures.routing`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from sim.architectures.routing import distinct_experts
from sim.architectures.shard import Sums, Value, attended, shard
from sim.theory import FloatArray, check_cost


class Work(NamedTuple):
    """What one group of operators does in one forward, on each device.

    Fields broadcast over (batch, new_tokens, context) and are floats for numbers.
    """

    flops: FloatArray
    """operations of matrix products, a multiply-add being 2; what is not a matrix product counts 0"""
    weight_bytes: FloatArray
    """weights read"""
    cache_bytes: FloatArray
    """KV cache read and written"""
    activation_bytes: FloatArray
    """activations read and written"""
    operations: float
    """kernels launched"""


Amounts = tuple[Value, Value, Value, Value, float]
"""the fields of `Work`, in values instead of bytes"""


@dataclass(frozen=True)
class MixtureOfExperts:
    """Layers whose MLP is a choice of experts; every expert is gated."""

    experts: int
    """routed experts in a layer"""
    experts_per_token: int
    expert_intermediate: int
    shared_experts: int = 0
    """experts that every token passes through, beside the routed ones"""
    shared_intermediate: int = 0
    """of one shared expert"""
    dense_layers: int = 0
    """layers with a dense MLP instead, wherever they stand"""

    def __post_init__(self) -> None:
        check_sizes(self, ("experts", "experts_per_token", "expert_intermediate"), at_least=1)
        check_sizes(self, ("shared_experts", "dense_layers"), at_least=0)
        check_sizes(self, ("shared_intermediate",), at_least=1 if self.shared_experts else 0)
        if self.experts_per_token > self.experts:
            raise ValueError(f"experts_per_token must be <= experts, got {self.experts_per_token} of {self.experts}")


@dataclass(frozen=True)
class LatentAttention:
    """Multi-head latent attention, MLA (DeepSeek-V2: Liu et al. 2024, arXiv:2405.04434, section 2.1).

    One latent and one rotary key a token are cached for all heads together.
    """

    kv_rank: int
    q_rank: int | None
    """None where queries are projected at once"""
    rope_dim: int
    nope_dim: int
    v_dim: int

    def __post_init__(self) -> None:
        check_sizes(self, ("kv_rank", "rope_dim", "nope_dim", "v_dim"), at_least=1)
        if self.q_rank is not None:
            check_sizes(self, ("q_rank",), at_least=1)


@dataclass(frozen=True)
class Architecture:
    """The shape of a transformer decoder; with `encoder_layers`, of an encoder-decoder such as T5."""

    name: str
    source: str
    """the public file that the sizes are from"""
    hidden: int
    layers: int
    """of the decoder"""
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    """of a dense MLP"""
    vocab: int
    gated_mlp: bool = True
    """gate and up projections (SwiGLU, GeGLU) instead of one"""
    tied_embeddings: bool = False
    """the output projection is the embedding table"""
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    """queries and keys are normed, every head by the same head_dim weights"""
    norms_per_layer: int = 2
    """of the decoder; an encoder has 2"""
    norm_bias: bool = False
    window_tokens: int | None = None
    """newest tokens that a sliding-window layer attends to, the token itself among them"""
    window_layers: int = 0
    """layers with that window; the others attend to everything"""
    encoder_layers: int = 0
    """if any, every decoder layer has cross-attention"""
    position_buckets: int = 0
    """learned relative positions in place of rotary ones (T5)"""
    moe: MixtureOfExperts | None = None
    mla: LatentAttention | None = None

    def __post_init__(self) -> None:
        sizes = ("hidden", "layers", "heads", "kv_heads", "head_dim", "intermediate", "vocab", "norms_per_layer")
        check_sizes(self, sizes, at_least=1)
        check_sizes(self, ("window_layers", "encoder_layers", "position_buckets"), at_least=0)
        if self.window_tokens is not None:
            check_sizes(self, ("window_tokens",), at_least=1)
        if self.heads % self.kv_heads:
            raise ValueError(f"heads must be a multiple of kv_heads, got {self.heads} and {self.kv_heads}")
        windowed = self.layers if self.window_tokens else 0
        for name, most in (("window_layers", windowed), ("dense_layers", self.layers)):
            if getattr(self, name) > most:
                raise ValueError(f"{name} must be <= {most}, got {getattr(self, name)}; see layers and window_tokens")

    @property
    def dense_layers(self) -> int:
        """Decoder layers with a dense MLP."""
        return self.moe.dense_layers if self.moe else self.layers

    def parameters(self) -> int:
        """Weights of the whole model, encoder included; modules for multi-token prediction are not counted."""
        part, hidden, wide = shard(self, 1), self.hidden, self.heads * self.head_dim
        count = part.gemm.weights + part.shared.weights + part.elementwise.weights
        count += part.expert.weights * self.moe.experts if self.moe else 0
        count += self.vocab * hidden * (1 if self.tied_embeddings else 2)
        if self.encoder_layers:
            layer = 4 * hidden * wide + hidden * self.intermediate * (3 if self.gated_mlp else 2) + 2 * hidden
            count += self.encoder_layers * layer + hidden + self.position_buckets * self.heads
            count += self.layers * 2 * hidden * wide  # keys and values of the cross-attention
        return int(count)

    def active_parameters(self) -> int:
        """Weights that take part in decoding one token: no embedding table, no expert left aside, no encoder.

        Publishers differ on the embedding table: DeepSeek-V3's 37B leaves it out, Mixtral's 12.9B has it in.
        """
        part = shard(self, 1)
        return int(part.gemm.weights + part.moe.weights + part.logits.weights + part.elementwise.weights)

    def weight_bytes(self, bytes_per_weight: float = 2.0) -> float:
        """Bytes of the whole model in memory."""
        return self.parameters() * bytes_per_weight

    def kv_bytes_per_token(self, bytes_per_value: float = 2.0, tensor_parallel: int = 1) -> float:
        """Bytes that one token takes in the cache of each device, all layers together.

        Sliding-window layers count while the token is in their window. With an encoder, a source token takes as much
        again for cross-attention.
        """
        return self.layers * shard(self, tensor_parallel).attention.cached_values * bytes_per_value

    def work(
        self,
        batch: ArrayLike,
        new_tokens: ArrayLike,
        context: ArrayLike,
        *,
        weight_bytes: float = 2.0,
        cache_bytes: float = 2.0,
        activation_bytes: float = 2.0,
        tensor_parallel: int = 1,
        routing: float | Sequence[float] | FloatArray = 0.0,
        source_tokens: ArrayLike = 0.0,
        logit_tokens: ArrayLike | None = None,
    ) -> dict[str, Work]:
        """The work of one forward of the decoder on each device; what devices send to each other is not in it.

        A new token attends to the context and to the new tokens up to itself. The cache is read once per request
        however many new tokens there are, which is what makes verification cheap; these are written first and read
        along. MLA attends to the latent, its up-projections absorbed into queries and outputs (DeepSeek-V2, section
        2.1.2); a long prefill that expands keys and values instead needs fewer operations than counted here. Kernels
        are those of an engine that fuses as vLLM does: one product for q, k and v, one for gate and up, norm with
        residual, activation with gate. An encoder, and keys and values of cross-attention, are work of prefill and not
        counted.

        Args:
            batch: requests in the forward.
            new_tokens: tokens that each request feeds in.
            context: tokens that each request had before. None of the three need be whole: means of a ragged batch do.
            weight_bytes: bytes per weight.
            cache_bytes: bytes per cached value.
            activation_bytes: bytes per activation.
            tensor_parallel: devices that share each layer, see `sim.architectures.shard.shard`.
            routing: popularity of the experts, if there are any, see `sim.architectures.routing.distinct_experts`.
            source_tokens: encoder tokens of each request, which cross-attention reads.
            logit_tokens: tokens of each request that need logits; None for all new ones, as in verification (1 is
                enough in prefill).

        Returns:
            Groups in this order: gemm (projections, dense MLPs, routers), moe (if there is one), logits, attention,
            other (embedding, norms, rotary positions, activation functions, choice of experts).

        Raises:
            ValueError: an argument is out of its range, or heads do not divide by the devices.
        """
        part = shard(self, tensor_parallel)
        for name, size in (("weight", weight_bytes), ("cache", cache_bytes), ("activation", activation_bytes)):
            if not 0 < size < np.inf:
                raise ValueError(f"{name}_bytes must be finite and > 0, got {size}; bf16 takes 2 bytes, int4 0.5")
        batch, new = check_count("batch", batch), check_count("new_tokens", new_tokens)
        context, source = check_cost("context", context)[()], check_cost("source_tokens", source_tokens)[()]
        if not self.encoder_layers and np.any(source):
            raise ValueError(f"source_tokens must be 0 for {self.name}, which has no encoder, got {np.max(source):g}")
        tokens = batch * new
        logits = tokens if logit_tokens is None else batch * check_count("logit_tokens", logit_tokens)
        pairs, cached = attended(self, new, context, source)
        amounts = {"gemm": products(part.gemm, tokens, part.gemm.weights)}
        if self.moe:
            touched = distinct_experts(self.moe.experts, self.moe.experts_per_token, tokens, routing)
            amounts["moe"] = products(part.moe, tokens, touched * part.expert.weights + part.shared.weights)
        amounts["logits"] = products(part.logits, logits, part.logits.weights)
        amounts["attention"] = (
            part.attention.flops_per_pair * batch * pairs,
            0.0,
            part.attention.cached_values * batch * cached,
            part.attention.activations * tokens,
            part.attention.operations,
        )
        embedded = tokens * (self.hidden / tensor_parallel)  # each token reads its row of the table
        elementwise, weights = part.elementwise, part.elementwise.weights + embedded
        amounts["other"] = (0.0, weights, 0.0, elementwise.activations * tokens, elementwise.operations)
        shape = np.broadcast_shapes(np.shape(tokens), np.shape(context), np.shape(source), np.shape(logits))

        def spread(value: Value) -> FloatArray:
            return np.broadcast_to(value, shape) if shape else np.float64(value)  # type: ignore[return-value]

        return {
            name: Work(
                spread(flops),
                spread(weights * weight_bytes),
                spread(cache * cache_bytes),
                spread(activations * activation_bytes),
                operations,
            )
            for name, (flops, weights, cache, activations, operations) in amounts.items()
        }


def products(sums: Sums, tokens: Value, weights: Value) -> Amounts:
    """What matrix products come to for so many tokens that read so many weights."""
    return 2 * sums.matrix * tokens, weights, 0.0, sums.activations * tokens, sums.operations


def check_sizes(shape: object, names: Sequence[str], at_least: int) -> None:
    """Refuse a size that is not a whole number, or too small.

    Raises:
        ValueError: naming the field.
    """
    for name in names:
        value = getattr(shape, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
            raise ValueError(f"{name} must be a whole number >= {at_least}, got {value!r}; see the model's config.json")


def check_count(name: str, values: ArrayLike) -> FloatArray:
    """The values as floats, each finite and above 0.

    Raises:
        ValueError: naming the first value that is not.
    """
    array = np.asarray(values, dtype=np.float64)
    wrong = ~((array > 0) & (array < np.inf))
    if wrong.any():
        raise ValueError(
            f"{name} must be finite and > 0, got {array[wrong][0]:g}; a forward without tokens has no work"
        )
    return array[()]
