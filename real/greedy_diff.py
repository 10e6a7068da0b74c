"""Where two greedy outputs part: the tokens, and the target's logits there from both batch shapes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from real import baseline_autoregressive, optimized_speculative
from real.loading import Target
from real.proposals import Draft
from real.requests import prefill
from real.sampling import SamplingSettings

GREEDY = SamplingSettings(temperature=0)


@dataclass(frozen=True)
class GreedyPair:
    """Greedy outputs of one prompt without and with a draft.

    Attributes:
        reference, other: the baseline's tokens and the speculative loop's.
        reference_logits: [vocab] at the first difference, from single-token forwards; None where there is none.
        other_logits: [vocab] the same from forwards of gamma + 1 tokens.
    """

    reference: list[int]
    other: list[int]
    reference_logits: Tensor | None
    other_logits: Tensor | None


def greedy_pair(target: Target, draft: Draft, prompt_ids: Tensor, gamma: int, max_new_tokens: int) -> GreedyPair:
    """Decode a prompt greedily both ways, and score the first difference both ways."""
    decoder = target.decoder
    plain = baseline_autoregressive.generate(
        decoder, prompt_ids, max_new_tokens=max_new_tokens, settings=GREEDY, stop_ids=target.stop_ids
    ).token_ids
    fast = optimized_speculative.generate(
        decoder,
        draft,
        prompt_ids,
        gamma=gamma,
        max_new_tokens=max_new_tokens,
        settings=GREEDY,
        stop_ids=target.stop_ids,
    ).token_ids
    first = next((i for i, (a, b) in enumerate(zip(plain, fast, strict=False)) if a != b), None)
    if first is None:
        return GreedyPair(plain, fast, None, None)
    shared = torch.tensor(plain[:first], dtype=torch.long, device=prompt_ids.device)
    return GreedyPair(
        plain,
        fast,
        _last_logits(target, prompt_ids, shared, width=1),
        _last_logits(target, prompt_ids, shared, width=gamma + 1),
    )


def _last_logits(target: Target, prompt_ids: Tensor, output: Tensor, width: int) -> Tensor:
    """[vocab] logits after prompt and output, the output fed so many tokens at a time."""
    capacity = len(prompt_ids) + len(output)
    cache = prefill(target.decoder, [prompt_ids], capacity)
    fed = torch.cat([prompt_ids[-1:], output])[None]
    return [target.decoder.forward(piece, cache)[0, -1] for piece in torch.split(fed, width, dim=1)][-1]
