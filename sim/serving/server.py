"""A run of a server, or of several replicas of one: requests arrive and are sent to one of them."""

from __future__ import annotations

import numpy as np
import simpy

from sim.serving.draws import AcceptanceRows
from sim.serving.log import ServingLog
from sim.serving.replica import Process, Replica
from sim.serving.scenario import ServingScenario

ACCEPTANCE_STREAM = 3
"""child of the seed that acceptance is drawn from; a workload of the same seed takes the first three"""


def serve(scenario: ServingScenario, seed: int) -> ServingLog:
    """Run a scenario until its last request is finished.

    Args:
        scenario: what to run.
        seed: of acceptance. Requests accept the same drafts for one seed, whatever else differs between scenarios.
    """
    env = simpy.Environment()
    log = ServingLog(scenario.workload)
    rows = None
    if scenario.speculation is not None and scenario.max_gamma > 0:
        sequence = np.random.SeedSequence(seed, spawn_key=(ACCEPTANCE_STREAM,))
        rows = AcceptanceRows(scenario.speculation, scenario.workload.output_tokens, sequence)
    replicas = [Replica(env, scenario, log, rows, index) for index in range(scenario.replicas)]
    env.process(arrivals(env, scenario, replicas))
    env.run()
    return log


def arrivals(env: simpy.Environment, scenario: ServingScenario, replicas: list[Replica]) -> Process:
    """Send each request to a replica when it arrives."""
    for request, time in enumerate(scenario.workload.arrival_seconds.tolist()):
        if time > env.now:
            yield env.timeout(time - env.now)
        if scenario.route == "round_robin":
            replica = replicas[request % len(replicas)]
        else:
            replica = min(replicas, key=lambda one: one.unfinished_now())
        replica.submit(request)
