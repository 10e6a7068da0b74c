"""What a plan's rounds cost: forwards priced by models of latency, or by the fits to a measured run.

Both give seconds of a step without speculation and of rounds of every draft length, for batches, row by row: row 0 is
the estimate, the other rows are draws from what is unknown of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike

from analysis.fit.costs import BaselineCosts, DraftCosts
from analysis.fit.latency import Index
from analysis.plan.acceptance import DraftLaw
from analysis.plan.batches import BatchFactors, draft_seconds
from analysis.pooling import Array
from sim.latency import LatencyModel, TableLatency, burst_seconds
from sim.roofline import RooflineLatency
from sim.theory import FloatArray, check_cost

FORWARD_ERROR, VERIFY_RATIO_ERROR = 0.039, 0.037
"""mean absolute error of the roofline's forwards on shapes that its fit did not see, and of their ratio to a forward
with one new token (sim/data/README.md, checkerboard)"""


class Prices(NamedTuple):
    """Seconds; rows may be 1 where all are the same."""

    step: Array
    """of a step without speculation [rows, batches]"""
    draft: Array
    """of a round's drafting, by draft length [rows, batches, gamma + 1], as the next two"""
    verify: Array
    other: Array

    @property
    def rounds(self) -> Array:
        """Whole rounds [rows, batches, gamma + 1]."""
        return self.draft + self.verify + self.other


class PlanCosts(Protocol):
    """Anything that prices rounds for a plan."""

    @property
    def spread(self) -> str | None:
        """What the rows' spread stands for; None where all rows are one."""
        ...

    @property
    def most_batch(self) -> float:
        """The largest batch whose price is known."""
        ...

    @property
    def most_gamma(self) -> float:
        """The longest draft whose price is known."""
        ...

    def price(self, law: DraftLaw, batch: Index, context: float) -> Prices:
        """Price steps and rounds for batches [batches] whose requests have so many tokens."""
        ...


@dataclass(frozen=True)
class CostRatio:
    """A LatencyModel of a draft head: its forward takes a share of the target's with one new token."""

    target: LatencyModel
    ratio: float

    def __post_init__(self) -> None:
        check_cost("draft cost ratio", self.ratio)

    def forward_seconds(self, batch: ArrayLike, new_tokens: ArrayLike, context: ArrayLike) -> FloatArray:
        """Seconds of one forward; see `LatencyModel`. New tokens count as one: a head's level is one forward."""
        return self.ratio * self.target.forward_seconds(batch, np.ones_like(np.asarray(new_tokens)), context)


@dataclass(frozen=True)
class ModelCosts:
    """Rounds priced by models of latency; the tokens of a batch's verification are those that were proposed."""

    target: LatencyModel
    draft: LatencyModel | None
    """None: no draft forwards (a lookup, priced by `proposal_seconds`)"""
    overhead_seconds: float = 0.0
    """host time of every round"""
    baseline_overhead_seconds: float | None = None
    """host time of every step without speculation; None: as a round's"""
    proposal_seconds: float = 0.0
    """host time of every lookup; counts as draft time"""
    verify_factor: Array = field(default_factory=lambda: np.ones(1))
    """on verifications [rows]: 1, then draws of the model's error"""
    draft_factor: Array = field(default_factory=lambda: np.ones(1))
    """on draft forwards [rows]"""

    def __post_init__(self) -> None:
        for name in ("overhead_seconds", "baseline_overhead_seconds", "proposal_seconds"):
            check_cost(name, getattr(self, name) or 0.0)

    @property
    def spread(self) -> str | None:
        """See `PlanCosts.spread`."""
        return None if len(self.verify_factor) == 1 else "the roofline's error on forwards that its fit did not see"

    @property
    def most_batch(self) -> float:
        """See `PlanCosts.most_batch`."""
        return min(measured_reach(model, axis=0) for model in (self.target, self.draft))

    @property
    def most_gamma(self) -> float:
        """See `PlanCosts.most_gamma`."""
        return measured_reach(self.target, axis=1) - 1

    def price(self, law: DraftLaw, batch: Index, context: float) -> Prices:
        """See `PlanCosts.price`."""
        asked = np.arange(law.max_gamma + 1)
        proposed = asked if law.drafted is None else law.drafted[0] @ asked
        requests = batch[:, None]
        step = self.target.forward_seconds(batch, 1, context)
        verify = self.target.forward_seconds(requests, proposed + 1, context)
        draft: Array = np.zeros(verify.shape)
        if self.draft is not None:
            draft = burst_seconds(self.draft, asked, context, requests)
            draft = draft if law.drafted is None else draft @ law.drafted[0].T
        plain = self.overhead_seconds if self.baseline_overhead_seconds is None else self.baseline_overhead_seconds
        return Prices(
            np.broadcast_to(step + plain, batch.shape)[None],
            draft * self.draft_factor[:, None, None] + self.proposal_seconds,
            verify * self.verify_factor[:, None, None],
            np.full((1, *verify.shape), self.overhead_seconds),
        )


def roofline_factors(
    target: LatencyModel, draft: LatencyModel | None, rng: np.random.Generator, draws: int
) -> dict[str, Array]:
    """`ModelCosts.verify_factor` and `draft_factor` for rooflines: log-normal, as wide as their errors were measured.

    One factor for all verifications, and one for all draft forwards over the target's steps, whose errors add up. A
    normal error of mean absolute size e has the standard deviation e * sqrt(pi / 2). Nothing for other models.
    """
    if not isinstance(target, RooflineLatency):
        return {}
    scale = np.sqrt(np.pi / 2) * rng.standard_normal((2, draws))
    draft_error = FORWARD_ERROR * np.sqrt(2) if isinstance(draft, RooflineLatency) else 0.0
    errors = {"verify_factor": VERIFY_RATIO_ERROR * scale[0], "draft_factor": draft_error * scale[1]}
    return {name: np.concatenate([[1.0], np.exp(error)]) for name, error in errors.items()}


def measured_reach(model: LatencyModel | None, axis: int) -> float:
    """The largest batch (axis 0) or number of new tokens (1) that a model answers for; infinite where it has no end."""
    if isinstance(model, CostRatio):
        return measured_reach(model.target, axis) if axis == 0 else np.inf
    if not isinstance(model, TableLatency) or model.extrapolate or len(model.axes[axis]) == 1:
        return np.inf
    return float(model.axes[axis][-1])


@dataclass(frozen=True)
class MeasuredCosts:
    """Rounds priced by the fits to a run of our own loop, which pads a batch to its longest draft.

    Forwards are priced at their batch, with the factors of the calibrated rounds (`analysis.fit.costs`), and with those
    of `analysis.plan.batches` where batches were measured.
    """

    baseline: BaselineCosts
    draft: DraftCosts
    factors: Mapping[int, BatchFactors] = field(default_factory=dict)
    """by batch, where rounds of that batch were measured too"""

    @property
    def spread(self) -> str | None:
        """See `PlanCosts.spread`."""
        return "latency, from repeated sweeps over forwards and from calibration rounds"

    @property
    def most_batch(self) -> float:
        """See `PlanCosts.most_batch`."""
        return float(self.baseline.forward.batch[-1])

    @property
    def most_gamma(self) -> float:
        """See `PlanCosts.most_gamma`."""
        return float(self.draft.verify.new_tokens[-1]) - 1

    def price(self, law: DraftLaw, batch: Index, context: float) -> Prices:
        """See `PlanCosts.price`."""
        width = np.arange(law.max_gamma + 1)
        requests, row = batch[:, None], np.arange(len(self.baseline.in_situ))
        rows = row[:, None, None]
        step = self.baseline.forward.at(row[:, None]).forward_seconds(batch, 1, context) + self.baseline.other_seconds
        parts = {
            "draft": draft_seconds(self.draft, requests, width, context, rows),
            "verify": self.draft.verify.at(rows).forward_seconds(requests, width + 1, context),
            "other": self.draft.other.seconds(width)[None, None],
        }
        chance = widest(law, batch)
        priced = (
            np.einsum("rbgk,rbk->rbg", *together(chance, part * self._factor(name, batch)[:, None]))
            for name, part in parts.items()
        )
        return Prices(step * self._factor("step", batch), *priced)

    def _factor(self, part: str, batch: Index) -> Array:
        """Of one part at every batch [batches]."""
        return np.array([getattr(self.factors.get(int(size), BatchFactors()), part) for size in batch])


def widest(law: DraftLaw, batch: Index) -> Array:
    """Chance that the longest draft of a batch has k tokens [rows, batches, gamma, k]; requests are independent."""
    if law.drafted is None:
        return np.eye(law.max_gamma + 1)[None, None]
    at_most = np.minimum(np.cumsum(law.drafted, axis=2), 1.0)[:, None] ** batch[:, None, None]
    return np.diff(at_most, axis=3, prepend=0.0)


def together(chance: Array, seconds: Array) -> tuple[Array, Array]:
    """Both with the same rows and batches."""
    lead = np.broadcast_shapes(chance.shape[:2], seconds.shape[:2])
    return np.broadcast_to(chance, (*lead, *chance.shape[2:])), np.broadcast_to(seconds, (*lead, seconds.shape[2]))
