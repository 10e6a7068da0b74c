"""How fast the serving simulator and the sweeps are, and how well a roofline predicts forwards that it did not see."""

from __future__ import annotations

import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from analysis.fit.roofline import checkerboard, held_out_error, read_forwards
from sim.acceptance import IidAcceptance
from sim.controllers import FixedGamma
from sim.latency import AffineLatency
from sim.serving import ServingScenario, Speculation, serve
from sim.serving.results import measure
from sim.sweep import run_sweep
from sim.sweep.reading import make_design
from sim.workload import ConstantLength, PoissonArrivals, SyntheticWorkload

SIZES = (1_000, 10_000, 100_000)
OUTPUT_TOKENS = 250
RATE = 30.0
"""requests per second; batches of about 90 with speculation, and all 256 slots without"""


def bench() -> dict[str, dict[str, float | bool]]:
    """One core: seconds and memory of the largest run, and how time grows; two cores: a sweep of 10,000 points."""
    runs = {gamma: [run_apart(requests, gamma) for requests in SIZES] for gamma in (4, 0)}
    results: dict[str, dict[str, float | bool]] = {}
    for gamma, measured in runs.items():
        name = f"serving_{SIZES[-1] // 1000}k_requests_gamma_{gamma}"
        seconds = [run["seconds"] for run in measured]
        exponent = float(np.polyfit(np.log(SIZES), np.log(seconds), 1)[0])
        results[f"{name}_seconds"] = {"value": seconds[-1], "target": 120.0, "lower_is_better": True}
        results[f"{name}_gib"] = {"value": measured[-1]["gib"], "target": 1.5, "lower_is_better": True}
        results[f"{name}_growth_exponent"] = {"value": exponent}
    results["sweep_10000_points_seconds"] = {"value": sweep_seconds(), "target": 60.0, "lower_is_better": True}
    return results | roofline_errors()


def run_apart(requests: int, gamma: int) -> dict[str, float]:
    """One run in a process of its own, on one core."""
    code = f"from tests.bench_serving import run_once; run_once({requests}, {gamma})"
    one_core = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | one_core, capture_output=True, text=True, check=True
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def run_once(requests: int, gamma: int) -> None:
    """Serve, measure, and print seconds and the process's greatest memory."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    workload = SyntheticWorkload(PoissonArrivals(RATE), ConstantLength(100), ConstantLength(OUTPUT_TOKENS), requests)
    speculation = Speculation(FixedGamma(gamma), IidAcceptance(0.7), AffineLatency(0.001, 1e-6))
    scenario = ServingScenario(AffineLatency(0.02, 2e-5, 1e-9), workload.sample(0), speculation, batch_limit=256)
    began = time.perf_counter()
    log = serve(scenario, 0)
    result = measure(scenario, log)
    seconds = time.perf_counter() - began
    assert math.isfinite(result.values["tokens_per_second"])
    print(json.dumps({"seconds": seconds, "gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}))


def sweep_seconds() -> float:
    """10,000 single requests of 2,000 rounds each, on all cores."""
    design = make_design(
        {
            "scenario": {
                "kind": "single",
                "latency": {
                    "target": {"kind": "constant", "seconds": 1.0},
                    "draft": {"kind": "constant", "seconds": 0.1},
                },
                "acceptance": {"kind": "iid", "alpha": 0.7},
                "policy": {"kind": "fixed", "gamma": 4},
                "rounds": 2_000,
            },
            "grid": {
                "acceptance.alpha": {"linspace": [0.3, 0.95, 50]},
                "policy.gamma": list(range(1, 11)),
                "latency.draft.seconds": {"linspace": [0.01, 0.5, 20]},
            },
        }
    )
    assert design.size == 10_000
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        result = run_sweep(design, Path(folder) / "sweep.parquet")
        seconds = time.perf_counter() - began
    assert result.failed == 0
    return seconds


def roofline_errors() -> dict[str, dict[str, float | bool]]:
    """Mean absolute errors, as shares, on the cells of (batch, context) that were not fitted."""
    table = read_forwards()
    error = held_out_error(table, checkerboard(table))
    return {
        "roofline_error_on_the_other_half": {
            "value": error.forward.value / 100,
            "target": 0.06,
            "lower_is_better": True,
        },
        "roofline_verify_ratio_error_on_the_other_half": {
            "value": error.verify_ratio.value / 100,
            "target": 0.05,
            "lower_is_better": True,
        },
    }
