"""A study of one scenario file: one run or several, with and without speculation, on the same random numbers."""

from __future__ import annotations

import math
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sim.records import write_atomically, write_json
from sim.replication import Progress, ReplicationResult, check_plan, compare_paired, replicate, replication_seed
from sim.scenario_files import run_scenario, serving_from_json, warm_up_from_json
from sim.scenario_parts import parse_yaml, read_scenario
from sim.serving import serve
from sim.serving.results import ServingResult, as_json, measure
from sim.sweep.design import scenario_at

RATIOS = {
    "tokens_per_second": "throughput_ratio",
    "ttft_seconds.mean": "ttft_ratio",
    "tpot_seconds.mean": "tpot_ratio",
    "latency_seconds.mean": "latency_ratio",
}
"""measures compared with those of the same server without speculation, and what the quotients are called"""


@dataclass
class Study:
    """What was found, by name; `intervals` and `ratio_intervals` lack what has none."""

    scenario: dict[str, Any]
    seed: int
    values: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    over_time: dict[str, list[float]] | None = None
    """of a single run of a server"""
    baseline: dict[str, float] | None = None
    """measures without speculation"""
    ratios: dict[str, float] = field(default_factory=dict)
    """with speculation over without it"""
    ratio_intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    replications: int = 1
    remarks: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Every measure with its interval `_ci`."""
        found: dict[str, Any] = {"seed": self.seed, "replications": self.replications}
        found |= as_json(self.values, self.intervals)
        if self.baseline is not None:
            found |= {"baseline": as_json(self.baseline, {})} | as_json(self.ratios, self.ratio_intervals)
        if self.over_time is not None:
            found["over_time"] = self.over_time
        return found | {"remarks": self.remarks}


def run_study(
    path: Path,
    changes: Sequence[str] = (),
    seed: int = 0,
    *,
    baseline: bool = False,
    replications: int = 1,
    relative_half_width: float | None = None,
    progress: Progress | None = None,
    out: Path | None = None,
    command: str | None = None,
) -> Study:
    """Run a scenario file.

    Args:
        path: the file.
        changes: keys to change first, as "policy.gamma=2".
        seed: of everything random; the runs without speculation get the same.
        baseline: whether to run without speculation too.
        replications: independent runs; from 2 on, intervals are over these.
        relative_half_width: instead, replicate until the means in RATIOS are as narrow, or all measures of a scenario
            that is not a server (see `sim.replication.replicate`).
        progress: told of each run.
        out: folder for the request and step tables of the first run.
        command: what asks for the study, recorded in that folder.

    Raises:
        ValueError: the scenario is not right, a change cannot be read, or there would be no run.
    """
    count = None if replications == 1 and relative_half_width is not None else replications
    if count != 1:
        check_plan(count, relative_half_width, least=10, most=100)
    scenario = changed(read_scenario(path), changes)
    plain = {key: value for key, value in scenario.items() if key != "policy"}
    if scenario.get("kind", "serving") != "serving" and (out is not None or baseline):
        raise ValueError(f"only a serving scenario has tables and a baseline, got kind {scenario['kind']!r}")
    if count == 1:
        study = single_run(scenario, seed, path.parent, out, command)
        if baseline:
            study.baseline = single_run(plain, seed, path.parent, None).values
            study.ratios = {
                name: study.values[measured] / study.baseline[measured]
                for measured, name in RATIOS.items()
                if study.baseline[measured]
            }
            study.remarks.append("a single pair of runs gives its ratios no interval; ask for replications")
        return study

    first = single_run(scenario, replication_seed(seed, 0), path.parent, out, command)
    known = [name for name, value in first.values.items() if math.isfinite(value)]
    metrics = [name for name in RATIOS if name in known] or known

    def replicated(one: Mapping[str, Any], count: int | None, narrow: float | None) -> ReplicationResult:
        def run(run_seed: int) -> dict[str, float]:
            return values_and_intervals(run_scenario(one, run_seed, path.parent))[0]

        return replicate(run, count, base_seed=seed, metrics=metrics, relative_half_width=narrow, progress=progress)

    found = replicated(scenario, count, relative_half_width)
    return study_of(scenario, seed, found, replicated(plain, found.count, None) if baseline else None)


def single_run(
    scenario: Mapping[str, Any], seed: int, folder: Path, out: Path | None, command: str | None = None
) -> Study:
    """One run, with intervals from within it."""
    if scenario.get("kind", "serving") != "serving":
        values = run_scenario(scenario, seed, folder)
        return Study(dict(scenario), seed, *values_and_intervals(values))
    serving = serving_from_json(scenario, seed, folder)
    log = serve(serving, seed)
    result: ServingResult = measure(serving, log, warm_up_from_json(scenario))
    if out is not None:
        for name, table in (("requests", log.request_table()), ("steps", log.step_table())):
            write_atomically(out / f"{name}.parquet", partial(table.to_parquet, index=False))
        write_json({"scenario": scenario, "seed": seed, "command": command}, out / "run.json")
    over_time = {str(name): column.tolist() for name, column in result.over_time.items()}
    return Study(dict(scenario), seed, result.values, result.intervals, over_time)


def study_of(
    scenario: dict[str, Any], seed: int, found: ReplicationResult, baseline: ReplicationResult | None
) -> Study:
    """Means over replications, and the comparison with the baseline's, pair by pair."""
    values, intervals = means(found)
    study = Study(scenario, seed, values, intervals, replications=found.count)
    if not found.precise:
        study.remarks.append(f"{found.count} replications did not make every interval as narrow as asked")
    if baseline is not None:
        study.baseline, _ = means(baseline)
        for measured, comparison in compare_paired(found, baseline).items():
            if comparison.ratio is not None:
                name, ratio = RATIOS[measured], comparison.ratio
                study.ratios[name], study.ratio_intervals[name] = ratio.value, (ratio.lo, ratio.hi)
    return study


def values_and_intervals(flat: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """A flat result's `_lo` and `_hi` as intervals."""
    names = [name for name in flat if f"{name}_lo" in flat]
    bounds = {f"{name}{end}" for name in names for end in ("_lo", "_hi")}
    values = {name: value for name, value in flat.items() if name not in bounds}
    return values, {name: (flat[f"{name}_lo"], flat[f"{name}_hi"]) for name in names}


def means(found: ReplicationResult) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """Every measure's mean over replications and its interval; NaN without one for what some replications lack."""
    values, intervals = dict.fromkeys(found.values, math.nan), {}
    for name, column in found.values.items():
        if np.isfinite(column).all():
            one = found.estimate(name)
            values[name], intervals[name] = one.value, (one.lo, one.hi)
    return values, intervals


def changed(scenario: Mapping[str, Any], changes: Sequence[str]) -> dict[str, Any]:
    """A scenario with some keys changed, one after the other.

    Args:
        scenario: as read.
        changes: "key.key=value" (see `sim.sweep.design.scenario_at`); values are read as YAML.

    Raises:
        ValueError: a change has no "=", is not YAML, or leads through a key that holds no mapping.
    """
    paths, values = [], []
    for change in changes:
        path, equals, text = change.partition("=")
        if not equals or not all(path.split(".")):
            raise ValueError(f"a change must read key.key=value, got {change!r}")
        paths.append(path)
        values.append(parse_yaml(text, f"the value of {path}"))
    return scenario_at(pickle.dumps(dict(scenario)), paths, values)
