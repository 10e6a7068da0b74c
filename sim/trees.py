"""Token trees: their shape, the tokens that one yields, and the acceptance that this takes.

A tree drafts several continuations at once; the target verifies all of them in one forward and keeps one path. The
expectations rest on the positional acceptance assumption of Chen et al., "Sequoia: Scalable and Robust Speculative
Decoding" (2024, arXiv:2402.12374): the chance that a node is the accepted one, given that its parent was accepted,
depends on its rank among its siblings (and here on its depth), and on nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import index
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sim.theory import FloatArray, check_probability

IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class TokenTree:
    """The shape of a draft: which drafted token continues which.

    The root is the last known token; it is not a node. Nodes come in order of depth, siblings side by side in order of
    preference. A tree without nodes drafts nothing.
    """

    parents: tuple[int, ...]
    """each node's parent, an earlier node, or -1 for the root"""

    def __post_init__(self) -> None:
        object.__setattr__(self, "parents", tuple(map(index, self.parents)))
        finished: set[int] = set()
        for node, parent in enumerate(self.parents):
            if not -1 <= parent < node:
                raise ValueError(
                    f"the parent of node {node} must be an earlier node or -1 for the root, got {parent}; number "
                    "parents before their children"
                )
            if node and parent != self.parents[node - 1]:
                finished.add(self.parents[node - 1])
            if parent in finished:
                raise ValueError(f"the children of node {parent} must be adjacent, but node {node} stands apart")
        for node in range(1, self.size):
            if self.depths[node] < self.depths[node - 1]:
                raise ValueError(
                    f"depth must never decrease, but node {node} at depth {self.depths[node]} follows one at depth "
                    f"{self.depths[node - 1]}; list the nodes breadth-first"
                )

    @classmethod
    def chain(cls, gamma: int) -> TokenTree:
        """The draft of plain speculative decoding: gamma tokens, each after the last."""
        if gamma < 0 or gamma != int(gamma):
            raise ValueError(f"a chain must have a whole number >= 0 of tokens, got {gamma}")
        return cls(tuple(range(-1, int(gamma) - 1)))

    @classmethod
    def branching(cls, widths: Sequence[int]) -> TokenTree:
        """The tree in which every node of level d, the root being level 0, has widths[d] children."""
        parents: list[int] = []
        level = [-1]
        for width in widths:
            if width < 1 or width != int(width):
                raise ValueError(f"each width must be a whole number >= 1, got {width} in {tuple(widths)}")
            first = len(parents)
            parents += [parent for parent in level for _ in range(int(width))]
            level = list(range(first, len(parents)))
        return cls(tuple(parents))

    @classmethod
    def parse(cls, text: str) -> TokenTree:
        """Read "3,2,1" (widths by level), "chain:4" (a draft length) or "parents:-1,-1,0" (each node's parent).

        Raises:
            ValueError: the text is none of these, or describes no tree.
        """
        kind, _, rest = text.rpartition(":")
        unreadable = ValueError(f"a tree must read like '3,2,1', 'chain:4' or 'parents:-1,-1,0', got {text!r}")
        try:
            numbers = [int(number) for number in rest.split(",")]
        except ValueError as error:
            raise unreadable from error
        match kind, numbers:
            case "", widths:
                return cls.branching(widths)
            case "chain", [gamma]:
                return cls.chain(gamma)
            case "parents", parents:
                return cls(tuple(parents))
        raise unreadable

    def name(self) -> str:
        """The shortest text that `parse` reads back as this tree."""
        if self.is_chain:
            return f"chain:{self.size}"
        widths = [{len(self.children(node)) for node in level} for level in ((-1,), *self.levels[:-1])]
        if all(len(distinct) == 1 for distinct in widths):
            return ",".join(str(distinct.pop()) for distinct in widths)
        return "parents:" + ",".join(map(str, self.parents))

    def __str__(self) -> str:
        return self.name()

    @property
    def size(self) -> int:
        """Drafted tokens."""
        return len(self.parents)

    @cached_property
    def depths(self) -> tuple[int, ...]:
        """Depth of each node; 1 for children of the root [size]."""
        depths: list[int] = []
        for parent in self.parents:
            depths.append(1 if parent < 0 else depths[parent] + 1)
        return tuple(depths)

    @property
    def depth(self) -> int:
        """Tokens on the longest path; draft forwards that the tree takes."""
        return self.depths[-1] if self.parents else 0

    @cached_property
    def _children(self) -> tuple[tuple[int, ...], ...]:
        table: list[list[int]] = [[] for _ in range(self.size + 1)]
        for node, parent in enumerate(self.parents):
            table[parent + 1].append(node)
        return tuple(map(tuple, table))

    def children(self, node: int) -> tuple[int, ...]:
        """The node's children in order of preference; -1 for the root's."""
        if not -1 <= node < self.size:
            raise ValueError(f"node must be -1 for the root, or 0 to {self.size - 1}, got {node}")
        return self._children[node + 1]

    @cached_property
    def ranks(self) -> tuple[int, ...]:
        """Place of each node among its siblings, from 0 [size]."""
        return tuple(node - self.children(parent)[0] for node, parent in enumerate(self.parents))

    @cached_property
    def levels(self) -> tuple[tuple[int, ...], ...]:
        """Nodes by depth; the root's children first [depth]."""
        levels: list[list[int]] = [[] for _ in range(self.depth)]
        for node, depth in enumerate(self.depths):
            levels[depth - 1].append(node)
        return tuple(map(tuple, levels))

    @property
    def width(self) -> int:
        """Most children of any node, the root included."""
        return max(map(len, self._children))

    @property
    def is_chain(self) -> bool:
        """Whether no node has a sibling."""
        return self.depth == self.size

    def visible(self) -> NDArray[np.bool_]:
        """Which tokens each token sees: its ancestors and itself [size + 1, size + 1]; index 0 is the root."""
        sees = np.eye(self.size + 1, dtype=np.bool_)
        for node, parent in enumerate(self.parents):
            sees[node + 1] |= sees[parent + 1]
        return sees


def expected_tokens(tree: TokenTree, acceptance: ArrayLike) -> float:
    """Expected tokens emitted per round, the bonus or correction token included.

    1 + the sum over nodes of the product of acceptances along the node's path (Sequoia, Sec. 3).

    Args:
        tree: the draft's shape.
        acceptance: [depth, k], or [k] for the same at every depth: chance that the sibling of rank k is the accepted
            one, given that its parent was accepted; a row sums to at most 1.

    Raises:
        ValueError: a chance is out of range, or the tree is deeper or wider than the table.
    """
    table = check_acceptance(acceptance, tree.depth)
    if tree.depth > len(table) or tree.width > table.shape[1]:
        raise ValueError(
            f"acceptance covers depth {len(table)} and {table.shape[1]} siblings, but the tree has depth {tree.depth} "
            f"and {tree.width} siblings; estimate acceptance on a tree as large"
        )
    reached = [1.0]
    for parent, depth, rank in zip(tree.parents, tree.depths, tree.ranks, strict=True):
        reached.append(reached[parent + 1] * float(table[depth - 1, rank]))
    return float(np.sum(reached))


class RankAcceptance(NamedTuple):
    """Acceptance by depth and rank, and how much it rests on."""

    acceptance: FloatArray
    """as in `expected_tokens` [depth, k]"""
    tested: IntArray
    """positions at which that sibling came up for verification [depth, k]"""


def rank_acceptance(depth: ArrayLike, rank: ArrayLike, offered: ArrayLike) -> RankAcceptance:
    """Estimate acceptance by depth and rank from the positions that verification reached.

    Siblings are tested in turn, so sibling r is tested only where r + 1 were offered and none before it was accepted.
    The estimate is therefore that of the chance of acceptance once tested, multiplied by the chances that all before
    it failed: unbiased by where trees were narrow, and a row never sums to more than 1. Over all depths together that
    chance has the Jeffreys prior Beta(1/2, 1/2); at one depth the prior is worth one position at the mean of its rank,
    since a half for every depth that few rounds reach would send the best tree there.

    Args:
        depth: depth of the siblings offered, 1 below the root [positions].
        rank: the accepted sibling's rank, -1 where none was [positions].
        offered: siblings offered; 0 at a leaf [positions].

    Raises:
        ValueError: lengths differ, a value is out of range, or no sibling was offered.
    """
    depth, rank, offered = (np.asarray(column, dtype=np.int64) for column in (depth, rank, offered))
    if not depth.shape == rank.shape == offered.shape or depth.ndim != 1:
        raise ValueError(
            f"depth, rank and offered must be of one length, got {depth.shape}, {rank.shape}, {offered.shape}"
        )
    wrong = (depth < 1) | (offered < 0) | (rank < -1) | (rank >= offered)
    if wrong.any():
        raise ValueError(
            "each position needs depth >= 1, offered >= 0 and -1 <= rank < offered, got depth "
            f"{depth[wrong][0]}, rank {rank[wrong][0]}, offered {offered[wrong][0]}"
        )
    levels, k = int(depth.max(initial=0)), int(offered.max(initial=0))
    if k == 0:
        raise ValueError("acceptance needs at least one position with a sibling offered, got none; measure more rounds")
    tests = np.zeros((levels, k + 1), dtype=np.int64)
    np.add.at(tests, (depth - 1, np.where(rank >= 0, rank + 1, offered)), 1)
    tested = tests[:, ::-1].cumsum(axis=1)[:, -2::-1]
    accepted = np.zeros((levels, k), dtype=np.int64)
    np.add.at(accepted, (depth[rank >= 0] - 1, rank[rank >= 0]), 1)
    of_rank = (accepted.sum(axis=0) + 0.5) / (tested.sum(axis=0) + 1)
    once_tested = (accepted + of_rank) / (tested + 1)
    failed_before = np.cumprod(np.hstack([np.ones((levels, 1)), 1 - once_tested[:, :-1]]), axis=1)
    return RankAcceptance(failed_before * once_tested, tested)


def check_acceptance(acceptance: ArrayLike, depth: int) -> FloatArray:
    """Acceptance as a table [depth, k]; a single row is repeated for every depth.

    Raises:
        ValueError: it is no table of chances whose rows sum to at most 1.
    """
    table = check_probability("acceptance", acceptance)
    if table.ndim not in (1, 2) or 0 in table.shape:
        raise ValueError(f"acceptance must be [depth, k] or [k] with at least one rank, got shape {table.shape}")
    sums = table.sum(axis=-1)
    if np.any(sums > 1 + 1e-9):
        raise ValueError(
            f"acceptance must sum to at most 1 over ranks, got {sums.max():g}; give the chance that a rank is the "
            "accepted one, not that it is accepted once tested"
        )
    return np.broadcast_to(table, (depth, len(table))) if table.ndim == 1 else table
