"""Laws of requests: when they arrive, how many tokens their prompts and outputs have.

Each draws one uniform number a request and inverts its distribution, so that two laws on one seed see the same chances
(common random numbers) and comparisons between rates or lengths are paired.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import gammaincinv, ndtr, ndtri

from sim.acceptance import IntArray
from sim.theory import FloatArray

MOST_TOKENS = 2**31 - 1
"""the longest prompt or output: far beyond any context window, and totals of four billion requests fit in 64 bits"""


class Arrivals(Protocol):
    """Anything that says when requests arrive."""

    def sample(self, rng: np.random.Generator, requests: int) -> FloatArray:
        """Seconds at which requests arrive, sorted [requests]; the first comes one gap after 0."""
        ...


@dataclass(frozen=True)
class PoissonArrivals:
    """Independent users: gaps are exponential."""

    rate: float
    """requests a second"""

    def __post_init__(self) -> None:
        check_positive("rate", self.rate)

    def sample(self, rng: np.random.Generator, requests: int) -> FloatArray:
        """Draw arrivals; see `Arrivals`."""
        return np.cumsum(-np.log1p(-rng.random(requests)) / self.rate)


@dataclass(frozen=True)
class GammaArrivals:
    """Bursts: gaps are gamma distributed with a coefficient of variation; at 1 this is `PoissonArrivals`.

    The shape is 1 / cv^2, which vLLM's `bench serve` calls burstiness: its 0.25 is a cv of 2, and burstier than 1.
    """

    rate: float
    """requests a second"""
    cv: float
    """standard deviation of the gaps / their mean"""

    def __post_init__(self) -> None:
        check_positive("rate", self.rate)
        check_spread(self.cv, "DeterministicArrivals")

    def sample(self, rng: np.random.Generator, requests: int) -> FloatArray:
        """Draw arrivals; see `Arrivals`."""
        shape = self.cv**-2
        gaps = gammaincinv(shape, rng.random(requests)) / (shape * self.rate)
        return np.cumsum(gaps, dtype=np.float64)


@dataclass(frozen=True)
class DeterministicArrivals:
    """A metronome: every gap is 1 / rate."""

    rate: float
    """requests a second"""

    def __post_init__(self) -> None:
        check_positive("rate", self.rate)

    def sample(self, rng: np.random.Generator, requests: int) -> FloatArray:
        """Arrivals; see `Arrivals`. Draws nothing from `rng`."""
        del rng
        return np.arange(1, requests + 1) / self.rate


@dataclass(frozen=True)
class ClosedArrivals:
    """An offline batch: every request is there at 0."""

    def sample(self, rng: np.random.Generator, requests: int) -> FloatArray:
        """Arrivals; see `Arrivals`. Draws nothing from `rng`."""
        del rng
        return np.zeros(requests)


@dataclass(frozen=True, eq=False)
class ReplayArrivals:
    """Arrival times as they were measured."""

    times: FloatArray
    """seconds, sorted, from 0 on; any sequence will do"""

    def __post_init__(self) -> None:
        object.__setattr__(self, "times", check_arrivals("times", self.times))

    def sample(self, rng: np.random.Generator, requests: int) -> FloatArray:
        """The first arrivals; see `Arrivals`. Draws nothing from `rng`.

        Raises:
            ValueError: fewer were measured.
        """
        del rng
        known = len(self.times)
        if requests > known:
            raise ValueError(f"requests must be at most {known}, as many as there are times, got {requests}")
        return self.times[:requests]


class Lengths(Protocol):
    """Anything that says how many tokens prompts or outputs have."""

    @property
    def mean(self) -> float:
        """Mean tokens of the law."""
        ...

    def sample(self, rng: np.random.Generator, requests: int) -> IntArray:
        """Tokens, each at least 1 [requests]."""
        ...


@dataclass(frozen=True)
class ConstantLength:
    """Every length is the same."""

    tokens: int

    def __post_init__(self) -> None:
        check_whole("tokens", self.tokens)

    @property
    def mean(self) -> float:
        """Mean tokens."""
        return float(self.tokens)

    def sample(self, rng: np.random.Generator, requests: int) -> IntArray:
        """Lengths; see `Lengths`. Draws nothing from `rng`."""
        del rng
        return np.full(requests, self.tokens, dtype=np.int64)


@dataclass(frozen=True)
class UniformLength:
    """Every length from low to high, both included, is equally likely."""

    low: int
    high: int

    def __post_init__(self) -> None:
        check_whole("low", self.low)
        check_whole("high", self.high)
        if self.low > self.high:
            raise ValueError(f"high must be >= low {self.low}, got {self.high}")

    @property
    def mean(self) -> float:
        """Mean tokens."""
        return (self.low + self.high) / 2

    def sample(self, rng: np.random.Generator, requests: int) -> IntArray:
        """Draw lengths; see `Lengths`."""
        return (self.low + np.floor(rng.random(requests) * (self.high - self.low + 1))).astype(np.int64)


@dataclass(frozen=True)
class LognormalLength:
    """A long tail: a lognormal law, rounded to whole tokens.

    A draw that rounds to 0 tokens, or to more than the maximum, is drawn again (by inverting the law between these
    bounds), so nothing piles up at either end. A maximum therefore makes the mean of the draws smaller than `mean`: at
    cv 1, four means take 9% off it.
    """

    mean: float
    """tokens; of the lognormal law, before whole tokens and the maximum"""
    cv: float
    """standard deviation / mean, of the lognormal law too"""
    maximum: int | None = None
    """most tokens that a draw may have; None: only `MOST_TOKENS` bounds it"""

    def __post_init__(self) -> None:
        check_mean(self.mean)
        check_spread(self.cv, "ConstantLength")
        if self.maximum is not None:
            check_whole("maximum", self.maximum)
            if self.maximum < self.mean:
                raise ValueError(f"maximum must be >= the mean {self.mean:g}, got {self.maximum}; lower the mean")

    def sample(self, rng: np.random.Generator, requests: int) -> IntArray:
        """Draw lengths; see `Lengths`."""
        sigma = np.sqrt(np.log1p(self.cv**2))
        mu = np.log(self.mean) - sigma**2 / 2
        low, high = ndtr((np.log([0.5, (self.maximum or MOST_TOKENS) + 0.5]) - mu) / sigma)
        draws = np.exp(mu + sigma * ndtri(low + rng.random(requests) * (high - low)))
        # a draw on a bound itself may round past it
        tokens: IntArray = np.clip(np.rint(draws), 1, self.maximum or MOST_TOKENS).astype(np.int64)
        return tokens


@dataclass(frozen=True)
class GeometricLength:
    """After each token the request ends with the same chance, 1 / mean: the one law that does not remember."""

    mean: float
    """tokens"""

    def __post_init__(self) -> None:
        check_mean(self.mean)

    def sample(self, rng: np.random.Generator, requests: int) -> IntArray:
        """Draw lengths; see `Lengths`."""
        if self.mean == 1:
            return np.ones(requests, dtype=np.int64)
        full_steps: IntArray = np.floor(np.log1p(-rng.random(requests)) / np.log1p(-1 / self.mean)).astype(np.int64)
        return 1 + full_steps


@dataclass(frozen=True, eq=False)
class EmpiricalLength:
    """Measured lengths, drawn with replacement."""

    values: IntArray
    """tokens, each at least 1; any sequence will do"""

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", check_lengths("values", self.values))

    @property
    def mean(self) -> float:
        """Mean tokens."""
        return float(np.mean(self.values))

    def sample(self, rng: np.random.Generator, requests: int) -> IntArray:
        """Draw lengths; see `Lengths`."""
        place = (rng.random(requests) * len(self.values)).astype(np.int64)
        return np.sort(self.values)[place]


def check_arrivals(name: str, values: ArrayLike) -> FloatArray:
    """The values as a vector of finite, sorted seconds >= 0, at least one.

    Raises:
        ValueError: naming the first value that is not, and its index.
    """
    times = check_vector(name, values)
    if (wrong := ~((times >= 0) & (times < np.inf))).any():
        index = int(np.argmax(wrong))
        raise ValueError(f"{name} must be finite and >= 0, got {times[index]} at index {index}; subtract the first")
    if (early := np.diff(times) < 0).any():
        index = int(np.argmax(early)) + 1
        raise ValueError(
            f"{name} must be sorted, but index {index} is at {times[index]} seconds and index {index - 1} before it at "
            f"{times[index - 1]}; sort the requests by arrival"
        )
    return times


def check_lengths(name: str, values: ArrayLike) -> IntArray:
    """The values as a vector of whole tokens from 1 to `MOST_TOKENS`, at least one.

    Raises:
        ValueError: naming the first value that is not, and its index.
    """
    tokens = check_vector(name, values)
    if (wrong := ~((tokens >= 1) & (tokens <= MOST_TOKENS) & (tokens == np.floor(tokens)))).any():
        index = int(np.argmax(wrong))
        raise ValueError(
            f"{name} must be whole tokens from 1 to {MOST_TOKENS}, got {tokens[index]:g} at index {index}; leave out "
            "requests without tokens"
        )
    return tokens.astype(np.int64)


def check_vector(name: str, values: ArrayLike) -> FloatArray:
    """The values as a vector of floats, at least one.

    Raises:
        ValueError: they are no list of numbers, or an empty one.
    """
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise ValueError(f"{name} must be a list of numbers, got a ragged one: {error}") from error
    if array.ndim != 1 or array.size == 0 or array.dtype.kind not in "iuf":
        raise ValueError(f"{name} must be a list of at least one number, got the shape {array.shape} of {array.dtype}")
    return array.astype(np.float64)


def check_positive(name: str, value: float) -> None:
    """Check that a number is finite and > 0.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(value, Real) or isinstance(value, bool) or not 0 < value <= sys.float_info.max:
        raise ValueError(f"{name} must be a finite number > 0, got {value!r}")


def check_spread(cv: float, without: str) -> None:
    """Check a coefficient of variation.

    Raises:
        ValueError: it is outside [0.001, 1000], where the inverse of the law keeps its digits.
    """
    if not isinstance(cv, Real) or isinstance(cv, bool) or not 1e-3 <= cv <= 1e3:
        raise ValueError(f"cv must be a number from 0.001 to 1000, got {cv!r}; {without} has none")


def check_mean(value: float) -> None:
    """Check a mean length.

    Raises:
        ValueError: it is outside [1, `MOST_TOKENS`].
    """
    if not isinstance(value, Real) or isinstance(value, bool) or not 1 <= value <= MOST_TOKENS:
        raise ValueError(f"mean must be from 1 to {MOST_TOKENS} tokens, got {value!r}")


def check_whole(name: str, value: int) -> None:
    """Check that a number is whole and at least 1.

    Raises:
        ValueError: it is not, or is above `MOST_TOKENS`.
    """
    if not isinstance(value, Integral) or isinstance(value, bool) or not 1 <= value <= MOST_TOKENS:
        raise ValueError(f"{name} must be a whole number from 1 to {MOST_TOKENS}, got {value!r}")
