"""Every choice that depends on the device, in one place: names, dtypes, matrix kernels, free memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor


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


def has_int8_kernel(device: torch.device) -> bool:
    """Whether products with int8 weights are faster than with the target's own.

    torch 2.13 has `_weight_int8pack_mm` for CUDA too, but widens everything to float32 there and is no fast kernel.
    """
    return device.type == "cpu"


def compile_mode(device: torch.device) -> str:
    """torch.compile's mode: CUDA graphs on a GPU, plain kernels on a CPU.

    Raises:
        ValueError: what compiles for the device is missing.
    """
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        if not has_triton():
            raise ValueError("--compile on a GPU needs triton, which is not usable here; leave --compile out")
        return "reduce-overhead"
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise ValueError(
            "--compile on a CPU needs a C++ compiler, there is none here; install g++, or leave --compile out"
        ) from error
    return "default"


def begin_replay(device: torch.device) -> None:
    """Tell torch that outputs of compiled forwards so far are read no more; only CUDA graphs ask for it."""
    if device.type == "cuda":
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]  # torch leaves it untyped


def warms_up(device: torch.device) -> bool:
    """Whether the first run of every shape is slow: kernels are loaded and chosen then."""
    return device.type == "cuda"


def to_device(numbers: Sequence[int], device: torch.device) -> Tensor:
    """[n] int64 from the host, without waiting for the device: `torch.tensor(numbers, device=...)` would wait."""
    return torch.tensor(numbers, dtype=torch.long).to(device, non_blocking=True)


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
