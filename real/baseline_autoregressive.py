"""Token-by-token generation with a KV cache: what speculative decoding is measured against.

A step feeds the last token of every unfinished request, and samples the next from the logits that come back.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from real.cache import KVCache
from real.decoder import Decoder
from real.requests import Batch, Generation, OnTokens, Round, Step, check_limits, collect, prepare_cache
from real.rows import draw
from real.sampling import SamplingSettings, probabilities
from real.timing import Stopwatch


def generate(
    decoder: Decoder,
    prompt_ids: Tensor,
    *,
    max_new_tokens: int,
    settings: SamplingSettings,
    stop_ids: frozenset[int] = frozenset(),
    seed: int = 0,
    on_tokens: OnTokens | None = None,
    cache: KVCache | None = None,
) -> Generation:
    """Generate one token per forward for one prompt [n]; see `generate_batch`."""
    return generate_batch(
        decoder, [prompt_ids], max_new_tokens=max_new_tokens, settings=settings, stop_ids=stop_ids, seeds=[seed],
        on_tokens=on_tokens, cache=cache,
    )[0]  # fmt: skip


def generate_batch(
    decoder: Decoder,
    prompts: Sequence[Tensor],
    *,
    max_new_tokens: int,
    settings: SamplingSettings,
    stop_ids: frozenset[int] = frozenset(),
    seeds: Sequence[int] | None = None,
    on_tokens: OnTokens | None = None,
    cache: KVCache | None = None,
) -> list[Generation]:
    """Generate one token per request and forward.

    Args:
        decoder: the target.
        prompts: [n] int64 each, on the decoder's device.
        max_new_tokens: stop after so many.
        settings: temperature 0 is greedy.
        stop_ids: a request ends with the first of these, which is part of its output.
        seeds: of each request's sampling; 0, 1, 2, ... if left out. A request's output does not depend on the others.
        on_tokens: called with the new tokens of every step, for streaming.
        cache: a prefilled one to continue (see `prefill`); it is rolled back to the prompts first.

    Returns:
        For each prompt its new tokens and one `Round` per step, with gamma 0. The prefill is not part of any round.

    Raises:
        ValueError: max_new_tokens is below 1, or a prompt is unusable (see `prefill`).
    """
    steps = decode(
        decoder, prompts, max_new_tokens=max_new_tokens, settings=settings, stop_ids=stop_ids, seeds=seeds, cache=cache
    )
    return collect(steps, len(prompts), stop_ids, on_tokens)


@torch.inference_mode()
def decode(
    decoder: Decoder,
    prompts: Sequence[Tensor],
    *,
    max_new_tokens: int,
    settings: SamplingSettings,
    stop_ids: frozenset[int],
    seeds: Sequence[int] | None = None,
    cache: KVCache | None = None,
) -> Iterator[list[Step]]:
    """The steps of `generate_batch`, one at a time, so that several generations can take turns."""
    seeds = check_limits(max_new_tokens, prompts, seeds)
    capacity = max(map(len, prompts), default=0) + max_new_tokens
    cache = prepare_cache(decoder, prompts, capacity, (), cache)
    batch = Batch(prompts, max_new_tokens, capacity, stop_ids, seeds, decoder.device)
    clock = Stopwatch(decoder.device)
    while batch.rows:
        begin = clock.mark()
        logits = decoder.forward(batch.latest([1] * batch.rows), cache)[:, -1]
        forwarded = clock.mark()
        sampled = logits.argmax(-1) if settings.greedy else draw(probabilities(logits, settings), batch.generators)
        contexts = batch.lengths
        kept = [batch.append(row, [token]) for row, token in enumerate(sampled.tolist())]
        end = clock.mark()
        yield [
            Step(
                batch.requests[row],
                tokens,
                Round(
                    context=contexts[row], gamma=0, drafted=0, accepted=0, emitted=1, cut=False,
                    start_seconds=clock.seconds(clock.origin, begin), draft_seconds=0.0,
                    verify_seconds=clock.seconds(begin, forwarded), other_seconds=clock.seconds(forwarded, end),
                    batch=batch.rows,
                ),
            )
            for row, tokens in enumerate(kept)
        ]  # fmt: skip
        rows = batch.unfinished()
        if len(rows) < batch.rows:
            cache.keep_rows(rows)
            batch.keep_rows(rows)
