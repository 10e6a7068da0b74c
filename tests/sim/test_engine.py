"""Statistical tests compare a mean with its closed form within 4 standard errors: 6.3e-5 false alarms a cell."""

import math
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.acceptance import BetaAcceptance, IidAcceptance, MarkovAcceptance, PartialProposals, TraceAcceptance
from sim.engine import (
    LEAST_BATCHES,
    Engine,
    batch_edges,
    ratio_interval,
    ratio_scenario,
    run_rounds,
    simulate,
    simulate_speedup,
)
from sim.latency import AffineLatency, ConstantLatency, LatencyModel, TableLatency
from sim.records import ROUND_SECONDS, check_rounds, summarise
from sim.scenario import Scenario
from sim.theory import expected_tokens, speedup

ALPHAS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0)
GAMMAS = (1, 2, 3, 4, 5, 8, 16)
COSTS = (0.0, 0.05, 0.3)
TABLE = TableLatency(
    [
        {"batch": 1, "new_tokens": n, "context": c, "seconds": s}
        for n, c, s in [(1, 0, 1.0), (9, 0, 1.7), (1, 4000, 1.5), (9, 4000, 2.9)]
    ]
)
FULL = Scenario(
    target=TABLE,
    draft=AffineLatency(0.05, 0.01, 1e-5),
    acceptance=IidAcceptance(0.8),
    gamma=5,
    prompt_tokens=40,
    max_new_tokens=200,
    overhead_seconds=0.01,
    proposal_seconds=0.003,
)


def tokens_deviation(alpha: float, gamma: int) -> float:
    """Standard deviation of the tokens of one round: E[T^2] is the sum of (2k + 1) P(T > k)."""
    k = np.arange(gamma + 1)
    return math.sqrt(max(0.0, float(((2 * k + 1) * alpha**k).sum() - (alpha**k).sum() ** 2)))


@pytest.mark.parametrize(("engine", "rounds"), [("numpy", 100_000), ("simpy", 10_000)])
def test_block_efficiency_matches_leviathan_eq_1(engine: Engine, rounds: int) -> None:
    """63 cells an engine: false alarms 63 * 6.3e-5 = 0.4% each."""
    for i, (alpha, gamma) in enumerate(product(ALPHAS, GAMMAS)):
        emitted = run_rounds(ratio_scenario(alpha, gamma, 0.05, rounds=rounds), 1000 + i, engine).emitted
        error = tokens_deviation(alpha, gamma) / math.sqrt(rounds)
        assert abs(emitted.mean() - expected_tokens(alpha, gamma)) <= 4 * error + 1e-12, (alpha, gamma)


@pytest.mark.parametrize(("engine", "rounds"), [("numpy", 50_000), ("simpy", 3_000)])
def test_speedup_matches_leviathan_theorem_3_8(engine: Engine, rounds: int) -> None:
    """189 cells an engine, also where verification costs more: false alarms 189 * 6.3e-5 = 1.2% each."""
    for i, (alpha, gamma, cost) in enumerate(product(ALPHAS, GAMMAS, COSTS)):
        verify = (1.0, 1.4)[i % 2]
        outcome = simulate_speedup(ratio_scenario(alpha, gamma, cost, verify, rounds), 2000 + i, engine)
        error = tokens_deviation(alpha, gamma) / math.sqrt(rounds) / (gamma * cost + verify)
        assert abs(outcome["speedup"] - speedup(alpha, gamma, cost, verify)) <= 4 * error + 1e-9, (alpha, gamma, cost)


def test_that_check_catches_a_round_without_its_free_token() -> None:
    """The mutant emits no bonus when all gamma are accepted: alpha^gamma tokens too few. Power above 0.999 here."""
    alpha, gamma, rounds = 0.8, 5, 100_000
    rows = run_rounds(ratio_scenario(alpha, gamma, 0.05, rounds=rounds), 0)
    mutant = rows.emitted - (rows.accepted == gamma)
    error = tokens_deviation(alpha, gamma) / math.sqrt(rounds)
    assert abs(mutant.mean() - expected_tokens(alpha, gamma)) > 4 * error


@pytest.mark.parametrize(
    "scenario",
    [
        ratio_scenario(0.8, 5, 0.05, 1.3, rounds=400),
        ratio_scenario(0.8, 5, 0.05, rounds=1),
        FULL,
        replace(FULL, draft_device="own"),
        replace(FULL, gamma=0),
        replace(FULL, max_new_tokens=1),
        replace(FULL, requests=4, request_devices="own", acceptance=BetaAcceptance(2, 1)),
        replace(FULL, acceptance=PartialProposals(IidAcceptance(0.7), (0.4, 0.2, 0.4)), draft=None),
        replace(FULL, acceptance=TraceAcceptance(((1, 3, 2, 4),))),
        replace(FULL, acceptance=MarkovAcceptance(0.9, 0.2), rounds=77, max_new_tokens=None),
    ],
)
def test_both_engines_give_the_same_table_bit_for_bit_where_nothing_contends(scenario: Scenario) -> None:
    numpy, simpy = simulate(scenario, 7, "numpy"), simulate(scenario, 7, "simpy")
    pd.testing.assert_frame_equal(numpy, simpy, check_exact=True)
    pd.testing.assert_frame_equal(numpy, simulate(scenario, 7), check_exact=True)


@pytest.mark.parametrize("scenario", [FULL, replace(FULL, requests=3)])
def test_seeds_give_identical_runs_and_other_seeds_do_not(scenario: Scenario) -> None:
    pd.testing.assert_frame_equal(simulate(scenario, 1), simulate(scenario, 1), check_exact=True)
    pd.testing.assert_frame_equal(simulate(scenario, 1), simulate(scenario, np.random.default_rng(1)))
    assert not simulate(scenario, 1)["accepted"].equals(simulate(scenario, 2)["accepted"])


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    gamma=st.integers(0, 9),
    alpha=st.floats(0, 1),
    requests=st.integers(1, 3),
    limit=st.integers(1, 40),
    devices=st.sampled_from([("shared", "shared"), ("own", "shared"), ("shared", "own")]),
    by_rounds=st.booleans(),
    last_round=st.sampled_from(["cut", "shortened"]),
    seed=st.integers(0, 99),
)
def test_every_table_keeps_its_identities(
    gamma: int, alpha: float, requests: int, limit: int, devices: Any, by_rounds: bool, last_round: Any, seed: int
) -> None:
    """Length, clock and contexts; what the schema asks for; tokens and marginals agree."""
    how_much: Any = {"rounds": limit, "max_new_tokens": None} if by_rounds else {"max_new_tokens": limit}
    scenario = replace(
        FULL,
        target=AffineLatency(0.3, 0.1, 1e-4),
        acceptance=PartialProposals(IidAcceptance(alpha), (0.3, 0.3, 0.4)),
        gamma=gamma,
        requests=requests,
        draft_device=devices[0],
        request_devices=devices[1],
        last_round=last_round,
        **how_much,
    )
    table = simulate(scenario, seed)
    check_rounds(table)
    summarise(table)
    assert table["request_id"].nunique() == requests
    for _, request in table.groupby("request_id"):
        tokens = request["emitted"].to_numpy()
        assert len(tokens) == limit if by_rounds else tokens.sum() == limit
        assert not request["cut"].to_numpy()[:-1].any()
        assert request["round_index"].tolist() == list(range(len(tokens)))
        np.testing.assert_array_equal(request["context"], 40 + np.cumsum(tokens) - tokens)
        wall = request[list(ROUND_SECONDS)].sum(axis=1).to_numpy()
        np.testing.assert_allclose(np.diff(request["start_seconds"]), wall[:-1], rtol=1e-9)


def test_a_round_costs_its_forwards_at_its_context() -> None:
    """The third round of an always-accepting run: 2 * 6 tokens after a prompt of 40, priced by hand."""
    row = simulate(replace(FULL, acceptance=IidAcceptance(1.0)), 0).iloc[2]
    drafting = sum(FULL.draft.forward_seconds(1, 1, 52 + i) for i in range(5)) if FULL.draft else 0
    assert row["context"] == 52
    assert row["draft_seconds"] == pytest.approx(drafting + 0.003, rel=1e-12)
    assert row["verify_seconds"] == pytest.approx(TABLE.forward_seconds(1, 6, 52), rel=1e-12)
    assert row["other_seconds"] == 0.01


def test_a_round_that_proposes_nothing_is_a_plain_target_step() -> None:
    table = simulate(replace(FULL, acceptance=PartialProposals(IidAcceptance(1.0), (1.0, 0.0)), draft=None), 0)
    assert (table["drafted"] == 0).all()
    assert len(table) == 200
    np.testing.assert_allclose(table["verify_seconds"], TABLE.forward_seconds(1, 1, table["context"]), rtol=1e-12)
    np.testing.assert_allclose(table["draft_seconds"], 0.003)


def test_the_last_round_is_cut_to_the_limit_and_keeps_what_it_drafted() -> None:
    table = simulate(replace(FULL, acceptance=IidAcceptance(1.0), max_new_tokens=8), 0)
    assert table[["drafted", "accepted", "emitted"]].to_numpy().tolist() == [[5, 5, 6], [5, 5, 2]]
    assert table["cut"].tolist() == [False, True]


def test_a_shortened_last_round_drafts_no_token_that_cannot_be_used() -> None:
    scenario = replace(FULL, acceptance=IidAcceptance(1.0), max_new_tokens=8, last_round="shortened")
    table = simulate(scenario, 0)
    assert table[["gamma", "drafted", "accepted", "emitted"]].to_numpy().tolist() == [[5, 5, 5, 6], [5, 1, 1, 2]]
    assert not table["cut"].any()
    pd.testing.assert_frame_equal(table, simulate(scenario, 0, "simpy"), check_exact=True)


def test_two_requests_on_one_device_take_twice_the_time() -> None:
    scenario = Scenario(ConstantLatency(1.0), ConstantLatency(0.1), IidAcceptance(0.8), gamma=5, rounds=100)
    one, two = (simulate(replace(scenario, requests=n), 0, "simpy") for n in (1, 2))
    ends = [float((t["start_seconds"] + t[list(ROUND_SECONDS)].sum(axis=1)).max()) for t in (one, two)]
    assert ends == pytest.approx([150.0, 300.0], rel=1e-12)
    waited = two["other_seconds"].groupby(two["request_id"]).sum()
    assert waited.tolist() == pytest.approx([99 * 1.5, 100 * 1.5], rel=1e-12), "one waits from its second round on"


def test_a_draft_device_of_its_own_overlaps_with_the_target() -> None:
    """Drafting and verifying take 1 s each: two requests alternate, and each round of the pair takes 2 s, not 4."""
    scenario = Scenario(ConstantLatency(1.0), ConstantLatency(0.2), IidAcceptance(0.8), 5, requests=2, rounds=100)
    shared, own = (run_rounds(replace(scenario, draft_device=where), 0) for where in ("shared", "own"))
    assert (shared.start_seconds + shared.wall_seconds).max() == pytest.approx(400.0)
    assert (own.start_seconds + own.wall_seconds).max() == pytest.approx(201.0)


def test_requests_with_devices_of_their_own_never_wait() -> None:
    rounds = run_rounds(replace(FULL, requests=3, request_devices="own"), 0, "simpy")
    assert not rounds.waiting_seconds.any()
    assert rounds.start_seconds[rounds.offsets].tolist() == [0.0, 0.0, 0.0]


def test_contention_slows_both_sides_alike_and_changes_no_token() -> None:
    """On one device without host time, n requests multiply every second by n: the same speedup, the same tokens."""
    scenario = ratio_scenario(0.8, 5, 0.05, rounds=200)
    crowd = replace(scenario, requests=4)
    free = replace(crowd, request_devices="own")
    contended, alone = simulate_speedup(crowd, 0), simulate_speedup(free, 0)
    assert contended["block_efficiency"] == alone["block_efficiency"]
    assert contended["seconds"] == pytest.approx(4 * alone["seconds"], rel=0.01)
    assert contended["speedup"] == pytest.approx(alone["speedup"], rel=0.05)


@pytest.mark.parametrize("target", [AffineLatency(1.0, 0.0, 1e-3), TABLE])
def test_the_baseline_decodes_the_same_tokens_at_the_same_contexts(target: LatencyModel) -> None:
    scenario = replace(FULL, target=target, requests=3, request_devices="own")
    outcome = simulate_speedup(scenario, 0, baseline_overhead_seconds=0.004)
    steps = simulate(replace(scenario, gamma=0, overhead_seconds=0.004), 0)
    rounds = simulate(scenario, 0)
    baseline, seconds = (float(t[list(ROUND_SECONDS)].to_numpy().sum()) for t in (steps, rounds))
    assert outcome["tokens"] == 600
    assert outcome["baseline_seconds"] == pytest.approx(baseline, rel=1e-12)
    assert outcome["speedup"] == pytest.approx(baseline / seconds, rel=1e-12)
    assert outcome["speedup_ci"][0] < outcome["speedup"] < outcome["speedup_ci"][1]


@pytest.mark.parametrize(
    "scenario",
    [ratio_scenario(0.8, 5, 0.05, rounds=1500), replace(ratio_scenario(0, 5, 0.05, rounds=50), requests=120)],
)
def test_intervals_cover_the_closed_form_as_often_as_they_say(scenario: Scenario) -> None:
    """400 runs of 95% intervals: between 91.3% and 98.7% (3.4 standard errors; false alarms below 0.3% for both).

    The second scenario has requests that differ, which its batches must show.
    """
    truth = 3.68928
    if scenario.requests > 1:
        scenario = replace(scenario, request_devices="own", acceptance=BetaAcceptance(8, 2))
        truth = BetaAcceptance(8, 2).expected_block_efficiency(5)
    intervals = np.array([simulate_speedup(scenario, seed)["block_efficiency_ci"] for seed in range(400)])
    covered = ((intervals[:, 0] <= truth) & (truth <= intervals[:, 1])).mean()
    assert 0.913 <= covered <= 0.987


@given(st.lists(st.integers(1, 200), min_size=1, max_size=80))
def test_batches_split_requests_and_never_span_two(counts: list[int]) -> None:
    edges = batch_edges(np.array(counts))
    assert set(np.cumsum(counts) - counts) <= set(edges.tolist())
    assert len(edges) == len(set(edges.tolist()))
    assert edges.max() < sum(counts)
    if min(counts) >= LEAST_BATCHES:
        assert len(edges) >= LEAST_BATCHES


def test_ratio_interval_by_hand() -> None:
    """Ratio 2, residuals -1 and 1 over a sum of 4: half width t(1, 0.975) * sqrt(2 * 2) / 4."""
    value, (lo, hi) = ratio_interval(np.array([3.0, 5.0]), np.array([2.0, 2.0]))
    assert value == 2.0
    assert [lo, hi] == pytest.approx([2 - 12.7062047 / 2, 2 + 12.7062047 / 2], rel=1e-8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gamma": -1}, "gamma must be a whole number >= 0, got -1; 0 means autoregressive"),
        ({"acceptance": None}, "gamma 5 needs an acceptance model, got None; gamma=0"),
        ({"rounds": 5}, "exactly one of rounds and max_new_tokens, got rounds=5 and max_new_tokens=200"),
        ({"max_new_tokens": None}, "exactly one of rounds and max_new_tokens, got rounds=None"),
        ({"max_new_tokens": 0}, "max_new_tokens must be a whole number >= 1, got 0"),
        ({"rounds": 0, "max_new_tokens": None}, "rounds must be a whole number >= 1, got 0"),
        ({"requests": 0}, "requests must be a whole number >= 1, got 0"),
        ({"prompt_tokens": -3}, "prompt_tokens must be a whole number >= 0, got -3"),
        ({"overhead_seconds": math.nan}, "overhead_seconds must be finite and >= 0, got nan"),
        ({"proposal_seconds": -1.0}, r"proposal_seconds must be finite and >= 0, got -1\.0"),
        ({"last_round": "drop"}, "last_round must be 'cut' or 'shortened', got 'drop'"),
        ({"draft_device": "cpu"}, "draft_device must be 'shared' or 'own', got 'cpu'"),
    ],
)
def test_a_bad_scenario_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(FULL, **changes)


def test_bad_engines_and_too_few_rounds_are_named() -> None:
    with pytest.raises(ValueError, match="engine must be 'auto', 'numpy' or 'simpy', got 'fast'"):
        simulate(FULL, 0, "fast")  # type: ignore[arg-type]  # refused
    with pytest.raises(ValueError, match=r"numpy engine cannot run 2 requests that share devices; use engine='simpy'"):
        simulate(replace(FULL, requests=2), 0, "numpy")
    with pytest.raises(ValueError, match="at least 2 rounds, got 1"):
        simulate_speedup(replace(FULL, max_new_tokens=1), 0)
    with pytest.raises(ValueError, match="outside the measured"):
        simulate(replace(FULL, gamma=20), 0)
