"""Whether models fit a device, said before anything is loaded: from weight files and configurations alone."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import torch

from real.devices import check_memory, default_dtype
from real.loading import DRAFT_NAMES, EMBEDDED, check_reachable, offline
from real.tensor_parallel import world

FUSED = 0.75
"""share of a Llama's weights, at most, in the projections that `LlamaDecoder` fuses: query, key, value, gate and up"""


def check_fits(
    target: str,
    drafts: Sequence[str] | None,
    device: torch.device,
    dtype: torch.dtype | None,
    *,
    batch: int = 1,
    tokens: int = 0,
    caches: int = 1,
) -> None:
    """Refuse models that the device has no memory for, before anything is loaded.

    Sizes are read from weight files and configurations, local or listed by the hub; what tells nothing is let pass.
    Counted are weights, the copies in which projections are fused while the originals are still held, an int8 copy,
    keys and values, and a tenth of it all, with a gibibyte on a GPU, for activations.

    Args:
        drafts: names; one that runs no model of its own adds nothing.
        batch: rows decoded together.
        tokens: prompt and output of a row.
        caches: generations of the target that are under way at once, each with keys and values of its own.

    Raises:
        ValueError: with what is needed, what is free, and what to do; or a hub id that the hub does not answer for.
    """
    width = (dtype or default_dtype(device)).itemsize
    check_reachable(target)
    models = [name for name in dict.fromkeys(map(_behind_lookup, drafts or ())) if _has_own_weights(name)]
    for name in models:
        check_reachable(name)
    weights = {name: weight_parameters(name) * width for name in models}
    kv = sum(kv_numbers_per_token(name) * width for name in models)
    if target != EMBEDDED:
        weights["the target"] = weight_parameters(target) * width // world()[1]
        kv += kv_numbers_per_token(target) * width * caches // world()[1]
        if any(_behind_lookup(name).startswith("int8") for name in drafts or ()):
            weights["int8"] = weights["the target"] // width
    needed = sum(weights.values()) + int(FUSED * max(weights.values(), default=0))
    if needed:
        needed += kv * batch * tokens
        needed += needed // 10 + (2**30 if device.type == "cuda" else 0)
        check_memory(needed, device, " and ".join((target, *models)))


def _behind_lookup(name: str) -> str:
    """The draft behind a lookup in a name like `suffix+NAME`."""
    lookup, plus, behind = name.partition("+")
    return behind if plus and lookup in ("suffix", "prompt-lookup") else name


def _has_own_weights(draft: str) -> bool:
    return draft.partition(":")[0] not in (*DRAFT_NAMES, "distilled", EMBEDDED)


def weight_parameters(name: str) -> int:
    """Parameters of a local folder's or a hub model's safetensors files; 0 where they cannot be read."""
    from huggingface_hub import get_safetensors_metadata
    from safetensors import safe_open

    folder = Path(name)
    if not folder.is_dir():
        try:
            return sum(get_safetensors_metadata(name).parameter_count.values())
        except Exception:  # no network, no such model: loading says so better
            folder = _config_file(name).parent
    total = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as weights:
            total += sum(math.prod(weights.get_slice(key).get_shape()) for key in weights.keys())  # noqa: SIM118
    return total


def kv_numbers_per_token(name: str) -> int:
    """Numbers that a token takes in the cache, all layers together; 0 where the configuration cannot be read.

    layers x kv_heads x 2 head_dim, or, where attention caches a latent, layers x (kv_lora_rank + qk_rope_head_dim).
    """
    try:
        config = json.loads(_config_file(name).read_text())
        config = config.get("text_config", config)
        layers, heads = config["num_hidden_layers"], config["num_attention_heads"]
        if config.get("kv_lora_rank"):
            return int(layers * (config["kv_lora_rank"] + config["qk_rope_head_dim"]))
        head = config.get("head_dim") or config["hidden_size"] // heads
        return int(layers * (config.get("num_key_value_heads") or heads) * 2 * head)
    except (OSError, ValueError, KeyError):
        return 0


def _config_file(name: str) -> Path:
    """A model's config.json, local, in the hub's cache, or fetched into it; a path that does not exist if nowhere."""
    from huggingface_hub import hf_hub_download

    if Path(name).is_dir():
        return Path(name) / "config.json"
    try:
        return Path(hf_hub_download(name, "config.json", etag_timeout=5, local_files_only=offline()))
    except Exception:  # as above
        return Path(name) / "config.json"
