"""The server against closed forms: queues, and one request's speedup. 4 standard errors: 6e-5 false alarms a test."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sim.acceptance import IidAcceptance
from sim.controllers import FixedGamma
from sim.latency import ConstantLatency
from sim.queueing import bulk_service, md1_mean_wait, mg1_mean_wait, mm1_mean_wait
from sim.serving import ServingScenario, Speculation, serve
from sim.theory import expected_tokens, speedup
from sim.tree_acceptance import TreeAcceptance
from sim.trees import TokenTree
from sim.trees import expected_tokens as expected_tree_tokens
from sim.workload import ConstantLength, GeometricLength, Lengths, PoissonArrivals, SyntheticWorkload

RUNS = 12
STEP = 0.01


def waits(output: Lengths, load: float, requests: int, speculation: Speculation | None = None) -> np.ndarray:
    """Mean waiting time of each of 12 runs of a server that holds one request, after its first tenth."""
    rate = load / (output.mean * STEP)
    means = []
    for seed in range(RUNS):
        workload = SyntheticWorkload(PoissonArrivals(rate), ConstantLength(1), output, requests).sample(seed)
        scenario = ServingScenario(ConstantLatency(STEP), workload, speculation, batch_limit=1)
        waiting = serve(scenario, seed).request_table()["waiting_seconds"]
        means.append(waiting.iloc[requests // 10 :].mean())
    return np.array(means)


def standard_errors(values: np.ndarray, expected: float) -> float:
    return abs(values.mean() - expected) / (values.std(ddof=1) / math.sqrt(len(values)))


@pytest.mark.parametrize("load", [0.3, 0.7])
def test_a_server_of_one_slot_and_constant_outputs_waits_as_m_d_1(load: float) -> None:
    output = ConstantLength(10)
    found = waits(output, load, requests=2_000)
    assert standard_errors(found, md1_mean_wait(load / (10 * STEP), 10 * STEP)) < 4
    # the queue of exponential services is twice as long, and would be seen
    assert standard_errors(found, mm1_mean_wait(load / (10 * STEP), 10 * STEP)) > 4


@pytest.mark.parametrize("load", [0.3, 0.7])
def test_geometric_outputs_wait_as_m_g_1_and_nearly_as_m_m_1(load: float) -> None:
    mean = 25
    found = waits(GeometricLength(mean), load, requests=2_000)
    rate = load / (mean * STEP)
    # a geometric number of constant steps has squared coefficient of variation 1 - 1/mean, 1 in the limit of M/M/1
    assert standard_errors(found, mg1_mean_wait(rate, mean * STEP, 1 - 1 / mean)) < 4
    assert mg1_mean_wait(rate, mean * STEP, 1 - 1 / mean) == pytest.approx(mm1_mean_wait(rate, mean * STEP), rel=0.021)


@pytest.mark.parametrize("load", [0.5, 0.9])
def test_requests_of_one_step_wait_as_in_the_bulk_service_queue(load: float) -> None:
    # an output of one token is all prefill: a step serves up to 8 requests whatever there are
    most = 8
    rate = load * most / STEP
    means = []
    for seed in range(RUNS):
        workload = SyntheticWorkload(PoissonArrivals(rate), ConstantLength(1), ConstantLength(1), 3_000).sample(seed)
        waiting = serve(ServingScenario(ConstantLatency(STEP), workload, batch_limit=most), seed).request_table()
        means.append(waiting["waiting_seconds"].iloc[300:].mean())
    assert standard_errors(np.array(means), float(bulk_service(rate, STEP, most).wait_seconds)) < 4
    assert standard_errors(np.array(means), float(bulk_service(rate, 1.05 * STEP, most).wait_seconds)) > 4


@pytest.mark.parametrize(("alpha", "gamma", "cost"), [(0.5, 2, 0.1), (0.8, 4, 0.05), (0.9, 7, 0.2)])
def test_a_single_request_is_as_much_faster_as_leviathan_says(alpha: float, gamma: int, cost: float) -> None:
    workload = SyntheticWorkload(PoissonArrivals(1e-6), ConstantLength(1), ConstantLength(2_000), 60).sample(0)
    speculation = Speculation(FixedGamma(gamma), IidAcceptance(alpha), ConstantLatency(cost))
    requests = serve(ServingScenario(ConstantLatency(1.0), workload, speculation), 5).request_table()
    per_round = 1 + requests["accepted"] / requests["rounds"]
    assert standard_errors(per_round, float(expected_tokens(alpha, gamma))) < 4
    decoding = requests["finished_seconds"] - requests["first_token_seconds"]
    # the output's end cuts the last round: count what it would have emitted
    gain = (requests["accepted"] + requests["rounds"]) / decoding
    assert standard_errors(gain, float(speedup(alpha, gamma, cost))) < 4
    assert standard_errors(gain, float(speedup(alpha, gamma, cost)) * 1.04) > 4


def test_batched_rounds_of_a_tree_emit_what_sequoia_expects() -> None:
    tree, ranks = TokenTree.branching((3, 2, 1)), (0.6, 0.15, 0.05)
    workload = SyntheticWorkload(PoissonArrivals(50.0), ConstantLength(10), ConstantLength(400), 200).sample(0)
    speculation = Speculation(tree, TreeAcceptance(tree, ranks), ConstantLatency(0.001))
    requests = serve(ServingScenario(ConstantLatency(STEP), workload, speculation), 5).request_table()
    per_round = 1 + requests["accepted"] / requests["rounds"]
    assert standard_errors(per_round, expected_tree_tokens(tree, ranks)) < 4
    chain = TokenTree.chain(3)
    assert standard_errors(per_round, expected_tree_tokens(chain, ranks)) > 4
