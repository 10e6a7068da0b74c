"""Acceptance of a draft that knows how sure it is: each drafted token carries the draft's confidence in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import betaincc, betaln, entr

from sim.acceptance import Draws, full_drafts
from sim.controllers.policy import Decision
from sim.theory import FloatArray, check_cost, check_gamma, check_probability, expected_tokens

KeepDrafting = Callable[[FloatArray, FloatArray, FloatArray], Decision]
"""(confidence, entropy, all_accepted) -> whether to draft on: `keep_drafting` of `sim.controllers.policy.Controller`"""


class ExpectedRound(NamedTuple):
    """Means of one round."""

    drafted: float
    """tokens"""
    emitted: float
    """tokens, the bonus or correction token included"""


@dataclass(frozen=True)
class ConfidenceAcceptance:
    """The draft's confidence in each token is drawn from Beta(a, b), and decides the token's chance.

    Confidence is the largest probability c of the draft's law; tokens are independent. A token of confidence c is
    accepted with probability c ** calibration: 1 is a calibrated draft, above 1 one that is too sure of itself, and 0
    one whose tokens are all accepted, however sure it is.
    """

    a: float
    b: float
    calibration: float = 1.0
    tail: float = 1000.0
    """tokens that the rest of the draft's probability is spread over evenly, for the law's entropy"""

    def __post_init__(self) -> None:
        for name in ("a", "b"):
            if not 0 < getattr(self, name) < np.inf:
                raise ValueError(f"Beta's {name} must be finite and > 0, got {getattr(self, name)}")
        check_cost("calibration", self.calibration)
        if not 1 <= self.tail < np.inf:
            raise ValueError(f"tail must be finite and >= 1 token, got {self.tail}; a vocabulary has thousands")

    @property
    def alpha(self) -> float:
        """The acceptance rate: E[c ** calibration] = B(a + calibration, b) / B(a, b)."""
        return float(np.exp(betaln(self.a + self.calibration, self.b) - betaln(self.a, self.b)))

    def entropy(self, confidence: ArrayLike) -> FloatArray:
        """Entropy in nats of the draft's law: c on one token and 1 - c spread evenly over `tail` others.

        -c log c - (1 - c) log(1 - c) + (1 - c) log(tail); it falls as c rises, from c = 1 / (1 + tail) on.
        """
        sure = np.asarray(confidence, dtype=np.float64)
        return np.asarray(entr(sure) + entr(1 - sure) + (1 - sure) * np.log(self.tail))[()]

    def sample(self, rng: np.random.Generator, gamma: int, rounds: int, requests: int = 1) -> Draws:
        """Draw rounds that draft gamma tokens; see `AcceptanceModel`."""
        return full_drafts(gamma, self.sample_confident(rng, gamma, rounds, requests, lambda *_: True).accepted)

    def sample_confident(
        self, rng: np.random.Generator, gamma: int, rounds: int, requests: int, keep: KeepDrafting
    ) -> Draws:
        """Draw rounds that draft until `keep` says no, or gamma tokens.

        Token i of round k is the same whatever the policy and the draft length, so policies are compared on the same
        random numbers.

        Args:
            rng: the source of randomness.
            gamma: the longest draft.
            rounds: successive rounds of each request.
            requests: how many.
            keep: asked after each drafted token, which is kept either way, with arrays [requests, rounds].
        """
        shape = (requests, rounds)
        drafted, accepted = np.zeros((2, *shape), dtype=np.int64)
        drafting, whole = np.ones((2, *shape), dtype=np.bool_)
        all_accepted = np.ones(shape)
        for _ in range(int(check_gamma(gamma))):
            confidence = rng.beta(self.a, self.b, size=shape)
            whole &= rng.random(shape) < confidence**self.calibration
            drafted += drafting
            accepted += drafting & whole
            all_accepted *= confidence
            drafting &= keep(confidence, self.entropy(confidence), all_accepted)
        return Draws(drafted, accepted)

    def expected_block_efficiency(self, gamma: int) -> float:
        """Leviathan et al. 2023, eq. 1 at `alpha`: rounds that draft gamma tokens do not depend on confidence."""
        return float(expected_tokens(self.alpha, gamma))

    def expected_round(self, gamma: int, threshold: float) -> ExpectedRound:
        """Drafted and emitted tokens of rounds that stop drafting at a confidence below a threshold.

        Token i + 1 is drafted where i tokens before it kept above the threshold t, and accepted where these were also
        accepted. With s = P(c >= t) and m = E[c ** calibration; c >= t], that is drafted = 1 + s + ... + s^(gamma-1)
        and emitted = 1 + alpha (1 + m + ... + m^(gamma-1)).
        """
        check_probability("threshold", threshold)
        before = np.arange(int(check_gamma(gamma)))
        passing = float(betaincc(self.a, self.b, threshold))
        passing_and_accepted = self.alpha * float(betaincc(self.a + self.calibration, self.b, threshold))
        return ExpectedRound(
            drafted=float((passing**before).sum()),
            emitted=float(1 + self.alpha * (passing_and_accepted**before).sum()),
        )
