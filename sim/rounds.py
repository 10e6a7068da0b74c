"""What each round of a scenario does: tokens and service times, before any clock runs.

What a round drafts, emits and costs never depends on when it runs, so whole runs are planned in bulk; only the clock
(`sim.engine`) differs between requests that contend and requests that do not.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sim.acceptance import Draws, IntArray, TraceAcceptance
from sim.confidence import ConfidenceAcceptance
from sim.controllers import Controller, RoundOutcome
from sim.latency import burst_seconds
from sim.records import make_rounds
from sim.scenario import Scenario
from sim.theory import FloatArray
from sim.tree_acceptance import tree_seconds


@dataclass(frozen=True)
class Rounds:
    """Rounds as arrays, request after request [sum of counts]; the lean form of a round table."""

    gamma: int
    """draft length asked for, or the longest that a controller may ask for"""
    counts: IntArray
    """rounds of each request [requests]"""
    context: IntArray
    drafted: IntArray
    accepted: IntArray
    emitted: IntArray
    draft_seconds: FloatArray
    verify_seconds: FloatArray
    overhead_seconds: float
    waiting_seconds: FloatArray
    """time spent waiting for busy devices"""
    start_seconds: FloatArray

    @property
    def busy_seconds(self) -> FloatArray:
        """Wall time of each round without waiting."""
        busy = distinct(self.draft_seconds) + distinct(self.verify_seconds) + self.overhead_seconds
        return np.broadcast_to(busy, self.context.shape)

    @property
    def wall_seconds(self) -> FloatArray:
        """Wall time of each round."""
        return self.busy_seconds + self.waiting_seconds

    @property
    def offsets(self) -> IntArray:
        """Where each request's rounds start [requests]."""
        return np.cumsum(self.counts) - self.counts


def plan_rounds(scenario: Scenario, rng: np.random.Generator) -> Rounds:
    """Draw every round of every request and price it; the clock has not run yet (no waiting, all starts at 0)."""
    if scenario.controller is not None:
        return plan_controlled(scenario, scenario.controller, rng)
    # a round emits at least one token, so max_new_tokens rounds are always enough
    shape = (scenario.requests, scenario.rounds or scenario.max_new_tokens or 0)
    drafted, accepted = draw_rounds(scenario, rng, shape)
    emitted = accepted + 1
    output: IntArray = np.zeros(shape, dtype=np.int64)
    np.cumsum(emitted[:, :-1], axis=1, out=output[:, 1:])
    counts = np.full(shape[0], shape[1])
    if scenario.max_new_tokens is not None:
        happens = output < scenario.max_new_tokens
        counts = happens.sum(axis=1)
        drafted, accepted, output = (column[happens] for column in (drafted, accepted, output))
        remaining = scenario.max_new_tokens - output
        if scenario.last_round == "shortened":
            # a tree is drafted whole or not at all
            room = remaining - 1 if scenario.tree is None else np.where(remaining > 1, scenario.tree.size, 0)
            drafted = np.minimum(drafted, room)
            accepted = np.minimum(accepted, drafted)
        emitted = np.minimum(accepted + 1, remaining)
    drafted, accepted, emitted, output = (column.reshape(-1) for column in (drafted, accepted, emitted, output))
    return price_rounds(scenario, counts, output, scenario.max_gamma, drafted, accepted, emitted)


def draw_rounds(scenario: Scenario, rng: np.random.Generator, shape: tuple[int, int]) -> Draws:
    """Rounds at the longest draft length [requests, rounds]."""
    if scenario.max_gamma > 0 and scenario.acceptance is not None:
        return scenario.acceptance.sample(rng, scenario.max_gamma, shape[1], shape[0])
    nothing = np.broadcast_to(np.int64(0), shape)
    return Draws(nothing, nothing)


def plan_controlled(scenario: Scenario, controller: Controller, rng: np.random.Generator) -> Rounds:
    """`plan_rounds` where a controller chooses each draft length, and learns from each round before the next.

    Every round is drawn at the longest length, and a shorter draft accepts what fits of it, since the target accepts a
    prefix. So controllers with one longest length are compared on the same random numbers.
    """
    controller = deepcopy(controller)
    limit = scenario.rounds or scenario.max_new_tokens or 0
    acceptance, gamma = scenario.acceptance, scenario.max_gamma
    if isinstance(acceptance, TraceAcceptance):
        positions = limit if scenario.rounds is None else limit * (gamma + 1)
        draws = acceptance.sample_positions(gamma, positions, scenario.requests)
    elif isinstance(acceptance, ConfidenceAcceptance) and controller.stops_early:
        draws = acceptance.sample_confident(rng, gamma, limit, scenario.requests, controller.keep_drafting)
    else:
        draws = draw_rounds(scenario, rng, (scenario.requests, limit))
    requests = [list(controlled_rounds(scenario, controller, *longest)) for longest in zip(*draws, strict=True)]
    columns = np.array([row for request in requests for row in request], dtype=np.int64).T
    return price_rounds(scenario, np.array([len(request) for request in requests]), *columns)


def controlled_rounds(
    scenario: Scenario, controller: Controller, drafts: IntArray, accepts: IntArray
) -> Iterator[tuple[int, int, int, int, int]]:
    """The rounds of one request: tokens of output before it, asked for, drafted, accepted and emitted.

    Args:
        scenario: what to simulate.
        controller: what chooses the lengths; it learns.
        drafts: tokens drafted at the longest length [rounds], or [output positions] for a trace.
        accepts: tokens of these accepted.
    """
    controller.reset()
    by_position = isinstance(scenario.acceptance, TraceAcceptance)
    rounds, tokens = (np.inf if most is None else most for most in (scenario.rounds, scenario.max_new_tokens))
    output = k = 0
    while k < rounds and output < tokens:
        place = output if by_position else k
        room = tokens - output
        if controller.foresees:
            controller.foresee(np.array([min(int(accepts[place]), room - 1)], dtype=np.int64))
        gamma = controller.next_gamma()
        if not 0 <= gamma <= scenario.max_gamma:
            raise ValueError(
                f"the controller asked for {gamma} tokens, but its max_gamma is {scenario.max_gamma}; raise it"
            )
        drafted = min(gamma, int(drafts[place]))
        if scenario.last_round == "shortened":
            drafted = int(min(drafted, room - 1))
        accepted = min(drafted, int(accepts[place]))
        emitted = int(min(accepted + 1, room))
        seconds = np.sum(service_seconds(scenario, gamma, drafted, scenario.prompt_tokens + output))
        controller.observe(RoundOutcome(gamma, drafted, accepted, emitted, float(seconds) + scenario.overhead_seconds))
        yield output, gamma, drafted, accepted, emitted
        output += emitted
        k += 1


def plan_baseline(scenario: Scenario, tokens: IntArray) -> Rounds:
    """Autoregressive decoding of the same output at the same contexts, one round per token.

    Args:
        scenario: the speculative scenario; its target and overhead price each step.
        tokens: output tokens of each request [requests].
    """
    output = np.arange(tokens.sum()) - np.repeat(np.cumsum(tokens) - tokens, tokens)
    nothing = np.broadcast_to(np.int64(0), output.shape)
    steps = replace(scenario, gamma=0, controller=None, tree=None, acceptance=None)
    return price_rounds(steps, tokens, output, 0, nothing, nothing, nothing + 1)


def price_rounds(
    scenario: Scenario,
    counts: IntArray,
    output: IntArray,
    asked: int | IntArray,
    drafted: IntArray,
    accepted: IntArray,
    emitted: IntArray,
) -> Rounds:
    """Service times of rounds that ask for `asked` tokens after `output` emitted ones; flat, request after request."""
    context = output + scenario.prompt_tokens if scenario.prompt_tokens else output
    drafting, verifying = service_seconds(scenario, asked, distinct(drafted), context)
    nothing = np.broadcast_to(np.float64(0), drafted.shape)
    return Rounds(
        gamma=scenario.max_gamma,
        counts=counts,
        context=context,
        drafted=drafted,
        accepted=accepted,
        emitted=emitted,
        draft_seconds=np.broadcast_to(drafting, drafted.shape),
        verify_seconds=np.broadcast_to(verifying, drafted.shape),
        overhead_seconds=scenario.overhead_seconds,
        waiting_seconds=nothing,
        start_seconds=nothing,
    )


def service_seconds(
    scenario: Scenario, asked: int | IntArray, drafted: int | IntArray, context: int | IntArray
) -> tuple[FloatArray, FloatArray]:
    """Draft time, lookup included, and verification time of rounds with known contexts; arguments broadcast."""
    drafting: FloatArray
    if scenario.draft is None:
        drafting = np.zeros(())
    elif scenario.tree is None:
        drafting = burst_seconds(scenario.draft, drafted, context)
    else:
        drafting = np.where(np.greater(drafted, 0), tree_seconds(scenario.draft, scenario.tree, context), 0.0)
    lookup = np.where(np.greater(asked, 0), scenario.proposal_seconds, 0.0)
    return drafting + lookup, scenario.target.forward_seconds(1, drafted + 1, context)


def distinct(column: NDArray[Any]) -> NDArray[Any]:
    """The column, or its first entry where it is a broadcast view of one number, so that arithmetic on it is free."""
    return column[:1] if column.strides == (0,) else column


def round_table(rounds: Rounds, scenario: Scenario) -> pd.DataFrame:
    """The round table of `sim.records`; waiting for a busy device is part of other_seconds."""
    labels: dict[str, Any] = {"draft": scenario.draft_name if rounds.gamma > 0 else "none"}
    labels |= {name: getattr(scenario, name) for name in ("category", "phase") if getattr(scenario, name) is not None}
    if scenario.tree is not None:
        labels["depth"] = np.where(rounds.drafted > 0, scenario.tree.depth, 0)
    requests = np.array([str(i) for i in range(len(rounds.counts))], dtype=object)
    return make_rounds(
        request_id=np.repeat(requests, rounds.counts),
        round_index=np.arange(len(rounds.context)) - np.repeat(rounds.offsets, rounds.counts),
        batch=1,
        context=rounds.context,
        gamma=rounds.gamma,
        drafted=rounds.drafted,
        accepted=rounds.accepted,
        emitted=rounds.emitted,
        cut=rounds.emitted <= rounds.accepted,
        start_seconds=rounds.start_seconds,
        draft_seconds=rounds.draft_seconds,
        verify_seconds=rounds.verify_seconds,
        other_seconds=rounds.overhead_seconds + rounds.waiting_seconds,
        **labels,
    )
