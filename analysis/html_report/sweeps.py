"""The page of a sweep: what its parameters do to the measures that matter, and which points failed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from analysis.html_report.document import (
    AGAIN,
    Listing,
    Page,
    Part,
    Section,
    Table,
    facts,
    shown,
    with_interval,
)
from analysis.html_report.plots import SERIES, Row, Series, Value, plot_rows, plot_xy
from sim.output_analysis import mean_interval
from sim.sweep.parts import made_by

MEASURES = {
    "speedup": ("speedup (×)", 1.0),
    "tpot_seconds.mean": ("mean time per token (TPOT), ms", 1e3),
    "ttft_seconds.mean": ("mean time to first token (TTFT), ms", 1e3),
    "tokens_per_second": ("tokens per second", 1.0),
    "block_efficiency": ("tokens per round", 1.0),
}
"""what is shown of a sweep, and the factor to that unit; of one that has none of them, its first results"""
MOST_RESULTS = 5
MOST_SETTINGS = 200
"""that a page shows, of a sweep that may have a million"""
WHISKERS_FROM = 3
"""replications; of two, Student's t makes an interval of 13 standard errors, which hides all else in a plot"""
MOST_ERRORS = 20


def is_sweep(path: Path) -> bool:
    """Is this Parquet file a table of `specdec sweep`?"""
    try:
        made_by(path)
    except ValueError:
        return False
    return True


def sweep_page(path: Path) -> Page:
    """The page of a table of `specdec sweep`."""
    made = made_by(path)
    design = made["identity"]["design"]
    parameters, results = list(design["order"]), list(made["results"].values())
    candidates = [name for name in MEASURES if name in results] or results
    rows = pd.read_parquet(path, columns=["error", *parameters, *candidates])
    measures = [name for name in candidates if _is_number(rows[name]) and rows[name].notna().any()][:MOST_RESULTS]
    groups = rows.groupby(parameters, sort=False, dropna=False) if parameters else rows.groupby(np.zeros(len(rows)))
    settings = _settings(groups, parameters, measures)
    failed = int(rows["error"].notna().sum())
    counts = {name: rows[name].nunique(dropna=False) for name in parameters}
    varied = [f"{name} ({count:,} values)" for name, count in counts.items() if count > 1]
    lead = f"{len(rows):,} points over {' and '.join(varied) or 'nothing but seeds'}"
    lead += f", {design['replications']:,} replications each" if design["replications"] > 1 else ""
    shown_only = f" The page shows the first {len(settings):,} of {groups.ngroups:,} settings."
    shows = shown_only if groups.ngroups > len(settings) else ""
    plots = tuple(_plots(settings, parameters, measures, design["latin_hypercube"]))
    sections = [
        *([Section("What the parameters do", plots)] if plots else []),
        Section("Every setting", (_table(settings, parameters, measures),)),
    ]
    if failed:
        sections.append(Section("Points that failed", (_failures(rows["error"]),)))
    return Page(
        kind="sweep",
        title=f"Sweep: {path.stem}",
        lead=(f"{lead}; {failed:,} failed.{shows}",),
        sections=tuple(sections),
        made=tuple(_made(path, design)),
    )


def _settings(groups: Any, parameters: Sequence[str], measures: Sequence[str]) -> list[dict[str, Any]]:
    """The first settings of the parameters, each with its measures as means over replications."""
    found = []
    for _, part in islice(groups, MOST_SETTINGS):
        values = {name: _plain(part[name].iloc[0]) for name in parameters}
        means = {name: _mean(part[name], name) for name in measures}
        found.append(values | {"measures": means, "replications": len(part)})
    return found


def _plain(value: Any) -> Any:
    """A cell without NumPy's types; None where it is missing."""
    return None if pd.isna(value) else value.item() if isinstance(value, np.generic) else value


def _mean(values: pd.Series[Any], name: str) -> Value:
    """The mean over replications in the measure's unit, with its interval from two on; NaN where there is none."""
    scale = MEASURES.get(name, ("", 1.0))[1]
    known = scale * values.to_numpy(dtype=np.float64, na_value=np.nan)
    known = known[np.isfinite(known)]
    if len(known) < 2:
        return Value(float(known[0]) if len(known) else float("nan"))
    mean = mean_interval(known)
    return Value(mean.value, mean.lo, mean.hi)


def _plots(
    settings: Sequence[Mapping[str, Any]],
    parameters: Sequence[str],
    measures: Sequence[str],
    hypercube: Mapping[str, Any],
) -> list[Part]:
    """Of a grid a line for every combination of the other parameters; of a hypercube points over every parameter."""
    columns = {name: [one[name] for one in settings] for name in parameters}
    varied = [name for name in parameters if len(set(columns[name])) > 1]
    numeric = [name for name in varied if _is_number(pd.Series(columns[name]))]
    found: list[Part | None] = []
    for measure in measures:
        label = _label(measure)
        if hypercube and numeric:
            found += [
                plot_xy(_over(label, name), (name, label), [Series("", _points(settings, name, measure), joined=False)])
                for name in numeric
            ]
        elif numeric:
            axis = max(numeric, key=lambda name: len(set(columns[name])))
            lines = _lines(settings, axis, [name for name in varied if name != axis], measure)
            found += [
                plot_xy(_over(label, axis), (axis, label), lines[start : start + SERIES])
                for start in range(0, len(lines), SERIES)
            ]
        else:
            rows = [Row(_named(one, varied) or "all", (_drawn(one, measure),)) for one in settings]
            found.append(plot_rows(_capitalised(label), label, rows))
    return [one for one in found if one is not None]


def _lines(settings: Sequence[Mapping[str, Any]], axis: str, others: Sequence[str], measure: str) -> list[Series]:
    """A line over one parameter for every combination of others."""
    lines: dict[str, list[Mapping[str, Any]]] = {}
    for one in settings:
        lines.setdefault(_named(one, others), []).append(one)
    return [
        Series(name, _points(sorted(part, key=lambda one: float(one[axis])), axis, measure))
        for name, part in lines.items()
    ]


def _points(settings: Sequence[Mapping[str, Any]], axis: str, measure: str) -> tuple[tuple[Value, Value], ...]:
    return tuple((Value(float(one[axis])), _drawn(one, measure)) for one in settings)


def _drawn(setting: Mapping[str, Any], measure: str) -> Value:
    """A measure, with its interval if that is over enough replications."""
    value: Value = setting["measures"][measure]
    return value if setting["replications"] >= WHISKERS_FROM else Value(value.value)


def _table(settings: Sequence[Mapping[str, Any]], parameters: Sequence[str], measures: Sequence[str]) -> Table:
    body = []
    for one in settings:
        values = [one["measures"][name] for name in measures]
        cells = [with_interval(value.value, (value.low, value.high)) for value in values]
        body.append((*(shown(one[name]) for name in parameters), *cells) if parameters else ("all", *cells))
    head = (*(parameters or ("setting",)), *map(_label, measures))
    return Table("Means over replications [95% interval]", head, tuple(body))


def _failures(errors: pd.Series[Any]) -> Table:
    counts = errors.dropna().value_counts().head(MOST_ERRORS)
    rows = tuple((str(error), f"{count:,}") for error, count in counts.items())
    return Table("What they failed with", ("error", "points"), rows)


def _made(path: Path, design: Mapping[str, Any]) -> list[Part]:
    """The design, as a file that the command reads."""
    kept = {name: value for name, value in design.items() if name != "order" and value not in ({}, None)}
    text = yaml.safe_dump(kept, sort_keys=False, allow_unicode=True, default_flow_style=None, width=100)
    note = "Files that the scenario names are looked for beside sweep.yaml."
    return [
        facts("What was swept", {"file": path.name, "seed": str(design["seed"])}, note),
        Listing("sweep.yaml", text.rstrip()),
        Listing(AGAIN, f"specdec sweep sweep.yaml --out {path.name}"),
    ]


def _named(setting: Mapping[str, Any], parameters: Sequence[str]) -> str:
    return ", ".join(f"{name} {shown(setting[name])}" for name in parameters)


def _over(label: str, parameter: str) -> str:
    return f"{_capitalised(label)} over {parameter}"


def _capitalised(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}"


def _label(measure: str) -> str:
    return MEASURES[measure][0] if measure in MEASURES else measure.replace("_", " ")


def _is_number(column: pd.Series[Any]) -> bool:
    return pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)
