"""Verification of token trees: walk from the root, at each node let a rule choose among the drafted children.

All nodes were scored in one forward. At a node with children the candidates are its children's tokens, in the order in
which they were drawn; where one is accepted the walk goes on from it, where none is the correction token ends it, and
at a leaf the target's own sample does (SpecInfer: Miao et al. 2024, arXiv:2305.09781, Algorithm 2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from real.candidate_verification import CandidateRule
from real.rows import check_rows, uniforms
from sim.trees import TokenTree


@dataclass(frozen=True)
class TreeTable:
    """The shapes of a batch's trees as tensors; node 0 is the root, node i + 1 is drafted token i.

    Attributes:
        children: [rows, nodes + 1, width] int64, -1 where there are fewer.
        visible: [rows, nodes + 1, nodes + 1] bool, whether a node sees another.
        depths: [rows, nodes + 1] int64, 0 for the root.
        row_depths: of each row's tree.
    """

    children: Tensor
    visible: Tensor
    depths: Tensor
    row_depths: tuple[int, ...]

    @property
    def depth(self) -> int:
        """Of the deepest tree."""
        return max(self.row_depths)

    @classmethod
    def of(cls, trees: tuple[TokenTree, ...], nodes: int, device: torch.device) -> TreeTable:
        """Put the trees of a batch into tables padded to `nodes`; padding nodes see themselves only."""
        width = max(1, max(tree.width for tree in trees))
        children = np.full((len(trees), nodes + 1, width), -1)
        visible = np.broadcast_to(np.eye(nodes + 1, dtype=bool), (len(trees), nodes + 1, nodes + 1)).copy()
        depths = np.zeros((len(trees), nodes + 1), dtype=np.int64)
        for row, tree in enumerate(trees):
            visible[row, : tree.size + 1, : tree.size + 1] = tree.visible()
            depths[row, 1 : tree.size + 1] = tree.depths
            for node in range(-1, tree.size):
                below = tree.children(node)
                children[row, node + 1, : len(below)] = np.array(below, dtype=np.int64) + 1
        tables = [torch.from_numpy(table).to(device) for table in (children, visible, depths)]
        return cls(tables[0], tables[1], tables[2], tuple(tree.depth for tree in trees))


@dataclass(frozen=True)
class TreeVerdict:
    """What one verification of trees decided.

    Attributes:
        accepted: [rows] int64, drafted tokens kept.
        path: [rows, depth] int64, the accepted nodes from the root down (1 is the first drafted token), then zeros.
        ranks: [rows, depth] int64, which sibling was accepted at each depth; the number of siblings where none was.
        next_token: [rows] int64, emitted after the accepted ones.
    """

    accepted: Tensor
    path: Tensor
    ranks: Tensor
    next_token: Tensor


def verify_tree(
    p: Tensor,
    q: Tensor | None,
    draft_ids: Tensor,
    table: TreeTable,
    rule: CandidateRule,
    generators: Sequence[torch.Generator],
) -> TreeVerdict:
    """Verify a batch of trees by a sampling rule.

    Args:
        p: [rows, nodes + 1, vocab] target probabilities after each node, the root first.
        q: [rows, nodes + 1, vocab] the draft's law after each node, from which its children were drawn; a node without
            children may hold anything. None for tokens that were not sampled.
        draft_ids: [rows, nodes] int64, -1 for a node that was not drafted.
        generators: of each row; two uniforms per level of the row's own tree are drawn in one go, so its outcome
            depends on no other row.

    Raises:
        ValueError: a row of p on the CPU is no distribution.
    """
    check_rows("p", p)
    rows = torch.arange(len(p), device=p.device)
    drawn = [uniforms((depth + 1, 2), p.device, own) for depth, own in zip(table.row_depths, generators, strict=True)]
    uniform = torch.nn.utils.rnn.pad_sequence(drawn, batch_first=True)
    node = torch.zeros_like(rows)
    alive = torch.ones_like(rows, dtype=torch.bool)
    next_token = torch.zeros_like(rows)
    path, ranks = [], []
    for level in range(table.depth + 1):
        below = table.children[rows, node]
        candidates = torch.where(below > 0, draft_ids.gather(1, (below - 1).clamp_min(0)), -1)
        verdict = rule.decide(p[rows, node], None if q is None else q[rows, node], candidates, uniform[:, level])
        missed = verdict.chosen == below.shape[1]
        next_token = torch.where(alive & missed, verdict.token, next_token)
        alive = alive & ~missed
        reached = below.gather(1, verdict.chosen.clamp_max(below.shape[1] - 1)[:, None]).squeeze(1)
        node = torch.where(alive, reached, node)
        path.append(torch.where(alive, node, 0))
        ranks.append(verdict.chosen)
    stacked = torch.stack(path[: table.depth], dim=1) if table.depth else node.new_zeros((len(p), 0))
    ranked = torch.stack(ranks[: table.depth], dim=1) if table.depth else stacked
    return TreeVerdict((stacked > 0).sum(1), stacked, ranked, next_token)


def verify_tree_greedily(logits: Tensor, draft_ids: Tensor, table: TreeTable) -> TreeVerdict:
    """Follow the child that is the target's most likely token, while there is one; then emit the most likely token.

    Args:
        logits: [rows, nodes + 1, vocab] of the target; ties go to the first index.
        draft_ids: [rows, nodes] int64, -1 for a node that was not drafted.
    """
    best = logits.argmax(-1)
    rows = torch.arange(len(best), device=best.device)
    node, alive = torch.zeros_like(rows), torch.ones_like(rows, dtype=torch.bool)
    path, ranks = [], []
    for _ in range(table.depth):
        below = table.children[rows, node]
        candidates = torch.where(below > 0, draft_ids.gather(1, (below - 1).clamp_min(0)), -1)
        match = candidates == best[rows, node][:, None]
        alive = alive & match.any(1)
        rank = torch.where(match.any(1), match.int().argmax(1), below.shape[1])
        node = torch.where(alive, below.gather(1, rank.clamp_max(below.shape[1] - 1)[:, None]).squeeze(1), node)
        path.append(torch.where(alive, node, 0))
        ranks.append(rank)
    stacked = torch.stack(path, dim=1) if path else node.new_zeros((len(best), 0))
    ranked = torch.stack(ranks, dim=1) if ranks else stacked
    return TreeVerdict((stacked > 0).sum(1), stacked, ranked, best[rows, node])
