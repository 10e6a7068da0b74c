"""A copy of the target with weights in 8 bits: the draft that needs no training.

Decoding a few tokens is bound by reading weights, so a quarter of the bytes is a draft step at about a quarter of the
cost, less what does not shrink with the weights. Only weights are quantised, so little of the target's distribution is
lost. The matrix kernel takes and gives bfloat16; the residual stream and attention keep the target's own dtype. Norm
weights move into the projections behind them, and norms become one division.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from real.compiled import uncompiled
from real.decoder import Decoder
from real.devices import has_int8_kernel
from real.llama_decoder import Layer, Linear, LlamaDecoder, Projection


class Int8Projection:
    """A linear map with int8 weights and one scale an output row: x @ (weight * scale).T, in bfloat16."""

    def __init__(self, weight: Tensor) -> None:
        scale = (weight.float().abs().amax(1) / 127).clamp_min(1e-12)
        self.weight = (weight.float() / scale[:, None]).round().to(torch.int8)
        self.scale = scale.to(torch.bfloat16)

    def __call__(self, x: Tensor) -> Tensor:
        """[rows, in] -> [rows, out]."""
        product: Tensor = torch.ops.aten._weight_int8pack_mm(x.to(torch.bfloat16), self.weight, self.scale)
        return product


def quantise(target: Decoder) -> LlamaDecoder:
    """The same model with every projection, the output head too, in int8; the embedding is shared.

    Raises:
        ValueError: the target is not a `LlamaDecoder`, or lies on a device without a fast int8 kernel.
    """
    target = uncompiled(target)
    if not isinstance(target, LlamaDecoder):
        raise ValueError("an int8 copy needs a Llama-shaped target, whose projections this project runs itself")
    if not has_int8_kernel(target.device):
        raise ValueError(
            f"an int8 copy needs a CPU, whose int8 kernel is faster than the target's own; the target is on "
            f"{target.device}; use early-exit:L, a lookup or a smaller model there"
        )

    def after(norm: Tensor | None, weight: Tensor) -> Linear:
        """A projection that reads `hidden / |hidden|` instead of the norm's output."""
        assert norm is not None
        return Int8Projection(weight * norm * target.width**0.5)

    def copy_of(block: Layer) -> Layer:
        return replace(
            block,
            attention_norm=None,
            query_key_value=after(block.attention_norm, dense(block.query_key_value)),
            attention_output=Int8Projection(dense(block.attention_output)),
            mlp_norm=None,
            gate_up=after(block.mlp_norm, dense(block.gate_up)),
            down=Int8Projection(dense(block.down)),
        )

    blocks = tuple(copy_of(block) for block in target.blocks)
    return replace(target, blocks=blocks, norm=None, head=after(target.norm, target.output_head))


def dense(projection: Linear) -> Tensor:
    """The weight behind a projection of the target."""
    assert isinstance(projection, Projection)
    return projection.dense()
