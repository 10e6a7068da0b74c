"""Independent replications of a simulation: how many are enough, and how two systems differ.

One replication gives one value of each metric, so values are independent whatever goes on inside a run. Law is
A. M. Law, "Simulation Modeling and Analysis" (5th ed., 2015).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sim.output_analysis import Estimate, mean_interval, student
from sim.records import write_atomically
from sim.theory import FloatArray

Progress = Callable[[str, int, int, str], None]
"""called with a stage, how much of it is done, how much there may be, and a detail"""


@dataclass(frozen=True)
class ReplicationResult:
    """Independent replications of one system."""

    base_seed: int
    values: dict[str, FloatArray]
    """every metric that the run returned [replications]"""
    metrics: tuple[str, ...]
    """the metrics that were asked for, each finite in every replication"""
    relative_half_width: float | None = None
    """how narrow their intervals were to be; None where only the number of replications was given"""

    @property
    def count(self) -> int:
        """How many replications there are."""
        return len(next(iter(self.values.values())))

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seed of each replication."""
        return tuple(replication_seed(self.base_seed, index) for index in range(self.count))

    @property
    def estimates(self) -> dict[str, Estimate]:
        """The estimate of each metric that was asked for.

        Each interval covers 95% of the time on its own, so all k of them at once at least 1 - k/20 (Law, sec. 9.7).
        """
        return {name: self.estimate(name) for name in self.metrics}

    @property
    def precise(self) -> bool:
        """Whether every interval is as narrow as asked; False: `most` replications were too few."""
        return narrow_enough([self.values[name] for name in self.metrics], self.relative_half_width)

    def estimate(self, metric: str) -> Estimate:
        """A metric's mean over replications with its Student t interval.

        Raises:
            ValueError: there is no such metric, or it is not finite in some replications; says in how many.
        """
        if metric not in self.values:
            raise ValueError(f"no metric {metric!r}; the replications have {sorted(self.values)}")
        lacking = np.flatnonzero(~np.isfinite(self.values[metric]))
        if len(lacking):
            raise ValueError(
                f"{metric!r} is not finite in {len(lacking)} of {self.count} replications, first in replication "
                f"{lacking[0]} (seed {self.seeds[lacking[0]]}); lengthen the run, a mean of the others would be biased"
            )
        return mean_interval(self.values[metric])


def replication_seed(base_seed: int, replication: int) -> int:
    """The seed of one replication, in [0, 2^63): that of SeedSequence(base_seed)'s child of this number."""
    child = np.random.SeedSequence(base_seed, spawn_key=(replication,))
    return int(child.generate_state(1, np.uint64)[0] >> np.uint64(1))


def replicate(
    run: Callable[[int], Mapping[str, float]],
    replications: int | None = None,
    *,
    base_seed: int,
    metrics: Sequence[str] | None = None,
    relative_half_width: float | None = None,
    least: int = 10,
    most: int = 100,
    progress: Progress | None = None,
    resume: Path | None = None,
) -> ReplicationResult:
    """Run independent replications: a given number, or as many as the intervals need to be narrow.

    The sequential rule is Law's (sec. 9.4.1, after Chow and Robbins 1965, Ann. Math. Stat. 36:457): stop at the first
    count from `least` on at which half width / |mean| <= r / (1 + r) for every metric, r being `relative_half_width`.
    A rule that looks again and again stops too early too often: over normal and gamma outputs (20,000 studies a case)
    its 95% intervals cover at worst 93% of the time with `least` 10, Law's advice, and 92% with 5.

    Args:
        run: one replication: a seed to metrics. Systems run with one base_seed share their random numbers.
        replications: how many; either this or relative_half_width is given.
        base_seed: the study's seed. Replication r's own depends on it and on r alone.
        metrics: what must be estimated, finite in every replication; None: all that `run` returns.
        relative_half_width: how narrow each metric's interval must be, as a share of its mean.
        least: replications before the rule first applies.
        most: replications after which it gives up, and the result is not `precise`.
        progress: told of each replication.
        resume: a file that keeps what is finished, and is gone on from where it is there. The first replication runs
            again, to see that the file is of this `run`.

    Raises:
        ValueError: an argument is out of range; a replication lacks a metric, or one that was asked for is not finite;
            the file is damaged, or of another seed or run.
    """
    check_plan(replications, relative_half_width, least, most)
    kept = read_replications(resume, base_seed) if resume is not None and resume.exists() else []
    rows: list[dict[str, float]] = []
    most = most if replications is None else replications
    while len(rows) < most:
        index = len(rows)
        if 0 < index < len(kept):
            row = kept[index]
        else:
            row = {name: float(value) for name, value in run(replication_seed(base_seed, index)).items()}
        metrics = tuple(row) if metrics is None else tuple(metrics)
        check_metrics(row, rows[0] if rows else row, metrics, index, base_seed)
        if index == 0 and kept:
            check_same(kept[0], row, metrics, resume)
        rows.append(row)
        if resume is not None and index >= len(kept):
            write_replications(resume, base_seed, rows)
        if progress is not None:
            progress("replications", len(rows), most, f"replication {index}")
        columns = [np.array([row[name] for row in rows]) for name in metrics]
        if relative_half_width is not None and len(rows) >= least and narrow_enough(columns, relative_half_width):
            break
    values = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    return ReplicationResult(base_seed, values, tuple(metrics or ()), relative_half_width)


def narrow_enough(columns: Sequence[FloatArray], relative_half_width: float | None) -> bool:
    """Whether each interval is as narrow as the sequential rule asks (see `replicate`); None asks nothing."""
    if relative_half_width is None:
        return True
    widest = max(mean_interval(column).relative_half_width for column in columns)
    return widest <= relative_half_width / (1 + relative_half_width)


@dataclass(frozen=True)
class PairedComparison:
    """One metric of two systems that ran on the same random numbers."""

    difference: Estimate
    """a - b, by a paired t"""
    ratio: Estimate | None
    """a / b, of means (Fieller); None where b's interval holds 0, so that no bounded interval covers"""
    variance_ratio: float
    """variance of the difference / what it would be without common random numbers; nan where neither varies"""


def compare_paired(
    a: ReplicationResult, b: ReplicationResult, metrics: Sequence[str] | None = None
) -> dict[str, PairedComparison]:
    """Compare two systems replication by replication, so that what their shared random numbers did cancels.

    The difference has a paired t interval (Law, sec. 10.2.1), the ratio of means that of Fieller (1954, JRSS B 16:175),
    both with replications - 1 degrees of freedom. How much cancels is for the systems to earn, by drawing the same
    things from the same stream (Law, sec. 11.2): `variance_ratio` says.

    Args:
        a: replications of one system.
        b: replications of the other, with the same seeds.
        metrics: what to compare; None: what was asked for in both.

    Raises:
        ValueError: the seeds differ, there is nothing to compare, or as `ReplicationResult.estimate`.
    """
    if a.base_seed != b.base_seed or a.count != b.count:
        raise ValueError(
            f"a paired comparison needs the same seeds, got {a.count} replications of base_seed {a.base_seed} and "
            f"{b.count} of {b.base_seed}; run both with one base_seed and replications={max(a.count, b.count)}"
        )
    names = [name for name in a.metrics if name in b.metrics] if metrics is None else list(metrics)
    if not names:
        raise ValueError(f"the results share no metric, got {a.metrics} and {b.metrics}; name some as metrics")
    return {name: compare_values(a, b, name) for name in names}


def compare_values(a: ReplicationResult, b: ReplicationResult, metric: str) -> PairedComparison:
    """One metric's comparison; see `compare_paired`."""
    above, below = a.estimate(metric), b.estimate(metric)
    x, y = a.values[metric], b.values[metric]
    difference = mean_interval(x - y)
    apart = above.half_width**2 + below.half_width**2
    (xx, xy), (_, yy) = np.cov(x, y) / a.count * student(a.count) ** 2
    # Fieller's interval is where (mean x - r mean y)^2 <= t^2 (xx - 2 r xy + r^2 yy)
    square, middle, rest = below.value**2 - yy, above.value * below.value - xy, above.value**2 - xx
    ratio = None
    if square > 0:
        root = math.sqrt(max(0.0, middle**2 - square * rest))  # below 0 by rounding only: the ratio itself solves it
        ratio = Estimate(above.value / below.value, (middle - root) / square, (middle + root) / square, a.count)
    return PairedComparison(difference, ratio, difference.half_width**2 / apart if apart else math.nan)


def check_plan(replications: int | None, relative_half_width: float | None, least: int, most: int) -> None:
    """Check how many replications `replicate` is to run.

    Raises:
        ValueError: naming what is out of range.
    """
    if (replications is None) == (relative_half_width is None):
        raise ValueError(
            f"give exactly one of replications and relative_half_width, got {replications} and {relative_half_width}"
        )
    if replications is not None and replications < 2:
        raise ValueError(f"replications must be >= 2, got {replications}; one run has no interval over replications")
    if relative_half_width is not None and not 0 < relative_half_width < 1:
        raise ValueError(f"relative_half_width must be in (0, 1), got {relative_half_width}; 0.01 is 1% of the mean")
    if relative_half_width is not None and not 2 <= least <= most:
        raise ValueError(f"least must be in [2, most], got least={least} and most={most}; 10 or more keeps coverage")


def check_metrics(
    row: Mapping[str, float], first: Mapping[str, float], metrics: Sequence[str], index: int, base_seed: int
) -> None:
    """Check that a replication has the first one's metrics, and that those asked for are finite.

    Raises:
        ValueError: naming the replication, its seed and the metric.
    """
    where = f"in replication {index} (seed {replication_seed(base_seed, index)})"
    if not metrics or not set(metrics) <= set(row):
        raise ValueError(f"a run must return the metrics {sorted(metrics)}, at least one, got {sorted(row)} {where}")
    if set(row) != set(first):
        raise ValueError(f"a run must return the same metrics each time, {sorted(first)}, got {sorted(row)} {where}")
    for name in metrics:
        if not math.isfinite(row[name]):
            raise ValueError(
                f"{name!r} is {row[name]} {where}; lengthen the run, or name the metrics to estimate as metrics=[...]"
            )


def check_same(kept: Mapping[str, float], row: Mapping[str, float], metrics: Sequence[str], path: Path | None) -> None:
    """Check that a file's first replication is what the run gives now.

    Raises:
        ValueError: naming the metric that differs.
    """
    for name in metrics:
        if name not in kept or not math.isclose(kept[name], row[name], rel_tol=1e-9):
            raise ValueError(
                f"{path} holds {name}={kept.get(name)} for the first replication, the run gives {row[name]}: it is of "
                "another run, or the metric is a clock's; give another file, or name the metrics that a seed fixes"
            )


def write_replications(path: Path, base_seed: int, rows: Sequence[Mapping[str, float]]) -> None:
    """Keep finished replications as JSON, atomically; a metric that was not asked for may be NaN."""
    text = json.dumps({"base_seed": base_seed, "replications": list(rows)}, indent=1) + "\n"
    write_atomically(path, lambda part: Path(part).write_text(text))


def read_replications(path: Path, base_seed: int) -> list[dict[str, float]]:
    """Read what `write_replications` kept.

    Raises:
        ValueError: the file is damaged, or of another base_seed.
    """
    try:
        kept = json.loads(path.read_text())
        seed = int(kept["base_seed"])
        rows = [{str(name): float(value) for name, value in row.items()} for row in kept["replications"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a readable file of replications: {error}") from error
    if seed != base_seed:
        raise ValueError(f"{path} holds replications of base_seed {seed}, not {base_seed}; give another file")
    return rows
