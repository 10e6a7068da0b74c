"""The server's mechanics: what joins, what leaves, what is counted, and that planning ahead changes nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from sim.acceptance import BetaAcceptance, IidAcceptance, MarkovAcceptance, PartialProposals, TraceAcceptance
from sim.confidence import ConfidenceAcceptance
from sim.controllers import Bandit, ConfidenceThreshold, FixedGamma, Heuristic, OffAboveLoad, Oracle
from sim.controllers.latency_costs import LatencyCosts
from sim.hardware import Link
from sim.latency import ConstantLatency
from sim.serving import Prefill, ServingScenario, Speculation, replica, serve
from sim.tree_acceptance import TreeAcceptance
from sim.trees import TokenTree
from tests.sim.serving.conftest import DRAFT, TARGET, at_once, mixed, poisson, speculating

LINK = Link(bandwidth=1e9, latency=1e-4)
SERVERS: dict[str, dict[str, Any]] = {
    "whole": {},
    "small batch": {"batch_limit": 8},
    "little memory": {"kv_tokens": 2_000},
    "chunked": {"prefill": Prefill("chunked", tokens=256)},
    "small chunks": {"prefill": Prefill("chunked", tokens=24)},
    "chunked, little memory": {"prefill": Prefill("chunked", tokens=256), "kv_tokens": 2_000},
    "disaggregated": {"prefill": Prefill("disaggregated", devices=2, link=LINK, kv_bytes_per_token=1e5)},
    "disaggregated, little memory": {"prefill": Prefill("disaggregated", devices=2), "kv_tokens": 2_000},
    "replicas": {"replicas": 3},
    "replicas, least busy": {"replicas": 3, "route": "least_busy"},
}


def tables(scenario: ServingScenario, seed: int = 1) -> tuple[pd.DataFrame, pd.DataFrame]:
    log = serve(scenario, seed)
    steps = log.step_table().sort_values(["start_seconds", "replica"], kind="stable").reset_index(drop=True)
    return log.request_table(), steps


@pytest.mark.parametrize("gamma", [0, 4])
@pytest.mark.parametrize("changes", SERVERS.values(), ids=SERVERS)
def test_planning_ahead_changes_nothing(changes: dict[str, Any], gamma: int, monkeypatch: pytest.MonkeyPatch) -> None:
    scenario = speculating(mixed(120, rate=12), gamma, **changes)
    ahead = tables(scenario)
    monkeypatch.setattr(replica, "LONGEST_PLAN", 1)
    for planned, one_by_one in zip(ahead, tables(scenario), strict=True):
        pd.testing.assert_frame_equal(planned, one_by_one, check_exact=True)


@pytest.mark.parametrize("changes", SERVERS.values(), ids=SERVERS)
def test_gamma_zero_is_the_run_without_a_draft_to_the_last_bit(changes: dict[str, Any]) -> None:
    scenario = speculating(mixed(80, rate=12), gamma=0, **changes)
    for with_draft, without in zip(tables(scenario), tables(scenario.without_speculation()), strict=True):
        pd.testing.assert_frame_equal(with_draft, without, check_exact=True)


@pytest.mark.parametrize("changes", SERVERS.values(), ids=SERVERS)
def test_every_request_gets_all_its_tokens_and_time_adds_up(changes: dict[str, Any]) -> None:
    scenario = speculating(mixed(120, rate=12), **changes)
    log = serve(scenario, 1)
    requests, steps, gaps = log.request_table(), log.step_table(), log.gap_table()
    assert requests[["admitted_seconds", "first_token_seconds", "finished_seconds"]].notna().all(axis=None)
    by_prefill = requests["output_tokens"] - requests["round_tokens"]
    assert by_prefill.ge(1).all()
    assert by_prefill.le(1 + requests["preemptions"]).all()
    assert steps["emitted"].sum() == requests["round_tokens"].sum()
    assert gaps["count"].sum() == requests["rounds"].sum() + (by_prefill - 1).sum()
    after_first = (requests["finished_seconds"] - requests["first_token_seconds"]).sum()
    np.testing.assert_allclose((gaps["seconds"] * gaps["count"]).sum(), after_first, rtol=1e-9)


@pytest.mark.parametrize("changes", [one for name, one in SERVERS.items() if "memory" in name])
def test_memory_is_never_exceeded_and_preempted_requests_are_recomputed(changes: dict[str, Any]) -> None:
    requests, steps = tables(speculating(mixed(120, rate=12), **changes))
    assert requests["preemptions"].sum() > 0
    assert steps["kv_tokens"].max() <= 2_000
    read = steps["prefill_tokens"].sum()
    assert read > requests["prompt_tokens"].sum()


def test_a_chunked_step_never_reads_more_than_its_budget() -> None:
    _, steps = tables(speculating(mixed(200, rate=30), gamma=3, prefill=Prefill("chunked", tokens=128)))
    reading = steps[steps["prefill_tokens"] > 0]
    assert (reading["batch"] > 0).any()
    assert (reading["batch"] * 4 + reading["prefill_tokens"]).max() == 128


def test_whole_prompts_stop_decoding_and_chunks_do_not() -> None:
    workload = poisson(300, rate=8, prompt=2_000, output=100)
    whole, _ = tables(speculating(workload, prefill=Prefill("whole")))
    chunked, _ = tables(speculating(workload, prefill=Prefill("chunked", tokens=512)))
    assert chunked["tpot_seconds"].quantile(0.99) < whole["tpot_seconds"].quantile(0.99)


def test_a_disaggregated_prompt_waits_for_no_decoding_and_crosses_the_link() -> None:
    prefill = Prefill("disaggregated", devices=1, link=Link(bandwidth=1e6, latency=0.5), kv_bytes_per_token=1e3)
    requests, _ = tables(speculating(at_once([100], [50]), gamma=2, prefill=prefill))
    assert requests["ttft_seconds"][0] == pytest.approx(0.02 + 100 * 2e-5 + 0.001 + 100e-6)
    crossing = 0.5 + 100 * 1e3 / 1e6
    without, _ = tables(speculating(at_once([100], [50]), gamma=2, prefill=Prefill("disaggregated")))
    slower = requests["latency_seconds"][0] - without["latency_seconds"][0]
    assert slower == pytest.approx(crossing)


def test_prompts_read_together_stay_within_the_limit_but_a_long_one_goes_alone() -> None:
    workload = at_once([100, 100, 100, 5_000, 100], [2] * 5)
    _, steps = tables(speculating(workload, prefill=Prefill("whole", tokens=250)))
    assert steps["prefill_tokens"][steps["prefill_tokens"] > 0].tolist() == [200, 100, 5_000, 100]


def test_requests_accept_the_same_drafts_whatever_the_server() -> None:
    workload = mixed(300, rate=20)
    small, _ = tables(speculating(workload, batch_limit=2))
    large, _ = tables(speculating(workload, batch_limit=64, replicas=2))
    pd.testing.assert_series_equal(small["rounds"], large["rounds"])
    other, _ = tables(speculating(workload), seed=2)
    assert (other["rounds"] != large["rounds"]).any()


def test_more_replicas_and_the_least_busy_one_shorten_the_queue() -> None:
    workload = mixed(400, rate=25)
    waits = [
        tables(speculating(workload, batch_limit=4, **changes))[0]["waiting_seconds"].mean()
        for changes in ({}, {"replicas": 3}, {"replicas": 3, "route": "least_busy"})
    ]
    assert waits[0] > waits[1] > waits[2]


RULES: dict[str, Speculation] = {
    "heuristic": Speculation(Heuristic(2, 6), IidAcceptance(0.8), DRAFT),
    "bandit": Speculation(Bandit((0, 2, 4)), IidAcceptance(0.8), DRAFT),
    "oracle": Speculation(Oracle(LatencyCosts(DRAFT, TARGET, 6, 200.0), 6), IidAcceptance(0.8), DRAFT),
    "off above load": Speculation(OffAboveLoad(FixedGamma(4), 8), IidAcceptance(0.8), DRAFT),
    "confidence": Speculation(ConfidenceThreshold(6, 0.5), ConfidenceAcceptance(4, 1), DRAFT),
    "partial": Speculation(FixedGamma(4), PartialProposals(IidAcceptance(0.9), (0.5, 0.1, 0.4)), None, 1e-4),
    "beta": Speculation(FixedGamma(4), BetaAcceptance(7, 3), DRAFT),
    "trace": Speculation(Heuristic(2, 6), TraceAcceptance(((1, 3, 2, 5), (4, 1, 1))), DRAFT),
    "tree": Speculation(TokenTree.branching((2, 2)), TreeAcceptance(TokenTree.branching((2, 2)), (0.6, 0.2)), DRAFT),
    "other device": Speculation(FixedGamma(4), IidAcceptance(0.8), DRAFT, link=LINK),
}


@pytest.mark.parametrize("speculation", RULES.values(), ids=RULES)
def test_every_rule_and_acceptance_serves_all_requests(speculation: Speculation) -> None:
    scenario = ServingScenario(TARGET, mixed(150, rate=20), speculation)
    requests, steps = tables(scenario)
    again, _ = tables(scenario)
    pd.testing.assert_frame_equal(requests, again, check_exact=True)
    assert requests["finished_seconds"].notna().all()
    assert (requests["accepted"] <= requests["drafted"]).all()
    assert steps["drafted"].sum() == requests["drafted"].sum()
    assert requests["drafted"].sum() > 0


def test_switching_off_above_a_load_drafts_only_below_it() -> None:
    _, steps = tables(ServingScenario(TARGET, mixed(200, rate=40), RULES["off above load"]))
    decoding = steps[steps["batch"] > 0]
    assert (decoding["drafted"][decoding["batch"] > 8] == 0).all()
    assert (decoding["drafted"][decoding["batch"] <= 8] > 0).all()
    assert (decoding["batch"] > 8).any()


def test_a_trace_is_replayed_by_output_position() -> None:
    speculation = Speculation(FixedGamma(3), TraceAcceptance(((4, 1, 1, 1, 2, 1),)), ConstantLatency(0.0))
    workload = at_once([10], [7])
    requests, steps = tables(ServingScenario(ConstantLatency(1.0), workload, speculation))
    # prefill emits a token, then rounds at trace positions 0 (4 tokens) and 4 (2 tokens)
    assert steps["emitted"].tolist() == [0, 4, 2]
    assert requests["latency_seconds"][0] == 3.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: speculating(mixed(5, 1), batch_limit=0), "batch_limit must be a whole number >= 1, got 0"),
        (lambda: speculating(at_once([10, 900], [5, 200]), kv_tokens=1_000), "request 1 grows to 1104 tokens"),
        (lambda: speculating(mixed(5, 1), route="random"), "route must be 'round_robin' or 'least_busy', got 'random'"),
        (lambda: Prefill("lazy"), "prefill mode must be"),  # type: ignore[arg-type]  # what a file may say
        (lambda: Prefill(tokens=0), "prefill tokens must be a whole number >= 1, got 0"),
        (lambda: speculating(mixed(5, 1), overhead_seconds=-1), "overhead_seconds must be finite and >= 0"),
        (
            lambda: Speculation(ConfidenceThreshold(4, 0.5), IidAcceptance(0.7)),
            "stops by the draft's confidence, which IidAcceptance does not draw",
        ),
        (lambda: Speculation(Heuristic(2, 6), MarkovAcceptance(0.8, 0.4)), "MarkovAcceptance needs one draft length"),
    ],
)
def test_what_cannot_be_served_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_overhead_is_paid_by_every_step() -> None:
    plain = speculating(at_once([10], [1 + 5 * 20]), gamma=4, alpha=1.0)
    requests, steps = tables(plain)
    slower, _ = tables(replace(plain, overhead_seconds=0.003))
    assert len(steps) == 21
    assert slower["latency_seconds"][0] - requests["latency_seconds"][0] == pytest.approx(21 * 0.003)
