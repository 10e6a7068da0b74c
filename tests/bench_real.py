"""Speed of the real implementation on the embedded pair; every figure is a ratio of interleaved repeats in one run."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from real import baseline_autoregressive, optimized_speculative
from real.decoder import Cache, Decoder
from real.loading import EMBEDDED, load_draft, load_target
from real.prompt_sets import first_of_each, read_prompts
from real.sampling import SamplingSettings

REPEATS = 5
NEW_TOKENS = 40


@dataclass
class Clocked:
    """A decoder that adds up the seconds spent in its forwards, and in those of its early exits."""

    decoder: Decoder
    seconds: list[float] = field(default_factory=lambda: [0.0])

    def __getattr__(self, name: str) -> Any:
        return getattr(self.decoder, name)

    def forward(self, token_ids: Tensor, cache: Cache, logits_to_keep: int | None = None) -> Tensor:
        begin = time.perf_counter()
        logits = self.decoder.forward(token_ids, cache, logits_to_keep)
        self.seconds[0] += time.perf_counter() - begin
        return logits

    def first_layers(self, count: int) -> Clocked:
        return Clocked(self.decoder.first_layers(count), self.seconds)


def bench() -> dict[str, dict[str, float | bool]]:
    """Share of a round outside the forwards; and our baseline against transformers' generate."""
    from transformers import AutoModelForCausalLM

    from real.loading import embedded_folder

    target = load_target(EMBEDDED, torch.device("cpu"))
    clocked = Clocked(target.decoder)
    reference = AutoModelForCausalLM.from_pretrained(embedded_folder(), dtype=torch.float32).eval()
    prompts = [target.encode(prompt.text) for prompt in first_of_each(read_prompts(), 1)]
    drafts = {
        (name, temperature): load_draft(name, _clocked(target, clocked), SamplingSettings(temperature))
        for name in ("early-exit:24", "prompt-lookup")
        for temperature in (0.0, 1.0)
    }
    own: dict[tuple[str, float], list[float]] = {key: [] for key in drafts}
    faster = []
    for repeat in range(REPEATS):
        ids = prompts[repeat % len(prompts)]
        for (name, temperature), draft in drafts.items():
            clocked.seconds[0] = 0.0
            cache = baseline_autoregressive.prefill(target.decoder, ids, len(ids) + NEW_TOKENS + 8)
            settings = SamplingSettings(temperature)
            generation = optimized_speculative.generate(
                clocked, draft, ids, gamma=4, max_new_tokens=NEW_TOKENS, settings=settings, seed=repeat, cache=cache
            )
            rounds = sum(r.draft_seconds + r.verify_seconds + r.other_seconds for r in generation.rounds)
            own[name, temperature].append(1 - clocked.seconds[0] / rounds)
        faster.append(_seconds_of_transformers(reference, ids) / _seconds_of_ours(target.decoder, ids))
    results: dict[str, dict[str, float | bool]] = {
        f"loop's own share of a round, {name}, temperature {temperature:g}": {
            "value": statistics.median(shares),
            "target": 0.05,
            "lower_is_better": True,
        }
        for (name, temperature), shares in own.items()
    }
    results["baseline tokens/s over transformers' generate"] = {"value": statistics.median(faster), "target": 1.2}
    return results


def _clocked(target: Any, decoder: Clocked) -> Any:
    return type(target)(target.name, decoder, target.tokenizer, target.stop_ids)


def _seconds_of_ours(decoder: Decoder, ids: Tensor) -> float:
    begin = time.perf_counter()
    baseline_autoregressive.generate(decoder, ids, max_new_tokens=NEW_TOKENS, settings=SamplingSettings(0.0))
    return time.perf_counter() - begin


def _seconds_of_transformers(model: Any, ids: Tensor) -> float:
    begin = time.perf_counter()
    model.generate(ids[None], max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=2)
    return time.perf_counter() - begin
