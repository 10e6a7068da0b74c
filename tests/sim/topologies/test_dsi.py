"""Statistical tests compare a mean with its closed form within 4 standard errors: 6.3e-5 false alarms a cell."""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.acceptance import BetaAcceptance, IidAcceptance, PerPositionAcceptance
from sim.latency import AffineLatency, ConstantLatency, TableLatency
from sim.records import ROUND_SECONDS, check_rounds, summarise
from sim.scenario import Scenario
from sim.topologies.dsi import dsi
from sim.topologies.dsi_heatmap import dsi_heatmap, dsi_seconds, first_disagreements, si_seconds, standard_error
from sim.topologies.theory import (
    dsi_bound_seconds,
    dsi_expected_seconds,
    dsi_lookahead,
    dsi_servers,
    si_expected_seconds,
)

BASE = Scenario(
    ConstantLatency(1.0), ConstantLatency(0.125), IidAcceptance(0.8), 1, max_new_tokens=30, draft_device="own"
)


def runs_of(alpha: float, seeds: int, tokens: int, **how: Any) -> np.ndarray:
    """Latencies of the fast estimator [seeds], with the random numbers that `dsi` draws from each seed."""
    uniform = np.array([np.random.default_rng(seed).random(tokens) for seed in range(seeds)])
    return dsi_seconds(first_disagreements(uniform, [alpha]), **how)[0]


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.8, 0.95, 1.0])
@pytest.mark.parametrize(
    ("draft", "lookahead", "servers"),
    [
        (0.125, 1, 8),
        (0.125, 4, 2),
        (0.125, 1, 3),  # too few: forwards wait for a server
        (0.125, 12, 1),  # a block is drafted slower than it is verified
        (0.125, 12, 3),
        (0.25, 4, 1),  # a block is drafted just as fast
        (1.0, 1, 1),
        (1.5, 3, 2),  # the draft is slower than the target
    ],
)
def test_fast_estimator_is_the_event_model_on_the_same_random_numbers(
    alpha: float, draft: float, lookahead: int, servers: int
) -> None:
    """To the last bit, since these seconds add up without rounding."""
    scenario = replace(BASE, draft=ConstantLatency(draft), acceptance=IidAcceptance(alpha), gamma=lookahead)
    fast = runs_of(alpha, 8, 30, draft_seconds=draft, target_seconds=1.0, lookahead=lookahead, target_servers=servers)
    assert [dsi(scenario, servers, seed).summary["seconds"] for seed in range(8)] == fast.tolist()


@settings(deadline=None, max_examples=40, derandomize=True)
@given(st.floats(0, 1), st.floats(0.01, 2), st.floats(0.5, 3), st.integers(1, 9), st.integers(1, 9), st.integers(1, 25))
def test_fast_estimator_is_the_event_model_for_any_latencies(
    alpha: float, draft: float, target: float, lookahead: int, servers: int, tokens: int
) -> None:
    scenario = Scenario(
        ConstantLatency(target),
        ConstantLatency(draft),
        IidAcceptance(alpha),
        lookahead,
        max_new_tokens=tokens,
        draft_device="own",
    )
    fast = runs_of(
        alpha, 2, tokens, draft_seconds=draft, target_seconds=target, lookahead=lookahead, target_servers=servers
    )
    slow = [dsi(scenario, servers, seed).summary["seconds"] for seed in range(2)]
    np.testing.assert_allclose(slow, fast, rtol=1e-12)


@pytest.mark.parametrize("alpha", [0.2, 0.6, 0.9])
@pytest.mark.parametrize(("draft", "lookahead"), [(0.05, 1), (0.3, 1), (1.7, 1), (0.05, 5), (0.05, 20), (0.24, 4)])
def test_latency_matches_its_expectation(alpha: float, draft: float, lookahead: int) -> None:
    """18 cells: false alarms 0.1%. Prop. 1's bound is attained. A last, short block takes a server more."""
    servers = dsi_servers(draft, 1.0, lookahead) + (lookahead > 1)
    runs = runs_of(
        alpha, 4000, 40, draft_seconds=draft, target_seconds=1.0, lookahead=lookahead, target_servers=servers
    )
    error = float(standard_error(runs))
    assert abs(runs.mean() - dsi_expected_seconds(alpha, 40, draft, 1.0, lookahead)) <= 4 * error + 1e-9
    if lookahead == 1:
        assert runs.mean() <= dsi_bound_seconds(alpha, 40, draft, 1.0) + 4 * error


def test_that_check_catches_a_last_token_without_a_forward_and_si_rounds() -> None:
    """The mutants let the draft give the last token too, or wait for every verdict as SI does."""
    runs = runs_of(0.8, 4000, 40, draft_seconds=0.1, target_seconds=1.0, lookahead=1, target_servers=10)
    error = float(standard_error(runs))
    assert abs(runs.mean() - (0.1 * 0.8 * 40 + 0.2 * 40)) > 4 * error
    assert abs(runs.mean() - si_expected_seconds(0.8, 40, 0.1, 1.0, 1)) > 4 * error


@pytest.mark.parametrize("servers", [1, 2, 7])
@pytest.mark.parametrize("lookahead", [1, 3, 10])
def test_never_slower_than_the_target_alone(servers: int, lookahead: int) -> None:
    """Timor et al. 2024, Theorem 1: every single run, however few servers there are and however bad the draft."""
    stops = first_disagreements(np.random.default_rng(3).random((50, 60)), np.linspace(0, 1, 6))
    for draft in (0.01, 0.1, 0.3, 0.9, 1.0, 1.1, 4.0):
        assert dsi_seconds(stops, draft, 1.0, lookahead, servers).max() <= 60 * (1 + 1e-12)


@pytest.mark.parametrize("draft", [0.03, 0.1, 0.25, 0.5, 1.0])
def test_never_slower_than_si_where_blocks_are_verified_slower_than_drafted(draft: float) -> None:
    """Timor et al. 2024, Theorem 2, here run by run on the same random numbers."""
    stops = first_disagreements(np.random.default_rng(4).random((200, 60)), np.linspace(0, 1, 11))
    for lookahead in range(1, int(1 / draft) + 1):
        fast = dsi_seconds(stops, draft, 1.0, lookahead, dsi_servers(draft, 1.0, lookahead) + (lookahead > 1))
        assert np.all(fast <= si_seconds(stops, draft, 1.0, lookahead) * (1 + 1e-12))
        assert np.any(fast < si_seconds(stops, draft, 1.0, lookahead) * 0.9)


def offline_count(stop: np.ndarray, draft: float, lookahead: int) -> float:
    """A request as the authors' own offline simulation counts it, by blocks up to one that is not accepted whole.

    From one correction to the next it takes the lesser of what the blocks and a target forward last, and of what the
    target alone would. It hears of a wrong first token of a block with that block, not with the one before.
    """
    seconds, output, tokens = 0.0, 0, len(stop)
    while output < tokens:
        right, blocks = int(min(stop[output], tokens - 1)) - output, 0.0
        left, room = right, tokens - output - 1
        while True:
            block = min(lookahead, room)
            blocks += block * draft
            if block == 0 or left < block:
                break
            left, room = left - block, room - block
        seconds += min(blocks + 1.0, right + 1.0)
        output += right + 1
    return seconds


@pytest.mark.parametrize(("draft", "lookahead"), [(0.02, 5), (0.1, 1), (0.1, 3), (0.3, 5), (0.9, 2)])
def test_never_slower_than_the_authors_offline_count_and_close_to_it(draft: float, lookahead: int) -> None:
    stops = first_disagreements(np.random.default_rng(8).random((100, 60)), [0.2, 0.8, 0.95])
    fast = dsi_seconds(stops, draft, 1.0, lookahead, dsi_servers(draft, 1.0, lookahead) + 2)
    counted = np.array([[offline_count(stop, draft, lookahead) for stop in row] for row in stops])
    assert np.all(fast <= counted * (1 + 1e-12))
    assert np.all(fast.mean(axis=1) >= 0.85 * counted.mean(axis=1))


def test_mean_is_at_most_that_of_si_with_long_blocks() -> None:
    """Theorem 2 in expectation, where drafting a block outlasts a verification; paired differences, 36 cells."""
    stops = first_disagreements(np.random.default_rng(5).random((400, 60)), np.linspace(0, 1, 6))
    for draft in (0.15, 0.4, 0.9):
        for lookahead in (7, 15):
            slower = dsi_seconds(stops, draft, 1.0, lookahead, 2) - si_seconds(stops, draft, 1.0, lookahead)
            assert np.all(slower.mean(axis=1) <= 4 * standard_error(slower) + 1e-9)


def test_si_matches_its_expectation() -> None:
    stops = first_disagreements(np.random.default_rng(6).random((4000, 40)), [0.3, 0.9])
    for lookahead in (1, 4, 60):
        runs = si_seconds(stops, 0.1, 1.0, lookahead)
        expected = [si_expected_seconds(alpha, 40, 0.1, 1.0, lookahead) for alpha in (0.3, 0.9)]
        assert np.all(np.abs(runs.mean(axis=1) - expected) <= 4 * standard_error(runs))


@pytest.mark.parametrize(("draft", "lookahead"), [(0.1, 1), (0.03, 4), (0.22, 2)])
def test_on_the_servers_of_eq_1_no_forward_waits_and_on_one_fewer_some_do(draft: float, lookahead: int) -> None:
    """Without a wrong draft, and with whole blocks to the end: the last of 25 ends when drafted and verified."""
    servers, tokens = dsi_servers(draft, 1.0, lookahead), 25 * lookahead + 1
    how = {"draft_seconds": draft, "target_seconds": 1.0, "lookahead": lookahead}
    assert runs_of(1.0, 1, tokens, **how, target_servers=servers)[0] == pytest.approx((tokens - 1) * draft + 1)
    enough, fewer = (runs_of(0.9, 50, tokens, **how, target_servers=count) for count in (servers, servers - 1))
    assert fewer.mean() > enough.mean()


def test_forwards_are_counted() -> None:
    """One speculation: 29 drafted tokens, a forward at the start and after each; none is wasted."""
    right = dsi(replace(BASE, acceptance=IidAcceptance(1.0)), 8, 0)
    assert right.table[["drafted", "accepted", "emitted"]].to_numpy().tolist() == [[29, 29, 30]]
    assert right.summary["seconds"] == 29 * 0.125 + 1
    assert right.summary["draft_forwards"] == 29
    assert right.summary["target_forwards"] == 30
    assert right.summary["wasted_draft_forwards"] == right.summary["wasted_target_forwards"] == 0
    wrong = dsi(replace(BASE, acceptance=IidAcceptance(0.0), max_new_tokens=3), 8, 0)
    assert wrong.summary["seconds"] == 3
    assert wrong.summary["draft_forwards"] == wrong.summary["wasted_draft_forwards"] == 2 + 1
    assert wrong.summary["target_forwards"] - wrong.summary["wasted_target_forwards"] == 3


def test_a_verdict_that_overtakes_an_earlier_one_makes_it_useless() -> None:
    """The first forward takes 1 s, the later ones, of more tokens, 0.0625 s each, and start as drafts come."""
    rows = [{"batch": 1, "new_tokens": n, "context": 0, "seconds": s} for n, s in ((1, 1.0), (2, 0.0625), (3, 0.0625))]
    run = dsi(replace(BASE, target=TableLatency(rows), acceptance=IidAcceptance(1.0), max_new_tokens=3), 2, 0)
    # at 0.1875 s the target's second token is there before the draft's, so the draft starts again for the third
    assert run.table["emitted"].tolist() == [2, 1]
    assert run.table["verify_seconds"].tolist() == [0.0625, 1.0]
    assert run.summary["seconds"] == 0.1875 + 1.0
    assert run.summary["wasted_target_forwards"] == 1


def test_positions_count_from_the_last_correction() -> None:
    """One right, then one wrong: each speculation gives two tokens, a draft and a target forward after its start."""
    run = dsi(replace(BASE, acceptance=PerPositionAcceptance((1.0, 0.0))), 8, 0)
    assert run.table["accepted"].tolist() == [1] * 15
    assert run.summary["seconds"] == 15 * 1.125
    long = replace(BASE, acceptance=PerPositionAcceptance((1.0,) * 100 + (0.0,)), max_new_tokens=202)
    assert dsi(long, 8, 0).table["accepted"].tolist() == [100, 100]


@pytest.mark.parametrize(("gamma", "servers"), [(1, 20), (3, 1), (3, 5), (40, 2)])
def test_the_table_keeps_its_identities_and_prices_every_row(gamma: int, servers: int) -> None:
    scenario = replace(
        BASE,
        target=AffineLatency(0.4, 0.02, 1e-4),
        draft=AffineLatency(0.05, 0.01, 1e-5),
        gamma=gamma,
        prompt_tokens=30,
        max_new_tokens=200,
        overhead_seconds=0.01,
    )
    run = dsi(scenario, servers, 5)
    table = run.table
    check_rounds(table)
    summarise(table)
    assert table["emitted"].sum() == 200
    wall = table[list(ROUND_SECONDS)].sum(axis=1).to_numpy()
    np.testing.assert_allclose(table["start_seconds"], np.cumsum(wall) - wall, rtol=1e-12, atol=1e-12)
    assert run.summary["seconds"] == pytest.approx(wall.sum(), rel=1e-12)
    np.testing.assert_array_equal(
        table["verify_seconds"], scenario.target.forward_seconds(1, table["drafted"] + 1, table["context"])
    )
    assert (table["other_seconds"] >= 0.01 - 1e-12).all()
    if servers == 20:
        np.testing.assert_allclose(table["other_seconds"], 0.01, atol=1e-12, err_msg="no forward waits for a server")
    assert run.summary["draft_forwards"] - run.summary["wasted_draft_forwards"] == table["accepted"].sum()


def test_a_map_has_a_row_per_cell_and_its_three_latencies() -> None:
    grid = dsi_heatmap([0.05, 0.5, 2.0], [0.0, 0.5, 1.0], 0, target_servers=4, repeats=300, tokens=51)
    assert grid["lookahead"].unique().tolist() == [dsi_lookahead(d, 1.0, 4) for d in (0.05, 0.5)]
    assert (grid["non_si_seconds"] == 51).all()
    assert (grid["dsi_seconds"] <= 51 * (1 + 1e-12)).all()
    perfect = grid[grid["alpha"] == 1]
    np.testing.assert_allclose(perfect["dsi_seconds"].to_numpy()[:2], [50 * 0.05 + 1, 50 * 0.5 + 1], rtol=1e-12)
    slow = grid[grid["draft_seconds"] == 2]
    assert (slow["si_seconds"] > 51).all(), "a draft slower than its target makes SI slower than none"
    assert (slow["dsi_seconds"] == 51).all()
    middle = grid[(grid["draft_seconds"] == 0.5) & (grid["alpha"] == 0.5)].iloc[0]
    for kind, expected in (("dsi", dsi_expected_seconds), ("si", si_expected_seconds)):
        assert abs(middle[f"{kind}_seconds"] - expected(0.5, 51, 0.5, 1.0, 1)) <= 4 * middle[f"{kind}_error"]


def test_seeds_give_identical_runs_and_other_seeds_do_not() -> None:
    pd.testing.assert_frame_equal(dsi(BASE, 8, 1).table, dsi(BASE, 8, np.random.default_rng(1)).table)
    assert not dsi(BASE, 8, 1).table.equals(dsi(BASE, 8, 2).table)
    pd.testing.assert_frame_equal(dsi_heatmap(0.1, 0.5, 1), dsi_heatmap(0.1, 0.5, 1))
    assert np.isnan(dsi_heatmap(0.1, 0.5, 1, repeats=1)["dsi_error"]).all()


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="target_servers must be a whole number >= 1, got 0"):
        dsi(BASE, 0, 0)
    with pytest.raises(ValueError, match=r"dsi drafts on .* got BetaAcceptance"):
        dsi(replace(BASE, acceptance=BetaAcceptance(1, 1)), 1, 0)
    with pytest.raises(ValueError, match="dsi ends at max_new_tokens"):
        dsi(replace(BASE, max_new_tokens=None, rounds=3), 1, 0)
    with pytest.raises(ValueError, match=r"draft and target seconds must be > 0, got 0\.0 and 1\.0"):
        dsi_heatmap([0.0, 0.1], [0.5], 0)
    with pytest.raises(ValueError, match="lookahead must be a whole number >= 1, got 0"):
        dsi_heatmap(0.1, 0.5, 0, lookahead=0)
    with pytest.raises(ValueError, match=r"alpha must be in \[0, 1\], got 50"):
        dsi_heatmap(0.1, 50, 0)
