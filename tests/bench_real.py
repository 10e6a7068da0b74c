"""Speed of the real implementation on the embedded pair; every figure is a ratio of turns taken in one run.

Prompts are the evaluation half of the embedded set, on which no draft was trained.
"""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from analysis.measurement import summarise_measurement
from real import baseline_autoregressive, optimized_speculative
from real.cache import KVCache
from real.decoder import Decoder
from real.draft_models import ModelDraft
from real.draft_sources import OwnCache
from real.llama_decoder import LlamaDecoder
from real.loading import EMBEDDED, Target, embedded_folder, load_draft, load_target
from real.measure import Configuration, measure_prompts, overlaps, time_forwards
from real.optimized_speculative import DraftLength
from real.prompt_sets import Prompt, choose, read_prompts
from real.requests import prefill
from real.sampling import SamplingSettings
from real.tree_attention import Tail
from sim.forwards import TARGET_ROLE
from sim.tree_search import best_tree, tree_acceptance
from sim.trees import TokenTree, expected_tokens

Row = dict[str, float | bool]

GREEDY, SAMPLED = SamplingSettings(0.0), SamplingSettings(1.0)
COPYING = ("summarise", "extract")
BEST, BEST_GAMMA = "suffix+int8", 10
TREE_TOKENS = 8


@cache
def loaded() -> tuple[Target, list[Prompt]]:
    """The embedded target, and two evaluation prompts of every category."""
    return load_target(EMBEDDED, torch.device("cpu")), choose(read_prompts(), "evaluation", 2)


def measure(
    target: Target,
    prompts: Sequence[Prompt],
    drafts: Sequence[tuple[str, DraftLength]],
    settings: SamplingSettings,
    new_tokens: int = 64,
    batch: int = 1,
) -> pd.DataFrame:
    """Rounds of all drafts and of the baseline, taking turns on each prompt; the first prompt is run once before."""
    configurations = [Configuration(None, 0)]
    for name, length in drafts:
        policy = "" if isinstance(length, int) else f"tree:{length}"
        configurations.append(Configuration(load_draft(name, target, settings), length, policy=policy))
    groups = [prompts[first : first + batch] for first in range(0, len(prompts), batch)]
    tables = [
        measure_prompts(target, group, configurations, max_new_tokens=new_tokens, settings=settings, seed=seed)
        for seed, group in enumerate([groups[0], *groups])
    ]
    return pd.concat(tables[1:], ignore_index=True)


def of_draft(rounds: pd.DataFrame, draft: str, gamma: int) -> dict[str, Any]:
    """The summary of one draft beside the baseline."""
    own = (rounds["draft"] == draft) & (rounds["gamma"] == gamma)
    return summarise_measurement(rounds[own | (rounds["gamma"] == 0)])


def speedups(target: Target, prompts: Sequence[Prompt]) -> dict[str, Row]:
    """Wall-clock speedup over our own baseline, all categories together, and how much of the ideal the loop reaches."""
    results: dict[str, Row] = {}
    drafts = [("int8", 4), ("distilled", 3), ("suffix", 8), (BEST, BEST_GAMMA)]
    asked = {(BEST, 0.0): 1.4, (BEST, 1.0): 1.2, ("int8", 0.0): 1.4, ("int8", 1.0): 1.2}
    for settings in (GREEDY, SAMPLED):
        rounds = measure(target, prompts, drafts, settings)
        for name, gamma in drafts:
            summary = of_draft(rounds, name, gamma)
            label = f"{name} at gamma {gamma}, temperature {settings.temperature:g}"
            goal = asked.get((name, settings.temperature))
            results[f"speedup over our baseline, {label}"] = row(summary["speedup"], goal)
            if name == "int8":
                results[f"measured speedup over the forwards' own, {label}"] = row(summary["loop_efficiency"], 0.95)
    return results


def copying(target: Target, prompts: Sequence[Prompt]) -> dict[str, Row]:
    """Lookup drafts on prompts whose answer copies their source."""
    chosen = [prompt for prompt in choose(read_prompts(), "evaluation", 6) if prompt.category in COPYING]
    results: dict[str, Row] = {}
    rounds = measure(target, chosen, [("suffix", 10), (BEST, BEST_GAMMA)], GREEDY, new_tokens=96)
    for name in ("suffix", BEST):
        for category in (*COPYING, "both"):
            part = rounds if category == "both" else rounds[rounds["category"] == category]
            goal = 3.0 if category == "both" else None
            results[f"speedup over our baseline, {name}, greedy, {category}"] = row(
                of_draft(part, name, 10)["speedup"], goal
            )
    return results


def head(target: Target, prompts: Sequence[Prompt]) -> dict[str, Row]:
    """The distilled head: how far it agrees with the target on prompts it never saw; what its step and int8's cost."""
    sampled, greedy = (
        of_draft(measure(target, prompts, [("distilled", 4)], settings), "distilled", 4)
        for settings in (SAMPLED, GREEDY)
    )
    everywhere = {}
    for settings in (SAMPLED, GREEDY):
        draft = load_draft("distilled", target, settings)
        assert isinstance(draft, ModelDraft)
        parts = [
            overlaps(target, draft, target.encode(prompt.text), max_new_tokens=64, settings=settings, seed=seed)
            for seed, prompt in enumerate(prompts)
        ]
        everywhere[settings.temperature] = float(torch.cat(parts).mean())
    copy = load_draft("int8", target, SAMPLED)
    times = pd.concat(time_forwards(target, [draft, copy], new_tokens=(1,), contexts=(128,), repeats=40, seed=0))
    medians = times.groupby("role")["seconds"].median()
    return {
        "distilled head: alpha at temperature 1, places reached by rounds": row(
            sampled["alpha_from_probability"], 0.35
        ),
        "distilled head: alpha at temperature 1, all places": row(everywhere[1.0], 0.35),
        "distilled head: greedy agreement, all places": row(everywhere[0.0], 0.45),
        "distilled head: greedy acceptance, places reached by rounds": row(greedy["alpha"], None),
        "distilled head: step over target step": row(medians["distilled"] / medians[TARGET_ROLE], 0.08, lower=True),
        "int8 copy: step over target step": row(medians["int8"] / medians[TARGET_ROLE], None),
    }


def trees(target: Target, prompts: Sequence[Prompt]) -> dict[str, Row]:
    """Block efficiency of the best tree over that of the best chain, at equally many verified tokens.

    The tree is chosen by acceptance on calibration prompts; both are measured on evaluation prompts.
    """
    results: dict[str, Row] = {}
    wide = TokenTree.branching([4, 4, 2, 1])
    for settings in (GREEDY, SAMPLED):
        calibration = measure(target, choose(read_prompts(), "calibration", 2), [("distilled", wide)], settings)
        table = tree_acceptance(calibration).acceptance
        tree = best_tree(table, TREE_TOKENS)
        rounds = measure(target, prompts, [("distilled", TREE_TOKENS), ("distilled", tree)], settings)
        chain, own = (
            of_draft(rounds, name, TREE_TOKENS)["block_efficiency"] for name in ("distilled", f"distilled+tree:{tree}")
        )
        label = f"temperature {settings.temperature:g}, {TREE_TOKENS} verified tokens"
        results[f"block efficiency, best tree over chain, {label}"] = row(own / chain, 1.05)
        results[f"block efficiency, measured over expected of the tree, {label}"] = row(
            own / expected_tokens(tree, table), None
        )
    return results


def batches(target: Target, prompts: Sequence[Prompt]) -> dict[str, Row]:
    """Tokens per second of a batch of four over four runs of one, in turns."""
    results: dict[str, Row] = {}
    limits: dict[str, Any] = {"max_new_tokens": 48, "settings": GREEDY}
    for name, gamma in (("int8", 3), ("distilled", 3)):
        draft = load_draft(name, target, GREEDY)
        ratios = []
        for first in range(0, 12, 4):
            ids = [target.encode(prompt.text) for prompt in prompts[first : first + 4]]
            caches = [
                prefill(target.decoder, part, 400, draft.feature_layers) for part in (ids, *([one] for one in ids))
            ]
            begin = time.perf_counter()
            optimized_speculative.generate_batch(target.decoder, draft, ids, gamma=gamma, cache=caches[0], **limits)
            together = time.perf_counter()
            for one, own in zip(ids, caches[1:], strict=True):
                optimized_speculative.generate(target.decoder, draft, one, gamma=gamma, cache=own, **limits)
            ratios.append((time.perf_counter() - together) / (together - begin))
        results[f"tokens/s of batch 4 over 4 runs of batch 1, {name} at gamma {gamma}"] = row(
            statistics.median(ratios), 1.5
        )
    return results


def against_transformers(target: Target, prompts: Sequence[Prompt]) -> dict[str, Row]:
    """Our baseline against `generate`, and our loop against assisted generation with the same draft and gamma."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(embedded_folder(), dtype=torch.float32).eval()
    shallow = AutoModelForCausalLM.from_pretrained(embedded_folder(), dtype=torch.float32, num_hidden_layers=24).eval()
    shallow.generation_config.update(
        num_assistant_tokens=3, num_assistant_tokens_schedule="constant", assistant_confidence_threshold=0.0
    )
    drafts = {
        "prompt lookup": (load_draft("prompt-lookup", target, GREEDY), {"prompt_lookup_num_tokens": 3}),
        "24 layers as a model": (
            ModelDraft(OwnCache(LlamaDecoder.from_transformers(shallow)), GREEDY, "24 layers"),
            {"assistant_model": shallow},
        ),
    }
    limits: dict[str, Any] = {"max_new_tokens": 40, "settings": GREEDY}
    plain: list[float] = []
    assisted: dict[str, list[float]] = {name: [] for name in drafts}
    for index, prompt in enumerate([prompts[0], *prompts[:12]]):
        ids = target.encode(prompt.text)
        ours = seconds(baseline_autoregressive.generate, target.decoder, ids, **limits)
        theirs = seconds(generate_with_transformers, model, ids)
        if index:
            plain.append(theirs / ours)
        for name, (draft, options) in drafts.items():
            ours = seconds(optimized_speculative.generate, target.decoder, draft, ids, gamma=3, **limits)
            theirs = seconds(generate_with_transformers, model, ids, **options)
            if index:
                assisted[name].append(theirs / ours)
    results = {"baseline tokens/s over transformers' generate": row(statistics.median(plain), 1.2)}
    for name, ratios in assisted.items():
        results[f"tokens/s over transformers' assisted generation, {name}, gamma 3"] = row(
            statistics.median(ratios), 1.5
        )
    return results


def against_flashspec(target: Target, prompts: Sequence[Prompt]) -> dict[str, Row]:
    """Our loop against the package flashspec with the same drafts and gamma, where it is installed (extra `peers`)."""
    if importlib.util.find_spec("flashspec") is None:
        return {}
    from flashspec import BanditConfig, FlashSpecConfig, SamplingConfig, SpeculativeEngine
    from flashspec.engine import HuggingFaceDrafter, NgramDrafter, TargetModel
    from transformers import AutoModelForCausalLM

    cpu, dtype = torch.device("cpu"), torch.float32
    model = AutoModelForCausalLM.from_pretrained(embedded_folder(), dtype=dtype).eval()
    shallow = AutoModelForCausalLM.from_pretrained(embedded_folder(), dtype=dtype, num_hidden_layers=24).eval()
    config = FlashSpecConfig(
        device="cpu",
        compile=False,
        drafter_strategy="bandit",
        bandit=BanditConfig(n_arms=1),
        sampling=SamplingConfig(temperature=0.0, gamma=3),
        eos_token_ids=[],
    )
    theirs = TargetModel("target", cpu, dtype, model=model)
    pairs = {
        "prompt lookup": (load_draft("prompt-lookup", target, GREEDY), NgramDrafter()),
        "24 layers as a model": (
            ModelDraft(OwnCache(LlamaDecoder.from_transformers(shallow)), GREEDY, "24 layers"),
            HuggingFaceDrafter("24 layers", cpu, dtype, model=shallow),
        ),
    }
    limits: dict[str, Any] = {"max_new_tokens": 40, "settings": GREEDY}
    results: dict[str, Row] = {}
    for name, (draft, drafter) in pairs.items():
        engine = SpeculativeEngine(config, [drafter], theirs)
        ratios = []
        for prompt in [prompts[0], *prompts[:6]]:
            ids = target.encode(prompt.text)
            own = seconds(optimized_speculative.generate, target.decoder, draft, ids, gamma=3, **limits)
            ratios.append(seconds(engine.generate, ids[None], max_new_tokens=40) / own)
        results[f"tokens/s over flashspec, {name}, gamma 3"] = row(statistics.median(ratios[1:]), 1.5)
    return results


def generate_with_transformers(model: Any, ids: Tensor, **options: Any) -> None:
    """40 greedy tokens, no fewer."""
    model.generate(ids[None], max_new_tokens=40, min_new_tokens=40, do_sample=False, pad_token_id=2, **options)


@dataclass
class Clocked:
    """A decoder that adds up the seconds spent in its forwards, and in those of its early exits."""

    decoder: Decoder
    seconds: list[float] = field(default_factory=lambda: [0.0])

    def __getattr__(self, name: str) -> Any:
        return getattr(self.decoder, name)

    def forward(
        self, token_ids: Tensor, cache: KVCache, logits_to_keep: int | None = None, tail: Tail | None = None
    ) -> Tensor:
        begin = time.perf_counter()
        logits = self.decoder.forward(token_ids, cache, logits_to_keep, tail)
        self.seconds[0] += time.perf_counter() - begin
        return logits

    def first_layers(self, count: int) -> Clocked:
        return Clocked(self.decoder.first_layers(count), self.seconds)


def own_share(target: Target, prompts: Sequence[Prompt]) -> dict[str, Row]:
    """Share of a round outside the forwards."""
    clocked = Clocked(target.decoder)
    drafts = {
        (name, temperature): load_draft(
            name, Target(target.name, clocked, target.tokenizer, target.stop_ids), SamplingSettings(temperature)
        )
        for name in ("early-exit:24", "prompt-lookup")
        for temperature in (0.0, 1.0)
    }
    own: dict[tuple[str, float], list[float]] = {key: [] for key in drafts}
    for repeat in range(5):
        ids = target.encode(prompts[repeat].text)
        for (name, temperature), draft in drafts.items():
            own_cache = prefill(target.decoder, [ids], len(ids) + 48)
            clocked.seconds[0] = 0.0
            generation = optimized_speculative.generate(
                clocked, draft, ids, gamma=4, max_new_tokens=40, settings=SamplingSettings(temperature), seed=repeat,
                cache=own_cache,
            )  # fmt: skip
            rounds = sum(r.draft_seconds + r.verify_seconds + r.other_seconds for r in generation.rounds)
            own[name, temperature].append(1 - clocked.seconds[0] / rounds)
    return {
        f"loop's own share of a round, {name}, temperature {temperature:g}": row(
            statistics.median(shares), 0.05, lower=True
        )
        for (name, temperature), shares in own.items()
    }


def seconds(run: Callable[..., Any], *arguments: Any, **options: Any) -> float:
    """Wall time of a call."""
    begin = time.perf_counter()
    run(*arguments, **options)
    return time.perf_counter() - begin


def row(value: float | None, target: float | None, lower: bool = False) -> Row:
    """One line of bench.json; no target where nothing was asked."""
    found: Row = {"value": float("nan") if value is None else float(np.float64(value))}
    if target is not None:
        found["target"] = target
    return found | ({"lower_is_better": True} if lower else {})


SECTIONS = (own_share, against_transformers, against_flashspec, speedups, copying, head, trees, batches)


def benches() -> dict[str, Callable[[], dict[str, Row]]]:
    """The sections by name."""
    return {f"real-{section.__name__}": lambda section=section: section(*loaded()) for section in SECTIONS}
