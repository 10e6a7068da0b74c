"""PEARL: the draft works ahead while the target verifies.

Liu et al., "PEARL: Parallel Speculative Decoding with Adaptive Draft Length" (ICLR 2025, arXiv:2408.11850). Both models
work in every step, and the step ends when both are done. The draft always makes gamma more tokens.

Pre-verify, after a correction: the target's forward sees no drafted token, so it gives one token, which is also the
verdict on the first of the gamma that the draft makes meanwhile. If they agree, the draft's other gamma - 1 wait for
the next step; else all gamma are wasted.

Post-verify, after agreement: the target's forward checks the gamma - 1 that wait and gives one more token, the verdict
on the first that the draft makes meanwhile. If all agree, gamma tokens are out and the step repeats: the draft went on
without a pause, which is the adaptive draft length. Else what was drafted ahead is wasted, and pre-verify follows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import simpy

from sim.latency import burst_seconds
from sim.records import make_rounds
from sim.scenario import Scenario
from sim.topologies.run import (
    Forwards,
    TopologyRun,
    agreeing_tokens,
    agreement_chances,
    check_apart,
    labels,
    summarise_request,
)


class Step(NamedTuple):
    """One step of both models: a row of the round table."""

    context: int
    drafted: int
    """drafted tokens that waited for this step's verification"""
    accepted: int
    emitted: int
    used: int
    """tokens of `emitted` that the draft made"""
    start_seconds: float
    drafting_seconds: float
    """of the draft's device; most of it may be hidden behind the target's"""
    verify_seconds: float


def pearl(scenario: Scenario, seed: int | np.random.Generator) -> TopologyRun:
    """Simulate one request with PEARL.

    A row of the table is one step: it verifies the drafted tokens that waited (0 or gamma - 1) and emits the accepted
    ones and one token of the target's, which may be what the draft has already gone on from. draft_seconds is what the
    drafting lasts longer than the target's forward; drafting hidden behind it costs no time and is not in the table.

    Args:
        scenario: one request with draft_device "own", max_new_tokens, and iid or per-position acceptance (positions
            count from the last correction); gamma is the paper's window size. Output beyond max_new_tokens is cut.
        seed: the run's seed, or a generator to draw from.

    Returns:
        A round table, and the figures of `summarise_request` with `post_verify_share` (of steps) and
        `draft_utilisation` and `target_utilisation` (busy shares of the wall time).

    Raises:
        ValueError: the scenario has something that is not simulated here.
    """
    draft, tokens = check_apart("pearl", scenario, counted_in_tokens=True), scenario.max_new_tokens or 0
    reach = tokens + scenario.gamma
    chances = agreement_chances("pearl", scenario.acceptance, reach)
    uniform = np.random.default_rng(seed).random(reach)
    env = simpy.Environment()
    rows: list[Step] = []

    def request() -> Iterator[simpy.Event]:
        output = corrected = 0
        agreeing = agreeing_tokens(uniform, chances, 0)
        while output < tokens:
            ahead = scenario.gamma - 1 if output > corrected else 0
            context = scenario.prompt_tokens + output
            drafting = float(burst_seconds(draft, scenario.gamma, context + ahead))
            verifying = float(scenario.target.forward_seconds(1, ahead + 1, context))
            start = env.now
            # the two devices meet at the end of the step
            yield env.timeout(drafting) & env.timeout(verifying)
            if scenario.overhead_seconds:
                yield env.timeout(scenario.overhead_seconds)
            agreed = min(agreeing - (output - corrected), ahead + 1)
            accepted = min(agreed, ahead)
            emitted = min(accepted + 1, tokens - output)
            used = min(agreed, emitted)
            rows.append(Step(context, ahead, accepted, emitted, used, start, drafting, verifying))
            output += emitted
            if agreed <= ahead:
                corrected = output
                agreeing = agreeing_tokens(uniform, chances, corrected)

    env.process(request())
    env.run()
    return pearl_run(scenario, rows)


def pearl_run(scenario: Scenario, rows: list[Step]) -> TopologyRun:
    """The steps as a table and in figures."""
    columns: dict[str, Any] = dict(zip(Step._fields, map(np.array, zip(*rows, strict=True)), strict=True))
    used, drafting = columns.pop("used"), columns.pop("drafting_seconds")
    emitted, verifying = columns["emitted"], columns["verify_seconds"]
    exposed = np.maximum(drafting - verifying, 0.0)
    table = make_rounds(
        request_id="0",
        round_index=np.arange(len(rows)),
        batch=1,
        gamma=scenario.gamma,
        cut=emitted <= columns["accepted"],
        draft_seconds=exposed,
        other_seconds=scenario.overhead_seconds,
        **labels(scenario),
        **columns,
    )
    wall = exposed + verifying + scenario.overhead_seconds
    drafted = scenario.gamma * len(rows)
    summary = summarise_request(scenario, emitted, wall, Forwards(drafted, drafted - int(used.sum()), len(rows), 0))
    summary["post_verify_share"] = float((columns["drafted"] > 0).mean())
    summary["draft_utilisation"] = float(drafting.sum() / wall.sum())
    summary["target_utilisation"] = float(verifying.sum() / wall.sum())
    return TopologyRun(table, summary)
