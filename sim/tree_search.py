"""The best token tree for a budget of drafted tokens, and the best one for a machine.

The dynamic programme of Chen et al., "Sequoia: Scalable and Robust Speculative Decoding" (2024, arXiv:2402.12374,
Sec. 3), with acceptances that may differ by depth.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from sim.latency import LatencyModel
from sim.theory import FloatArray, check_cost
from sim.tree_acceptance import tree_seconds
from sim.trees import IntArray, RankAcceptance, TokenTree, check_acceptance, rank_acceptance


def best_tree(acceptance: ArrayLike, budget: int, max_depth: int | None = None) -> TokenTree:
    """The tree of `budget` drafted tokens that yields the most expected tokens.

    Where acceptance never rises with rank, no node is likelier than its parent or the sibling before it, and taking the
    likeliest node that is left gives the same. The dynamic programme needs no such order.

    Args:
        acceptance: [depth, k] or [k], as in `expected_tokens`.
        budget: drafted tokens, all of them used.
        max_depth: longest path; None: the table's depth, or the budget for a table that holds at every depth.

    Raises:
        ValueError: the table is too small for the budget or the depth.
    """
    check_count("budget", budget)
    table = check_acceptance(acceptance, budget) if max_depth is None else cut_acceptance(acceptance, max_depth)
    solution = solve(table, budget)
    if np.isneginf(solution.value[budget]):
        raise ValueError(
            f"no tree of depth {len(table)} with {table.shape[1]} siblings holds {budget} tokens; lower the budget, or "
            "give acceptance for more ranks or depths"
        )
    return solution.tree(budget)


def best_tree_for_speed(
    acceptance: ArrayLike,
    draft_level_seconds: float,
    verify_seconds: Sequence[float],
    max_size: int,
    max_depth: int,
) -> tuple[TokenTree, float]:
    """The tree that yields the most expected tokens per second, over all sizes and depths (Sequoia, Sec. 3).

    Args:
        acceptance: [depth, k] or [k], as in `expected_tokens`.
        draft_level_seconds: one draft forward, which drafts a level of the tree.
        verify_seconds: entry n: one target forward that verifies n drafted tokens (n + 1 new ones) [max_size + 1].
        max_size: most drafted tokens.
        max_depth: longest path.

    Returns:
        The tree, and its expected tokens per second. The tree is empty where drafting does not pay.

    Raises:
        ValueError: a cost is missing or out of range, or the table is shallower than max_depth.
    """
    check_count("max_size", max_size)
    check_cost("draft_level_seconds", draft_level_seconds)
    seconds = check_cost("verify_seconds", verify_seconds)[: max_size + 1]
    if len(seconds) <= max_size or not seconds.all():
        raise ValueError(
            f"verify_seconds must have an entry > 0 for each of 0 to {max_size} drafted tokens, got {len(seconds)} "
            f"entries, the least {seconds.min(initial=np.inf):g}; time those forwards, or lower max_size"
        )
    table = cut_acceptance(acceptance, max_depth)
    best, rate = TokenTree(()), float(1 / seconds[0])
    # a solution for depths up to d is priced at d levels: where it has fewer, a smaller d finds it at its own price
    for depth in range(1, max_depth + 1):
        solution = solve(table[:depth], max_size)
        rates = (1 + solution.value) / (depth * draft_level_seconds + seconds)
        size = int(np.argmax(rates))
        if rates[size] > rate:
            best, rate = solution.tree(size), float(rates[size])
    return best, rate


def best_tree_for_latency(
    acceptance: ArrayLike,
    draft: LatencyModel | None,
    target: LatencyModel,
    max_size: int,
    max_depth: int,
    *,
    batch: int = 1,
    context: float = 0.0,
    overhead_seconds: float = 0.0,
    proposal_seconds: float = 0.0,
) -> tuple[TokenTree, float]:
    """The tree that yields the most expected tokens per second at one batch and context.

    Every draft forward is priced by the tokens that it feeds, which `best_tree_for_speed` takes to cost the same for
    all. The candidates are the trees of most expected tokens of every size and depth; where a wide level costs more,
    one that yields fewer tokens from narrower levels may be faster still.

    Args:
        acceptance: [depth, k] or [k], as in `expected_tokens`.
        draft: the draft's latency; None: no draft forwards (a lookup, priced by `proposal_seconds`).
        target: the target's latency.
        max_size: most drafted tokens of each request.
        max_depth: longest path.
        batch: requests that draft and verify together.
        context: tokens that each of them has.
        overhead_seconds: host time of every round.
        proposal_seconds: host time of every round that drafts.

    Returns:
        The tree, and its expected tokens per second for each request. It is empty where drafting does not pay.

    Raises:
        ValueError: a count or cost is out of range, or the table is shallower than max_depth.
    """
    check_count("max_size", max_size)
    for name, cost in (("overhead_seconds", overhead_seconds), ("proposal_seconds", proposal_seconds)):
        check_cost(name, cost)
    table = cut_acceptance(acceptance, max_depth)
    sizes = np.arange(max_size + 1)
    rest = target.forward_seconds(batch, sizes + 1, context) + overhead_seconds + proposal_seconds * (sizes > 0)
    if not rest.all():
        raise ValueError("a round without drafts must take time, got a target and overhead of 0 seconds")
    best, rate = TokenTree(()), float(1 / rest[0])
    for depth in range(1, max_depth + 1):
        solution = solve(table[:depth], max_size)
        for size in range(1, max_size + 1):
            if np.isneginf(solution.value[size]):
                continue
            tree = solution.tree(size)
            drafting = 0.0 if draft is None else float(tree_seconds(draft, tree, context, batch))
            found = float((1 + solution.value[size]) / (drafting + rest[size]))
            if found > rate:
                best, rate = tree, found
    return best, rate


class Solution(NamedTuple):
    """The best trees of every size up to a budget, as the choices that make them."""

    value: FloatArray
    """expected accepted tokens of the best tree by size; -inf where none has that size [budget + 1]"""
    siblings: IntArray
    """how many children the best node has, by its depth and the nodes below it [depth, budget + 1]"""
    share: IntArray
    """nodes that go to the last of so many siblings, itself included [depth, k, budget + 1]"""

    def tree(self, size: int) -> TokenTree:
        """The best tree of one size."""
        parents: list[int] = []
        waiting = deque([(-1, 0, size)])
        while waiting:
            parent, depth, below = waiting.popleft()
            shares = []
            for rank in range(int(self.siblings[depth, below]) - 1, -1, -1) if below else ():
                shares.append(int(self.share[depth, rank, below]))
                below -= shares[-1]
            for share in reversed(shares):
                waiting.append((len(parents), depth + 1, share - 1))
                parents.append(parent)
        return TokenTree(tuple(parents))


def solve(table: FloatArray, budget: int) -> Solution:
    """Best trees from the deepest level up: a node's children take their shares of the nodes below it in turn.

    Args:
        table: acceptance [depth, k].
        budget: most drafted tokens.
    """
    depth, k = table.shape
    sizes = np.arange(budget + 1)
    left = sizes[:, None] - sizes[1:]  # nodes left for earlier siblings [size, share]
    siblings = np.zeros((depth, budget + 1), dtype=np.int64)
    share = np.zeros((depth, k, budget + 1), dtype=np.int64)
    leaf = np.where(sizes == 0, 0.0, -np.inf)
    below = leaf
    for d in range(depth - 1, -1, -1):
        by_siblings = [leaf]
        for rank in range(k):
            # a chance of 0 times an impossible subtree must stay impossible
            subtree = np.where(np.isneginf(below), -np.inf, table[d, rank] * (1 + np.maximum(below, 0.0)))[:-1]
            totals = np.where(left >= 0, by_siblings[-1][np.maximum(left, 0)] + subtree, -np.inf)
            if budget:
                share[d, rank] = 1 + totals.argmax(axis=1)
            by_siblings.append(totals.max(axis=1, initial=-np.inf))
        siblings[d] = np.argmax(by_siblings, axis=0)
        below = np.max(by_siblings, axis=0)
    return Solution(below, siblings, share)


def cut_acceptance(acceptance: ArrayLike, max_depth: int) -> FloatArray:
    """Acceptance down to max_depth [max_depth, k].

    Raises:
        ValueError: as `check_acceptance`, or the table is shallower.
    """
    if max_depth < 1 or max_depth != int(max_depth):
        raise ValueError(f"max_depth must be a whole number >= 1, got {max_depth}")
    table = check_acceptance(acceptance, max_depth)
    if len(table) < max_depth:
        raise ValueError(
            f"max_depth must be at most {len(table)}, the depth of the acceptance table, got {max_depth}; give one row "
            "[k] where acceptance is the same at every depth"
        )
    return table[:max_depth]


def check_count(name: str, value: int) -> None:
    """A whole number >= 0."""
    if value < 0 or value != int(value):
        raise ValueError(f"{name} must be a whole number >= 0, got {value}")


def tree_acceptance(rounds: pd.DataFrame) -> RankAcceptance:
    """Acceptance by depth and rank from the rounds of a measured tree (see `rank_acceptance`).

    A round tells which sibling was accepted at each depth that it reached. Every tree of the table must offer the same
    number of siblings at all nodes of a depth, as `TokenTree.branching` does, and that number is the largest rank seen
    among the rounds: where the last sibling never was accepted it counts as not offered, which changes no estimate.

    Raises:
        ValueError: the table holds no rounds of trees.
    """
    if "accepted_ranks" not in rounds or not rounds["accepted_ranks"].notna().any():
        raise ValueError("these rounds hold no trees; measure one with `specdec measure --tree 4,4,4,4`")
    found = [
        (depth, int(rank)) for ranks in rounds["accepted_ranks"].dropna() for depth, rank in enumerate(ranks, start=1)
    ]
    depth, rank = (np.array(column) for column in zip(*found, strict=True))
    offered = np.array([rank[depth == d].max(initial=-1) + 1 for d in range(1, depth.max() + 1)])
    return rank_acceptance(depth, rank, offered[depth - 1])
