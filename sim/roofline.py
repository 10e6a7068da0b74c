"""What one forward costs by a roofline: bytes over bandwidth against operations over peak, group by group of operators.

The work of a forward is counted by `sim.architectures`, the device's peaks are those of its datasheet
(`sim.hardware`), and how much of them each group reaches was fitted to a measured table (`analysis.fit.roofline`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from sim.architectures import Architecture, Work
from sim.architectures.catalogue import find_architecture
from sim.hardware import DTYPE_BYTES, Device, Link, check_fits, find_device
from sim.theory import FloatArray, check_cost

COMMITTED = Path(__file__).parent / "data" / "roofline_h100.json"


@dataclass(frozen=True)
class GroupEfficiency:
    """How much of a device one group of operators reaches."""

    memory: float
    """share of the memory bandwidth"""
    compute: float
    """share of the peak operations/s"""
    overlap: float
    """how far reading and arithmetic overlap: 1 is one after the other, large is the plain maximum"""
    kernel_seconds: float
    """that each kernel takes beside: launch, ramp and tail"""

    def __post_init__(self) -> None:
        for name in ("memory", "compute", "overlap"):
            if not 0 < getattr(self, name) < np.inf:
                raise ValueError(
                    f"{name} must be finite and > 0, got {getattr(self, name)}; a share of the peak is 0.8"
                )
        check_cost("kernel_seconds", self.kernel_seconds)


@dataclass(frozen=True)
class Efficiency:
    """How much of a device's peaks a serving engine reaches, one set for all models."""

    gemm: GroupEfficiency
    """also of the logits, one more matrix product"""
    moe: GroupEfficiency
    attention: GroupEfficiency
    other: GroupEfficiency
    link: float
    """share of the link's bandwidth that an all-reduce reaches"""
    all_reduce_seconds: float
    """that an all-reduce takes beside the link's"""
    routing: float
    """Zipf exponent of the experts' popularity in the table that the factors were fitted to"""
    fitted_on: str
    """device of that table"""
    assumed: bool = False
    """the factors stand for another device than they were fitted on"""

    def of(self, group: str) -> GroupEfficiency:
        """The factors of a group of `Architecture.work`."""
        match group:
            case "gemm" | "logits":
                return self.gemm
            case "moe":
                return self.moe
            case "attention":
                return self.attention
        return self.other


@lru_cache(maxsize=1)
def _committed() -> Efficiency:
    return efficiency_from_json(json.loads(COMMITTED.read_text())["efficiency"])


def efficiency_from_json(value: Mapping[str, Any]) -> Efficiency:
    """Build an `Efficiency` from its JSON form: its fields, the groups as objects.

    Raises:
        ValueError: a group is missing, or a factor is out of its range.
    """
    names = ("gemm", "moe", "attention", "other")
    missing = [name for name in names if name not in value]
    if missing:
        raise ValueError(f"an efficiency needs the groups {missing} too; copy {COMMITTED.name} and change it")
    groups = {name: GroupEfficiency(**value[name]) for name in names}
    return Efficiency(**{**value, **groups})


def fitted_efficiency(device: Device) -> Efficiency:
    """The committed factors, fitted on an H100 under vLLM; for any other device the same, with `assumed` set.

    They are those of kernels in CUDA graphs. `sim/data/README.md` gives their errors, and those on other devices.
    """
    return replace(_committed(), assumed=device.name != _committed().fitted_on)


def roof_seconds(work: Work, bandwidth: float, peak_flops: float, reached: GroupEfficiency) -> FloatArray:
    """Seconds of one group: (memory^overlap + arithmetic^overlap)^(1/overlap), and the kernels' own time.

    Args:
        work: of the group.
        bandwidth: bytes/s of the device.
        peak_flops: operations/s of the device.
        reached: the group's factors.
    """
    moved = work.weight_bytes + work.cache_bytes + work.activation_bytes
    reading = moved / (bandwidth * reached.memory)
    arithmetic = work.flops / (peak_flops * reached.compute)
    power = reached.overlap
    rounded: FloatArray = (reading**power + arithmetic**power) ** (1 / power)
    return rounded + work.operations * reached.kernel_seconds


def all_reduce_seconds(size_bytes: ArrayLike, devices: ArrayLike, device: Device, efficiency: Efficiency) -> FloatArray:
    """Seconds in which `devices` sum a vector of `size_bytes` that each holds.

    2 (devices - 1) / devices of the vector pass through each device (Patarasu and Yuan 2009), and two hops, out and
    back, are waited for: engines exchange short vectors at once instead of passing them around the ring.

    Raises:
        ValueError: the device has no link.
    """
    if device.link is None:
        raise ValueError(f"{device.name} has no link in its table; tensor_parallel must be 1")
    count, size = np.asarray(devices, dtype=np.float64)[()], np.asarray(size_bytes, dtype=np.float64)[()]
    carried = 2 * (count - 1) / count * size
    seconds: FloatArray = carried / (device.link.bandwidth * efficiency.link)
    return seconds + (efficiency.all_reduce_seconds + 2 * device.link.latency)


@dataclass(frozen=True, eq=False)
class RooflineLatency:
    """A LatencyModel from first principles: an architecture on a device, or on several that share each layer.

    Attention is priced for all new tokens: their operations grow, the cache is read once. The host's work between
    forwards is not in it.

    Raises:
        ValueError: a field is out of its range, memory can't hold the model, the device does not compute in the dtype,
            or heads do not divide by the devices.
    """

    architecture: Architecture
    device: Device
    dtype: str = "bf16"
    """of the weights, and of the arithmetic where `compute_dtype` is None"""
    compute_dtype: str | None = None
    """operands of the matrix products; None is `dtype`, or 16 bits for int4, which is unpacked first"""
    cache_dtype: str | None = None
    """of the KV cache; None is that of activations: 16 bits, or fp32 with fp32 weights"""
    tensor_parallel: int = 1
    cached_tokens: float = 0.0
    """tokens of KV cache that must fit in memory beside the weights"""
    efficiency: Efficiency | None = None
    """None takes `fitted_efficiency`"""
    routing: float | Sequence[float] | None = None
    """popularity of experts (`sim.architectures.routing`); None is that of the table that the factors were fitted to"""
    host_seconds_per_layer: float = 0.0
    """that a layer takes longer where the host launches kernels one by one (eager mode, no CUDA graph)"""
    reached: Efficiency = field(init=False, repr=False)
    """the factors in use"""
    _peaks: Mapping[str, float] = field(init=False, repr=False)
    """operations/s by group"""
    _bytes: Mapping[str, float] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_cost("host_seconds_per_layer", self.host_seconds_per_layer)
        if self.dtype not in DTYPE_BYTES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPE_BYTES)}, got {self.dtype!r}")
        half = "bf16" if "bf16" in self.device.flops else "fp16"
        activation = "fp32" if self.dtype in ("fp32", "tf32") else half
        cache = self.cache_dtype or activation
        if cache not in DTYPE_BYTES:
            raise ValueError(f"cache_dtype must be one of {', '.join(DTYPE_BYTES)}, got {cache!r}")
        products = self.device.peak_flops(self.compute_dtype or (half if self.dtype == "int4" else self.dtype))
        attention = self.device.peak_flops(activation)
        sizes = {"weight_bytes": self.dtype, "cache_bytes": cache, "activation_bytes": activation}
        efficiency = self.efficiency or fitted_efficiency(self.device)
        object.__setattr__(self, "reached", efficiency)
        object.__setattr__(self, "_bytes", {name: DTYPE_BYTES[dtype] for name, dtype in sizes.items()})
        peaks = {"gemm": products, "moe": products, "logits": products, "attention": attention, "other": attention}
        object.__setattr__(self, "_peaks", peaks)
        cached = self.cached_tokens * self.kv_bytes_per_token * self.tensor_parallel
        weights = self.architecture.weight_bytes(DTYPE_BYTES[self.dtype])
        check_fits(self.device, self.tensor_parallel, weights, cached)
        self.forward_seconds(1, 1, 0)  # what a forward would refuse is refused here, not in the middle of a simulation

    @property
    def kv_bytes_per_token(self) -> float:
        """Bytes that one token takes in the KV cache of each device."""
        return self.architecture.kv_bytes_per_token(self._bytes["cache_bytes"], self.tensor_parallel)

    def forward_seconds(self, batch: ArrayLike, new_tokens: ArrayLike, context: ArrayLike) -> FloatArray:
        """Seconds of one forward; see `sim.latency.LatencyModel`."""
        groups = self.group_seconds(batch, new_tokens, context)
        return sum(groups.values())  # type: ignore[return-value]  # never empty

    def group_seconds(self, batch: ArrayLike, new_tokens: ArrayLike, context: ArrayLike) -> dict[str, FloatArray]:
        """Seconds by group of operators; they add up to the forward's.

        Returns:
            gemm, moe (where there is one), logits, attention, other, and communication (0 on a single device).
        """
        routing = self.reached.routing if self.routing is None else self.routing
        work = self.architecture.work(
            batch, new_tokens, context, tensor_parallel=self.tensor_parallel, routing=routing, **self._bytes
        )
        bandwidth, reached, peaks = self.device.memory_bandwidth, self.reached, self._peaks
        seconds = {name: roof_seconds(part, bandwidth, peaks[name], reached.of(name)) for name, part in work.items()}
        seconds["other"] = seconds["other"] + self.architecture.layers * self.host_seconds_per_layer
        seconds["communication"] = self._communication_seconds(batch, new_tokens, seconds["other"])
        return seconds

    def _communication_seconds(self, batch: ArrayLike, new_tokens: ArrayLike, like: FloatArray) -> FloatArray:
        """All-reduces of the activations, in the shape of `like`.

        One follows each output projection and each MLP (Shoeybi et al. 2019, arXiv:1909.08053, section 3).
        """
        if self.tensor_parallel == 1:
            return like * 0.0
        tokens = np.asarray(batch, dtype=np.float64)[()] * np.asarray(new_tokens, dtype=np.float64)[()]
        size = tokens * (self.architecture.hidden * self._bytes["activation_bytes"])
        once = all_reduce_seconds(size, self.tensor_parallel, self.device, self.reached)
        per_layer = 3 if self.architecture.encoder_layers else 2
        return per_layer * self.architecture.layers * once + like * 0.0


def roofline_from_json(value: Mapping[str, Any]) -> RooflineLatency:
    """Build a roofline from its JSON form.

    `{"architecture": name or path of a config.json, "device": name, ...}`; other keys are `RooflineLatency`'s own.
    `device` may also be an object with the fields of `sim.hardware.Device`, and `efficiency` one with those of
    `Efficiency`.

    Raises:
        ValueError: a name is not known, or the model refuses its values.
    """
    fields = dict(value)
    device = fields.get("device")
    if "architecture" not in fields or not isinstance(device, str | Mapping):
        raise ValueError(f"a roofline needs an architecture and a device, by name, got {fields}")
    if isinstance(device, Mapping):
        link = device.get("link")
        fields["device"] = Device(**{**device, "link": Link(**link) if link else None})
    else:
        fields["device"] = find_device(device)
    fields["architecture"] = find_architecture(fields["architecture"])
    if "efficiency" in fields:
        fields["efficiency"] = efficiency_from_json(fields["efficiency"])
    return RooflineLatency(**fields)
