"""Finds out what lies at a path, and reads it as a page."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from analysis.diagnose.logs import is_round_table
from analysis.html_report.comparisons import check_page, compared_page, comparison_page, read_comparison
from analysis.html_report.diagnoses import diagnosis_page
from analysis.html_report.document import Page
from analysis.html_report.imports import import_page, imported_page, log_page
from analysis.html_report.plans import plan_page
from analysis.html_report.runs import run_page
from analysis.html_report.servers import server_folder_page, server_page, simulation_page
from analysis.html_report.sweeps import is_sweep, sweep_page

KNOWN = (
    "a folder of `specdec lab`, `measure`, `serve-sim --out` or `import --out`, a round table, a table of `sweep`, an "
    "engine's log, a comparison.csv, or what `specdec plan`, `diagnose`, `compare`, `check`, `serve-sim` or `import` "
    "print with --json"
)

LARGEST_JSON = 1 << 26
"""characters; what commands print is far smaller, and logs may be larger"""


def read_page(path: Path, seed: int = 0) -> Page:
    """Read whatever is at a path.

    Args:
        path: file or folder.
        seed: of the bootstraps behind intervals that the source does not hold itself.

    Raises:
        ValueError: there is nothing at the path, or nothing that is known.
    """
    if not path.exists():
        raise ValueError(f"there is nothing at {path}; name {KNOWN}")
    try:
        return _folder(path, seed) if path.is_dir() else _file(path, seed)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"{path} is damaged: {type(error).__name__}: {error}; make it again") from error


def _file(path: Path, seed: int) -> Page:
    if path.suffix == ".parquet" and is_sweep(path):
        return sweep_page(path)
    if is_round_table(path):
        return run_page(path, seed)
    if path.suffix == ".csv":
        return comparison_page(read_comparison(path), path.name, seed)
    found = _document(_json(path), path.name, seed)
    return log_page(path) if found is None else found


def _folder(path: Path, seed: int) -> Page:
    names = {entry.name for entry in path.iterdir()}
    if "import.json" in names:
        return imported_page(path)
    if "rounds.parquet" in names:
        return run_page(path, seed)
    if {"run.json", "requests.parquet", "steps.parquet"} <= names:
        return server_folder_page(path)
    if "comparison.csv" in names:
        return comparison_page(read_comparison(path / "comparison.csv"), path.name, seed)
    raise ValueError(f"{path} holds no run; name {KNOWN}")


def _document(value: Any, name: str, seed: int) -> Page | None:
    """A page of what a command printed with --json; None for anything else, such as an engine's own JSON."""
    if not isinstance(value, Mapping):
        return None
    keys = set(value)
    if {"batches", "emit", "crossover_batch"} <= keys:
        return plan_page(value, name)
    if {"verdict", "causes", "split"} <= keys:
        return diagnosis_page(value, name)
    if {"configurations", "mean_absolute_percentage_error"} <= keys:
        return compared_page(value, name, seed)
    if {"comparisons", "regressed"} <= keys:
        return check_page(value, name)
    if {"ttft_seconds", "tpot_seconds", "replications"} <= keys:
        return server_page(value, name)
    if {"seed", "replications", "remarks"} <= keys:
        return simulation_page(value, name)
    if {"engine", "format", "level", "checks"} <= keys:
        return import_page(value, {}, name)
    return None


def _json(path: Path) -> Any:
    """The whole file as one JSON object; None where it is not one."""
    with open(path, encoding="utf-8", errors="replace") as file:
        text = file.read(LARGEST_JSON + 1)
    if not text.lstrip().startswith("{") or len(text) > LARGEST_JSON:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
