"""What a server is asked to do: requests with their arrivals, prompts and outputs, drawn from laws or replayed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from sim.acceptance import IntArray
from sim.theory import FloatArray
from sim.workload.laws import (
    MOST_TOKENS,
    Arrivals,
    ClosedArrivals,
    ConstantLength,
    DeterministicArrivals,
    EmpiricalLength,
    GammaArrivals,
    GeometricLength,
    Lengths,
    LognormalLength,
    PoissonArrivals,
    ReplayArrivals,
    UniformLength,
    check_arrivals,
    check_lengths,
    check_positive,
    check_whole,
)

__all__ = [  # the laws are part of what this module offers
    "MOST_TOKENS",
    "Arrivals",
    "ClosedArrivals",
    "ConstantLength",
    "DeterministicArrivals",
    "EmpiricalLength",
    "GammaArrivals",
    "GeometricLength",
    "Lengths",
    "LognormalLength",
    "PoissonArrivals",
    "ReplayArrivals",
    "ReplayedWorkload",
    "SyntheticWorkload",
    "UniformLength",
    "Workload",
    "make_workload",
    "workload_from_json",
]


@dataclass(frozen=True, eq=False)
class Workload:
    """Requests in the order of their arrival."""

    arrival_seconds: FloatArray
    """sorted, from 0 on [requests]"""
    prompt_tokens: IntArray
    """tokens to read before the first output token [requests]"""
    output_tokens: IntArray
    """tokens to generate [requests]"""

    def __post_init__(self) -> None:
        object.__setattr__(self, "arrival_seconds", check_arrivals("arrival_seconds", self.arrival_seconds))
        for name in ("prompt_tokens", "output_tokens"):
            tokens = check_lengths(name, getattr(self, name))
            if len(tokens) != len(self):
                raise ValueError(f"{name} must have one entry for each of {len(self)} arrivals, got {len(tokens)}")
            object.__setattr__(self, name, tokens)

    def __len__(self) -> int:
        return len(self.arrival_seconds)

    @property
    def requests_per_second(self) -> float:
        """Mean arrival rate: gaps between requests / the time from the first arrival to the last.

        Raises:
            ValueError: all requests arrive at the same time, so that there is no rate.
        """
        span = float(self.arrival_seconds[-1] - self.arrival_seconds[0])
        if span == 0:
            raise ValueError(
                f"{len(self)} requests that all arrive at {self.arrival_seconds[0]:g} seconds have no rate; "
                "draw arrivals from a law with a rate"
            )
        return (len(self) - 1) / span

    def head(self, requests: int) -> Workload:
        """The first requests.

        Raises:
            ValueError: there are not so many.
        """
        if not 1 <= requests <= len(self):
            raise ValueError(f"requests must be 1 to {len(self)}, as many as the workload has, got {requests}")
        return Workload(self.arrival_seconds[:requests], self.prompt_tokens[:requests], self.output_tokens[:requests])

    def at_rate(self, requests_per_second: float) -> Workload:
        """The same requests with every arrival time scaled so that they arrive at this mean rate.

        Raises:
            ValueError: the rate is not finite and > 0, or the workload has none (see `requests_per_second`).
        """
        check_positive("requests_per_second", requests_per_second)
        arrivals = self.arrival_seconds * (self.requests_per_second / requests_per_second)
        return Workload(arrivals, self.prompt_tokens, self.output_tokens)


@dataclass(frozen=True)
class SyntheticWorkload:
    """Laws of arrivals and lengths, to be drawn from."""

    arrivals: Arrivals
    prompt: Lengths
    output: Lengths
    requests: int

    def __post_init__(self) -> None:
        check_whole("requests", self.requests)

    def sample(self, seed: int) -> Workload:
        """Draw a workload.

        Arrivals, prompts and outputs have a generator each, so that another law for one leaves the others as they were.
        """
        arrivals, prompt, output = (np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(3))
        return Workload(
            self.arrivals.sample(arrivals, self.requests),
            self.prompt.sample(prompt, self.requests),
            self.output.sample(output, self.requests),
        )


@dataclass(frozen=True)
class ReplayedWorkload:
    """A measured workload, which is the same for every seed."""

    workload: Workload

    def sample(self, seed: int) -> Workload:
        """The workload."""
        del seed
        return self.workload


def make_workload(arrivals: Arrivals, prompt: Lengths, output: Lengths, requests: int, seed: int) -> Workload:
    """Draw a workload: see `SyntheticWorkload.sample`."""
    return SyntheticWorkload(arrivals, prompt, output, requests).sample(seed)


ARRIVAL_KINDS: dict[str, type] = {
    "poisson": PoissonArrivals,
    "gamma": GammaArrivals,
    "deterministic": DeterministicArrivals,
    "closed": ClosedArrivals,
}
LENGTH_KINDS: dict[str, type] = {
    "constant": ConstantLength,
    "uniform": UniformLength,
    "lognormal": LognormalLength,
    "geometric": GeometricLength,
    "empirical": EmpiricalLength,
}
TRACE_DEFAULTS: dict[str, Any] = {"format": "auto", "skip_broken": False, "sort": False, "requests": None, "rate": None}


def workload_from_json(
    mapping: Mapping[str, Any], base_folder: Path | str | None = None
) -> SyntheticWorkload | ReplayedWorkload:
    """Build what a workload is sampled from, from its JSON form.

    Laws: `{"requests": n, "arrivals": {"kind": k, ...}, "prompt": {"kind": k, ...}, "output": {"kind": k, ...}}`. Kinds
    of arrivals are poisson (rate), gamma (rate, cv), deterministic (rate), closed, and replay (a trace, and what else
    reads one). Kinds of lengths are constant (tokens), uniform (low, high), lognormal (mean, cv, maximum), geometric
    (mean) and empirical (values).

    A trace: `{"trace": path, "format": "auto", "skip_broken": false, "sort": false, "requests": n, "rate": r}`, all but
    the path optional; requests keeps the first n, and rate then rescales their arrivals.

    Args:
        mapping: the form.
        base_folder: where relative paths of traces start; None: the working directory.

    Raises:
        ValueError: a key is missing or unknown, a value is out of its range, or the trace cannot be read; the message
            names the key and its value.
    """
    if not isinstance(mapping, Mapping):
        raise ValueError(f"workload must be an object with requests, arrivals, prompt and output, got {mapping!r}")
    if "trace" in mapping:
        return ReplayedWorkload(replay_from_json("workload", mapping, base_folder))
    check_keys("workload", mapping, required=("requests", "arrivals", "prompt", "output"))
    arrivals: Any = mapping["arrivals"]
    if isinstance(arrivals, Mapping) and arrivals.get("kind") == "replay":
        settings = {key: value for key, value in arrivals.items() if key != "kind"}
        law: Any = ReplayArrivals(replay_from_json("workload arrivals", settings, base_folder).arrival_seconds)
    else:
        law = law_from_json("workload arrivals", arrivals, ARRIVAL_KINDS, extra=("replay",))
    prompt, output = (law_from_json(f"workload {key}", mapping[key], LENGTH_KINDS) for key in ("prompt", "output"))
    try:
        return SyntheticWorkload(law, prompt, output, mapping["requests"])
    except ValueError as error:
        raise ValueError(f"workload {error}") from error


def law_from_json(name: str, value: Any, kinds: Mapping[str, type], extra: tuple[str, ...] = ()) -> Any:
    """Build one law from `{"kind": k, field: value, ...}`.

    Raises:
        ValueError: as `workload_from_json`.
    """
    kind = value.get("kind") if isinstance(value, Mapping) else None
    if not isinstance(kind, str) or kind not in kinds:
        raise ValueError(f"{name} must be an object whose kind is one of {[*kinds, *extra]}, got {value!r}")
    settings = {key: entry for key, entry in value.items() if key != "kind"}
    known = {field.name: field.default is MISSING for field in fields(kinds[kind])}
    check_keys(f"{name} of kind {kind!r}", settings, [key for key, needed in known.items() if needed], list(known))
    try:
        return kinds[kind](**settings)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def replay_from_json(name: str, settings: Mapping[str, Any], base_folder: Path | str | None) -> Workload:
    """Read the trace that a form names, keep its head and rescale it.

    Raises:
        ValueError: as `workload_from_json`.
    """
    # read where it is used: sim.workload.traces builds on the Workload of this module
    from sim.workload.traces import read_trace

    check_keys(name, settings, required=("trace",), known=("trace", *TRACE_DEFAULTS))
    chosen = TRACE_DEFAULTS | dict(settings)
    for key, kind in (("trace", str), ("format", str), ("skip_broken", bool), ("sort", bool)):
        if not isinstance(chosen[key], kind):
            raise ValueError(f"{name} {key} must be a {kind.__name__}, got {chosen[key]!r}")
    path = Path(base_folder or ".") / chosen["trace"]
    workload = read_trace(path, chosen["format"], chosen["skip_broken"], chosen["sort"]).workload
    try:
        if chosen["requests"] is not None:
            check_whole("requests", chosen["requests"])
            workload = workload.head(chosen["requests"])
        return workload if chosen["rate"] is None else workload.at_rate(chosen["rate"])
    except ValueError as error:
        raise ValueError(f"{name} from {path}: {error}") from error


def check_keys(
    name: str, mapping: Mapping[str, Any], required: Sequence[str], known: Sequence[str] | None = None
) -> None:
    """Check that the mapping has all required keys and no unknown ones.

    Raises:
        ValueError: naming the first key that is missing, or that is not known and its value.
    """
    for key in required:
        if key not in mapping:
            raise ValueError(
                f"{name} lacks the key {key!r}; it has {sorted(map(str, mapping))}, needs {list(required)}"
            )
    for key, value in mapping.items():
        if key not in (known or required):
            raise ValueError(f"{name} has the unknown key {key!r} (value {value!r}); known: {list(known or required)}")
