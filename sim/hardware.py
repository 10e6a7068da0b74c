"""Devices that models run on: peak operations by dtype, memory and links, each from a public table.

Peaks are dense: where a datasheet prints only the figure with structured sparsity, half of it stands here. Memory is
sold in binary gigabytes (a "24 GB" card holds 24 * 2^30 bytes), bandwidth in decimal ones.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches

from numpy.typing import ArrayLike

from sim.theory import FloatArray, check_cost

GIGA, TERA, GIB = 1e9, 1e12, 2.0**30

DTYPE_BYTES: Mapping[str, float] = {
    "fp32": 4.0, "tf32": 4.0, "fp16": 2.0, "bf16": 2.0, "fp8": 1.0, "int8": 1.0, "fp4": 0.5, "int4": 0.5,
}  # fmt: skip
"""Bytes that a number takes in memory; the scales of quantised blocks are not counted."""


@dataclass(frozen=True)
class Link:
    """What joins the devices of one machine."""

    bandwidth: float
    """bytes/s that one device sends, and at the same time receives, over all its lanes"""
    latency: float
    """seconds that one hop takes, whatever it carries"""

    def seconds(self, size_bytes: ArrayLike) -> FloatArray:
        """Seconds that one hop takes to move `size_bytes`."""
        return self.latency + check_cost("size_bytes", size_bytes) / self.bandwidth


# A hop's latency is that of NCCL's tuning model (src/graph/tuning.cc, hwLat of the ring with LL): 0.6 us over NVLink,
# 1 us over PCIe; RCCL's (the same file, tuning_model_0) has 0.8 us for Infinity Fabric. TPU: about 1 us (Austin et al.
# 2025, "How to Scale Your Model", chapter 3). PCIe 4.0 x16: 32 GB/s in each direction, half of the 64 GB/s printed.
NVLINK_HOP, PCIE_HOP, INFINITY_FABRIC_HOP, ICI_HOP = 0.6e-6, 1.0e-6, 0.8e-6, 1.0e-6
PCIE_4_X16 = Link(32 * GIGA, PCIE_HOP)


@dataclass(frozen=True)
class Device:
    """One accelerator, or one CPU socket."""

    name: str
    flops: Mapping[str, float]
    """dense operations/s by dtype of the operands, a multiply-add being 2"""
    memory_bandwidth: float
    """bytes/s"""
    memory_bytes: float
    link: Link | None
    """to its neighbours in the machine; None where the table names none"""
    source: str
    """the public table that the numbers are from"""

    def peak_flops(self, dtype: str) -> float:
        """Dense operations/s for operands of a dtype.

        Raises:
            ValueError: the device has no units for it.
        """
        if dtype not in self.flops:
            raise ValueError(
                f"{self.name} computes in {', '.join(self.flops)}, not in {dtype!r}; "
                "weights that are unpacked first take a compute_dtype among those"
            )
        return self.flops[dtype]


def _tera(**flops: float) -> Mapping[str, float]:
    return {dtype: value * TERA for dtype, value in flops.items()}


HOPPER = _tera(fp32=66.9, tf32=494.7, fp16=989.4, bf16=989.4, fp8=1978.9, int8=1978.9)
AMPERE = _tera(fp32=19.5, tf32=156, fp16=312, bf16=312, int8=624)
A100_SOURCE = "NVIDIA A100 Tensor Core GPU datasheet (2021), table of specifications, column A100 {} SXM"

DEVICES: Mapping[str, Device] = {
    device.name: device
    for device in (
        Device(
            "v100",
            _tera(fp32=15.7, fp16=125),
            900 * GIGA,
            32 * GIB,
            Link(150 * GIGA, NVLINK_HOP),
            "NVIDIA V100 Tensor Core GPU datasheet (2020), column V100 SXM2; 32 GB",
        ),
        Device(
            "a100",
            AMPERE,
            2039 * GIGA,
            80 * GIB,
            Link(300 * GIGA, NVLINK_HOP),
            A100_SOURCE.format("80GB"),
        ),
        Device(
            "a100-40gb",
            AMPERE,
            1555 * GIGA,
            40 * GIB,
            Link(300 * GIGA, NVLINK_HOP),
            A100_SOURCE.format("40GB"),
        ),
        Device(
            "l4",
            _tera(fp32=30.3, tf32=60, fp16=121, bf16=121, fp8=242.5, int8=242.5),
            300 * GIGA,
            24 * GIB,
            PCIE_4_X16,
            "NVIDIA L4 Tensor Core GPU datasheet (2023), specifications; tensor peaks are printed with sparsity",
        ),
        Device(
            "l40",
            _tera(fp32=90.5, tf32=90.5, fp16=181.05, bf16=181.05, fp8=362, int8=362),
            864 * GIGA,
            48 * GIB,
            PCIE_4_X16,
            "NVIDIA L40 GPU datasheet (2023), specifications; both peaks are printed",
        ),
        Device(
            "l40s",
            _tera(fp32=91.6, tf32=183, fp16=362.05, bf16=362.05, fp8=733, int8=733),
            864 * GIGA,
            48 * GIB,
            PCIE_4_X16,
            "NVIDIA L40S GPU datasheet (2023), specifications; both peaks are printed",
        ),
        Device(
            "h100",
            HOPPER,
            3350 * GIGA,
            80 * GIB,
            Link(450 * GIGA, NVLINK_HOP),
            "NVIDIA H100 Tensor Core GPU Architecture whitepaper (v1.04), appendix table of H100 SXM5; "
            "bandwidth: H100 datasheet, column H100 SXM",
        ),
        Device(
            "h200",
            HOPPER,
            4800 * GIGA,
            141 * GIB,
            Link(450 * GIGA, NVLINK_HOP),
            "NVIDIA H200 Tensor Core GPU datasheet (2024), column H200 SXM; peaks as H100 SXM5",
        ),
        Device(
            "b200",
            _tera(fp32=75, tf32=1100, fp16=2250, bf16=2250, fp8=4500, int8=4500, fp4=9000),
            7700 * GIGA,
            180 * GIB,
            Link(900 * GIGA, NVLINK_HOP),
            "NVIDIA Blackwell datasheet (2025), individual GPU of HGX B200; tensor peaks are printed with sparsity",
        ),
        Device(
            "mi300x",
            _tera(fp32=163.4, tf32=653.7, fp16=1307.4, bf16=1307.4, fp8=2614.9, int8=2614.9),
            5300 * GIGA,
            192 * GIB,
            Link(7 * 64 * GIGA, INFINITY_FABRIC_HOP),
            "AMD Instinct MI300X accelerator data sheet (2023), peak performance; 7 links of 128 GB/s both ways",
        ),
        Device(
            "rtx-4090",
            _tera(fp32=82.6, tf32=82.6, fp16=165.2, bf16=165.2, fp8=330.3, int8=660.6),
            1008 * GIGA,
            24 * GIB,
            PCIE_4_X16,
            "NVIDIA Ada GPU Architecture whitepaper (2022), appendix A, GeForce RTX 4090; sums in fp32",
        ),
        Device(
            "tpu-v4",
            _tera(bf16=275, int8=275),
            1200 * GIGA,
            32 * GIB,
            Link(6 * 50 * GIGA, ICI_HOP),
            "Jouppi et al. 2023, TPU v4 (arXiv:2304.01433), table 4: 6 ICI links of 50 GB/s",
        ),
        Device(
            # 56 cores at the base clock of 2.0 GHz, each 1024 bf16 or 2048 int8 operations a cycle in AMX, and 64
            # fp32 in two AVX-512 units; 8 channels * 4800 MT/s * 8 bytes; one 64 GB module a channel
            "xeon-8480",
            _tera(fp32=56 * 2.0e-3 * 64, bf16=56 * 2.0e-3 * 1024, int8=56 * 2.0e-3 * 2048),
            8 * 4.8 * 8 * GIGA,
            8 * 64 * GIB,
            None,
            "Intel Xeon Platinum 8480+ product specifications; Intel 64 and IA-32 Optimization Reference Manual, "
            "chapter on AMX, peak operations per cycle",
        ),
    )
}


MAKER_AND_FORM = re.compile(r"nvidia|amd|intel|geforce|instinct|tesla|platinum|tensor|core|gpu|sxm\d?|oam|hbm\d\w?")
"""words that tell no two known devices apart"""
SIZE = re.compile(r"(\d+) ?gi?b")


def find_device(name: str) -> Device:
    """The device of a name, or of what its driver or a cloud calls it: `NVIDIA H100 80GB HBM3` is `h100`.

    Maker, series, socket and kind of memory may be in the name or not; a size of memory must be the device's. Another
    card of the same chip is not taken for it: an H100 PCIe is slower than the SXM one that is known.

    Raises:
        ValueError: there is none; the message names near matches, and all.
    """
    key = name.strip().lower()
    sizes = {int(size) for size in SIZE.findall(key)}
    words = [word for word in re.findall(r"[a-z0-9]+", SIZE.sub(" ", key)) if not MAKER_AND_FORM.fullmatch(word)]
    for device in DEVICES.values():
        bare = re.sub(r"[^a-z0-9]", "", SIZE.sub("", device.name))
        if "".join(words) == bare and sizes <= {round(device.memory_bytes / GIB)}:
            return device
    near = get_close_matches(key, DEVICES, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? Known are" if near else "known are"
    raise ValueError(
        f"no device named {name!r}; {hint} {', '.join(DEVICES)}; a slower card of a known chip is not it: give "
        "measured latencies for any other"
    )


def check_fits(device: Device, tensor_parallel: int, weight_bytes: float, kv_bytes: float = 0.0) -> None:
    """Refuse a model that the devices' memory cannot hold.

    Args:
        device: one of `tensor_parallel` equal devices that share the model evenly.
        tensor_parallel: how many.
        weight_bytes: of all devices together.
        kv_bytes: KV cache of all devices together.

    Raises:
        ValueError: naming what is needed and what is there, in GiB on each device.
    """
    if tensor_parallel < 1:
        raise ValueError(f"tensor_parallel must be >= 1, got {tensor_parallel}; 1 is a single device")
    need = (weight_bytes + kv_bytes) / tensor_parallel
    if not need <= device.memory_bytes:
        raise ValueError(
            f"{device.name} holds {device.memory_bytes / GIB:.1f} GiB, but each of {tensor_parallel} needs "
            f"{need / GIB:.1f} GiB (weights {weight_bytes / tensor_parallel / GIB:.1f}, KV cache "
            f"{kv_bytes / tensor_parallel / GIB:.1f}); raise tensor_parallel, quantise, or cache fewer tokens"
        )
