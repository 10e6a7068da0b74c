"""The speculative loop inside `model.generate`, as what transformers calls a custom generation method.

    model.generate(**inputs, custom_generate=speculative_generate("prompt-lookup", gamma=4), max_new_tokens=100)

`generate` prepares its arguments as always and hands them here. What comes back is what it would have returned: the
same tokens where it is greedy, up to rounding, and the same distribution where it samples. Arguments that cannot be
honoured are refused.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import (
    EosTokenCriteria,
    GenerationMixin,
    LogitNormalization,
    MaxLengthCriteria,
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    PreTrainedModel,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.generation import GenerateDecoderOnlyOutput

from real.decoder import Decoder, TransformersDecoder
from real.draft_models import NAMES, ModelDraft, make_draft
from real.draft_sources import OwnCache
from real.llama_decoder import LlamaDecoder, unsupported
from real.loading import DRAFT_NAMES, check_vocabulary
from real.optimized_speculative import DraftLength, Rule, as_controller, decode
from real.proposals import Draft
from real.requests import Step
from real.sampling import SamplingSettings

SETTING_OF = {
    TemperatureLogitsWarper: "temperature",
    TopKLogitsWarper: "top_k",
    TopPLogitsWarper: "top_p",
    MinPLogitsWarper: "min_p",
}
"""Logits processors that `SamplingSettings` reproduces, in the order in which both sides apply them."""

HANDLED = ("attention_mask", "position_ids", "past_key_values", "use_cache", "logits_to_keep", "cache_position")
"""Arguments of the model's forward that `generate` prepares and this loop handles, or needs not."""

OUTPUTS = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")
"""What `generate` can return beside tokens, and this loop does not."""

BUILT_NAMES = NAMES.replace("distilled, ", "")  # a head is trained for one target, and comes from a folder

LEAVE_OUT = "leave custom_generate out"


def speculative_generate(
    draft: str | Draft | PreTrainedModel,
    gamma: DraftLength = 4,
    *,
    rule: Rule | None = None,
    target: Decoder | None = None,
) -> Callable[..., Any]:
    """A callable to pass to `generate` as `custom_generate`.

    `generate` then means what it always means: max_new_tokens and max_length, do_sample, temperature, top_k (50 unless
    it is set to 0), top_p, min_p, eos_token_id, pad_token_id, num_return_sequences, left-padded batches, max_time,
    stopping_criteria (asked about every token), streamer, return_dict_in_generate. A sampled output is drawn from
    seeds that torch's default generator draws, so `torch.manual_seed` repeats it. stop_strings need a tokenizer, which
    `generate` does not hand on; pass `stopping_criteria=[StopStringCriteria(tokenizer, strings)]`.

    Args:
        draft: a name (`early-exit:L`, `int8[:L]`, `int8-skip:A-B`, `prompt-lookup[:N]`, `suffix[:DEPTH]`,
            `synthetic:ALPHA`), a causal LM of transformers with the same vocabulary, or any `Draft`, which is used with
            the settings that `generate` was called with.
        gamma: tokens drafted a round, a controller, or a tree.
        rule: verification rule; lossless by default (see `optimized_speculative.decode`).
        target: the model as a decoder; by default one is made of it in the first call, which copies most weights of a
            Llama-shaped model, and kept for as long as the model lives and its weights stay as they are.

    Returns:
        A decoding method for `generate`. It returns [batch, prompt + new] int64, or a `GenerateDecoderOnlyOutput` with
        nothing but these sequences if return_dict_in_generate is set.

    Raises:
        ValueError: the draft is none of these, or gamma is below 1. The method itself raises one for each argument of
            `generate` that it cannot honour.
    """
    _check_draft(draft)
    max_gamma = as_controller(gamma).max_gamma
    given = None if target is None else Prepared(target)

    def generate_speculatively(  # named as in GenerationMixin._sample: generate reads these names
        model: Any,
        input_ids: Tensor,
        logits_processor: Sequence[Any],
        stopping_criteria: Any,
        generation_config: Any,
        synced_gpus: bool = False,
        streamer: Any = None,
        **model_kwargs: Any,
    ) -> Any:
        _check_supported(model, generation_config, model_kwargs, bool(synced_gpus or _withheld("synced_gpus")))
        rows, width = input_ids.shape
        settings = sampling_settings(logits_processor, bool(generation_config.do_sample), width)
        prepared = prepare(model) if given is None else given
        prompts = without_padding(input_ids, model_kwargs)
        # generate's own loop looks at the length after a token, so it always emits one
        max_new_tokens = max(1, (stopping_criteria.max_length or generation_config.max_length) - width)
        longest = max(map(len, prompts)) + max_new_tokens + max_gamma + 1
        _check_decoder(prepared.decoder, model.config.get_text_config().vocab_size, longest)
        stop_ids = {
            stop for each in stopping_criteria if type(each) is EosTokenCriteria for stop in each.eos_token_id.tolist()
        }
        rounds = decode(
            prepared.decoder, draft_for(draft, prepared, settings, type(model).__name__),
            [prompt.to(prepared.decoder.device) for prompt in prompts], gamma=gamma, max_new_tokens=max_new_tokens,
            settings=settings, rule=rule, stop_ids=frozenset(stop_ids),
            seeds=None if settings.greedy else torch.randint(2**62, (rows,)).tolist(),
        )  # fmt: skip
        streamer = _withheld("streamer") if streamer is None else streamer
        sequences = token_by_token(
            rounds, input_ids, max_new_tokens, stop_ids, _pad_id(generation_config, stopping_criteria, rows),
            StoppingCriteriaList(c for c in stopping_criteria if type(c) not in (MaxLengthCriteria, EosTokenCriteria)),
            streamer,
        )  # fmt: skip
        if streamer is not None:
            streamer.end()
        return GenerateDecoderOnlyOutput(sequences) if generation_config.return_dict_in_generate else sequences

    return generate_speculatively


def token_by_token(
    rounds: Iterator[list[Step]],
    input_ids: Tensor,
    max_new_tokens: int,
    stop_ids: set[int],
    pad_id: int | None,
    criteria: Any,
    streamer: Any,
) -> Tensor:
    """What rounds of several tokens emit, cut and streamed as `generate`'s own loop would: every row one token a step.

    A row that runs ahead waits for the others; criteria see what they would see in `generate`, in the same order, so
    they end the output at the same token. What rounds emitted beyond it is dropped.

    Args:
        input_ids: [batch, prompt], padded on the left.
        stop_ids: end a row, as does a true entry of `criteria(sequences, None)`.
        pad_id: fills a row that has ended; None lets it go on until the last row ends, as `generate` does where it
            knows no end-of-text token.
        streamer: gets the tokens [batch] of every step; None for none.

    Returns:
        [batch, prompt + new].
    """
    rows, width = input_ids.shape
    sequences = torch.cat([input_ids, input_ids.new_zeros(rows, max_new_tokens)], dim=1)
    emitted: list[list[int]] = [[] for _ in range(rows)]
    ended = [False] * rows
    new = 0
    for steps in rounds:
        for step in steps:
            emitted[step.request] += step.token_ids
        while not all(ended) and all(
            len(own) > new or (over and pad_id is not None) for own, over in zip(emitted, ended, strict=True)
        ):
            tokens = [
                pad_id if over and pad_id is not None else own[new] for own, over in zip(emitted, ended, strict=True)
            ]
            column = torch.tensor(tokens)
            sequences[:, width + new] = column.to(sequences.device)
            new += 1
            ended = [over or token in stop_ids for over, token in zip(ended, tokens, strict=True)]
            if criteria:
                asked = criteria(sequences[:, : width + new], None).tolist()
                ended = [over or now for over, now in zip(ended, asked, strict=True)]
            if streamer is not None:
                streamer.put(column)
        if all(ended):
            break
    return sequences[:, : width + new].clone()


def sampling_settings(processors: Sequence[Any], do_sample: bool, prompt_width: int) -> SamplingSettings:
    """The settings that a list of transformers' logits processors stands for.

    Args:
        processors: as `generate` builds them from its arguments.
        do_sample: whether it samples; temperature is 0 if not.
        prompt_width: padding included; a min_length up to it demands nothing.

    Raises:
        ValueError: naming the processor that settings cannot express.
    """
    order = list(SETTING_OF.values())
    values: dict[str, Any] = {}
    for processor in processors:
        kind = type(processor)
        if kind is LogitNormalization or (
            kind is MinLengthLogitsProcessor and processor.min_length <= prompt_width
        ):  # neither changes the distribution
            continue
        if kind in (MinLengthLogitsProcessor, MinNewTokensLengthLogitsProcessor):
            raise ValueError(
                "min_new_tokens and min_length forbid an early end of text, which the speculative loop cannot; "
                f"set them to 0, or {LEAVE_OUT}"
            )
        if kind not in SETTING_OF:
            raise ValueError(
                f"{kind.__name__} changes the target's distribution, and the speculative loop reproduces only "
                f"{', '.join(order)}; leave the argument that asks for it out, or {LEAVE_OUT}"
            )
        name = SETTING_OF[kind]
        if (
            any(order.index(earlier) >= order.index(name) for earlier in values)
            or getattr(processor, "filter_value", -torch.inf) != -torch.inf
            or getattr(processor, "min_tokens_to_keep", 1) != 1
        ):
            raise ValueError(
                f"the speculative loop applies {', '.join(order)} once each and in this order, with filter_value=-inf "
                f"and min_tokens_to_keep=1, got {[type(each).__name__ for each in processors]}; set them by generate's "
                f"arguments of these names, or {LEAVE_OUT}"
            )
        values[name] = getattr(processor, name)
    if not do_sample:
        return SamplingSettings(temperature=0)
    if values.get("min_p") == 0:
        del values["min_p"]
    return SamplingSettings(**values)


def without_padding(input_ids: Tensor, model_kwargs: dict[str, Any]) -> list[Tensor]:
    """The rows of [batch, prompt] without what their attention mask hides on the left.

    Raises:
        ValueError: the mask hides anything else, or tokens were given other positions than 0, 1, 2, ...
    """
    mask = model_kwargs.get("attention_mask")
    seen = torch.ones_like(input_ids, dtype=torch.bool) if mask is None else mask.to(input_ids.device) != 0
    if seen.shape != input_ids.shape or not seen[:, -1:].all() or (seen[:, :-1] & ~seen[:, 1:]).any():
        raise ValueError(
            f"attention_mask must be [batch, prompt] = {list(input_ids.shape)}, zeros and then ones in every row, got "
            f"{list(seen.shape)} with other rows; pad prompts on the left (tokenizer.padding_side = 'left')"
        )
    positions = model_kwargs.get("position_ids")
    if positions is not None:
        counted = (seen.cumsum(-1) - 1)[seen]
        if not torch.equal(positions.to(input_ids.device).expand(seen.shape)[seen], counted):
            raise ValueError(
                f"position_ids must count 0, 1, 2, ... from the first token of each row; leave them out, or {LEAVE_OUT}"
            )
    return [row[kept] for row, kept in zip(input_ids, seen, strict=True)]


@dataclass
class Prepared:
    """What is made once for a model.

    Attributes:
        decoder: its forward pass.
        weights: address and version of every parameter that it was made of.
        drafts: those built on the decoder, by name.
    """

    decoder: Decoder
    weights: tuple[tuple[int, int], ...] = ()
    drafts: dict[str, Draft] = field(default_factory=dict)


_PREPARED: WeakKeyDictionary[Any, Prepared] = WeakKeyDictionary()


def prepare(model: Any) -> Prepared:
    """A model's decoder, kept until the model is gone or its weights have changed.

    A Llama as transformers defines it gets a `LlamaDecoder`. Any other model, and a Llama with replaced layers
    (adapters, quantisation) or hooks, is run by its own forward, with nothing to keep.

    Raises:
        ValueError: the model is spread over devices, or in training mode, or cannot be rolled back.
    """
    devices = sorted({str(weight.device) for weight in model.parameters()})
    if len(devices) > 1 or devices == ["meta"]:
        raise ValueError(f"the model's weights are on {devices}; load it on one device, or {LEAVE_OUT}")
    if model.training:
        raise ValueError("the model is in training mode, in which layers may drop out; call model.eval() first")
    if not _is_plain_llama(model):
        return Prepared(TransformersDecoder(model))
    weights = tuple((w.data_ptr(), 0 if w.is_inference() else w._version) for w in model.parameters())
    known = _PREPARED.get(model)
    if known is None or known.weights != weights:
        decoder = LlamaDecoder.from_transformers(model, positions=model.config.max_position_embeddings)
        known = _PREPARED[model] = Prepared(decoder, weights)
    return known


def draft_for(
    draft: str | Draft | PreTrainedModel, prepared: Prepared, settings: SamplingSettings, target_name: str
) -> Draft:
    """The draft with the target's settings and with state of its own, so that calls in several threads do not mix.

    Raises:
        ValueError: it has another vocabulary, or is on another device, or its name does not fit the target.
    """
    target = prepared.decoder
    if isinstance(draft, str):
        if draft not in prepared.drafts:
            prepared.drafts[draft] = make_draft(draft, target, settings)
        own = prepared.drafts[draft]
    elif isinstance(draft, PreTrainedModel):
        decoder = prepare(draft).decoder
        if decoder.device != target.device:
            raise ValueError(
                f"the draft is on {decoder.device}, the target on {target.device}; move it there with draft.to"
            )
        own = ModelDraft(OwnCache(decoder), settings, draft.config._name_or_path or type(draft).__name__)
    else:
        own = draft
    own = own.fork()
    if isinstance(own, ModelDraft):
        check_vocabulary(own.name, own.source.vocab_size, target_name, target.vocab_size)
        own.settings = settings
    return own


def _is_plain_llama(model: Any) -> bool:
    """Whether the weights alone say what a model computes, and `LlamaDecoder` computes it."""
    return not unsupported(model) and all(
        type(module).__module__.startswith(("transformers.models.llama.", "transformers.activations", "torch.nn."))
        and "forward" not in vars(module)
        and all(map(_only_listens, [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]))
        for module in model.modules()
    )


def _only_listens(hook: Any) -> bool:
    """Whether a hook is one that transformers leaves in a model after it once returned hidden states."""
    return getattr(hook, "__module__", "") == "transformers.utils.output_capturing"


def _check_draft(draft: Any) -> None:
    """Refuse what is no draft before any model runs."""
    if isinstance(draft, str) and draft.partition(":")[0] not in DRAFT_NAMES:
        raise ValueError(
            f"unknown draft '{draft}'; name one of {BUILT_NAMES}; if it is a model, load it and pass the model: "
            f"speculative_generate(AutoModelForCausalLM.from_pretrained('{draft}'))"
        )
    if not isinstance(draft, (str, PreTrainedModel)) and not hasattr(draft, "propose"):
        raise ValueError(
            f"a draft must be a name, a causal LM of transformers or a Draft, got {type(draft).__name__}; names are "
            f"{BUILT_NAMES}"
        )


def _check_supported(model: Any, config: Any, model_kwargs: dict[str, Any], synced_gpus: bool) -> None:
    """Refuse arguments of `generate` that the loop would otherwise ignore."""
    mode = config.get_generation_mode(_withheld("assistant_model"))
    outputs = [name for name in OUTPUTS if getattr(config, name)]
    others = sorted(name for name, value in model_kwargs.items() if value is not None and name not in HANDLED)
    refused = ""
    if model.config.is_encoder_decoder:
        refused = f"{type(model).__name__} has an encoder, the speculative loop runs causal LMs"
    elif mode not in ("greedy_search", "sample"):
        refused = (
            f"generate's arguments ask for {mode.value}, the speculative loop does greedy_search and sample; leave out "
            "num_beams and the like (a draft model is named in speculative_generate)"
        )
    elif outputs:
        refused = f"the speculative loop returns tokens only, got {', '.join(f'{name}=True' for name in outputs)}"
    elif config.cache_implementation not in (None, "dynamic"):
        refused = f"cache_implementation='{config.cache_implementation}' is not the speculative loop's own cache"
    elif getattr(model_kwargs.get("past_key_values"), "_is_user_defined", False):
        refused = "past_key_values would be neither read nor filled"
    elif others:
        refused = f"the speculative loop feeds token ids only, got {', '.join(others)} too"
    elif synced_gpus:
        refused = "synced_gpus needs every process to run as many forwards, which drafting does not"
    if refused:
        raise ValueError(f"{refused}; leave such arguments out, or {LEAVE_OUT}")


def _check_decoder(decoder: Decoder, vocab_size: int, needed: int) -> None:
    """Refuse a decoder of another model, and tokens beyond the positions that it has tables for."""
    if decoder.vocab_size != vocab_size:
        raise ValueError(
            f"`target` has a vocabulary of {decoder.vocab_size} tokens, the model one of {vocab_size}; give a decoder "
            "of this model, or leave `target` out"
        )
    if isinstance(decoder, LlamaDecoder) and needed > len(decoder.cosine):
        raise ValueError(
            f"prompt, max_new_tokens and one draft need {needed} positions, the model has {len(decoder.cosine)}; lower "
            f"max_new_tokens or shorten the prompt, or {LEAVE_OUT}"
        )


def _pad_id(config: Any, criteria: Any, rows: int) -> int | None:
    """What fills rows that have ended; None where `generate` would let them go on, for want of an end-of-text token."""
    if not any(hasattr(criterion, "eos_token_id") for criterion in criteria):
        return None
    pad = config._pad_token_tensor
    if pad is None and rows > 1:
        raise ValueError("rows of a batch end at different tokens, and nothing is known to fill them; set pad_token_id")
    return None if pad is None else int(pad)


def _withheld(name: str) -> Any:
    """An argument that `generate` was called with but does not hand on; None if there is no such call.

    `generate` collects streamer, synced_gpus and assistant_model for its own decoding methods; for a callable it
    replaces them by the callable's additional parameters (GenerationMixin._extract_generation_mode_kwargs, as of
    transformers 5.23), though it has fed the prompt to the streamer. So they are read where they were left.
    """
    code = inspect.unwrap(GenerationMixin.generate).__code__
    frame = inspect.currentframe()
    while frame is not None and frame.f_code is not code:
        frame = frame.f_back
    return None if frame is None else frame.f_locals.get(name)
