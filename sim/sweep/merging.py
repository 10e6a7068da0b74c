"""One table from the rows that a sweep's runs left: a row per point, in the design's order."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sim.acceptance import IntArray
from sim.records import write_atomically
from sim.sweep.columns import cast, column, common_type, plain, result_names
from sim.sweep.design import ROW_COLUMNS, SweepDesign
from sim.sweep.parts import METADATA, Identity, Source, parts_folder

BLOCK = 50_000
"""rows merged at a time, and rows of a row group in the table"""


@dataclass(frozen=True)
class Kept:
    """The row that counts for each point: the newest, but one with results before one with an error."""

    source: IntArray
    """index of its source, -1 for a point without a row [points]"""
    row: IntArray
    """index in the source's row group [points]"""
    failed: NDArray[np.bool_]
    """True also where there is no row [points]"""


def keep(sources: Sequence[Source], size: int) -> Kept:
    """Choose the row of each of `size` points from sources ordered from old to new."""
    kept = Kept(np.full(size, -1, dtype=np.int64), np.zeros(size, dtype=np.int64), np.ones(size, dtype=np.bool_))
    for number, source in enumerate(sources):
        better = kept.failed[source.points] | ~source.failed
        points = source.points[better]
        kept.source[points], kept.row[points] = number, source.rows[better]
        kept.failed[points] = source.failed[better]
    return kept


def merge(design: SweepDesign, sources: Sequence[Source], identity: Identity, out: Path) -> None:
    """Write the table in the design's order, atomically, a block of rows at a time.

    Raises:
        ValueError: a point has no row, as when something else took parts away.
    """
    kept = keep(sources, design.size)
    if (missing := int((kept.source < 0).sum())) > 0:
        raise ValueError(f"{missing} points have no row in {parts_folder(out)}; run the same again")
    files = {path: pq.read_schema(path) for path in {source.path for source in sources}}
    stored = sorted({name for source in sources for name in source.names})
    kinds = {
        name: common_type({files[s.path].field(s.names[name]).type for s in sources if name in s.names})
        for name in stored
    }
    names = result_names(stored, (*ROW_COLUMNS, *design.parameters))
    levels = [column([plain(value) for value in values]) for values in design.grid.values()]
    made = {"fingerprint": identity.fingerprint, "identity": asdict(identity), "results": names}

    def block(points: IntArray) -> pa.Table:
        pieces, places = [], []
        for number in np.unique(kept.source[points]).tolist():
            mine = points[kept.source[points] == number]
            pieces.append(stored_rows(sources[number], kept.row[mine], kinds))
            places.append(mine)
        rows = pa.concat_tables(pieces).take(np.argsort(np.concatenate(places)))
        *on_grid, row, replication = design.positions(points)
        columns: dict[str, Any] = {"point": points, "point_id": rows["point_id"]}
        columns |= {"seed": np.array(design.seeds(points), dtype=np.int64), "replication": replication}
        columns |= {path: level.take(at) for path, level, at in zip(design.grid, levels, on_grid, strict=True)}
        columns |= {path: sample[row] for path, sample in design.samples.items()}
        columns |= {"error": rows["error"], "wall_seconds": rows["wall_seconds"]}
        return pa.table(columns | {name: rows[part_name] for part_name, name in names.items()})

    def write(part: str) -> None:
        first = block(np.arange(min(BLOCK, design.size)))
        schema = first.schema.with_metadata({METADATA: json.dumps(made)})
        with pq.ParquetWriter(part, schema) as writer:
            writer.write_table(first, row_group_size=BLOCK)
            for start in range(BLOCK, design.size, BLOCK):
                writer.write_table(block(np.arange(start, min(start + BLOCK, design.size))), row_group_size=BLOCK)

    write_atomically(out, write)


def stored_rows(source: Source, rows: IntArray, kinds: Mapping[str, pa.DataType]) -> pa.Table:
    """Rows of a source with every result of `kinds` in its type; null where the source does not have it."""
    fixed = ["point_id", "error", "wall_seconds"]
    table = (
        pq.ParquetFile(source.path).read_row_group(source.group, columns=[*fixed, *source.names.values()]).take(rows)
    )
    columns: dict[str, Any] = {name: table[name] for name in fixed}
    for name, kind in kinds.items():
        known = name in source.names
        columns[name] = cast(table[source.names[name]], kind) if known else pa.nulls(len(rows), kind)
    return pa.table(columns)
