"""What to simulate, and what each of its rounds does: tokens and service times, before any clock runs.

What a round drafts, emits and costs never depends on when it runs, so whole runs are planned in bulk; only the clock
(`sim.engine`) differs between requests that contend and requests that do not.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sim.acceptance import AcceptanceModel, IidAcceptance, IntArray
from sim.latency import ConstantLatency, LatencyModel, TableLatency, burst_seconds
from sim.records import make_rounds
from sim.theory import FloatArray, check_cost, check_gamma


@dataclass(frozen=True)
class Scenario:
    """One configuration: devices, draft length, acceptance, and how much to generate.

    Prefill is excluded: the clock starts with the first round.
    """

    target: LatencyModel
    draft: LatencyModel | None = None
    """None: no draft forwards (a lookup, priced by `proposal_seconds`, or gamma 0)"""
    acceptance: AcceptanceModel | None = None
    gamma: int = 0
    """0: autoregressive decoding"""
    requests: int = 1
    prompt_tokens: int = 0
    rounds: int | None = None
    """rounds of each request; either this or max_new_tokens"""
    max_new_tokens: int | None = None
    """tokens of each request; never overshot"""
    last_round: Literal["cut", "shortened"] = "cut"
    """where max_new_tokens is near: draft as ever and cut what is too much, or draft at most the remaining tokens less
    one, as `real` does"""
    overhead_seconds: float = 0.0
    """host time of every round: sampling, acceptance, bookkeeping"""
    proposal_seconds: float = 0.0
    """host time of every speculative round's lookup; counts as draft time"""
    draft_device: Literal["shared", "own"] = "shared"
    """whether the draft runs on the target's device or on one of its own"""
    request_devices: Literal["shared", "own"] = "shared"
    """whether requests contend for one set of devices or each has its own"""
    draft_name: str = "draft"
    """label of the draft source in the round table"""
    category: str | None = None
    """label of the prompts' category in the round table"""
    phase: str | None = None
    """label in the round table: 'calibration' or 'evaluation'"""

    def __post_init__(self) -> None:
        check_gamma(self.gamma)
        if self.gamma > 0 and self.acceptance is None:
            raise ValueError(
                f"gamma {self.gamma} needs an acceptance model, got None; gamma=0 decodes autoregressively"
            )
        if (self.rounds is None) == (self.max_new_tokens is None):
            raise ValueError(
                f"give exactly one of rounds and max_new_tokens, got rounds={self.rounds} and "
                f"max_new_tokens={self.max_new_tokens}"
            )
        for name, least in (("requests", 1), ("rounds", 1), ("max_new_tokens", 1), ("prompt_tokens", 0)):
            value = getattr(self, name)
            if value is not None and (value < least or value != int(value)):
                raise ValueError(f"{name} must be a whole number >= {least}, got {value}")
        for name in ("overhead_seconds", "proposal_seconds"):
            check_cost(name, getattr(self, name))
        devices = ("shared", "own")
        for name, known in (
            ("draft_device", devices),
            ("request_devices", devices),
            ("last_round", ("cut", "shortened")),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be '{known[0]}' or '{known[1]}', got {getattr(self, name)!r}")

    @property
    def contends(self) -> bool:
        """Whether a request can find a device busy with another one."""
        return self.requests > 1 and self.request_devices == "shared"


@dataclass(frozen=True)
class Rounds:
    """Rounds as arrays, request after request [sum of counts]; the lean form of a round table."""

    gamma: int
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
    shape = (scenario.requests, scenario.rounds or scenario.max_new_tokens or 0)
    if scenario.gamma > 0 and scenario.acceptance is not None:
        # a round emits at least one token, so max_new_tokens rounds are always enough
        drafted, accepted = scenario.acceptance.sample(rng, scenario.gamma, shape[1], shape[0])
    else:
        drafted = accepted = np.broadcast_to(np.int64(0), shape)
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
            drafted = np.minimum(drafted, remaining - 1)
            accepted = np.minimum(accepted, drafted)
        emitted = np.minimum(accepted + 1, remaining)
    drafted, accepted, emitted, output = (column.reshape(-1) for column in (drafted, accepted, emitted, output))
    return price_rounds(scenario, counts, output, drafted, accepted, emitted)


def plan_baseline(scenario: Scenario, tokens: IntArray) -> Rounds:
    """Autoregressive decoding of the same output at the same contexts, one round per token.

    Args:
        scenario: the speculative scenario; its target and overhead price each step.
        tokens: output tokens of each request [requests].
    """
    output = np.arange(tokens.sum()) - np.repeat(np.cumsum(tokens) - tokens, tokens)
    nothing = np.broadcast_to(np.int64(0), output.shape)
    return price_rounds(replace(scenario, gamma=0), tokens, output, nothing, nothing, nothing + 1)


def price_rounds(
    scenario: Scenario, counts: IntArray, output: IntArray, drafted: IntArray, accepted: IntArray, emitted: IntArray
) -> Rounds:
    """Service times of rounds that start after `output` emitted tokens; all arrays are flat, request after request."""
    context = output + scenario.prompt_tokens if scenario.prompt_tokens else output
    lengths = distinct(drafted)
    nothing = np.broadcast_to(np.float64(0), drafted.shape)
    drafting = nothing[:1] if scenario.draft is None else burst_seconds(scenario.draft, lengths, context)
    lookup = scenario.proposal_seconds if scenario.gamma > 0 else 0.0
    return Rounds(
        gamma=scenario.gamma,
        counts=counts,
        context=context,
        drafted=drafted,
        accepted=accepted,
        emitted=emitted,
        draft_seconds=np.broadcast_to(drafting + lookup, drafted.shape),
        verify_seconds=np.broadcast_to(scenario.target.forward_seconds(1, lengths + 1, context), drafted.shape),
        overhead_seconds=scenario.overhead_seconds,
        waiting_seconds=nothing,
        start_seconds=nothing,
    )


def distinct(column: NDArray[Any]) -> NDArray[Any]:
    """The column, or its first entry where it is a broadcast view of one number, so that arithmetic on it is free."""
    return column[:1] if column.strides == (0,) else column


def round_table(rounds: Rounds, scenario: Scenario) -> pd.DataFrame:
    """The round table of `sim.records`; waiting for a busy device is part of other_seconds."""
    labels: dict[str, Any] = {"draft": scenario.draft_name if rounds.gamma > 0 else "none"}
    labels |= {name: getattr(scenario, name) for name in ("category", "phase") if getattr(scenario, name) is not None}
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


def ratio_scenario(
    alpha: float, gamma: int, cost_ratio: float, verify_ratio: float = 1.0, rounds: int = 100_000
) -> Scenario:
    """The closed forms' world: iid acceptance, and times in units of a target forward with one new token.

    Args:
        alpha: acceptance rate.
        gamma: draft length in tokens.
        cost_ratio: one draft forward / one target forward with one new token.
        verify_ratio: one target forward with gamma + 1 new tokens / with one.
        rounds: rounds to simulate.
    """
    target: LatencyModel = ConstantLatency(1.0)
    if verify_ratio != 1 and gamma > 0:
        points = {1: 1.0, gamma + 1: verify_ratio}
        rows = [{"batch": 1, "new_tokens": n, "context": 0, "seconds": s} for n, s in points.items()]
        target = TableLatency(rows)
    return Scenario(target, ConstantLatency(cost_ratio), IidAcceptance(alpha), gamma, rounds=rounds)
