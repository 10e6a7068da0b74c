"""What a round costs by batch and draft length, priced by models of latency: for controllers inside a simulation."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from sim.controllers.policy import check_max_gamma
from sim.latency import LatencyModel, burst_seconds
from sim.theory import FloatArray, check_cost


@dataclass(frozen=True)
class LatencyCosts:
    """Costs of a round for every batch, at one context; `RoundCosts` for `Goodput` and `Oracle`."""

    draft: LatencyModel | None
    """None: no draft forwards"""
    target: LatencyModel
    max_gamma: int
    """the longest draft to price"""
    context: float
    """tokens that each request is taken to have before the round, such as their mean over a run"""
    overhead_seconds: float = 0.0
    """host time of every round"""
    proposal_seconds: float = 0.0
    """host time of every round that drafts"""
    _known: dict[int, FloatArray] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_max_gamma(self.max_gamma)
        for name in ("context", "overhead_seconds", "proposal_seconds"):
            check_cost(name, getattr(self, name))

    def seconds(self, batch: int) -> FloatArray:
        """See `RoundCosts`; a batch is priced once.

        Raises:
            ValueError: a round takes no time, or the latency model does not reach that far.
        """
        if batch not in self._known:
            drafted = np.arange(self.max_gamma + 1)
            drafting = 0.0 if self.draft is None else burst_seconds(self.draft, drafted, self.context, batch)
            verifying = self.target.forward_seconds(batch, drafted + 1, self.context)
            seconds = drafting + np.where(drafted > 0, self.proposal_seconds, 0.0) + verifying + self.overhead_seconds
            if not seconds.all():
                raise ValueError(f"every round must take time, got {seconds} seconds for 0, 1, 2, ... drafted tokens")
            self._known[batch] = seconds
        return self._known[batch]
