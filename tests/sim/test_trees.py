"""Statistical tests compare a mean with its closed form within 4 standard errors: 6.3e-5 false alarms a cell."""

import heapq
import itertools
import math
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim import theory
from sim.latency import AffineLatency, ConstantLatency
from sim.tree_acceptance import tree_seconds
from sim.tree_search import best_tree, best_tree_for_latency, best_tree_for_speed
from sim.trees import TokenTree, expected_tokens, rank_acceptance

WIDE = TokenTree((-1, -1, -1, 0, 0, 1, 5))
SLOW_TAIL = np.array([[0.5, 0.2, 0.1], [0.1, 0.6, 0.2], [0.05, 0.05, 0.9]])
"""acceptance that neither falls with rank nor with depth"""


def tables(rng: np.random.Generator, depth: int, k: int, falling: bool = False) -> np.ndarray:
    """Random acceptance [depth, k]; each row sums to less than 1."""
    table = rng.dirichlet(np.full(k + 1, 0.5), size=depth)[:, :k]
    return -np.sort(-table, axis=1) if falling else table


def every_tree(size: int) -> Iterator[TokenTree]:
    """All shapes with so many nodes: nested tuples of children, numbered breadth-first."""

    def forests(nodes: int) -> Iterator[tuple[Any, ...]]:
        if nodes == 0:
            yield ()
        for first in range(1, nodes + 1):
            for below, others in itertools.product(forests(first - 1), forests(nodes - first)):
                yield (below, *others)

    for forest in forests(size):
        parents: list[int] = []
        waiting = deque([(-1, forest)])
        while waiting:
            parent, children = waiting.popleft()
            for child in children:
                waiting.append((len(parents), child))
                parents.append(parent)
        yield TokenTree(tuple(parents))


def greedy_gain(table: np.ndarray, budget: int) -> float:
    """Expected accepted tokens when the likeliest node that is left is added until the budget is used."""
    gain, left = 0.0, [(-float(table[0, 0]), 1.0, 0, 0)]
    for _ in range(budget):
        chance, parent, depth, rank = heapq.heappop(left)
        gain -= chance
        if rank + 1 < table.shape[1]:
            heapq.heappush(left, (-parent * float(table[depth, rank + 1]), parent, depth, rank + 1))
        if depth + 1 < len(table):
            heapq.heappush(left, (chance * float(table[depth + 1, 0]), -chance, depth + 1, 0))
    return gain


@st.composite
def trees(draw: st.DrawFn) -> TokenTree:
    """A tree level by level."""
    parents: list[int] = []
    level = [-1]
    for _ in range(draw(st.integers(0, 4))):
        first = len(parents)
        for parent in level:
            parents += [parent] * draw(st.integers(0, 3))
        level = list(range(first, len(parents)))
    return TokenTree(tuple(parents))


def test_a_tree_by_hand() -> None:
    assert (WIDE.size, WIDE.depth, WIDE.width, WIDE.is_chain) == (7, 3, 3, False)
    assert WIDE.depths == (1, 1, 1, 2, 2, 2, 3)
    assert WIDE.ranks == (0, 1, 2, 0, 1, 0, 0)
    assert WIDE.levels == ((0, 1, 2), (3, 4, 5), (6,))
    assert [WIDE.children(node) for node in (-1, 0, 1, 2, 5)] == [(0, 1, 2), (3, 4), (5,), (), (6,)]
    assert np.flatnonzero(WIDE.visible()[7]).tolist() == [0, 2, 6, 7], "node 6 sees the root, node 1, node 5, itself"


def test_a_tree_without_nodes_drafts_nothing() -> None:
    for empty in (TokenTree(()), TokenTree.chain(0), TokenTree.branching([])):
        assert (empty.size, empty.depth, empty.width, empty.levels) == (0, 0, 0, ())
        assert empty.is_chain
        assert empty.visible().tolist() == [[True]]
        assert expected_tokens(empty, [0.8]) == 1.0
        assert TokenTree.parse(empty.name()) == empty


@settings(deadline=None, max_examples=150, derandomize=True)
@given(trees())
def test_the_tables_of_a_tree_agree_and_its_name_reads_back(tree: TokenTree) -> None:
    assert TokenTree.parse(str(tree)) == tree
    assert [node for level in tree.levels for node in level] == list(range(tree.size))
    family = [tree.children(node) for node in range(-1, tree.size)]
    assert sorted(node for children in family for node in children) == list(range(tree.size))
    assert tree.width == max(map(len, family))
    assert tree.is_chain == (tree.width <= 1)
    for node, parent in enumerate(tree.parents):
        assert tree.children(parent)[tree.ranks[node]] == node
        assert tree.depths[node] == (1 if parent < 0 else 1 + tree.depths[parent])
    sees = tree.visible()
    assert sees.shape == (tree.size + 1, tree.size + 1)
    assert sees.sum(axis=1).tolist() == [1, *(depth + 1 for depth in tree.depths)]
    assert not np.triu(sees, 1).any(), "a node sees no later one"


def test_a_chain_sees_what_causal_attention_sees() -> None:
    np.testing.assert_array_equal(TokenTree.chain(6).visible(), np.tri(7, dtype=bool))
    assert TokenTree.chain(6).ranks == (0,) * 6
    assert TokenTree.branching((1, 1, 1)) == TokenTree.chain(3) == TokenTree.parse("chain:3")


def test_branching_gives_every_node_of_a_level_as_many_children() -> None:
    tree = TokenTree.parse("3,2,1")
    assert tree == TokenTree.branching((3, 2, 1))
    assert tree.parents == (-1, -1, -1, 0, 0, 1, 1, 2, 2, 3, 4, 5, 6, 7, 8)
    assert tree.name() == "3,2,1"
    assert TokenTree.parse("parents:-1,-1,0") == TokenTree((-1, -1, 0))


@pytest.mark.parametrize(
    ("parents", "message"),
    [
        ((0,), "parent of node 0 must be an earlier node or -1 for the root, got 0"),
        ((-1, 2, 1), "parent of node 1 must be an earlier node or -1 for the root, got 2"),
        ((-2,), "or -1 for the root, got -2"),
        ((-1, 0, -1), "children of node -1 must be adjacent, but node 2 stands apart"),
        ((-1, -1, 0, 2, 1), "depth must never decrease, but node 4 at depth 2 follows one at depth 3"),
    ],
)
def test_a_tree_out_of_order_is_named(parents: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TokenTree(parents)


@pytest.mark.parametrize("text", ["", "3,,1", "chain:2,3", "chain:", "star:4", "parents:", "3.5", "1:chain:4"])
def test_text_that_is_no_tree_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"a tree must read like '3,2,1', 'chain:4' or 'parents:-1,-1,0', got"):
        TokenTree.parse(text)


def test_impossible_sizes_are_named() -> None:
    with pytest.raises(ValueError, match=r"width must be a whole number >= 1, got 0 in \(3, 0\)"):
        TokenTree.branching((3, 0))
    with pytest.raises(ValueError, match="whole number >= 0 of tokens, got -1"):
        TokenTree.parse("chain:-1")
    with pytest.raises(ValueError, match="node must be -1 for the root, or 0 to 6, got 7"):
        WIDE.children(7)


@pytest.mark.parametrize("gamma", [0, 1, 5, 16])
def test_a_chain_yields_leviathan_eq_1(gamma: int) -> None:
    chain = TokenTree.chain(gamma)
    assert expected_tokens(chain, [0.8]) == pytest.approx(float(theory.expected_tokens(0.8, gamma)), rel=1e-12)
    conditional = np.linspace(0.9, 0.2, gamma)
    if gamma:
        expected = theory.expected_tokens_per_position(conditional)
        assert expected_tokens(chain, conditional[:, None]) == pytest.approx(float(expected), rel=1e-12)


def test_expected_tokens_sum_the_products_along_paths() -> None:
    """Three children of the root; two of the first, one of the second; one below that."""
    expected = 1 + (0.5 + 0.2 + 0.1) + 0.5 * (0.1 + 0.6) + 0.2 * 0.1 + 0.2 * 0.1 * 0.05
    assert expected_tokens(WIDE, SLOW_TAIL) == pytest.approx(expected, rel=1e-12)


def walk(tree: TokenTree, table: np.ndarray, rng: np.random.Generator, rounds: int) -> tuple[np.ndarray, np.ndarray]:
    """Simulated verification: emitted tokens [rounds], and the positions reached: depth, rank, offered [3, positions].

    A leaf is a position that offers nothing.
    """
    emitted, reached = np.empty(rounds), []
    for k in range(rounds):
        node, depth = -1, 1
        while True:
            children = tree.children(node)
            chances = table[depth - 1, : len(children)]
            rank = int(np.searchsorted(np.cumsum(chances), rng.random(), side="right"))
            accepted = rank if rank < len(children) else -1
            reached.append((depth, accepted, len(children)))
            if accepted < 0:
                break
            node, depth = children[accepted], depth + 1
        emitted[k] = depth
    return emitted, np.array(reached).T


def test_a_simulated_verification_emits_the_expected_tokens() -> None:
    """One cell: false alarms 6.3e-5. The mutant forgets a leaf's bonus token; power above 0.999 at this size."""
    table = np.vstack([SLOW_TAIL, np.zeros(3)])
    emitted, (depth, _, offered) = walk(WIDE, table, np.random.default_rng(0), 20_000)
    error = emitted.std() / math.sqrt(len(emitted))
    assert abs(emitted.mean() - expected_tokens(WIDE, SLOW_TAIL)) <= 4 * error
    leaves = ((offered == 0) & (depth > 1)).sum()
    assert abs(emitted.mean() - leaves / len(emitted) - expected_tokens(WIDE, SLOW_TAIL)) > 4 * error


@pytest.mark.parametrize(
    ("acceptance", "message"),
    [
        ([[0.5, 0.2, 0.1]], "covers depth 1 and 3 siblings, but the tree has depth 3 and 3 siblings"),
        (SLOW_TAIL[:, :2], "covers depth 3 and 2 siblings, but the tree has depth 3"),
        ([0.6, 0.5, 0.1], r"must sum to at most 1 over ranks, got 1\.2; give the chance"),
        ([0.6, -0.1, 0.1], r"acceptance must be in \[0, 1\], got -0\.1"),
        (0.6, r"must be \[depth, k\] or \[k\] with at least one rank, got shape \(\)"),
    ],
)
def test_bad_acceptance_is_named(acceptance: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        expected_tokens(WIDE, acceptance)


@pytest.mark.parametrize("size", range(7))
def test_best_tree_is_the_best_of_all_trees(size: int) -> None:
    """Also where acceptance rises with rank or depth, is 0, or covers fewer ranks and depths than the tree could use.

    There are 132 trees of 6 nodes.
    """
    rng = np.random.default_rng(size)
    for trial in range(30):
        depth, k = int(rng.integers(3, 7)), int(rng.integers(2, 7))
        table = tables(rng, depth, k) * (rng.random((depth, k)) < 0.8)
        fitting = [tree for tree in every_tree(size) if tree.depth <= depth and tree.width <= k]
        best = max(expected_tokens(tree, table) for tree in fitting)
        found = best_tree(table, size)
        assert found.size == size
        assert expected_tokens(found, table) == pytest.approx(best, rel=1e-12), trial
        shallow = [tree for tree in fitting if tree.depth <= 2 and tree.width <= k]
        if shallow:
            found = best_tree(table, size, max_depth=2)
            assert found.depth <= 2
            best = max(expected_tokens(tree, table) for tree in shallow)
            assert expected_tokens(found, table) == pytest.approx(best, rel=1e-12), trial


@pytest.mark.parametrize("budget", [1, 6, 17, 64])
def test_best_tree_is_the_greedy_one_where_acceptance_falls_with_rank(budget: int) -> None:
    rng = np.random.default_rng(budget)
    for table in (tables(rng, 16, 16, falling=True), np.tile(tables(rng, 1, 8, falling=True), (budget, 1))):
        tree = best_tree(table, budget)
        assert tree.size == budget
        assert expected_tokens(tree, table) - 1 == pytest.approx(greedy_gain(table, budget), rel=1e-12)


def test_the_greedy_tree_is_not_the_best_where_a_later_sibling_is_likelier() -> None:
    """Rank 1 is worth 0.6 but comes after rank 0, worth 0.01, so greed goes down the first branch."""
    table = np.array([[0.5, 0.1], [0.01, 0.6]])
    assert expected_tokens(best_tree(table, 3), table) - 1 == pytest.approx(0.5 * 1.61)
    assert greedy_gain(table, 3) == pytest.approx(0.5 + 0.1 + 0.5 * 0.01)


def test_one_row_of_acceptance_holds_at_every_depth() -> None:
    row = [0.7, 0.15]
    assert best_tree(row, 9) == best_tree(np.tile(row, (9, 1)), 9)
    assert best_tree([0.9], 5) == TokenTree.chain(5)
    assert best_tree([0.3, 0.3, 0.3], 3, max_depth=1) == TokenTree.branching([3])


def test_a_budget_that_no_tree_holds_is_named() -> None:
    with pytest.raises(ValueError, match="no tree of depth 1 with 3 siblings holds 4 tokens; lower the budget"):
        best_tree(SLOW_TAIL, 4, max_depth=1)
    with pytest.raises(ValueError, match="max_depth must be at most 3, the depth of the acceptance table, got 4"):
        best_tree(SLOW_TAIL, 4, max_depth=4)
    with pytest.raises(ValueError, match="max_depth must be a whole number >= 1, got 0"):
        best_tree([0.5], 4, max_depth=0)
    with pytest.raises(ValueError, match="budget must be a whole number >= 0, got -1"):
        best_tree([0.5], -1)


def test_the_best_tree_for_speed_is_the_fastest_of_all_trees() -> None:
    rng = np.random.default_rng(5)
    everything = [tree for size in range(6) for tree in every_tree(size)]
    sizes = set()
    for _ in range(40):
        table = tables(rng, 4, 5)
        level, verify = rng.uniform(0, 0.4), 1 + np.cumsum(rng.uniform(0, 0.2, 6))
        rates = [
            expected_tokens(tree, table) / (tree.depth * level + verify[tree.size])
            for tree in everything
            if tree.depth <= 4
        ]
        tree, rate = best_tree_for_speed(table, level, verify.tolist(), 5, 4)
        assert rate == pytest.approx(max(rates), rel=1e-12)
        assert rate == pytest.approx(expected_tokens(tree, table) / (tree.depth * level + verify[tree.size]), rel=1e-12)
        sizes.add(tree.size)
    assert len(sizes) > 2, "the costs decide the size"


def test_a_chain_for_speed_has_the_best_draft_length_of_the_closed_form() -> None:
    verify = [1 + 0.02 * n for n in range(17)]
    tree, _ = best_tree_for_speed([0.8], 0.05, verify, 16, 16)
    assert tree == TokenTree.chain(theory.best_gamma(0.8, 0.05, lambda new: 1 + 0.02 * (new - 1), 16))


def test_a_draft_that_does_not_pay_gives_the_empty_tree() -> None:
    assert best_tree_for_speed([0.1, 0.05], 0.5, [2.0] * 9, 8, 4) == (TokenTree(()), 0.5)


@pytest.mark.parametrize("verify", [[1.0] * 8, [0.0] + [1.0] * 8])
def test_missing_verification_costs_are_named(verify: list[float]) -> None:
    with pytest.raises(ValueError, match=r"entry > 0 for each of 0 to 8 drafted tokens, got [89] entries, the least"):
        best_tree_for_speed([0.5], 0.1, verify, 8, 4)


@pytest.mark.parametrize("batch", [1, 3])
def test_the_best_tree_for_latency_is_that_for_speed_where_width_costs_nothing(batch: int) -> None:
    """A draft that costs the same at any width, and a target affine in the tokens of the batch."""
    draft, target = ConstantLatency(0.07), AffineLatency(0.9, 0.02, 1e-4)
    verify = [float(target.forward_seconds(batch, n + 1, 300)) + 0.01 for n in range(25)]
    lookups = [seconds - 0.01 + 0.2 * (n > 0) for n, seconds in enumerate(verify)]
    at: Any = {"target": target, "max_size": 24, "max_depth": 3, "batch": batch, "context": 300}
    for found, expected in (
        (
            best_tree_for_latency(SLOW_TAIL, draft, **at, overhead_seconds=0.01),
            best_tree_for_speed(SLOW_TAIL, 0.07, verify, 24, 3),
        ),
        (
            best_tree_for_latency(SLOW_TAIL, None, **at, proposal_seconds=0.2),
            best_tree_for_speed(SLOW_TAIL, 0.0, lookups, 24, 3),
        ),
    ):
        assert found[0] == expected[0]
        assert found[1] == pytest.approx(expected[1], rel=1e-12)


def test_the_best_tree_for_latency_weighs_the_width_of_every_level() -> None:
    """The fastest of the best trees of every size and depth; where width costs, not the one that ignores it."""
    draft, target, table = AffineLatency(0.01, 0.02), AffineLatency(1.0, 0.01), [0.45, 0.25, 0.15, 0.05]

    def rate(tree: TokenTree) -> float:
        seconds = tree_seconds(draft, tree, 50.0, 2) + target.forward_seconds(2, tree.size + 1, 50)
        return expected_tokens(tree, table) / float(seconds)

    tree, found = best_tree_for_latency(table, draft, target, 20, 5, batch=2, context=50)
    candidates = [best_tree(table, size, depth) for depth in range(1, 6) for size in range(1, 21) if size <= 4**depth]
    assert found == pytest.approx(max(map(rate, candidates)), rel=1e-12)
    assert found == pytest.approx(rate(tree), rel=1e-12)
    careless, _ = best_tree_for_speed(table, 0.05, [1.0 + 0.02 * (n + 1) for n in range(21)], 20, 5)
    assert rate(careless) < found


def test_a_larger_batch_has_a_smaller_best_tree() -> None:
    """Where the target reads its weights in the time of 200 tokens' arithmetic."""
    draft, target = AffineLatency(0.05, 1e-4), AffineLatency(1.0, 0.005)
    sizes = [
        best_tree_for_latency([0.6, 0.15, 0.08], draft, target, 32, 8, batch=batch)[0].size for batch in (1, 8, 64, 512)
    ]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > 8
    assert sizes[-1] == 0
    with pytest.raises(ValueError, match="a round without drafts must take time, got a target and overhead of 0"):
        best_tree_for_latency([0.6], draft, ConstantLatency(0.0), 4, 2)


def test_rank_acceptance_finds_the_table_that_the_rounds_were_drawn_from() -> None:
    """Nine cells, of which those offered less than 30 times are left out: false alarms 9 * 6.3e-5 = 0.06%.

    The tree offers rank 2 at depths 1 and 3 only. The mutant counts acceptances per position that offered anything, as
    if a sibling that was not offered had been rejected: at depth 2, where 3 of 8 positions offer a single one, it loses
    that much of rank 1's chance. Power above 0.999 at this size.
    """
    rng = np.random.default_rng(3)
    table = np.array([[0.4, 0.3, 0.1], [0.3, 0.4, 0.2], [0.5, 0.2, 0.1], [0.0, 0.0, 0.0]])
    tree = TokenTree((-1, -1, -1, 0, 0, 1, 2, 2, 3, 3, 3, 5))
    _, (depth, rank, offered) = walk(tree, table, rng, 20_000)
    estimate, tested = rank_acceptance(depth, rank, offered)
    assert estimate.shape == tested.shape == (4, 3)
    for d, r in itertools.product(range(3), range(3)):
        positions = int(((depth == d + 1) & (offered > r)).sum())
        if positions >= 30:
            error = math.sqrt(table[d, r] * (1 - table[d, r]) / positions)
            assert abs(estimate[d, r] - table[d, r]) <= 4 * error + 1 / positions, (d, r)
    assert tested[1, 2] == tested[3].sum() == 0
    below = (depth == 2) & (offered > 0)
    mutant = (rank[below] == 1).sum() / below.sum()
    assert abs(mutant - 0.4) > 4 * math.sqrt(0.24 / int(((depth == 2) & (offered > 1)).sum()))


def test_rank_acceptance_by_hand() -> None:
    """Rank 0 tested 4 times and accepted twice, rank 1 tested once (once not offered) and accepted: no depth 2 data."""
    estimate, tested = rank_acceptance([1, 1, 1, 1, 2], [0, 0, 1, -1, -1], [2, 2, 2, 1, 0])
    assert tested.tolist() == [[4, 1], [0, 0]]
    first, second = 2.5 / 5, 1.5 / 2
    once_tested = np.array([[(2 + first) / 5, (1 + second) / 2], [first, second]])
    expected = once_tested * np.column_stack([np.ones(2), 1 - once_tested[:, 0]])
    np.testing.assert_allclose(estimate, expected, rtol=1e-12)


@settings(deadline=None, max_examples=80, derandomize=True)
@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 4), st.integers(0, 5)), min_size=1))
def test_rank_acceptance_is_always_a_table_that_trees_can_use(positions: list[tuple[int, int, int]]) -> None:
    depth, rank, offered = np.array(positions).T
    rank = np.where(rank < offered, rank, -1)
    if not offered.any():
        with pytest.raises(ValueError, match="at least one position with a sibling offered, got none"):
            rank_acceptance(depth, rank, offered)
        return
    estimate, _ = rank_acceptance(depth, rank, offered)
    assert ((estimate > 0) & (estimate < 1)).all()
    assert (estimate.sum(axis=1) < 1).all()
    assert best_tree(estimate, 1).size == 1


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (([1], [0, 1], [2]), r"of one length, got \(1,\), \(2,\), \(1,\)"),
        (([1, 1], [0, 2], [1, 2]), "got depth 1, rank 2, offered 2"),
        (([0], [0], [1]), "got depth 0, rank 0, offered 1"),
        (([1], [-2], [1]), "got depth 1, rank -2, offered 1"),
    ],
)
def test_impossible_positions_are_named(columns: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rank_acceptance(*columns)
