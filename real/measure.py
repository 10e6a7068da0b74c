"""Measure a target and its drafts on prompts: every prompt decoded without and with each draft, side by side.

All configurations of a prompt are decoded at the same time, round by round: whichever has emitted the fewest tokens
takes the next turn. So a slow spell of the machine, however short, hits the baseline and the drafts alike, and their
ratio stays.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from real import baseline_autoregressive, optimized_speculative
from real.baseline_autoregressive import Generation, Step, prefill
from real.decoder import Decoder
from real.draft_models import Draft, ModelDraft
from real.loading import Target
from real.prompt_sets import Prompt
from real.sampling import SamplingSettings
from real.timing import Stopwatch
from sim.forwards import TARGET_ROLE, make_forwards
from sim.records import make_rounds


@dataclass(frozen=True)
class Configuration:
    """A draft and a draft length; gamma 0 with no draft is the autoregressive baseline."""

    draft: Draft | None
    gamma: int

    @property
    def name(self) -> str:
        """Of the draft, 'none' for the baseline."""
        return self.draft.name if self.draft else "none"


def measure_prompt(
    target: Target,
    prompt: Prompt,
    configurations: Sequence[Configuration],
    *,
    max_new_tokens: int,
    settings: SamplingSettings,
    seed: int,
    phase: str = "evaluation",
) -> pd.DataFrame:
    """Decode one prompt under every configuration.

    Returns:
        A round table, with the optional columns phase, draft, category and accept_probability; the prompt's id is the
        request's. `start_seconds` counts from the start of each generation.
    """
    prompt_ids = target.encode(prompt.text)
    gamma = max(configuration.gamma for configuration in configurations)
    cache = prefill(target.decoder, prompt_ids, len(prompt_ids) + max_new_tokens + gamma + 1)
    rng = np.random.default_rng(_seed(seed, phase, prompt.id))
    running: list[Iterator[Step]] = []
    for configuration in configurations:
        own_seed = _seed(seed, phase, prompt.id, configuration.name, str(configuration.gamma))
        limits: dict[str, Any] = {
            "prompt_ids": prompt_ids,
            "max_new_tokens": max_new_tokens,
            "settings": settings,
            "stop_ids": target.stop_ids,
            "seed": own_seed,
            "cache": cache.copy(),
        }
        if configuration.draft is None:
            running.append(baseline_autoregressive.decode(target.decoder, **limits))
        else:
            draft = copy.copy(configuration.draft)  # keeps a sequence of its own
            gamma = configuration.gamma
            running.append(optimized_speculative.decode(target.decoder, draft, gamma=gamma, **limits))
    outputs = [Generation() for _ in configurations]
    unfinished = set(range(len(configurations)))
    while unfinished:
        turn = min(unfinished, key=lambda index: (len(outputs[index].token_ids), rng.random()))
        step = next(running[turn], None)
        if step is None:
            unfinished.remove(turn)
        else:
            outputs[turn].token_ids += step[0]
            outputs[turn].rounds.append(step[1])
    tables = [
        round_table(output, prompt, configuration.name, phase)
        for output, configuration in zip(outputs, configurations, strict=True)
    ]
    return pd.concat(tables, ignore_index=True)


def round_table(generation: Generation, prompt: Prompt, draft: str, phase: str) -> pd.DataFrame:
    """The rounds of one generation as a round table."""
    columns = pd.DataFrame([vars(measured) for measured in generation.rounds])
    columns["accept_probability"] = [list(row) for row in columns["accept_probability"]]
    return make_rounds(
        **{str(name): columns[name] for name in columns},
        request_id=prompt.id,
        round_index=np.arange(len(columns)),
        batch=1,
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
) -> Iterator[pd.DataFrame]:
    """Time the target's forward over new tokens and context, and one-token forwards of every draft that runs a model.

    Each repeat visits all shapes once, in random order.

    Yields:
        One forward table per repeat.
    """
    device = target.decoder.device
    roles: list[tuple[str, Decoder, Sequence[int]]] = [(TARGET_ROLE, target.decoder, new_tokens)]
    roles += [(draft.name, draft.decoder, (1,)) for draft in drafts if isinstance(draft, ModelDraft)]
    longest = max(contexts) + max(new_tokens)
    token_ids = torch.from_numpy(np.random.default_rng(seed).integers(target.decoder.vocab_size, size=longest)).to(
        device
    )
    caches = {
        (role, context): prefill(decoder, token_ids[: context + 1], longest)
        for role, decoder, _ in roles
        for context in contexts
    }
    shapes = [(role, decoder, n, context) for role, decoder, counts in roles for n in counts for context in contexts]
    for repeat in range(repeats):
        rows = []
        for index in np.random.default_rng([seed, repeat]).permutation(len(shapes)):
            role, decoder, n, context = shapes[index]
            cache = caches[role, context]
            cache.rollback(context)
            clock = Stopwatch(device)
            decoder.forward(token_ids[-n:], cache)
            rows.append((role, n, context, clock.seconds(clock.origin, clock.mark())))
        names, counts, lengths, times = zip(*rows, strict=True)
        yield make_forwards(
            role=list(names),
            batch=1,
            new_tokens=list(counts),
            context=list(lengths),
            repeat=repeat,
            seconds=list(times),
        )


def _seed(*parts: object) -> int:
    """A seed that depends on every part and on nothing else, the same in every process."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=7).digest()
    return int.from_bytes(digest)
