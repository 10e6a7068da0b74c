"""What one device holds of a model, and does for each token: layers as sums of matrix products."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from sim.theory import FloatArray

if TYPE_CHECKING:
    from sim.architectures import Architecture

Value = FloatArray | float


class MatrixProduct(NamedTuple):
    """A linear map that `layers` layers apply to each token: `blocks` matrices side by side, inputs x outputs each."""

    layers: float
    inputs: float
    outputs: float
    blocks: float = 1
    bias: bool = False


class Sums(NamedTuple):
    """Matrix products taken together."""

    matrix: float = 0.0
    """weights that multiply: half the operations per token"""
    weights: float = 0.0
    """these and the biases"""
    activations: float = 0.0
    """values read and written per token"""
    operations: float = 0.0
    """kernels"""


class Elementwise(NamedTuple):
    """What is no matrix product: embedding, norms, rotary positions, activation functions, choice of experts."""

    weights: float
    """norm weights and learned positions"""
    activations: float
    """values read and written per token"""
    operations: float
    """kernels"""


class Attention(NamedTuple):
    """Sizes of the attention."""

    cached_values: float
    """per token and layer"""
    flops_per_pair: float
    """of one query with one key and value, all heads of one layer"""
    activations: float
    """values of queries and outputs per token, all layers"""
    operations: float
    """kernels"""


class Shard(NamedTuple):
    """The part of a model on one device."""

    gemm: Sums
    """projections, dense MLPs and routers"""
    expert: Sums
    """one routed expert of every MoE layer"""
    shared: Sums
    """the shared experts"""
    moe: Sums
    """all experts that one token passes through"""
    logits: Sums
    attention: Attention
    elementwise: Elementwise


@lru_cache(maxsize=256)
def shard(model: Architecture, devices: int) -> Shard:
    """The part of a model's decoder that each of `devices` holds under tensor parallelism.

    Heads, MLPs, experts and vocabulary are divided. Norms, routers and MLA's down-projections are copied, and so are KV
    heads where there are fewer than devices, and MLA's latent.

    Raises:
        ValueError: devices is not a whole number >= 1, or heads can't be shared out evenly.
    """
    if isinstance(devices, bool) or not isinstance(devices, int) or devices < 1:
        raise ValueError(f"tensor_parallel must be a whole number >= 1, got {devices!r}; 1 is a model on one device")
    uneven = min(model.kv_heads % devices, devices % model.kv_heads)
    if model.heads % devices or uneven:
        raise ValueError(
            f"tensor_parallel must divide the {model.heads} heads of {model.name}, and divide its {model.kv_heads} KV "
            f"heads or be a multiple of them, got {devices}"
        )
    heads, kv_heads = model.heads // devices, max(model.kv_heads // devices, 1)
    sparse = model.layers - model.dense_layers
    gemm = projections(model, heads, kv_heads)
    gemm += mlp(model.dense_layers, model.hidden, model.intermediate / devices, model.gated_mlp, model.mlp_bias)
    expert = shared = moe = Sums()
    if model.moe:
        gemm.append(MatrixProduct(sparse, model.hidden, model.moe.experts))
        expert = total(mlp(sparse, model.hidden, model.moe.expert_intermediate / devices))
        if model.moe.shared_experts:
            wide = model.moe.shared_experts * model.moe.shared_intermediate
            shared = total(mlp(sparse, model.hidden, wide / devices))
        moe = Sums(*(model.moe.experts_per_token * one + always for one, always in zip(expert, shared, strict=True)))
        moe = moe._replace(operations=expert.operations + shared.operations)  # one kernel for all routed experts
    logits = total([MatrixProduct(1, model.hidden, model.vocab / devices)])
    sizes = attention(model, heads, kv_heads)
    return Shard(total(gemm), expert, shared, moe, logits, sizes, elementwise(model, heads, kv_heads, devices))


def projections(model: Architecture, heads: int, kv_heads: int) -> list[MatrixProduct]:
    """The matrix products around the attention of every layer; q, k and v are one, and MLA's down-projections."""
    layers, hidden, mla = model.layers, model.hidden, model.mla
    if mla:
        rank = mla.q_rank or 0
        queries = MatrixProduct(layers, mla.q_rank or hidden, heads * (mla.nope_dim + mla.rope_dim))
        return [
            MatrixProduct(layers, hidden, rank + mla.kv_rank + mla.rope_dim, bias=model.qkv_bias),
            queries,
            MatrixProduct(layers, mla.nope_dim, mla.kv_rank, blocks=heads),  # queries into the latent
            MatrixProduct(layers, mla.kv_rank, mla.v_dim, blocks=heads),  # and out of it
            MatrixProduct(layers, heads * mla.v_dim, hidden, bias=model.output_bias),
        ]
    wide = heads * model.head_dim
    found = [
        MatrixProduct(layers, hidden, wide + 2 * kv_heads * model.head_dim, bias=model.qkv_bias),
        MatrixProduct(layers, wide, hidden, bias=model.output_bias),
    ]
    if model.encoder_layers:  # keys and values of the cross-attention are made once, in prefill
        found += [MatrixProduct(layers, hidden, wide), MatrixProduct(layers, wide, hidden)]
    return found


def mlp(layers: int, hidden: int, intermediate: float, gated: bool = True, bias: bool = False) -> list[MatrixProduct]:
    """A feed-forward block; its gate and up projections are one product."""
    up = MatrixProduct(layers, hidden, intermediate * (2 if gated else 1), bias=bias)
    return [up, MatrixProduct(layers, intermediate, hidden, bias=bias)]


def total(products: Iterable[MatrixProduct]) -> Sums:
    """Sums over products, each of them one kernel a layer."""
    matrix = weights = activations = operations = 0.0
    for layers, inputs, outputs, blocks, bias in products:
        matrix += layers * blocks * inputs * outputs
        weights += layers * blocks * (inputs + bias) * outputs
        activations += layers * blocks * (inputs + outputs)
        operations += layers
    return Sums(matrix, weights, activations, operations)


def attention(model: Architecture, heads: int, kv_heads: int) -> Attention:
    """Sizes of the attention; MLA's is over the latent, and one kernel a layer writes the cache before."""
    kernels = model.layers * (3 if model.encoder_layers else 2)
    if model.mla:
        key, value = model.mla.kv_rank + model.mla.rope_dim, model.mla.kv_rank
        return Attention(key, 2 * heads * (key + value), model.layers * heads * (key + value), kernels)
    both = 2 * model.head_dim
    activations = model.layers * heads * both * (2 if model.encoder_layers else 1)
    return Attention(kv_heads * both, 2 * heads * both, activations, kernels)


def attended(model: Architecture, new: Value, context: Value, source: Value) -> tuple[Value, Value]:
    """What the attention of one request comes to, summed over layers.

    Returns:
        Pairs of a query and a key, and cached tokens that are read or written.
    """
    everywhere = model.layers - model.window_layers
    pairs, moved = everywhere * new * (context + (new + 1) / 2), everywhere * (context + 2 * new)
    if model.window_tokens and model.window_layers:
        inside = np.maximum(0.0, np.minimum(new, model.window_tokens - context))  # tokens whose window holds everything
        windowed = inside * (context + (inside + 1) / 2) + (new - inside) * model.window_tokens
        pairs = pairs + model.window_layers * windowed
        moved = moved + model.window_layers * (np.minimum(context, model.window_tokens - 1) + 2 * new)
    if model.encoder_layers:
        pairs, moved = pairs + model.layers * new * source, moved + model.layers * source
    return pairs, moved


def elementwise(model: Architecture, heads: int, kv_heads: int, devices: int) -> Elementwise:
    """Everything but matrix products and attention.

    Counted are: the embedding (written), each norm with its residual (both read and written), queries and keys that are
    rotated or normed in place, the activation function with its gate, and for experts the top k of the router's
    scores, the sort of tokens by expert and the weighted sum over the chosen.
    """
    layers, hidden, moe, mla = model.layers, model.hidden, model.moe, model.mla
    norms = layers * model.norms_per_layer + 1
    weights = norms * hidden * (2 if model.norm_bias else 1) + model.position_buckets * heads
    activations, kernels = hidden + 4.0 * norms * hidden, 1.0 + norms
    turned = 2 * (heads + kv_heads) * model.head_dim
    if mla:
        inner, turned = (mla.q_rank or 0) + mla.kv_rank, 2 * (heads + 1) * mla.rope_dim
        weights += layers * inner
        activations += layers * 2 * inner
        kernels += layers * (2 if mla.q_rank else 1)
    if model.qk_norm:
        weights += layers * 2 * model.head_dim
        activations += layers * turned
        kernels += layers * 2
    if not model.position_buckets:
        activations += layers * turned
        kernels += layers
    activations += model.dense_layers * (3 if model.gated_mlp else 2) * model.intermediate / devices
    kernels += model.dense_layers
    if moe:
        wide = moe.experts_per_token * moe.expert_intermediate + moe.shared_experts * moe.shared_intermediate
        activations += (layers - moe.dense_layers) * (3 * wide / devices + moe.experts)
        activations += (layers - moe.dense_layers) * (moe.experts_per_token + 1) * hidden
        kernels += (layers - moe.dense_layers) * (4 + bool(moe.shared_experts))
    return Elementwise(weights, activations, kernels)
