"""Statistical tests compare a mean with its closed form within 4 standard errors: 6.3e-5 false alarms a cell."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from sim.acceptance import IidAcceptance, PerPositionAcceptance
from sim.controllers import FixedGamma
from sim.engine import Engine, run_rounds, simulate, simulate_speedup
from sim.latency import AffineLatency, ConstantLatency, LatencyModel
from sim.records import check_rounds, summarise
from sim.scenario import Scenario
from sim.tree_acceptance import TreeAcceptance, tree_seconds
from sim.tree_search import best_tree
from sim.trees import TokenTree, expected_tokens

TABLE = np.array([[0.55, 0.2, 0.1, 0.05], [0.5, 0.25, 0.1, 0.05], [0.45, 0.2, 0.15, 0.1], [0.4, 0.2, 0.1, 0.1]])
WIDE = TokenTree((-1, -1, -1, 0, 0, 1, 5))
AFFINE = AffineLatency(0.05, 0.01, 1e-5)


def widest_paths(k: int) -> TokenTree:
    """The k likeliest nodes of each level, among children of those kept above (the shape of EAGLE-2's drafts)."""
    parents: list[int] = []
    level = {-1: 1.0}
    for row in TABLE:
        found = [(chance * row[rank], node, rank) for node, chance in level.items() for rank in range(len(row))]
        kept = sorted(sorted(found, reverse=True)[:k], key=lambda one: (one[1], one[2]))
        level = {}
        for chance, node, _ in kept:
            level[len(parents)] = float(chance)
            parents.append(node)
    return TokenTree(tuple(parents))


TREES = {
    "chain": TokenTree.chain(4),
    "k-ary": TokenTree.branching((3, 2, 2)),
    "k a level": widest_paths(4),
    "best of 16": best_tree(TABLE, 16),
    "one level": TokenTree.branching((4,)),
    "by hand": WIDE,
}


def scenario(tree: TokenTree, **changes: Any) -> Scenario:
    plain = Scenario(
        AffineLatency(0.9, 0.02, 1e-4), AFFINE, TreeAcceptance(tree, TABLE), prompt_tokens=40, max_new_tokens=200,
        overhead_seconds=0.01, proposal_seconds=0.003, tree=tree,
    )  # fmt: skip
    return replace(plain, **changes)


@pytest.mark.parametrize("name", TREES)
def test_the_law_of_the_path_is_that_of_a_walk_down_the_tree(name: str) -> None:
    """A walk ends at a node with what its children leave: P(at least d) is what has not ended above depth d."""
    tree = TREES[name]
    reached, ends = {-1: 1.0}, np.zeros(tree.depth + 1)
    for node in range(-1, tree.size):
        depth = tree.depths[node] if node >= 0 else 0
        for rank, child in enumerate(tree.children(node)):
            reached[child] = reached[node] * TABLE[depth, rank]
        ends[depth] += reached[node] * (1 - sum(TABLE[depth, : len(tree.children(node))]) if tree.children(node) else 1)
    model = TreeAcceptance(tree, TABLE)
    np.testing.assert_allclose(model.marginal, 1 - np.cumsum(ends)[:-1], rtol=1e-12)
    accepted = model.sample(np.random.default_rng(2), tree.size, 50_000).accepted[0]
    error = np.sqrt(ends * (1 - ends) / len(accepted))
    assert (np.abs(np.bincount(accepted, minlength=tree.depth + 1) / len(accepted) - ends) <= 4 * error).all()


@pytest.mark.parametrize("engine", ["numpy", "simpy"])
@pytest.mark.parametrize("name", TREES)
def test_simulated_block_efficiency_is_sequoia_s_sum_over_paths(name: str, engine: Engine) -> None:
    """12 cells: false alarms 0.08%."""
    tree = TREES[name]
    emitted = run_rounds(scenario(tree, rounds=10_000, max_new_tokens=None), 1, engine).emitted
    expected = expected_tokens(tree, TABLE)
    assert abs(emitted.mean() - expected) <= 4 * emitted.std() / math.sqrt(len(emitted))
    assert TreeAcceptance(tree, TABLE).expected_block_efficiency(tree.size) == expected


def test_that_check_catches_a_tree_whose_later_siblings_do_not_count() -> None:
    """The mutant verifies the first sibling only, as a chain; power above 0.999."""
    tree = TREES["k-ary"]
    emitted = run_rounds(scenario(tree, rounds=10_000, max_new_tokens=None), 1).emitted
    mutant = expected_tokens(TokenTree.chain(tree.depth), TABLE)
    assert abs(emitted.mean() - mutant) > 4 * emitted.std() / math.sqrt(len(emitted))


@pytest.mark.parametrize("name", TREES)
def test_speedup_of_a_tree_matches_its_closed_form(name: str) -> None:
    """Expected tokens over a draft forward of 0.05 a level and a verification of 0.9 + 0.1 a token fed; 6 cells: 0.04%.

    A round's time does not vary, so the error is that of the mean of its tokens.
    """
    tree = TREES[name]
    one = Scenario(
        AffineLatency(0.9, 0.1), ConstantLatency(0.05), TreeAcceptance(tree, TABLE), rounds=20_000, tree=tree
    )
    emitted = run_rounds(one, 3).emitted
    seconds = 0.05 * tree.depth + 0.9 + 0.1 * (tree.size + 1)
    result = simulate_speedup(one, 3)
    assert result["block_efficiency"] == emitted.mean()
    error = emitted.std() / math.sqrt(len(emitted)) / seconds
    assert abs(result["speedup"] - expected_tokens(tree, TABLE) / seconds) <= 4 * error


@pytest.mark.parametrize("conditional", [(0.9, 0.5, 0.7), (0.3, 0.3, 0.3), (1.0, 0.0, 1.0)])
@pytest.mark.parametrize("requests", [1, 3])
def test_a_chain_is_the_run_of_that_gamma_bit_for_bit(conditional: tuple[float, ...], requests: int) -> None:
    chain = TokenTree.chain(3)
    as_tree = scenario(chain, acceptance=TreeAcceptance(chain, np.array(conditional)[:, None]), requests=requests)
    as_gamma = replace(as_tree, tree=None, gamma=3, acceptance=PerPositionAcceptance(conditional))
    table = simulate(as_tree, 4)
    pd.testing.assert_frame_equal(table.drop(columns="depth"), simulate(as_gamma, 4), check_exact=True)
    assert set(table["depth"]) == {3}
    if len(set(conditional)) == 1:
        row = simulate(replace(as_tree, acceptance=TreeAcceptance(chain, [conditional[0]])), 4)
        pd.testing.assert_frame_equal(row, table, check_exact=True)
        iid = simulate(replace(as_gamma, acceptance=IidAcceptance(conditional[0])), 4)
        pd.testing.assert_frame_equal(iid, table.drop(columns="depth"), check_exact=True)


def test_a_tree_without_nodes_is_the_run_without_a_draft_bit_for_bit() -> None:
    empty = TokenTree(())
    one = scenario(empty, draft=None, proposal_seconds=0.0)
    plain = replace(one, tree=None, acceptance=None)
    pd.testing.assert_frame_equal(simulate(one, 4).drop(columns="depth"), simulate(plain, 4), check_exact=True)
    pd.testing.assert_frame_equal(simulate(replace(one, acceptance=None), 4), simulate(one, 4), check_exact=True)


@pytest.mark.parametrize("latency", [AFFINE, AffineLatency(0.0, 1.0), ConstantLatency(0.3)])
def test_a_tree_costs_one_forward_a_level_over_the_nodes_with_children(latency: LatencyModel) -> None:
    """3,2,1 feeds the root, 3 nodes, then 6; WIDE the root, its first 2 of 3, then the last of 3."""
    context = np.array([0, 100, 2000])
    for tree, fed in ((TokenTree.branching((3, 2, 1)), (1, 3, 6)), (WIDE, (1, 2, 1)), (TokenTree((-1, -1)), (1,))):
        expected = sum(latency.forward_seconds(4, n, context + i) for i, n in enumerate(fed))
        np.testing.assert_allclose(tree_seconds(latency, tree, context, 4), expected, rtol=1e-12)
        assert tree_seconds(latency, tree, 100) == pytest.approx(
            sum(latency.forward_seconds(1, n, 100 + i) for i, n in enumerate(fed))
        )


def test_a_round_of_a_tree_is_priced_at_its_context() -> None:
    table = simulate(scenario(WIDE), 6)
    context = table["context"].to_numpy()
    np.testing.assert_allclose(table["draft_seconds"], tree_seconds(AFFINE, WIDE, context) + 0.003, rtol=1e-12)
    verifying = scenario(WIDE).target.forward_seconds(1, 8, context)
    np.testing.assert_allclose(table["verify_seconds"], verifying, rtol=1e-12)


@pytest.mark.parametrize("name", TREES)
@pytest.mark.parametrize("changes", [{}, {"requests": 3}, {"requests": 3, "draft_device": "own"}])
def test_tables_of_trees_keep_their_identities(name: str, changes: dict[str, Any]) -> None:
    tree = TREES[name]
    table = simulate(scenario(tree, **changes), 2)
    check_rounds(table)
    assert (table["drafted"] == tree.size).all()
    assert (table["gamma"] == tree.size).all()
    assert (table["depth"] == tree.depth).all()
    assert (table["accepted"] <= tree.depth).all()
    assert (table.groupby("request_id")["emitted"].sum() == 200).all()
    if tree.depth == tree.size or changes:
        return
    summary = summarise(simulate(scenario(tree, rounds=500, max_new_tokens=None), 2))
    assert len(summary["marginal_acceptance"]) == tree.depth


def test_a_last_round_with_one_token_left_drafts_no_tree() -> None:
    """A tree is drafted whole or not at all, and what is too much of it is cut, as the real loop does."""
    sure = TreeAcceptance(TokenTree.branching((2, 2)), [1.0, 0.0])
    one = scenario(sure.tree, acceptance=sure, last_round="shortened")
    rows = ["drafted", "accepted", "emitted", "cut", "depth"]
    assert simulate(replace(one, max_new_tokens=4), 0)[rows].to_numpy().tolist() == [
        [6, 2, 3, False, 2],
        [0, 0, 1, False, 0],
    ]
    assert simulate(replace(one, max_new_tokens=5), 0)[rows].to_numpy().tolist()[1] == [6, 2, 2, True, 2]
    plain = simulate(replace(one, max_new_tokens=4), 0).iloc[1]
    assert plain["draft_seconds"] == pytest.approx(0.003)
    assert plain["verify_seconds"] == pytest.approx(one.target.forward_seconds(1, 1, 43))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gamma": 3}, "tree 2,2 fixes what is drafted; leave gamma 3 and controller None out"),
        ({"controller": FixedGamma(2)}, r"leave gamma 0 and controller FixedGamma\(gamma=2\) out"),
        ({"acceptance": IidAcceptance(0.5)}, "tree 2,2 needs the TreeAcceptance of the same tree, got IidAcceptance"),
        ({"acceptance": None}, "needs the TreeAcceptance of the same tree, got NoneType"),
        ({"tree": TokenTree.chain(2)}, "tree chain:2 needs the TreeAcceptance of the same tree, got that of 2,2"),
        ({"tree": None}, "TreeAcceptance needs its tree drafted; give tree=2,2 to the scenario too"),
    ],
)
def test_what_does_not_go_with_a_tree_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(scenario(TokenTree.branching((2, 2))), **changes)


def test_bad_tree_acceptance_is_named() -> None:
    with pytest.raises(ValueError, match="covers depth 4 and 4 siblings, but the tree has depth 5"):
        TreeAcceptance(TokenTree.chain(5), TABLE)
    with pytest.raises(ValueError, match="must sum to at most 1 over ranks"):
        TreeAcceptance(TokenTree.chain(2), [0.7, 0.7])
    model = TreeAcceptance(WIDE, TABLE)
    for ask in (lambda: model.sample(np.random.default_rng(0), 3, 10), lambda: model.expected_block_efficiency(3)):
        with pytest.raises(ValueError, match="drafts all 7 tokens of its tree, got gamma 3; give another tree"):
            ask()
