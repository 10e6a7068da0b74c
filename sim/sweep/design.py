"""Which points a sweep runs: a base scenario, and a design over any of its parameters named by dotted paths.

A design may have a million points, so it is never written out: point i is worked out from i.
"""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sim.acceptance import IntArray

ROW_COLUMNS = ("point", "point_id", "seed", "replication", "error", "wall_seconds")
"""columns of every sweep's table beside the swept parameters and the results"""


class Point(NamedTuple):
    """One run: its place in the design, its seed, and the value of each swept parameter."""

    place: int
    seed: int
    values: tuple[Any, ...]


@dataclass(frozen=True, eq=False)
class SweepDesign:
    """A base scenario and the points around it: grid x hypercube rows x replications, the last one running fastest."""

    scenario: dict[str, Any]
    grid: dict[str, list[Any]]
    """values of each parameter of the full product, by dotted path"""
    latin_hypercube: dict[str, Any] | None
    """points, seed and the bounds of each parameter, with every default filled in"""
    samples: dict[str, NDArray[Any]]
    """values of each parameter of the hypercube [hypercube points], by dotted path"""
    seed: int = 0
    replications: int = 1
    common_random_numbers: bool = True
    """True: replication r of every point runs with seed + r. False: every run has a seed of its own"""
    folder: Path = Path()
    """what paths in the scenario are relative to"""

    @property
    def parameters(self) -> tuple[str, ...]:
        """Dotted paths of the swept parameters."""
        return (*self.grid, *self.samples)

    @property
    def shape(self) -> tuple[int, ...]:
        """Values of each grid parameter, hypercube rows, replications."""
        rows = self.latin_hypercube["points"] if self.latin_hypercube else 1
        return (*map(len, self.grid.values()), rows, self.replications)

    @property
    def size(self) -> int:
        """How many points there are."""
        return math.prod(self.shape)

    def describe(self) -> dict[str, Any]:
        """Everything that tells this design from another, as plain data."""
        return {
            "scenario": self.scenario,
            "seed": self.seed,
            "replications": self.replications,
            "common_random_numbers": self.common_random_numbers,
            "grid": self.grid,
            "latin_hypercube": self.latin_hypercube or {},
            "order": list(self.parameters),
        }

    def positions(self, indices: IntArray) -> tuple[IntArray, ...]:
        """Position of each point on each axis of `shape`."""
        return np.unravel_index(indices, self.shape)

    def seeds(self, indices: IntArray) -> list[int]:
        """Seed of each point."""
        *on_grid, row, replication = (position.tolist() for position in self.positions(indices))
        if self.common_random_numbers:
            return [self.seed + r for r in replication]
        # from the values rather than the index, so that a grid that grows keeps the seeds of its old points
        columns = [[values[i] for i in at] for values, at in zip(self.grid.values(), on_grid, strict=True)]
        runs = zip(*columns, row, replication, strict=True)
        return [int(digest([self.seed, list(self.grid), run])[:13], base=16) for run in runs]

    def points(self, indices: IntArray) -> list[Point]:
        """The points of the given places, with plain Python values."""
        *on_grid, row, _ = self.positions(indices)
        columns = [[values[i] for i in at] for values, at in zip(self.grid.values(), on_grid, strict=True)]
        columns += [sample[row].tolist() for sample in self.samples.values()]
        values = zip(*columns, strict=True) if columns else ((),) * len(indices)
        return list(map(Point, indices.tolist(), self.seeds(indices), values))


def scenario_at(base: bytes, paths: Sequence[str], values: Sequence[Any]) -> dict[str, Any]:
    """A fresh copy of the pickled base scenario with the values set at the dotted paths.

    Mappings on the way are made where they are missing. `drafts.0.alpha` goes through the first entry of a list.

    Raises:
        ValueError: a path leads through a value that is neither mapping nor list, or past the end of a list.
    """
    scenario: dict[str, Any] = pickle.loads(base)  # several times faster than deepcopy
    for path, value in zip(paths, values, strict=True):
        *parents, last = path.split(".")
        here: Any = scenario
        for name in parents:
            key = key_in(here, name, path)
            if isinstance(here, dict) and here.get(key) is None:
                here[key] = {}
            here = here[key]
        here[key_in(here, last, path)] = deepcopy(value)
    return scenario


def key_in(container: Any, name: str, path: str) -> str | int:
    """The key of a mapping or the index of a list that one name of a dotted path stands for."""
    if isinstance(container, list):
        if not name.isdecimal() or int(name) >= len(container):
            raise ValueError(f"{path}: {name!r} is not an index of a list with {len(container)} entries, 0 the first")
        return int(name)
    if not isinstance(container, dict):
        raise ValueError(f"{path}: {name!r} cannot be set inside {container!r}, which is no mapping or list")
    return int(name) if name not in container and name.isdecimal() and int(name) in container else name


def canonical(value: Any) -> str:
    """JSON text that equal values share, whatever the order of their keys."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def digest(value: Any) -> str:
    """32 hexadecimal digits that tell one plain value from another."""
    return blake2b(canonical(value).encode(), digest_size=16).hexdigest()


def point_id(scenario: Mapping[str, Any], seed: int) -> str:
    """The name of a run in every sweep that has it: a hash of its scenario and its seed."""
    return digest([scenario, seed])


def point_ids(design: SweepDesign, block: int = 10_000) -> pa.Array:
    """The name of every point of a design, worked out a block at a time [points]."""
    base = pickle.dumps(design.scenario)
    pieces = []
    for first in range(0, design.size, block):
        points = design.points(np.arange(first, min(first + block, design.size)))
        scenarios = (scenario_at(base, design.parameters, point.values) for point in points)
        names = [point_id(scenario, point.seed) for scenario, point in zip(scenarios, points, strict=True)]
        pieces.append(pa.array(names, type=pa.string()))
    return pa.concat_arrays(pieces)
