"""The simulator's clock: when each round runs, and the speedup that follows.

Two engines give the same table for requests that do not contend. NumPy adds up each request's rounds. SimPy runs one
process per request; where requests share devices, these are resources that serve one holder at a time, in order of
arrival.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pandas as pd
import simpy
from scipy.special import stdtrit

from sim.acceptance import IntArray
from sim.rounds import Rounds, plan_baseline, plan_rounds, round_table
from sim.scenario import Scenario, ratio_scenario
from sim.theory import FloatArray

__all__ = ["Engine", "Scenario", "ratio_scenario", "run_rounds", "simulate", "simulate_speedup"]

Engine = Literal["auto", "numpy", "simpy"]
Process = Iterator[simpy.Event]

LEAST_BATCHES = 60
"""batches behind an interval: one per request, or, with fewer requests, parts of a request"""


def simulate(scenario: Scenario, seed: int | np.random.Generator, engine: Engine = "auto") -> pd.DataFrame:
    """Simulate a scenario.

    A round runs the lookup on the host, its draft forwards on the draft's device, one verification on the target's
    device, and its overhead on the host. A shared device is held from the first draft forward to the end of the
    verification. A round that proposes nothing is one plain target step. Waiting for a device is in `other_seconds`,
    so that draft, verify and other seconds are the round's wall time.

    Args:
        scenario: what to simulate.
        seed: the run's seed, or a generator to draw from.
        engine: "numpy" adds up rounds and refuses contention, "simpy" runs an event loop, "auto" takes NumPy where
            nothing contends.

    Returns:
        A round table (see `sim.records`).

    Raises:
        ValueError: the engine is unknown, or is "numpy" for requests that contend.
    """
    return round_table(run_rounds(scenario, seed, engine), scenario)


def run_rounds(scenario: Scenario, seed: int | np.random.Generator, engine: Engine = "auto") -> Rounds:
    """Simulate a scenario as `simulate` does, into plain arrays instead of a table."""
    return run_clock(plan_rounds(scenario, np.random.default_rng(seed)), scenario, engine)


def run_clock(rounds: Rounds, scenario: Scenario, engine: Engine) -> Rounds:
    """Fill in when each planned round starts and how long it waits."""
    match engine:
        case "simpy":
            return simpy_clock(rounds, scenario)
        case "auto" if scenario.contends:
            return simpy_clock(rounds, scenario)
        case "numpy" if scenario.contends:
            raise ValueError(
                f"the numpy engine cannot run {scenario.requests} requests that share devices; "
                "use engine='simpy', or request_devices='own'"
            )
        case "auto" | "numpy":
            return numpy_clock(rounds)
    raise ValueError(f"engine must be 'auto', 'numpy' or 'simpy', got {engine!r}")


def numpy_clock(rounds: Rounds) -> Rounds:
    """Start each round when the one before it in its request ends."""
    busy = rounds.busy_seconds
    start = np.empty(len(busy))
    start[rounds.offsets] = 0.0
    for first, count in zip(rounds.offsets.tolist(), rounds.counts.tolist(), strict=True):
        np.cumsum(busy[first : first + count - 1], out=start[first + 1 : first + count])
    return replace(rounds, start_seconds=start)


def simpy_clock(rounds: Rounds, scenario: Scenario) -> Rounds:
    """Run one process per request until all are done."""
    env = simpy.Environment()
    start, waiting = [0.0] * len(rounds.context), [0.0] * len(rounds.context)
    spans = [range(first, first + count) for first, count in zip(rounds.offsets, rounds.counts, strict=True)]
    if scenario.contends:
        target = simpy.Resource(env)
        draft = target if scenario.draft_device == "shared" else simpy.Resource(env)
        # a round that asks for no draft looks nothing up, and spends no draft time at all
        lookup = np.minimum(scenario.proposal_seconds, rounds.draft_seconds)
        stages = (lookup, rounds.draft_seconds - lookup, rounds.verify_seconds)
        seconds = list(zip(*(stage.tolist() for stage in stages), strict=True))
        for span in spans:
            times = zip(span, seconds[span.start : span.stop], strict=True)
            env.process(contending(env, draft, target, times, rounds.overhead_seconds, start, waiting))
    else:
        busy = rounds.busy_seconds.tolist()
        for span in spans:
            env.process(alone(env, span, busy, start))
    env.run()
    return replace(rounds, start_seconds=np.array(start), waiting_seconds=np.array(waiting))


def alone(env: simpy.Environment, span: range, busy: list[float], start: list[float]) -> Process:
    """A request that never finds a device busy: each round is one timeout, whatever devices it passes through."""
    for k in span:
        start[k] = env.now
        yield env.timeout(busy[k])


def contending(
    env: simpy.Environment,
    draft: simpy.Resource,
    target: simpy.Resource,
    times: Iterator[tuple[int, tuple[float, float, float]]],
    overhead: float,
    start: list[float],
    waiting: list[float],
) -> Process:
    """A request among others: each round queues for its devices and records how long it waited."""
    for k, (lookup, drafting, verifying) in times:
        start[k] = env.now
        if lookup:
            yield env.timeout(lookup)
        stages: tuple[tuple[simpy.Resource, float], ...]
        if draft is target:
            stages = ((target, drafting + verifying),)
        else:
            stages = ((draft, drafting), (target, verifying)) if drafting else ((target, verifying),)
        for device, seconds in stages:
            asked = env.now
            with device.request() as turn:
                yield turn
                waiting[k] += env.now - asked
                yield env.timeout(seconds)
        if overhead:
            yield env.timeout(overhead)


def simulate_speedup(
    scenario: Scenario,
    seed: int | np.random.Generator,
    engine: Engine = "auto",
    baseline_overhead_seconds: float | None = None,
) -> dict[str, Any]:
    """Simulate a scenario and compare it with autoregressive decoding of the same output at the same contexts.

    speedup = autoregressive seconds per token / speculative seconds per token, waiting included on both sides. The 95%
    intervals are those of a ratio of batch means with a Student t: a batch is a request, or, with fewer than
    60 requests, a run of successive rounds of one; then they leave out how requests differ.

    Args:
        scenario: what to simulate.
        seed: the run's seed, or a generator to draw from.
        engine: as in `simulate`.
        baseline_overhead_seconds: host time of an autoregressive step; None: the scenario's overhead_seconds.

    Returns:
        block_efficiency (tokens per round, a per-round mean), speedup, each with `_ci` [lo, hi]; rounds, tokens,
        seconds, baseline_seconds (summed over requests), and rounds_per_second of the simulation itself.

    Raises:
        ValueError: as `simulate`, or there are fewer than two rounds.
    """
    began = time.perf_counter()
    rounds = run_rounds(scenario, seed, engine)
    elapsed = time.perf_counter() - began
    overhead = scenario.overhead_seconds if baseline_overhead_seconds is None else baseline_overhead_seconds
    steps = replace(scenario, gamma=0, controller=None, overhead_seconds=overhead)
    tokens = np.add.reduceat(rounds.emitted, rounds.offsets)
    baseline = run_clock(plan_baseline(steps, tokens), steps, "auto").wall_seconds
    edges = batch_edges(rounds.counts)
    emitted = np.add.reduceat(rounds.emitted, edges)
    seconds = np.add.reduceat(rounds.wall_seconds, edges)
    baseline_seconds = np.add.reduceat(baseline, np.concatenate([[0], np.cumsum(emitted)[:-1]]))
    block_efficiency, block_efficiency_ci = ratio_interval(emitted, np.diff(edges, append=len(rounds.emitted)))
    speedup, speedup_ci = ratio_interval(baseline_seconds, seconds)
    return {
        "block_efficiency": block_efficiency,
        "block_efficiency_ci": block_efficiency_ci,
        "speedup": speedup,
        "speedup_ci": speedup_ci,
        "rounds": len(rounds.emitted),
        "tokens": int(tokens.sum()),
        "seconds": float(seconds.sum()),
        "baseline_seconds": float(baseline_seconds.sum()),
        "rounds_per_second": len(rounds.emitted) / elapsed,
    }


def batch_edges(counts: IntArray) -> IntArray:
    """First rounds of at least 60 batches, each within one request; fewer where there are fewer rounds.

    Args:
        counts: rounds of each request [requests].
    """
    parts = -(-LEAST_BATCHES // len(counts))
    shares = np.arange(parts) * counts[:, None] // parts
    return np.unique(shares + (np.cumsum(counts) - counts)[:, None])


def ratio_interval(numerator: FloatArray | IntArray, denominator: FloatArray | IntArray) -> tuple[float, list[float]]:
    """A ratio of sums over batches with its 95% interval (Cochran 1977, Sampling Techniques, eq. 6.4; Student t).

    Args:
        numerator: one sum per batch [batches].
        denominator: one sum per batch [batches].

    Raises:
        ValueError: there are fewer than two batches.
    """
    batches = len(numerator)
    if batches < 2:
        raise ValueError("an interval needs at least 2 rounds, got 1; simulate more rounds")
    ratio = float(numerator.sum() / denominator.sum())
    residual = numerator - ratio * denominator
    error = np.sqrt(batches / (batches - 1) * np.square(residual).sum()) / denominator.sum()
    half = float(stdtrit(batches - 1, 0.975) * error)
    return ratio, [ratio - half, ratio + half]
