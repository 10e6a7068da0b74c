"""Token-by-token generation with a KV cache: what speculative decoding is measured against.

The cache holds every known token but the last, before and after each step: a step feeds the last token, and samples
the next from the logits that come back. `optimized_speculative` keeps the same invariant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from real.decoder import Cache, Decoder
from real.rows import draw
from real.sampling import SamplingSettings, probabilities
from real.timing import Stopwatch


@dataclass(frozen=True)
class Round:
    """One round, or one autoregressive step, as it was measured; the fields are the round table's columns."""

    context: int
    gamma: int
    drafted: int
    accepted: int
    emitted: int
    cut: bool
    start_seconds: float
    draft_seconds: float
    verify_seconds: float
    other_seconds: float
    accept_probability: tuple[float, ...] = ()


@dataclass
class Generation:
    """What one call generated, and how.

    Attributes:
        token_ids: the new tokens, the stop token included if one was reached.
        rounds: one entry per round, in order.
        stopped: whether a stop token ended the output, rather than max_new_tokens.
    """

    token_ids: list[int] = field(default_factory=list)
    rounds: list[Round] = field(default_factory=list)
    stopped: bool = False


Step = tuple[list[int], Round]
"""The tokens that a round emitted, and the round as it was measured."""


def collect(
    steps: Iterator[Step], stop_ids: frozenset[int], on_tokens: Callable[[list[int]], None] | None
) -> Generation:
    """Run rounds to the end and put them together."""
    output = Generation()
    for tokens, measured in steps:
        output.token_ids += tokens
        output.rounds.append(measured)
        if on_tokens is not None:
            on_tokens(tokens)
    output.stopped = output.token_ids[-1] in stop_ids
    return output


def prefill(decoder: Decoder, prompt_ids: Tensor, capacity: int) -> Cache:
    """A cache that holds all of the prompt but its last token.

    Args:
        prompt_ids: [n] int64; a batch [b, n] is refused.
        capacity: tokens the sequence may grow to.

    Raises:
        ValueError: the prompt is empty, is a batch, or has an id outside the vocabulary.
    """
    if prompt_ids.dim() != 1:
        raise ValueError(f"prompt_ids must be [n], got {list(prompt_ids.shape)}; batches are run one request at a time")
    if len(prompt_ids) == 0:
        raise ValueError("prompt_ids is empty; begin with at least one token, such as the model's bos token")
    if not 0 <= int(prompt_ids.min()) <= int(prompt_ids.max()) < decoder.vocab_size:
        raise ValueError(
            f"prompt_ids must be in [0, {decoder.vocab_size}), got {int(prompt_ids.min())} to {int(prompt_ids.max())}; "
            "was the prompt encoded with another model's tokenizer?"
        )
    cache = decoder.new_cache(capacity)
    if len(prompt_ids) > 1:
        decoder.forward(prompt_ids[:-1], cache, logits_to_keep=1)
    return cache


def check_limits(max_new_tokens: int) -> None:
    """Refuse to generate nothing.

    Raises:
        ValueError: max_new_tokens is below 1.
    """
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be >= 1, got {max_new_tokens}")


def generate(
    decoder: Decoder,
    prompt_ids: Tensor,
    *,
    max_new_tokens: int,
    settings: SamplingSettings,
    stop_ids: frozenset[int] = frozenset(),
    seed: int = 0,
    on_tokens: Callable[[list[int]], None] | None = None,
    cache: Cache | None = None,
) -> Generation:
    """Generate one token per forward.

    Args:
        decoder: the target.
        prompt_ids: [n] int64 on the decoder's device.
        max_new_tokens: stop after so many.
        settings: temperature 0 is greedy.
        stop_ids: generation ends with the first of these, which is part of the output.
        seed: of the sampling.
        on_tokens: called with the new tokens of every step, for streaming.
        cache: a prefilled one to continue (see `prefill`); it is rolled back to the prompt first.

    Returns:
        The new tokens and one `Round` per step, with gamma 0. The prefill is not part of any round.

    Raises:
        ValueError: max_new_tokens is below 1, or the prompt is unusable (see `prefill`).
    """
    steps = decode(
        decoder,
        prompt_ids,
        max_new_tokens=max_new_tokens,
        settings=settings,
        stop_ids=stop_ids,
        seed=seed,
        cache=cache,
    )
    return collect(steps, stop_ids, on_tokens)


@torch.inference_mode()
def decode(
    decoder: Decoder,
    prompt_ids: Tensor,
    *,
    max_new_tokens: int,
    settings: SamplingSettings,
    stop_ids: frozenset[int],
    seed: int,
    cache: Cache | None,
) -> Iterator[Step]:
    """The steps of `generate`, one at a time, so that several generations can take turns."""
    check_limits(max_new_tokens)
    if cache is None:
        cache = prefill(decoder, prompt_ids, len(prompt_ids) + max_new_tokens)
    cache.rollback(len(prompt_ids) - 1)
    generator = torch.Generator(decoder.device).manual_seed(seed)
    clock = Stopwatch(decoder.device)
    pending = prompt_ids[-1:]
    for context in range(len(prompt_ids), len(prompt_ids) + max_new_tokens):
        begin = clock.mark()
        logits = decoder.forward(pending, cache)[-1]
        forwarded = clock.mark()
        if settings.greedy:
            pending = logits.argmax(dim=-1, keepdim=True)
        else:
            pending = draw(probabilities(logits, settings), generator)[None]
        token = int(pending)
        end = clock.mark()
        yield (
            [token],
            Round(
                context=context,
                gamma=0,
                drafted=0,
                accepted=0,
                emitted=1,
                cut=False,
                start_seconds=clock.seconds(clock.origin, begin),
                draft_seconds=0.0,
                verify_seconds=clock.seconds(begin, forwarded),
                other_seconds=clock.seconds(forwarded, end),
            ),
        )
        if token in stop_ids:
            return
