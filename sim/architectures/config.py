"""Shapes of models as a transformers config.json describes them, read as plain JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sim.architectures import Architecture, LatentAttention, MixtureOfExperts

ASSUMED: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": None, "head_dim": None},
    "mistral": {"head_dim": None, "sliding_window": 4096},
    "mixtral": {"head_dim": None, "sliding_window": None},
    "qwen2": {"head_dim": None, "sliding_window": 4096, "max_window_layers": 28},
    "qwen3": {"sliding_window": 4096, "max_window_layers": 28},
    "qwen3_moe": {"head_dim": None, "sliding_window": 4096, "decoder_sparse_step": 1},
    "gemma": {"tie_word_embeddings": True},
    "gemma2": {"tie_word_embeddings": True, "sliding_window": 4096, "sliding_window_pattern": 2},
    "gemma3_text": {
        "tie_word_embeddings": True,
        "sliding_window": 4096,
        "sliding_window_pattern": 6,
        "vocab_size": 262_208,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
    },
    "deepseek_v2": {"first_k_dense_replace": 0, "moe_layer_freq": 1, "n_shared_experts": 2},
    "deepseek_v3": {"first_k_dense_replace": 3, "moe_layer_freq": 1, "n_shared_experts": 1},
    "gpt_neox": {"attention_bias": True},
    "t5": {"tie_word_embeddings": True, "feed_forward_proj": "relu", "relative_attention_num_buckets": 32},
}
"""what transformers assumes for a model type where config.json is silent (its configuration classes, release 5)"""


@dataclass(frozen=True)
class Config:
    """The entries of one config.json, checked as they are read."""

    values: Mapping[str, Any]
    assumed: Mapping[str, Any]
    """entries that hold where `values` has none"""

    def get(self, *keys: str) -> Any:
        """The entry under the first of the keys that is there.

        Raises:
            ValueError: none is, and nothing is assumed.
        """
        for entries in (self.values, self.assumed):
            for key in keys:
                if key in entries:
                    return entries[key]
        raise ValueError(f"the key {' or '.join(keys)} is missing; add it, as transformers' own config.json has it")

    def size(self, *keys: str, at_least: int = 1) -> int:
        """A whole number.

        Raises:
            ValueError: the entry is missing, of another type or too small.
        """
        value = self.get(*keys)
        if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
            raise ValueError(f"{' or '.join(keys)} must be a whole number >= {at_least}, got {value!r}")
        return value

    def is_null(self, key: str) -> bool:
        """Whether an entry is null, or missing where null is assumed.

        Raises:
            ValueError: the entry is missing, and nothing is assumed.
        """
        return self.get(key) is None

    def flag(self, key: str) -> bool:
        """True or false; false where the entry is missing and nothing is assumed.

        Raises:
            ValueError: the entry is of another type.
        """
        value = self.values.get(key, self.assumed.get(key, False))
        if not isinstance(value, bool):
            raise ValueError(f"{key} must be true or false, got {value!r}")
        return value


def read_config(config: str | Path | Mapping[str, Any]) -> Architecture:
    """The shape that a transformers config.json describes.

    Model types: those of `ASSUMED`, and what nests one of them under `text_config`, of which the text part is read.

    Args:
        config: the path of the file or of the folder that holds it, or its content.

    Raises:
        ValueError: the file is missing or no JSON object, its model type is none of these, or an entry is missing or
            of the wrong type; the message names the file and the key.
    """
    if isinstance(config, Mapping):
        values, source, name = config, "config", ""
    else:
        path = Path(config) / "config.json" if Path(config).is_dir() else Path(config)
        values, source = _load(path), str(path)
        name = path.resolve().parent.name if path.name == "config.json" else path.stem
    try:
        return _architecture(values, source, name)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def _load(path: Path) -> Mapping[str, Any]:
    """The JSON object in a file."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: not a readable config.json: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: must hold a JSON object, got {type(values).__name__}")
    return values


def _architecture(values: Mapping[str, Any], source: str, name: str) -> Architecture:
    """The shape that entries describe."""
    name = name or str(values.get("_name_or_path") or values.get("model_type", ""))
    text = values.get("text_config")
    if isinstance(text, Mapping):
        outside = {key: values[key] for key in ("tie_word_embeddings",) if key in values}
        values = outside | dict(text)
    kind = Config(values, {}).get("model_type")
    if not isinstance(kind, str) or kind not in ASSUMED:
        raise ValueError(
            f"model_type must be one of {', '.join(ASSUMED)}, got {kind!r}; name the one with the same layers, or "
            "build a sim.architectures.Architecture"
        )
    entries = Config(values, ASSUMED[kind])
    return _t5(entries, source, name) if kind == "t5" else _decoder(entries, kind, source, name)


def _decoder(config: Config, kind: str, source: str, name: str) -> Architecture:
    """A decoder of any known type."""
    hidden, layers, heads = (config.size(key) for key in ("hidden_size", "num_hidden_layers", "num_attention_heads"))
    mla = _latent(config) if kind.startswith("deepseek") else None
    neox = kind == "gpt_neox"
    kv_heads = heads if mla or neox or config.is_null("num_key_value_heads") else config.size("num_key_value_heads")
    if mla:
        head_dim = mla.nope_dim + mla.rope_dim
    elif not neox and not config.is_null("head_dim"):
        head_dim = config.size("head_dim")
    elif hidden % heads:
        raise ValueError(f"hidden_size must be a multiple of num_attention_heads, got {hidden} and {heads}")
    else:
        head_dim = hidden // heads
    window_tokens, window_layers = _windows(config, kind, layers)
    biased = kind not in ("mistral", "mixtral", "qwen2") and config.flag("attention_bias")
    return Architecture(
        name,
        source,
        hidden,
        layers,
        heads,
        kv_heads,
        head_dim,
        config.size("intermediate_size"),
        config.size("vocab_size"),
        gated_mlp=not neox,
        tied_embeddings=config.flag("tie_word_embeddings"),
        qkv_bias=biased or kind == "qwen2",
        output_bias=biased,
        mlp_bias=neox or (kind == "llama" and config.flag("mlp_bias")),
        qk_norm=kind in ("qwen3", "qwen3_moe", "gemma3_text"),
        norms_per_layer=4 if kind in ("gemma2", "gemma3_text") else 2,
        norm_bias=neox,
        window_tokens=window_tokens,
        window_layers=window_layers,
        moe=_experts(config, kind, layers),
        mla=mla,
    )


def _latent(config: Config) -> LatentAttention:
    """The latent attention of a DeepSeek."""
    rope, nope, v_dim = (config.size(key) for key in ("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"))
    q_rank = None if config.is_null("q_lora_rank") else config.size("q_lora_rank")
    return LatentAttention(config.size("kv_lora_rank"), q_rank, rope, nope, v_dim)


def _experts(config: Config, kind: str, layers: int) -> MixtureOfExperts | None:
    """The experts, with the number of layers that have none."""
    if kind == "mixtral":
        experts = config.size("num_local_experts", "num_experts")
        return MixtureOfExperts(experts, config.size("num_experts_per_tok"), config.size("intermediate_size"))
    if kind == "qwen3_moe":
        step, without = config.size("decoder_sparse_step"), config.values.get("mlp_only_layers") or []
        if not isinstance(without, list):
            raise ValueError(f"mlp_only_layers must be a list of layer numbers, got {without!r}")
        dense = sum(i in without or (i + 1) % step != 0 for i in range(layers))
        experts, wide = config.size("num_experts", "num_local_experts"), config.size("moe_intermediate_size")
        return MixtureOfExperts(experts, config.size("num_experts_per_tok"), wide, dense_layers=dense)
    if not kind.startswith("deepseek"):
        return None
    first, step = config.size("first_k_dense_replace", at_least=0), config.size("moe_layer_freq")
    shared = 0 if config.is_null("n_shared_experts") else config.size("n_shared_experts", at_least=0)
    wide = config.size("moe_intermediate_size")
    return MixtureOfExperts(
        config.size("n_routed_experts"),
        config.size("num_experts_per_tok"),
        wide,
        shared_experts=shared,
        shared_intermediate=wide if shared else 0,
        dense_layers=sum(i < first or i % step != 0 for i in range(layers)),
    )


def _windows(config: Config, kind: str, layers: int) -> tuple[int | None, int]:
    """The tokens of the sliding window, and the layers that have it."""
    switched = kind in ("qwen2", "qwen3", "qwen3_moe")
    windowless = not switched and kind not in ("mistral", "mixtral", "gemma2", "gemma3_text")
    if windowless or (switched and not config.flag("use_sliding_window")) or config.is_null("sliding_window"):
        return None, 0
    types = config.values.get("layer_types")
    if types is not None:
        known = ("sliding_attention", "full_attention")
        if not isinstance(types, list) or len(types) != layers or any(kind not in known for kind in types):
            raise ValueError(f"layer_types must name sliding_attention or full_attention for each of {layers} layers")
        windowed = types.count("sliding_attention")
    elif kind in ("qwen2", "qwen3"):
        windowed = max(0, layers - config.size("max_window_layers", at_least=0))
    elif kind.startswith("gemma"):
        windowed = layers - layers // config.size("sliding_window_pattern")
    else:
        windowed = layers
    return config.size("sliding_window"), windowed


def _t5(config: Config, source: str, name: str) -> Architecture:
    """A T5 of either version."""
    layers, heads, activation = config.size("num_layers"), config.size("num_heads"), config.get("feed_forward_proj")
    decoder = config.size("num_decoder_layers") if config.values.get("num_decoder_layers") is not None else layers
    if not isinstance(activation, str):
        raise ValueError(f"feed_forward_proj must be text such as 'relu' or 'gated-gelu', got {activation!r}")
    return Architecture(
        name,
        source,
        config.size("d_model"),
        decoder,
        heads,
        heads,
        config.size("d_kv"),
        config.size("d_ff"),
        config.size("vocab_size"),
        gated_mlp=activation.startswith("gated"),
        tied_embeddings=config.flag("tie_word_embeddings"),
        norms_per_layer=3,
        encoder_layers=layers,
        position_buckets=config.size("relative_attention_num_buckets"),
    )
