"""Batches: whatever drafts and however, each request gets what it would get alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from transformers import LlamaForCausalLM

from real import baseline_autoregressive, optimized_speculative
from real.decoder import Decoder
from real.distilled_draft import HeadSource
from real.distilled_head import DistilledHead, HeadShape
from real.draft_models import ModelDraft, make_draft
from real.draft_sources import OwnCache
from real.llama_decoder import LlamaDecoder
from real.loading import Target
from real.measure import Configuration, measure_prompts
from real.prompt_sets import Prompt
from real.proposals import Draft
from real.requests import Generation, Round
from real.sampling import SamplingSettings
from sim.records import REQUIRED, check_rounds, summarise
from sim.trees import TokenTree

GREEDY = SamplingSettings(temperature=0)
SAMPLED = SamplingSettings(temperature=1.0)
CHAIN, TREE = 3, TokenTree.branching([3, 2, 1])
NEW = 20

Settings = pytest.mark.parametrize("settings", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
Shapes = pytest.mark.parametrize("shape", [CHAIN, TREE], ids=["chain", "tree"])

NAMES = {
    "early exit": "early-exit:3",
    "int8": "int8",
    "int8 skip": "int8-skip:1-2",
    "prompt lookup": "prompt-lookup",
    "suffix": "suffix",
    "synthetic": "synthetic:0.7",
}
MakeDraft = Callable[[Decoder, SamplingSettings], Draft]


def random_head(target: LlamaDecoder, seed: int = 3) -> HeadSource:
    """An untrained head in the target's own precision, over 50 of its 64 tokens."""
    vocabulary = torch.randperm(target.vocab_size, generator=torch.Generator().manual_seed(seed))[:50]
    return HeadSource(DistilledHead(HeadShape.of(target), vocabulary, seed).double(), target)


@pytest.fixture(params=["other model", *NAMES, "head"])
def make(request: pytest.FixtureRequest, other_model: LlamaForCausalLM) -> MakeDraft:
    """Every draft source, over whichever target."""

    def build(target: Decoder, settings: SamplingSettings) -> Draft:
        if request.param == "other model":
            return ModelDraft(OwnCache(LlamaDecoder.from_transformers(other_model)), settings, "other")
        if request.param == "head":
            if not isinstance(target, LlamaDecoder):
                pytest.skip("a head needs a LlamaDecoder")
            return ModelDraft(random_head(target), settings, "head")
        if request.param.startswith("int8") and not isinstance(target, LlamaDecoder):
            pytest.skip("an int8 copy needs a LlamaDecoder")
        return make_draft(NAMES[request.param], target, settings)

    return build


def ragged(*lengths: int) -> list[torch.Tensor]:
    """Prompts that repeat themselves, so that a lookup finds something."""
    prompts = []
    for seed, length in enumerate(lengths):
        ids = torch.randint(2, 64, (max(1, length // 2),), generator=torch.Generator().manual_seed(seed))
        prompts.append(torch.cat([ids, ids, ids])[:length])
    return prompts


def decided(one: Round) -> tuple[object, ...]:
    """What a round decided, beside its times and the batch it was in."""
    return one.context, one.gamma, one.drafted, one.accepted, one.emitted, one.cut, one.depth, one.accepted_ranks


def until(tokens: list[int], stop: int) -> list[int]:
    """The tokens up to the first stop token, or all."""
    return tokens[: tokens.index(stop) + 1] if stop in tokens else tokens


def check_batch_column(outputs: list[Generation]) -> None:
    """Round i holds as many requests as have more than i rounds."""
    for output in outputs:
        for i, one in enumerate(output.rounds):
            assert one.batch == sum(len(other.rounds) > i for other in outputs)


@Settings
@Shapes
def test_each_request_of_a_batch_gets_what_it_gets_alone(
    decoder: Decoder, make: MakeDraft, shape: optimized_speculative.DraftLength, settings: SamplingSettings
) -> None:
    prompts, seeds = ragged(18, 2, 11, 5), [5, 6, 7, 8]
    draft = make(decoder, settings)
    run = partial(optimized_speculative.generate_batch, decoder, draft, gamma=shape, settings=settings)
    free = run(prompts, max_new_tokens=NEW, seeds=seeds)
    assert [len(output.token_ids) for output in free] == [NEW] * 4
    stop = free[1].token_ids[6]
    outputs = run(prompts, max_new_tokens=NEW, seeds=seeds, stop_ids=frozenset({stop}))
    for row, (prompt, seed, output) in enumerate(zip(prompts, seeds, outputs, strict=True)):
        alone = run([prompt], max_new_tokens=NEW, seeds=[seed], stop_ids=frozenset({stop}))[0]
        assert output.token_ids == alone.token_ids == until(free[row].token_ids, stop)
        assert output.stopped == alone.stopped == (stop in free[row].token_ids)
        assert [*map(decided, output.rounds)] == [*map(decided, alone.rounds)]
        assert sum(one.emitted for one in output.rounds) == len(output.token_ids)
        assert {one.batch for one in alone.rounds} == {1}
    assert outputs[1].stopped
    check_batch_column(outputs)
    if settings.greedy:
        plain = baseline_autoregressive.generate_batch(
            decoder, prompts, max_new_tokens=NEW, settings=settings, stop_ids=frozenset({stop})
        )
        assert [output.token_ids for output in outputs] == [output.token_ids for output in plain]


@Settings
@Shapes
@pytest.mark.parametrize("make", ["prompt lookup", "head", "other model"], indirect=True)
def test_a_prompt_of_one_token_changes_nothing_for_the_others(
    model: LlamaForCausalLM, make: MakeDraft, shape: optimized_speculative.DraftLength, settings: SamplingSettings
) -> None:
    """A head can draft nothing after a single token; the requests beside it still can."""
    target = LlamaDecoder.from_transformers(model)
    prompts = ragged(1, 9, 4)
    run = partial(
        optimized_speculative.generate_batch, target, make(target, settings), gamma=shape, max_new_tokens=NEW,
        settings=settings,
    )  # fmt: skip
    for row, output in enumerate(run(prompts, seeds=[1, 2, 3])):
        alone = run([prompts[row]], seeds=[1 + row])[0]
        assert output.token_ids == alone.token_ids
        assert [*map(decided, output.rounds)] == [*map(decided, alone.rounds)]


@Settings
@pytest.mark.parametrize("max_new_tokens", [1, 2, 5])
@Shapes
def test_no_request_of_a_batch_overshoots(
    model: LlamaForCausalLM,
    make: MakeDraft,
    shape: optimized_speculative.DraftLength,
    max_new_tokens: int,
    settings: SamplingSettings,
) -> None:
    target = LlamaDecoder.from_transformers(model)
    outputs = optimized_speculative.generate_batch(
        target, make(target, settings), ragged(3, 12), gamma=shape, max_new_tokens=max_new_tokens, settings=settings
    )
    assert [len(output.token_ids) for output in outputs] == [max_new_tokens] * 2
    if max_new_tokens == 1:
        assert [one.drafted for output in outputs for one in output.rounds] == [0, 0]


@Settings
def test_requests_of_a_batch_differ_by_their_seeds_alone(
    model: LlamaForCausalLM, make: MakeDraft, settings: SamplingSettings
) -> None:
    target = LlamaDecoder.from_transformers(model)
    prompt = ragged(9)[0]
    same, twin, other = optimized_speculative.generate_batch(
        target, make(target, settings), [prompt] * 3, gamma=3, max_new_tokens=NEW, settings=settings, seeds=[4, 4, 5]
    )
    assert same.token_ids == twin.token_ids
    assert (same.token_ids == other.token_ids) == settings.greedy


def test_the_baseline_of_a_batch_is_each_request_s_own(decoder: Decoder) -> None:
    prompts = ragged(18, 1, 7)
    for settings in (GREEDY, SAMPLED):
        run = partial(
            baseline_autoregressive.generate_batch, decoder, max_new_tokens=NEW, settings=settings,
            stop_ids=frozenset({3, 4, 5}),
        )  # fmt: skip
        outputs = run(prompts, seeds=[1, 2, 3])
        assert [one.token_ids for one in outputs] == [
            run([prompt], seeds=[1 + row])[0].token_ids for row, prompt in enumerate(prompts)
        ]
        check_batch_column(outputs)


@Settings
def test_a_measured_batch_satisfies_the_identities_of_the_round_table(
    tiny_target: Target, make: MakeDraft, settings: SamplingSettings
) -> None:
    prompts = [
        Prompt("long", "red", "t7 t8 t9 t7 t8 t9 t7", "evaluation"),
        Prompt("short", "blue", "t20 t21", "evaluation"),
    ]
    draft = make(tiny_target.decoder, settings)
    table = measure_prompts(
        tiny_target,
        prompts,
        [
            Configuration(None, 0),
            Configuration(draft, CHAIN),
            Configuration(draft, TREE, policy="tree:3,2,1"),
        ],
        max_new_tokens=NEW,
        settings=settings,
        seed=0,
    )
    check_rounds(table)
    assert set(REQUIRED) <= set(table)
    longest = {"none": 0, draft.name: CHAIN, f"{draft.name}+tree:3,2,1": TREE.size}
    assert set(table["draft"]) == set(longest)
    for (name, request), rounds in table.groupby(["draft", "request_id"]):
        assert set(rounds["gamma"]) == {longest[name]}
        assert rounds["round_index"].tolist() == [*range(len(rounds))]
        known = 7 if request == "long" else 2
        assert rounds["context"].tolist() == [known, *(known + rounds["emitted"].cumsum())[:-1]]
        assert rounds["emitted"].sum() <= NEW
        assert not rounds["cut"][:-1].any()
        whole = rounds[~rounds["cut"]]
        summary = summarise(whole)
        if not name.endswith("3,2,1"):
            assert summary["block_efficiency"] == pytest.approx(1 + sum(summary["marginal_acceptance"]), rel=1e-12)
        for row in rounds.itertuples():
            if name.endswith("3,2,1") and row.drafted:
                assert row.accept_probability is None
                assert sum(rank >= 0 for rank in row.accepted_ranks) == row.accepted <= row.depth <= TREE.depth
            else:
                assert row.depth == row.drafted == len(row.accept_probability)
    for _, rounds in table.groupby("draft"):
        counts = rounds.groupby("request_id").size()
        assert rounds["batch"].tolist() == [int((counts > i).sum()) for i in rounds["round_index"]]
