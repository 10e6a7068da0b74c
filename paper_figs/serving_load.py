"""Speedup of a server against its request rate, by draft-length policy, simulated request by request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import sim
from paper_figs.style import COLUMN_INCHES, GUIDE, intervals, kinds, letter, new_figure, style
from sim.engine import ratio_interval
from sim.scenario_files import read_scenario, serving_from_json
from sim.serving import serve
from sim.serving.results import measure

NAME = "serving_load"
SOURCE = (
    "after Liu et al. 2024, SmartSpec, arXiv:2406.14066; simulated by sim.serving (sim/scenarios/llama_8b_h100.yaml)"
)
CAPTION = (
    "A server under load: Llama 3.1 8B with a Llama 3.2 1B draft on one H100, prompts of 1024 and outputs of 250 "
    "tokens in the mean, α = 0.7, Poisson arrivals for {seconds:.0f} s, the first quarter left out. (a) Mean latency "
    "without speculation over that with it, from arrival to the last token, and (b) the same of the time per token "
    "after the first; 95% intervals over {replications} runs with common random numbers. A server that may speculate "
    "reads every prompt with the draft as well, which is why 'off' falls below 1. At the highest rate γ = 5 cannot "
    "keep up: its latency grows with the length of the run."
)
SCENARIO = Path(sim.__file__).parent / "scenarios" / "llama_8b_h100.yaml"
POLICIES: Mapping[str, Mapping[str, Any]] = {
    "goodput": {"kind": "goodput", "max_gamma": 6},
    "fixed 2": {"kind": "fixed", "gamma": 2},
    "fixed 5": {"kind": "fixed", "gamma": 5},
    "off above 32": {"kind": "off_above", "max_batch": 32, "inner": {"kind": "fixed", "gamma": 5}},
}
LABELS = {
    "goodput": "goodput, γ ≤ 6",
    "fixed 2": "γ = 2",
    "fixed 5": "γ = 5",
    "off above 32": "γ = 5, off above 32",
}
MEASURES = {"latency": "latency_seconds.mean", "tpot": "tpot_seconds.mean"}

WARM_UP = 4
"""one in so many requests, the first, is left out: the server starts empty"""


def data(
    rates: Sequence[float] = (4, 8, 12, 16, 20),
    policies: Sequence[str] = tuple(POLICIES),
    seconds: float = 40,
    replications: int = 4,
    seed: int = 0,
) -> pd.DataFrame:
    """Ratios of means without speculation to those with it.

    Args:
        rates: requests a second. Without a draft this server answers 22 to 24 at most; beyond that a ratio says how
            long a run was, not how fast the server is.
        policies: names of `POLICIES`.
        seconds: that requests arrive for.
        replications: runs of each point, at least 2; the run without speculation has the same seed.
        seed: of the first.

    Returns:
        rate, policy, batch (mean, with the policy), seconds, replications, and for `latency` and `tpot` the ratio with
        its 95% interval `_lo`, `_hi`.
    """
    scenario = read_scenario(SCENARIO)
    rows = []
    for rate in rates:
        requests = round(seconds * rate)
        plain = _runs(scenario, rate, None, requests, replications, seed)
        for policy in policies:
            found = _runs(scenario, rate, POLICIES[policy], requests, replications, seed)
            row: dict[str, Any] = {"rate": rate, "policy": policy, "batch": found["batch.mean"].mean()}
            row |= {"seconds": seconds, "replications": replications}
            for name, column in MEASURES.items():
                value, (low, high) = ratio_interval(plain[column].to_numpy(), found[column].to_numpy())
                row |= {name: value, f"{name}_lo": low, f"{name}_hi": high}
            rows.append(row)
    return pd.DataFrame(rows)


def _runs(
    scenario: dict[str, Any], rate: float, policy: Mapping[str, Any] | None, requests: int, replications: int, seed: int
) -> pd.DataFrame:
    """The measures of every replication, of the same requests whatever the policy."""
    arrivals = {"kind": "poisson", "rate": float(rate)}
    changed = scenario | {
        "arrivals": arrivals,
        "requests": requests,
        "policy": None if policy is None else dict(policy),
    }
    found = []
    for replication in range(replications):
        one = serving_from_json(changed, seed + replication)
        found.append(measure(one, serve(one, seed + replication), drop=requests // WARM_UP).values)
    return pd.DataFrame(found)


def caption(table: pd.DataFrame) -> str:
    """The caption with the run's own sizes."""
    return CAPTION.format(seconds=table["seconds"].iloc[0], replications=int(table["replications"].iloc[0]))


def draw(table: pd.DataFrame) -> Figure:
    """Latency above, time per token below."""
    names = [name for name in LABELS if name in set(table["policy"])]
    with style():
        figure = new_figure(COLUMN_INCHES, 1.4 * COLUMN_INCHES)
        panels = figure.subplots(2, 1, sharex=True)
        for axes, measure_name in zip(panels, MEASURES, strict=True):
            for shift, (name, look) in enumerate(zip(names, kinds(len(names)), strict=True)):
                rows = table[table["policy"] == name]
                place = rows["rate"] + 0.25 * (shift - (len(names) - 1) / 2)
                intervals(axes, place, rows[f"{measure_name}_lo"], rows[f"{measure_name}_hi"], look["color"])
                axes.plot(place, rows[measure_name], label=LABELS[name], **look)
            axes.axhline(1, color=GUIDE, linewidth=0.7)
            axes.set(ylabel="Speedup (×)", xticks=np.unique(table["rate"]))
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, handlelength=3.2)
        panels[1].set_xlabel("Request rate [1/s]")
        letter(panels, ["Latency of a request", "Time per token"])
        return figure
