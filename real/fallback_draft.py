"""Look it up where the text repeats itself, ask a model where it does not: `suffix+int8`.

A lookup is free and drafts long runs, but only where something was said before; a model drafts anywhere, at a price. So
a row takes the lookup's tokens when they look likely enough, and the model's otherwise. Both choices are made before
anything is drawn, so the verification stays lossless.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from real.cache import KVCache
from real.devices import to_device
from real.lookup_drafts import PromptLookupDraft, SuffixDraft
from real.proposals import Draft, KeepDrafting, Proposal
from real.requests import Batch
from real.rows import one_hot
from sim.trees import TokenTree


class FallbackDraft:
    """A lookup, and a draft for the rows in which it finds fewer than `least` tokens (or fewer than are wanted).

    Attributes:
        model_limit: tokens that the model drafts at most; a lookup may draft as many as are asked for, since they cost
            no forward.
    """

    def __init__(
        self, lookup: PromptLookupDraft | SuffixDraft, model: Draft, least: int = 3, model_limit: int = 4
    ) -> None:
        if least < 1 or model_limit < 1:
            raise ValueError(f"least and model_limit must be >= 1, got {least} and {model_limit}")
        self.lookup = lookup
        self.model = model
        self.least = least
        self.model_limit = model_limit
        self.name = f"{lookup.name}+{model.name}"
        self.feature_layers = model.feature_layers

    def start(self, batch: Batch, target_cache: KVCache, seeds: Sequence[int]) -> None:
        """See `Draft.start`."""
        self.lookup.start(batch, target_cache, seeds)
        self.model.start(batch, target_cache, seeds)

    def keep_rows(self, rows: Sequence[int]) -> None:
        """See `Draft.keep_rows`."""
        self.lookup.keep_rows(rows)
        self.model.keep_rows(rows)

    def fork(self) -> FallbackDraft:
        """See `Draft.fork`."""
        return FallbackDraft(self.lookup.fork(), self.model.fork(), self.least, self.model_limit)

    def propose(self, batch: Batch, limits: Sequence[int], keep_drafting: KeepDrafting | None = None) -> Proposal:
        """See `Draft.propose`; only the model is asked for confidence."""
        found = self.lookup.propose(batch, limits).token_ids
        copied = [
            limit > 0 and count >= min(self.least, limit)
            for limit, count in zip(limits, (found >= 0).sum(1).tolist(), strict=True)
        ]
        rest = [0 if own else min(limit, self.model_limit) for own, limit in zip(copied, limits, strict=True)]
        if not any(rest):
            return Proposal(found, None)
        drafted = self.model.propose(batch, rest, keep_drafting)
        if not any(copied):
            return drafted
        width = max(found.shape[1], drafted.token_ids.shape[1])
        take = to_device(copied, found.device)[:, None] == 1
        token_ids = torch.where(take, widened(found, width), widened(drafted.token_ids, width))
        if drafted.probs is None:
            return Proposal(token_ids, None)
        laws = torch.nn.functional.pad(drafted.probs, (0, 0, 0, width - drafted.probs.shape[1]))
        return Proposal(token_ids, torch.where(take[..., None], one_hot(token_ids, laws), laws))

    def propose_tree(self, batch: Batch, tree: TokenTree, replacement: bool) -> Proposal:
        """The model's tree: what was looked up has no law to be drawn from beside it."""
        return self.model.propose_tree(batch, tree, replacement)


def widened(token_ids: Tensor, width: int) -> Tensor:
    """[rows, width] token ids, -1 beyond those there are."""
    return torch.nn.functional.pad(token_ids, (0, width - token_ids.shape[1]), value=-1)
