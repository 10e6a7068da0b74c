"""How fast the serving simulator is beside Vidur (Agrawal et al. 2024, MLSys), at the same requests and prices.

Vidur fits its prices to profiles that it downloads. Here its scheduler asks our affine latency instead, so that both
simulate the same server, and their requests must finish at the same times. Each side runs in a process of its own: this
file, under an interpreter that may know only the one or the other.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

PEER_PYTHON = "SPECDEC_VIDUR_PYTHON"
"""environment variable: an interpreter that has vidur, where this one has not"""
REQUESTS, PROMPT_TOKENS, OUTPUT_TOKENS, RATE, SEED = 10_000, 100, 250, 30.0, 0
BATCH_LIMIT, PREFILL_TOKENS = 256, 8192
FIXED_SECONDS, SECONDS_PER_TOKEN, SECONDS_PER_KV_TOKEN = 0.02, 2e-5, 1e-9
REPEATS = 3
CLOCK_SECONDS = 1e-9
"""most that two finishing times may differ by; rounding leaves about 1e-13"""


def bench() -> dict[str, dict[str, float | bool]]:
    """The median over turns of our requests per second over vidur's; nothing where vidur is not installed.

    Seconds are the processor's, which other processes disturb less; each side runs in one thread. Ours include the
    measures of the run, vidur keeps no metrics, and set-up counts for neither.
    """
    peer = os.environ.get(PEER_PYTHON) or (sys.executable if importlib.util.find_spec("vidur") else None)
    if peer is None:
        return {}
    ratios = []
    for _ in range(REPEATS):
        with tempfile.TemporaryDirectory() as folder:
            ours, theirs = (run_apart(*side, folder) for side in (("ours", sys.executable), ("vidur", peer)))
        apart = float(np.abs(ours["finished"] - theirs["finished"]).max())
        assert apart <= CLOCK_SECONDS, f"the two servers finish a request {apart} s apart"
        ratios.append(float(theirs["seconds"] / ours["seconds"]))
    return {"serving_requests_per_second_over_vidur": {"value": median(ratios)}}


def run_apart(side: str, python: str, folder: str) -> dict[str, Any]:
    """One run of one side on one core: its processor seconds, and when requests arrived and finished."""
    one_core = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    environment = os.environ | one_core | {"PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [python, __file__, side, folder], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{side} failed under {python}: {done.stderr.strip()[-2000:]}")
    with np.load(Path(folder) / f"{side}.npz") as found:
        return dict(found)


def run_ours() -> dict[str, Any]:
    """Serve and measure."""
    from sim.latency import AffineLatency
    from sim.serving import Prefill, ServingScenario, serve
    from sim.serving.results import measure
    from sim.workload import ConstantLength, PoissonArrivals, SyntheticWorkload

    lengths = ConstantLength(PROMPT_TOKENS), ConstantLength(OUTPUT_TOKENS)
    workload = SyntheticWorkload(PoissonArrivals(RATE), *lengths, REQUESTS).sample(SEED)
    latency = AffineLatency(FIXED_SECONDS, SECONDS_PER_TOKEN, SECONDS_PER_KV_TOKEN)
    scenario = ServingScenario(latency, workload, batch_limit=BATCH_LIMIT, prefill=Prefill(tokens=PREFILL_TOKENS))
    began = time.process_time()
    log = serve(scenario, SEED)
    measure(scenario, log)
    return {
        "seconds": time.process_time() - began,
        "arrivals": workload.arrival_seconds,
        "finished": log.finished,
    }


def run_vidur(arrivals: NDArray[np.float64], folder: str) -> dict[str, Any]:
    """Serve the same arrivals with memory for every slot, and without metrics."""
    from vidur.config.config import (
        CacheConfig,
        ClusterConfig,
        MetricsConfig,
        ReplicaConfig,
        SimulationConfig,
        VllmSchedulerConfig,
    )
    from vidur.entities import Request
    from vidur.execution_time_predictor import ExecutionTimePredictorRegistry
    from vidur.request_generator import RequestGeneratorRegistry
    from vidur.simulator import Simulator
    from vidur.types import ExecutionTimePredictorType, RequestGeneratorType

    requests = [Request(arrival, PROMPT_TOKENS, OUTPUT_TOKENS) for arrival in arrivals.tolist()]
    generator = SimpleNamespace(generate=lambda: requests)
    predictor = SimpleNamespace(get_execution_time=vidur_price)
    # the defaults of a configuration choose these two, and a registry keeps what it has
    for registry, kind, made in (
        (RequestGeneratorRegistry, RequestGeneratorType.SYNTHETIC, generator),
        (ExecutionTimePredictorRegistry, ExecutionTimePredictorType.RANDOM_FORREST, predictor),
    ):
        registry.unregister(kind)
        registry.register(kind, lambda *_, made=made, **__: made)
    cluster = ClusterConfig(
        replica_config=ReplicaConfig(num_pipeline_stages=1, tensor_parallel_size=1),
        cache_config=CacheConfig(num_blocks=BATCH_LIMIT * (PROMPT_TOKENS + OUTPUT_TOKENS)),
        replica_scheduler_config=VllmSchedulerConfig(batch_size_cap=BATCH_LIMIT, max_tokens_in_batch=PREFILL_TOKENS),
    )
    metrics = MetricsConfig(write_metrics=False, enable_chrome_trace=False, store_plots=False, output_dir=folder)
    simulator = Simulator(SimulationConfig(cluster_config=cluster, metrics_config=metrics))
    began = time.process_time()
    simulator.run()
    seconds = time.process_time() - began
    return {"seconds": seconds, "finished": np.array([request.completed_at for request in requests])}


def vidur_price(batch: Any, pipeline_stage: int) -> Any:
    """The affine latency of one batch, as the attention time of a model of one layer, in milliseconds."""
    from vidur._native.entities import ExecutionTime

    new_tokens = batch.total_num_q_tokens
    known = sum(batch.num_kv_tokens) - new_tokens
    seconds = FIXED_SECONDS + SECONDS_PER_TOKEN * new_tokens + SECONDS_PER_KV_TOKEN * known
    return ExecutionTime(1, 0.0, 0.0, 1e3 * seconds, *[0.0] * 11)


def run_side(side: str, folder: str) -> None:
    """Run one side on one core and leave what it found in the folder; vidur takes the arrivals that ours left there."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    if side == "ours":
        found = run_ours()
    else:
        with np.load(Path(folder) / "ours.npz") as ours:
            found = run_vidur(ours["arrivals"], folder)
    np.savez(Path(folder) / f"{side}.npz", **found)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        run_side(*sys.argv[1:])
    else:
        print(json.dumps(bench(), indent=2))
