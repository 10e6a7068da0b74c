"""The requests of a batch as decoding goes on: what is known of each, where its output ends, who has finished.

Both loops, with a draft and without, keep one invariant: the target's cache holds every known token of a row but the
last. A request that has ended leaves the batch, so no forward is spent on it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from real.cache import KVCache
from real.decoder import Decoder
from real.devices import to_device


@dataclass(frozen=True)
class Round:
    """One round of one request, or one autoregressive step, as it was measured; the round table's columns."""

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
    batch: int = 1
    accept_probability: tuple[float, ...] | None = ()
    depth: int = 0
    accepted_ranks: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Step:
    """What one round emitted for one request."""

    request: int
    token_ids: list[int]
    round: Round


@dataclass
class Generation:
    """What one call generated for one request, and how.

    Attributes:
        token_ids: the new tokens, the stop token included if one was reached.
        rounds: one entry per round, in order.
        stopped: whether a stop token ended the output, rather than max_new_tokens.
    """

    token_ids: list[int] = field(default_factory=list)
    rounds: list[Round] = field(default_factory=list)
    stopped: bool = False


OnTokens = Callable[[int, list[int]], None]
"""Called as on_tokens(request, new tokens) after every round of a request, for streaming."""


def collect(
    steps: Iterator[list[Step]], requests: int, stop_ids: frozenset[int], on_tokens: OnTokens | None
) -> list[Generation]:
    """Run rounds to the end and put them together, request by request."""
    outputs = [Generation() for _ in range(requests)]
    for batch in steps:
        for step in batch:
            outputs[step.request].token_ids += step.token_ids
            outputs[step.request].rounds.append(step.round)
            if on_tokens is not None:
                on_tokens(step.request, step.token_ids)
    for output in outputs:
        output.stopped = output.token_ids[-1] in stop_ids
    return outputs


class Batch:
    """The unfinished requests of a batch.

    Attributes:
        requests: which request each row is.
        token_ids: [rows, capacity] int64 on the device; a row's known tokens first, zeros after.
        tokens: the same on the host, at their own lengths.
        wanted: tokens each row may still emit.
        generators: each row's own randomness.
    """

    def __init__(
        self,
        prompts: Sequence[Tensor],
        max_new_tokens: int,
        capacity: int,
        stop_ids: frozenset[int],
        seeds: Sequence[int],
        device: torch.device,
    ) -> None:
        self.requests = list(range(len(prompts)))
        self.tokens = [prompt.tolist() for prompt in prompts]
        self.token_ids = torch.zeros(len(prompts), capacity, dtype=torch.long, device=device)
        for row, prompt in enumerate(prompts):
            self.token_ids[row, : len(prompt)] = prompt
        self.wanted = [max_new_tokens] * len(prompts)
        self.stop_ids = stop_ids
        self.generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    @property
    def rows(self) -> int:
        """Unfinished requests."""
        return len(self.requests)

    @property
    def lengths(self) -> list[int]:
        """Known tokens of each row."""
        return [len(tokens) for tokens in self.tokens]

    def latest(self, counts: Sequence[int]) -> Tensor:
        """[rows, max(counts)] the last counts[row] known tokens of each row, padded at the end."""
        width, lengths = max(counts), self.lengths
        if len(counts) == 1:
            return self.token_ids[:, lengths[0] - width : lengths[0]]
        first = to_device([n - count for n, count in zip(lengths, counts, strict=True)], self.token_ids.device)
        where = first[:, None] + torch.arange(width, device=self.token_ids.device)
        return self.token_ids.gather(1, where.clamp_max(self.token_ids.shape[1] - 1))

    def append(self, row: int, tokens: list[int]) -> list[int]:
        """Add what a round emitted to a row, up to its first stop token and its limit; returns what was kept."""
        kept = next((i + 1 for i, token in enumerate(tokens) if token in self.stop_ids), len(tokens))
        kept = min(kept, self.wanted[row])
        known = len(self.tokens[row])
        new = tokens[:kept]
        self.token_ids[row, known : known + kept] = to_device(new, self.token_ids.device)
        self.tokens[row] += new
        self.wanted[row] = 0 if new[-1] in self.stop_ids else self.wanted[row] - kept
        return new

    def unfinished(self) -> list[int]:
        """Rows that still want tokens."""
        return [row for row, wanted in enumerate(self.wanted) if wanted > 0]

    def keep_rows(self, rows: Sequence[int]) -> None:
        """Drop every other row."""
        for name in ("requests", "tokens", "wanted", "generators"):
            setattr(self, name, [getattr(self, name)[row] for row in rows])
        self.token_ids = self.token_ids[to_device(rows, self.token_ids.device)]


def check_prompts(prompts: Sequence[Tensor], vocab_size: int) -> None:
    """Refuse prompts that cannot be continued.

    Raises:
        ValueError: there is none, or one is empty, is not [n], or has an id outside the vocabulary.
    """
    if not prompts:
        raise ValueError("no prompts given; a batch holds at least one")
    for prompt in prompts:
        if prompt.dim() != 1:
            raise ValueError(f"a prompt must be [n], got {list(prompt.shape)}; give a batch as a list of prompts")
        if len(prompt) == 0:
            raise ValueError("a prompt is empty; begin with at least one token, such as the model's bos token")
        low, high = int(prompt.min()), int(prompt.max())
        if not 0 <= low <= high < vocab_size:
            raise ValueError(
                f"prompt ids must be in [0, {vocab_size}), got {low} to {high}; "
                "was the prompt encoded with another model's tokenizer?"
            )


@torch.inference_mode()
def prefill(
    decoder: Decoder, prompts: Sequence[Tensor], capacity: int, feature_layers: tuple[int, ...] = ()
) -> KVCache:
    """A cache that holds all of every prompt but its last token.

    Args:
        prompts: [n] int64 each; lengths may differ.
        capacity: tokens a sequence may grow to.
        feature_layers: kept beside keys and values for drafts that read them.

    Raises:
        ValueError: a prompt is unusable (see `check_prompts`).
    """
    check_prompts(prompts, decoder.vocab_size)
    cache = decoder.new_cache(capacity, len(prompts), feature_layers)
    known = [len(prompt) - 1 for prompt in prompts]
    if max(known) > 0:
        padded = torch.nn.utils.rnn.pad_sequence([prompt[:-1] for prompt in prompts], batch_first=True)
        decoder.forward(padded, cache, logits_to_keep=1)
        cache.rollback(known)
    return cache


def prepare_cache(
    decoder: Decoder,
    prompts: Sequence[Tensor],
    capacity: int,
    feature_layers: tuple[int, ...],
    cache: KVCache | None,
) -> KVCache:
    """Prefill, or take a prefilled cache and roll it back to the prompts.

    Raises:
        ValueError: the given cache is too small, or lacks features that the draft reads.
    """
    if cache is None:
        return prefill(decoder, prompts, capacity, feature_layers)
    if cache.batch != len(prompts) or cache.capacity < capacity:
        raise ValueError(
            f"the given cache holds {cache.batch} rows of {cache.capacity} tokens, "
            f"needed are {len(prompts)} of {capacity}"
        )
    if not set(feature_layers) <= set(cache.feature_layers):
        raise ValueError(f"the draft reads the layers {feature_layers}, the given cache keeps {cache.feature_layers}")
    own = copy.copy(cache)  # the caller's keeps its rows when requests end here
    own.rollback([len(prompt) - 1 for prompt in prompts])
    return own


def check_limits(max_new_tokens: int, prompts: Sequence[Tensor], seeds: Sequence[int] | None) -> list[int]:
    """The seed of each request: 0, 1, 2, ... where none are given.

    Raises:
        ValueError: max_new_tokens is below 1, or there is not one seed a prompt.
    """
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be >= 1, got {max_new_tokens}")
    if seeds is not None and len(seeds) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts and {len(seeds)} seeds given; give one seed a prompt")
    return list(range(len(prompts))) if seeds is None else list(seeds)
