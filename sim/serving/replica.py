"""One server, as a SimPy process: requests queue, prompts are read, batches decode step by step.

Batching is continuous: requests join and leave between steps. What a step does is arithmetic on arrays over its batch;
where nothing can join or leave, several steps are planned at once, and an arrival cuts the plan at the end of the step
that it falls into. The plan's length never changes a result.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import simpy

from sim.controllers import FixedGamma, RoundOutcome
from sim.serving.draws import AcceptanceRows
from sim.serving.log import PREFILL_DEVICES, ServingLog
from sim.serving.plan import Plan, plan_steps
from sim.serving.prices import Chunk, StepPrices
from sim.serving.scenario import ServingScenario
from sim.serving.slots import RequestDraws, Slots
from sim.trees import TokenTree

Process = Iterator[simpy.Event]

LONGEST_PLAN = 128
"""steps planned at once"""
WATERMARK = 0.01
"""share of KV memory that admission leaves free, so that running requests can grow (vLLM's default)"""


class Replica:
    """One server: a queue, slots for a batch, and KV memory."""

    def __init__(
        self,
        env: simpy.Environment,
        scenario: ServingScenario,
        log: ServingLog,
        rows: AcceptanceRows | None,
        index: int,
    ) -> None:
        self.env, self.scenario, self.log, self.rows, self.index = env, scenario, log, rows, index
        self.prices = StepPrices(scenario)
        self.slots = Slots(scenario.batch_limit, 0 if rows is None else int(scenario.workload.output_tokens.max()))
        self.policy = None if rows is None else deepcopy(rows.speculation.policy)
        if self.policy is not None and not isinstance(self.policy, TokenTree):
            self.policy.reset()
        self.plans_ahead = rows is None or rows.speculation.steady
        self.by_position = rows is not None and rows.speculation.by_position
        self.queue: deque[int] = deque()
        self.reading: deque[Reading] = deque()
        """prompts being prefilled, in order of admission"""
        self.unfinished = 0
        self.now = 0.0
        """the replica's own clock, free of the rounding of the event loop's relative times"""
        self.plan: Plan | None = None
        """steps that are passing"""
        self.plan_length = 1
        self.listening = False
        self.wake = env.event()
        self.last_emission: dict[int, float] = {}
        """of requests that hold no slot"""
        self.draws: dict[int, RequestDraws] = {}
        """of requests that were preempted"""
        self.prefill_devices = simpy.Resource(env, scenario.prefill.devices)
        self.process = env.process(self.run())

    # Requests come in

    def submit(self, request: int) -> None:
        """Take a request in."""
        self.unfinished += 1
        self.log.replica[request] = self.index
        if self.scenario.prefill.mode == "disaggregated":
            self.env.process(self.prefill_elsewhere(request))
        else:
            self.enqueue(request)

    def enqueue(self, request: int) -> None:
        """Put a request into the queue, and tell the server where it listens."""
        self.queue.append(request)
        if self.listening:
            self.listening = False
            self.process.interrupt()
        elif not self.wake.triggered:
            self.wake.succeed()

    def prefill_elsewhere(self, request: int) -> Process:
        """Read a prompt on a prefill device, and send its cache to the decoding server."""
        prefill, known = self.scenario.prefill, self.known_tokens(request)
        with self.prefill_devices.request() as turn:
            yield turn
            if np.isnan(self.log.admitted[request]):
                self.log.admitted[request] = max(self.env.now, self.log.workload.arrival_seconds[request])
            chunk = Chunk(1, known)
            seconds = self.prices.prefill(chunk)
            self.log.write_prefill(PREFILL_DEVICES, self.env.now, chunk, seconds, 0)
            yield self.env.timeout(seconds.total)
        self._emit_one(request, self.env.now)
        if self.log.emitted[request] == self.log.workload.output_tokens[request]:
            self._finish(request, self.env.now)
            return
        if prefill.link is not None:
            yield self.env.timeout(prefill.link.seconds(known * prefill.kv_bytes_per_token))
        self.enqueue(request)

    def unfinished_now(self) -> int:
        """Requests taken in and not finished, steps of the running plan that have ended included."""
        if self.plan is None:
            return self.unfinished
        ended = int(np.searchsorted(self.plan.ends[1:], self.env.now, side="right"))
        return self.unfinished - int((self.plan.emitted[:ended].sum(axis=0) >= self.slots.remaining).sum())

    # The server's loop

    def run(self) -> Process:
        """Serve for ever: admit what fits, then prefill or decode."""
        mode = self.scenario.prefill.mode
        while True:
            self.admit()
            if self.reading and mode == "whole":
                yield from self.read_whole_prompts()
            elif self.reading or self.slots.count:
                yield from self.decode()
            else:
                self.wake = self.env.event()
                yield self.wake
                self.now = max(self.now, self.env.now, self.log.workload.arrival_seconds[self.queue[0]])

    def admit(self) -> None:
        """Take requests out of the queue, in order, while there is a slot and memory for the next."""
        scenario = self.scenario
        tokens = 0
        while self.queue and self.slots.count + len(self.reading) < scenario.batch_limit:
            known = self.known_tokens(self.queue[0])
            if scenario.kv_tokens is not None and not self._has_room(known):
                break
            if scenario.prefill.mode == "whole" and self.reading and tokens + known > scenario.prefill.tokens:
                break
            tokens += known
            request = self.queue.popleft()
            if scenario.prefill.mode == "disaggregated":
                self._join(request)
                continue
            if np.isnan(self.log.admitted[request]):
                self.log.admitted[request] = self.now
            self.reading.append(Reading(request, known))

    def known_tokens(self, request: int) -> int:
        """Tokens of prompt and output so far: what prefill must read, again after a preemption."""
        return int(self.log.workload.prompt_tokens[request] + self.log.emitted[request])

    def read_whole_prompts(self) -> Process:
        """One step that reads the prompts just admitted; decoding waits."""
        chunk = Chunk(len(self.reading), sum(reading.tokens for reading in self.reading))
        seconds = self.prices.prefill(chunk)
        self.log.write_prefill(self.index, self.now, chunk, seconds, int(self.slots.context.sum()) + chunk.tokens)
        self.now += seconds.total
        yield self.env.timeout(max(0.0, self.now - self.env.now))
        while self.reading:
            self._first_token_here(self.reading.popleft().request)

    def decode(self) -> Process:
        """Plan steps, let them pass, and do what they do."""
        asked = self._next_gamma()
        while self._preempts(asked):
            asked = self._next_gamma()
            self.plan_length = 1  # what was freed may admit another after this step
        chunk, read = self._next_chunk(asked)
        steps = self.plan_length if self.plans_ahead and not self.reading else 1
        plan = self.plan = plan_steps(self.slots, self.prices, asked, chunk, self.now, steps, bool(self.queue))
        taken = len(plan.ends) - 1
        self.listening = taken > 1 and not self.queue
        try:
            yield self.env.timeout(max(0.0, plan.ends[-1] - self.env.now))
            self.plan_length = min(2 * taken, LONGEST_PLAN)
        except simpy.Interrupt:
            taken = min(taken, int(np.searchsorted(plan.ends[1:], self.env.now)) + 1)
            self.plan_length = taken + 1
            yield self.env.timeout(max(0.0, plan.ends[taken] - self.env.now))
        self.listening, self.plan = False, None
        self._commit(plan, taken, chunk)
        for reading, tokens in read:
            reading.done += tokens
            if reading.done == reading.tokens:
                self.reading.remove(reading)
                self._first_token_here(reading.request)

    # What a step does

    def _next_gamma(self) -> int:
        if self.policy is None or not self.slots.count:
            return 0
        if isinstance(self.policy, TokenTree):
            return self.policy.size
        if self.policy.foresees:
            self.policy.foresee(self.slots.upcoming(1, self.policy.max_gamma)[1][0])
        return self.policy.next_gamma(self.slots.count)

    def _next_chunk(self, asked: int) -> tuple[Chunk, list[tuple[Reading, int]]]:
        """The prompt tokens that the next step reads beside decoding, oldest prompts first."""
        budget = self.scenario.prefill.tokens - self.slots.count * (asked + 1)
        read = []
        for reading in self.reading:
            tokens = min(budget, reading.tokens - reading.done)
            if tokens <= 0:
                break
            read.append((reading, tokens))
            budget -= tokens
        return Chunk(len(read), sum(tokens for _, tokens in read), sum(reading.done for reading, _ in read)), read

    def _commit(self, plan: Plan, taken: int, chunk: Chunk) -> None:
        """Do what the first `taken` steps of a plan do."""
        slots, log = self.slots, self.log
        log.write_steps(self.index, plan, taken, chunk, sum(reading.tokens for reading in self.reading))
        self.now = float(plan.ends[taken])
        if not slots.count:
            return
        log.write_gaps(plan, taken, slots.last_emission)
        rounds, drafted, accepted, emitted = (
            part[:taken].sum(axis=0) for part in (plan.active, plan.drafted, plan.accepted, plan.emitted)
        )
        slots.advance(emitted, rounds, drafted, accepted, self.by_position)
        slots.last_emission[:] = plan.ends[rounds]
        if self.policy is not None and not isinstance(self.policy, TokenTree | FixedGamma):
            self.policy.observe(RoundOutcome(plan.asked, drafted, accepted, emitted, self.now - plan.ends[0]))
        done = slots.remaining == 0
        if done.any():
            for slot in np.flatnonzero(done).tolist():
                self._leave(slot)
                self._finish(int(slots.request[slot]), float(slots.last_emission[slot]))
            slots.keep(~done)

    # Requests come and go

    def _first_token_here(self, request: int) -> None:
        """A prompt has been read, which yields one token; the request decodes from the next step on."""
        self._emit_one(request, self.now)
        if self.log.emitted[request] == self.log.workload.output_tokens[request]:
            self._finish(request, self.now)
        else:
            self._join(request)

    def _emit_one(self, request: int, now: float) -> None:
        """The token that prefill yields: the request's first, or the next one after a preemption."""
        log = self.log
        if np.isnan(log.first_token[request]):
            log.first_token[request] = now
        else:
            log.gaps.append(1, end_seconds=now, seconds=now - self.last_emission[request], count=1)
        log.emitted[request] += 1
        self.last_emission[request] = now

    def _join(self, request: int) -> None:
        log, draws = self.log, None
        if self.rows is not None:
            draws = self.draws.pop(request, None) or self.rows.take(request)
        self.slots.join(
            request,
            context=self.known_tokens(request),
            remaining=int(log.workload.output_tokens[request] - log.emitted[request]),
            turn=int((log.emitted if self.by_position else log.rounds)[request]),
            last_emission=self.last_emission.pop(request),
            draws=draws,
        )

    def _leave(self, slot: int) -> None:
        """Add what a request did while it held this slot to its record."""
        slots, log, request = self.slots, self.log, int(self.slots.request[slot])
        emitted = log.workload.output_tokens[request] - slots.remaining[slot]
        log.round_tokens[request] += emitted - log.emitted[request]
        log.emitted[request] = emitted
        for name in ("rounds", "drafted", "accepted"):
            getattr(log, name)[request] += getattr(slots, name)[slot]

    def _finish(self, request: int, now: float) -> None:
        self.log.finished[request] = now
        self.unfinished -= 1

    def _has_room(self, tokens: int) -> bool:
        """Whether another request of so many tokens fits beside those that hold memory."""
        scenario = self.scenario
        extra = self.scenario.max_gamma + 1
        held = scenario.blocks(self.slots.context + extra).sum()
        held += sum(int(scenario.blocks(reading.tokens + extra)) for reading in self.reading)
        spare = WATERMARK * scenario.kv_blocks if held else 0.0
        return bool(held + scenario.blocks(tokens + extra) <= scenario.kv_blocks - spare)

    def _preempts(self, asked: int) -> bool:
        """Make room where the next step does not fit: the request admitted last goes back to the queue's front."""
        scenario = self.scenario
        if scenario.kv_tokens is None:
            return False
        held = scenario.blocks(self.slots.context + asked + 1).sum()
        held += sum(int(scenario.blocks(reading.tokens)) for reading in self.reading)
        if held <= scenario.kv_blocks:
            return False
        if self.reading:
            request = self.reading.pop().request
        else:
            slot = self.slots.count - 1
            request = int(self.slots.request[slot])
            self._leave(slot)
            self.last_emission[request] = float(self.slots.last_emission[slot])
            if self.rows is not None:
                self.draws[request] = self.slots.draws_of(slot)
            self.slots.keep(np.arange(self.slots.count) != slot)
        self.log.preemptions[request] += 1
        if scenario.prefill.mode == "disaggregated":
            self.env.process(self.prefill_elsewhere(request))
        else:
            self.queue.appendleft(request)
        return True


@dataclass
class Reading:
    """A prompt that is being prefilled."""

    request: int
    tokens: int
    done: int = 0
