"""Round tables drawn without the simulator, one part of a round made dominant: a second opinion on diagnoses.

`tests.analysis.planted` simulates; here rounds are numbers from numpy alone, a part counts as dominant by what it costs
beside a healthy one, and tables have one request or many, 20 to 3,000 rounds, batches to 64 and noise to 10%.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from sim.theory import FloatArray

PARTS = {
    "slow_draft": "cost_ratio",
    "low_acceptance": "alpha",
    "verify_width": "verify_ratio",
    "engine_overhead": "overhead",
    "draft_not_loaded": "alpha",
}
DOMINANT = 1.5
"""times as many seconds per token as any other part"""


@dataclass(frozen=True)
class Costs:
    """Of a round, in forwards of the target with one token."""

    alpha: float
    gamma: int
    cost_ratio: float
    verify_ratio: float
    overhead: float
    step_overhead: float

    @property
    def per_token(self) -> float:
        """Forwards per emitted token (Leviathan et al. 2023, eq. 1)."""
        tokens = sum(self.alpha**i for i in range(self.gamma + 1))
        return (self.cost_ratio * self.gamma + self.verify_ratio + self.overhead) / tokens

    def lost_with(self, part: str) -> float:
        """What a part costs beside a healthy one, the others as they are."""
        healthy = {"alpha": 0.8, "cost_ratio": 0.05, "verify_ratio": 1.05, "overhead": 0.05}[part]
        best = max if part == "alpha" else min
        return self.per_token - replace(self, **{part: best(getattr(self, part), healthy)}).per_token


def draw_costs(cause: str, rng: np.random.Generator) -> Costs:
    """Costs of which the cause's part is the dominant loss."""
    while True:
        gamma = int(rng.integers(1, 11))
        costs = Costs(
            alpha=rng.uniform(0.65, 0.92),
            gamma=gamma,
            cost_ratio=rng.uniform(0.01, 0.08),
            verify_ratio=1 + gamma * rng.uniform(0, 0.02),
            overhead=rng.uniform(0.01, 0.1),
            step_overhead=rng.uniform(0.01, 0.06),
        )
        bad = {
            "slow_draft": rng.uniform(0.5, 1.0),
            "low_acceptance": rng.uniform(0.1, 0.4),
            "verify_width": rng.uniform(2, 3),
            "engine_overhead": rng.uniform(0.6, 2.5),
            "draft_not_loaded": 0.0,
        }
        costs = replace(costs, **{PARTS[cause]: bad[cause]})
        losses = {part: costs.lost_with(part) for part in set(PARTS.values())}
        mine = losses.pop(PARTS[cause])
        if all(mine >= DOMINANT * other for other in losses.values()):
            return costs


def drawn_run(cause: str, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rounds with a dominant cause, and plain steps of as many requests."""
    rng = np.random.default_rng([77, seed])
    costs = draw_costs(cause, rng)
    count = int(np.exp(rng.uniform(np.log(20), np.log(3000))))
    requests = max(1, min(int(rng.choice([1, 3, 8, 30])), count // 5))
    batch, noise = int(rng.choice([1, 4, 8, 32, 64])), rng.uniform(0.01, 0.1)
    unit = float(np.exp(rng.uniform(np.log(0.003), np.log(0.06))))
    request = np.sort(np.arange(count) % requests)
    place = pd.Series(request).groupby(request).cumcount().to_numpy()
    accepted = np.cumprod(rng.random((count, costs.gamma)) < costs.alpha, axis=1).sum(axis=1)
    emitted = pd.Series(accepted + 1)
    context = rng.integers(50, 2000, requests)[request] + (emitted.groupby(request).cumsum() - emitted).to_numpy()

    def seconds(forwards: float) -> FloatArray:
        return np.asarray(unit * forwards * np.exp(noise * rng.standard_normal(count)))

    common = {"request_id": request.astype(str), "round_index": place, "batch": batch, "cut": False}
    rounds = pd.DataFrame(
        common
        | {"context": context, "gamma": costs.gamma, "drafted": costs.gamma, "accepted": accepted, "emitted": emitted}
        | {"draft_seconds": seconds(costs.cost_ratio * costs.gamma), "verify_seconds": seconds(costs.verify_ratio)}
        | {"other_seconds": seconds(costs.overhead)}
    )
    steps = pd.DataFrame(
        common
        | {"context": 100, "gamma": 0, "drafted": 0, "accepted": 0, "emitted": 1, "draft_seconds": 0.0}
        | {"verify_seconds": seconds(1.0), "other_seconds": seconds(costs.step_overhead)}
    )
    return started(rounds), started(steps)


def started(table: pd.DataFrame) -> pd.DataFrame:
    """The same, one row after the other on one clock."""
    seconds = table[["draft_seconds", "verify_seconds", "other_seconds"]].sum(axis=1)
    return table.assign(start_seconds=seconds.cumsum() - seconds)
