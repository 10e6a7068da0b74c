"""`generate` with the speculative loop gives what it gives without: tokens, law, stream, stops; or it refuses."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chi2
from torch import Tensor
from transformers import (
    BertConfig,
    BertLMHeadModel,
    DynamicCache,
    EosTokenCriteria,
    LlamaForCausalLM,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.generation import GenerateDecoderOnlyOutput

from real import huggingface
from real.decoder import TransformersDecoder
from real.draft_models import make_draft
from real.huggingface import draft_for, prepare, sampling_settings, speculative_generate
from real.llama_decoder import LlamaDecoder
from real.sampling import SamplingSettings
from real.verification import rejection_sampling
from sim.trees import TokenTree
from tests.real.conftest import tiny_model

PAD = 0
NEW = 24
DRAFTS = ["prompt-lookup", "suffix", "early-exit:3", "synthetic:0.8", "other model", "tree"]


def batch(rows: int) -> dict[str, Tensor]:
    """Prompts of 18, 11 and 4 tokens, padded on the left."""
    ids = torch.full((rows, 18), PAD)
    for row, length in zip(range(rows), (18, 11, 4), strict=False):
        prompt = torch.randint(2, 64, (length,), generator=torch.Generator().manual_seed(row))
        ids[row, 18 - length :] = prompt
        ids[row, 18 - length // 3 :] = prompt[: length // 3]  # a repetition, for lookups
    return {"input_ids": ids, "attention_mask": (ids != PAD).long()}


def method(name: str, other: LlamaForCausalLM, gamma: int = 4) -> Callable[..., Any]:
    match name:
        case "other model":
            return speculative_generate(other, gamma)
        case "tree":
            return speculative_generate(other, TokenTree((-1, -1, 0, 0, 1)))
    return speculative_generate(name, gamma)


class Recorder:
    """A streamer that keeps what it is given."""

    def __init__(self) -> None:
        self.seen: list[list[Any]] = []
        self.ended = 0

    def put(self, value: Tensor) -> None:
        assert not self.ended
        self.seen.append(value.tolist())

    def end(self) -> None:
        self.ended += 1


class StopAt(StoppingCriteria):
    """Stops each row so many tokens after its prompt, and keeps what it was shown."""

    def __init__(self, *lengths: int) -> None:
        self.lengths = torch.tensor(lengths) + 18
        self.shown: list[list[list[int]]] = []

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        assert scores is None
        self.shown.append(input_ids.tolist())
        return input_ids.shape[1] >= self.lengths


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("name", DRAFTS)
def test_greedy_output_is_that_of_generate(
    model: LlamaForCausalLM, other_model: LlamaForCausalLM, name: str, rows: int
) -> None:
    plain = model.generate(**batch(rows), max_new_tokens=NEW, pad_token_id=PAD)
    fast = model.generate(
        **batch(rows), max_new_tokens=NEW, pad_token_id=PAD, custom_generate=method(name, other_model)
    )
    assert fast.dtype == torch.long
    assert fast.tolist() == plain.tolist()


@pytest.mark.parametrize("as_list", [False, True], ids=["one id", "list of ids"])
def test_rows_end_with_their_eos_token_and_are_padded(model: LlamaForCausalLM, as_list: bool) -> None:
    free = model.generate(**batch(3), max_new_tokens=NEW, pad_token_id=PAD)[:, 18:].tolist()
    eos = next(token for token in free[1][5:] if token not in free[1][:5])
    also = next(token for token in free[0][8:] if token not in free[0][:8])
    stops: Any = {"eos_token_id": [eos, also] if as_list else eos}
    plain = model.generate(**batch(3), max_new_tokens=NEW, pad_token_id=PAD, **stops)
    assert (plain[:, 18:] == PAD).any()
    for gamma in (1, 3, 8):
        spec = speculative_generate("synthetic:0.9", gamma)
        fast = model.generate(**batch(3), max_new_tokens=NEW, pad_token_id=PAD, custom_generate=spec, **stops)
        assert fast.tolist() == plain.tolist()
    one = model.generate(batch(1)["input_ids"], max_new_tokens=NEW, **stops)
    assert (
        model.generate(batch(1)["input_ids"], max_new_tokens=NEW, custom_generate=spec, **stops).tolist()
        == one.tolist()
    )


@pytest.mark.parametrize(
    "length", [{"max_length": 25}, {"max_new_tokens": 1}, {"max_length": 25, "min_length": 18}, {}]
)
@pytest.mark.filterwarnings("ignore:Using the model-agnostic default")
def test_lengths_are_resolved_as_generate_resolves_them(model: LlamaForCausalLM, length: dict[str, int]) -> None:
    spec = speculative_generate("synthetic:1", 5)
    plain = model.generate(**batch(3), pad_token_id=PAD, **length)
    fast = model.generate(**batch(3), pad_token_id=PAD, custom_generate=spec, **length)
    assert fast.tolist() == plain.tolist()
    assert fast.shape[1] == {"max_length": 25, "max_new_tokens": 19}.get(next(iter(length), ""), 38)


def test_a_padded_batch_needs_no_mask_where_generate_infers_it(model: LlamaForCausalLM) -> None:
    ids = batch(3)["input_ids"]
    plain = model.generate(ids, max_new_tokens=5, pad_token_id=PAD)
    spec = speculative_generate("prompt-lookup")
    assert model.generate(ids, max_new_tokens=5, pad_token_id=PAD, custom_generate=spec).tolist() == plain.tolist()


@pytest.mark.parametrize("rows", [1, 3])
def test_a_streamer_gets_the_prompt_then_each_token_then_the_end(model: LlamaForCausalLM, rows: int) -> None:
    plain, fast = Recorder(), Recorder()
    model.generate(**batch(rows), max_new_tokens=NEW, pad_token_id=PAD, streamer=plain)
    spec = speculative_generate("synthetic:0.8", 3)
    model.generate(**batch(rows), max_new_tokens=NEW, pad_token_id=PAD, streamer=fast, custom_generate=spec)
    assert len(fast.seen) == 1 + NEW
    assert fast.seen == plain.seen
    assert fast.ended == plain.ended == 1


@pytest.mark.parametrize("eos", [None, 1], ids=["no eos", "eos"])
@pytest.mark.parametrize("lengths", [(10,), (6, 10, 13)], ids=["batch 1", "batch 3"])
def test_a_stopping_criterion_inside_a_round_cuts_where_generate_cuts(
    model: LlamaForCausalLM, other_model: LlamaForCausalLM, lengths: tuple[int, ...], eos: int | None
) -> None:
    def run(**more: Any) -> tuple[Tensor, StopAt, Recorder]:
        stop, streamer = StopAt(*lengths), Recorder()
        sequences = model.generate(
            **batch(len(lengths)), max_new_tokens=NEW, pad_token_id=PAD, eos_token_id=eos, streamer=streamer,
            stopping_criteria=StoppingCriteriaList([stop]), **more,
        )  # fmt: skip
        return sequences, stop, streamer

    sequences, stop, streamer = run()
    assert sequences.shape[1] == 18 + max(lengths)
    for name in ("synthetic:1", "other model"):
        fast, fast_stop, fast_streamer = run(custom_generate=method(name, other_model, gamma=6))
        assert fast.tolist() == sequences.tolist()
        assert fast_stop.shown == stop.shown
        assert (fast_streamer.seen, fast_streamer.ended) == (streamer.seen, 1)


def test_max_time_ends_the_output(model: LlamaForCausalLM) -> None:
    spec = speculative_generate("synthetic:1", 5)
    fast = model.generate(**batch(1), max_new_tokens=NEW, max_time=1e-9, custom_generate=spec)
    assert fast.shape[1] == 19


def test_a_seed_of_torch_repeats_a_sampled_output_and_greedy_takes_none(model: LlamaForCausalLM) -> None:
    def run(seed: int, do_sample: bool) -> tuple[list[int], int]:
        torch.manual_seed(seed)
        ids = model.generate(
            **batch(3), do_sample=do_sample, max_new_tokens=NEW, pad_token_id=PAD,
            custom_generate=speculative_generate("early-exit:3"),
        )  # fmt: skip
        return ids.flatten().tolist(), int(torch.randint(2**40, ()))

    assert run(1, True) == run(1, True)
    assert run(1, True)[0] != run(2, True)[0]
    torch.manual_seed(5)
    assert run(5, False)[1] == (torch.manual_seed(5), int(torch.randint(2**40, ())))[1]


# The law of the first two tokens against transformers' own processors, by Pearson's test at a false-alarm rate of 1e-4
# (the seed is fixed, so it alarms always or never). A setting left out moves at least 0.11 of the probability, and
# what it moves out of the law's support is an alarm by itself; the mutant of the temperature moves 0.24 and keeps the
# support small: noncentrality 4 x 0.24^2 x 800 = 184 at 41 degrees of freedom, power above 0.9999.
FALSE_ALARM = 1e-4
DRAWS, MUTANT_DRAWS = 2000, 800
WIDE: dict[str, Any] = {"temperature": 1.5, "top_k": 8, "top_p": 0.9}
NARROW = WIDE | {"min_p": 0.3}


def law_of_two_tokens(model: LlamaForCausalLM, ids: Tensor, settings: dict[str, Any]) -> Tensor:
    """[vocab, vocab] P(first, second), by generate's own processors on the model's own logits."""
    config = copy.deepcopy(model.generation_config)
    config.update(do_sample=True, **settings)
    model._prepare_special_tokens(config)
    shape = model._get_logits_processor(config, input_ids_seq_length=ids.shape[1])
    with torch.no_grad():
        first = shape(ids, model(ids).logits[:, -1])[0].softmax(-1)
        longer = torch.cat([ids.expand(len(first), -1), torch.arange(len(first))[:, None]], dim=1)
        second = shape(longer, model(longer).logits[:, -1]).softmax(-1)
    return first[:, None] * second


def alarms(law: Tensor, sequences: Tensor) -> bool:
    """Whether Pearson's test rejects the law; outcomes that are expected less than 5 times share a cell."""
    pairs = sequences[:, 18] * law.shape[1] + sequences[:, 19]
    counts = torch.bincount(pairs, minlength=law.numel()).double().numpy()
    expected = law.flatten().double().numpy() * len(sequences)
    if counts[expected == 0].any():
        return True
    rare = expected < 5
    counts, expected = (np.append(x[~rare], x[rare].sum()) for x in (counts, expected))
    statistic = ((counts - expected) ** 2 / np.maximum(expected, 1e-9)).sum()
    return bool(statistic > chi2.isf(FALSE_ALARM, len(counts) - 1))


def sample(model: LlamaForCausalLM, spec: Callable[..., Any], draws: int, settings: dict[str, Any]) -> Tensor:
    torch.manual_seed(3)
    sequences: Tensor = model.generate(
        batch(1)["input_ids"], do_sample=True, max_new_tokens=3, num_return_sequences=draws, pad_token_id=PAD,
        custom_generate=spec, **settings,
    )  # fmt: skip
    return sequences


@pytest.mark.parametrize(
    ("name", "settings"), [("other model", WIDE), ("other model", NARROW), ("tree", WIDE), ("prompt-lookup", NARROW)]
)
def test_sampled_tokens_follow_generate_s_law(
    model: LlamaForCausalLM, other_model: LlamaForCausalLM, name: str, settings: dict[str, Any]
) -> None:
    law = law_of_two_tokens(model, batch(1)["input_ids"], settings)
    assert not alarms(law, sample(model, method(name, other_model, gamma=2), DRAWS, settings))


@pytest.mark.parametrize(
    ("forgotten", "settings"), [("temperature", WIDE), ("top_k", WIDE), ("top_p", WIDE), ("min_p", NARROW)]
)
def test_a_forgotten_setting_is_caught(
    model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch, forgotten: str, settings: dict[str, Any]
) -> None:
    def forgetful(*arguments: Any) -> SamplingSettings:
        return replace(sampling_settings(*arguments), **{forgotten: 1.0 if forgotten == "temperature" else None})

    monkeypatch.setattr(huggingface, "sampling_settings", forgetful)
    law = law_of_two_tokens(model, batch(1)["input_ids"], settings)
    assert alarms(law, sample(model, speculative_generate("prompt-lookup"), MUTANT_DRAWS, settings))


def test_the_default_top_k_of_50_is_honoured(model: LlamaForCausalLM) -> None:
    ids = batch(1)["input_ids"]
    with torch.no_grad():
        unlikely = model(ids).logits[0, -1].argsort()[: 64 - 50]

    def firsts(**shape: Any) -> Tensor:
        torch.manual_seed(0)
        return model.generate(
            ids, do_sample=True, temperature=20.0, max_new_tokens=2, num_return_sequences=500,
            custom_generate=speculative_generate("early-exit:3"), pad_token_id=PAD, **shape,
        )[:, 18]  # fmt: skip

    assert not torch.isin(firsts(), unlikely).any()
    assert torch.isin(firsts(top_k=0), unlikely).any()  # about one in five, so 500 draws miss it once in 1e48


def test_a_dict_is_returned_where_generate_returns_one(model: LlamaForCausalLM) -> None:
    spec = speculative_generate("prompt-lookup")
    fast = model.generate(**batch(1), max_new_tokens=3, return_dict_in_generate=True, custom_generate=spec)
    assert isinstance(fast, GenerateDecoderOnlyOutput)
    assert fast.sequences.tolist() == model.generate(**batch(1), max_new_tokens=3).tolist()
    assert list(fast) == ["sequences"]


def test_settings_are_read_off_the_processors() -> None:
    every = [TemperatureLogitsWarper(0.7), TopKLogitsWarper(50), TopPLogitsWarper(0.9)]
    assert sampling_settings(every, True, 5) == SamplingSettings(0.7, 50, 0.9)
    assert sampling_settings(every[1:], True, 5) == SamplingSettings(1.0, 50, 0.9)
    assert sampling_settings(every, False, 5).greedy
    with pytest.raises(ValueError, match=r"in this order.*TopPLogitsWarper', 'TemperatureLogitsWarper"):
        sampling_settings([every[2], every[0]], True, 5)
    with pytest.raises(ValueError, match="once each"):
        sampling_settings([every[1], every[1]], True, 5)


def test_a_prebuilt_decoder_and_draft_are_used(model: LlamaForCausalLM) -> None:
    decoder = TransformersDecoder(model)
    draft = make_draft("early-exit:2", decoder, SamplingSettings(temperature=1))
    spec = speculative_generate(draft, 3, target=decoder, rule=rejection_sampling)
    torch.manual_seed(0)
    assert model.generate(**batch(1), do_sample=True, max_new_tokens=9, custom_generate=spec).shape == (1, 27)
    spec = speculative_generate(draft, 3, target=decoder)
    plain = model.generate(**batch(1), max_new_tokens=9)
    assert model.generate(**batch(1), max_new_tokens=9, custom_generate=spec).tolist() == plain.tolist()


def test_calls_share_what_is_costly_and_nothing_else(model: LlamaForCausalLM) -> None:
    prepared = prepare(model)
    assert isinstance(prepared.decoder, LlamaDecoder)
    assert prepare(model) is prepared
    cold = draft_for("int8", prepared, SamplingSettings(0), "tiny")
    warm = draft_for("int8", prepared, SamplingSettings(0.5), "tiny")
    assert cold.source.decoder is warm.source.decoder  # type: ignore[attr-defined]  # a ModelDraft
    assert cold.source is not warm.source  # type: ignore[attr-defined]  # a ModelDraft
    assert (cold.settings.temperature, warm.settings.temperature) == (0, 0.5)  # type: ignore[attr-defined]  # as above


def test_a_decoder_goes_with_its_model_and_with_its_weights(model: LlamaForCausalLM) -> None:
    twin = copy.deepcopy(model)
    spec = speculative_generate("prompt-lookup")
    before = twin.generate(**batch(1), max_new_tokens=9, custom_generate=spec)
    with torch.no_grad():
        twin.model.layers[0].mlp.up_proj.weight.neg_()
    after = twin.generate(**batch(1), max_new_tokens=9, custom_generate=spec)
    assert after.tolist() == twin.generate(**batch(1), max_new_tokens=9).tolist() != before.tolist()
    decoder, gone = weakref.ref(prepare(twin).decoder), weakref.ref(twin)
    del twin
    gc.collect()
    assert gone() is None
    assert decoder() is None


def test_replaced_layers_and_hooks_are_heeded(model: LlamaForCausalLM) -> None:
    class Adapted(torch.nn.Module):
        def __init__(self, base: torch.nn.Linear) -> None:
            super().__init__()
            self.base, self.weight = base, base.weight

        def forward(self, x: Tensor) -> Tensor:
            return -self.base(x)

    spec = speculative_generate("early-exit:3")
    free = model.generate(**batch(1), max_new_tokens=9).tolist()
    adapted = copy.deepcopy(model)
    adapted.model.layers[1].mlp.down_proj = Adapted(adapted.model.layers[1].mlp.down_proj)
    hooked = copy.deepcopy(model)
    hooked.generate(**batch(1), max_new_tokens=2, custom_generate=spec)  # with a decoder kept from before
    hooked.model.layers[1].mlp.register_forward_hook(lambda module, inputs, output: -output)
    for changed in (adapted, hooked):
        plain = changed.generate(**batch(1), max_new_tokens=9).tolist()
        assert changed.generate(**batch(1), max_new_tokens=9, custom_generate=spec).tolist() == plain != free


WRONG_MASK = torch.ones(1, 18, dtype=torch.long).index_fill(1, torch.tensor([17]), 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"repetition_penalty": 1.2}, "RepetitionPenaltyLogitsProcessor changes.*leave custom_generate out"),
        ({"no_repeat_ngram_size": 2}, "NoRepeatNGramLogitsProcessor changes.*leave custom_generate out"),
        ({"guidance_scale": 1.5}, "UnbatchedClassifierFreeGuidanceLogitsProcessor changes"),
        ({"do_sample": True, "typical_p": 0.5}, "TypicalLogitsWarper changes"),
        ({"prefix_allowed_tokens_fn": lambda *_: [3]}, "PrefixConstrainedLogitsProcessor changes"),
        (
            {"do_sample": True, "logits_processor": LogitsProcessorList([TopKLogitsWarper(5)])},
            "once each and in this order",
        ),
        ({"min_new_tokens": 3, "eos_token_id": 1}, "min_new_tokens and min_length.*set them to 0"),
        ({"num_beams": 2}, "ask for beam_search.*num_beams"),
        ({"prompt_lookup_num_tokens": 3}, "ask for assisted_generation.*named in speculative_generate"),
        ({"output_scores": True, "return_dict_in_generate": True}, "tokens only, got output_scores=True; leave"),
        (
            {"output_attentions": True, "output_logits": True, "return_dict_in_generate": True},
            "output_logits=True, output_attentions=True",
        ),
        ({"cache_implementation": "static"}, "cache_implementation='static'"),
        ({"past_key_values": DynamicCache()}, "past_key_values would be neither read nor filled"),
        ({"synced_gpus": True}, "synced_gpus needs"),
        ({"attention_mask": WRONG_MASK}, "pad prompts on the left"),
        ({"position_ids": torch.arange(3, 21)[None]}, "position_ids must count"),
        ({"max_new_tokens": 240}, "need 263 positions, the model has 256; lower max_new_tokens"),
    ],
)  # fmt: skip
def test_what_cannot_be_honoured_is_refused_by_name(
    model: LlamaForCausalLM, arguments: dict[str, Any], message: str
) -> None:
    arguments = {"max_new_tokens": 4, "pad_token_id": PAD} | arguments
    with pytest.raises(ValueError, match=message):
        model.generate(batch(1)["input_ids"], custom_generate=speculative_generate("prompt-lookup"), **arguments)


def test_an_assistant_model_is_refused_although_generate_drops_it(
    model: LlamaForCausalLM, other_model: LlamaForCausalLM
) -> None:
    with pytest.raises(ValueError, match="ask for assisted_generation"):
        model.generate(
            **batch(1), assistant_model=other_model, custom_generate=speculative_generate("suffix"), max_new_tokens=2
        )


def test_a_model_that_does_not_fit_is_refused(model: LlamaForCausalLM) -> None:
    narrow = tiny_model(vocab=40, layers=1)
    with pytest.raises(ValueError, match="vocabulary of 40 tokens, target 'LlamaForCausalLM' of 64"):
        model.generate(**batch(1), custom_generate=speculative_generate(narrow), max_new_tokens=2)
    spec = speculative_generate("suffix", target=LlamaDecoder.from_transformers(narrow))
    with pytest.raises(ValueError, match="`target` has a vocabulary of 40 tokens, the model one of 64"):
        model.generate(**batch(1), custom_generate=spec, max_new_tokens=2)
    narrow.train()
    with pytest.raises(ValueError, match=r"call model.eval\(\) first"):
        narrow.generate(torch.tensor([[3, 4]]), custom_generate=speculative_generate("suffix"), max_new_tokens=2)
    with pytest.raises(ValueError, match=r"weights are on \['meta'\]"):
        prepare(copy.deepcopy(model).to("meta"))
    encoder = BertLMHeadModel(
        BertConfig(vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
                   is_decoder=True, is_encoder_decoder=True)
    )  # fmt: skip
    with pytest.raises(ValueError, match="has an encoder"):
        speculative_generate("suffix")(encoder, None, [], [], model.generation_config)


@pytest.mark.parametrize("name", ["distilled", "org/model"])
def test_a_name_that_needs_a_folder_is_refused_at_once(name: str) -> None:
    with pytest.raises(ValueError, match=rf"unknown draft '{name}'.*from_pretrained\('{name}'\)"):
        speculative_generate(name)


def test_bad_drafts_and_lengths_are_refused_at_once(model: LlamaForCausalLM) -> None:
    with pytest.raises(ValueError, match=r"a draft must be a name, a causal LM.*got int"):
        speculative_generate(3)  # type: ignore[arg-type]  # what is tested
    with pytest.raises(ValueError, match="gamma must be >= 1, got 0"):
        speculative_generate("suffix", 0)
    with pytest.raises(ValueError, match="draft 'early-exit:9': early exit must keep 1 to 3"):
        model.generate(**batch(1), custom_generate=speculative_generate("early-exit:9"), max_new_tokens=2)


def test_rows_need_something_to_be_filled_with(model: LlamaForCausalLM) -> None:
    stop = StoppingCriteriaList([EosTokenCriteria(torch.tensor([1]))])
    with pytest.raises(ValueError, match="set pad_token_id"):
        model.generate(
            batch(3)["input_ids"], stopping_criteria=stop, eos_token_id=None, max_new_tokens=2,
            custom_generate=speculative_generate("suffix"),
        )  # fmt: skip
