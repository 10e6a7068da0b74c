"""Distributed speculative inference: one draft, and several target servers whose forwards overlap.

Timor et al., "Distributed Speculative Inference (DSI): Speculation Parallelism for Provably Faster Lossless Language
Model Inference" (ICLR 2025, arXiv:2405.14105), Algorithm 1 with one draft. The draft never waits: it goes on from its
own tokens while target forwards over longer and longer prefixes of them run on the servers. A forward's verdict is on
every drafted token in it and on the one after. The first token that it finds wrong ends all that follows from it, and
everybody starts again from the target's token.

The lookahead (gamma here) thins the forwards out: one starts whenever so many more tokens are drafted and a server is
free. Besides, one starts on all that is drafted whenever none is running: the algorithm's current verifier. So where a
forward takes the same time however much it verifies, no output comes later than from the target alone (Theorem 1),
however few the servers. Where the target gives a token before the draft does, the draft starts again from there.

On the servers of eq. 1 (`sim.topologies.theory.dsi_servers`) no block waits where drafting it takes no longer than a
forward; where it takes longer, that takes two servers, and a request's last block, if it is a shorter one, takes one
more. Expected latency is then at most that of draft-then-verify rounds (Theorem 2). Servers share what is verified: a
forward computes what was drafted since the speculation began, and the token before.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Generator, Iterator
from typing import Any, NamedTuple

import numpy as np
import simpy

from sim.records import make_rounds
from sim.scenario import Scenario
from sim.topologies.run import (
    Forwards,
    TopologyRun,
    agreeing_tokens,
    agreement_chances,
    check_apart,
    labels,
    successive_starts,
    summarise_request,
)

SAME_INSTANT = 1 + 1e-9
"""times that differ by less than this factor are one: sums of the same seconds in another order"""


class Speculation(NamedTuple):
    """What came of one speculation: a row of the round table."""

    context: int
    drafted: int
    """drafted tokens in the forward whose verdict ended it"""
    accepted: int
    draft_seconds: float
    """until these were drafted"""
    verify_seconds: float
    """of that forward"""
    wall_seconds: float
    draft_forwards: int
    target_forwards: int
    useful_forwards: int
    """target forwards that gave a token of the output"""


class Running(NamedTuple):
    """A target forward under way."""

    process: simpy.Process
    reach: int
    """drafted tokens in it"""
    verify_seconds: float


def next_reach(reach: int, lookahead: int, limit: int) -> int:
    """Drafted tokens that the next forward waits for, after one with `reach`: the next block's end, or the last."""
    return min((reach // lookahead + 1) * lookahead, limit)


def drafted_by(ready: list[float], seconds: float) -> int:
    """How many tokens are drafted after so many seconds, given when each is ready."""
    return bisect_right(ready, seconds * SAME_INSTANT)


def dsi(scenario: Scenario, target_servers: int, seed: int | np.random.Generator) -> TopologyRun:
    """Simulate one request with distributed speculative inference.

    A row of the table is one speculation: from the target's token that everybody starts from to the next one that the
    draft did not foresee. Its verify_seconds are those of the forward that found it, its draft_seconds those until this
    forward's tokens were drafted; everything between is hidden behind the two.

    Args:
        scenario: one request with draft_device "own", max_new_tokens, and iid or per-position acceptance (positions
            count from the last correction). gamma is the lookahead. No draft reaches beyond max_new_tokens.
        target_servers: target forwards that can run at once, the paper's SP degree.
        seed: the run's seed, or a generator to draw from; one random number per output token.

    Returns:
        A round table, and the figures of `summarise_request`.

    Raises:
        ValueError: the scenario has something that is not simulated here, or target_servers is below 1.
    """
    draft, tokens = check_apart("dsi", scenario, counted_in_tokens=True), scenario.max_new_tokens or 0
    if target_servers < 1 or target_servers != int(target_servers):
        raise ValueError(f"target_servers must be a whole number >= 1, got {target_servers}")
    chances = agreement_chances("dsi", scenario.acceptance, tokens)
    uniform = np.random.default_rng(seed).random(tokens)
    rows: list[Speculation] = []
    output = 0
    while output < tokens:
        context = scenario.prompt_tokens + output
        # the last token is the target's in any case
        limit = tokens - output - 1
        ready = np.cumsum(draft.forward_seconds(1, 1, context + np.arange(limit))).tolist()
        agreeing = min(agreeing_tokens(uniform, chances, output), limit)
        # a speculation leaves nothing running behind, so each has a clock of its own, exact however long the run
        env = simpy.Environment()
        servers = simpy.Resource(env, target_servers)
        ending = env.process(speculate(env, servers, scenario, context, ready, agreeing))
        row: Speculation = env.run(until=ending)
        rows.append(row)
        output += row.accepted + 1
    return dsi_run(scenario, rows)


def speculate(
    env: simpy.Environment,
    servers: simpy.Resource,
    scenario: Scenario,
    context: int,
    ready: list[float],
    agreeing: int,
) -> Generator[simpy.Event, Any, Speculation]:
    """Draft and verify until the target gives a token that the draft has not.

    Args:
        env: the speculation's clock, from 0.
        servers: the target's.
        scenario: what is simulated.
        context: verified tokens, prompt included.
        ready: seconds until each token that may be drafted is.
        agreeing: how many of these agree with the target before one does not.

    Returns:
        The `Speculation`.
    """
    limit = len(ready)
    running: list[Running] = []
    started = useful = 0
    reach = -1
    while True:
        drafted = drafted_by(ready, env.now)
        due = next_reach(reach, scenario.gamma, limit)
        free = reach < limit and len(running) < servers.capacity
        if not running or (free and drafted >= due):
            reach = drafted
            verifying = float(scenario.target.forward_seconds(1, reach + 1, context))
            process = env.process(forward(env, servers, verifying + scenario.overhead_seconds))
            running.append(Running(process, reach, verifying))
            started += 1
            continue
        waits = [one.process for one in running]
        if free:
            waits.append(env.timeout(max(0.0, ready[due - 1] - env.now)))
        yield simpy.AnyOf(env, waits)
        given = [i for i, one in enumerate(running) if not one.process.is_alive]
        if not given:
            continue
        verdict = running[given[-1]]
        useful += 1
        drafted = drafted_by(ready, env.now)
        if agreeing <= verdict.reach or verdict.reach + 1 > drafted:
            draft_seconds = ready[verdict.reach - 1] if verdict.reach else 0.0
            accepted = min(agreeing, verdict.reach)
            seconds = draft_seconds, verdict.verify_seconds, env.now
            return Speculation(context, verdict.reach, accepted, *seconds, min(drafted + 1, limit), started, useful)
        # a forward that started earlier and still runs would say nothing new
        for late in running[: given[-1]]:
            if late.process.is_alive:
                late.process.interrupt()
        running = running[given[-1] + 1 :]


def forward(env: simpy.Environment, servers: simpy.Resource, seconds: float) -> Iterator[simpy.Event]:
    """One target forward on one server, given up at once where a verdict makes it useless."""
    with servers.request() as server:
        try:
            yield server
            yield env.timeout(seconds)
        except simpy.Interrupt:
            return


def dsi_run(scenario: Scenario, rows: list[Speculation]) -> TopologyRun:
    """The speculations as a table and in figures."""
    columns: dict[str, Any] = dict(zip(Speculation._fields, map(np.array, zip(*rows, strict=True)), strict=True))
    drafts, started, useful = (columns.pop(f"{name}_forwards") for name in ("draft", "target", "useful"))
    wall, emitted = columns.pop("wall_seconds"), columns["accepted"] + 1
    # what is neither of the two is overhead, and waiting for a server; a sum's rounding is neither
    other = np.maximum(wall - columns["draft_seconds"] - columns["verify_seconds"], 0.0)
    table = make_rounds(
        request_id="0",
        round_index=np.arange(len(rows)),
        batch=1,
        gamma=max((scenario.max_new_tokens or 0) - 1, 1),
        emitted=emitted,
        cut=False,
        start_seconds=successive_starts(wall),
        other_seconds=other,
        **labels(scenario),
        **columns,
    )
    forwards = Forwards(
        int(drafts.sum()),
        int(drafts.sum() - columns["accepted"].sum()),
        int(started.sum()),
        int(started.sum() - useful.sum()),
    )
    return TopologyRun(table, summarise_request(scenario, emitted, wall, forwards))
