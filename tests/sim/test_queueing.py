"""Closed forms against known values, against each other, and against simulations written another way.

A simulated mean is compared within 4 standard errors of 30 batch means: 4e-4 false alarms a cell (Student's t).
"""

import heapq
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import poisson

from sim.output_analysis import Estimate, batch_means, quantile_interval, student
from sim.queueing import (
    bulk_service,
    erlang_c,
    little_number,
    md1_mean_wait,
    mg1_mean_wait,
    mm1_mean_number,
    mm1_mean_wait,
    mm1_sojourn_quantile,
    mmc_mean_wait,
    unit_roots,
    waiting_times,
)

Times = NDArray[np.float64]


def near(estimate: Estimate, truth: float) -> bool:
    return abs(estimate.value - truth) <= 4 * estimate.half_width / student(estimate.count)


def serve_in_bulk(rate: float, step: float, most: int, least: int, requests: int, seed: int) -> tuple[Times, Times]:
    """Each request's wait, and each step's requests, played step by step."""
    times = np.cumsum(np.random.default_rng(seed).exponential(1 / rate, requests)).tolist()
    waits, batches = [], []
    first, free = 0, 0.0
    while first + least <= requests:
        start = max(free, times[first + least - 1])
        last = first + least
        while last < min(first + most, requests) and times[last] <= start:
            last += 1
        waits += [start - time for time in times[first:last]]
        batches.append(last - first)
        first, free = last, start + step
    return np.array(waits), np.array(batches, dtype=np.float64)


def serve_with_many(rate: float, service: float, servers: int, requests: int, seed: int) -> Times:
    """Each request's wait for the first free one of many exponential servers."""
    rng = np.random.default_rng(seed)
    free = [0.0] * servers
    waits = np.empty(requests)
    arrivals, services = np.cumsum(rng.exponential(1 / rate, requests)), rng.exponential(service, requests)
    for i, (arrival, length) in enumerate(zip(arrivals.tolist(), services.tolist(), strict=True)):
        start = max(arrival, heapq.heappop(free))
        heapq.heappush(free, start + length)
        waits[i] = start - arrival
    return waits


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 50)), min_size=1, max_size=60))
def test_waiting_times_are_lindleys_recursion(pairs: list[tuple[float, float]]) -> None:
    gaps, services = map(np.array, zip(*pairs, strict=True))
    arrivals = np.cumsum(gaps)
    expected = [0.0]
    for i in range(len(pairs) - 1):
        expected.append(max(0.0, expected[-1] + services[i] - (arrivals[i + 1] - arrivals[i])))
    got = waiting_times(arrivals, services)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-9)
    assert (got >= 0).all()
    np.testing.assert_array_equal(waiting_times(np.stack([arrivals, arrivals]), services), np.stack([got, got]))


@pytest.mark.parametrize("scv", [0.0, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("load", [0.3, 0.7])
def test_waits_of_one_server_match_pollaczek_and_khinchine(load: float, scv: float) -> None:
    """Gamma service times of the given scv and mean 2."""
    rng = np.random.default_rng(1)
    arrivals = np.cumsum(rng.exponential(2 / load, 300_000))
    services = rng.gamma(1 / scv, 2 * scv, 300_000) if scv else np.full(300_000, 2.0)
    got = batch_means(waiting_times(arrivals, services)[10_000:])
    assert near(got, float(mg1_mean_wait(load / 2, 2, scv)))


def test_that_check_catches_a_formula_without_the_service_times_variance() -> None:
    rng = np.random.default_rng(1)
    arrivals, services = np.cumsum(rng.exponential(1 / 0.7, 300_000)), rng.exponential(1, 300_000)
    assert not near(batch_means(waiting_times(arrivals, services)[10_000:]), float(md1_mean_wait(0.7, 1)))


def test_mm1_by_hand_and_in_littles_law() -> None:
    """Load 1/2 and service 2: one request present on average, and each stays 4."""
    assert mm1_mean_wait(0.25, 2) == 2
    assert mm1_mean_number(0.25, 2) == 1
    assert md1_mean_wait(0.25, 2) == 1
    rates = np.array([0.0, 0.1, 0.25, 0.49])
    np.testing.assert_allclose(little_number(rates, mm1_mean_wait(rates, 2) + 2), mm1_mean_number(rates, 2))
    assert mm1_sojourn_quantile(0.25, 2, 1 - math.exp(-1)) == pytest.approx(4)
    assert isinstance(mm1_mean_wait(0.25, 2), float)


@pytest.mark.parametrize("q", [0.5, 0.9, 0.99])
def test_mm1_sojourn_quantiles_match_the_recursion(q: float) -> None:
    rng = np.random.default_rng(2)
    arrivals, services = np.cumsum(rng.exponential(1 / 0.7, 400_000)), rng.exponential(1, 400_000)
    sojourns = (waiting_times(arrivals, services) + services)[10_000:]
    got = quantile_interval(sojourns, q, batches=30)
    side = got.hi - got.value if mm1_sojourn_quantile(0.7, 1, q) > got.value else got.value - got.lo
    assert abs(got.value - mm1_sojourn_quantile(0.7, 1, q)) <= 4 * side / student(30)


def test_erlang_c_matches_its_sum() -> None:
    for servers, load in [(1, 0.3), (2, 0.5), (5, 0.9), (40, 0.95)]:
        offered = servers * load
        terms = [offered**k / math.factorial(k) for k in range(servers)]
        last = offered**servers / math.factorial(servers) / (1 - load)
        assert erlang_c(offered, 1, servers) == pytest.approx(last / (sum(terms) + last), rel=1e-12)
    np.testing.assert_allclose(erlang_c(0.8, 1, 1), 0.8)
    np.testing.assert_allclose(mmc_mean_wait([0.1, 0.8], 1, 1), mm1_mean_wait([0.1, 0.8], 1))
    assert 0.99 < erlang_c(9999.99, 1, 10_000) < 1
    assert mmc_mean_wait(0, 1, 3) == 0


@pytest.mark.parametrize(("servers", "load"), [(2, 0.8), (8, 0.7)])
def test_waits_of_many_servers_match_erlang(servers: int, load: float) -> None:
    waits = serve_with_many(servers * load / 3, 3, servers, 200_000, seed=3)[5000:]
    assert near(batch_means(waits), float(mmc_mean_wait(servers * load / 3, 3, servers)))
    assert near(batch_means(waits > 0), float(erlang_c(servers * load / 3, 3, servers)))


BULK = [(0.5, 1.0, 1, 1), (3.0, 1.0, 4, 1), (6.0, 0.5, 16, 1), (50.0, 1.0, 64, 1), (6.0, 0.5, 8, 3), (14.0, 0.5, 8, 8)]


@pytest.mark.parametrize(("rate", "step", "most", "least"), BULK)
def test_bulk_service_matches_a_simulated_server(rate: float, step: float, most: int, least: int) -> None:
    waits, batches = serve_in_bulk(rate, step, most, least, 150_000, seed=4)
    want = bulk_service(rate, step, most, least)
    assert near(batch_means(waits[3000:]), float(want.wait_seconds))
    if least < most:
        assert near(batch_means(batches[100:]), float(want.batch))
    assert want.sojourn_seconds == want.wait_seconds + step


@pytest.mark.parametrize("least", [1, 3, 8])
def test_bulk_service_matches_the_chain_solved_as_a_linear_system(least: int) -> None:
    """What a step leaves behind, N' = max(N - 8, 0) + arrivals, cut off where its chance is below 1e-15."""
    rate, step, most, size = 6.5, 1.0, 8, 400
    arrivals = poisson.pmf(np.arange(size), rate * step)
    kept = np.maximum(np.arange(size) - most, 0)
    chain = np.array([np.concatenate([np.zeros(k), arrivals[: size - k]]) for k in kept])
    system = np.vstack([chain.T - np.eye(size), np.ones(size)])
    chances = np.linalg.lstsq(system, np.append(np.zeros(size), 1.0), rcond=None)[0]
    short = np.maximum(least - np.arange(size), 0)
    filling = np.array([sum(range(j, least)) for j in range(size)]) / rate
    cycle = step + chances @ short / rate
    waiting = (chances @ filling + step * (chances @ kept + rate * step / 2)) / cycle
    got = bulk_service(rate, step, most, least)
    assert got.waiting == pytest.approx(waiting, rel=1e-9)
    assert got.batch == pytest.approx(rate * cycle, rel=1e-9)
    assert got.idle == pytest.approx(1 - step / cycle, rel=1e-9)


def test_bulk_service_has_the_limits_it_must() -> None:
    """One at a time is M/D/1; with room for all, a step takes whoever came in the last one, or one where none did.

    A cycle is then a step and, after the share exp(-mu) of steps in which none came, one interarrival time.
    """
    rates = np.array([0.1, 0.5, 0.99])
    np.testing.assert_allclose(bulk_service(rates, 1, 1).wait_seconds, md1_mean_wait(rates, 1), rtol=1e-12)
    roomy = bulk_service(np.array([0.1, 2.0, 10.0]), 1, 1000)
    cycle = 1 + np.exp(-np.array([0.1, 2.0, 10.0])) / [0.1, 2.0, 10.0]
    np.testing.assert_allclose(roomy.waiting, np.array([0.1, 2.0, 10.0]) / 2 / cycle, rtol=0, atol=3e-11)
    np.testing.assert_allclose(roomy.idle, 1 - 1 / cycle, rtol=0, atol=1e-12)
    wait_for_all = bulk_service(0.001, 1, 4, 4)
    assert wait_for_all.wait_seconds == pytest.approx(1500, rel=1e-6)


@pytest.mark.parametrize(("load", "most"), [(0.01, 2), (0.5, 7), (0.99, 64), (0.999, 1000)])
def test_the_roots_are_all_there_and_inside_the_unit_circle(load: float, most: int) -> None:
    roots = unit_roots(np.asarray(load), most)
    np.testing.assert_allclose(roots, np.exp(2j * np.pi * np.arange(1, most) / most + load * (roots - 1)), atol=1e-12)
    assert (np.abs(roots) < 1).all()
    distance = np.abs(roots[:, None] - roots) + np.eye(most - 1)
    assert distance.min() > 1e-3 / most


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mm1_mean_wait(1, 1), "the load must be < 1, got 1: unstable; lower the rate or the service time"),
        (lambda: mm1_mean_number([0.5, 1.25], 1), r"the load must be < 1, got 1\.25"),
        (lambda: mm1_sojourn_quantile(1.2, 1, 0.5), r"the load must be < 1, got 1\.2"),
        (lambda: mm1_sojourn_quantile(0.5, 1, 1.0), "q must be below 1"),
        (lambda: md1_mean_wait(2, 0.5), "the load must be < 1, got 1"),
        (lambda: mg1_mean_wait(0.5, 1, -1), r"service_scv must be finite and >= 0, got -1\.0"),
        (lambda: mmc_mean_wait(4, 1, 4), "the load must be < 1, got 1"),
        (lambda: erlang_c(4, 1, 0), "servers must be a whole number >= 1, got 0"),
        (lambda: little_number(-1, 1), r"arrival_rate must be finite and >= 0, got -1\.0"),
        (lambda: bulk_service(8, 1, 8), "the load must be < 1, got 1"),
        (lambda: bulk_service(1, 1, 4, 5), r"least must be in \[1, most=4\], got 5"),
        (lambda: bulk_service(1, 1, 2.5), r"most must be a whole number >= 1, got 2\.5"),  # type: ignore[arg-type]
        (lambda: bulk_service([0, 1], 1, 4), "arrival_rate and step_seconds must be > 0"),
        (lambda: waiting_times([0, 2, 1], 1), "arrival_seconds must be finite and rise along the last axis"),
        (lambda: waiting_times([0, math.nan], 1), "arrival_seconds must be finite"),
        (lambda: waiting_times([0, 1], [1, -1]), r"service_seconds must be finite and >= 0, got -1\.0"),
    ],
)
def test_bad_input_is_named(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
