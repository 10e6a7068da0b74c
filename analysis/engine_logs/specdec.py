"""The project's own files: a round table (.parquet or .jsonl), or a folder of `specdec measure` or `lab` with one."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from analysis.engine_logs.evidence import Evidence
from sim.records import REQUIRED, read_rounds, summarise

TABLE = "rounds.parquet"
LONGEST_ROW_BYTES = 1 << 20


def is_own(path: Path) -> bool:
    """Is this a folder, a Parquet file, or a round table as JSON lines?"""
    if path.is_dir() or path.suffix == ".parquet":
        return True
    if not path.is_file():  # a pipe can be read once only
        return False
    try:
        with open(path, "rb") as file:
            start = file.readline(LONGEST_ROW_BYTES)
            if start.startswith(b"PAR1"):
                return True
            first = json.loads(start) if path.suffix == ".jsonl" else None
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(first, dict) and {"round_index", "gamma", "accepted", "emitted"} <= first.keys()


def read_own(path: Path) -> Evidence:
    """Sum up the rounds that had a draft.

    Raises:
        ValueError: there is no round table, it breaks its schema, or it has no round with a draft.
    """
    if path.is_dir():
        if not (path / TABLE).exists():
            raise ValueError(
                f"{path} is a folder without {TABLE}; name the log files in it, or a folder of `specdec measure`"
            )
        path = path / TABLE
    table = read_rounds(path)
    rounds = table[table["gamma"] > 0].reset_index(drop=True)
    if rounds.empty:
        raise ValueError(f"{path} holds no round with a draft (every gamma is 0)")
    total = summarise(rounds)
    gammas = sorted(rounds["gamma"].unique().tolist())
    notes = []
    if len(rounds) < len(table):
        notes.append(f"{len(table) - len(rounds):,} autoregressive steps were left out")
    if "draft" in rounds and rounds["draft"].nunique() > 1:
        notes.append(f"rounds of the drafts {', '.join(sorted(map(str, rounds['draft'].unique())))} were added up")
    if len(gammas) > 1:
        notes.append(f"rounds of the draft lengths {', '.join(map(str, gammas))} were added up")
    if rounds["cut"].any():
        notes.append(f"{int(rounds['cut'].sum()):,} rounds were cut by the end of an output and emitted less")
    return Evidence(
        "round table",
        "steps",
        rounds=total["rounds"],
        drafted=total["drafted"],
        accepted=total["accepted"],
        emitted=total["emitted"],
        mean=total["block_efficiency"],
        mean_per_request=total["block_efficiency_per_request"],
        marginal=tuple(total["marginal_acceptance"]),
        marginal_tolerance=None if rounds["cut"].any() else 1e-9,
        conditional=tuple(None if rate != rate else rate for rate in total["conditional_acceptance"]),
        histogram=tuple(total["histogram"]),
        gamma=gammas[0] if len(gammas) == 1 else None,
        draft_seconds=float(rounds["draft_seconds"].sum()),
        requests=_requests(rounds),
        round_table=table[list(dict.fromkeys([*REQUIRED, *table.columns]))],
        notes=tuple(notes),
    )


def _requests(rounds: pd.DataFrame) -> pd.DataFrame:
    """One row per request and configuration."""
    keys = [name for name in ("draft", "category", "gamma", "request_id") if name in rounds]
    grouped = rounds.groupby(keys, dropna=False, sort=False)
    table = grouped[["drafted", "accepted", "emitted"]].sum()
    table.insert(0, "rounds", grouped.size())
    table["mean_acceptance_length"] = table["emitted"] / table["rounds"]
    return table.reset_index()
