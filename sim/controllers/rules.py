"""Draft-length policies that follow a rule and know no costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import ArrayLike

from sim.controllers.policy import Controller, Decision, RoundOutcome, check_max_gamma
from sim.theory import check_cost, check_gamma, check_probability
from sim.trees import IntArray


@dataclass(frozen=True)
class FixedGamma:
    """The same draft length in every round; 0 decodes autoregressively."""

    gamma: int
    stops_early: ClassVar[bool] = False
    foresees: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_gamma(self.gamma)

    @property
    def max_gamma(self) -> int:
        """The one draft length."""
        return self.gamma

    def next_gamma(self, batch: int = 1) -> int:
        """See `Controller`."""
        del batch
        return self.gamma

    def keep_drafting(self, confidence: ArrayLike, entropy: ArrayLike, all_accepted: ArrayLike) -> Decision:
        """See `Controller`."""
        del confidence, entropy, all_accepted
        return True

    def foresee(self, accepted: IntArray) -> None:
        """Nothing to know ahead."""

    def observe(self, outcome: RoundOutcome) -> None:
        """Nothing to learn."""

    def reset(self) -> None:
        """Nothing to forget."""


@dataclass(eq=False)
class Heuristic:
    """More tokens after a draft that was accepted whole, else fewer, at least 1.

    The defaults are the schedule "heuristic_transient" of Hugging Face transformers' assisted generation, with a
    maximum: additive both ways, two more or one fewer. A `factor` below 1 with decrease 0 makes it additive increase,
    multiplicative decrease. On a batch, drafts count as accepted whole where at least half of the rows that drafted
    anything accepted all of it; a round in which no row did changes nothing. Each request starts at `initial` again.
    """

    initial: int
    maximum: int
    increase: int = 2
    """tokens more"""
    decrease: int = 1
    """tokens fewer"""
    factor: float = 1.0
    """of what the length first shrinks to, rounded down, before `decrease` is taken off"""
    stops_early: ClassVar[bool] = False
    foresees: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_max_gamma(self.maximum)
        if not 1 <= self.initial <= self.maximum or self.initial != int(self.initial):
            raise ValueError(f"initial must be a whole number from 1 to the maximum {self.maximum}, got {self.initial}")
        for name in ("increase", "decrease"):
            value = getattr(self, name)
            if value < 0 or value != int(value):
                raise ValueError(f"{name} must be a whole number >= 0, got {value}")
        if not 0 < self.factor <= 1:
            raise ValueError(f"factor must be > 0 and at most 1, got {self.factor}; 1 decreases by addition alone")
        self._gamma = self.initial

    @property
    def max_gamma(self) -> int:
        """The maximum."""
        return self.maximum

    def next_gamma(self, batch: int = 1) -> int:
        """See `Controller`."""
        del batch
        return self._gamma

    def keep_drafting(self, confidence: ArrayLike, entropy: ArrayLike, all_accepted: ArrayLike) -> Decision:
        """See `Controller`."""
        del confidence, entropy, all_accepted
        return True

    def foresee(self, accepted: IntArray) -> None:
        """Nothing to know ahead."""

    def observe(self, outcome: RoundOutcome) -> None:
        """Lengthen or shorten."""
        drafts = np.count_nonzero(outcome.drafted)
        whole = np.count_nonzero((outcome.accepted == outcome.drafted) & (outcome.drafted > 0))
        if not drafts:
            return
        if 2 * whole >= drafts:
            self._gamma = min(self._gamma + self.increase, self.maximum)
        else:
            self._gamma = max(1, int(self._gamma * self.factor) - self.decrease)

    def reset(self) -> None:
        """Back to the initial length."""
        self._gamma = self.initial


@dataclass(frozen=True)
class ConfidenceThreshold:
    """Drafts until the draft is unsure of its last token.

    "confidence": stops when the draft's largest probability is below the threshold, as assistant_confidence_threshold
    does in Hugging Face transformers. "entropy": stops when 1 - sqrt(entropy_scale * entropy), AdaEDL's lower bound on
    the acceptance rate, is below it (Agrawal, Jeon and Lee 2024, arXiv:2410.18351, without its moving threshold).
    """

    max_gamma: int
    threshold: float
    measure: Literal["confidence", "entropy"] = "confidence"
    entropy_scale: float = 0.2
    """acceptance bound's factor on the entropy in nats; the paper's constant"""
    stops_early: ClassVar[bool] = True
    foresees: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_max_gamma(self.max_gamma)
        check_probability("threshold", self.threshold)
        check_cost("entropy_scale", self.entropy_scale)
        if self.measure not in ("confidence", "entropy"):
            raise ValueError(f"measure must be 'confidence' or 'entropy', got {self.measure!r}")

    def next_gamma(self, batch: int = 1) -> int:
        """See `Controller`; always the maximum, which `keep_drafting` may stop short of."""
        del batch
        return self.max_gamma

    def keep_drafting(self, confidence: ArrayLike, entropy: ArrayLike, all_accepted: ArrayLike) -> Decision:
        """See `Controller`."""
        del all_accepted
        if self.measure == "confidence":
            return np.greater_equal(confidence, self.threshold)
        # rounding may leave a certain law an entropy just below 0
        return 1 - np.sqrt(self.entropy_scale * np.maximum(entropy, 0.0)) >= self.threshold

    def foresee(self, accepted: IntArray) -> None:
        """Nothing to know ahead."""

    def observe(self, outcome: RoundOutcome) -> None:
        """Nothing to learn."""

    def reset(self) -> None:
        """Nothing to forget."""


@dataclass(frozen=True)
class RejectionThreshold:
    """Drafts until the chance that some drafted token is rejected exceeds a threshold.

    The policy of Huang, Guo and Wang, "SpecDec++: Boosting Speculative Decoding via Adaptive Candidate Lengths" (2024,
    arXiv:2405.19715), which is optimal for known chances. They train a head on the draft that predicts each token's
    acceptance; here the draft's confidence stands for it. Where a token of confidence c is accepted with chance c^k,
    that only moves the threshold, from h to 1 - (1 - h)^(1/k).
    """

    max_gamma: int
    threshold: float
    stops_early: ClassVar[bool] = True
    foresees: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_max_gamma(self.max_gamma)
        check_probability("threshold", self.threshold)

    def next_gamma(self, batch: int = 1) -> int:
        """See `Controller`; always the maximum, which `keep_drafting` may stop short of."""
        del batch
        return self.max_gamma

    def keep_drafting(self, confidence: ArrayLike, entropy: ArrayLike, all_accepted: ArrayLike) -> Decision:
        """See `Controller`."""
        del confidence, entropy
        return np.less_equal(np.subtract(1.0, all_accepted), self.threshold)

    def foresee(self, accepted: IntArray) -> None:
        """Nothing to know ahead."""

    def observe(self, outcome: RoundOutcome) -> None:
        """Nothing to learn."""

    def reset(self) -> None:
        """Nothing to forget."""


@dataclass(frozen=True)
class OffAboveLoad:
    """No drafts for batches above a size, another controller's choice below it.

    vLLM's speculative_disable_by_batch_size n is max_batch n - 1: it switches off from n running requests on. The inner
    controller hears of the rounds that it chose, and of no others.
    """

    inner: Controller
    max_batch: int
    """the largest batch that still drafts"""
    foresees: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.max_batch < 1 or self.max_batch != int(self.max_batch):
            raise ValueError(f"max_batch must be a whole number >= 1, got {self.max_batch}; FixedGamma(0) never drafts")
        if self.inner.foresees:
            raise ValueError(f"{type(self.inner).__name__} switches itself off where drafts do not pay; use it alone")

    @property
    def max_gamma(self) -> int:
        """The inner controller's."""
        return self.inner.max_gamma

    @property
    def stops_early(self) -> bool:
        """The inner controller's."""
        return self.inner.stops_early

    def next_gamma(self, batch: int = 1) -> int:
        """See `Controller`."""
        return 0 if batch > self.max_batch else self.inner.next_gamma(batch)

    def keep_drafting(self, confidence: ArrayLike, entropy: ArrayLike, all_accepted: ArrayLike) -> Decision:
        """See `Controller`."""
        return self.inner.keep_drafting(confidence, entropy, all_accepted)

    def foresee(self, accepted: IntArray) -> None:
        """Nothing to know ahead."""

    def observe(self, outcome: RoundOutcome) -> None:
        """Pass on what the inner controller chose."""
        if outcome.batch <= self.max_batch:
            self.inner.observe(outcome)

    def reset(self) -> None:
        """Reset the inner controller."""
        self.inner.reset()
