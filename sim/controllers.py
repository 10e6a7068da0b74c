"""Draft-length policies: how many tokens to draft next, given how the rounds before went.

A policy is anything with the members of `Controller`; the same objects drive the simulator and the real loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import numpy as np

from sim.theory import check_cost, check_gamma, check_probability, expected_tokens


@dataclass(frozen=True)
class RoundOutcome:
    """What one round of one request did."""

    gamma: int
    """draft length asked for"""
    drafted: int
    """tokens that the draft proposed, at most gamma"""
    accepted: int
    """drafted tokens that the target accepted"""
    emitted: int
    """tokens added to the output, bonus or correction included"""
    seconds: float
    """time of the round, without waiting for a busy device"""
    batch: int = 1
    """requests in the same forward"""

    def __post_init__(self) -> None:
        if not 0 <= self.accepted <= self.drafted <= self.gamma:
            raise ValueError(f"a round needs 0 <= accepted <= drafted <= gamma, got {self}")
        if self.emitted < 1 or self.batch < 1 or not 0 <= self.seconds < np.inf:
            raise ValueError(f"a round needs emitted >= 1, batch >= 1 and finite seconds >= 0, got {self}")


class Controller(Protocol):
    """Anything that chooses draft lengths."""

    @property
    def max_gamma(self) -> int:
        """The longest draft that it ever asks for, which caches are sized for."""
        ...

    @property
    def stops_early(self) -> bool:
        """Whether `keep_drafting` must be asked; if not, the draft's probabilities need not leave the device."""
        ...

    def next_gamma(self) -> int:
        """Draft length of the next round, 0 for a plain step of the target; asking twice changes nothing."""
        ...

    def keep_drafting(self, confidence: float, entropy: float) -> bool:
        """Whether to draft another token; asked after each one but the last, and that one is kept either way.

        A policy that does not stop early says True.

        Args:
            confidence: largest probability of the law that the token was drawn from.
            entropy: that law's entropy, in nats.
        """
        ...

    def observe(self, outcome: RoundOutcome) -> None:
        """Learn from a finished round."""
        ...

    def reset(self) -> None:
        """Prepare for a new request."""
        ...


@dataclass(frozen=True)
class FixedGamma:
    """The same draft length in every round; 0 decodes autoregressively."""

    gamma: int
    stops_early: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_gamma(self.gamma)

    @property
    def max_gamma(self) -> int:
        """The one draft length."""
        return self.gamma

    def next_gamma(self) -> int:
        """See `Controller`."""
        return self.gamma

    def keep_drafting(self, confidence: float, entropy: float) -> bool:
        """See `Controller`."""
        del confidence, entropy
        return True

    def observe(self, outcome: RoundOutcome) -> None:
        """Nothing to learn."""

    def reset(self) -> None:
        """Nothing to forget."""


@dataclass(eq=False)
class Heuristic:
    """Two tokens more after a draft that was accepted whole, else one fewer, at least 1.

    The schedule "heuristic_transient" of Hugging Face transformers' assisted generation, with a maximum; a round whose
    draft had nothing to propose changes nothing. Each request starts at `initial` again.
    """

    initial: int
    maximum: int
    stops_early: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_max_gamma(self.maximum)
        if not 1 <= self.initial <= self.maximum or self.initial != int(self.initial):
            raise ValueError(f"initial must be a whole number from 1 to the maximum {self.maximum}, got {self.initial}")
        self._gamma = self.initial

    @property
    def max_gamma(self) -> int:
        """The maximum."""
        return self.maximum

    def next_gamma(self) -> int:
        """See `Controller`."""
        return self._gamma

    def keep_drafting(self, confidence: float, entropy: float) -> bool:
        """See `Controller`."""
        del confidence, entropy
        return True

    def observe(self, outcome: RoundOutcome) -> None:
        """Lengthen or shorten."""
        if outcome.drafted:
            step = 2 if outcome.accepted == outcome.drafted else -1
            self._gamma = min(max(1, self._gamma + step), self.maximum)

    def reset(self) -> None:
        """Back to the initial length."""
        self._gamma = self.initial


@dataclass(eq=False)
class Goodput:
    """The draft length of most expected tokens per second, from known costs and an estimated acceptance rate.

    SmartSpec (Liu et al. 2024, "Optimizing Speculative Decoding for Serving Large Language Models Using Goodput",
    arXiv:2406.14066), for one request: eq. 1 of Leviathan et al. over the round's seconds. The acceptance rate is
    accepted / tested tokens, where the first rejected token of a draft is the last one tested. Older rounds count
    less, and prior tokens never fade; so where speculation was switched off (length 0), the estimate drifts to the
    prior, and if the prior pays, speculation is tried again. New requests start from what earlier ones taught.
    """

    max_gamma: int
    draft_seconds: float
    """one draft forward"""
    verify_seconds: Sequence[float]
    """entry n: one target forward that verifies n drafted tokens (n + 1 new ones) [max_gamma + 1]; with the overhead of
    a round where there is one"""
    prior_alpha: float = 0.7
    prior_tokens: float = 5.0
    """tested tokens that the prior is worth"""
    decay: float = 0.99
    """weight of a round relative to the one after it; 1 never forgets"""
    stops_early: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_max_gamma(self.max_gamma)
        check_cost("draft_seconds", self.draft_seconds)
        check_probability("prior_alpha", self.prior_alpha)
        check_probability("decay", self.decay)
        if not 0 < self.prior_tokens < np.inf:
            raise ValueError(f"prior_tokens must be finite and > 0, got {self.prior_tokens}; 1 is a weak prior")
        verify = check_cost("verify_seconds", self.verify_seconds)[: self.max_gamma + 1]
        if len(verify) <= self.max_gamma or not verify.all():
            raise ValueError(
                f"verify_seconds must have an entry > 0 for each of 0 to {self.max_gamma} drafted tokens, got "
                f"{list(self.verify_seconds)}; time those forwards, or lower max_gamma"
            )
        self._seconds = np.arange(self.max_gamma + 1) * self.draft_seconds + verify
        self._accepted = self._tested = 0.0

    @property
    def alpha(self) -> float:
        """The current estimate of the acceptance rate."""
        return (self.prior_alpha * self.prior_tokens + self._accepted) / (self.prior_tokens + self._tested)

    def next_gamma(self) -> int:
        """See `Controller`; the shortest of equals."""
        tokens = expected_tokens(self.alpha, np.arange(self.max_gamma + 1))
        return int(np.argmax(tokens / self._seconds))

    def keep_drafting(self, confidence: float, entropy: float) -> bool:
        """See `Controller`."""
        del confidence, entropy
        return True

    def observe(self, outcome: RoundOutcome) -> None:
        """Update the estimate."""
        rejected = outcome.accepted < outcome.drafted
        self._accepted = self.decay * self._accepted + outcome.accepted
        self._tested = self.decay * self._tested + outcome.accepted + rejected

    def reset(self) -> None:
        """Nothing to forget."""


@dataclass(frozen=True)
class ConfidenceThreshold:
    """Drafts until the draft is unsure of itself.

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

    def __post_init__(self) -> None:
        check_max_gamma(self.max_gamma)
        check_probability("threshold", self.threshold)
        check_cost("entropy_scale", self.entropy_scale)
        if self.measure not in ("confidence", "entropy"):
            raise ValueError(f"measure must be 'confidence' or 'entropy', got {self.measure!r}")

    def next_gamma(self) -> int:
        """See `Controller`; always the maximum, which `keep_drafting` may stop short of."""
        return self.max_gamma

    def keep_drafting(self, confidence: float, entropy: float) -> bool:
        """See `Controller`."""
        if self.measure == "confidence":
            return confidence >= self.threshold
        # rounding may leave a certain law an entropy just below 0
        return 1 - float(np.sqrt(self.entropy_scale * max(entropy, 0.0))) >= self.threshold

    def observe(self, outcome: RoundOutcome) -> None:
        """Nothing to learn."""

    def reset(self) -> None:
        """Nothing to forget."""


@dataclass(eq=False)
class Bandit:
    """The draft length with the best upper confidence bound on its tokens per second; costs need not be known.

    UCB1 (Auer, Cesa-Bianchi and Fischer 2002, "Finite-time Analysis of the Multiarmed Bandit Problem") with draft
    lengths as arms: tokens over seconds of all its rounds, as a share of the fastest round seen, plus
    exploration * sqrt(2 ln t / n). An arm takes hundreds of rounds to tell from its neighbours, so it keeps what it
    learnt over requests.
    """

    gammas: Sequence[int]
    exploration: float = 0.3
    """1 is UCB1's own, which holds for any rewards in [0, 1]; rounds vary less than that"""
    seed: int = 0
    """of the order in which lengths are first tried and ties are broken"""
    stops_early: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_gamma(self.gammas)
        if not self.gammas or len(set(self.gammas)) < len(self.gammas):
            raise ValueError(f"gammas must be different draft lengths, at least one, got {list(self.gammas)}")
        check_cost("exploration", self.exploration)
        self._arms = [int(gamma) for gamma in np.random.default_rng(self.seed).permutation(self.gammas)]
        self._plays, self._tokens, self._seconds = np.zeros((3, len(self._arms)))
        self._fastest = 0.0

    @property
    def max_gamma(self) -> int:
        """The longest arm."""
        return max(self._arms)

    def next_gamma(self) -> int:
        """See `Controller`; first every length once."""
        if not self._plays.all():
            return self._arms[int(np.argmin(self._plays))]
        share = self._tokens / self._seconds / self._fastest
        bound = share + self.exploration * np.sqrt(2 * np.log(self._plays.sum()) / self._plays)
        return self._arms[int(np.argmax(bound))]

    def keep_drafting(self, confidence: float, entropy: float) -> bool:
        """See `Controller`."""
        del confidence, entropy
        return True

    def observe(self, outcome: RoundOutcome) -> None:
        """Credit the length that was asked for.

        Raises:
            ValueError: it is none of the arms, or the round took no time.
        """
        if outcome.gamma not in self._arms or outcome.seconds == 0:
            raise ValueError(
                f"a bandit over {sorted(self._arms)} needs rounds of those lengths that take > 0 seconds, got {outcome}"
            )
        arm = self._arms.index(outcome.gamma)
        self._plays[arm] += 1
        self._tokens[arm] += outcome.emitted
        self._seconds[arm] += outcome.seconds
        self._fastest = max(self._fastest, outcome.emitted / outcome.seconds)

    def reset(self) -> None:
        """Nothing to forget."""


@dataclass(frozen=True)
class Costs:
    """What `Goodput` must know of the machine."""

    draft_seconds: float
    """one draft forward"""
    verify_seconds: Sequence[float]
    """entry n: one target forward that verifies n drafted tokens (n + 1 new ones)"""


def parse_controller(text: str, gamma: int, costs: Costs | None = None, seed: int = 0) -> Controller:
    """Build a controller from its name on a command line.

    Args:
        text: "fixed", "heuristic" (starts at 5), "confidence:0.4", "entropy:0.3" (thresholds), "bandit" (over 0, the
            powers of 2, and gamma) or "goodput".
        gamma: the longest draft; every draft of "fixed".
        costs: for "goodput".
        seed: for "bandit".

    Raises:
        ValueError: the text is none of these, "goodput" lacks its costs, or a number is out of range.
    """
    name, _, number = text.partition(":")
    match name, number:
        case "fixed", "":
            return FixedGamma(gamma)
        case "heuristic", "":
            return Heuristic(min(5, gamma), gamma)
        case "bandit", "":
            powers = [2**i for i in range(int(check_max_gamma(gamma)).bit_length())]
            return Bandit(sorted({0, *powers, gamma}), seed=seed)
        case "goodput", "":
            if costs is None:
                raise ValueError(
                    "controller 'goodput' needs the costs of drafting and verifying, got none; measure forwards first, "
                    "or use 'bandit', which learns them"
                )
            return Goodput(gamma, costs.draft_seconds, costs.verify_seconds)
        case ("confidence" | "entropy") as measure, number if number:
            try:
                threshold = float(number)
            except ValueError as error:
                raise ValueError(f"controller {text!r} needs a threshold like '{measure}:0.4'") from error
            return ConfidenceThreshold(gamma, threshold, measure)
    raise ValueError(
        "controller must be 'fixed', 'heuristic', 'confidence:THRESHOLD', 'entropy:THRESHOLD', 'bandit' or 'goodput', "
        f"got {text!r}"
    )


def check_max_gamma(value: int) -> int:
    """A longest draft, a whole number >= 1."""
    if value < 1 or value != int(value):
        raise ValueError(
            f"the longest draft must be a whole number >= 1, got {value}; FixedGamma(0) decodes autoregressively"
        )
    return value
