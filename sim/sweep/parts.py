"""Rows of a sweep kept in parts as they finish, and found again by a later run.

A part holds the rows of one chunk, each with its place in the design and its name. Seeds and swept values follow from
the design, so that parts outlive a design that grows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sim.acceptance import IntArray
from sim.records import write_atomically
from sim.sweep.columns import RESULT
from sim.sweep.design import SweepDesign, canonical, digest, point_ids

METADATA = b"sweep"
"""key of a file's metadata that says what made it"""


@dataclass(frozen=True)
class Identity:
    """What rows must share to stand in one table."""

    design: dict[str, Any]
    run_point: str
    """what ran each point"""
    code: str
    """hash of the sources behind it"""
    files: dict[str, str]
    """hash of each file that the scenarios name"""

    @cached_property
    def fingerprint(self) -> str:
        """One hash of it all."""
        return digest(asdict(self))


@dataclass(frozen=True)
class Source:
    """One row group of a part, or of an earlier table, and the points of the design whose rows it has."""

    path: Path
    group: int
    names: dict[str, str]
    """column that holds each result, by the result's name in parts"""
    points: IntArray
    """places in the design [rows]"""
    rows: IntArray
    """where each of them is in the row group [rows]"""
    failed: NDArray[np.bool_]
    """whether it has an error instead of results [rows]"""


def parts_folder(out: Path) -> Path:
    """Where the parts of the table `out` are kept until it is finished."""
    return out.with_name(out.name + ".parts")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a parts folder, made where it is missing, for one run alone; an empty one is taken away again.

    The operating system ends the lock with the process, however that ends. Windows has no such lock: there, nothing
    keeps two runs apart.

    Raises:
        ValueError: another run holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = folder / "lock"
    handle = lock.open("w")
    try:
        with suppress(ImportError):
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        handle.close()
        raise ValueError(f"another run is writing to {folder}; wait for it, or choose another --out") from error
    try:
        yield
    finally:
        handle.close()
        with suppress(OSError):
            lock.unlink()
            folder.rmdir()


def clear(folder: Path) -> None:
    """Take away the parts, and all else but the lock."""
    for path in folder.iterdir():
        if path.name != "lock":
            path.unlink()


def last_part(folder: Path) -> int:
    """Number of the newest part, 0 where there is none."""
    return max((int(path.stem) for path in folder.glob("[0-9]*.parquet")), default=0)


def made_by(path: Path) -> dict[str, Any]:
    """The metadata of a table or a part.

    Raises:
        ValueError: the file is not one of a sweep's.
    """
    try:
        return dict(json.loads(pq.read_schema(path).metadata[METADATA]))
    except (OSError, pa.ArrowInvalid, TypeError, KeyError) as error:
        raise ValueError(f"{path} is no result of a sweep; choose another --out, or delete it") from error


def write_part(rows: pa.Table, folder: Path, number: int, identity: Identity) -> Source:
    """Keep the rows of a chunk; parts with higher numbers are newer."""
    path = folder / f"{number:08d}.parquet"
    marked = rows.replace_schema_metadata({METADATA: json.dumps({"fingerprint": identity.fingerprint})})
    write_atomically(path, lambda part: pq.write_table(marked, part))
    return own_source(path, 0, part_names(rows.schema), rows)


def part_names(schema: pa.Schema) -> dict[str, str]:
    """The results of a part, under their own names."""
    return {name: name for name in schema.names if name.startswith(RESULT)}


def find_sources(design: SweepDesign, identity: Identity, out: Path) -> list[Source]:
    """Everything that earlier runs left, oldest first: rows of this design, or of one whose points are all in it.

    Raises:
        ValueError: there are rows of something else; the message says what differs.
    """
    folder = parts_folder(out)
    sources: list[Source] = []
    ids: pa.Array | None = None
    for path in [*([out] if out.exists() else []), *sorted(folder.glob("[0-9]*.parquet"))]:
        try:
            made = made_by(path)
        except ValueError:
            if path == out:
                raise
            path.unlink()  # a machine that lost power can leave a part without contents: its points are run again
            continue
        names = made["results"] if path == out else part_names(pq.read_schema(path))
        if made["fingerprint"] == identity.fingerprint:
            for group, rows in enumerate(row_groups(path, ["point", "error"])):
                sources.append(own_source(path, group, names, rows))
            continue
        before = made["identity"] if path == out else json.loads((folder / "design.json").read_text())
        same_files = all(before["files"].get(name, known) == known for name, known in identity.files.items())
        if (before["code"], before["run_point"]) != (identity.code, identity.run_point) or not same_files:
            raise refusal(out, before, identity)
        ids = point_ids(design) if ids is None else ids
        for group, rows in enumerate(row_groups(path, ["point_id", "error"])):
            if not pc.all(pc.is_in(rows["point_id"], value_set=ids)).as_py():
                raise refusal(out, before, identity)
            sources.append(other_source(path, group, names, rows, ids))
    return sources


def row_groups(path: Path, columns: list[str]) -> Iterator[pa.Table]:
    """Some columns of a file, a row group at a time."""
    file = pq.ParquetFile(path)
    for group in range(file.num_row_groups):
        yield file.read_row_group(group, columns=columns)


def own_source(path: Path, group: int, names: dict[str, str], rows: pa.Table) -> Source:
    """The source of rows that carry their place in this very design."""
    points = rows["point"].to_numpy()
    return Source(path, group, names, points, np.arange(len(points)), rows["error"].is_valid().to_numpy())


def other_source(path: Path, group: int, names: dict[str, str], rows: pa.Table, ids: pa.Array) -> Source:
    """The source of rows of another design, found in this one by the names of its points."""
    found = pc.index_in(ids, value_set=rows["point_id"].combine_chunks())
    at = found.drop_null().to_numpy().astype(np.int64)
    failed = rows["error"].is_valid().to_numpy()[at]
    return Source(path, group, names, np.flatnonzero(found.is_valid()), at, failed)


def write_identity(identity: Identity, folder: Path) -> None:
    """Write down beside the parts what they are made for."""
    write_atomically(folder / "design.json", lambda part: Path(part).write_text(canonical(asdict(identity))))


def refusal(out: Path, before: Mapping[str, Any], identity: Identity) -> ValueError:
    """The error that says in what a design differs from what is at `out`."""
    old, new = (flat(json.loads(canonical(side))) for side in (before, asdict(identity)))
    gone = "(not there)"
    changed = [
        f"{name.removeprefix('design.')} was {old.get(name, gone)[:80]} and is {new.get(name, gone)[:80]}"
        for name in sorted((old.keys() | new.keys()) - {"design.order"})
        if old.get(name) != new.get(name)
    ]
    more = f"; and {len(changed) - 3} more" if len(changed) > 3 else ""
    return ValueError(
        f"{out} or its parts hold rows of another sweep: {'; '.join(changed[:3])}{more}; "
        f"choose another --out, or delete {out} and {parts_folder(out)}"
    )


def flat(value: Any, name: str = "") -> dict[str, str]:
    """The leaves of nested mappings as JSON text, by dotted name."""
    if not isinstance(value, dict):
        return {name: canonical(value)}
    return {
        leaf: text for key, inner in value.items() for leaf, text in flat(inner, f"{name}.{key}".strip(".")).items()
    }
