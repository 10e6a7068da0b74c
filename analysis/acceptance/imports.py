"""What `specdec import` made of a log, read back: its JSON, or the folder that --out wrote."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    from analysis.engine_logs import ImportedLog

SUMMARY = "import.json"
KEYS = ("engine", "marginal_acceptance", "skipped_lines")
"""by which a summary is known, whatever else its version holds"""
LARGEST = 1 << 26
"""bytes; a summary is far smaller, and logs may be larger"""


def read_log_or_import(paths: Sequence[Path], engine: str = "auto") -> ImportedLog:
    """An engine's log, or what `specdec import` made of one.

    Raises:
        ValueError: nothing readable is there, or an import's numbers are no measurement; one line.
    """
    if len(paths) == 1 and engine == "auto":
        found = read_import(paths[0])
        if found is not None:
            return found
    from analysis.engine_logs import read_log  # readers of every engine: loaded where one is asked for

    return read_log(paths, engine)


def is_import(folder: Path) -> bool:
    """Is this a folder that `specdec import --out` wrote, of a log that is no round table?"""
    return (folder / SUMMARY).is_file() and not (folder / "rounds.parquet").exists()


def read_import(path: Path) -> ImportedLog | None:
    """An import's summary, with the tables beside it where it is a folder; None for anything else.

    Raises:
        ValueError: naming the number that no measurement can give.
    """
    file = path / SUMMARY if path.is_dir() else path
    try:
        if not file.is_file() or file.stat().st_size > LARGEST or file.read_bytes()[:1] != b"{":
            return None
        document = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(document, dict) or not set(KEYS) <= document.keys():
        return None
    try:
        return _parsed(document, path)
    except ValueError as error:
        raise ValueError(f"{path} is a damaged import: {error}; import the log again") from error


def _parsed(document: Mapping[str, Any], path: Path) -> ImportedLog:
    from analysis.engine_logs import ImportedLog

    counts = ("rounds", "drafted", "accepted", "emitted", "gamma")
    means = ("mean_acceptance_length", "mean_acceptance_length_per_request", "draft_seconds")
    rates = {name: _listed(document, name, _rate) for name in ("marginal_acceptance", "conditional_acceptance")}
    if None in (rates["marginal_acceptance"] or ()):
        raise ValueError("marginal_acceptance must be rates, got null for one")
    found: dict[str, Any] = rates | {name: _number(document, name, whole=True) for name in counts}
    found |= {name: _number(document, name) for name in means}
    for name in ("series", "requests", "steps"):
        table = path / f"{name}.parquet"
        found[name] = pd.read_parquet(table) if table.is_file() else None
    return ImportedLog(
        engine=str(document["engine"]),
        format=str(document.get("format", "an import")),
        level=str(document.get("level", "mean")),
        files=(str(path),),
        histogram=_listed(document, "histogram", _count),
        round_table=None,
        checks=(),
        warnings=tuple(map(str, document.get("warnings") or ())),
        notes=tuple(map(str, document.get("notes") or ())),
        skipped_lines=_number(document, "skipped_lines", whole=True) or 0,
        skipped_examples=tuple(map(str, document.get("skipped_examples") or ())),
        **found,
    )


def _number(document: Mapping[str, Any], name: str, whole: bool = False) -> Any:
    value = document.get(name)
    if value is None:
        return None
    if type(value) not in ((int,) if whole else (int, float)) or not 0 <= value < math.inf:
        raise ValueError(f"{name} must be a {'whole ' if whole else ''}number >= 0 or null, got {value!r}")
    return value


def _listed(document: Mapping[str, Any], name: str, check: Callable[[Any], bool]) -> Any:
    values = document.get(name)
    if values is None:
        return None
    if not isinstance(values, list) or not all(map(check, values)):
        kind = "counts" if check is _count else "rates in [0, 1]"
        raise ValueError(f"{name} must be a list of {kind} or null, got {values!r}")
    return tuple(values)


def _rate(value: Any) -> bool:
    return value is None or (type(value) in (int, float) and 0 <= value <= 1)


def _count(value: Any) -> bool:
    return type(value) is int and value >= 0
