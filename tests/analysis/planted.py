"""Round tables with a cause planted in them: simulated requests and their plain steps, with noise on every time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from sim.acceptance import AcceptanceModel, IidAcceptance
from sim.engine import simulate
from sim.latency import ConstantLatency, TableLatency
from sim.records import ROUND_SECONDS
from sim.scenario import Scenario

CAUSES = ("slow_draft", "low_acceptance", "verify_width", "engine_overhead", "draft_not_loaded")


@dataclass(frozen=True)
class Truth:
    """A configuration; costs are in units of the target's forward of one token, `step_seconds`."""

    acceptance: AcceptanceModel
    gamma: int
    cost_ratio: float
    verify_ratio: float
    overhead: float
    """beside the forwards, in a round"""
    step_overhead: float
    """beside the forward, in a plain step"""
    step_seconds: float
    requests: int = 24
    max_new_tokens: int = 96
    prompt_tokens: int = 100
    noise: float = 0.05
    """standard deviation of the log of every time"""
    drift: float = 0.1
    """the same of each request's speed, which its plain steps share"""


def mild(rng: np.random.Generator) -> Truth:
    """Everything as it should be, at any usual draft length."""
    return Truth(
        acceptance=IidAcceptance(rng.uniform(0.65, 0.92)),
        gamma=int(rng.integers(1, 11)),
        cost_ratio=rng.uniform(0.02, 0.06),
        verify_ratio=rng.uniform(1.0, 1.1),
        overhead=rng.uniform(0.02, 0.08),
        step_overhead=rng.uniform(0.01, 0.04),
        step_seconds=float(np.exp(rng.uniform(np.log(0.003), np.log(0.05)))),
        requests=int(rng.integers(12, 41)),
    )


def plant(cause: str, rng: np.random.Generator) -> Truth:
    """A mild configuration in which one thing is bad."""
    truth = mild(rng)
    match cause:
        case "slow_draft":
            return replace(truth, cost_ratio=rng.uniform(0.4, 1.2))
        case "low_acceptance":
            return replace(truth, acceptance=IidAcceptance(rng.uniform(0.08, 0.35)))
        case "verify_width":
            return replace(truth, verify_ratio=rng.uniform(2.0, 4.0))
        case "engine_overhead":
            return replace(truth, overhead=rng.uniform(0.7, 2.5))
        case "draft_not_loaded":
            return replace(truth, acceptance=IidAcceptance(0.0))
    raise ValueError(f"unknown cause {cause}")


def make_rounds(truth: Truth, rng: np.random.Generator) -> pd.DataFrame:
    """The round table of a configuration, with plain steps of the same requests."""
    unit = truth.step_seconds
    points = {1: unit, truth.gamma + 1: unit * truth.verify_ratio}
    target = TableLatency([{"batch": 1, "new_tokens": n, "context": 0, "seconds": s} for n, s in points.items()])
    scenario = Scenario(
        target,
        ConstantLatency(unit * truth.cost_ratio),
        truth.acceptance,
        truth.gamma,
        requests=truth.requests,
        prompt_tokens=truth.prompt_tokens,
        max_new_tokens=truth.max_new_tokens,
        last_round="shortened",
        overhead_seconds=unit * truth.overhead,
        request_devices="own",
    )
    steps = replace(scenario, gamma=0, overhead_seconds=unit * truth.step_overhead)
    table = pd.concat([simulate(scenario, rng), simulate(steps, rng)], ignore_index=True)
    speed = np.exp(truth.drift * rng.standard_normal(truth.requests))
    seconds = list(ROUND_SECONDS)
    noise = np.exp(truth.noise * rng.standard_normal((len(table), len(seconds))))
    table[seconds] *= speed[table["request_id"].astype(int).to_numpy()][:, None] * noise
    return table


def planted_run(cause: str | None, seed: int, **changed: Any) -> pd.DataFrame:
    """A run with a planted cause, or with none."""
    rng = np.random.default_rng([11, seed])
    truth = mild(rng) if cause is None else plant(cause, rng)
    return make_rounds(replace(truth, **changed), rng)


def falling_rounds(
    rng: np.random.Generator,
    *,
    by_context: float = 0.0,
    by_output: float = 0.0,
    by_clock: float = 0.0,
    requests: int = 24,
    gamma: int = 4,
    tokens: int = 300,
) -> pd.DataFrame:
    """Rounds and plain steps of requests whose acceptance rate falls from 0.9.

    By so much per 1000 tokens of context or of output, or from the first request to the last; the prompts have 50 to
    800 tokens, and with `by_clock` requests follow one another on one clock.
    """
    prompts = rng.integers(50, 800, requests)
    rows = []
    for request, prompt in enumerate(prompts.tolist()):
        done, begin = 0, 100.0 * request * (by_clock > 0)
        while done < tokens:
            fall = by_context * (prompt + done) + by_output * done
            alpha = 0.9 - fall / 1000 - by_clock * request / requests
            drafted = min(gamma, tokens - done - 1)
            accepted = int(np.cumprod(rng.random(drafted) < alpha).sum())
            rows.append((str(request), prompt + done, gamma, drafted, accepted, begin + done / 10, 0.1, 1.0, 0.02))
            done += accepted + 1
        rows += [(str(request), prompt + i, 0, 0, 0, begin + i / 10, 0.0, 1.0, 0.02) for i in range(tokens)]
    names = ["request_id", "context", "gamma", "drafted", "accepted", "start_seconds", *ROUND_SECONDS]
    table = pd.DataFrame(rows, columns=names)
    place = table.groupby(["request_id", "gamma"]).cumcount()
    return table.assign(round_index=place, batch=1, emitted=table["accepted"] + 1, cut=False)
