"""A server under load: what it runs, on what, for whom."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from sim.acceptance import AcceptanceModel, MarkovAcceptance, TraceAcceptance
from sim.confidence import ConfidenceAcceptance
from sim.controllers import Controller, FixedGamma
from sim.hardware import Link
from sim.latency import LatencyModel
from sim.theory import check_cost
from sim.trees import TokenTree
from sim.workload import Workload


@dataclass(frozen=True)
class Speculation:
    """How a server drafts, and how much of a draft the target accepts."""

    policy: Controller | TokenTree
    """what chooses each step's draft length, one for all requests of the step; or the tree that every step drafts"""
    acceptance: AcceptanceModel
    draft: LatencyModel | None = None
    """None: no draft forwards (a lookup, priced by proposal_seconds)"""
    proposal_seconds: float = 0.0
    """host time of every drafting step's lookup; counts as draft time"""
    link: Link | None = None
    """between the draft's devices and the target's; None: they are the same devices"""
    bytes_per_drafted_token: float = 4.0
    """what crosses the link for each drafted token: its id, and its probabilities where the draft samples"""

    def __post_init__(self) -> None:
        for name in ("proposal_seconds", "bytes_per_drafted_token"):
            check_cost(name, getattr(self, name))
        if isinstance(self.policy, TokenTree):
            return
        if isinstance(self.acceptance, MarkovAcceptance) and not self.steady:
            raise ValueError(
                f"MarkovAcceptance needs one draft length, got {type(self.policy).__name__}; its state is whether the "
                "last draft was accepted whole"
            )
        if self.policy.stops_early and not isinstance(self.acceptance, ConfidenceAcceptance):
            raise ValueError(
                f"{type(self.policy).__name__} stops by the draft's confidence, which {type(self.acceptance).__name__} "
                "does not draw; give ConfidenceAcceptance, or another policy"
            )

    @property
    def max_gamma(self) -> int:
        """Most tokens that a step drafts for one request."""
        return self.policy.size if isinstance(self.policy, TokenTree) else self.policy.max_gamma

    @property
    def steady(self) -> bool:
        """Whether every step drafts alike, so that steps can be planned ahead."""
        return isinstance(self.policy, TokenTree | FixedGamma)

    @property
    def by_position(self) -> bool:
        """Whether acceptance goes by the output position of a round instead of its number in the request."""
        return isinstance(self.acceptance, TraceAcceptance) and not self.steady


@dataclass(frozen=True)
class Prefill:
    """How prompts are read."""

    mode: Literal["whole", "chunked", "disaggregated"] = "whole"
    """whole prompts before any decoding; chunks that share each step with decoding; or devices of their own"""
    tokens: int = 8192
    """most prompt tokens of a whole step (a longer prompt goes alone), or most tokens of a chunked step, decoding's
    included"""
    devices: int = 1
    """prefill devices of a disaggregated server, one prompt each at a time"""
    link: Link | None = None
    """what the KV cache of a disaggregated prompt crosses; None: it takes no time"""
    kv_bytes_per_token: float = 0.0
    """what crosses it, per token of prompt"""

    def __post_init__(self) -> None:
        if self.mode not in ("whole", "chunked", "disaggregated"):
            raise ValueError(f"prefill mode must be 'whole', 'chunked' or 'disaggregated', got {self.mode!r}")
        for name in ("tokens", "devices"):
            check_whole(f"prefill {name}", getattr(self, name), 1)
        check_cost("kv_bytes_per_token", self.kv_bytes_per_token)


@dataclass(frozen=True)
class Objective:
    """What a request must meet to count as goodput; None asks nothing."""

    ttft_seconds: float | None = None
    tpot_seconds: float | None = None
    latency_seconds: float | None = None
    """from arrival to the last token"""

    def __post_init__(self) -> None:
        for name in ("ttft_seconds", "tpot_seconds", "latency_seconds"):
            if getattr(self, name) is not None:
                check_cost(name, getattr(self, name))


@dataclass(frozen=True)
class ServingScenario:
    """One server, or several alike behind one queue each, and the requests that come to them."""

    target: LatencyModel
    workload: Workload
    speculation: Speculation | None = None
    batch_limit: int = 256
    """requests that a replica holds at once, those being prefilled included"""
    kv_tokens: int | None = None
    """tokens that a replica's KV memory holds; None: as many as it takes"""
    block_tokens: int = 16
    """tokens of one KV block; a request holds whole blocks"""
    prefill: Prefill = field(default_factory=Prefill)
    overhead_seconds: float = 0.0
    """host time of every step: scheduling, sampling, acceptance"""
    replicas: int = 1
    route: Literal["round_robin", "least_busy"] = "round_robin"
    """which replica an arriving request goes to: each in turn, or the one with the fewest unfinished requests"""
    objective: Objective = field(default_factory=Objective)

    def __post_init__(self) -> None:
        for name in ("batch_limit", "block_tokens", "replicas"):
            check_whole(name, getattr(self, name), 1)
        check_cost("overhead_seconds", self.overhead_seconds)
        if self.route not in ("round_robin", "least_busy"):
            raise ValueError(f"route must be 'round_robin' or 'least_busy', got {self.route!r}")
        if self.kv_tokens is not None:
            check_whole("kv_tokens", self.kv_tokens, 1)
            # the last round starts at least one token before the end, and holds what it drafts as well
            longest = self.workload.prompt_tokens + self.workload.output_tokens + self.max_gamma
            worst = int(np.argmax(longest))
            if self.blocks(longest[worst]) > self.kv_blocks:
                raise ValueError(
                    f"request {worst} grows to {longest[worst]} tokens with its draft, but the KV memory holds "
                    f"{self.kv_blocks * self.block_tokens}; give more memory, or drop requests that long"
                )

    @property
    def max_gamma(self) -> int:
        """Most tokens that a step drafts for one request; 0 without speculation."""
        return 0 if self.speculation is None else self.speculation.max_gamma

    @property
    def kv_blocks(self) -> float:
        """Whole blocks of KV memory; infinite where it is not limited."""
        return np.inf if self.kv_tokens is None else self.kv_tokens // self.block_tokens

    def blocks(self, tokens: int | np.integer | np.ndarray) -> np.ndarray:
        """Whole blocks that hold so many tokens."""
        return -(-np.asarray(tokens) // self.block_tokens)

    def without_speculation(self) -> ServingScenario:
        """The same server and requests, decoding token by token."""
        return replace(self, speculation=None)


def check_whole(name: str, value: float, least: int) -> None:
    """Check that a value is a whole number, and not too small."""
    if value < least or value != int(value):
        raise ValueError(f"{name} must be a whole number >= {least}, got {value}")
