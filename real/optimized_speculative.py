"""The speculative loop: draft gamma tokens, verify them in one forward, emit what the rule accepts and one more.

Three slips of the algorithm as it is often printed are avoided here. The correction token comes AFTER the accepted
tokens. When all drafted tokens are accepted, one more is sampled from the target's last row, for free. And row i of the
target's logits is the distribution after i drafted tokens, since the forward begins with the last known token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from real.baseline_autoregressive import Generation, Round, Step, check_limits, collect, prefill
from real.decoder import Cache, Decoder
from real.draft_models import Draft, Proposal
from real.sampling import SamplingSettings, probabilities
from real.timing import Stopwatch
from real.verification import VerificationRule, greedy, rejection_sampling


def generate(
    decoder: Decoder,
    draft: Draft,
    prompt_ids: Tensor,
    *,
    gamma: int,
    max_new_tokens: int,
    settings: SamplingSettings,
    rule: VerificationRule | None = None,
    stop_ids: frozenset[int] = frozenset(),
    seed: int = 0,
    on_tokens: Callable[[list[int]], None] | None = None,
    cache: Cache | None = None,
) -> Generation:
    """Generate with the target's own distribution, several tokens per forward (Leviathan et al. 2023, Algorithm 1).

    Args:
        decoder: the target.
        draft: proposes tokens; shapes its distribution with the same `settings`.
        prompt_ids: [n] int64 on the decoder's device.
        gamma: tokens drafted per round, fewer where less than gamma + 1 tokens are still wanted.
        max_new_tokens: never overshot.
        settings: temperature 0 is greedy.
        rule: verification rule; by default greedy matching at temperature 0, else rejection sampling.
        stop_ids: generation ends with the first of these, also inside an accepted block; it is part of the output.
        seed: of draft and verification.
        on_tokens: called with the new tokens of every round, for streaming.
        cache: the target's, prefilled, to continue (see `prefill`); it is rolled back to the prompt first.

    Returns:
        The new tokens and one `Round` per round. The prefill of target and draft is not part of any round.

    Raises:
        ValueError: gamma is below 1, or the prompt is unusable (see `prefill`).
    """
    steps = decode(
        decoder,
        draft,
        prompt_ids,
        gamma=gamma,
        max_new_tokens=max_new_tokens,
        settings=settings,
        rule=rule,
        stop_ids=stop_ids,
        seed=seed,
        cache=cache,
    )
    return collect(steps, stop_ids, on_tokens)


@torch.inference_mode()
def decode(
    decoder: Decoder,
    draft: Draft,
    prompt_ids: Tensor,
    *,
    gamma: int,
    max_new_tokens: int,
    settings: SamplingSettings,
    rule: VerificationRule | None = None,
    stop_ids: frozenset[int],
    seed: int,
    cache: Cache | None,
) -> Iterator[Step]:
    """The rounds of `generate`, one at a time, so that several generations can take turns."""
    if gamma < 1:
        raise ValueError(f"gamma must be >= 1, got {gamma}; use baseline_autoregressive.generate to decode without")
    check_limits(max_new_tokens)
    prompt_length = len(prompt_ids)
    capacity = prompt_length + max_new_tokens + gamma + 1
    if cache is None:
        cache = prefill(decoder, prompt_ids, capacity)
    cache.rollback(prompt_length - 1)
    if rule is None:
        rule = greedy if settings.greedy else rejection_sampling
    elif settings.greedy and rule is not greedy:
        raise ValueError("temperature 0 is verified by the greedy rule; leave `rule` out, or raise the temperature")
    generator = torch.Generator(decoder.device).manual_seed(seed)
    # Drawn, not counted up from `seed`: the draft of one run must not share noise with another run's verification.
    draft_seed = int(torch.randint(2**62, (1,), generator=generator, device=decoder.device))
    draft.start(prompt_ids, capacity, cache, draft_seed)
    clock = Stopwatch(decoder.device)
    context = prompt_ids
    wanted, stopped = max_new_tokens, False
    while wanted and not stopped:
        begin = clock.mark()
        depth = min(gamma, wanted - 1)
        proposal = draft.propose(context, depth) if depth else Proposal(context[:0], None)
        proposed = clock.mark()
        logits = decoder.forward(torch.cat([context[-1:], proposal.token_ids]), cache)
        verified = clock.mark()
        p = logits if settings.greedy else probabilities(logits, settings)
        verdict = rule(p, proposal.probs, proposal.token_ids, generator)
        accepted = int(verdict.accepted)
        block = torch.cat([proposal.token_ids[:accepted], verdict.next_token[None]])
        tokens = block.tolist()
        kept = next((i + 1 for i, token in enumerate(tokens) if token in stop_ids), len(tokens))
        stopped = tokens[kept - 1] in stop_ids
        wanted -= kept
        start_context = len(context)
        context = torch.cat([context, block[:kept]])
        cache.rollback(len(context) - 1)
        accept_probability = tuple(verdict.accept_probability.tolist())
        end = clock.mark()
        yield (
            tokens[:kept],
            Round(
                context=start_context,
                gamma=gamma,
                drafted=len(proposal.token_ids),
                accepted=accepted,
                emitted=kept,
                cut=kept < accepted + 1,
                start_seconds=clock.seconds(clock.origin, begin),
                draft_seconds=clock.seconds(begin, proposed),
                verify_seconds=clock.seconds(proposed, verified),
                other_seconds=clock.seconds(verified, end),
                accept_probability=accept_probability,
            ),
        )
