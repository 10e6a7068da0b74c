"""What a plan brings under load: a simulated server with and without it, on the same requests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from analysis.plan import Crossover
from analysis.plan.acceptance import DraftLaw
from analysis.plan.costs import ModelCosts
from sim.acceptance import PerPositionAcceptance
from sim.controllers import Controller, FixedGamma, OffAboveLoad
from sim.replication import ReplicationResult, compare_paired, replicate
from sim.serving import ServingScenario, Speculation, serve
from sim.serving.results import measure
from sim.workload import ConstantLength, PoissonArrivals, make_workload

METRICS = {
    "tpot_seconds.mean": "tpot",
    "itl_seconds.mean": "itl",
    "ttft_seconds.mean": "ttft",
    "tokens_per_second": "throughput",
}
"""measures of a run, and what their quotients are called"""


@dataclass(frozen=True)
class Load:
    """Poisson arrivals of requests of one size."""

    requests_per_second: float
    prompt_tokens: int
    output_tokens: int
    requests: int
    """of each replication"""
    replications: int
    batch_limit: int
    """requests that the server holds at once"""
    kv_tokens: int | None = None
    """tokens that its KV memory holds, the draft's in it; None: as many as it takes"""
    baseline_kv_tokens: int | None = None
    """the same where there is no draft"""

    def __post_init__(self) -> None:
        for name in ("prompt_tokens", "output_tokens", "requests", "batch_limit"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if self.replications < 2:
            raise ValueError(f"a ratio's interval needs at least 2 replications, got {self.replications}")


def under_load(
    law: DraftLaw, costs: ModelCosts, gamma: int, limit: Crossover, load: Load, seed: int
) -> dict[str, float | list[float] | None]:
    """Run the server both ways with common random numbers: same arrivals, and requests accept the same drafts.

    With speculation it drafts gamma tokens in batches that it pays for, and none in larger ones; prompts are read by
    the draft too.

    Returns:
        Means with speculation (tpot_seconds, itl_seconds, ttft_seconds, tokens_per_second), and tpot_ratio, itl_ratio,
        ttft_ratio, throughput_ratio of those with over those without, with `_ci` (95%, Fieller, over replications; the
        spread of acceptance and latency is not in it).

    Raises:
        ValueError: nothing pays, or a forward of the run is not priced.
    """
    if not gamma or not limit.last_batch:
        raise ValueError("a load is simulated for a plan that speculates; this one does not")
    policy: Controller = FixedGamma(gamma)
    if limit.batch is not None:
        policy = OffAboveLoad(policy, limit.last_batch)
    plain = costs.overhead_seconds if costs.baseline_overhead_seconds is None else costs.baseline_overhead_seconds
    speculation = Speculation(policy, PerPositionAcceptance(law.conditional), costs.draft, costs.proposal_seconds)

    def scenario(run_seed: int) -> ServingScenario:
        workload = make_workload(
            PoissonArrivals(load.requests_per_second), ConstantLength(load.prompt_tokens),
            ConstantLength(load.output_tokens), load.requests, run_seed,
        )  # fmt: skip
        return ServingScenario(
            costs.target, workload, speculation, load.batch_limit, load.kv_tokens,
            overhead_seconds=costs.overhead_seconds,
        )  # fmt: skip

    def without(run_seed: int) -> ServingScenario:
        same = scenario(run_seed).without_speculation()
        return replace(same, overhead_seconds=plain, kv_tokens=load.baseline_kv_tokens)

    drafting, plain_run = (_replicate(make, load.replications, seed) for make in (scenario, without))
    found: dict[str, float | list[float] | None] = {}
    for metric, comparison in compare_paired(drafting, plain_run).items():
        ratio, name = comparison.ratio, METRICS[metric]
        found[metric.removesuffix(".mean")] = drafting.estimate(metric).value
        found[f"{name}_ratio"] = None if ratio is None else ratio.value
        found[f"{name}_ratio_ci"] = None if ratio is None else [ratio.lo, ratio.hi]
    return found


def _replicate(make: Callable[[int], ServingScenario], replications: int, seed: int) -> ReplicationResult:
    def run(run_seed: int) -> dict[str, float]:
        one = make(run_seed)
        values = measure(one, serve(one, run_seed)).values
        return {name: float(values[name]) for name in METRICS}

    return replicate(run, replications, base_seed=seed)
