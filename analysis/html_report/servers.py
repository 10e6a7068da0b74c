"""The page of what `specdec serve-sim` simulated: of a server its latencies, throughput, and what it did over time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from analysis.html_report.document import (
    AGAIN,
    Bounds,
    Listing,
    Page,
    Part,
    Prose,
    Section,
    Table,
    again,
    ends,
    facts,
    interval,
    number,
    with_interval,
)
from analysis.html_report.plots import Row, Series, Value, plot_rows, plot_xy
from sim.serving.results import REQUEST_METRICS, acceptance, as_json, over_time, statistics, warm_up_requests

METRICS = {
    "ttft_seconds": "arrival to first token (TTFT)",
    "tpot_seconds": "time per token after it (TPOT)",
    "itl_seconds": "time between two emissions (ITL)",
    "latency_seconds": "arrival to last token",
    "waiting_seconds": "waiting before admission",
}
OVER_TIME = {
    "queue": "waiting requests",
    "batch": "decoding requests",
    "kv_tokens": "tokens in the KV cache",
    "tokens_per_second": "tokens per second",
}
RATIOS = {
    "tpot_ratio": "time per token (TPOT)",
    "ttft_ratio": "time to the first token (TTFT)",
    "latency_ratio": "arrival to last token",
    "throughput_ratio": "tokens per second",
}


def server_folder_page(folder: Path) -> Page:
    """The page of a folder that `specdec serve-sim --out` wrote: of the first run, with intervals from within it.

    Raises:
        ValueError: a file is damaged.
    """
    try:
        described = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        requests, steps = (pd.read_parquet(folder / f"{name}.parquet") for name in ("requests", "steps"))
        values, intervals = measures(requests)
        end = float(requests["finished_seconds"].max())
        found = as_json(values, intervals)
        found["over_time"] = {str(name): column.tolist() for name, column in over_time(requests, steps, end).items()}
        scenario, seed = described["scenario"], described["seed"]
        found["command"] = described.get("command")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder} is no readable run of a server: {error}; write one with --out") from error
    return _page(found, folder.name, seed, scenario)


def server_page(found: Mapping[str, Any], name: str) -> Page:
    """The page of what `specdec serve-sim --json` prints."""
    return _page(found, name, found["seed"], None)


def simulation_page(found: Mapping[str, Any], name: str) -> Page:
    """The page of what `specdec serve-sim --json` prints of a scenario that is no server."""
    speedup = found.get("speedup")
    lead = "" if speedup is None else f"Speedup {with_interval(speedup, found.get('speedup_ci'))}; "
    lead += f"{found['replications']} replications." if found["replications"] > 1 else "one run."
    sections = [Section("What was found", (_numbers(found),)), *_remarks(found)]
    made = facts("What was simulated", {"file": name, "seed": str(found["seed"])})
    lead = f"{lead[:1].upper()}{lead[1:]}"
    return Page("simulation", f"Simulation: {name}", (lead,), tuple(sections), (made, *again(found)))


def measures(requests: pd.DataFrame) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """What a table of requests says, its warm-up left out, by the names of `specdec serve-sim`."""
    drop = warm_up_requests(requests)
    kept = requests.iloc[drop:]
    start = float(kept["arrival_seconds"].iloc[0]) if drop else 0.0
    seconds = float(requests["finished_seconds"].max()) - start
    estimates: dict[str, Any] = {"requests": len(kept), "warm_up_requests": drop, "seconds": seconds}
    estimates["tokens_per_second"] = float(kept["output_tokens"].sum()) / seconds
    estimates["preemptions"] = int(kept["preemptions"].sum())
    for metric in REQUEST_METRICS:
        estimates |= statistics(metric, kept[metric].dropna().to_numpy())
    estimates |= acceptance(kept)
    values = {name: getattr(one, "value", one) for name, one in estimates.items()}
    return values, {name: (one.lo, one.hi) for name, one in estimates.items() if hasattr(one, "lo")}


def _page(found: Mapping[str, Any], name: str, seed: int, scenario: Mapping[str, Any] | None) -> Page:
    sections = [
        Section("Latency", tuple(_latency(found))),
        Section("Throughput, load and acceptance", (_numbers(found),)),
        *_ratios(found),
        *_over_time(found.get("over_time")),
    ]
    sections += _remarks(found)
    replications = found.get("replications")
    made: list[Part] = [facts("What was simulated", {"name": name, "seed": str(seed), "replications": replications})]
    if scenario is not None:
        made.append(
            Listing("scenario.yaml", yaml.safe_dump(dict(scenario), sort_keys=False, allow_unicode=True).rstrip())
        )
    made += again(found) or ([] if scenario is None else [Listing(AGAIN, _command(seed))])
    tpot, rate = found["tpot_seconds"], found["tokens_per_second"]
    lead = f"{number(rate)} tokens a second, {number(_milliseconds(tpot['mean']))} ms per token (TPOT, mean)"
    lead += f", {number(_milliseconds(found['ttft_seconds']['mean']))} ms to the first token (TTFT, mean)."
    return Page("server", f"Server under load: {name}", (lead,), tuple(sections), tuple(made))


def _command(seed: int) -> str:
    """What runs a scenario again whose command was not recorded."""
    return f"specdec serve-sim scenario.yaml --seed {seed} --out FOLDER"


def _remarks(found: Mapping[str, Any]) -> list[Section]:
    remarks = tuple(found.get("remarks") or ())
    return [Section("Remarks", (Prose(remarks, listed=True),))] if remarks else []


def _latency(found: Mapping[str, Any]) -> list[Part]:
    """A table of all statistics, and a plot for each metric, with those of the server without speculation if known."""
    without = found.get("baseline") or {}
    plots: list[Part] = []
    body = []
    names: list[str] = []
    for metric, label in METRICS.items():
        if metric not in found:
            continue
        names = [name for name in found[metric] if not name.endswith("_ci")]
        rows = [(name, found[metric][name], ends(found[metric].get(f"{name}_ci"))) for name in names]
        body.append((label, *(with_interval(value, bounds, 1e3) for _, value, bounds in rows)))
        plain = without.get(metric, {})
        if plain:
            body.append((f"{label}, without speculation", *(number(_milliseconds(plain.get(name))) for name in names)))
        drawn = [
            Row(name, (_in_milliseconds(value, bounds), *([_in_milliseconds(plain.get(name))] if plain else [])), 0.0)
            for name, value, bounds in rows
        ]
        series = ("with speculation", "without") if plain else ("",)
        plot = plot_rows(label[:1].upper() + label[1:], "milliseconds", drawn, series, from_zero=True)
        plots += [] if plot is None else [plot]
    table = Table("Milliseconds, with 95% intervals: means and percentiles over requests", ("", *names), tuple(body))
    return [table, *plots]


def _numbers(found: Mapping[str, Any]) -> Table:
    """All single numbers, and those with a mean and a maximum, beside those without speculation."""
    skipped = {"seed", "replications", "baseline", "over_time", *METRICS, *RATIOS}
    without = found.get("baseline") or {}
    rows = []
    for name, value in found.items():
        if name in skipped or name.endswith("_ci"):
            continue
        label, plain = name.replace("_", " "), without.get(name)
        if isinstance(value, int | float):
            rows.append(
                (label, number(value), interval(found.get(f"{name}_ci")), "" if plain is None else number(plain))
            )
        elif isinstance(value, Mapping):
            for statistic, one in value.items():
                if not statistic.endswith("_ci"):
                    beside = (plain or {}).get(statistic)
                    cells = (interval(value.get(f"{statistic}_ci")), "" if beside is None else number(beside))
                    rows.append((f"{label}, {statistic}", number(one), *cells))
    head = ("measure", "value", "95% interval", "without speculation")
    width = len(head) if without else 3
    return Table("Numbers of the run", head[:width], tuple(row[:width] for row in rows))


def _ratios(found: Mapping[str, Any]) -> list[Section]:
    rows = [
        Row(label, (Value(found[name], *ends(found.get(f"{name}_ci"))),))
        for name, label in RATIOS.items()
        if found.get(name) is not None
    ]
    plot = plot_rows("With speculation over without it", "ratio", rows, reference=1.0)
    return [] if plot is None else [Section("Beside the same server without speculation", (plot,))]


def _over_time(columns: Mapping[str, Any] | None) -> list[Section]:
    if columns is None:
        return []
    plots = [
        plot_xy(
            label[:1].upper() + label[1:],
            ("seconds", label),
            [Series("", tuple((Value(x), Value(y)) for x, y in zip(columns["seconds"], columns[name], strict=True)))],
            from_zero=True,
        )
        for name, label in OVER_TIME.items()
    ]
    return [Section("Over time", tuple(plot for plot in plots if plot is not None))]


def _in_milliseconds(seconds: float | None, bounds: Bounds = None) -> Value | None:
    """Seconds and their interval, to be drawn; None where they are not known."""
    low, high = map(_milliseconds, ends(bounds))
    return None if seconds is None else Value(1e3 * seconds, low, high)


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else 1e3 * seconds
