"""Every draft source behind one protocol: propose up to gamma tokens, forget those that were rejected.

A draft that samples returns the distributions it sampled from, shaped by the same settings as the target's; a
deterministic draft returns none, which is a one-hot distribution. A draft may propose fewer tokens than asked, or none:
the round is then one plain step of the target.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from real.decoder import Cache, Decoder
from real.rows import draw
from real.sampling import SamplingSettings, probabilities


@dataclass(frozen=True)
class Proposal:
    """What a draft proposes in one round.

    Attributes:
        token_ids: [drafted] int64, at most gamma of them.
        probs: [drafted, vocab] that each was sampled from; None if they were not sampled.
    """

    token_ids: Tensor
    probs: Tensor | None


class Draft(Protocol):
    """A source of proposals for one sequence at a time."""

    name: str

    def start(self, context: Tensor, capacity: int, target_cache: Cache, seed: int) -> None:
        """Begin a sequence: prefill whatever the draft keeps.

        Args:
            context: [n] prompt tokens; the last one is not yet in the target's cache.
            capacity: tokens the sequence may grow to, drafted ones included.
            target_cache: the target's, for drafts that share it.
            seed: of the draft's own randomness for this sequence.
        """

    def propose(self, context: Tensor, gamma: int) -> Proposal:
        """Propose at most gamma tokens to follow `context` [n], the tokens known so far."""


class ModelDraft:
    """A causal LM with the target's vocabulary, and a KV cache of its own or the target's.

    Early exit is this draft with the target's first layers over a view of the target's cache: the keys and values that
    the target wrote for those layers are the draft's own, and what the draft writes beyond the target's length is
    overwritten by the verification.
    """

    def __init__(self, decoder: Decoder, settings: SamplingSettings, name: str, shares_cache: bool = False) -> None:
        self.decoder = decoder
        self.settings = settings
        self.name = name
        self.shares_cache = shares_cache

    def start(self, context: Tensor, capacity: int, target_cache: Cache, seed: int) -> None:
        """See `Draft.start`."""
        self.generator = torch.Generator(self.decoder.device).manual_seed(seed)
        self.target_cache = target_cache
        if not self.shares_cache:
            self.cache = self.decoder.new_cache(capacity)
            if len(context) > 1:
                self.decoder.forward(context[:-1], self.cache, logits_to_keep=1)

    def propose(self, context: Tensor, gamma: int) -> Proposal:
        """Draft token by token; the first forward also reads what the last round emitted and the cache lacks."""
        if self.shares_cache:
            self.cache = self.target_cache.view()
        self.cache.rollback(len(context) - 1)
        pending = context[self.cache.length :]
        token_ids, probs = [], []
        for _ in range(gamma):
            logits = self.decoder.forward(pending, self.cache, logits_to_keep=1)[0]
            if self.settings.greedy:
                pending = self.greedy_choice(logits)
            else:
                probs.append(self.distribution(logits))
                pending = draw(probs[-1], self.generator)[None]
            token_ids.append(pending)
        return Proposal(torch.cat(token_ids), torch.stack(probs) if probs else None)

    def distribution(self, logits: Tensor) -> Tensor:
        """[vocab] probabilities that a token is drafted from."""
        return probabilities(logits, self.settings)

    def greedy_choice(self, logits: Tensor) -> Tensor:
        """[1] the token that greedy decoding drafts."""
        return logits.argmax(dim=-1, keepdim=True)


class SyntheticDraft(ModelDraft):
    """The target itself, spoilt to a known acceptance rate; for tests of everything around it.

    Drafts from q = alpha p + (1 - alpha) e_r, r the target's least likely token. Then sum min(p, q) is
    alpha + (1 - alpha) p_r: alpha, up to the probability of the least likely token. Greedy decoding proposes the
    target's own choice with probability alpha, else r.
    """

    def __init__(self, target: Decoder, settings: SamplingSettings, alpha: float) -> None:
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha must be in [0, 1], got {alpha}")
        super().__init__(target, settings, f"synthetic:{alpha:g}")
        self.alpha = alpha

    def distribution(self, logits: Tensor) -> Tensor:
        """[vocab] alpha p + (1 - alpha) at p's least likely token."""
        p = probabilities(logits, self.settings)
        q = self.alpha * p
        q[p.argmin()] += 1 - self.alpha
        return q

    def greedy_choice(self, logits: Tensor) -> Tensor:
        """[1] the target's own choice with probability alpha, else its least likely token."""
        keep = torch.rand(1, device=logits.device, generator=self.generator) < self.alpha
        return torch.where(keep, logits.argmax(), logits.argmin())


class PromptLookupDraft:
    """Copies what followed the last occurrence of the latest n tokens (Saxena 2023, prompt lookup decoding).

    Tries n = max_ngram first and shorter n-grams after; proposes nothing where even a single token never occurred.
    Proposals are deterministic.
    """

    def __init__(self, max_ngram: int = 3) -> None:
        if max_ngram < 1:
            raise ValueError(f"max_ngram must be >= 1, got {max_ngram}")
        self.max_ngram = max_ngram
        self.name = "prompt-lookup" if max_ngram == 3 else f"prompt-lookup:{max_ngram}"

    def start(self, context: Tensor, capacity: int, target_cache: Cache, seed: int) -> None:
        """Nothing to prepare."""

    def propose(self, context: Tensor, gamma: int) -> Proposal:
        """Look the latest n-gram up in everything known so far."""
        tokens = context.cpu()
        for n in range(min(self.max_ngram, len(tokens) - 1), 0, -1):
            windows = tokens[:-1].unfold(0, n, 1)
            matches = (windows == tokens[-n:]).all(dim=1).nonzero()
            if len(matches):
                after = int(matches[-1]) + n
                return Proposal(context[after : after + gamma], None)
        return Proposal(context[:0], None)


def make_draft(name: str, target: Decoder, settings: SamplingSettings) -> Draft:
    """Build the draft source that a name like 'early-exit:20' stands for.

    Args:
        name: `early-exit:L`, `prompt-lookup` or `prompt-lookup:N`, `synthetic:ALPHA`.
        target: the model that will verify.
        settings: the target's, used on both sides.

    Raises:
        ValueError: the name is none of these (a folder or hub id is loaded by `real.loading`), or its number is off.
    """
    kind, _, argument = name.partition(":")
    try:
        match kind:
            case "early-exit":
                return ModelDraft(target.first_layers(int(argument)), settings, name, shares_cache=True)
            case "prompt-lookup":
                return PromptLookupDraft(int(argument)) if argument else PromptLookupDraft()
            case "synthetic":
                return SyntheticDraft(target, settings, float(argument))
    except ValueError as error:
        raise ValueError(f"draft '{name}': {error}") from error
    raise ValueError(
        f"unknown draft '{name}'; use early-exit:L, prompt-lookup[:N], synthetic:ALPHA, a folder or hub id"
    )
