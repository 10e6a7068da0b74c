"""The round table: one row per round, the same whether a simulation or a real run wrote it.

A round is one draft burst and one verification. An autoregressive step is a round with `gamma` 0. Whatever reads
the table (fits, predictions, comparisons, figures) cannot tell who wrote it.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Column:
    """One column of the round table: its dtype, its unit, and what it means."""

    dtype: str
    unit: str
    meaning: str


REQUIRED: dict[str, Column] = {
    "request_id": Column("str", "", "which request the round belongs to"),
    "round_index": Column("int64", "", "0, 1, 2, ... within the request and its configuration"),
    "batch": Column("int64", "requests", "requests in the same forward"),
    "context": Column("int64", "tokens", "prompt and output tokens known before the round"),
    "gamma": Column(
        "int64", "tokens", "draft length asked for, or the longest that may be; 0 for an autoregressive step"
    ),
    "drafted": Column("int64", "tokens", "tokens the draft proposed, at most gamma"),
    "accepted": Column("int64", "tokens", "drafted tokens the verification accepted"),
    "emitted": Column("int64", "tokens", "tokens added to the output, bonus or correction included"),
    "cut": Column("bool", "", "a stop token or the length limit ended the output inside this round"),
    "start_seconds": Column("float64", "seconds", "start of the round on the run's own clock"),
    "draft_seconds": Column("float64", "seconds", "time in draft forwards or lookups"),
    "verify_seconds": Column("float64", "seconds", "time in the target's forward"),
    "other_seconds": Column("float64", "seconds", "everything else: sampling, acceptance, bookkeeping"),
}

OPTIONAL: dict[str, Column] = {
    "phase": Column("str", "", "'calibration' or 'evaluation'"),
    "draft": Column("str", "", "name of the draft source; 'none' for an autoregressive step"),
    "category": Column("str", "", "category of the prompt"),
    "accept_probability": Column(
        "list<float64>", "", "min(1, p/q) of every drafted token of a chain, reached or not; estimates alpha"
    ),
    "depth": Column("int64", "tokens", "most drafted tokens that could be accepted: all of a chain, a tree's depth"),
    "accepted_ranks": Column(
        "list<int64>", "", "at each depth of a tree that was reached, the accepted sibling, from 0; -1 where none was"
    ),
}

ROUND_SECONDS = ("draft_seconds", "verify_seconds", "other_seconds")


def make_rounds(**columns: Any) -> pd.DataFrame:
    """Build a round table from arrays, checked.

    Args:
        columns: every required column and any optional one, each an array of the same length or one value.

    Returns:
        A DataFrame with the columns in schema order.

    Raises:
        ValueError: a column is missing or unknown, or a row breaks an identity (see `check_rounds`).
    """
    schema = REQUIRED | OPTIONAL
    unknown = sorted(set(columns) - set(schema))
    if unknown:
        raise ValueError(f"unknown round-table columns {unknown}; known: {sorted(schema)}")
    missing = sorted(set(REQUIRED) - set(columns))
    if missing:
        raise ValueError(f"round table lacks the columns {missing}")
    table = pd.DataFrame({name: columns[name] for name in schema if name in columns})
    for name in table.columns:
        dtype = schema[name].dtype
        if dtype != "str" and not dtype.startswith("list"):
            table[name] = table[name].astype(dtype)  # type: ignore[call-overload]  # dtype is one of the schema's names
    check_rounds(table)
    return table


def check_rounds(table: pd.DataFrame) -> None:
    """Check the identities that every round table satisfies.

    0 <= accepted <= drafted <= gamma; emitted = accepted + 1 unless the round was cut, and never more; times are finite
    and not negative; a drafted token's acceptance probability is in [0, 1] and there is one for each.

    Raises:
        ValueError: naming the first offending row, its values and the identity it breaks.
    """
    missing = sorted(set(REQUIRED) - set(table.columns))
    if missing:
        raise ValueError(f"round table lacks the columns {missing}")
    accepted, drafted, emitted = table["accepted"], table["drafted"], table["emitted"]
    identities: dict[str, pd.Series[Any]] = {
        "accepted >= 0": accepted >= 0,
        "accepted <= drafted": accepted <= drafted,
        "drafted <= gamma": drafted <= table["gamma"],
        "emitted >= 1": emitted >= 1,
        "emitted <= accepted + 1": emitted <= accepted + 1,
        "emitted == accepted + 1 unless cut": table["cut"] | (emitted == accepted + 1),
        "accepted <= depth <= drafted": (accepted <= chain_depth(table)) & (chain_depth(table) <= drafted),
        "batch >= 1": table["batch"] >= 1,
        "context >= 0": table["context"] >= 0,
    }
    for name in ("start_seconds", *ROUND_SECONDS):
        identities[f"{name} finite and >= 0"] = np.isfinite(table[name]) & (table[name] >= 0)
    if "accept_probability" in table:
        present = table["accept_probability"].notna()
        lengths = table["accept_probability"].where(present).map(len, na_action="ignore")
        identities["one accept_probability per drafted token"] = ~present | (lengths == drafted)
        within = np.ones(len(table), dtype=bool)
        rows = table.loc[present, "accept_probability"]
        within[present] = [all(0 <= chance <= 1 for chance in row) for row in rows]
        identities["accept_probability in [0, 1]"] = pd.Series(within, dtype=bool)
    for rule, holds in identities.items():
        if not holds.all():
            row = int(np.flatnonzero(~holds.to_numpy(dtype=bool))[0])
            values = {name: table.iloc[row][name] for name in REQUIRED}
            raise ValueError(f"round table breaks '{rule}' in row {row}: {values}")


def chain_depth(table: pd.DataFrame) -> pd.Series[Any]:
    """Most drafted tokens that each round could have accepted; without the column `depth` all rounds are chains."""
    return table["depth"] if "depth" in table else table["drafted"]


def summarise(table: pd.DataFrame) -> dict[str, Any]:
    """Aggregate a round table, and check that its aggregates agree with each other.

    Returns:
        rounds, drafted, accepted, emitted (tokens), seconds; `block_efficiency` (mean tokens emitted per round, a
        per-step mean), `block_efficiency_per_request` (the mean over requests of the same), `histogram` (h_j: rounds
        with j accepted), `marginal_acceptance` (P(positions 0..i all accepted), per round) and
        `conditional_acceptance` (given that position i was drafted and reached); NaN where nothing was reached.

    Raises:
        ValueError: the table is empty, or an identity between the aggregates fails.
    """
    if table.empty:
        raise ValueError("cannot summarise a round table without rows")
    accepted = table["accepted"].to_numpy()
    drafted = table["drafted"].to_numpy()
    emitted = table["emitted"].to_numpy()
    deepest = chain_depth(table).to_numpy()
    depth = int(deepest.max())
    histogram = np.bincount(accepted, minlength=depth + 1)
    position = np.arange(depth)[:, None]
    reached = ((accepted >= position) & (deepest > position)).sum(axis=1)
    passed = (accepted > position).sum(axis=1)
    marginal = passed / len(table)
    with np.errstate(invalid="ignore", divide="ignore"):
        conditional = np.where(reached > 0, passed / reached, np.nan)
    block_efficiency = emitted.sum() / len(table)
    if int((np.arange(depth + 1) * histogram).sum()) != int(accepted.sum()):
        raise ValueError("histogram of accepted tokens disagrees with their sum")
    if not table["cut"].any() and not np.isclose(block_efficiency, 1 + marginal.sum(), rtol=1e-12):
        raise ValueError(f"block efficiency {block_efficiency} is not 1 + sum of marginals {1 + marginal.sum()}")
    keys = [name for name in ("draft", "category", "gamma", "request_id") if name in table]
    per_request = table.groupby(keys, dropna=False)["emitted"].mean()
    return {
        "rounds": len(table),
        "drafted": int(drafted.sum()),
        "accepted": int(accepted.sum()),
        "emitted": int(emitted.sum()),
        "seconds": float(table[list(ROUND_SECONDS)].to_numpy().sum()),
        "block_efficiency": float(block_efficiency),
        "block_efficiency_per_request": float(per_request.mean()),
        "histogram": histogram.tolist(),
        "marginal_acceptance": marginal.tolist(),
        "conditional_acceptance": conditional.tolist(),
    }


@dataclass(frozen=True)
class RunMetadata:
    """What a run was made with: enough to make it again."""

    source: str
    """'sim' or 'real', or the name of the engine whose log was imported."""
    seed: int | None
    target: str = ""
    drafts: tuple[str, ...] = ()
    device: str = ""
    dtype: str = ""
    threads: int | None = None
    versions: dict[str, str] = field(default_factory=dict)
    git_commit: str | None = None
    created: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    command: str | None = None
    """as it was typed; None for a run that no command made, or made before commands were recorded"""
    prompts_file: str | None = None
    """'embedded', or the path as it was given"""
    prompts_sha256: str | None = None
    """of the file's bytes"""
    schema_version: int = SCHEMA_VERSION


def write_rounds(table: pd.DataFrame, path: Path) -> None:
    """Check the table and write it atomically, as Parquet or, for a name ending in .jsonl, one JSON object a line."""
    check_rounds(table)
    if path.suffix == ".jsonl":
        text = "".join(json.dumps(row, default=np.ndarray.tolist) + "\n" for row in table.to_dict("records"))
        write_atomically(path, lambda part: Path(part).write_text(text))
    else:
        write_atomically(path, lambda part: table.to_parquet(part, index=False))


def read_rounds(path: Path) -> pd.DataFrame:
    """Read and check a round table written by `write_rounds`.

    Raises:
        ValueError: the file is missing or damaged, or a row breaks an identity.
    """
    if not path.exists():
        raise ValueError(f"no round table at {path}; `specdec measure` and `specdec simulate --out` write one")
    try:
        if path.suffix == ".jsonl":
            # the standard library reads and writes every float exactly; pandas rounds them
            table = pd.DataFrame([json.loads(line) for line in path.read_text().splitlines()])
            present = [name for name in REQUIRED if name in table]
            table = table.astype({name: REQUIRED[name].dtype for name in present})
        else:
            table = pd.read_parquet(path)
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{path} is not a readable round table: {error}") from error
    check_rounds(table)
    return table


def write_metadata(metadata: RunMetadata, path: Path) -> None:
    """Write the metadata atomically as JSON."""
    write_json(asdict(metadata), path)


def read_metadata(path: Path) -> RunMetadata:
    """Read what `write_metadata` wrote.

    Raises:
        ValueError: the file is missing or not JSON, or its schema version is newer than this program's.
    """
    try:
        fields = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is not readable run metadata: {error}") from error
    if fields.get("schema_version", 0) > SCHEMA_VERSION:
        raise ValueError(f"{path} has schema version {fields['schema_version']}, this program knows {SCHEMA_VERSION}")
    return RunMetadata(**(fields | {"drafts": tuple(fields.get("drafts", ()))}))


def write_json(value: Any, path: Path) -> None:
    """Write a JSON-able value atomically, indented, NaN refused."""
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    write_atomically(path, lambda part: Path(part).write_text(text))


def write_atomically(path: Path, write: Callable[[str], Any]) -> None:
    """Call `write` on a temporary name beside `path`, then move it into place, so that no reader sees a half file.

    Raises:
        ValueError: nothing can be written there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    except OSError as error:
        why = f"{path.parent} is no folder" if isinstance(error, FileExistsError) else error.strerror
        raise ValueError(f"cannot write {path}: {why}; name another place") from error
    os.close(handle)
    try:
        write(part)
        os.chmod(part, 0o644)
        os.replace(part, path)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise
