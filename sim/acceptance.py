"""How many drafted tokens survive each round: models of acceptance, sampled in bulk.

A model of acceptance is anything with `sample` and `expected_block_efficiency`. A round drafts at most gamma tokens,
the target accepts the first few of them, and emits one more: the correction after a rejection, or the bonus after
none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sim.theory import check_gamma, check_probability, expected_tokens, expected_tokens_per_position

IntArray = NDArray[np.int64]

BLOCK = 32_768
"""rounds drawn at a time"""


class Draws(NamedTuple):
    """Rounds drawn from a model: 0 <= accepted <= drafted <= gamma; either may be a read-only view of one number."""

    drafted: IntArray
    """tokens the draft proposed [requests, rounds]"""
    accepted: IntArray
    """drafted tokens the target accepted [requests, rounds]"""


class AcceptanceModel(Protocol):
    """Anything that says how many drafted tokens are accepted."""

    def sample(self, rng: np.random.Generator, gamma: int, rounds: int, requests: int = 1) -> Draws:
        """Draw `rounds` successive rounds of each of `requests` requests at draft length gamma."""
        ...

    def expected_block_efficiency(self, gamma: int) -> float:
        """Expected tokens emitted per round, over requests with equally many rounds."""
        ...


@dataclass(frozen=True)
class IidAcceptance:
    """Every reached token is accepted with the same probability, independently (Leviathan et al. 2023, Sec. 3.1)."""

    alpha: float

    def __post_init__(self) -> None:
        check_probability("alpha", self.alpha)

    def sample(self, rng: np.random.Generator, gamma: int, rounds: int, requests: int = 1) -> Draws:
        """Draw rounds; see `AcceptanceModel`. One random number a round."""
        return full_drafts(gamma, accepted_before_rejection(rng, iid_marginal(self.alpha, gamma), (requests, rounds)))

    def expected_block_efficiency(self, gamma: int) -> float:
        """Leviathan et al. 2023, eq. 1."""
        return float(expected_tokens(self.alpha, gamma))


@dataclass(frozen=True)
class PerPositionAcceptance:
    """Position i of a draft is accepted with its own probability once it is reached, independently of other rounds."""

    conditional: tuple[float, ...]
    """conditional acceptance by position; the last one holds for every later position"""

    def __post_init__(self) -> None:
        check_probability("conditional acceptance", self.conditional)
        if not self.conditional:
            raise ValueError("conditional acceptance must have at least one position, got none")

    def at(self, gamma: int) -> NDArray[np.float64]:
        """Conditional acceptance of the positions of a draft [gamma]."""
        depth = len(self.conditional)
        return np.asarray(self.conditional)[np.minimum(np.arange(int(check_gamma(gamma))), depth - 1)]

    def sample(self, rng: np.random.Generator, gamma: int, rounds: int, requests: int = 1) -> Draws:
        """Draw rounds; see `AcceptanceModel`. One random number a round."""
        marginal = np.cumprod(self.at(gamma), dtype=np.float64)
        return full_drafts(gamma, accepted_before_rejection(rng, marginal, (requests, rounds)))

    def expected_block_efficiency(self, gamma: int) -> float:
        """One plus the sum of marginal acceptances."""
        return float(expected_tokens_per_position(self.at(gamma)))


@dataclass(frozen=True)
class BetaAcceptance:
    """Requests differ: each has its own alpha, drawn once from Beta(a, b); within a request rounds are iid."""

    a: float
    b: float

    def __post_init__(self) -> None:
        for name in ("a", "b"):
            if not 0 < getattr(self, name) < np.inf:
                raise ValueError(f"Beta's {name} must be finite and > 0, got {getattr(self, name)}")

    def sample(self, rng: np.random.Generator, gamma: int, rounds: int, requests: int = 1) -> Draws:
        """Draw rounds; see `AcceptanceModel`."""
        alpha = rng.beta(self.a, self.b, size=(requests, 1))
        return full_drafts(gamma, accepted_before_rejection(rng, iid_marginal(alpha, gamma), (requests, rounds)))

    def expected_block_efficiency(self, gamma: int) -> float:
        """One plus the first gamma moments of Beta(a, b), whose successive ratios are (a + i)/(a + b + i)."""
        i = np.arange(int(check_gamma(gamma)))
        return float(expected_tokens_per_position((self.a + i) / (self.a + self.b + i)))


@dataclass(frozen=True)
class MarkovAcceptance:
    """Acceptance that remembers: a token's chance depends on whether the token before it was accepted.

    Inside a draft every reached token follows an accepted one. The first token of a round follows an accepted one where
    the round before was accepted whole, and a rejected one otherwise. Runs start in the stationary state.
    """

    after_accept: float
    after_reject: float

    def __post_init__(self) -> None:
        check_probability("after_accept", self.after_accept)
        check_probability("after_reject", self.after_reject)

    def sample(self, rng: np.random.Generator, gamma: int, rounds: int, requests: int = 1) -> Draws:
        """Draw rounds; see `AcceptanceModel`.

        Whether a round is accepted whole is a map of whether the last one was: it forgets, keeps or flips. So the
        state is that of the last round that forgot, flipped as often as flips followed.
        """
        if gamma == 0:
            return full_drafts(0, np.zeros((requests, rounds), dtype=np.int64))
        whole_before = rng.random((requests, 1)) < self._whole_rounds(gamma)
        first = rng.random((requests, rounds))
        rest = accepted_before_rejection(rng, iid_marginal(self.after_accept, gamma - 1), (requests, rounds))
        whole_if_whole = (first < self.after_accept) & (rest == gamma - 1)
        whole_if_not = (first < self.after_reject) & (rest == gamma - 1)
        forgets = whole_if_whole == whole_if_not
        last = np.maximum.accumulate(np.where(forgets, np.arange(rounds), -1), axis=1)
        flips = np.cumsum(~whole_if_whole & whole_if_not, axis=1)
        at_last = np.maximum(last, 0)
        flips_since = flips - np.where(last >= 0, np.take_along_axis(flips, at_last, axis=1), 0)
        state = np.where(last >= 0, np.take_along_axis(whole_if_whole, at_last, axis=1), whole_before)
        whole = state ^ (flips_since % 2 == 1)
        follows_accept = np.concatenate([whole_before, whole[:, :-1]], axis=1)
        accepts_first = first < np.where(follows_accept, self.after_accept, self.after_reject)
        return full_drafts(gamma, np.where(accepts_first, 1 + rest, 0))

    def expected_block_efficiency(self, gamma: int) -> float:
        """Stationary mean: 1 + P(first accepted) * eq. 1 of the rest of the draft."""
        if check_gamma(gamma) == 0:
            return 1.0
        whole = self._whole_rounds(gamma)
        first = whole * self.after_accept + (1 - whole) * self.after_reject
        return float(1 + first * expected_tokens(self.after_accept, gamma - 1))

    def _whole_rounds(self, gamma: int) -> float:
        """Stationary share of rounds that are accepted whole; 0 where each state would keep itself for ever."""
        enters = self.after_reject * self.after_accept ** (gamma - 1)
        leaves = 1 - self.after_accept**gamma
        return enters / (enters + leaves) if enters + leaves > 0 else 0.0


@dataclass(frozen=True)
class TraceAcceptance:
    """Replay of measured requests: what a round emits depends on the output position where it starts.

    A round at position i drafts min(gamma, available[i]) tokens and emits min(lengths[i], drafted + 1); the next starts
    that much further. At its end a trace starts again. Request r replays trace r modulo their number.
    """

    lengths: tuple[tuple[int, ...], ...]
    """tokens that a round starting at each output position emits if its draft is long enough, one trace per request"""
    available: tuple[tuple[int, ...], ...] | None = None
    """tokens that the draft could propose at each position; None: always gamma"""

    def __post_init__(self) -> None:
        if not self.lengths or not all(self.lengths):
            raise ValueError("a trace must have at least one position; got an empty one")
        if (least := min(map(min, self.lengths))) < 1:
            raise ValueError(f"a round emits at least 1 token, got a trace entry {least}; entries count the correction")
        if self.available is not None and [len(t) for t in self.available] != [len(t) for t in self.lengths]:
            raise ValueError("available must have one entry for each entry of lengths")
        if self.available is not None and (least := min(map(min, self.available))) < 0:
            raise ValueError(f"available tokens must be >= 0, got {least}")

    def sample(self, rng: np.random.Generator, gamma: int, rounds: int, requests: int = 1) -> Draws:
        """Replay rounds from the start of each trace; see `AcceptanceModel`. Draws nothing from `rng`."""
        del rng
        drafted, emitted = self._walk(gamma, rounds, requests)
        return Draws(drafted, emitted - 1)

    def sample_positions(self, gamma: int, positions: int, requests: int = 1) -> Draws:
        """What a round that starts at each output position would draft and accept [requests, positions].

        For draft lengths that differ by round: one below gamma drafts and accepts the first tokens of these.
        """
        which = np.arange(requests)[:, None] % len(self.lengths)
        size = np.array([len(trace) for trace in self.lengths])
        position = np.arange(positions) % size[which]
        cap, emits = self._rounds(gamma)
        return Draws(cap[which, position], emits[which, position] - 1)

    def expected_block_efficiency(self, gamma: int) -> float:
        """The mean over traces of tokens per round on the cycle of rounds that endless replay settles into."""
        settle = max(map(len, self.lengths))
        _, emitted = self._walk(gamma, 2 * settle, len(self.lengths))
        size = np.array([len(trace) for trace in self.lengths])[:, None]
        position = np.cumsum(emitted, axis=1) % size
        # after `settle` rounds every walk is on its cycle, and the cycle closes within another `settle`
        anchor = position[:, settle - 1 : settle]
        period = 1 + np.argmax(position[:, settle:] == anchor, axis=1)
        tokens = np.cumsum(emitted[:, settle:], axis=1)[np.arange(len(size)), period - 1]
        return float(np.mean(tokens / period))

    def _walk(self, gamma: int, rounds: int, requests: int) -> tuple[IntArray, IntArray]:
        """Drafted and emitted tokens [requests, rounds], walked round by round for all requests at once."""
        which = np.arange(requests) % len(self.lengths)
        size = np.array([len(trace) for trace in self.lengths])[which]
        cap, emits = self._rounds(gamma)
        visited = np.empty((requests, rounds), dtype=np.int64)
        position = np.zeros(requests, dtype=np.int64)
        for k in range(rounds):
            visited[:, k] = position
            position = (position + emits[which, position]) % size
        return cap[which[:, None], visited], emits[which[:, None], visited]

    def _rounds(self, gamma: int) -> tuple[IntArray, IntArray]:
        """Drafted and emitted tokens of a round at each position [traces, longest trace]."""
        cap = np.full((len(self.lengths), max(map(len, self.lengths))), int(check_gamma(gamma)), dtype=np.int64)
        reach = np.ones_like(cap)
        for i, trace in enumerate(self.lengths):
            reach[i, : len(trace)] = trace
            if self.available is not None:
                cap[i, : len(trace)] = np.minimum(self.available[i], gamma)
        return cap, np.minimum(reach, cap + 1)


@dataclass(frozen=True)
class PartialProposals:
    """A draft that often has less to propose than gamma, as prompt lookup does, independently in each round."""

    inner: IidAcceptance | PerPositionAcceptance | BetaAcceptance
    """acceptance of what is proposed; a trace carries its own `available`"""
    available: tuple[float, ...]
    """chance that 0, 1, 2, ... tokens are available; the last entry is for that many or more, and drafts gamma"""

    def __post_init__(self) -> None:
        if not isinstance(self.inner, IidAcceptance | PerPositionAcceptance | BetaAcceptance):
            raise ValueError(
                f"inner must be iid, per-position or beta acceptance, got {type(self.inner).__name__}, "
                "whose rounds depend on how much was drafted before"
            )
        total = float(check_probability("available", self.available).sum())
        if not np.isclose(total, 1, rtol=0, atol=1e-9):
            raise ValueError(f"available must sum to 1, got {total} from {self.available}")

    def lengths(self, gamma: int) -> IntArray:
        """Draft length for each entry of `available`."""
        lengths = np.minimum(np.arange(len(self.available)), int(check_gamma(gamma)))
        lengths[-1] = gamma
        return lengths

    def sample(self, rng: np.random.Generator, gamma: int, rounds: int, requests: int = 1) -> Draws:
        """Draw rounds; see `AcceptanceModel`."""
        accepted = self.inner.sample(rng, gamma, rounds, requests).accepted
        entry = np.searchsorted(np.cumsum(self.available)[:-1], rng.random((requests, rounds)), side="right")
        drafted = self.lengths(gamma)[entry]
        return Draws(drafted, np.minimum(accepted, drafted))

    def expected_block_efficiency(self, gamma: int) -> float:
        """The inner model's, averaged over draft lengths."""
        inner = [self.inner.expected_block_efficiency(length) for length in self.lengths(gamma).tolist()]
        return float(np.dot(self.available, inner))


def iid_marginal(alpha: ArrayLike, gamma: int) -> NDArray[np.float64]:
    """Marginal acceptance alpha, alpha^2, ..., alpha^gamma of iid tokens [gamma, ...] for alpha [...]."""
    alpha = np.asarray(alpha, dtype=np.float64)
    return np.cumprod(np.broadcast_to(alpha, (int(check_gamma(gamma)), *alpha.shape)), axis=0)


def accepted_before_rejection(
    rng: np.random.Generator, marginal: NDArray[np.float64], shape: tuple[int, int]
) -> IntArray:
    """Accepted tokens by the inverse of their distribution: one uniform u a round, and one token for each u < marginal.

    Args:
        rng: the source of randomness.
        marginal: marginal acceptance by position, falling [gamma] or [gamma, requests, 1].
        shape: (requests, rounds).

    Returns:
        Accepted tokens [requests, rounds], at most gamma.
    """
    requests, rounds = shape
    accepted = np.empty(shape, dtype=np.int64)
    # blocks and the narrowest integers keep the loop over positions in cache: a third less time over millions of rounds
    size = max(1, BLOCK // requests)
    for first in range(0, rounds, size):
        block = accepted[:, first : first + size]
        uniform = rng.random(block.shape)
        count = np.zeros(block.shape, dtype=np.min_scalar_type(len(marginal)))
        for level in marginal:
            count += uniform < level
        block[...] = count
    return accepted


def full_drafts(gamma: int, accepted: IntArray) -> Draws:
    """Draws in which every round drafts gamma tokens."""
    return Draws(np.broadcast_to(np.int64(check_gamma(gamma)), accepted.shape), accepted)
