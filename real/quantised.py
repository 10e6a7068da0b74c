"""A copy of the target with weights in 8 bits: the draft that needs no training.

Decoding a few tokens is bound by reading weights, so a quarter of the bytes is a draft step at about a quarter of the
cost, less what does not shrink with the weights. Only weights are quantised, one scale an output row, so little of the
target's distribution is lost; the matrix kernel takes bfloat16 inputs, everything between is the target's own dtype.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from real.decoder import Decoder
from real.llama_decoder import Layer, Linear, LlamaDecoder, Projection


class Int8Projection:
    """A linear map with int8 weights and one scale an output row: x @ (weight * scale).T."""

    def __init__(self, weight: Tensor) -> None:
        scale = (weight.float().abs().amax(1) / 127).clamp_min(1e-12)
        self.weight = (weight.float() / scale[:, None]).round().to(torch.int8)
        self.scale = scale.to(torch.bfloat16)

    def __call__(self, x: Tensor) -> Tensor:
        """[rows, in] -> [rows, out]."""
        product: Tensor = torch.ops.aten._weight_int8pack_mm(x.to(torch.bfloat16), self.weight, self.scale)
        return product.to(x.dtype)


def quantise(target: Decoder) -> LlamaDecoder:
    """The same model with every projection, the output head too, in int8; norms and embedding are shared.

    Raises:
        ValueError: the target is not a `LlamaDecoder`.
    """
    if not isinstance(target, LlamaDecoder):
        raise ValueError("an int8 copy needs a Llama-shaped target, whose projections this project runs itself")
    return replace(
        target, blocks=tuple(_quantise(block) for block in target.blocks), head=Int8Projection(target.output_head)
    )


def _quantise(block: Layer) -> Layer:
    def narrow(projection: Linear) -> Int8Projection:
        assert isinstance(projection, Projection)
        return Int8Projection(projection.dense())

    return replace(
        block,
        query_key_value=narrow(block.query_key_value),
        attention_output=narrow(block.attention_output),
        gate_up=narrow(block.gate_up),
        down=narrow(block.down),
    )
