"""What a plan needs of memory, and the batch that memory allows; what its tokens cost."""

from __future__ import annotations

from dataclasses import dataclass

from analysis.plan import Choice
from sim.architectures.catalogue import find_architecture
from sim.hardware import DTYPE_BYTES, find_device
from sim.serving.memory import Memory, room_for_tokens


@dataclass(frozen=True)
class Room:
    """The memory of one server, all devices together, in bytes."""

    memory: Memory
    weight_bytes: float
    draft_weight_bytes: float
    kv_bytes_per_token: float
    """copies on devices that share a model with fewer KV heads included"""
    draft_kv_bytes_per_token: float
    usable_bytes: float

    def needed_bytes(self, batch: int, tokens: int) -> dict[str, float]:
        """What a batch needs whose requests hold so many tokens each, drafted ones included."""
        parts = {
            "weight_bytes": self.weight_bytes,
            "draft_weight_bytes": self.draft_weight_bytes,
            "kv_bytes": batch * tokens * self.kv_bytes_per_token,
            "draft_kv_bytes": batch * tokens * self.draft_kv_bytes_per_token,
        }
        return {"needed_bytes": sum(parts.values()), "usable_bytes": self.usable_bytes, **parts}

    def cache_tokens(self, drafts: bool = True) -> int:
        """Tokens of cache that fit beside the weights; without the draft's, where it is left out.

        Raises:
            ValueError: the weights leave no room.
        """
        return room_for_tokens(self.memory, drafts)

    def most_batch(self, tokens: int, drafts: bool = True) -> int:
        """Requests of so many tokens each that fit, in whole blocks of the cache; see `cache_tokens`."""
        block = self.memory.block_tokens
        return self.cache_tokens(drafts) // block // -(-tokens // block)


def room(
    target: str, draft: str | None, device: str, devices: int, dtype: str, draft_dtype: str | None, kv_dtype: str
) -> Room:
    """The memory of a target and its draft on equal devices; `draft` None: it needs none.

    Raises:
        ValueError: a name is not known.
    """
    memory = Memory(
        device=device, devices=devices, target=target, draft=draft, dtype=dtype, draft_dtype=draft_dtype,
        kv_dtype=kv_dtype,
    )  # fmt: skip
    model, cached = find_architecture(target), DTYPE_BYTES[kv_dtype]
    small = None if draft is None else find_architecture(draft)
    return Room(
        memory,
        model.weight_bytes(DTYPE_BYTES[dtype]),
        0.0 if small is None else small.weight_bytes(DTYPE_BYTES[draft_dtype or dtype]),
        model.kv_bytes_per_token(cached, devices) * devices,
        0.0 if small is None else small.kv_bytes_per_token(cached),
        find_device(device).memory_bytes * devices * memory.utilisation,
    )


def price_per_million(choice: Choice, price_per_hour: float) -> dict[str, float]:
    """Money for a million output tokens at a price of all devices an hour, with the plan and without speculation.

    Decoding only: what prompts take is not in it.

    Raises:
        ValueError: the price is not above 0.
    """
    if not 0 < price_per_hour < float("inf"):
        raise ValueError(f"the price per hour must be finite and > 0, got {price_per_hour}")
    a_token = price_per_hour / 3600 / choice.batch * 1e6
    return {
        "per_million_tokens": a_token * choice.tpot_seconds,
        "baseline_per_million_tokens": a_token * choice.baseline_tpot_seconds,
    }
