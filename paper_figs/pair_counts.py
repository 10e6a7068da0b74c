"""Counts measured on the embedded pair (`paper_figs.measure_pair`): tokens per round, and acceptance by rank."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from sim.theory import FloatArray
from sim.trees import IntArray, RankAcceptance, rank_acceptance

DATA = Path(__file__).parent / "data"
BLOCK_CSV, TREE_CSV, RANK_CSV = (DATA / f"pair_{name}.csv" for name in ("block_verification", "tree_width", "ranks"))
RESAMPLES = 4000


def tokens_per_round(
    counts: pd.DataFrame, baseline: pd.DataFrame | None = None, seed: int = 0
) -> tuple[float, float, float]:
    """Mean tokens per round over all rounds with a 95% interval, by bootstrap over prompts.

    Args:
        counts: columns prompt, rounds, accepted.
        baseline: of another rule on the same prompts; then the ratio of the two, prompts drawn together.
        seed: of the bootstrap.

    Returns:
        Value, low, high.
    """
    sums = _by_prompt(counts)
    if baseline is not None:
        sums = pd.concat([sums, _by_prompt(baseline)], axis=1, join="inner")
    drawn = np.random.default_rng(seed).multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=RESAMPLES)
    columns = sums.to_numpy(np.float64)

    def value(totals: FloatArray) -> FloatArray:
        mean = totals[..., 1] / totals[..., 0]
        return mean if baseline is None else mean / (totals[..., 3] / totals[..., 2])

    low, high = np.quantile(value(drawn @ columns), [0.025, 0.975])
    return float(value(columns.sum(axis=0))), float(low), float(high)


def _by_prompt(counts: pd.DataFrame) -> pd.DataFrame:
    """Rounds and emitted tokens of each prompt."""
    sums = counts.groupby("prompt")[["rounds", "accepted"]].sum()
    return pd.DataFrame({"rounds": sums["rounds"], "tokens": sums["accepted"] + sums["rounds"]})


def rank_table(counts: pd.DataFrame) -> RankAcceptance:
    """Acceptance by depth and rank [depth, k] from how often each sibling was tested and accepted.

    Args:
        counts: columns depth, rank (both from 1), tested, accepted, of one rule.
    """
    return _acceptance(_outcomes(counts))


def rank_resamples(counts: pd.DataFrame, resamples: int, seed: int = 0) -> FloatArray:
    """The acceptance that other positions would have shown [resamples, depth, k], each position drawn for itself.

    Args:
        counts: as for `rank_table`.
        resamples: how many.
        seed: of the bootstrap.
    """
    rng = np.random.default_rng(seed)
    drawn = {
        depth: rng.multinomial(seen.sum(), seen / seen.sum(), size=resamples)
        for depth, seen in _outcomes(counts).items()
    }
    tables = [_acceptance({depth: seen[n] for depth, seen in drawn.items()}).acceptance for n in range(resamples)]
    return np.stack(tables)


def _outcomes(counts: pd.DataFrame) -> dict[int, IntArray]:
    """Of each depth: how many positions accepted each rank, and at last how many none."""
    found = {}
    for depth, rows in counts.sort_values("rank").groupby("depth"):
        accepted = rows["accepted"].to_numpy(np.int64)
        found[int(str(depth))] = np.append(accepted, rows["tested"].iloc[0] - accepted.sum())
    return found


def _acceptance(outcomes: Mapping[int, IntArray]) -> RankAcceptance:
    """Acceptance of the positions that `_outcomes` counts."""
    ranks = [np.repeat(np.append(np.arange(len(seen) - 1), -1), seen) for seen in outcomes.values()]
    depths = [np.full(seen.sum(), depth) for depth, seen in outcomes.items()]
    offered = [np.full(seen.sum(), len(seen) - 1) for seen in outcomes.values()]
    return rank_acceptance(*map(np.concatenate, (depths, ranks, offered)))
