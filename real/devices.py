"""Every choice that depends on the device, in one place: names, dtypes, matrix kernels, free memory."""

from __future__ import annotations

from pathlib import Path

import torch


def parse_device(name: str) -> torch.device:
    """A device by name.

    Raises:
        ValueError: there is no such device here.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"unknown device '{name}'; use cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device '{name}' asked for, but torch sees no CUDA device here; use --device cpu")
    return device


def parse_dtype(name: str | None) -> torch.dtype | None:
    """A float dtype by name, None for None.

    Raises:
        ValueError: the name is none of them.
    """
    if name is None:
        return None
    if name not in ("float32", "bfloat16", "float16", "float64"):
        raise ValueError(f"dtype must be float32, bfloat16, float16 or float64, got '{name}'")
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def default_dtype(device: torch.device) -> torch.dtype:
    """float32 on a CPU, bfloat16 on a GPU."""
    return torch.float32 if device.type == "cpu" else torch.bfloat16


def packs_weights(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether products of few rows go through oneDNN with weights packed once; elsewhere torch's own are as fast."""
    return (
        device.type == "cpu" and dtype in (torch.float32, torch.bfloat16) and bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]  # torch leaves it untyped
    )


def head_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """Of a draft head's weights: bfloat16 where the CPU multiplies it natively, else as the target."""
    if device.type == "cpu" and dtype == torch.float32 and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        return torch.bfloat16
    return dtype


def free_bytes(device: torch.device) -> int:
    """Memory that a new model can take: free on a GPU, available on the host for a CPU.

    Raises:
        ValueError: the host does not tell.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration) as error:
        raise ValueError("this host does not tell how much memory is available") from error


def check_memory(needed_bytes: int, device: torch.device, what: str) -> None:
    """Refuse to load what does not fit.

    Raises:
        ValueError: with how much is missing and what to do.
    """
    free = free_bytes(device)
    if needed_bytes > free:
        raise ValueError(
            f"{what} needs about {needed_bytes / 2**30:.1f} GiB on {device}, {free / 2**30:.1f} GiB are free; "
            "name smaller models with --target and --draft, a shorter --max-new-tokens or a smaller --batch, "
            "a narrower --dtype, or split the target over several devices with torchrun"
        )
