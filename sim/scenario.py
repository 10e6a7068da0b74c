"""What to simulate: devices, what is drafted, what is accepted of it, and how much to generate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sim.acceptance import AcceptanceModel, IidAcceptance, MarkovAcceptance
from sim.confidence import ConfidenceAcceptance
from sim.controllers import Controller
from sim.latency import ConstantLatency, LatencyModel, TableLatency
from sim.theory import check_cost, check_gamma
from sim.tree_acceptance import TreeAcceptance
from sim.trees import TokenTree


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
    controller: Controller | None = None
    """what chooses each round's draft length, request after request; None: always gamma. Runs use a copy of it"""
    tree: TokenTree | None = None
    """what every round drafts, instead of a chain of gamma tokens; its acceptance is a `TreeAcceptance`"""

    def __post_init__(self) -> None:
        check_gamma(self.gamma)
        check_tree(self.tree, self.gamma, self.controller, self.acceptance)
        if self.controller is not None:
            check_controller(self.controller, self.gamma, self.acceptance)
        if self.max_gamma > 0 and self.acceptance is None:
            raise ValueError(
                f"gamma {self.max_gamma} needs an acceptance model, got None; gamma=0 decodes autoregressively"
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
    def max_gamma(self) -> int:
        """Most tokens that a round may draft."""
        if self.tree is not None:
            return self.tree.size
        return self.gamma if self.controller is None else self.controller.max_gamma

    @property
    def contends(self) -> bool:
        """Whether a request can find a device busy with another one."""
        return self.requests > 1 and self.request_devices == "shared"


def check_tree(
    tree: TokenTree | None, gamma: int, controller: Controller | None, acceptance: AcceptanceModel | None
) -> None:
    """Check that a tree is all that decides what is drafted, and that acceptance is that tree's.

    Raises:
        ValueError: naming what does not fit the tree, or that a tree's acceptance lacks it.
    """
    if tree is None:
        if isinstance(acceptance, TreeAcceptance):
            raise ValueError(f"TreeAcceptance needs its tree drafted; give tree={acceptance.tree} to the scenario too")
        return
    if gamma != 0 or controller is not None:
        raise ValueError(f"tree {tree} fixes what is drafted; leave gamma {gamma} and controller {controller} out")
    if tree.size and (not isinstance(acceptance, TreeAcceptance) or acceptance.tree != tree):
        given = f"that of {acceptance.tree}" if isinstance(acceptance, TreeAcceptance) else type(acceptance).__name__
        raise ValueError(f"tree {tree} needs the TreeAcceptance of the same tree, got {given}")


def check_controller(controller: Controller, gamma: int, acceptance: AcceptanceModel | None) -> None:
    """Check that the simulator can let the controller choose.

    Raises:
        ValueError: a fixed gamma is given too, acceptance lacks the confidence by which the controller stops early, or
            it remembers draft lengths.
    """
    if gamma != 0:
        raise ValueError(
            f"give a controller or a gamma, got both (gamma {gamma}); FixedGamma({gamma}) is gamma {gamma}"
        )
    if controller.stops_early and not isinstance(acceptance, ConfidenceAcceptance):
        raise ValueError(
            f"{type(controller).__name__} stops by the draft's confidence, which {type(acceptance).__name__} does not "
            "draw; give ConfidenceAcceptance, or another controller"
        )
    if isinstance(acceptance, MarkovAcceptance):
        raise ValueError(
            "MarkovAcceptance needs one draft length: its state is whether the last draft was accepted whole; give "
            "gamma instead of a controller, or another acceptance model"
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
