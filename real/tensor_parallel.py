"""Targets that outgrow one device: one process a device, started by torchrun, each holding a slice of every matrix.

The slicing is transformers' own, by the plan that a model's configuration carries (Shoeybi et al. 2019,
arXiv:1909.08053). Every process runs the same loop over the same tokens. They stay together because all randomness is
seeded and rank 0's logits are everyone's: a reduction may round differently from rank to rank, and one token apart the
processes would wait for each other for ever.
"""

from __future__ import annotations

import atexit
import os
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

TIMEOUT = timedelta(hours=2)
"""How long a process waits for the others; reading a large model takes ranks tens of minutes, and not the same."""


def world() -> tuple[int, int]:
    """This process's rank and the number of processes, as torchrun tells; (0, 1) where it was not started by torchrun.

    Raises:
        ValueError: the environment names one of the two only, or no such rank.
    """
    rank, size = os.environ.get("RANK"), os.environ.get("WORLD_SIZE")
    if rank is None and size is None:
        return 0, 1
    try:
        numbers = int(rank or ""), int(size or "")
    except ValueError as error:
        raise ValueError(
            f"RANK={rank} and WORLD_SIZE={size} in the environment must both be numbers; start with torchrun, "
            "or unset both"
        ) from error
    if not 0 <= numbers[0] < numbers[1]:
        raise ValueError(f"RANK must be in 0 to WORLD_SIZE - 1, got RANK={rank} and WORLD_SIZE={size}")
    return numbers


def start(device: torch.device) -> torch.device:
    """Join the process group, over NCCL on GPUs and Gloo on CPUs; it is left when the process ends.

    Args:
        device: `cpu`, or `cuda` without a number.

    Returns:
        This process's own device: `cpu`, or `cuda:LOCAL_RANK`.

    Raises:
        ValueError: the device is not the one that transformers shards over here.
    """
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    here = accelerator.type if accelerator else "cpu"
    if device.type != here:
        hide = ", or hide the accelerator with CUDA_VISIBLE_DEVICES=''" if device.type == "cpu" else ""
        raise ValueError(
            f"transformers splits models over {here} on this machine, got --device {device}; use --device {here}{hide}"
        )
    if device.index is not None:
        raise ValueError(f"each process takes a device of its own, got --device {device}; use --device {device.type}")
    if device.type == "cuda":
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if local >= torch.cuda.device_count():
            raise ValueError(
                f"process {local} of this machine has no GPU, there are {torch.cuda.device_count()}; "
                f"use torchrun --nproc-per-node {torch.cuda.device_count()} or fewer"
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            timeout=TIMEOUT,
            device_id=device if device.type == "cuda" else None,
        )
        atexit.register(dist.destroy_process_group)
    return device


def load_sharded(folder: str, dtype: torch.dtype, device: torch.device) -> Any:
    """Load this process's part of a model; run it with `TransformersDecoder`, in every process alike.

    Keys and values of the cache are split as the heads are. What a model's plan leaves out is whole in every process:
    attention, and so the cache, of DeepSeek-V3, whose latent belongs to no head.

    Args:
        folder: a local folder or a hub id.
        dtype: of the weights.
        device: `cpu`, or `cuda` without a number.

    Returns:
        A causal LM of transformers, on the device that `start` gives this process.

    Raises:
        ValueError: not started by torchrun, the model cannot be split among so many processes, or it is missing or
            damaged.
    """
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    _, size = world()
    if size == 1:
        raise ValueError("a model is split among several processes; start them with torchrun --nproc-per-node N")
    try:
        from transformers.distributed import DistributedConfig

        distributed = DistributedConfig(tp_size=size)
    except (ImportError, TypeError) as error:
        raise ValueError(
            "this transformers has no DistributedConfig(tp_size=...); install transformers 5.23"
        ) from error
    try:
        config = AutoConfig.from_pretrained(folder)
    except Exception as error:  # transformers and the hub client raise many kinds
        raise ValueError(f"cannot load the model '{folder}': {str(error).splitlines()[0]}") from error
    check_shardable(folder, config, size)
    start(device)
    logging.disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, distributed_config=distributed)
    except Exception as error:  # as above, and safetensors
        raise ValueError(f"cannot load the model '{folder}' in {size} parts: {str(error).splitlines()[0]}") from error
    return model.eval()


def check_shardable(name: str, config: Any, size: int) -> None:
    """Refuse a model that transformers cannot split among so many processes.

    Raises:
        ValueError: the model has no plan, or a process would get a part of a head.
    """
    config = config.get_text_config()
    plan = getattr(config, "base_model_tp_plan", None)
    if not plan:
        raise ValueError(
            f"transformers has no tensor-parallel plan for '{name}' (model type {config.model_type}); "
            "run it on one device without torchrun, or choose a model that has one, such as Llama, Qwen or Mixtral"
        )
    split = {rule.rpartition(".")[2] for rule, style in plan.items() if style == "colwise"}
    if not split & {"q_proj", "k_proj", "qkv_proj", "query_key_value"}:
        return  # attention stays whole in every process
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    if heads % size or kv_heads % size:
        fitting = [count for count in range(1, kv_heads + 1) if heads % count == kv_heads % count == 0]
        raise ValueError(
            f"'{name}' has {heads} heads and {kv_heads} key-value heads, which {size} processes cannot share evenly; "
            f"use torchrun --nproc-per-node with one of {fitting}"
        )


def is_sharded(model: Any) -> bool:
    """Whether this process holds a part of a transformers model only."""
    return (getattr(model, "tp_size", None) or 1) > 1


def same_on_all_ranks(tensor: Tensor) -> Tensor:
    """Rank 0's values, in every process; the tensor itself where there is no process group.

    Args:
        tensor: of one shape in all processes, on this process's device; it may be overwritten.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return tensor
    tensor = tensor.contiguous()
    dist.broadcast(tensor, src=0)
    return tensor


def same_number_on_all_ranks(number: float, device: torch.device) -> float:
    """Rank 0's number: for measured seconds, where a decision that all processes must share depends on them."""
    if not (dist.is_available() and dist.is_initialized()):
        return number
    return float(same_on_all_ranks(torch.tensor(number, dtype=torch.float64, device=device)))
