"""Shapes of known models, and how to find one: by name, or from a config.json.

The sizes are those of each model's public config.json on huggingface.co, which `source` names.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path

from sim.architectures import Architecture, LatentAttention, MixtureOfExperts
from sim.architectures.config import read_config


def _llama(name: str, repository: str, sizes: tuple[int, int, int, int, int, int, int], tied: bool) -> Architecture:
    """A Llama; sizes are (hidden, layers, heads, kv_heads, head_dim, intermediate, vocab)."""
    return Architecture(name, f"huggingface.co/{repository} config.json", *sizes, tied_embeddings=tied)


def _qwen3(
    name: str, sizes: tuple[int, int, int, int, int], tied: bool, moe: MixtureOfExperts | None = None
) -> Architecture:
    """A Qwen3; sizes are (hidden, layers, heads, kv_heads, intermediate)."""
    hidden, layers, heads, kv_heads, intermediate = sizes
    return Architecture(
        name.lower(),
        f"huggingface.co/Qwen/{name} config.json",
        hidden,
        layers,
        heads,
        kv_heads,
        128,
        intermediate,
        151_936,
        tied_embeddings=tied,
        qk_norm=True,
        moe=moe,
    )


def _t5(size: str, sizes: tuple[int, int, int, int]) -> Architecture:
    """A T5 v1.1 (gated, untied), as in Leviathan et al.; sizes are (hidden, layers, heads, intermediate)."""
    hidden, layers, heads, intermediate = sizes
    return Architecture(
        f"t5-{size}",
        f"huggingface.co/google/t5-v1_1-{size} config.json",
        hidden,
        layers,
        heads,
        heads,
        64,
        intermediate,
        32_128,
        norms_per_layer=3,
        encoder_layers=layers,
        position_buckets=32,
    )


_KNOWN = (
    _llama("llama-3.2-1b", "meta-llama/Llama-3.2-1B", (2048, 16, 32, 8, 64, 8192, 128_256), tied=True),
    _llama("llama-3.2-3b", "meta-llama/Llama-3.2-3B", (3072, 28, 24, 8, 128, 8192, 128_256), tied=True),
    _llama("llama-3.1-8b", "meta-llama/Llama-3.1-8B", (4096, 32, 32, 8, 128, 14_336, 128_256), tied=False),
    _llama("llama-3.1-70b", "meta-llama/Llama-3.1-70B", (8192, 80, 64, 8, 128, 28_672, 128_256), tied=False),
    _llama("llama-2-7b", "meta-llama/Llama-2-7b-hf", (4096, 32, 32, 32, 128, 11_008, 32_000), tied=False),
    _llama("llama-2-13b", "meta-llama/Llama-2-13b-hf", (5120, 40, 40, 40, 128, 13_824, 32_000), tied=False),
    _llama("llama-2-70b", "meta-llama/Llama-2-70b-hf", (8192, 80, 64, 8, 128, 28_672, 32_000), tied=False),
    _llama("llama-68m", "JackFram/llama-68m", (768, 2, 12, 12, 64, 3072, 32_000), tied=False),
    _llama("vicuna-33b", "lmsys/vicuna-33b-v1.3", (6656, 60, 52, 52, 128, 17_920, 32_000), tied=False),
    _llama("smollm2-135m", "HuggingFaceTB/SmolLM2-135M", (576, 30, 9, 3, 64, 1536, 49_152), tied=True),
    _llama("smollm2-360m", "HuggingFaceTB/SmolLM2-360M", (960, 32, 15, 5, 64, 2560, 49_152), tied=True),
    _llama("smollm2-1.7b", "HuggingFaceTB/SmolLM2-1.7B", (2048, 24, 32, 32, 64, 8192, 49_152), tied=True),
    _qwen3("Qwen3-0.6B", (1024, 28, 16, 8, 3072), tied=True),
    _qwen3("Qwen3-1.7B", (2048, 28, 16, 8, 6144), tied=True),
    _qwen3("Qwen3-4B", (2560, 36, 32, 8, 9728), tied=True),
    _qwen3("Qwen3-8B", (4096, 36, 32, 8, 12_288), tied=False),
    _qwen3("Qwen3-14B", (5120, 40, 40, 8, 17_408), tied=False),
    _qwen3("Qwen3-32B", (5120, 64, 64, 8, 25_600), tied=False),
    _qwen3("Qwen3-30B-A3B", (2048, 48, 32, 4, 6144), tied=False, moe=MixtureOfExperts(128, 8, 768)),
    Architecture(
        "mixtral-8x7b",
        "huggingface.co/mistralai/Mixtral-8x7B-v0.1 config.json",
        *(4096, 32, 32, 8, 128, 14_336, 32_000),
        moe=MixtureOfExperts(8, 2, 14_336),
    ),
    Architecture(
        "deepseek-v3",
        "huggingface.co/deepseek-ai/DeepSeek-V3 config.json",
        *(7168, 61, 128, 128, 192, 18_432, 129_280),
        moe=MixtureOfExperts(256, 8, 2048, shared_experts=1, shared_intermediate=2048, dense_layers=3),
        mla=LatentAttention(kv_rank=512, q_rank=1536, rope_dim=64, nope_dim=128, v_dim=128),
    ),
    _t5("small", (512, 8, 6, 1024)),
    _t5("base", (768, 12, 12, 2048)),
    _t5("large", (1024, 24, 16, 2816)),
    _t5("xxl", (4096, 24, 64, 10_240)),
)

ARCHITECTURES: dict[str, Architecture] = {model.name: model for model in _KNOWN}
"""known shapes by name"""

ALIASES = {
    "llama-3-1b": "llama-3.2-1b",
    "llama-3-3b": "llama-3.2-3b",
    "llama-3-8b": "llama-3.1-8b",
    "llama-3-70b": "llama-3.1-70b",
    "llama-3.3-70b": "llama-3.1-70b",
    "vicuna-7b": "llama-2-7b",
    "vicuna-13b": "llama-2-13b",
    "deepseek-r1": "deepseek-v3",
}
"""other models of the same shape"""


def find_architecture(name: str) -> Architecture:
    """A shape by name, or from a config.json.

    Args:
        name: a key of `ARCHITECTURES` or `ALIASES` in either case, with or without what repositories add to it (owner,
            "Meta-", "-Instruct", "-chat", "-hf", a version such as "-v0.1"); or the path of a config.json, or of the
            folder that holds one.

    Raises:
        ValueError: it is neither, or the file can't be read as a shape.
    """
    last = name.split("/")[-1].lower()
    short = re.sub(r"-v\d+([._]\d+)*\b|-(instruct|chat|base|hf|it)\b|^meta-", "", last)
    for known in [name.lower()] if Path(name).exists() else [last, short]:
        if ALIASES.get(known, known) in ARCHITECTURES:
            return ARCHITECTURES[ALIASES.get(known, known)]
    if Path(name).exists() or name.endswith(".json"):
        return read_config(name)
    names = [*ARCHITECTURES, *ALIASES]
    near = difflib.get_close_matches(short, names, n=3, cutoff=0.5)
    raise ValueError(
        f"model must be a known name or the path of a config.json, got {name!r}; "
        + (f"did you mean {', '.join(near)}?" if near else f"known are {', '.join(names)}")
    )
