"""What answers from logs and tables promise: importing, diagnosing, planning, and published speedups."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from analysis.diagnose import Diagnosis, diagnose
from analysis.published import predict_published, score_published
from analysis.published.rows import read_published
from paper_figs import PUBLISHED
from tests import bench_plan
from tests.analysis.drawn_costs import drawn_run
from tests.analysis.engine_logs.big_logs import MEASURE, vllm_lines, write
from tests.analysis.planted import CAUSES, planted_run

Row = dict[str, float | bool]
LOG_BYTES = 10**9
RUNS = 100
"""planted runs of each cause"""
ASKED = {"2211.17192": ("leviathan", 12.0), "2408.11049": ("magicdec", 3.0), "2402.12374": ("specinfer_trees", 8.0)}
"""percent, by what a source's name holds"""


def bench_import() -> dict[str, Row]:
    """A vLLM log of 1 GB, in a process of its own on one core."""
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder) / "vllm.log", vllm_lines(np.random.default_rng(0)), LOG_BYTES)
        one_core = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, str(path)], env=os.environ | one_core, capture_output=True, text=True,
            check=True,
        )  # fmt: skip
        size = path.stat().st_size / 1e6
    speed, peak = (re.search(pattern, done.stdout) for pattern in (r"(\d+) MB/s", r"peak (\d+) MiB"))
    if speed is None or peak is None:
        raise RuntimeError(f"no speed and peak in {done.stdout!r}")
    return {
        "import_1_gb_vllm_log_seconds": {"value": size / float(speed[1]), "target": 60.0, "lower_is_better": True},
        "import_1_gb_vllm_log_mib": {"value": float(peak[1]), "target": 300.0, "lower_is_better": True},
    }


def bench_diagnose() -> dict[str, Row]:
    """How often the first cause is the planted one: simulated runs, and runs drawn without the simulator."""
    found: dict[str, list[bool]] = {"simulated": [], "drawn": [], "drawn_no_baseline": []}
    for number, cause in enumerate(CAUSES):
        for seed in range(1000 * number, 1000 * number + RUNS):
            rounds, steps = drawn_run(cause, seed)
            found["simulated"].append(first_cause(diagnose(planted_run(cause, seed), resamples=100)) == cause)
            found["drawn"].append(first_cause(diagnose(rounds, steps, resamples=100)) == cause)
            if cause != "verify_width":  # one width alone does not tell what a wider one costs
                found["drawn_no_baseline"].append(first_cause(diagnose(rounds, resamples=100)) == cause)
    return {
        f"diagnose_first_cause_right_{kind}_of_{len(right)}": {"value": float(np.mean(right)), "target": 0.95}
        for kind, right in found.items()
    }


def first_cause(found: Diagnosis) -> str | None:
    """The name of the first cause, if there is one."""
    return found.causes[0].name if found.causes else None


def bench_published() -> dict[str, Row]:
    """Mean absolute errors in percent by source, and the share of all intervals that hold what was measured."""
    rows = read_published(PUBLISHED)
    table = predict_published(rows, reference=rows)
    results: dict[str, Row] = {}
    for score in score_published(table).to_dict(orient="records"):
        for key, (name, target) in ASKED.items():
            if key in str(score["source"]):
                row: Row = {"value": float(score["mape"]), "target": target, "lower_is_better": True}
                results[f"published_{name}_error_percent"] = row
    held = float(table["covered"].dropna().astype(np.float64).mean())
    return results | {"published_intervals_that_hold": {"value": held}}


def bench_plans() -> dict[str, Row]:
    """How many planned draft lengths are within 3% of the fastest measured one, on the embedded pair."""
    cases = bench_plan.bench()
    good = sum(case.good for case in cases)
    return {f"plans_within_3_percent_of_best_of_{len(cases)}": {"value": float(good), "target": 10.0}}
