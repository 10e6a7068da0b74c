"""What a run says about itself: intervals, ITL against TPOT, goodput, the server over time."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from sim.serving import Objective, serve
from sim.serving.results import area, as_json, measure, spread
from tests.sim.serving.conftest import at_once, mixed, poisson, speculating


def test_itl_over_tpot_is_the_block_efficiency() -> None:
    scenario = speculating(poisson(400, rate=5))
    values = measure(scenario, serve(scenario, 3), 0).values
    # TPOT is a mean over requests of equal length, so over tokens; rounds cut by the end emit fewer
    ratio = values["itl_seconds.mean"] / values["tpot_seconds.mean"]
    assert ratio == pytest.approx(values["block_efficiency"], rel=1e-3)
    assert values["block_efficiency"] > 2.5
    plain = measure(scenario, serve(scenario.without_speculation(), 3), 0).values
    assert plain["itl_seconds.mean"] == pytest.approx(plain["tpot_seconds.mean"], rel=1e-9)


def test_littles_law_holds() -> None:
    # requests in the server at 20,000 random moments against arrival rate times mean time in the server
    scenario = speculating(poisson(3_000, rate=18), batch_limit=32)
    log = serve(scenario, 1)
    requests = log.request_table()
    expected = requests["latency_seconds"].sum() / requests["finished_seconds"].max()
    arrived = np.sort(requests["arrival_seconds"].to_numpy())
    left = np.sort(requests["finished_seconds"].to_numpy())
    moments = np.random.default_rng(0).uniform(0, left[-1], 20_000)
    inside = np.searchsorted(arrived, moments) - np.searchsorted(left, moments)
    assert abs(inside.mean() - expected) < 4 * inside.std() / math.sqrt(len(moments))


def test_goodput_counts_the_requests_that_met_every_objective() -> None:
    scenario = speculating(mixed(300, rate=30), batch_limit=8)
    log = serve(scenario, 1)
    requests = log.request_table()
    limit = float(requests["ttft_seconds"].median())
    values = measure(replace(scenario, objective=Objective(ttft_seconds=limit)), log, 0).values
    assert values["goodput_share"] == pytest.approx((requests["ttft_seconds"] <= limit).mean())
    assert values["goodput_requests_per_second"] == pytest.approx(
        values["goodput_share"] * values["requests_per_second"]
    )
    none = measure(replace(scenario, objective=Objective(ttft_seconds=0.0)), log, 0).values
    assert none["goodput_share"] == 0


def test_the_warm_up_of_a_server_that_starts_empty_is_dropped() -> None:
    # offered load near capacity: the first requests meet no queue
    scenario = speculating(poisson(2_000, rate=22), batch_limit=32)
    log = serve(scenario, 1)
    all_of_it, steady = measure(scenario, log, 0).values, measure(scenario, log, "auto").values
    assert steady["warm_up_requests"] > 0
    assert steady["latency_seconds.mean"] > all_of_it["latency_seconds.mean"]
    assert steady["requests"] == 2_000 - steady["warm_up_requests"]


def test_a_closed_workload_has_no_warm_up() -> None:
    scenario = speculating(at_once([50] * 100, [20] * 100), batch_limit=10)
    assert measure(scenario, serve(scenario, 0)).values["warm_up_requests"] == 0


def test_over_time_adds_up_to_the_run() -> None:
    scenario = speculating(mixed(300, rate=30), batch_limit=8)
    log = serve(scenario, 1)
    result, requests = measure(scenario, log, 0), log.request_table()
    width = result.over_time["seconds"].diff().mean()
    waited = requests["waiting_seconds"].sum()
    assert (result.over_time["queue"] * width).sum() == pytest.approx(waited)
    assert (result.over_time["tokens_per_second"] * width).sum() == pytest.approx(requests["output_tokens"].sum())
    assert result.over_time["batch"].max() <= 8


def test_short_runs_have_no_intervals_and_say_so() -> None:
    scenario = speculating(at_once([5, 5], [1, 1]))
    result = measure(scenario, serve(scenario, 0))
    printed = as_json(result.values, result.intervals)
    assert printed["itl_seconds"]["mean"] is None
    assert printed["tpot_seconds"]["mean"] is None
    assert "mean_ci" not in printed["ttft_seconds"]


def test_intervals_of_a_run_cover_the_mean_of_many() -> None:
    # 40 runs; the mean of all stands for the truth. 95% intervals: fewer than 32 cover with probability 2e-4
    means, covers = [], []
    for seed in range(40):
        scenario = speculating(poisson(600, rate=10, output=40, seed=seed), batch_limit=16)
        result = measure(scenario, serve(scenario, seed), 0)
        means.append(result.values["latency_seconds.mean"])
        covers.append(result.intervals["latency_seconds.mean"])
    truth = np.mean(means)
    assert sum(lo <= truth <= hi for lo, hi in covers) >= 32


def test_area_and_spread_against_a_sum_over_small_steps() -> None:
    rng = np.random.default_rng(0)
    starts = rng.uniform(0, 10, 30)
    ends, heights = starts + rng.exponential(1, 30), rng.uniform(0, 5, 30)
    grid = np.linspace(0, 15, 150_001)
    height = ((grid[:, None] >= starts) & (grid[:, None] < ends)) @ heights
    times = np.array([0.0, 3.0, 7.5, 15.0])
    sums = np.interp(times, grid, np.concatenate([[0], np.cumsum(height[:-1]) * (grid[1] - grid[0])]))
    np.testing.assert_allclose(area(times, starts, ends, heights), sums, atol=5e-3)
    assert spread([20.0], starts, ends, heights)[0] == pytest.approx(heights.sum())
    assert spread([1.0, 2.0], [1.5], [1.5], [3.0]).tolist() == [0.0, 3.0]
