"""How fast the simulator is: both engines on one request, against the cheapest SimPy loop there is.

Run it with `python tests/bench_sim.py`; it takes about ten seconds and prints a JSON object.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from statistics import median

import simpy

from sim.engine import ratio_scenario, run_rounds

SIMPY_ROUNDS = 200_000
NUMPY_ROUNDS = 2_000_000
REPEATS = 9


def bench() -> dict[str, dict[str, float]]:
    """Medians over interleaved repeats of the ratios of rounds per second, and the rates themselves.

    A round of the bare loop is one timeout and nothing else.
    """
    simpy_scenario = ratio_scenario(alpha=0.8, gamma=5, cost_ratio=0.05, rounds=SIMPY_ROUNDS)
    numpy_scenario = ratio_scenario(alpha=0.8, gamma=5, cost_ratio=0.05, rounds=NUMPY_ROUNDS)
    bare, simpy_rate, numpy_rate = [], [], []
    for seed in range(REPEATS):
        bare.append(SIMPY_ROUNDS / seconds_of(bare_loop))
        simpy_rate.append(SIMPY_ROUNDS / seconds_of(partial(run_rounds, simpy_scenario, seed, "simpy")))
        numpy_rate.append(NUMPY_ROUNDS / seconds_of(partial(run_rounds, numpy_scenario, seed, "numpy")))
    return {
        "simpy_rounds_over_bare_timeouts": {
            "value": median(ours / theirs for ours, theirs in zip(simpy_rate, bare, strict=True)),
            "target": 0.6,
        },
        "numpy_rounds_over_simpy_rounds": {
            "value": median(fast / slow for fast, slow in zip(numpy_rate, simpy_rate, strict=True)),
            "target": 50.0,
        },
    }


def bare_loop() -> None:
    """One process, one timeout a round."""

    def process(env: simpy.Environment) -> Iterator[simpy.Event]:
        for _ in range(SIMPY_ROUNDS):
            yield env.timeout(1.0)

    env = simpy.Environment()
    env.process(process(env))
    env.run()


def seconds_of(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


if __name__ == "__main__":
    print(json.dumps(bench(), indent=2))
