"""Read a sweep from YAML, check it, and lay out its design."""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import qmc

from sim.scenario_parts import read_scenario
from sim.sweep.design import ROW_COLUMNS, SweepDesign, canonical, scenario_at

MAX_POINTS = 10_000_000
"""a few arrays with one entry a point are held in memory"""


def read_design(path: Path) -> SweepDesign:
    """Read a sweep from YAML: `scenario`, `grid`, `latin_hypercube`, `seed`, `replications`, `common_random_numbers`.

    Raises:
        ValueError: the file or the scenario file it names cannot be read, or see `make_design`.
    """
    return make_design(read_scenario(path), path.parent)


def make_design(sweep: Mapping[str, Any], folder: Path = Path()) -> SweepDesign:
    """Check a sweep as read from YAML and lay out its points.

    A grid entry is a list of values, or {linspace: [low, high, count]}, {logspace: [low, high, count]} (evenly spaced
    logarithms; both ends are values, not exponents) or {range: [start, stop]} with an optional step, `stop` left out.
    Spaced values are rounded to 12 significant digits, so that finer grids contain coarser ones. A hypercube's
    parameter is {low, high}, with `log: true` uniform in its logarithm, with `integer: true` a whole number from low to
    high, both included.

    Args:
        sweep: the mapping.
        folder: what the path of a scenario is relative to, and paths in a scenario that stands here.

    Raises:
        ValueError: naming the first key that is unknown, missing, empty, given twice or out of range.
    """
    known = ("scenario", "seed", "replications", "common_random_numbers", "grid", "latin_hypercube")
    check_keys("sweep", sweep, known, required=("scenario",))
    scenario = sweep["scenario"]
    if isinstance(scenario, str):
        path = folder / scenario
        scenario, folder = read_scenario(path), path.parent
    if not isinstance(scenario, Mapping):
        raise ValueError(f"scenario must be a mapping or the path of a YAML file, got {scenario!r}")
    check_plain("scenario", scenario)
    grid = {path: grid_values(f"grid.{path}", given) for path, given in entries("grid", sweep.get("grid"))}
    hypercube = check_hypercube(sweep["latin_hypercube"]) if sweep.get("latin_hypercube") is not None else None
    together = sweep.get("common_random_numbers", True)
    if not isinstance(together, bool):
        raise ValueError(f"common_random_numbers must be true or false, got {together!r}")
    design = SweepDesign(
        scenario=deepcopy(dict(scenario)),
        grid=grid,
        latin_hypercube=hypercube,
        samples=hypercube_samples(hypercube) if hypercube else {},
        seed=whole("seed", sweep.get("seed", 0), 0, 2**62),
        replications=whole("replications", sweep.get("replications", 1), 1, MAX_POINTS),
        common_random_numbers=together,
        folder=folder,
    )
    check_design(design)
    return design


def check_design(design: SweepDesign) -> None:
    """Check what no key shows alone: the number of points, paths that overlap, and that every path can be set."""
    if not design.parameters and design.replications == 1:
        raise ValueError("nothing is swept; give grid, latin_hypercube or replications > 1")
    if design.size > MAX_POINTS:
        raise ValueError(f"the design has {design.size} points, at most {MAX_POINTS}; use a latin_hypercube, or less")
    # a path before its first continuation, so that overlapping neighbours are side by side
    ordered = sorted(path.split(".") for path in design.parameters)
    for before, after in pairwise(ordered):
        if after[: len(before)] == before:
            raise ValueError(f"{'.'.join(before)} and {'.'.join(after)} overlap; sweep each value through one path")
    first = design.points(np.zeros(1, dtype=np.int64))[0]
    scenario_at(pickle.dumps(design.scenario), design.parameters, first.values)


def check_plain(name: str, value: Any) -> None:
    """Check that a value has a canonical text, by which runs are told apart."""
    try:
        canonical(value)
    except TypeError as error:
        raise ValueError(
            f"{name} may hold numbers, text, booleans, lists and mappings with keys of one kind: {error}"
        ) from error


def check_keys(name: str, given: Any, known: Sequence[str], required: Sequence[str] = ()) -> None:
    """Check that a mapping has the required keys and no unknown one."""
    if not isinstance(given, Mapping):
        raise ValueError(f"{name} must be a mapping with the keys {', '.join(known)}, got {given!r}")
    for key in given:
        if key not in known:
            raise ValueError(f"{name} has the unknown key {key!r}; known: {', '.join(known)}")
    for key in required:
        if key not in given:
            raise ValueError(f"{name} lacks the key {key!r}")


def entries(name: str, given: Any) -> Iterable[tuple[str, Any]]:
    """The (dotted path, entry) pairs of a mapping; none for None."""
    if given is None:
        return ()
    if not isinstance(given, Mapping) or not given:
        raise ValueError(f"{name} must map dotted paths to what they are swept over, got {given!r}")
    for path in given:
        if not isinstance(path, str) or not all(path.split(".")):
            raise ValueError(f"{name} has the key {path!r}; give a dotted path such as acceptance.alpha")
        if path in ROW_COLUMNS:
            raise ValueError(f"{name}.{path} cannot be swept: '{path}' names a column of the sweep's own table")
    return given.items()


def grid_values(name: str, given: Any) -> list[Any]:
    """The values of a grid entry, checked to differ."""
    values = spaced(name, given) if isinstance(given, Mapping) else given
    if not isinstance(values, list) or not values:
        raise ValueError(f"{name} must be a list of at least one value, or linspace, logspace or range, got {given!r}")
    check_plain(name, values)
    seen = set()
    for value in values:
        # 1 and 1.0 run the same scenario, true does not
        key = canonical(float(value) if isinstance(value, int) and not isinstance(value, bool) else value)
        if key in seen:
            raise ValueError(f"{name} has {value!r} twice")
        seen.add(key)
    return list(values)


def spaced(name: str, given: Mapping[str, Any]) -> list[Any]:
    """Expand a linspace, logspace or range."""
    if len(given) != 1 or next(iter(given)) not in ("linspace", "logspace", "range"):
        raise ValueError(f"{name} must be a list, or one of linspace, logspace and range, got {dict(given)}")
    kind, ends = next(iter(given.items()))
    name = f"{name}.{kind}"
    if kind == "range":
        if not isinstance(ends, list) or len(ends) not in (2, 3):
            raise ValueError(f"{name} must be [start, stop] or [start, stop, step], got {ends!r}")
        start, stop, step = (whole(name, end, -(2**53), 2**53) for end in (*ends, 1)[:3])
        if step == 0 or not range(start, stop, step):
            raise ValueError(f"{name} has no value: {ends}; stop itself is left out")
        return list(range(start, stop, step)[: MAX_POINTS + 1])
    if not isinstance(ends, list) or len(ends) != 3:
        raise ValueError(f"{name} must be [low, high, count], got {ends!r}")
    low, high = bounds(name, ends[0], ends[1], log=kind == "logspace")
    count = whole(f"{name}'s count", ends[2], 2, MAX_POINTS)
    values = np.linspace(low, high, count) if kind == "linspace" else np.geomspace(low, high, count)
    return [float(f"{value:.12g}") for value in values]


def check_hypercube(given: Any) -> dict[str, Any]:
    """Check a hypercube and fill in its defaults."""
    name = "latin_hypercube"
    check_keys(name, given, ("points", "seed", "parameters"), required=("points", "parameters"))
    parameters = {}
    for path, limits in entries(f"{name}.parameters", given["parameters"] or {}):
        where = f"{name}.parameters.{path}"
        check_keys(where, limits, ("low", "high", "log", "integer"), required=("low", "high"))
        log, integer = limits.get("log", False), limits.get("integer", False)
        for key, flag in (("log", log), ("integer", integer)):
            if not isinstance(flag, bool):
                raise ValueError(f"{where}.{key} must be true or false, got {flag!r}")
        low, high = bounds(where, limits["low"], limits["high"], log)
        if integer:
            low, high = (whole(where, end, -(2**53), 2**53) for end in (low, high))
        parameters[path] = {"low": low, "high": high, "log": log, "integer": integer}
    return {
        "points": whole(f"{name}.points", given["points"], 1, MAX_POINTS),
        "seed": whole(f"{name}.seed", given.get("seed", 0), 0, 2**62),
        "parameters": parameters,
    }


def hypercube_samples(hypercube: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """Draw a hypercube: each parameter's range falls into as many strata as points, each hit once [points]."""
    parameters: dict[str, dict[str, Any]] = hypercube["parameters"]
    sampler = qmc.LatinHypercube(len(parameters), seed=np.random.default_rng(hypercube["seed"]))
    unit = sampler.random(hypercube["points"])
    samples: dict[str, NDArray[Any]] = {}
    for (path, limits), share in zip(parameters.items(), unit.T, strict=True):
        low, high = limits["low"], limits["high"]
        end = high + 1 if limits["integer"] else high
        value = low * (end / low) ** share if limits["log"] else low + share * (end - low)
        # rounding alone can leave the range
        value = np.clip(np.floor(value) if limits["integer"] else value, low, high)
        samples[path] = value.astype(np.int64) if limits["integer"] else value
    return samples


def bounds(name: str, low: Any, high: Any, log: bool) -> tuple[float, float]:
    """Check that low < high, both finite numbers, and positive on a logarithmic scale."""
    for end in (low, high):
        if isinstance(end, bool) or not isinstance(end, int | float) or not math.isfinite(end):
            raise ValueError(f"{name}: low and high must be finite numbers, got {end!r}")
    if not low < high:
        raise ValueError(f"{name}: low must be < high, got {low} and {high}")
    if log and low <= 0:
        raise ValueError(f"{name}: low must be > 0 on a logarithmic scale, got {low}")
    return low, high


def whole(name: str, value: Any, least: int, most: int) -> int:
    """Check a whole number from least to most."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ValueError(f"{name} must be a whole number from {least} to {most}, got {value!r}")
    return value
