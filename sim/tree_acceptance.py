"""Rounds that draft a token tree: how much of it is accepted, and what drafting it costs.

Verification follows one path down the tree. Under the positional acceptance of `sim.trees` the length of that path has
a law of its own, so a round of a tree is drawn like a round of a chain, with one random number.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike

from sim.acceptance import Draws, accepted_before_rejection, full_drafts
from sim.latency import LatencyModel, burst_seconds
from sim.theory import FloatArray
from sim.trees import TokenTree, check_acceptance, expected_tokens


@dataclass(frozen=True, eq=False)
class TreeAcceptance:
    """Rounds are independent, and a node's chance depends on its depth and on its rank among its siblings."""

    tree: TokenTree
    acceptance: ArrayLike
    """chance that the sibling of that rank is the accepted one, given that its parent was accepted; [depth, k], or [k]
    for the same at every depth"""

    def __post_init__(self) -> None:
        expected_tokens(self.tree, self.acceptance)  # refuses a table that is none, or too small

    @cached_property
    def marginal(self) -> FloatArray:
        """P(a path of at least so many tokens is accepted), for 1, 2, ... tokens [tree.depth]."""
        tree = self.tree
        table = check_acceptance(self.acceptance, tree.depth)
        reached = [1.0]
        for parent, depth, rank in zip(tree.parents, tree.depths, tree.ranks, strict=True):
            reached.append(reached[parent + 1] * float(table[depth - 1, rank]))
        # two nodes of one depth are never accepted together, so their chances add up
        marginal = np.zeros(tree.depth)
        np.add.at(marginal, np.array(tree.depths, dtype=np.int64) - 1, reached[1:])
        return marginal

    def sample(self, rng: np.random.Generator, gamma: int, rounds: int, requests: int = 1) -> Draws:
        """Draw rounds that draft the whole tree, gamma tokens; see `AcceptanceModel`. One random number a round.

        Raises:
            ValueError: gamma is not the tree's size.
        """
        self._check_gamma(gamma)
        return full_drafts(gamma, accepted_before_rejection(rng, self.marginal, (requests, rounds)))

    def expected_block_efficiency(self, gamma: int) -> float:
        """Sequoia's sum over paths (`sim.trees.expected_tokens`); gamma as in `sample`."""
        self._check_gamma(gamma)
        return expected_tokens(self.tree, self.acceptance)

    def _check_gamma(self, gamma: int) -> None:
        if gamma != self.tree.size:
            raise ValueError(
                f"a round drafts all {self.tree.size} tokens of its tree, got gamma {gamma}; give another tree, or a "
                "model of chains"
            )


def tree_seconds(latency: LatencyModel, tree: TokenTree, context: ArrayLike, batch: ArrayLike = 1) -> FloatArray:
    """Seconds of drafting a tree: one forward a level, over the tokens of the level before that have children.

    For a chain this is `burst_seconds`. Arguments broadcast.

    Args:
        latency: the draft's latency.
        tree: what to draft.
        context: tokens known before; the forward for depth d + 1 has d more.
        batch: requests that draft such a tree.
    """
    if tree.is_chain:
        return burst_seconds(latency, tree.depth, context, batch)
    total: FloatArray = np.zeros(np.broadcast_shapes(np.shape(context), np.shape(batch)))
    for depth, level in enumerate(((-1,), *tree.levels[:-1])):
        fed = sum(1 for node in level if tree.children(node))
        total = total + latency.forward_seconds(batch, fed, np.asarray(context) + depth)
    return total[()]
