"""How many tokens of KV cache a server has room for: memory less weights, the draft's included."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sim.architectures.catalogue import find_architecture
from sim.hardware import DTYPE_BYTES, GIB, find_device
from sim.scenario_parts import build, field_names


@dataclass(frozen=True)
class Memory:
    """The KV memory of one server: `kv_tokens`, or what they follow from."""

    kv_tokens: int | None = None
    block_tokens: int = 16
    device: str | None = None
    gib: float | None = None
    """memory of one device, instead of its name"""
    devices: int = 1
    """that share the target (tensor parallel)"""
    utilisation: float = 0.9
    """share of the memory that weights and cache may fill; vLLM's default"""
    target: str | None = None
    """architecture, as the next"""
    draft: str | None = None
    dtype: str = "bf16"
    """of the weights"""
    draft_dtype: str | None = None
    """of the draft's weights; None: as the target's"""
    kv_dtype: str = "bf16"

    def __post_init__(self) -> None:
        if self.kv_tokens is None and (self.target is None or (self.device is None) == (self.gib is None)):
            raise ValueError("memory needs kv_tokens, or target and either device or gib; see sim/scenarios")
        if not 0 < self.utilisation <= 1 or self.devices < 1:
            raise ValueError(
                f"memory needs devices >= 1 and 0 < utilisation <= 1, got {self.devices} and {self.utilisation}"
            )
        for name in ("dtype", "draft_dtype", "kv_dtype"):
            value = getattr(self, name)
            if value is not None and value not in DTYPE_BYTES:
                raise ValueError(f"memory {name} must be one of {', '.join(DTYPE_BYTES)}, got {value!r}")

    @property
    def device_bytes(self) -> float:
        """Memory of one device."""
        return find_device(str(self.device)).memory_bytes if self.gib is None else self.gib * GIB


def kv_tokens_from_json(value: Any, latency: Mapping[str, Any], drafts: bool) -> tuple[int | None, int]:
    """Tokens of KV memory, None for no limit, and tokens of a block.

    Args:
        value: the fields of `Memory`, or None for no limit. What a roofline latency says holds where they are left out.
        latency: the scenario's latency mappings.
        drafts: whether the draft's weights and cache are in memory.

    Raises:
        ValueError: a key is unknown or missing, a value is out of range, or the weights leave no room.
    """
    if value is None:
        return None, Memory.block_tokens
    if not isinstance(value, Mapping):
        raise ValueError(f"memory must be a mapping, got {value!r}")
    if value.get("kv_tokens") is not None:
        beside = sorted(set(value) & field_names(Memory) - {"kv_tokens", "block_tokens"})
        if beside:
            raise ValueError(f"memory has kv_tokens, so leave out what they would follow from: {', '.join(beside)}")
        memory = build("memory", Memory, value)
        return memory.kv_tokens, memory.block_tokens
    known = roofline_memory(latency)
    if {"device", "gib"} & set(value):
        known = {key: entry for key, entry in known.items() if key not in ("device", "gib")}
    memory = build("memory", Memory, known | dict(value))
    return room_for_tokens(memory, drafts), memory.block_tokens


def roofline_memory(latency: Mapping[str, Any]) -> dict[str, Any]:
    """What roofline latencies say of memory: fields of `Memory`. A draft behind a link has a memory of its own."""
    target, draft = latency["target"], latency.get("draft") or {}
    known: dict[str, Any] = {}
    if target.get("kind") == "roofline":
        keys = {"architecture": "target", "device": "device", "tensor_parallel": "devices"}
        keys |= {"dtype": "dtype", "cache_dtype": "kv_dtype"}
        known |= {keys[key]: target[key] for key in keys if target.get(key) is not None}
        if isinstance(target["device"], Mapping):
            known |= {"device": None, "gib": target["device"]["memory_bytes"] / GIB}
    if draft.get("kind") == "roofline" and latency.get("link") is None:
        known |= {"draft": draft.get("architecture"), "draft_dtype": draft.get("dtype", "bf16")}
    return known


def room_for_tokens(memory: Memory, drafts: bool) -> int:
    """Tokens of KV cache that fit beside the weights.

    Devices that share a model with fewer KV heads hold copies of them (`sim.architectures.shard.shard`), which are
    counted; a draft's cache is counted once.

    Raises:
        ValueError: there is room for less than a block.
    """
    target, cached_bytes = find_architecture(str(memory.target)), DTYPE_BYTES[memory.kv_dtype]
    names = [target.name]
    weights = target.weight_bytes(DTYPE_BYTES[memory.dtype])
    token_bytes = target.kv_bytes_per_token(cached_bytes, memory.devices) * memory.devices
    if drafts and memory.draft is not None:
        draft = find_architecture(memory.draft)
        names.append(draft.name)
        weights += draft.weight_bytes(DTYPE_BYTES[memory.draft_dtype or memory.dtype])
        token_bytes += draft.kv_bytes_per_token(cached_bytes)
    tokens = int((memory.device_bytes * memory.devices * memory.utilisation - weights) // token_bytes)
    if tokens < memory.block_tokens:
        raise ValueError(
            f"memory cannot hold {' and '.join(names)}: {weights / GIB:.1f} GiB of weights leave no room for a KV "
            f"cache in {memory.utilisation:.0%} of {memory.devices} x {memory.device_bytes / GIB:.0f} GiB; take more "
            "devices, or a smaller dtype"
        )
    return tokens
