"""Whole loops under test, cache and all: ours, and Hugging Face's assisted generation as the outside reference.

Every emitted token is held against the target's own law at its place, recomputed in one forward over the finished text
without any cache. False-alarm rate: 1e-9 for each check. Power: 2,400 tokens see the wrong rules below, whose total
variation is above 0.2; the pure rules are tested a thousand times finer elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from analysis.losslessness import CheckResult, check_acceptance, check_tokens
from real import optimized_speculative
from real.decoder import Decoder
from real.draft_models import ModelDraft
from real.draft_sources import OwnCache
from real.llama_decoder import LlamaDecoder
from real.proposals import KeepDrafting, Proposal
from real.requests import Batch, Generation
from real.sampling import SamplingSettings
from real.verification import VerificationRule, block_verification, exact_match, typical_acceptance
from tests.real.conftest import tiny_model

VOCAB, GAMMA, LENGTH = 16, 3, 200
SETTINGS = SamplingSettings(temperature=1.0)
PROMPT = torch.tensor([3, 1, 4, 1, 5])
Models = tuple[LlamaForCausalLM, LlamaForCausalLM]


def target_and_draft(layers: int) -> Models:
    """A target, and a draft that agrees with it on a bit more than half of the mass."""
    target, draft = (tiny_model(vocab=VOCAB, layers=layers, spread=0.25) for _ in range(2))
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for weight in draft.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator, dtype=torch.float64) * 0.05)
    return target, draft


@pytest.fixture(scope="module")
def models() -> Models:
    return target_and_draft(layers=2)


class OvertoldDraft(ModelDraft):
    """Reports its probabilities at half the temperature that it samples at."""

    def propose(self, batch: Batch, limits: Sequence[int], keep_drafting: KeepDrafting | None = None) -> Proposal:
        proposal = super().propose(batch, limits, keep_drafting)
        assert proposal.probs is not None
        squared = proposal.probs**2
        return replace(proposal, probs=squared / squared.sum(-1, keepdim=True))


@torch.no_grad()
def laws(model: LlamaForCausalLM, token_ids: list[int]) -> np.ndarray:
    """[new tokens, vocab] the model's law before each new token."""
    ids = torch.cat([PROMPT, torch.tensor(token_ids)])
    return torch.softmax(model(ids[None]).logits[0, len(PROMPT) - 1 : -1], dim=-1).numpy()


def judged(models: Models, texts: Iterator[list[int]]) -> CheckResult:
    """The verdict on generated texts, given the laws of target and draft at each of their tokens."""
    target, draft = models
    return check_tokens((laws(target, ids), laws(draft, ids), np.array(ids)) for ids in texts)


def ours(
    models: Models, runs: int, rule: VerificationRule | None = None, draft: type[ModelDraft] = ModelDraft
) -> Iterator[list[int]]:
    target = LlamaDecoder.from_transformers(models[0])
    source = draft(OwnCache(LlamaDecoder.from_transformers(models[1])), SETTINGS, "tiny")
    for run in range(runs):
        yield generate(target, source, run, rule).token_ids


def generate(target: Decoder, draft: ModelDraft, run: int, rule: VerificationRule | None = None) -> Generation:
    return optimized_speculative.generate(
        target, draft, PROMPT, gamma=GAMMA, max_new_tokens=LENGTH, settings=SETTINGS, rule=rule, seed=1000 * run
    )


def test_our_full_loop_is_lossless(models: Models) -> None:
    assert judged(models, ours(models, runs=16)).lossless


@pytest.mark.parametrize("rule", [block_verification, exact_match])
def test_our_full_loop_is_lossless_under_other_rules(models: Models, rule: VerificationRule) -> None:
    assert judged(models, ours(models, runs=2, rule=rule)).lossless


def test_a_lossy_rule_shows_through_the_full_loop(models: Models) -> None:
    """ln E grows by about 16 a run, so 8 runs stand far above the line at 21."""
    assert not judged(models, ours(models, runs=8, rule=typical_acceptance)).lossless


def test_a_draft_that_misreports_its_probabilities_shows_through_the_full_loop(models: Models) -> None:
    """ln E grows by about 7 a run, so 16 runs stand far above the line at 21."""
    assert not judged(models, ours(models, runs=16, draft=OvertoldDraft)).lossless


def test_our_loop_accepts_as_often_as_the_coupling_says(models: Models) -> None:
    """Every reached position is accepted with chance sum min(p, q), known before its draw."""
    target = LlamaDecoder.from_transformers(models[0])
    draft = ModelDraft(OwnCache(LlamaDecoder.from_transformers(models[1])), SETTINGS, "tiny")
    chances, accepted = [], []
    for run in range(2):
        generation = generate(target, draft, 50 + run)
        overlap = np.minimum(laws(models[0], generation.token_ids), laws(models[1], generation.token_ids)).sum(-1)
        at = 0
        for one in generation.rounds:
            reached = min(one.accepted + 1, one.drafted)
            chances += overlap[at : at + reached].tolist()
            accepted += [position < one.accepted for position in range(reached)]
            at += one.emitted
    assert check_acceptance(np.array(chances), np.array(accepted)).p_value > 1e-9


def test_assisted_generation_of_transformers_passes_the_same_check(models: Models) -> None:
    target, draft = models
    draft.generation_config.num_assistant_tokens = GAMMA
    draft.generation_config.num_assistant_tokens_schedule = "constant"
    draft.generation_config.assistant_confidence_threshold = 0.0

    def texts() -> Iterator[list[int]]:
        for seed in range(8):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)  # transformers draws from global state
                output = target.generate(
                    PROMPT[None], assistant_model=draft, do_sample=True, top_k=0, max_new_tokens=LENGTH,
                    pad_token_id=0, eos_token_id=None,
                )  # fmt: skip
            yield output[0, len(PROMPT) :].tolist()

    assert judged(models, texts()).lossless
