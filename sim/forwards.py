"""The forward table: one row per timed forward pass, from which latency models are fitted.

Rows of one `repeat` were timed in one sweep over all shapes, so a slow spell of the machine is shared inside a repeat;
whatever puts an interval on a fit resamples whole repeats.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from sim.records import Column, write_atomically

TARGET_ROLE = "target"

FORWARD_COLUMNS: dict[str, Column] = {
    "role": Column("str", "", "'target', or the name of a draft that runs a model"),
    "batch": Column("int64", "requests", "requests in the forward"),
    "new_tokens": Column("int64", "tokens", "tokens fed to the forward, per request"),
    "context": Column("int64", "tokens", "tokens already in the KV cache, per request"),
    "repeat": Column("int64", "", "which interleaved sweep over all shapes the timing belongs to"),
    "seconds": Column("float64", "seconds", "wall time of the forward"),
}


def check_forwards(table: pd.DataFrame) -> None:
    """Check that every row is a timing that a fit can use.

    Raises:
        ValueError: a column is missing, the table is empty, or a row is out of range; the row and the rule are named.
    """
    missing = [name for name in FORWARD_COLUMNS if name not in table]
    if missing:
        raise ValueError(f"forward table lacks the columns {missing}; it needs {list(FORWARD_COLUMNS)}")
    if table.empty:
        raise ValueError("forward table has no rows; time the forwards during calibration first")
    rules = {
        "batch >= 1": table["batch"] >= 1,
        "new_tokens >= 1": table["new_tokens"] >= 1,
        "context >= 0": table["context"] >= 0,
        "repeat >= 0": table["repeat"] >= 0,
        "seconds finite and > 0": np.isfinite(table["seconds"]) & (table["seconds"] > 0),
        "role named": table["role"].notna() & (table["role"] != ""),
    }
    for rule, holds in rules.items():
        if not holds.all():
            row = int(np.flatnonzero(~holds.to_numpy(dtype=bool))[0])
            raise ValueError(f"forward table breaks '{rule}' in row {row}: {table.iloc[row].to_dict()}")


def make_forwards(**columns: object) -> pd.DataFrame:
    """Build a checked forward table from arrays of one length, or single values.

    Raises:
        ValueError: a column is missing or unknown, or a row is out of range.
    """
    unknown = sorted(set(columns) - set(FORWARD_COLUMNS))
    if unknown:
        raise ValueError(f"unknown forward-table columns {unknown}; known: {list(FORWARD_COLUMNS)}")
    table = pd.DataFrame({name: columns[name] for name in FORWARD_COLUMNS if name in columns})
    check_forwards(table)
    return table.astype({name: column.dtype for name, column in FORWARD_COLUMNS.items() if column.dtype != "str"})


def write_forwards(table: pd.DataFrame, path: Path) -> None:
    """Check the table and write it atomically as Parquet."""
    check_forwards(table)
    write_atomically(path, lambda part: table.to_parquet(part, index=False))


def read_forwards(path: Path) -> pd.DataFrame:
    """Read and check a forward table.

    Raises:
        ValueError: the file is missing or damaged, or a row is out of range.
    """
    if not path.exists():
        raise ValueError(f"no forward table at {path}; `specdec lab` writes one while it calibrates")
    try:
        table = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is not a readable forward table: {error}") from error
    check_forwards(table)
    return table
