"""Steps that a replica is about to take: as many as nothing can interrupt, priced."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sim.acceptance import IntArray
from sim.serving.prices import Chunk, StepPrices, StepSeconds
from sim.serving.scenario import ServingScenario
from sim.serving.slots import Slots
from sim.theory import FloatArray


@dataclass(frozen=True)
class Plan:
    """Steps that a replica is about to take, and what they do to the requests in its slots."""

    asked: int
    """draft length of each request"""
    seconds: StepSeconds
    ends: FloatArray
    """when the first step starts, then when each ends [steps + 1]"""
    context: IntArray
    """tokens known of requests that are not done [steps]"""
    active: NDArray[np.bool_]
    """requests that are not done before the step [steps, requests]"""
    drafted: IntArray
    """tokens, 0 where not active, as in the next two [steps, requests]"""
    accepted: IntArray
    emitted: IntArray


def plan_steps(
    slots: Slots, prices: StepPrices, asked: int, chunk: Chunk, now: float, steps: int, queued: bool
) -> Plan:
    """Plan up to `steps` steps, fewer where a decision comes before: a request done, or memory full.

    Args:
        slots: the requests that decode.
        prices: of the scenario.
        asked: draft length of each request.
        chunk: prompts that a single step reads along.
        now: when the first step starts, in seconds.
        steps: most steps to plan.
        queued: whether requests wait; then the first one done ends the plan, else the last.
    """
    drafted, accepted = slots.upcoming(steps, asked)
    emits = accepted + 1
    before = np.cumsum(emits, axis=0) - emits
    left = slots.remaining - before
    active = left > 0
    if steps > 1:
        goes_on = (left > emits).sum(axis=1)
        held = None if prices.scenario.kv_tokens is None else (slots.context + before + asked + 1, active)
        steps = undisturbed(goes_on, slots.count - 1 if queued else 0, prices.scenario, held)
        emits, accepted, before = emits[:steps], accepted[:steps], before[:steps]
        left, active = left[:steps], active[:steps]
    ragged = None if drafted is None else np.where(active, drafted[:steps], -1)
    batch = active.sum(axis=1)
    context = ((slots.context + before) * active).sum(axis=1)
    seconds = prices.decode(asked, ragged, batch, context, chunk)
    return Plan(
        asked=asked,
        seconds=seconds,
        ends=np.cumsum(np.concatenate([[now], seconds.draft + seconds.verify + seconds.other])),
        context=context,
        active=active,
        drafted=active * asked if ragged is None else np.maximum(ragged, 0),
        accepted=accepted * active,
        emitted=np.where(active, np.minimum(emits, left), 0),
    )


def undisturbed(
    goes_on: IntArray, last: int, scenario: ServingScenario, held: tuple[IntArray, NDArray[np.bool_]] | None
) -> int:
    """Steps before something must be decided, at least one.

    Args:
        goes_on: requests that are not done after each step [steps].
        last: with so many left or fewer, the plan ends.
        scenario: whose memory it is.
        held: tokens that each request holds memory for in a step, and whether it does [steps, requests]; None: memory
            is not limited. The first step is known to fit.
    """
    done = np.flatnonzero(goes_on <= last)
    steps = int(done[0]) + 1 if len(done) else len(goes_on)
    if held is not None:
        tokens, active = held
        full = np.flatnonzero((scenario.blocks(tokens) * active).sum(axis=1) > scenario.kv_blocks)
        steps = min(steps, int(full[0])) if len(full) else steps
    return steps
