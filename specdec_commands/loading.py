"""Targets, prompts and sampling settings as the options name them; torch is imported when called."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from real.loading import Target
    from real.prompt_sets import Prompt
    from real.sampling import SamplingSettings


def load_if_it_fits(
    target: str,
    device: str,
    dtype: str | None,
    threads: int | None,
    drafts: Sequence[str] = (),
    *,
    compiled: bool = False,
    batch: int = 1,
    tokens: int = 0,
    caches: int = 1,
) -> Target:
    """The target, if it and its drafts fit (see `real.memory.check_fits`)."""
    import torch

    from real.devices import parse_device, parse_dtype
    from real.loading import load_target
    from real.memory import check_fits

    if threads is not None:
        torch.set_num_threads(threads)
    where, kind = parse_device(device), parse_dtype(dtype)
    check_fits(target, drafts, where, kind, batch=batch, tokens=tokens, caches=caches)
    return load_target(target, where, kind, compiled=compiled)


def sampling_settings(
    temperature: float, top_k: int | None, top_p: float | None, min_p: float | None
) -> SamplingSettings:
    """The settings that --temperature, --top-k, --top-p and --min-p ask for."""
    from real.sampling import SamplingSettings

    return SamplingSettings(temperature, top_k, top_p, min_p)


def longest_prompt_tokens(prompts: Sequence[Prompt]) -> int:
    """Tokens of the longest prompt, at two letters a token: more than any tokenizer makes of English."""
    return max((len(prompt.text) for prompt in prompts), default=0) // 2
