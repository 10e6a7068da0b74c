"""What every draft is to the loop: a source of proposals, as chains or as trees.

A draft that samples returns the distributions it sampled from, shaped by the same settings as the target's; a
deterministic draft returns none, which is a one-hot distribution. A draft may propose fewer tokens than asked, or none:
the round is then one plain step of the target.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from real.cache import KVCache
from real.requests import Batch
from sim.trees import TokenTree

KeepDrafting = Callable[[float, float, float], bool | NDArray[np.bool_]]
"""Called as keep_drafting(confidence, entropy, all_accepted) after each drafted token of a row: see
`sim.controllers.Controller`."""


@dataclass(frozen=True)
class Proposal:
    """What a draft proposes in one round.

    Attributes:
        token_ids: [rows, drafted] int64, -1 where a row has fewer.
        probs: the laws that tokens were sampled from, None if they were not sampled. In a chain [rows, drafted, vocab],
            row i the law of token i, zeros where there is none. For trees [rows, drafted + 1, vocab], row i + 1 the law
            of the children of token i, and row 0 that of the first tokens.
        trees: the shape of each row's tree; None for chains.
    """

    token_ids: Tensor
    probs: Tensor | None
    trees: tuple[TokenTree, ...] | None = None


class Draft(Protocol):
    """A source of proposals for a batch of sequences."""

    name: str
    feature_layers: tuple[int, ...]
    """layers of the target whose outputs this draft reads from the target's cache"""

    def start(self, batch: Batch, target_cache: KVCache, seeds: Sequence[int]) -> None:
        """Begin sequences: prefill whatever the draft keeps. The target's cache holds all known tokens but the last.

        Args:
            batch: the requests, with room for drafted tokens in its capacity.
            target_cache: for drafts that share it or read features from it.
            seeds: of the draft's own randomness for each request.
        """

    def propose(self, batch: Batch, limits: Sequence[int], keep_drafting: KeepDrafting | None = None) -> Proposal:
        """Propose a chain of at most limits[row] tokens to follow each row's known tokens."""

    def propose_tree(self, batch: Batch, tree: TokenTree, replacement: bool) -> Proposal:
        """Propose a tree: of this shape, or, from a draft that finds its candidates, of at most so many tokens.

        `replacement`: whether siblings are drawn independently, or each without those before it.
        """

    def keep_rows(self, rows: Sequence[int]) -> None:
        """Forget every other row."""

    def fork(self) -> Draft:
        """The same draft, weights shared, for other sequences at the same time."""
