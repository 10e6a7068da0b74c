"""Token trees are verified without a trace: what comes out is distributed as the target's own samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import binom
from torch import Tensor

from real.candidate_verification import (
    CANDIDATE_RULES,
    CandidateRule,
    draw_candidates,
    multi_round,
    without_replacement,
)
from real.rows import draw
from real.tree_verification import TreeTable, TreeVerdict, verify_tree, verify_tree_greedily
from sim.trees import TokenTree

VOCAB, DEPTH = 4, 3
TREE = TokenTree.branching([2, 2])
ROWS = 40_000
FALSE_ALARM = 1e-6  # of one law compared with its samples
MISSED = 1e-12  # how unlikely samples of a mutant must look

CPU = torch.device("cpu")


def random_laws(*shape: int, seed: int, concentration: float = 0.6) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).dirichlet(np.full(VOCAB, concentration), size=shape))


class Target:
    """Laws of three tokens in a row: [vocab], [vocab, vocab], [vocab, vocab, vocab]."""

    def __init__(self, seed: int) -> None:
        self.first = random_laws(seed=seed)
        self.second = random_laws(VOCAB, seed=seed + 1)
        self.third = random_laws(VOCAB, VOCAB, seed=seed + 2)

    def law(self) -> Tensor:
        """[vocab, vocab, vocab] of three tokens."""
        return self.first[:, None, None] * self.second[:, :, None] * self.third

    def after_nodes(self, ids: Tensor) -> Tensor:
        """[rows, nodes + 1, vocab] the law after each node of TREE, for drafted tokens [rows, nodes]."""
        root = self.first.expand(len(ids), 1, VOCAB)
        parents = torch.tensor(TREE.parents)[2:]
        return torch.cat([root, self.second[ids[:, :2]], self.third[ids[:, parents], ids[:, 2:]]], dim=1)


Drafted = tuple[Tensor, Tensor | None]


def sampled_children(rule: CandidateRule, seed: int) -> Drafted:
    """Tokens [rows, nodes] drawn level by level from random laws, and those laws [rows, nodes + 1, vocab]."""
    generator = torch.Generator().manual_seed(seed)
    first, second = random_laws(seed=seed + 10), random_laws(VOCAB, seed=seed + 11)
    top = draw_candidates(first.expand(ROWS, VOCAB), 2, rule.replacement, generator)
    below = [draw_candidates(second[top[:, child]], 2, rule.replacement, generator) for child in range(2)]
    q = torch.cat([first.expand(ROWS, 1, VOCAB), second[top], torch.zeros(ROWS, 4, VOCAB)], dim=1)
    return torch.cat([top, *below], dim=1), q


def looked_up_children(rule: CandidateRule, seed: int) -> Drafted:
    """The same two tokens after the same tokens, always; siblings distinct, as a lookup proposes them."""
    rng = np.random.default_rng(seed)
    second = torch.from_numpy(np.array([rng.permutation(VOCAB)[:2] for _ in range(VOCAB)]))
    top = torch.from_numpy(rng.permutation(VOCAB)[:2])
    return torch.cat([top, second[top].flatten()]).expand(ROWS, -1), None


def table_of(tree: TokenTree, rows: int) -> TreeTable:
    one = TreeTable.of((tree,), tree.size, CPU)
    tensors = {name: getattr(one, name).expand(rows, *[-1] * (getattr(one, name).dim() - 1)) for name in TENSORS}
    return replace(one, **tensors, row_depths=(tree.depth,) * rows)


TENSORS = ("children", "visible", "depths")


def verdict_of(target: Target, drafted: Drafted, rule: CandidateRule, seed: int) -> TreeVerdict:
    """Verify every row, all of them drawing from one generator in turn."""
    ids, q = drafted
    generator = torch.Generator().manual_seed(seed)
    return verify_tree(target.after_nodes(ids), q, ids, table_of(TREE, ROWS), rule, [generator] * ROWS)


def three_tokens(target: Target, ids: Tensor, verdict: TreeVerdict, seed: int) -> Tensor:
    """[rows, 3] the emitted tokens, and the target's own after them."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.cat([ids.gather(1, (verdict.path - 1).clamp_min(0)), torch.zeros(ROWS, 1).long()], dim=1)
    tokens[torch.arange(ROWS), verdict.accepted] = verdict.next_token
    tokens[:, 1] = torch.where(verdict.accepted < 1, draw(target.second[tokens[:, 0]], generator), tokens[:, 1])
    third = draw(target.third[tokens[:, 0], tokens[:, 1]], generator)
    tokens[:, 2] = torch.where(verdict.accepted < 2, third, tokens[:, 2])
    return tokens


def chance_of(target: Target, tokens: Tensor) -> float:
    """How likely a cell as far out as the worst one is if the tokens follow the target's law.

    Exact binomial tails, twice the smaller one, times the number of cells (Bonferroni).
    """
    cells = tokens @ torch.tensor([VOCAB**2, VOCAB, 1])
    seen = torch.bincount(cells, minlength=VOCAB**DEPTH).numpy()
    law = target.law().flatten().numpy()
    tails = np.minimum(binom.cdf(seen, ROWS, law), binom.sf(seen - 1, ROWS, law))
    return min(1.0, 2 * float(tails.min()) * len(law))


@pytest.mark.parametrize("children", [sampled_children, looked_up_children])
@pytest.mark.parametrize("name", CANDIDATE_RULES)
@pytest.mark.parametrize("seed", [0, 100, 200])
def test_three_tokens_of_a_verified_tree_follow_the_target_s_law(
    name: str, children: Callable[[CandidateRule, int], Drafted], seed: int
) -> None:
    """Twelve laws of 64 cells: a false alarm in 1 of 80,000 sets of seeds.

    A cell of chance 1/64 that gains or loses 0.005 is found with a power above 0.99; the mutants below move more.
    """
    target, rule = Target(seed), CANDIDATE_RULES[name]
    drafted = children(rule, seed)
    verdict = verdict_of(target, drafted, rule, seed + 5)
    assert set(verdict.accepted.tolist()) == {0, 1, 2}
    assert chance_of(target, three_tokens(target, drafted[0], verdict, seed + 6)) > FALSE_ALARM


class Unreduced(CandidateRule):
    """MUTANT: every sibling is compared with p itself, not with what the rejected ones have left of it."""

    def choice(self, p: Tensor, q: Tensor | None, candidates: Tensor) -> tuple[Tensor, Tensor]:
        chances, undecided = [], torch.ones_like(p[..., 0])
        for s in range(candidates.shape[-1]):
            own = CandidateRule(self.replacement).choice(p, q, candidates[..., s : s + 1])[0][..., 0]
            chances.append(undecided * own)
            undecided = undecided * (1 - own)
        left = CandidateRule(self.replacement).choice(p, q, candidates)[1]
        return torch.stack([*chances, undecided], dim=-1), left


def mutated(mutant: str, target: Target, seed: int) -> Tensor:
    """[rows, 3] tokens of a loop with one mistake."""
    ids, q = sampled_children(without_replacement, seed)
    assert q is not None
    rule, p = without_replacement, target.after_nodes(ids)
    match mutant:
        case "siblings compared with all of p":
            rule = Unreduced(replacement=False)
        case "siblings taken for independent":
            rule = multi_round
        case "the law of another node":
            q = q[:, [1, 0, 2, *range(3, 7)]]
        case "siblings' target rows exchanged":
            p = p[:, [0, 2, 1, *range(3, 7)]]
        case "draft laws of siblings exchanged":
            q = q[:, [0, 2, 1, *range(3, 7)]]
    generator = torch.Generator().manual_seed(seed + 5)
    verdict = verify_tree(p, q, ids, table_of(TREE, ROWS), rule, [generator] * ROWS)
    return three_tokens(target, ids, verdict, seed + 6)


@pytest.mark.parametrize(
    "mutant",
    [
        "siblings compared with all of p",
        "siblings taken for independent",
        "the law of another node",
        "siblings' target rows exchanged",
        "draft laws of siblings exchanged",
    ],
)
def test_a_mistake_in_the_walk_is_caught(mutant: str) -> None:
    """With the first case's laws, so far out that another set of seeds would catch it too."""
    target = Target(0)
    assert chance_of(target, mutated("none", target, 0)) > FALSE_ALARM
    assert chance_of(target, mutated(mutant, target, 0)) < MISSED


def test_sampled_tokens_verified_as_certain_ones_cost_acceptance_but_no_exactness() -> None:
    """One-hot laws make the rule one of exact matches, which never asks how tokens were drawn; same false alarms."""
    target = Target(0)
    ids, q = sampled_children(without_replacement, 0)
    informed = verdict_of(target, (ids, q), without_replacement, 5)
    blind = verdict_of(target, (ids, None), without_replacement, 5)
    assert chance_of(target, three_tokens(target, ids, blind, 6)) > FALSE_ALARM
    assert blind.accepted.double().mean() < informed.accepted.double().mean() - 0.05


# ---- shapes


RAGGED = (
    TokenTree.branching([3, 2, 1]),
    TokenTree.chain(2),
    TokenTree(()),
    TokenTree((-1, -1, 0, 2)),
    TokenTree.branching([4]),
    TokenTree((-1, -1, 1, 1, 2)),
)
NODES = max(tree.size for tree in RAGGED)


def ragged_rows(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """p, q [rows, nodes + 1, vocab] and tokens [rows, nodes] for RAGGED, siblings distinct."""
    p, q = (random_laws(len(RAGGED), NODES + 1, seed=seed + i) for i in range(2))
    ids = torch.full((len(RAGGED), NODES), -1)
    generator = torch.Generator().manual_seed(seed)
    for row, tree in enumerate(RAGGED):
        for node in range(-1, tree.size):
            below = list(tree.children(node))
            if below:
                ids[row, below] = draw_candidates(q[row, node + 1], len(below), False, generator)
    return p, q, ids


def generators() -> list[torch.Generator]:
    return [torch.Generator().manual_seed(40 + row) for row in range(len(RAGGED))]


def test_a_table_holds_each_row_s_tree() -> None:
    table = TreeTable.of(RAGGED, NODES, CPU)
    assert table.depth == 3
    for row, tree in enumerate(RAGGED):
        size = tree.size
        for node in range(-1, size):
            below = [child - 1 for child in table.children[row, node + 1].tolist() if child > 0]
            assert below == list(tree.children(node))
        assert table.children[row, size + 1 :].eq(-1).all()
        assert (table.visible[row, : size + 1, : size + 1].numpy() == tree.visible()).all()
        assert table.visible[row, size + 1 :, : size + 1].logical_not().all()
        assert table.visible[row].diagonal().all()
        assert table.depths[row].tolist() == [0, *tree.depths, *[0] * (NODES - size)]


@pytest.mark.parametrize("known_laws", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_a_row_s_outcome_does_not_depend_on_the_rows_beside_it(seed: int, known_laws: bool) -> None:
    p, laws, ids = ragged_rows(seed)
    q = laws if known_laws else None
    together = verify_tree(p, q, ids, TreeTable.of(RAGGED, NODES, CPU), without_replacement, generators())
    order = [4, 2, 0, 5, 3, 1]
    mixed = verify_tree(
        p[order], None if q is None else q[order], ids[order],
        TreeTable.of(tuple(RAGGED[row] for row in order), NODES, CPU), without_replacement,
        [generators()[row] for row in order],
    )  # fmt: skip
    assert torch.equal(mixed.path, together.path[order])
    assert torch.equal(mixed.next_token, together.next_token[order])
    for row, tree in enumerate(RAGGED):
        one, nodes = slice(row, row + 1), max(1, tree.size)
        alone = verify_tree(
            p[one, : nodes + 1], None if q is None else q[one, : nodes + 1], ids[one, :nodes],
            TreeTable.of((tree,), nodes, CPU), without_replacement, generators()[one],
        )  # fmt: skip
        accepted = int(alone.accepted)
        assert int(together.accepted[row]) == accepted
        assert int(together.next_token[row]) == int(alone.next_token)
        assert together.path[row].tolist() == [*alone.path[0].tolist(), *[0] * (3 - tree.depth)]
        assert together.ranks[row, :accepted].tolist() == alone.ranks[0, :accepted].tolist()


def test_a_walk_stays_inside_its_row_s_tree() -> None:
    """What was not drafted is never accepted, neither a padding node nor a missing child; each is a descendant."""
    for seed in range(30):
        p, q, ids = ragged_rows(seed)
        missing = ids.clone()
        missing[0, [1, 2, 4]] = -1  # the last siblings of some rows were not drafted
        missing[4, 2:] = -1
        for tokens in (ids, missing):
            greedy = verify_tree_greedily(p, tokens, TreeTable.of(RAGGED, NODES, CPU))
            sampled = [
                verify_tree(p, law, tokens, TreeTable.of(RAGGED, NODES, CPU), without_replacement, generators())
                for law in (q, None)
            ]
            for verdict in (greedy, *sampled):
                assert verdict.next_token.ge(0).all()
                assert verdict.next_token.lt(VOCAB).all()
                for row, tree in enumerate(RAGGED):
                    accepted, parent = int(verdict.accepted[row]), -1
                    assert accepted <= tree.depth
                    assert verdict.path[row, accepted:].eq(0).all()
                    for level, node in enumerate((verdict.path[row, :accepted] - 1).tolist()):
                        assert tokens[row, node] >= 0
                        assert tree.children(parent)[int(verdict.ranks[row, level])] == node
                        parent = node


def test_the_greedy_walk_follows_the_most_likely_token() -> None:
    deepest = 0
    for seed in range(60):
        logits, _, ids = ragged_rows(seed)
        logits = logits.log()
        verdict = verify_tree_greedily(logits, ids, TreeTable.of(RAGGED, NODES, CPU))
        for row, tree in enumerate(RAGGED):
            node, path = -1, []
            while True:
                best = int(logits[row, node + 1].argmax())
                following = [child for child in tree.children(node) if ids[row, child] == best]
                if not following:
                    break
                node = following[0]
                path.append(node + 1)
            assert verdict.path[row, : len(path)].tolist() == path
            assert (int(verdict.accepted[row]), int(verdict.next_token[row])) == (len(path), best)
            deepest = max(deepest, len(path))
    assert deepest == 3


def test_logits_in_the_place_of_probabilities_are_refused() -> None:
    p, q, ids = ragged_rows(0)
    with pytest.raises(ValueError, match=r"p row \(0, 0\) is not a distribution"):
        verify_tree(p.log(), q, ids, TreeTable.of(RAGGED, NODES, CPU), without_replacement, generators())
