"""A draft head in the EAGLE manner: one decoder layer on the target's hidden states, and the target's own head, cut.

At place t the head reads what the target computed for token t (its feature: hidden states of a few layers) and the
embedding of token t + 1, attends to the places before, and predicts token t + 2 (Li et al. 2024, arXiv:2401.15077).
Drafting further, the target's features are not known yet: the head's own output stands in for them, and training
unrolls the same steps (Li et al. 2025, EAGLE-3, arXiv:2503.01840, section 3.2), so that deeper positions hold.

Tokens are scored over the target's most used ones only, by those rows of the target's own output head.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from real.llama_decoder import LlamaDecoder, rotate
from sim.records import write_atomically

KIND = "specdec distilled head"


@dataclass(frozen=True)
class HeadShape:
    """Sizes of a head, which are those of one of the target's layers.

    Attributes:
        feature_layers: the target's layers whose outputs the head reads; the last is the target's last.
    """

    width: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    epsilon: float
    feature_layers: tuple[int, ...]

    @classmethod
    def of(cls, target: LlamaDecoder) -> HeadShape:
        """The shape of a head for a target: it reads the outputs after a third, two thirds and all of its layers."""
        layers = target.layers
        feature_layers = tuple(sorted({max(1, layers // 3), max(1, 2 * layers // 3), layers}))
        return cls(
            target.width, target.intermediate, target.heads, target.kv_heads, target.cosine.shape[1],
            target.epsilon, feature_layers,
        )  # fmt: skip


class DistilledHead(nn.Module):
    """The trained weights.

    Attributes:
        mix: [width, (feature layers + 1) width] from features and token embedding to the layer's input.
        vocabulary: [cut] int64, the target's tokens that the head can propose, most used first.
    """

    def __init__(self, shape: HeadShape, vocabulary: Tensor, seed: int = 0) -> None:
        super().__init__()
        self.shape = shape
        self.register_buffer("vocabulary", vocabulary)
        self.vocabulary: Tensor
        attention = shape.heads * shape.head_dim
        sizes = {
            "mix": (shape.width, (len(shape.feature_layers) + 1) * shape.width),
            "query_key_value": (attention + 2 * shape.kv_heads * shape.head_dim, shape.width),
            "attention_output": (shape.width, attention),
            "gate_up": (2 * shape.intermediate, shape.width),
            "down": (shape.width, shape.intermediate),
        }
        generator = torch.Generator().manual_seed(seed)
        for name, size in sizes.items():
            residual = 0.1 if name in ("attention_output", "down") else 1.0  # branches start quiet
            weight = torch.randn(size, generator=generator) * residual * size[1] ** -0.5
            self.register_parameter(name, nn.Parameter(weight))
        for name in ("attention_norm", "mlp_norm", "norm"):
            scale = 0.3 if name == "norm" else 1.0  # first guesses are near uniform
            self.register_parameter(name, nn.Parameter(torch.full((shape.width,), scale)))
        self.mix: Tensor
        self.query_key_value: Tensor
        self.attention_output: Tensor
        self.gate_up: Tensor
        self.down: Tensor
        self.attention_norm: Tensor
        self.mlp_norm: Tensor
        self.norm: Tensor

    def unrolled(self, features: Tensor, embedded: Tensor, cosine: Tensor, sine: Tensor, steps: int) -> list[Tensor]:
        """The head's outputs at every place when it has drafted 0, 1, ... steps - 1 tokens on its own before.

        Step k at place t reads the output of step k - 1 at place t - 1 in place of the target's feature, and attends
        to step 1 at places up to t - k + 1 and to its own later steps at the places between.

        Args:
            features: [rows, places, layers, width] of the target, unit root mean square.
            embedded: [rows, places, width] embeddings of the tokens that follow.
            cosine, sine: [places, head_dim] of rotary positions, as `LlamaDecoder` keeps them.

        Returns:
            For each step [rows, places, width]; place t of step k is meaningless for t < k - 1.
        """
        rows, places = embedded.shape[:2]
        shape = self.shape
        known = torch.cat([features.flatten(2), unit(embedded)], dim=-1)
        last_and_token = slice((len(shape.feature_layers) - 1) * shape.width, None)
        outputs: list[Tensor] = []
        keys: list[Tensor] = []
        values: list[Tensor] = []
        for step in range(steps):
            if step == 0:
                hidden = F.linear(known, self.mix)
            else:
                own = F.pad(unit(outputs[-1]), (0, 0, 1, 0))[:, :-1]
                hidden = F.linear(torch.cat([own, unit(embedded)], dim=-1), self.mix[:, last_and_token])
            normed = F.rms_norm(hidden, hidden.shape[-1:], self.attention_norm, shape.epsilon)
            fused = F.linear(normed, self.query_key_value).view(rows, places, -1, shape.head_dim).transpose(1, 2)
            query, key, value = torch.split(fused, [shape.heads, shape.kv_heads, shape.kv_heads], dim=1)
            group = shape.heads // shape.kv_heads
            query = rotate(query, cosine, sine)
            keys.append(rotate(key, cosine, sine).repeat_interleave(group, dim=1))
            values.append(value.repeat_interleave(group, dim=1))
            scores = query @ keys[0].transpose(-1, -2)
            hide = torch.ones(places, places, dtype=torch.bool, device=query.device).triu(1 - step)
            scores = scores.masked_fill(hide, float("-inf"))
            shifted = [F.pad(keys[j], (0, 0, step - j, 0))[:, :, :places] for j in range(1, step + 1)]
            own_scores = [(query * key).sum(-1, keepdim=True) for key in shifted]
            weights = torch.softmax(torch.cat([scores, *own_scores], -1).float() * shape.head_dim**-0.5, dim=-1)
            weights = weights.to(value.dtype)
            attended = weights[..., :places] @ values[0]
            for j in range(1, step + 1):
                earlier = F.pad(values[j], (0, 0, step - j, 0))[:, :, :places]
                attended = attended + weights[..., places + j - 1, None] * earlier
            hidden = hidden + F.linear(attended.transpose(1, 2).flatten(2), self.attention_output)
            normed = F.rms_norm(hidden, hidden.shape[-1:], self.mlp_norm, shape.epsilon)
            gate, up = F.linear(normed, self.gate_up).chunk(2, dim=-1)
            outputs.append(hidden + F.linear(F.silu(gate) * up, self.down))
        return outputs


def unit(x: Tensor) -> Tensor:
    """Divide by the root mean square along the last axis."""
    return F.rms_norm(x, x.shape[-1:], None, 1e-6)


def save_head(head: DistilledHead, folder: Path, provenance: dict[str, Any]) -> None:
    """Write `head.safetensors` atomically, in half precision, with its shape and how it was made in the metadata."""
    tensors = {name: value.detach().half().contiguous() for name, value in head.named_parameters()}
    tensors["vocabulary"] = head.vocabulary.int()
    metadata = {"kind": KIND, "shape": json.dumps(asdict(head.shape)), "provenance": json.dumps(provenance)}
    write_atomically(folder / "head.safetensors", lambda part: save_file(tensors, part, metadata))


def load_head(folder: Path) -> tuple[DistilledHead, dict[str, Any]]:
    """Read a head and how it was made.

    Raises:
        ValueError: the file is missing, damaged, or holds something else.
    """
    path = folder / "head.safetensors"
    try:
        with safe_open(path, framework="pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except Exception as error:  # safetensors raises its own kinds
        raise ValueError(f"{path} is not a readable draft head ({error}); `specdec distill` makes one") from error
    if metadata.get("kind") != KIND:
        raise ValueError(f"{path} holds no draft head; `specdec distill` makes one")
    fields = json.loads(metadata["shape"])
    shape = HeadShape(**(fields | {"feature_layers": tuple(fields["feature_layers"])}))
    head = DistilledHead(shape, tensors.pop("vocabulary").long())
    head.load_state_dict({name: value.float() for name, value in tensors.items()} | {"vocabulary": head.vocabulary})
    return head.eval(), json.loads(metadata["provenance"])


def is_head(folder: Path) -> bool:
    """Whether a folder holds a draft head."""
    return (folder / "head.safetensors").is_file()
