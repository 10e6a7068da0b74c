"""Statistical tests compare a mean with its closed form within 4 standard errors: 6.3e-5 false alarms a cell."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from sim.acceptance import BetaAcceptance, IidAcceptance, PartialProposals
from sim.engine import simulate
from sim.hardware import Link
from sim.latency import AffineLatency, ConstantLatency
from sim.records import ROUND_SECONDS, check_rounds, summarise
from sim.scenario import Scenario
from sim.topologies.edge_cloud import EdgeClient, edge_cloud
from sim.topologies.remote_draft import DraftMessage, remote_draft
from sim.topologies.theory import edge_batch_rounds_per_second, edge_rounds_per_second, remote_round_seconds

NO_LINK = Link(math.inf, 0.0)
CONSTANT = Scenario(ConstantLatency(1.0), ConstantLatency(0.25), IidAcceptance(0.7), 4, rounds=300, draft_device="own")
FULL = replace(
    CONSTANT,
    target=AffineLatency(0.3, 0.01, 1e-4),
    draft=AffineLatency(0.05, 0.01, 1e-5),
    prompt_tokens=40,
    rounds=None,
    max_new_tokens=200,
    overhead_seconds=0.013,
)
MIXED = [
    EdgeClient(FULL, Link(1e6, 0.05)),
    EdgeClient(replace(FULL, gamma=2, max_new_tokens=90), Link(1e5, 0.2), DraftMessage(vocab=500)),
    EdgeClient(replace(FULL, acceptance=BetaAcceptance(3, 1), prompt_tokens=5, last_round="shortened"), NO_LINK),
    EdgeClient(replace(FULL, acceptance=PartialProposals(IidAcceptance(0.7), (0.4, 0.2, 0.4))), Link(1e6, 0.01)),
    *[EdgeClient(replace(FULL, draft=ConstantLatency(0.01 * i)), Link(1e6, 0.03 * i)) for i in range(1, 5)],
]


@pytest.mark.parametrize(
    "scenario", [CONSTANT, FULL, replace(FULL, acceptance=BetaAcceptance(2, 1)), MIXED[3].scenario]
)
@pytest.mark.parametrize("link", [NO_LINK, Link(1e5, 0.017)])
def test_one_client_is_a_remote_draft_to_the_last_bit_and_without_a_link_the_engine(
    scenario: Scenario, link: Link
) -> None:
    message = DraftMessage(vocab=100)
    run, remote = edge_cloud([EdgeClient(scenario, link, message)], 8, 3), remote_draft(scenario, link, 3, message)
    pd.testing.assert_frame_equal(run.table, remote.table, check_exact=True)
    assert run.summary["wasted_draft_forwards"] == remote.summary["wasted_draft_forwards"]
    assert run.summary["mean_waiting_seconds"] == 0
    if link == NO_LINK:
        pd.testing.assert_frame_equal(run.table, simulate(scenario, 3), check_exact=True)
        for name in ("speedup", "speedup_lo", "speedup_hi"):
            assert run.summary[name] == pytest.approx(remote.summary[name], rel=1e-9)


@pytest.mark.parametrize("limit", [1, 3, 8])
def test_the_queue_obeys_littles_law(limit: int) -> None:
    """Arrival rate times mean wait: exact, since the queue starts and ends empty; and what random instants see."""
    run = edge_cloud(MIXED, limit, 1)
    rate = len(run.jobs) / run.summary["seconds"]
    assert run.summary["mean_waiting"] == pytest.approx(rate * run.summary["mean_waiting_seconds"], rel=1e-9)
    instants = np.random.default_rng(9).uniform(0, run.summary["seconds"], 4000)[:, None]
    arrived, started = (run.jobs[f"{name}_seconds"].to_numpy() for name in ("arrived", "started"))
    seen = ((arrived <= instants) & (instants < started)).sum(axis=1)
    error = seen.std(ddof=1) / math.sqrt(len(seen))
    assert abs(seen.mean() - rate * run.summary["mean_waiting_seconds"]) <= 4 * error
    mutant = rate * (run.summary["mean_waiting_seconds"] + run.jobs["service_seconds"].mean())
    assert abs(seen.mean() - mutant) > 4 * error, "those in service do not wait"


@pytest.mark.parametrize("clients", [1, 2, 3, 6])
def test_throughput_without_batches_is_the_operational_bound(clients: int) -> None:
    """Constant times attain it but for the first cycle, in which all arrive at once."""
    link = Link(1e4, 0.4)
    run = edge_cloud([EdgeClient(CONSTANT, link)] * clients, 1, 0)
    away = float(remote_round_seconds(4, 0.25, 1.0, link, DraftMessage())) - 1.0
    bound = edge_rounds_per_second(clients, away, 1.0)
    rate = run.summary["rounds"] / run.summary["seconds"]
    assert bound * (1 - 2 * clients / 300) <= rate <= bound * (1 + 1e-12)
    assert run.summary["mean_batch"] == 1
    assert run.summary["cloud_utilisation"] == pytest.approx(rate, rel=1e-12)


def test_like_clients_are_verified_in_one_batch() -> None:
    scenario = replace(CONSTANT, target=AffineLatency(0.5, 0.05))
    run = edge_cloud([EdgeClient(scenario, Link(1e4, 0.4))] * 6, 6, 0)
    served = 0.5 + 6 * 5 * 0.05
    away = float(remote_round_seconds(4, 0.25, served, Link(1e4, 0.4), DraftMessage())) - served
    expected = edge_batch_rounds_per_second(6, away, served)
    assert run.summary["rounds"] / run.summary["seconds"] == pytest.approx(expected, rel=1e-9)
    assert run.summary["mean_batch"] == 6
    assert run.summary["mean_waiting"] == 0
    assert (run.table["batch"] == 6).all()


@pytest.mark.parametrize("limit", [1, 3, 8])
def test_tables_keep_their_identities_and_batches_their_limit(limit: int) -> None:
    run = edge_cloud(MIXED, limit, 4)
    check_rounds(run.table)
    summarise(run.table)
    assert run.table["batch"].max() <= limit
    for client, (_, rows) in zip(MIXED, run.table.groupby("request_id"), strict=True):
        assert rows["emitted"].sum() == client.scenario.max_new_tokens
        wall = rows[list(ROUND_SECONDS)].sum(axis=1).to_numpy()
        np.testing.assert_allclose(rows["start_seconds"], np.cumsum(wall) - wall, rtol=1e-12, atol=1e-12)
    ended = run.table["start_seconds"] + run.table[list(ROUND_SECONDS)].sum(axis=1)
    assert run.summary["seconds"] == pytest.approx(ended.max(), rel=1e-12)
    starts = run.jobs.drop_duplicates("started_seconds")
    assert len(starts) == run.summary["target_forwards"]
    busy = starts["started_seconds"].to_numpy()[1:] - starts["started_seconds"].to_numpy()[:-1]
    assert (busy >= starts["service_seconds"].to_numpy()[:-1] - 1e-9).all(), "one forward at a time"
    assert run.summary["cloud_utilisation"] == pytest.approx(
        starts["service_seconds"].sum() / run.summary["seconds"], rel=1e-9
    )


def test_a_batch_costs_its_longest_draft_and_mean_context() -> None:
    """Two clients that arrive together at the start, with 4 and 2 drafted tokens and 40 and 5 of context."""
    free = replace(FULL, draft=ConstantLatency(0.0), overhead_seconds=0.0)
    pair = [EdgeClient(free, NO_LINK), EdgeClient(replace(free, gamma=2, prompt_tokens=5), NO_LINK)]
    first = edge_cloud(pair, 2, 0).jobs.iloc[0]
    assert first["batch"] == 2
    assert first["service_seconds"] == pytest.approx(0.3 + 2 * 5 * 0.01 + (40 + 5) * 1e-4, rel=1e-12)


def test_autoregressive_tokens_stream_over_the_link_without_stopping_the_cloud() -> None:
    """Latency counts once; a link slower than the cloud's tokens holds each up by its own sending time."""
    tokens = 50
    scenario = replace(CONSTANT, rounds=None, max_new_tokens=tokens)
    quick = edge_cloud([EdgeClient(scenario, Link(1e3, 0.3))], 1, 0).clients.iloc[0]
    assert quick["autoregressive_seconds"] == pytest.approx(tokens * 1.0 + 0.004 + 0.3, rel=1e-12)
    slow = edge_cloud([EdgeClient(scenario, Link(2.0, 0.3))], 1, 0).clients.iloc[0]
    assert slow["autoregressive_seconds"] == pytest.approx(1.0 + tokens * 2.0 + 0.3, rel=1e-12)
    full = edge_cloud([EdgeClient(scenario, NO_LINK)] * 4, 2, 0)
    assert full.summary["autoregressive_mean_batch"] == 2
    assert full.summary["autoregressive_cloud_utilisation"] == pytest.approx(1, rel=1e-12)
    assert full.summary["autoregressive_tokens_per_second"] == pytest.approx(0.5, rel=0.02)
    odd = edge_cloud([EdgeClient(scenario, NO_LINK)] * 3, 2, 0)
    assert odd.summary["autoregressive_mean_batch"] == pytest.approx(2, rel=0.02), "who comes back at once joins"


def test_drafting_at_the_edge_takes_load_off_a_full_cloud() -> None:
    """Ten clients, one verification at a time: a round's tokens for the price of one, so about their mean number."""
    scenario = replace(CONSTANT, rounds=None, max_new_tokens=300)
    run = edge_cloud([EdgeClient(scenario, Link(1e6, 0.05))] * 10, 1, 2)
    assert run.summary["cloud_utilisation"] > 0.95
    assert run.summary["speedup"] == pytest.approx(run.summary["block_efficiency"], rel=0.05)
    assert run.summary["speedup_lo"] < run.summary["speedup"] < run.summary["speedup_hi"]


def test_seeds_give_identical_runs_and_other_seeds_do_not() -> None:
    pd.testing.assert_frame_equal(edge_cloud(MIXED, 3, 1).table, edge_cloud(MIXED, 3, 1).table, check_exact=True)
    assert not edge_cloud(MIXED, 3, 1).table.equals(edge_cloud(MIXED, 3, 2).table)


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="at least one client, got none"):
        edge_cloud([], 1, 0)
    with pytest.raises(ValueError, match="batch_limit must be a whole number >= 1, got 0"):
        edge_cloud(MIXED, 0, 0)
    with pytest.raises(ValueError, match="client 1's differs from client 0's"):
        edge_cloud([EdgeClient(FULL, NO_LINK), EdgeClient(CONSTANT, NO_LINK)], 1, 0)
    with pytest.raises(ValueError, match="edge_cloud has the draft on a device of its own"):
        edge_cloud([EdgeClient(replace(FULL, draft_device="shared"), NO_LINK)], 1, 0)
