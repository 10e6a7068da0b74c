from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain

import pytest
import torch
from transformers import LlamaForCausalLM

from real import baseline_autoregressive, optimized_speculative
from real.decoder import Decoder, TransformersDecoder
from real.draft_models import ModelDraft, make_draft, synthetic_draft
from real.draft_sources import OwnCache
from real.llama_decoder import LlamaDecoder
from real.lookup_drafts import PromptLookupDraft
from real.proposals import Draft, KeepDrafting, Proposal
from real.requests import Batch, prefill
from real.sampling import SamplingSettings
from real.verification import rejection_sampling

GREEDY = SamplingSettings(temperature=0)
SAMPLED = SamplingSettings(temperature=1.0)
NEW = 40

MakeDraft = Callable[[Decoder, SamplingSettings], Draft]


def prompt(seed: int = 0) -> torch.Tensor:
    ids = torch.randint(2, 64, (12,), generator=torch.Generator().manual_seed(seed))
    return torch.cat([ids, ids[:6]])


@pytest.fixture(params=["other model", "early exit", "prompt lookup", "synthetic 0.7", "synthetic 1", "synthetic 0"])
def make(request: pytest.FixtureRequest, other_model: LlamaForCausalLM) -> MakeDraft:
    """Every draft source, over whichever target."""

    def build(target: Decoder, settings: SamplingSettings) -> Draft:
        match request.param.split():
            case ["other", _]:
                return ModelDraft(OwnCache(LlamaDecoder.from_transformers(other_model)), settings, "other")
            case ["early", _]:
                return make_draft("early-exit:3", target, settings)
            case ["prompt", _]:
                return make_draft("prompt-lookup", target, settings)
            case ["synthetic", alpha]:
                return make_draft(f"synthetic:{alpha}", target, settings)
        raise AssertionError(request.param)

    return build


@pytest.mark.parametrize("gamma", [1, 4, 9])
def test_greedy_output_is_the_baseline_s_token_by_token(decoder: Decoder, make: MakeDraft, gamma: int) -> None:
    for seed in range(2):
        plain = baseline_autoregressive.generate(decoder, prompt(seed), max_new_tokens=NEW, settings=GREEDY)
        fast = optimized_speculative.generate(
            decoder, make(decoder, GREEDY), prompt(seed), gamma=gamma, max_new_tokens=NEW, settings=GREEDY
        )
        assert fast.token_ids == plain.token_ids
        assert len(plain.token_ids) == NEW


def test_a_perfect_draft_emits_gamma_plus_one_tokens_a_round(decoder: Decoder) -> None:
    draft = synthetic_draft(decoder, GREEDY, alpha=1.0)
    fast = optimized_speculative.generate(decoder, draft, prompt(), gamma=4, max_new_tokens=NEW, settings=GREEDY)
    assert [r.emitted for r in fast.rounds] == [5] * 8
    hopeless = synthetic_draft(decoder, GREEDY, alpha=0.0)
    slow = optimized_speculative.generate(decoder, hopeless, prompt(), gamma=4, max_new_tokens=NEW, settings=GREEDY)
    assert [r.emitted for r in slow.rounds] == [1] * NEW


@pytest.mark.parametrize("settings", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_rounds_account_for_every_token(decoder: Decoder, make: MakeDraft, settings: SamplingSettings) -> None:
    fast = optimized_speculative.generate(
        decoder, make(decoder, settings), prompt(), gamma=3, max_new_tokens=NEW, settings=settings, seed=5
    )
    assert sum(r.emitted for r in fast.rounds) == len(fast.token_ids) == NEW
    known = len(prompt())
    for r in fast.rounds:
        assert r.context == known
        assert 0 <= r.accepted <= r.drafted <= r.gamma == 3
        assert r.emitted == r.accepted + 1
        assert not r.cut
        assert r.accept_probability is not None
        assert len(r.accept_probability) == r.drafted
        known += r.emitted


@pytest.mark.parametrize("max_new_tokens", [1, 2, 3, 7])
def test_max_new_tokens_is_never_overshot(decoder: Decoder, make: MakeDraft, max_new_tokens: int) -> None:
    fast = optimized_speculative.generate(
        decoder, make(decoder, GREEDY), prompt(), gamma=5, max_new_tokens=max_new_tokens, settings=GREEDY
    )
    assert len(fast.token_ids) == max_new_tokens
    assert not fast.stopped


def test_a_stop_token_inside_an_accepted_block_ends_the_output_there(decoder: Decoder) -> None:
    plain = baseline_autoregressive.generate(decoder, prompt(), max_new_tokens=NEW, settings=GREEDY).token_ids
    stop = next(i for i in range(6, NEW) if plain[i] not in plain[:i])
    for gamma in range(1, 8):
        draft = synthetic_draft(decoder, GREEDY, alpha=1.0)
        fast = optimized_speculative.generate(
            decoder,
            draft,
            prompt(),
            gamma=gamma,
            max_new_tokens=NEW,
            settings=GREEDY,
            stop_ids=frozenset({plain[stop], 10**6}),
        )
        assert fast.token_ids == plain[: stop + 1]
        assert fast.stopped
        assert [r.cut for r in fast.rounds[:-1]] == [False] * (len(fast.rounds) - 1)
        assert fast.rounds[-1].cut == ((stop + 1) % (gamma + 1) != 0)


def test_the_baseline_stops_with_the_stop_token(decoder: Decoder) -> None:
    plain = baseline_autoregressive.generate(decoder, prompt(), max_new_tokens=NEW, settings=GREEDY).token_ids
    cut = baseline_autoregressive.generate(
        decoder, prompt(), max_new_tokens=NEW, settings=GREEDY, stop_ids=frozenset({plain[9]})
    )
    assert cut.token_ids == plain[: plain.index(plain[9]) + 1]
    assert cut.stopped


def test_the_same_seed_gives_the_same_tokens_and_another_seed_others(decoder: Decoder, make: MakeDraft) -> None:
    def tokens(seed: int) -> list[int]:
        return optimized_speculative.generate(
            decoder, make(decoder, SAMPLED), prompt(), gamma=3, max_new_tokens=NEW, settings=SAMPLED, seed=seed
        ).token_ids

    assert tokens(1) == tokens(1)
    assert tokens(1) != tokens(2)


def test_a_prefilled_cache_can_be_used_again(decoder: Decoder, make: MakeDraft) -> None:
    cache = prefill(decoder, [prompt()], len(prompt()) + NEW + 5)
    plain = baseline_autoregressive.generate(decoder, prompt(), max_new_tokens=NEW, settings=GREEDY)
    for _ in range(2):
        again = baseline_autoregressive.generate(decoder, prompt(), max_new_tokens=NEW, settings=GREEDY, cache=cache)
        fast = optimized_speculative.generate(
            decoder, make(decoder, GREEDY), prompt(), gamma=4, max_new_tokens=NEW, settings=GREEDY, cache=cache
        )
        assert again.token_ids == fast.token_ids == plain.token_ids


def test_tokens_are_streamed_as_they_are_emitted(decoder: Decoder) -> None:
    seen: list[list[int]] = []
    draft = make_draft("synthetic:0.7", decoder, GREEDY)
    fast = optimized_speculative.generate(
        decoder, draft, prompt(), gamma=3, max_new_tokens=20, settings=GREEDY, on_tokens=lambda _, ids: seen.append(ids)
    )
    assert [len(block) for block in seen] == [r.emitted for r in fast.rounds]
    assert list(chain(*seen)) == fast.token_ids


def test_sampled_output_is_independent_of_gamma_where_the_draft_is_the_target(decoder: Decoder) -> None:
    """A draft with q = p is never rejected: every round emits gamma + 1 tokens."""
    draft = ModelDraft(OwnCache(decoder), SAMPLED, "itself")
    fast = optimized_speculative.generate(decoder, draft, prompt(), gamma=4, max_new_tokens=NEW, settings=SAMPLED)
    assert [r.emitted for r in fast.rounds] == [5] * 8
    assert min(a for r in fast.rounds for a in r.accept_probability or ()) > 1 - 1e-9


@pytest.mark.parametrize("alpha", [0.2, 0.6, 0.9])
@pytest.mark.parametrize("settings", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_the_synthetic_draft_is_accepted_at_its_alpha(
    model: LlamaForCausalLM, alpha: float, settings: SamplingSettings
) -> None:
    """Within 4 standard errors: six cells, a false alarm in 1 of 2,600 sets of seeds."""
    decoder = LlamaDecoder.from_transformers(model)
    accepted = reached = 0
    for seed in range(15):
        fast = optimized_speculative.generate(
            decoder,
            synthetic_draft(decoder, settings, alpha),
            prompt(seed),
            gamma=3,
            max_new_tokens=NEW,
            settings=settings,
            seed=seed,
        )
        accepted += sum(r.accepted for r in fast.rounds)
        reached += sum(min(r.accepted + 1, r.drafted) for r in fast.rounds)
    standard_error = (alpha * (1 - alpha) / reached) ** 0.5
    assert abs(accepted / reached - alpha) < 4 * standard_error


def known(tokens: list[int], capacity: int = 64) -> Batch:
    """One request with these tokens."""
    return Batch([torch.tensor(tokens)], 20, capacity, frozenset(), [0], torch.device("cpu"))


class TestPromptLookup:
    def propose(self, context: list[int], gamma: int, **options: int) -> list[int]:
        proposal = PromptLookupDraft(**options).propose(known(context), [gamma])
        assert proposal.probs is None
        return proposal.token_ids[0].tolist()

    def test_copies_what_followed_the_last_occurrence(self) -> None:
        assert self.propose([1, 2, 3, 4, 9, 1, 2, 3, 5, 9, 1, 2, 3], 2) == [5, 9]

    def test_prefers_the_longest_ngram(self) -> None:
        assert self.propose([7, 2, 3, 4, 9, 3, 5, 2, 3], 1) == [4]

    def test_falls_back_to_shorter_ngrams(self) -> None:
        assert self.propose([3, 8, 9, 3], 4) == [8, 9, 3]
        assert self.propose([3, 8, 9, 3], 4, max_ngram=1) == [8, 9, 3]

    def test_proposes_nothing_where_nothing_matches(self) -> None:
        assert self.propose([1, 2, 3], 4) == []
        assert self.propose([1], 4) == []

    def test_a_round_without_proposal_is_one_plain_step(self, decoder: Decoder) -> None:
        class Silent(PromptLookupDraft):
            def propose(
                self, batch: Batch, limits: Sequence[int], keep_drafting: KeepDrafting | None = None
            ) -> Proposal:
                return Proposal(batch.token_ids[:, :0], None)

        fast = optimized_speculative.generate(decoder, Silent(), prompt(), gamma=3, max_new_tokens=9, settings=GREEDY)
        assert [(r.gamma, r.drafted, r.emitted) for r in fast.rounds] == [(3, 0, 1)] * 9


def test_a_draft_with_its_own_cache_reads_what_it_missed(
    model: LlamaForCausalLM, other_model: LlamaForCausalLM
) -> None:
    """After a fully accepted round the draft lacks two tokens; its proposals must be those of a fresh cache."""
    target = TransformersDecoder(model)
    draft, fresh = (ModelDraft(OwnCache(LlamaDecoder.from_transformers(other_model)), GREEDY, "other") for _ in "ab")
    batch = known(prompt().tolist())
    draft.start(batch, target.new_cache(64), [0])
    first = draft.propose(batch, [3]).token_ids[0].tolist()
    batch.append(0, [*first, 5])
    fresh.start(batch, target.new_cache(64), [0])
    assert torch.equal(draft.propose(batch, [3]).token_ids, fresh.propose(batch, [3]).token_ids)


class TestBadInput:
    def generate(self, decoder: Decoder, ids: torch.Tensor | None = None, **changed: object) -> None:
        options = {"gamma": 2, "max_new_tokens": 4, "settings": GREEDY} | changed
        draft = make_draft("prompt-lookup", decoder, GREEDY)
        optimized_speculative.generate(decoder, draft, prompt() if ids is None else ids, **options)  # type: ignore[arg-type]  # bad on purpose

    def test_gamma_below_one(self, decoder: Decoder) -> None:
        with pytest.raises(ValueError, match="gamma must be >= 1, got 0; use baseline_autoregressive"):
            self.generate(decoder, gamma=0)

    def test_no_new_tokens(self, decoder: Decoder) -> None:
        with pytest.raises(ValueError, match="max_new_tokens must be >= 1, got 0"):
            self.generate(decoder, max_new_tokens=0)

    def test_a_batch(self, decoder: Decoder) -> None:
        with pytest.raises(ValueError, match=r"must be \[n\], got \[2, 18\]; give a batch as a list of prompts"):
            self.generate(decoder, prompt().expand(2, -1))

    def test_an_empty_prompt(self, decoder: Decoder) -> None:
        with pytest.raises(ValueError, match="a prompt is empty"):
            self.generate(decoder, prompt()[:0])

    def test_ids_outside_the_vocabulary(self, decoder: Decoder) -> None:
        with pytest.raises(ValueError, match=r"must be in \[0, 64\), got 5 to 64"):
            self.generate(decoder, torch.tensor([5, 64]))

    def test_a_sampling_rule_at_temperature_zero(self, decoder: Decoder) -> None:
        with pytest.raises(ValueError, match="temperature 0 is verified by the greedy rule"):
            self.generate(decoder, rule=rejection_sampling)

    @pytest.mark.parametrize("name", ["early-exit", "early-exit:x", "prompt-lookup:0", "synthetic:2", "nothing"])
    def test_a_draft_name_that_means_nothing(self, decoder: Decoder, name: str) -> None:
        with pytest.raises(ValueError, match=f"draft '{name}'"):
            make_draft(name, decoder, GREEDY)
