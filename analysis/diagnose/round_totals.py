"""Sums over rounds and over plain steps, bootstrapped over requests: row 0 is the estimate, the others are draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.diagnose.speedup_loss import RoundCosts
from analysis.interruptions import cap_interruptions
from sim.records import ROUND_SECONDS, chain_depth
from sim.theory import FloatArray

LEAST_REQUESTS = 2
BLOCKS = 20
"""successive parts of a single request, which stand in for requests"""


@dataclass(frozen=True)
class Totals:
    """Weighted sums [rows] of one draft's rounds, and of plain steps if there are any."""

    rounds: Mapping[str, FloatArray]
    """rounds, emitted, ideal (tokens), drafted, the three seconds; emitted_to_n and drafted_to_n of drafts cut to n"""
    references: tuple[FloatArray, ...]
    """tokens per round where a finding says that acceptance is as it could be"""
    steps: Mapping[str, FloatArray] | None
    warnings: tuple[str, ...]

    def per_round(self, name: str) -> FloatArray:
        """A mean over rounds."""
        return self.rounds[name] / self.rounds["rounds"]

    @property
    def costs(self) -> RoundCosts | None:
        """Means per round and per plain step; None without plain steps."""
        if self.steps is None:
            return None
        forward, whole = (self.steps[name] / self.steps["emitted"] for name in ("verify_seconds", "seconds"))
        return RoundCosts(
            tokens=self.per_round("emitted"),
            ideal_tokens=self.per_round("ideal"),
            **{name: self.per_round(name) for name in ROUND_SECONDS},
            step_forward_seconds=forward,
            step_other_seconds=whole - forward,
        )


def add_up(
    rounds: pd.DataFrame,
    steps: pd.DataFrame | None,
    references: Sequence[NDArray[np.bool_]],
    rng: np.random.Generator,
    resamples: int,
) -> Totals:
    """Sum rounds and plain steps by request, and draw requests again and again.

    Rounds that something interrupted are capped (see `analysis.interruptions`). A request is drawn together with its
    own plain steps where every request has some; else the two are drawn apart. A single request is cut into
    successive parts.

    Args:
        rounds: of one draft.
        steps: rounds of gamma 0, or None.
        references: a mask of rounds for each finding.
        rng: of the bootstrap.
        resamples: how often to draw.
    """
    warnings: list[str] = []
    columns = _columns(_capped(rounds))
    for i, chosen in enumerate(references):
        columns[f"rounds_of_{i}"], columns[f"emitted_of_{i}"] = chosen, chosen * rounds["emitted"].to_numpy()
    unit, names = pd.factorize(rounds["request_id"])
    if len(names) < LEAST_REQUESTS:
        unit = _blocks(len(rounds))
        warnings.append("a single request: intervals are over its successive parts, and leave out how requests differ")
    sums = columns.groupby(unit).sum()
    weights = _weights(len(sums), rng, resamples)
    step_totals = None
    if steps is not None:
        capped = _capped(steps)
        by_step = capped[["emitted", "verify_seconds"]].assign(seconds=capped[list(ROUND_SECONDS)].sum(axis=1))
        by_request = by_step.groupby(steps["request_id"]).sum()
        if len(names) >= LEAST_REQUESTS and by_request.index.isin(names).sum() == len(names):
            step_totals = _totals(by_request.loc[names], weights)
        else:
            apart = by_request if len(by_request) >= LEAST_REQUESTS else by_step.groupby(_blocks(len(by_step))).sum()
            step_totals = _totals(apart, _weights(len(apart), rng, resamples))
            if len(names) >= LEAST_REQUESTS:
                warnings.append("not every request has plain steps of its own: the baseline is of other requests")
        batches = rounds["batch"].mean(), steps["batch"].mean()
        if not np.isclose(*batches, rtol=0.1):
            warnings.append(f"rounds ran at a mean batch of {batches[0]:.3g}, plain steps at {batches[1]:.3g}")
    totals = _totals(sums, weights)
    with np.errstate(invalid="ignore", divide="ignore"):  # a draw may hold no round of a reference
        found = tuple(totals[f"emitted_of_{i}"] / totals[f"rounds_of_{i}"] for i in range(len(references)))
    return Totals(totals, found, step_totals, tuple(warnings))


def ideal_tokens(rounds: pd.DataFrame) -> FloatArray:
    """Most tokens that each round could emit: gamma + 1, or a tree's depth + 1."""
    depth, drafted = chain_depth(rounds).to_numpy(), rounds["drafted"].to_numpy()
    asked = rounds["gamma"].to_numpy() if (depth == drafted).all() else np.full(len(rounds), depth.max())
    return asked.astype(np.float64) + 1


def interval(rows: FloatArray) -> list[float] | None:
    """95% of the draws, row 0 left out; None where there are none."""
    draws = rows[1:][np.isfinite(rows[1:])]
    if len(draws) == 0:
        return None
    low, high = np.quantile(draws, [0.025, 0.975])
    return [float(low), float(high)]


def _capped(rounds: pd.DataFrame) -> pd.DataFrame:
    """Rounds of one draft, capped; without its name, whose grouping takes longer than all the rest."""
    return cap_interruptions(rounds.drop(columns="draft", errors="ignore"))


def _columns(rounds: pd.DataFrame) -> pd.DataFrame:
    """What is summed of every round; rounds cut to n tokens only for chains."""
    columns = rounds[["emitted", "drafted", *ROUND_SECONDS]].assign(rounds=1.0, ideal=ideal_tokens(rounds))
    accepted, drafted = rounds["accepted"].to_numpy(), rounds["drafted"].to_numpy()
    if (chain_depth(rounds).to_numpy() == drafted).all():
        for n in range(1, int(drafted.max()) + 1):
            columns[f"emitted_to_{n}"] = np.minimum(accepted, n) + 1
            columns[f"drafted_to_{n}"] = np.minimum(drafted, n)
    return columns


def _weights(units: int, rng: np.random.Generator, resamples: int) -> FloatArray:
    drawn = rng.multinomial(units, np.full(units, 1 / units), size=resamples if units > 1 else 0)
    return np.vstack([np.ones((1, units)), drawn.reshape(-1, units)])


def _blocks(count: int) -> NDArray[np.int64]:
    return np.arange(count) * min(BLOCKS, count) // count


def _totals(sums: pd.DataFrame, weights: FloatArray) -> dict[str, FloatArray]:
    values = weights @ sums.to_numpy(np.float64)
    return {str(name): values[:, i] for i, name in enumerate(sums.columns)}
