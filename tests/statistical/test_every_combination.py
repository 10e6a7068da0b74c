"""Every draft, under every lossless rule, as a chain and as a tree, one prompt at a time and three in a batch.

Each emitted token is held against the target's own law at its place, as in `test_full_loop`. False-alarm rate: 1e-9 for
each combination, so 1e-7 for the file. Power: the 1,200 tokens of a combination see a total variation of 0.2 in one
histogram; two mutants that only a batch or a tree can have stand above it and are caught. The rules alone are tested a
thousand times finer elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from analysis.losslessness import CheckResult, check_tokens
from real import optimized_speculative
from real.candidate_verification import multi_round, without_replacement
from real.distilled_draft import HeadSource
from real.distilled_head import DistilledHead, HeadShape
from real.draft_models import ModelDraft, make_draft
from real.draft_sources import OwnCache
from real.llama_decoder import LlamaDecoder
from real.optimized_speculative import DraftLength, Rule
from real.proposals import Draft
from real.rows import Randomness
from real.sampling import SamplingSettings
from real.tree_attention import Tail
from real.verification import Verdict, block_verification, exact_match, rejection_sampling
from sim.trees import TokenTree
from tests.statistical.test_full_loop import PROMPT, VOCAB, laws, target_and_draft

SETTINGS = SamplingSettings(temperature=1.0, top_k=12)
"""top-k makes some laws narrower than a tree is wide, on either side"""

LENGTH, TEXTS = 100, 12
TREE = TokenTree.branching([3, 2, 1])
DRAFTS = ("own", "early-exit:1", "int8", "int8-skip:0-0", "head", "prompt-lookup", "suffix", "synthetic:0.6")
CHAIN_RULES: dict[str, Rule] = {"rejection": rejection_sampling, "block": block_verification, "exact": exact_match}
TREE_RULES: dict[str, Rule] = {"multi-round": multi_round, "without-replacement": without_replacement}


@pytest.fixture(scope="module")
def target() -> LlamaForCausalLM:
    return target_and_draft(layers=2)[0]


def build(name: str, target: LlamaDecoder) -> Draft:
    """A draft of the given kind; `own` is another model, `head` a distilled head with random weights."""
    match name:
        case "own":
            return ModelDraft(OwnCache(LlamaDecoder.from_transformers(target_and_draft(layers=2)[1])), SETTINGS, name)
        case "head":
            head = DistilledHead(HeadShape.of(target), torch.arange(2, VOCAB)).double()
            return ModelDraft(HeadSource(head, target), SETTINGS, name)
    return make_draft(name, target, SETTINGS)


def texts(
    model: LlamaForCausalLM, name: str, length: DraftLength, rule: Rule | None, batch: int
) -> Iterator[list[int]]:
    decoder = LlamaDecoder.from_transformers(model)
    draft = build(name, decoder)
    for first in range(0, TEXTS, batch):
        generations = optimized_speculative.generate_batch(
            decoder, draft, [PROMPT] * batch, gamma=length, max_new_tokens=LENGTH, settings=SETTINGS, rule=rule,
            seeds=range(100 + first, 100 + first + batch),
        )  # fmt: skip
        yield from (generation.token_ids for generation in generations)


def judged(model: LlamaForCausalLM, generated: Iterator[list[int]]) -> CheckResult:
    def shaped(token_ids: list[int]) -> Tensor:
        p = torch.from_numpy(laws(model, token_ids))
        kept = torch.where(p >= p.topk(12, dim=-1).values[:, -1:], p, 0.0)
        return kept / kept.sum(-1, keepdim=True)

    return check_tokens((shaped(ids).numpy(), None, torch.tensor(ids).numpy()) for ids in generated)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("rule", CHAIN_RULES)
@pytest.mark.parametrize("name", DRAFTS)
def test_a_chain_is_lossless(target: LlamaForCausalLM, name: str, rule: str, batch: int) -> None:
    assert judged(target, texts(target, name, 3, CHAIN_RULES[rule], batch)).lossless


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("rule", TREE_RULES)
@pytest.mark.parametrize("name", DRAFTS)
def test_a_tree_is_lossless(target: LlamaForCausalLM, name: str, rule: str, batch: int) -> None:
    assert judged(target, texts(target, name, TREE, TREE_RULES[rule], batch)).lossless


def rows_mixed_up(p: Tensor, q: Tensor | None, draft_ids: Tensor, generator: Randomness = None) -> Verdict:
    """MUTANT: each request is verified with its neighbour's rows."""
    return rejection_sampling(p.roll(1, dims=0), q, draft_ids, generator)


def siblings_see_each_other(visible: Tensor, depths: Tensor) -> Tail:
    """MUTANT: the tokens of a tree look at all that come before them, as in a chain."""
    return Tail(torch.ones_like(visible).tril(), depths)


def test_rows_that_only_a_batch_can_mix_up_show(target: LlamaForCausalLM) -> None:
    assert not judged(target, texts(target, "own", 3, rows_mixed_up, batch=3)).lossless


def test_branches_that_only_a_tree_can_mix_up_show(target: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimized_speculative, "Tail", siblings_see_each_other)
    assert not judged(target, texts(target, "own", TREE, None, batch=3)).lossless
