"""Run every point of a sweep, in this process, on all cores or on a Dask cluster, and keep what is done on the way.

Points run in chunks of about a second, so that sending one out costs little and an interruption loses little. Nothing
in a row but `wall_seconds` depends on how points fell into chunks or where they ran.
"""

from __future__ import annotations

import inspect
import os
import pickle
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cache, partial
from hashlib import blake2b, file_digest
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sim.acceptance import IntArray
from sim.sweep.columns import part_table, plain
from sim.sweep.design import Point, SweepDesign, point_id, scenario_at
from sim.sweep.merging import keep, merge
from sim.sweep.parts import (
    Identity,
    clear,
    find_sources,
    last_part,
    locked,
    made_by,
    parts_folder,
    write_identity,
    write_part,
)
from sim.sweep.workers import Workers, open_workers

TARGET_SECONDS = 1.0
"""how long a chunk is meant to take"""
LIMIT_SECONDS = 2.0
"""after this long a chunk starts no further point and hands the rest back"""
LEAST_SECONDS = 0.05
"""near the end chunks shrink, so that all workers finish together, but not below this"""
MAX_CHUNK = 10_000
"""points; bounds what one chunk holds in memory"""

RunPoint = Callable[[dict[str, Any], int], dict[str, Any]]
"""(scenario, seed) -> results by name; module-level, so that other processes find it"""


class Chunk(NamedTuple):
    """What one chunk of points came to."""

    rows: pa.Table
    left: list[int]
    """places of the points that were not started"""
    seconds: float


@dataclass(frozen=True)
class SweepResult:
    """What a sweep came to."""

    path: Path
    points: int
    done_before: int
    """points whose rows an earlier run left"""
    failed: int
    first_error: str | None
    """the message of the first failed point in the design's order"""


def run_sweep(
    design: SweepDesign,
    out: Path,
    *,
    run_point: RunPoint | None = None,
    jobs: int | None = None,
    dask: str | None = None,
    retry_failed: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> SweepResult:
    """Run what is missing of a sweep and write one Parquet table with a row per point.

    Columns: point, point_id (hash of scenario and seed), seed, replication, the swept parameters by dotted path, error
    (type and message of what the point raised, else null), wall_seconds (what the point took on this machine), then
    the results by name; a result called like another column is `result.NAME`. Finished chunks wait in `<out>.parts`: a
    run that was interrupted in any way goes on from them, a finished one returns at once, and a design that holds
    every point of an earlier one at `out` reuses its rows.

    Args:
        design: see `sim.sweep.reading`.
        out: the table; its folder is made.
        run_point: what runs a point; None: `sim.scenario_files.run_scenario`.
        jobs: processes; None: as many as there are cores. 1 runs in this process.
        dask: address of a Dask scheduler, instead of jobs; its workers must be able to import this package.
        retry_failed: run points again that failed in an earlier run.
        progress: called with (points done, points) at the start and after each chunk.

    Raises:
        ValueError: `out` holds something else, another run is writing to it, the cluster does not answer, or a
            worker process died; finished chunks are kept.
    """
    call = run_point or partial(run_scenario_in, design.folder.resolve())
    identity = identify(design, run_point or run_scenario_in)
    folder = parts_folder(out)
    if out.exists() and not folder.exists() and made_by(out)["fingerprint"] == identity.fingerprint:
        finished = summarise(out, design.size)
        if not (retry_failed and finished.failed):
            return finished
    with locked(folder):
        sources = find_sources(design, identity, out)
        kept = keep(sources, design.size)
        todo = np.flatnonzero(kept.failed if retry_failed else kept.source < 0)
        done_before = done = design.size - len(todo)
        report = progress or (lambda done, points: None)
        report(done, design.size)
        if len(todo):
            run = partial(run_chunk, call, pickle.dumps(design.scenario), design.parameters, LIMIT_SECONDS)
            with open_workers(jobs, dask) as workers, closing(run_chunks(run, design, todo, workers)) as chunks:
                write_identity(identity, folder)
                for number, chunk in enumerate(chunks, start=1 + last_part(folder)):
                    sources.append(write_part(chunk.rows, folder, number, identity))
                    done += len(chunk.rows)
                    report(done, design.size)
        merge(design, sources, identity, out)
        clear(folder)
    return summarise(out, done_before)


def run_scenario_in(folder: Path, scenario: dict[str, Any], seed: int) -> dict[str, Any]:
    """Run a scenario file's content; its paths are relative to the folder."""
    from sim.scenario_files import run_scenario  # here, for a function of one's own needs none of it

    return run_scenario(scenario, seed, folder)


def run_chunks(
    run: Callable[[list[Point]], Chunk], design: SweepDesign, todo: IntArray, workers: Workers
) -> Generator[Chunk]:
    """Run the points and yield chunks as they finish; points that a chunk hands back go into later chunks."""
    seconds_per_point: float | None = None

    def chunks(points: IntArray) -> Iterator[list[Point]]:
        first = 0
        while first < len(points):
            size = chunk_size(seconds_per_point, len(points) - first, workers.number)
            yield design.points(points[first : first + size])
            first += size

    while len(todo):
        left: list[int] = []
        with closing(workers.run_all(run, chunks(todo))) as finished:
            for chunk in finished:
                left += chunk.left
                latest = chunk.seconds / len(chunk.rows)
                # a mean, for points differ; the latest weigh most, for a worker's first point also pays for imports
                seconds_per_point = latest if seconds_per_point is None else (seconds_per_point + latest) / 2
                yield chunk
        todo = np.array(sorted(left), dtype=np.int64)


def chunk_size(seconds_per_point: float | None, left: int, workers: int) -> int:
    """Points of the next chunk: one while nothing is known, then as many as fit its share of the time left."""
    if seconds_per_point is None:
        return 1
    share = left * seconds_per_point / (2 * workers)
    seconds = min(TARGET_SECONDS, max(LEAST_SECONDS, share))
    return int(np.clip(seconds / max(seconds_per_point, 1e-9), 1, MAX_CHUNK))


def run_chunk(
    run_point: RunPoint, base: bytes, parameters: Sequence[str], limit_seconds: float, points: Sequence[Point]
) -> Chunk:
    """Run points one after another until they are done or the time is up, at least one.

    Args:
        run_point: runs one scenario.
        base: the pickled base scenario.
        parameters: dotted paths of the points' values.
        limit_seconds: after this long no further point starts.
        points: what to run.
    """
    start = time.perf_counter()
    rows: dict[str, list[Any]] = {name: [] for name in ("point", "point_id", "error", "wall_seconds")}
    results: list[dict[str, Any]] = []
    for point in points:
        began = time.perf_counter()
        if results and began - start >= limit_seconds:
            break
        scenario = scenario_at(base, parameters, point.values)
        name = point_id(scenario, point.seed)
        result: dict[str, Any] = {}
        error = None
        try:
            result = {str(key): plain(value) for key, value in run_point(scenario, point.seed).items()}
        except Exception as raised:  # whatever a point raises is that point's own result
            error = " ".join(f"{type(raised).__name__}: {raised}".split())
        results.append(result)
        row = {"point": point.place, "point_id": name, "error": error, "wall_seconds": time.perf_counter() - began}
        for key, value in row.items():
            rows[key].append(value)
    left = [point.place for point in points[len(results) :]]
    return Chunk(part_table(rows, results), left, time.perf_counter() - start)


def identify(design: SweepDesign, run_point: Callable[..., Any]) -> Identity:
    """What the rows of this run must share: the design, the function and its code, and files that scenarios name."""
    code = hash_of_sources(Path(__file__).parents[1], inspect.getsourcefile(run_point))
    described = design.describe()
    files = {}
    for name in sorted(texts_in([described["scenario"], described["grid"]])):
        path = design.folder / name
        if os.path.isfile(path):  # unlike Path.is_file, no error where text is too long for a path
            with path.open("rb") as content:
                files[name] = file_digest(content, "sha256").hexdigest()
    return Identity(described, f"{run_point.__module__}.{run_point.__qualname__}", code, files)


def texts_in(value: Any) -> set[str]:
    """All text in nested plain data, keys aside."""
    if isinstance(value, Mapping | list):
        entries = value.values() if isinstance(value, Mapping) else value
        return {text for entry in entries for text in texts_in(entry)}
    return {value} if isinstance(value, str) else set()


@cache
def hash_of_sources(folder: Path, more: str | None) -> str:
    """One hash of all Python files in a folder and of one more; read once in a process, as code itself is."""
    code = blake2b(digest_size=16)
    for path in [*sorted(folder.rglob("*.py")), *([Path(more)] if more else [])]:
        code.update(path.read_bytes())
    return code.hexdigest()


def summarise(out: Path, done_before: int) -> SweepResult:
    """What a finished table came to."""
    errors = pq.read_table(out, columns=["error"])["error"]
    raised = errors.drop_null()
    first = raised[0].as_py() if len(raised) else None
    return SweepResult(out, len(errors), done_before, len(raised), first)
