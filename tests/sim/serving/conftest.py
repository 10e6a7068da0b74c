from __future__ import annotations

from typing import Any

import numpy as np

from sim.acceptance import IidAcceptance
from sim.controllers import FixedGamma
from sim.latency import AffineLatency
from sim.serving import ServingScenario, Speculation
from sim.workload import ConstantLength, PoissonArrivals, SyntheticWorkload, UniformLength, Workload

TARGET = AffineLatency(0.02, 2e-5, 1e-9)
DRAFT = AffineLatency(0.001, 1e-6)


def poisson(requests: int, rate: float, prompt: int = 100, output: int = 250, seed: int = 0) -> Workload:
    laws = PoissonArrivals(rate), ConstantLength(prompt), ConstantLength(output)
    return SyntheticWorkload(*laws, requests).sample(seed)


def mixed(requests: int, rate: float, seed: int = 0) -> Workload:
    laws = PoissonArrivals(rate), UniformLength(1, 300), UniformLength(1, 200)
    return SyntheticWorkload(*laws, requests).sample(seed)


def at_once(prompts: list[int], outputs: list[int]) -> Workload:
    return Workload(np.zeros(len(prompts)), np.array(prompts), np.array(outputs))


def speculating(workload: Workload, gamma: int = 4, alpha: float = 0.7, **changes: Any) -> ServingScenario:
    """A server that drafts gamma tokens a round."""
    speculation = Speculation(FixedGamma(gamma), IidAcceptance(alpha), DRAFT)
    return ServingScenario(TARGET, workload, speculation, **changes)
