"""Measure a target and its drafts on prompts: every prompt decoded without and with each draft, side by side.

All configurations of a prompt, or of a batch of prompts, are decoded at the same time, round by round: whichever has
emitted the fewest tokens takes the next turn. So a slow spell of the machine, however short, hits the baseline and the
drafts alike, and their ratio stays.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from real import baseline_autoregressive, optimized_speculative
from real.decoder import Decoder
from real.draft_models import ModelDraft
from real.loading import Target
from real.optimized_speculative import DraftLength, Rule, as_controller
from real.prompt_sets import Prompt
from real.proposals import Draft
from real.requests import Batch, Generation, Round, Step, prefill
from real.sampling import SamplingSettings, probabilities
from real.timing import Stopwatch
from sim.controllers import Costs
from sim.forwards import TARGET_ROLE, make_forwards
from sim.records import make_rounds


@dataclass(frozen=True)
class Configuration:
    """A draft and how much of it; no draft and gamma 0 is the autoregressive baseline.

    Attributes:
        gamma: a draft length, a controller, or a tree.
        rule: of verification; the loop's default if None.
        policy: names the controller or tree in results; empty for a fixed draft length.
        rule_name: names the rule in the run's metadata; None for the default.
    """

    draft: Draft | None
    gamma: DraftLength
    rule: Rule | None = None
    policy: str = ""
    rule_name: str | None = None

    @property
    def name(self) -> str:
        """Of the draft, with its policy; 'none' for the baseline."""
        if self.draft is None:
            return "none"
        return f"{self.draft.name}+{self.policy}" if self.policy else self.draft.name

    @property
    def longest(self) -> int:
        """Tokens drafted a round at most."""
        return 0 if self.draft is None else as_controller(self.gamma).max_gamma


def measure_prompts(
    target: Target,
    prompts: Sequence[Prompt],
    configurations: Sequence[Configuration],
    *,
    max_new_tokens: int,
    settings: SamplingSettings,
    seed: int,
    phase: str = "evaluation",
) -> pd.DataFrame:
    """Decode prompts, as one batch, under every configuration.

    Returns:
        A round table, with the optional columns phase, draft, category and accept_probability; a prompt's id is the
        request's. `start_seconds` counts from the start of each generation.
    """
    prompt_ids = [target.encode(prompt.text) for prompt in prompts]
    longest = max(configuration.longest for configuration in configurations)
    features = sorted({layer for one in configurations if one.draft for layer in one.draft.feature_layers})
    capacity = max(map(len, prompt_ids)) + max_new_tokens + longest + 1
    cache = prefill(target.decoder, prompt_ids, capacity, tuple(features))
    rng = np.random.default_rng(_seed(seed, phase, *(prompt.id for prompt in prompts)))
    running: list[Iterator[list[Step]]] = []
    for configuration in configurations:
        limits: dict[str, Any] = {
            "prompts": prompt_ids,
            "max_new_tokens": max_new_tokens,
            "settings": settings,
            "stop_ids": target.stop_ids,
            "seeds": [
                _seed(seed, phase, prompt.id, configuration.name, str(configuration.longest)) for prompt in prompts
            ],
            "cache": cache.copy(),
        }
        if configuration.draft is None:
            running.append(baseline_autoregressive.decode(target.decoder, **limits))
        else:
            draft, gamma = configuration.draft.fork(), copy.deepcopy(configuration.gamma)
            running.append(
                optimized_speculative.decode(target.decoder, draft, gamma=gamma, rule=configuration.rule, **limits)
            )
    outputs = [[Generation() for _ in prompts] for _ in configurations]
    emitted = [0] * len(configurations)
    unfinished = set(range(len(configurations)))
    while unfinished:
        turn = min(unfinished, key=lambda index: (emitted[index], rng.random()))
        steps = next(running[turn], None)
        if steps is None:
            unfinished.remove(turn)
            continue
        for step in steps:
            outputs[turn][step.request].token_ids += step.token_ids
            outputs[turn][step.request].rounds.append(step.round)
            emitted[turn] += len(step.token_ids)
    tables = [
        round_table(output, prompt, configuration.name, phase)
        for generations, configuration in zip(outputs, configurations, strict=True)
        for output, prompt in zip(generations, prompts, strict=True)
    ]
    return pd.concat(tables, ignore_index=True)


def round_table(generation: Generation, prompt: Prompt, draft: str, phase: str) -> pd.DataFrame:
    """The rounds of one generation as a round table."""
    columns = {name: [getattr(one, name) for one in generation.rounds] for name in Round.__dataclass_fields__}
    for name in ("accept_probability", "accepted_ranks"):
        columns[name] = [None if row is None else list(row) for row in columns[name]]
    return make_rounds(
        **columns,
        request_id=prompt.id,
        round_index=np.arange(len(generation.rounds)),
        phase=phase,
        draft=draft,
        category=prompt.category,
    )


def time_forwards(
    target: Target,
    drafts: Sequence[Draft],
    *,
    new_tokens: Sequence[int],
    contexts: Sequence[int],
    repeats: int,
    seed: int,
    batch: int = 1,
    first: int = 0,
) -> Iterator[pd.DataFrame]:
    """Time the target's forward over new tokens and context, and one-token steps of every draft that runs a model.

    Each repeat visits all shapes once, in random order; those before `first` are left out.

    Yields:
        One forward table per repeat.
    """
    decoder = target.decoder
    longest = max(contexts) + max(new_tokens) + 2
    tokens = np.random.default_rng(seed).integers(decoder.vocab_size, size=(batch, longest))
    token_ids = torch.from_numpy(tokens).to(decoder.device)
    models = [draft for draft in drafts if isinstance(draft, ModelDraft)]
    shapes: list[tuple[str, int, int, Callable[[], float]]] = []
    for context in contexts:
        features = sorted({layer for draft in models for layer in draft.feature_layers})
        cache = prefill(decoder, list(token_ids[:, : context + 1]), longest, tuple(features))
        for n in new_tokens:
            shapes.append((TARGET_ROLE, n, context, partial(_time_forward, decoder, cache, token_ids[:, -n:], context)))
        for draft in models:
            known = Batch(list(token_ids[:, :context]), 1, longest, frozenset(), [0] * batch, decoder.device)
            shapes.append((draft.name, 1, context, partial(_time_draft_step, draft.fork(), known, cache)))
    for repeat in range(first, repeats):
        order = np.random.default_rng([seed, repeat]).permutation(len(shapes))
        rows = [(*shapes[index][:3], shapes[index][3]()) for index in order]
        names, counts, lengths, times = zip(*rows, strict=True)
        yield make_forwards(
            role=list(names),
            batch=batch,
            new_tokens=list(counts),
            context=list(lengths),
            repeat=repeat,
            seconds=list(times),
        )


@torch.inference_mode()
def overlaps(
    target: Target,
    draft: ModelDraft,
    prompt_ids: Tensor,
    *,
    max_new_tokens: int,
    settings: SamplingSettings,
    seed: int,
) -> Tensor:
    """Overlap of target and draft at every place of the target's own output, whether a round would begin there or not.

    A speculative run tests a draft at the start of a round more often, which follows a rejection and is a harder place;
    so its acceptance is lower than the mean of these.

    Returns:
        [new tokens] sum min(p, q) (Leviathan et al. 2023, Cor. 3.6); at temperature 0 whether both choose one token.
    """
    capacity = len(prompt_ids) + max_new_tokens + 1
    output = baseline_autoregressive.generate(
        target.decoder,
        prompt_ids,
        max_new_tokens=max_new_tokens,
        settings=settings,
        stop_ids=target.stop_ids,
        seed=seed,
    )
    cache = prefill(target.decoder, [prompt_ids], capacity, draft.feature_layers)
    batch = Batch([prompt_ids], max_new_tokens, capacity, frozenset(), [seed], target.decoder.device)
    source = draft.fork().source
    source.start(batch, cache)
    found = []
    for token in output.token_ids:
        own = source.catch_up(batch)
        logits = target.decoder.forward(batch.latest([1]), cache)[:, -1]
        wide = own
        if source.target_ids is not None:
            wide = torch.full_like(logits, float("-inf")).index_copy_(-1, source.target_ids, own.to(logits.dtype))
        if settings.greedy:
            found.append((wide.argmax(-1) == logits.argmax(-1)).double())
        else:
            found.append(torch.minimum(probabilities(logits, settings), probabilities(wide, settings)).sum(-1))
        batch.append(0, [token])
    return torch.cat(found)


def time_costs(target: Target, draft: Draft, gamma: int, batch: int, seed: int, repeats: int = 3) -> Costs:
    """Median seconds of a drafted token and of verifying 0, 1, ... gamma of them, for controllers that weigh them.

    A draft that runs no model counts as free.
    """
    table = pd.concat(
        time_forwards(
            target, [draft], new_tokens=range(1, gamma + 2), contexts=(128,), repeats=repeats, seed=seed, batch=batch
        )
    )
    medians = table.groupby(["role", "new_tokens"])["seconds"].median()
    verify = tuple(float(medians[TARGET_ROLE, n]) for n in range(1, gamma + 2))
    return Costs(float(medians[draft.name, 1]) if (draft.name, 1) in medians.index else 0.0, verify)


def _time_forward(decoder: Decoder, cache: Any, token_ids: Tensor, context: int) -> float:
    cache.rollback(context)
    clock = Stopwatch(decoder.device)
    decoder.forward(token_ids, cache)
    return clock.seconds(clock.origin, clock.mark())


@torch.inference_mode()
def _time_draft_step(draft: ModelDraft, batch: Batch, cache: Any) -> float:
    """Seconds of one drafted token after the first, whose forward also catches up with what the target emitted."""
    cache.rollback([length - 1 for length in batch.lengths])
    draft.source.start(batch, cache)
    logits = draft.source.catch_up(batch)
    clock = Stopwatch(logits.device)
    draft.source.extend(logits.argmax(-1)[:, None])
    return clock.seconds(clock.origin, clock.mark())


def _seed(*parts: object) -> int:
    """A seed that depends on every part and on nothing else, the same in every process."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=7).digest()
    return int.from_bytes(digest)
