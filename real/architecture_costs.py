"""What an architecture makes of a verification: experts touched by several tokens, bytes that a cached token costs.

A mixture of experts reads, for n tokens, the weights of every expert that any of them is routed to, so its forward
grows with n where a dense model's hardly does. Multi-head latent attention (MLA) caches a latent and one rotary key a
token instead of keys and values of every head.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from real.decoder import Decoder, TransformersDecoder
from real.llama_decoder import LlamaDecoder
from real.requests import prefill
from real.timing import Stopwatch


@dataclass(frozen=True)
class Routing:
    """Which experts one MoE layer sent the tokens of one forward to; counting waits until it is asked for.

    Attributes:
        layer: the experts' name in the model, such as `model.layers.3.mlp.experts`.
        chosen: [tokens, experts per token] int64 on the model's device, rows of the batch and padding included.
        experts: routed experts of the layer; those that every token passes through (shared experts) are not counted.
    """

    layer: str
    chosen: Tensor
    experts: int

    @property
    def tokens(self) -> int:
        """Tokens of the forward, all rows together."""
        return len(self.chosen)

    @property
    def touched(self) -> int:
        """Distinct experts; waits for the device."""
        return len(set(self.chosen.flatten().tolist()))


@contextmanager
def count_experts(model: nn.Module) -> Iterator[list[Routing]]:
    """Record the routing of every forward of a transformers model, one entry per MoE layer in order of execution.

    Experts are found by the arguments of their forward, (hidden_states, top_k_index, top_k_weights), which transformers
    gives to the experts of every architecture. A dense model has none, and its list stays empty.
    """
    seen: list[Routing] = []

    def record(name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        chosen = kwargs["top_k_index"] if "top_k_index" in kwargs else args[1]
        seen.append(Routing(name, chosen.detach(), int(module.num_experts)))  # type: ignore[arg-type]  # an int there

    hooks = [
        module.register_forward_pre_hook(partial(record, name), with_kwargs=True)
        for name, module in model.named_modules()
        if "top_k_index" in inspect.signature(type(module).forward).parameters
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@torch.inference_mode()
def verify_costs(
    decoder: Decoder, new_tokens: Sequence[int], context: int, repeats: int, seed: int, batch: int = 1
) -> pd.DataFrame:
    """Time forwards of n new tokens over a context, and count the experts that they touch.

    Each repeat draws new tokens and visits every n once, in random order. Tokens and context are drawn uniformly from
    the vocabulary; text is likelier to repeat experts, so it touches somewhat fewer. A forward is timed first and
    counted in a second one over the same tokens, so that hooks cost no time; every shape runs once before, unrecorded.

    Args:
        decoder: the target; experts are counted in a `TransformersDecoder` only.
        new_tokens: per row, each at least 1.
        context: tokens a row already in the cache, at least 1.
        repeats: sweeps over all n.
        seed: of tokens and order.
        batch: rows.

    Returns:
        One row per repeat and n: batch, new_tokens, context, repeat, seconds, experts_touched (distinct routed experts,
        mean over MoE layers; NaN for a dense model), experts (per MoE layer) and experts_per_token (both 0 for a dense
        model).

    Raises:
        ValueError: a count is below 1.
    """
    if not new_tokens or min(*new_tokens, context, repeats, batch) < 1:
        raise ValueError(
            "new_tokens, context, repeats and batch must be >= 1, got "
            f"{list(new_tokens)}, {context}, {repeats} and {batch}; prefill at least one token"
        )
    rng = np.random.default_rng(seed)

    def draw(count: int) -> Tensor:
        return torch.from_numpy(rng.integers(decoder.vocab_size, size=(batch, count))).to(decoder.device)

    cache = prefill(decoder, list(draw(context + 1)), context + max(new_tokens))

    def forward(token_ids: Tensor) -> float:
        cache.rollback(context)
        clock = Stopwatch(decoder.device)
        decoder.forward(token_ids, cache)
        return clock.seconds(clock.origin, clock.mark())

    for n in new_tokens:
        forward(draw(n))
    rows = []
    for repeat in range(repeats):
        for n in rng.permutation(np.asarray(new_tokens)).tolist():
            token_ids = draw(n)
            seconds = forward(token_ids)
            routings: list[Routing] = []
            if isinstance(decoder, TransformersDecoder):
                with count_experts(decoder.model) as routings:
                    forward(token_ids)
            touched = float(np.mean([routing.touched for routing in routings])) if routings else float("nan")
            experts = max((routing.experts for routing in routings), default=0)
            chosen = max((routing.chosen.shape[-1] for routing in routings), default=0)
            rows.append((batch, n, context, repeat, seconds, touched, experts, chosen))
    names = ("batch", "new_tokens", "context", "repeat", "seconds", "experts_touched", "experts", "experts_per_token")
    return pd.DataFrame(rows, columns=list(names))


@dataclass(frozen=True)
class KVBytes:
    """Bytes that one token takes in the cache, all layers together.

    Attributes:
        cached: what the cache really allocates; where a model is sharded, on this process's device.
        latent: what MLA's compressed cache holds, layers x (kv_lora_rank + qk_rope_head_dim) x element size
            (DeepSeek-V2: Liu et al. 2024, arXiv:2405.04434, section 2.1.2); None for a model without MLA.
        expanded: what keys and values of every head hold, layers x heads x (qk_head_dim + v_head_dim) x element size
            with MLA, layers x kv_heads x 2 head_dim x element size without.
    """

    cached: int
    latent: int | None
    expanded: int


def kv_bytes(decoder: Decoder) -> KVBytes:
    """Measure the cache of one forward, and compute what it could be.

    transformers 5.23 caches the latent: the output of kv_a_proj_with_mqa, its first part normed, its rotary part
    rotated, and it expands both to keys and values of every head again in each forward. So `cached` equals `latent`
    there. Releases that expand first and cache keys and values make it equal `expanded`; so does `expanded_cache`.
    """
    cache = decoder.new_cache(1)
    decoder.forward(torch.zeros(1, 1, dtype=torch.long, device=decoder.device), cache)
    size = decoder.dtype.itemsize
    if isinstance(decoder, LlamaDecoder):
        expanded = decoder.layers * decoder.kv_heads * 2 * decoder.cosine.shape[-1] * size
        return KVBytes(cache.bytes_per_token, None, expanded)
    assert isinstance(decoder, TransformersDecoder)
    config = decoder.model.config.get_text_config()
    rank = getattr(config, "kv_lora_rank", None)
    if rank is None:
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        return KVBytes(cache.bytes_per_token, None, decoder.layers * heads * 2 * head * size)
    per_head = config.qk_nope_head_dim + config.qk_rope_head_dim + config.v_head_dim
    return KVBytes(
        cached=cache.bytes_per_token,
        latent=decoder.layers * (rank + config.qk_rope_head_dim) * size,
        expanded=decoder.layers * config.num_attention_heads * per_head * size,
    )


class _ExpandBeforeCaching:
    """Stands before a transformers cache and gives it keys and values of every head instead of the latent."""

    def __init__(self, cache: Any, expand: Any) -> None:
        self.cache = cache
        self.expand = expand

    def update(self, latent: Tensor, rotary: Tensor, layer_idx: int, *rest: Any, **named: Any) -> Any:
        keys, values = self.expand(latent, rotary)
        return self.cache.update(keys, values, layer_idx, *rest, **named)


@contextmanager
def expanded_cache(model: nn.Module) -> Iterator[None]:
    """Let an MLA model of transformers cache keys and values of every head: the same outputs, MLA's saving undone.

    What the latent cache saves in bytes it pays in work, since it expands the whole context in each forward. Measuring
    under this shows both sides. A cache filled inside is of no use outside, nor the other way round.

    Raises:
        ValueError: the model has no attention that caches a latent.
    """

    def expand_first(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        cache = kwargs["past_key_values"]
        return args, kwargs | {"past_key_values": _ExpandBeforeCaching(cache, partial(type(module).expand_kv, module))}

    layers: list[Any] = [module for module in model.modules() if hasattr(module, "expand_kv")]
    if not layers:
        raise ValueError(
            f"{type(model).__name__} has no attention that caches a latent; its cache holds keys and values already"
        )
    hooks = [layer.register_forward_pre_hook(expand_first, with_kwargs=True) for layer in layers]
    for layer in layers:
        layer.expand_kv = lambda keys, values: (keys, values)  # what comes out of the cache is expanded already
    try:
        yield
    finally:
        for layer, hook in zip(layers, hooks, strict=True):
            hook.remove()
            del layer.expand_kv


def architecture_report(
    decoder: Decoder, new_tokens: Sequence[int], context: int, repeats: int, seed: int
) -> dict[str, Any]:
    """What `specdec measure` writes to architecture.json: bytes of a cached token, and costs of verification.

    Returns:
        JSON-able: `kv_bytes_per_token` (`KVBytes`, bytes), `forwards` (rows of `verify_costs`; null for what a dense
        model lacks), and `expanded_cache`, the same two measured under `expanded_cache`, null where it does not apply.
    """

    def measured() -> dict[str, Any]:
        table = verify_costs(decoder, new_tokens, context, repeats, seed)
        rows = table.astype(object).where(table.notna(), None).to_dict(orient="records")
        return {"kv_bytes_per_token": asdict(kv_bytes(decoder)), "forwards": rows}

    report: dict[str, Any] = measured() | {"expanded_cache": None}
    if isinstance(decoder, TransformersDecoder) and any(hasattr(m, "expand_kv") for m in decoder.model.modules()):
        with expanded_cache(decoder.model):
            report["expanded_cache"] = measured()
    return report
