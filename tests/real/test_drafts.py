"""Drafts one by one: what each proposes, what it reads to do so, and how controllers steer it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from real import baseline_autoregressive, optimized_speculative
from real.cache import KVCache
from real.decoder import Decoder
from real.draft_models import ModelDraft, make_draft
from real.draft_sources import OwnCache, SharedCache
from real.llama_decoder import LlamaDecoder
from real.loading import Target
from real.lookup_drafts import PromptLookupDraft, SuffixDraft, merge
from real.measure import Configuration, measure_prompts
from real.optimized_speculative import DraftLength
from real.prompt_sets import Prompt
from real.proposals import Draft, KeepDrafting, Proposal
from real.quantised import quantise
from real.requests import Batch, Generation, prefill
from real.sampling import SamplingSettings
from real.translated_draft import TranslatedSource
from real.tree_attention import Tail
from sim.acceptance import IidAcceptance
from sim.controllers import (
    Bandit,
    ConfidenceThreshold,
    Controller,
    Costs,
    FixedGamma,
    Goodput,
    Heuristic,
    OffAboveLoad,
    Oracle,
    RejectionThreshold,
    RoundOutcome,
    parse_controller,
)
from sim.engine import simulate
from sim.latency import ConstantLatency
from sim.scenario import Scenario
from sim.trees import TokenTree
from tests.real.conftest import tiny_model

GREEDY = SamplingSettings(temperature=0)
SAMPLED = SamplingSettings(temperature=1.0)
NEW = 40

Settings = pytest.mark.parametrize("settings", [GREEDY, SAMPLED], ids=["greedy", "sampled"])


@pytest.fixture(scope="module")
def target(model: LlamaForCausalLM) -> LlamaDecoder:
    return LlamaDecoder.from_transformers(model)


def prompt(seed: int = 0) -> Tensor:
    ids = torch.randint(2, 64, (12,), generator=torch.Generator().manual_seed(seed))
    return torch.cat([ids, ids[:6]])


def known(*texts: list[int], capacity: int = 64) -> Batch:
    """Requests with these tokens."""
    prompts = [torch.tensor(tokens) for tokens in texts]
    return Batch(prompts, 20, capacity, frozenset(), [0] * len(texts), torch.device("cpu"))


class Watched:
    """A decoder that remembers what it was fed."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self.fed: list[Tensor] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.decoder, name)

    def forward(
        self, token_ids: Tensor, cache: KVCache, logits_to_keep: int | None = None, tail: Tail | None = None
    ) -> Tensor:
        self.fed.append(token_ids.clone())
        return self.decoder.forward(token_ids, cache, logits_to_keep, tail)


# ---- the int8 copy


def overlap(a: Tensor, b: Tensor) -> float:
    """alpha of one model drafting for the other, a mean over places."""
    return float(torch.minimum(a.softmax(-1), b.softmax(-1)).sum(-1).mean())


def test_an_int8_copy_has_nearly_the_target_s_logits(target: LlamaDecoder) -> None:
    """Nearly: rounding to 8 bits is far from what leaving out a layer does."""
    ids = torch.randint(2, 64, (4, 30), generator=torch.Generator().manual_seed(0))
    logits = target.forward(ids, target.new_cache(30, 4))
    narrow = quantise(target)
    copied = narrow.forward(ids, narrow.new_cache(30, 4))
    assert copied.dtype == target.dtype
    assert (copied - logits).norm() < 0.1 * logits.norm()
    assert overlap(copied, logits) > 0.94
    thinned = narrow.without_layers([1])
    assert overlap(thinned.forward(ids, narrow.new_cache(30, 4)), logits) < 0.7


def test_an_int8_copy_reads_the_target_s_cache_and_prefills_nothing(target: LlamaDecoder) -> None:
    watched = Watched(quantise(target))
    draft = ModelDraft(SharedCache(watched), GREEDY, "int8")
    cache = prefill(target, [prompt()], 64)
    assert cache.keys is not None
    before = cache.keys.clone()
    batch = known(prompt().tolist())
    draft.start(batch, cache, [0])
    assert watched.fed == []
    proposed = draft.propose(batch, [4]).token_ids
    assert [tuple(fed.shape) for fed in watched.fed] == [(1, 1)] * 4
    assert torch.equal(torch.cat(watched.fed, dim=1)[0], torch.cat([prompt()[-1:], proposed[0, :3]]))
    held = len(prompt()) - 1
    assert cache.lengths == [held]
    assert torch.equal(cache.keys[..., :held, :], before[..., :held, :])

    watched.fed.clear()
    run = optimized_speculative.generate(target, draft, prompt(), gamma=4, max_new_tokens=NEW, settings=GREEDY)
    assert sum(fed.shape[1] for fed in watched.fed) == sum(one.drafted for one in run.rounds)
    assert sum(one.accepted for one in run.rounds) > 0.6 * sum(one.drafted for one in run.rounds)


# ---- suffixes


def suffix_chain(text: list[int], limit: int, keep: KeepDrafting | None = None, **options: Any) -> list[int]:
    draft = SuffixDraft(**options)
    batch = known(text)
    draft.start(batch, KVCache(1, 1), [0])
    proposal = draft.propose(batch, [limit], keep)
    assert proposal.probs is None
    return proposal.token_ids[0].tolist()


class TestSuffix:
    def test_takes_the_commonest_continuation(self) -> None:
        assert suffix_chain([9, 1, 4, 7, 1, 4, 8, 1, 3, 6, 1], 1) == [4]

    def test_takes_the_latest_of_equally_common_ones(self) -> None:
        assert suffix_chain([9, 1, 4, 8, 1, 3, 6, 1], 1) == [3]
        assert suffix_chain([9, 1, 3, 8, 1, 4, 6, 1], 1) == [4]

    def test_prefers_the_longest_suffix_to_the_commonest_token(self) -> None:
        text = [1, 2, 7, 5, 2, 8, 6, 2, 8, 1, 2]
        assert suffix_chain(text, 1) == [7]
        assert suffix_chain(text, 1, depth=2) == [8]

    def test_stops_where_the_score_is_too_low(self) -> None:
        """After (1, 2) the scores are 2/3, times 3/4, times 4/5, times 5/6: 0.67, 0.5, 0.4, 0.33."""
        text = [1, 2, 3, 4, 5, 1, 2]
        assert suffix_chain(text, 9, least_score=0.7) == []
        assert suffix_chain(text, 9, least_score=0.51) == [3]
        assert suffix_chain(text, 9, least_score=0.45) == [3, 4]
        assert suffix_chain(text, 9, least_score=0.3) == [3, 4, 5, 1]
        assert suffix_chain(text, 2, least_score=0.3) == [3, 4]

    def test_proposes_nothing_for_a_text_without_repetition(self) -> None:
        assert suffix_chain([1, 2, 3], 4) == []
        assert suffix_chain([1], 4) == []

    def test_asks_the_controller_with_the_score(self) -> None:
        asked: list[tuple[float, float]] = []

        def keep(score: float, entropy: float, all_accepted: float) -> bool:
            asked.append((score, all_accepted))
            return score > 0.45

        assert suffix_chain([1, 2, 3, 4, 5, 1, 2], 9, keep) == [3, 4, 5]
        assert [score for score, _ in asked] == pytest.approx([2 / 3, 1 / 2, 2 / 5])
        assert all(score == all_accepted for score, all_accepted in asked), "a score is already the whole chain's"

    def test_counts_what_is_emitted_as_if_it_had_been_there_at_once(self) -> None:
        text = torch.randint(2, 6, (60,), generator=torch.Generator().manual_seed(1)).tolist()
        draft, batch = SuffixDraft(), known(text[:3], capacity=80)
        draft.start(batch, KVCache(1, 1), [0])
        for start in range(3, 17, 2):
            draft.propose(batch, [3])
            batch.append(0, text[start : start + 2])
        assert draft.propose(batch, [6]).token_ids[0].tolist() == suffix_chain(batch.tokens[0], 6)

    def test_forgets_the_rows_that_end(self) -> None:
        texts = [[1, 2, 3, 1, 2], [4, 5, 6, 4, 5], [7, 8, 9, 7, 8]]
        draft, batch = SuffixDraft(), known(*texts)
        draft.start(batch, KVCache(1, 1, 3), [0] * 3)
        assert draft.propose(batch, [1, 1, 1]).token_ids.tolist() == [[3], [6], [9]]
        draft.keep_rows([0, 2])
        batch.keep_rows([0, 2])
        assert draft.propose(batch, [1, 1]).token_ids.tolist() == [[3], [9]]

    def test_grows_a_tree_by_the_most_probable_token(self) -> None:
        """After 1 came 4 twice and 3 once: 1/3 and 1/6, for one token is a reason of weight 1/2.

        Then 7 after (1, 4) has 2/3 of its parent's score, 2/9, so it is found before 3; 6 after (1, 3) has 1/9.
        """
        text = [9, 1, 4, 7, 1, 4, 7, 1, 3, 6, 1]
        for shape, least, parents, tokens in [
            ("2", 0.1, (-1, -1), [4, 3]),
            ("2", 0.2, (-1,), [4]),
            ("1,1", 0.1, (-1, 0), [4, 7]),
            ("2,1", 0.1, (-1, -1, 0, 1), [4, 3, 7, 6]),
            ("2,1", 0.12, (-1, -1, 0), [4, 3, 7]),
            ("1,1,1", 0.1, (-1, -1, 0), [4, 3, 7]),
            ("2", 0.4, (), []),
        ]:
            draft, batch = SuffixDraft(least_score=least), known(text)
            draft.start(batch, KVCache(1, 1), [0])
            proposal = draft.propose_tree(batch, TokenTree.parse(shape), False)
            assert proposal.trees == (TokenTree(parents),)
            assert proposal.token_ids[0, : len(tokens)].tolist() == tokens

    def test_reads_only_so_many_tokens(self) -> None:
        with pytest.raises(ValueError, match="depth must be >= 2 tokens, got 1"):
            SuffixDraft(1)


# ---- lookups as trees


def looked_up(texts: list[list[int]], shape: str) -> Proposal:
    return PromptLookupDraft().propose_tree(known(*texts), TokenTree.parse(shape), False)


class TestLookupTrees:
    def test_the_latest_occurrence_comes_first(self) -> None:
        proposal = looked_up([[1, 2, 5, 6, 1, 2, 7, 8, 1, 2]], "2,1")
        assert proposal.trees == (TokenTree((-1, -1, 0, 1)),)
        assert proposal.token_ids.tolist() == [[7, 5, 8, 6]]
        assert proposal.probs is None

    def test_shared_beginnings_are_merged(self) -> None:
        proposal = looked_up([[1, 2, 5, 6, 1, 2, 5, 8, 1, 2]], "2,1")
        assert proposal.trees == (TokenTree((-1, 0, 0)),)
        assert proposal.token_ids.tolist() == [[5, 8, 6]]

    def test_no_more_is_drafted_than_the_tree_has(self) -> None:
        text = [1, 2, 5, 6, 1, 2, 7, 8, 1, 2, 9, 4, 1, 2]
        assert looked_up([text], "1,1,1").token_ids.tolist() == [[9, 4, 1]]
        assert looked_up([text], "3").token_ids.tolist() == [[9, 7, 5]]

    def test_rows_are_padded(self) -> None:
        proposal = looked_up([[1, 2, 3], [1, 2, 5, 1, 2], [4, 5, 6, 4, 7, 4]], "2,1")
        assert proposal.trees == (TokenTree(()), TokenTree((-1, 0)), TokenTree((-1, -1, 0, 1)))
        assert proposal.token_ids.tolist() == [[-1] * 4, [5, 1, -1, -1], [7, 5, 4, 6]]

    def test_chains_merge_into_a_tree(self) -> None:
        assert merge([[1, 2, 3], [1, 2, 4], [5]], 9) == ([-1, 0, 1, 1, -1], [1, 2, 3, 4, 5])
        assert merge([[1, 2, 3], [1, 2, 4], [5]], 4) == ([-1, 0, 1, 1], [1, 2, 3, 4])
        assert merge([], 4) == ([], [])


@pytest.mark.parametrize("gamma", [3, TokenTree.branching([2, 1])], ids=["chain", "tree"])
@Settings
def test_a_draft_that_proposes_nothing_costs_one_plain_step(
    target: LlamaDecoder, gamma: DraftLength, settings: SamplingSettings
) -> None:
    class Silent(PromptLookupDraft):
        def propose(self, batch: Batch, limits: Sequence[int], keep_drafting: KeepDrafting | None = None) -> Proposal:
            return Proposal(torch.full((batch.rows, 0), -1), None)

        def propose_tree(self, batch: Batch, tree: TokenTree, replacement: bool) -> Proposal:
            return Proposal(torch.full((batch.rows, 0), -1), None, (TokenTree(()),) * batch.rows)

    watched = Watched(target)
    outputs = optimized_speculative.generate_batch(
        watched, Silent(), [prompt(), prompt(1)[:5]], gamma=gamma, max_new_tokens=9, settings=settings
    )
    for output in outputs:
        assert [(one.drafted, one.accepted, one.emitted, one.depth) for one in output.rounds] == [(0, 0, 1, 0)] * 9
        assert {one.accept_probability for one in output.rounds} == {()}
        assert {one.accepted_ranks for one in output.rounds} == {None}
    assert [fed.shape[1] for fed in watched.fed[1:]] == [1] * 9  # the first is the prefill


# ---- another vocabulary


LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"


class PieceTokenizer:
    """Longest match from the left; what it does not know is token 0."""

    all_special_tokens = ("<unk>",)

    def __init__(self, pieces: Iterable[str]) -> None:
        self.pieces = ["<unk>", *pieces]

    def get_vocab(self) -> dict[str, int]:
        return {piece: place for place, piece in enumerate(self.pieces)}

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        vocab, ids = self.get_vocab(), []
        while text:
            size = next((n for n in (2, 1) if text[:n] in vocab and len(text) >= n), 0)
            ids.append(vocab[text[:size]] if size else 0)
            text = text[max(size, 1) :]
        return {"input_ids": ids}

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return "".join("?" if token == 0 else self.pieces[token] for token in ids)


LETTER_BY_LETTER = PieceTokenizer(LETTERS[:63])
PAIRS = PieceTokenizer(["AB", *reversed(LETTERS[:40]), *(a + b for a in "CDE" for b in "BCDEF"), "[", "]"])


@pytest.fixture(scope="module")
def stranger() -> Watched:
    return Watched(LlamaDecoder.from_transformers(tiny_model(vocab=len(PAIRS.pieces), layers=2, seed=5)))


def translated(stranger: Watched, target: Decoder) -> TranslatedSource:
    return TranslatedSource(stranger, PAIRS, target, LETTER_BY_LETTER)


def letters(text: str) -> list[int]:
    return LETTER_BY_LETTER(text)["input_ids"]


class TestTranslatedDraft:
    def test_reads_again_only_what_has_changed(self, target: LlamaDecoder, stranger: Watched) -> None:
        source, batch, cache = translated(stranger, target), known(letters("GA")), target.new_cache(64)
        source.start(batch, cache)
        stranger.fed.clear()
        source.catch_up(batch)
        source.extend(torch.tensor([[3]]))  # a drafted token that is forgotten
        for emitted, fed in [("B", ["AB"]), ("G", ["G"]), ("HC", ["H", "C"]), ("DA", ["CD", "A"]), ("GG", ["G", "G"])]:
            batch.append(0, letters(emitted))
            stranger.fed.clear()
            logits = source.catch_up(batch)
            assert [PAIRS.pieces[token] for token in stranger.fed[0][0].tolist()] == fed
            fresh = translated(stranger, target)
            fresh.start(batch, cache)
            torch.testing.assert_close(logits, fresh.catch_up(batch), rtol=1e-9, atol=1e-9)
            source.extend(torch.tensor([[7]]))

    def test_each_row_reads_its_own(self, target: LlamaDecoder, stranger: Watched) -> None:
        texts = [letters("GAB"), letters("A"), letters("HCDEFGH")]
        batch, source = known(*texts), translated(stranger, target)
        source.start(batch, target.new_cache(64, 3))
        source.catch_up(batch)
        for row, emitted in enumerate(("C", "BGH", "A")):
            batch.append(row, letters(emitted))
        logits = source.catch_up(batch)
        source.keep_rows([0, 2])
        batch.keep_rows([0, 2])
        for row in range(2):
            batch.append(row, letters("C"))
        later = source.catch_up(batch)
        after_one = [(0, "GABC", logits), (1, "ABGH", logits), (2, "HCDEFGHA", logits)]
        for row, text, seen in [*after_one, (0, "GABCC", later), (1, "HCDEFGHAC", later)]:
            alone, fresh = known(letters(text)), translated(stranger, target)
            fresh.start(alone, target.new_cache(64))
            torch.testing.assert_close(seen[row : row + 1], fresh.catch_up(alone), rtol=1e-9, atol=1e-9)

    def test_proposes_only_tokens_that_both_have(self, target: LlamaDecoder, stranger: Watched) -> None:
        draft = ModelDraft(translated(stranger, target), SAMPLED, "stranger")
        batch = known(letters("GABACH"))
        draft.start(batch, target.new_cache(64), [0])
        proposal = draft.propose(batch, [5])
        shared = [0, *letters(LETTERS[:40])]
        assert proposal.probs is not None
        outside = [token for token in range(target.vocab_size) if token not in shared]
        assert proposal.probs[..., outside].eq(0).all()
        torch.testing.assert_close(proposal.probs.sum(-1), torch.ones(1, 5).double())
        assert set(proposal.token_ids[0].tolist()) <= set(shared)

    @Settings
    @pytest.mark.parametrize("gamma", [3, TokenTree.branching([2, 2])], ids=["chain", "tree"])
    def test_decodes_a_batch_as_each_prompt_alone(
        self, target: LlamaDecoder, stranger: Watched, gamma: DraftLength, settings: SamplingSettings
    ) -> None:
        draft = ModelDraft(translated(stranger, target), settings, "stranger")
        prompts = [torch.tensor(letters(text)) for text in ("GABACHAB", "A", "CDCDC")]

        def run(chosen: list[Tensor], seeds: list[int]) -> list[list[int]]:
            outputs = optimized_speculative.generate_batch(
                target, draft, chosen, gamma=gamma, max_new_tokens=16, settings=settings, seeds=seeds
            )
            return [output.token_ids for output in outputs]

        together = run(prompts, [1, 2, 3])
        assert together == [run([one], [seed])[0] for seed, one in enumerate(prompts, start=1)]
        if settings.greedy:
            plain = baseline_autoregressive.generate_batch(target, prompts, max_new_tokens=16, settings=settings)
            assert together == [output.token_ids for output in plain]

    def test_takes_texts_longer_than_a_quarter_of_its_positions(self, target: LlamaDecoder, stranger: Watched) -> None:
        """The draft has 256; room for four of its tokens for each of the target's is not to be had."""
        draft = ModelDraft(TranslatedSource(stranger.decoder, PAIRS, target, LETTER_BY_LETTER), GREEDY, "stranger")
        long = torch.tensor(letters("GABACHAB" * 12))
        fast = optimized_speculative.generate(target, draft, long, gamma=3, max_new_tokens=16, settings=GREEDY)
        plain = baseline_autoregressive.generate(target, long, max_new_tokens=16, settings=GREEDY)
        assert fast.token_ids == plain.token_ids

    def test_vocabularies_without_a_common_token_are_refused(self, target: LlamaDecoder, stranger: Watched) -> None:
        with pytest.raises(ValueError, match="draft and target have no token in common; choose a draft whose"):
            TranslatedSource(stranger, PieceTokenizer("[]{}"), target, LETTER_BY_LETTER)


# ---- controllers


def every_controller() -> list[Controller]:
    return [
        FixedGamma(4),
        Heuristic(2, 6),
        Goodput(Costs(0.1, [1 + 0.05 * n for n in range(6)]), 5),
        Goodput(Costs(9.0, [1.0] * 6), 5),  # drafting never pays
        ConfidenceThreshold(5, 0.3),
        ConfidenceThreshold(5, 0.5, "entropy"),
        RejectionThreshold(5, 0.8),
        OffAboveLoad(Heuristic(2, 6), 1),
        Bandit([0, 1, 3]),
        parse_controller("bandit", 4, seed=1),
        parse_controller("heuristic", 3),
    ]


def controlled(
    target: Decoder, draft: Draft, controller: DraftLength, settings: SamplingSettings = GREEDY, seed: int = 0
) -> Generation:
    return optimized_speculative.generate(
        target, draft, prompt(seed), gamma=controller, max_new_tokens=NEW, settings=settings, seed=seed
    )


@pytest.fixture(scope="module")
def drafts(target: LlamaDecoder, other_model: LlamaForCausalLM) -> list[Callable[[SamplingSettings], Draft]]:
    other = LlamaDecoder.from_transformers(other_model)
    return [
        lambda settings: ModelDraft(OwnCache(other), settings, "other"),
        lambda settings: make_draft("suffix", target, settings),
        lambda settings: make_draft("early-exit:3", target, settings),
    ]


@pytest.mark.parametrize("place", range(len(every_controller())))
def test_every_controller_leaves_the_greedy_output_alone(
    target: LlamaDecoder, drafts: list[Callable[[SamplingSettings], Draft]], place: int
) -> None:
    plain = baseline_autoregressive.generate(target, prompt(), max_new_tokens=NEW, settings=GREEDY)
    for draft in drafts:
        controller = every_controller()[place]
        fast = controlled(target, draft(GREEDY), controller)
        assert fast.token_ids == plain.token_ids
        assert {one.gamma for one in fast.rounds} == {controller.max_gamma}
        assert all(one.drafted <= controller.max_gamma for one in fast.rounds)
        sampled = controlled(target, draft(SAMPLED), every_controller()[place], SAMPLED)
        assert len(sampled.token_ids) == NEW


def check_heuristic(rounds: pd.DataFrame, initial: int, maximum: int, max_new_tokens: int) -> None:
    """Drafts two longer after one that was accepted whole, else one shorter; never more than can still be emitted."""
    for _, request in rounds.groupby("request_id"):
        gamma, left = initial, max_new_tokens
        for one in request.itertuples():
            assert one.gamma == maximum
            assert one.drafted == min(gamma, left - 1)
            left -= one.emitted
            if one.drafted:
                gamma = min(max(1, gamma + (2 if one.accepted == one.drafted else -1)), maximum)
        assert left == 0


def test_the_same_controller_drives_the_simulator_and_the_loop(tiny_target: Target) -> None:
    controller = Heuristic(2, 6)
    scenario = Scenario(
        ConstantLatency(1.0), ConstantLatency(0.1), IidAcceptance(0.7), controller=controller, max_new_tokens=NEW,
        last_round="shortened", requests=3,
    )  # fmt: skip
    configurations = [
        Configuration(None, 0),
        Configuration(make_draft("synthetic:0.7", tiny_target.decoder, SAMPLED), controller, policy="heuristic"),
    ]
    unstoppable = Target("tiny", tiny_target.decoder, tiny_target.tokenizer, frozenset())
    measured = pd.concat(
        [
            measure_prompts(
                unstoppable, [Prompt(str(i), "red", f"t{i + 5} t9 t7", "evaluation")], configurations,
                max_new_tokens=NEW, settings=SAMPLED, seed=3,
            )
            for i in range(3)
        ]
    )  # fmt: skip
    check_heuristic(simulate(scenario, 0), 2, 6, NEW)
    driven = measured[measured["draft"] == "synthetic:0.7+heuristic"]
    check_heuristic(driven, 2, 6, NEW)
    assert driven["drafted"].nunique() > 3
    controlled(tiny_target.decoder, make_draft("synthetic:0.7", tiny_target.decoder, GREEDY), controller)
    check_heuristic(simulate(scenario, 0), 2, 6, NEW)  # each run starts afresh


def test_a_threshold_ends_drafts_where_the_draft_is_unsure(target: LlamaDecoder, other_model: LlamaForCausalLM) -> None:
    draft = ModelDraft(OwnCache(LlamaDecoder.from_transformers(other_model)), GREEDY, "other")
    for measure in ("confidence", "entropy"):
        lengths = {}
        for threshold in (0.0, 0.25, 1.0):
            rounds = controlled(target, draft, ConfidenceThreshold(4, threshold, measure)).rounds  # type: ignore[arg-type]  # one of the two
            lengths[threshold] = [one.drafted for one in rounds if one.context + 4 < len(prompt()) + NEW]
        assert set(lengths[1.0]) == {1}
        assert min(lengths[0.25]) < 4
        if measure == "confidence":
            assert set(lengths[0.0]) == {4}
            assert max(lengths[0.25]) > 1


def test_a_threshold_goes_by_the_law_that_a_token_was_drawn_from(
    target: LlamaDecoder, other_model: LlamaForCausalLM
) -> None:
    """The draft's law at the last drafted token, or at the one before, is what ended a short chain."""
    draft = ModelDraft(OwnCache(LlamaDecoder.from_transformers(other_model)), SAMPLED, "other")
    threshold = 0.2
    seen: set[int] = set()
    for seed in range(8):
        batch = known(prompt(seed).tolist())
        draft.start(batch, target.new_cache(64), [seed])
        proposal = draft.propose(batch, [6], ConfidenceThreshold(6, threshold).keep_drafting)
        assert proposal.probs is not None
        confidence = proposal.probs[0].amax(-1)
        assert confidence[:-1].ge(threshold).all()
        assert len(confidence) == 6 or confidence[-1] < threshold
        seen.add(len(confidence))
    assert len(seen) > 1


def test_rejection_goes_by_the_product_of_confidences(target: LlamaDecoder, other_model: LlamaForCausalLM) -> None:
    """Every row's own product, over this draft alone."""
    draft = ModelDraft(OwnCache(LlamaDecoder.from_transformers(other_model)), SAMPLED, "other")
    least = 0.02
    seen: set[int] = set()
    for seed in range(4):
        batch = known(prompt(seed).tolist(), prompt(seed + 4).tolist())
        draft.start(batch, target.new_cache(64, 2), [seed, seed + 4])
        for _ in range(2):
            proposal = draft.propose(batch, [6, 6], RejectionThreshold(6, 1 - least).keep_drafting)
            assert proposal.probs is not None
            for row in range(2):
                drafted = int((proposal.token_ids[row] >= 0).sum())
                product = proposal.probs[row, :drafted].amax(-1).cumprod(0)
                assert product[:-1].ge(least).all()
                assert drafted == 6 or product[-1] < least
                seen.add(drafted)
    assert len(seen) > 1


def test_a_draft_that_stops_early_runs_one_forward_for_each_of_its_tokens(
    target: LlamaDecoder, other_model: LlamaForCausalLM
) -> None:
    watched = Watched(LlamaDecoder.from_transformers(other_model))
    draft = ModelDraft(OwnCache(watched), SAMPLED, "other")
    lengths = set()
    for seed in range(8):
        batch = known(prompt(seed).tolist())
        draft.start(batch, target.new_cache(64), [seed])
        watched.fed.clear()
        drafted = draft.propose(batch, [6], ConfidenceThreshold(6, 0.2).keep_drafting).token_ids.shape[1]
        assert len(watched.fed) == drafted
        lengths.add(drafted)
    assert min(lengths) < 6


class Listener:
    """A fixed draft length, with a record of what it was asked and told."""

    max_gamma = 3
    stops_early = foresees = False

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.told: list[RoundOutcome] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(FixedGamma(3), name)

    def next_gamma(self, batch: int = 1) -> int:
        self.asked.append(batch)
        return 3

    def observe(self, outcome: RoundOutcome) -> None:
        self.told.append(outcome)


def test_a_controller_hears_of_a_batch_once_a_forward(target: LlamaDecoder) -> None:
    listener: Any = Listener()
    outputs = optimized_speculative.generate_batch(
        target, make_draft("synthetic:0.6", target, SAMPLED), [prompt(0), prompt(1), prompt(2)], gamma=listener,
        max_new_tokens=NEW, settings=SAMPLED,
    )  # fmt: skip
    assert listener.asked == [told.batch for told in listener.told]
    assert listener.asked == [sum(len(output.rounds) > k for output in outputs) for k in range(len(listener.asked))]
    assert set(listener.asked) > {3}, "requests end at different times"
    rounds = [output.rounds[k] for k in range(len(listener.told)) for output in outputs if len(output.rounds) > k]
    for name in ("drafted", "accepted", "emitted"):
        told = [count for outcome in listener.told for count in getattr(outcome, name).tolist()]
        assert told == [getattr(one, name) for one in rounds]


@pytest.mark.parametrize(("most", "drafted"), [(2, {0}), (3, {1, 2, 3})])
def test_a_batch_above_the_load_drafts_nothing(target: LlamaDecoder, most: int, drafted: set[int]) -> None:
    outputs = optimized_speculative.generate_batch(
        target, make_draft("synthetic:0.6", target, GREEDY), [prompt(0), prompt(1), prompt(2)],
        gamma=OffAboveLoad(FixedGamma(3), most), max_new_tokens=NEW, settings=GREEDY,
    )  # fmt: skip
    assert {
        one.drafted for output in outputs for one in output.rounds if one.context < len(prompt()) + NEW - 1
    } <= drafted


def test_an_oracle_is_not_measured(target: LlamaDecoder) -> None:
    with pytest.raises(
        ValueError, match="Oracle must be told what the target will accept, which only a simulation knows"
    ):
        controlled(target, make_draft("synthetic:0.6", target, GREEDY), Oracle(Costs(0.1, [1.0] * 4), 3))


def test_rows_of_a_batch_stop_at_their_own_places(target: LlamaDecoder, other_model: LlamaForCausalLM) -> None:
    draft = ModelDraft(OwnCache(LlamaDecoder.from_transformers(other_model)), SAMPLED, "other")
    controller = ConfidenceThreshold(5, 0.25)
    prompts, seeds = [prompt(0), prompt(1)[:7], prompt(2)[:11]], [1, 2, 3]

    def run(chosen: list[Tensor], seeds: list[int]) -> list[Generation]:
        return optimized_speculative.generate_batch(
            target, draft, chosen, gamma=deepcopy(controller), max_new_tokens=NEW, settings=SAMPLED, seeds=seeds
        )

    together = run(prompts, seeds)
    for one, seed, output in zip(prompts, seeds, together, strict=True):
        alone = run([one], [seed])[0]
        assert output.token_ids == alone.token_ids
        assert [r.drafted for r in output.rounds] == [r.drafted for r in alone.rounds]
    assert len({r.drafted for r in together[0].rounds}) > 1


def test_a_bandit_learns_from_the_length_that_was_asked_for(target: LlamaDecoder) -> None:
    bandit = Bandit([0, 2, 4])
    rounds = controlled(target, make_draft("synthetic:0.9", target, GREEDY), bandit).rounds
    assert bandit._plays.sum() == len(rounds)
    assert bandit._tokens.sum() == NEW
    assert {one.drafted for one in rounds[:3]} == {0, 2, 4}


def test_what_never_pays_is_not_drafted(target: LlamaDecoder) -> None:
    draft = make_draft("synthetic:0.9", target, GREEDY)
    rounds = controlled(target, draft, Goodput(Costs(9.0, [1.0] * 6), 5)).rounds
    assert [(one.gamma, one.drafted, one.emitted) for one in rounds] == [(5, 0, 1)] * NEW
