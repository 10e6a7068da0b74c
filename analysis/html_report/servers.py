"""The page of a simulated server: latencies, throughput, the server over time, and both with and without a draft."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from analysis.html_report.document import (
    Listing,
    Page,
    Part,
    Prose,
    Section,
    Table,
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
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder} is no readable run of a server: {error}; write one with --out") from error
    return _page(found, folder.name, seed, scenario)


def server_page(found: Mapping[str, Any], name: str) -> Page:
    """The page of what `specdec serve-sim --json` prints."""
    return _page(found, name, found["seed"], None)


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
    if found.get("remarks"):
        sections.append(Section("Remarks", (Prose(tuple(found["remarks"]), listed=True),)))
    made: list[Part] = [
        facts("What was simulated", {"name": name, "seed": seed, "replications": found.get("replications")})
    ]
    if scenario is not None:
        again = f"specdec serve-sim scenario.yaml --seed {seed} --out FOLDER"
        made += [
            Listing("scenario.yaml", yaml.safe_dump(dict(scenario), sort_keys=False, allow_unicode=True).rstrip()),
            Listing("The command that makes it again", again),
        ]
    tpot, rate = found["tpot_seconds"], found["tokens_per_second"]
    lead = f"{number(rate)} tokens a second, {number(_milliseconds(tpot['mean']))} ms per token (TPOT, mean)"
    lead += f", {number(_milliseconds(found['ttft_seconds']['mean']))} ms to the first token (TTFT, mean)."
    return Page("server", f"Server under load: {name}", (lead,), tuple(sections), tuple(made))


def _latency(found: Mapping[str, Any]) -> list[Part]:
    """A table of all statistics, and a plot for each metric."""
    plots: list[Part] = []
    body = []
    names: list[str] = []
    for metric, label in METRICS.items():
        if metric not in found:
            continue
        names = [name for name in found[metric] if not name.endswith("_ci")]
        rows = [(name, found[metric][name], ends(found[metric].get(f"{name}_ci"))) for name in names]
        body.append((label, *(with_interval(value, bounds, 1e3) for _, value, bounds in rows)))
        drawn = [
            Row(name, (Value(1e3 * value, *(None if end is None else 1e3 * end for end in bounds)),), 0.0)
            for name, value, bounds in rows
            if value is not None
        ]
        plot = plot_rows(label[:1].upper() + label[1:], "milliseconds", drawn, from_zero=True)
        plots += [] if plot is None else [plot]
    table = Table("Milliseconds, with 95% intervals: means and percentiles over requests", ("", *names), tuple(body))
    return [table, *plots]


def _numbers(found: Mapping[str, Any]) -> Table:
    """All single numbers, and those with a mean and a maximum."""
    skipped = {"seed", "replications", *METRICS, *RATIOS}
    rows = []
    for name, value in found.items():
        if name in skipped or name.endswith("_ci"):
            continue
        if isinstance(value, int | float):
            rows.append((name.replace("_", " "), number(value), interval(found.get(f"{name}_ci"))))
        elif isinstance(value, Mapping) and name not in ("baseline", "over_time"):
            for statistic, one in value.items():
                if not statistic.endswith("_ci"):
                    bounds = value.get(f"{statistic}_ci")
                    rows.append((f"{name.replace('_', ' ')}, {statistic}", number(one), interval(bounds)))
    return Table("Numbers of the run", ("measure", "value", "95% interval"), tuple(rows))


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


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else 1e3 * seconds
