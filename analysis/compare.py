"""Compare predictions with measurements: the error of each configuration, and which part of the round it comes from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.fit.acceptance import Estimate, wilson
from analysis.interruptions import cap_interruptions
from analysis.predict import config_names
from sim.records import ROUND_SECONDS, check_rounds

Array = NDArray[np.float64]

KEYS = ["config", "draft", "gamma", "category", "held_out"]
COMPARISON_COLUMNS = (
    *KEYS,
    *("predicted", "predicted_lo", "predicted_hi"),
    *("measured", "measured_lo", "measured_hi"),
)
PARTS = ("block_efficiency", "draft_seconds", "verify_seconds", "other_seconds", "baseline_seconds")
PART_NAMES = dict(zip(PARTS, ("acceptance", "draft time", "verify time", "other time", "baseline time"), strict=True))


@dataclass(frozen=True)
class Score:
    """How good the predictions of some configurations are."""

    configs: int
    mean_absolute_percentage_error: Estimate
    """percent; interval by bootstrap over (draft, category), whose draft lengths share prompts"""
    coverage: Estimate
    """share of configurations whose predicted interval holds the measured value; Wilson's interval"""
    worst_config: str
    worst_error_percent: float
    """predicted over measured, less 1"""
    worst_part: str
    """the part of the round with the largest share in the worst configuration's error"""


def measured(rounds: pd.DataFrame, seed: int = 0, resamples: int = 2000) -> pd.DataFrame:
    """Measure the speedup of every configuration of a round table.

    speedup = baseline seconds per token / speculative seconds per token, both summed over the same prompts, from the
    time of rounds (prefill excluded), those capped that something interrupted (see `analysis.interruptions`).

    Args:
        rounds: speculative rounds, and baseline rounds (gamma 0) of the same prompts in the same phase.
        seed: of the bootstrap.
        resamples: of prompts, each with its baseline.

    Returns:
        config, draft, gamma, category, held_out, `measured`, `measured_lo`, `measured_hi` (95%; NaN for one prompt),
        `measured_wall` (the same from plain wall time), prompts, tokens, rounds, and the parts as
        `analysis.predict.predict` names them.

    Raises:
        ValueError: the table breaks its schema, or a prompt lacks its baseline.
    """
    check_rounds(rounds)
    missing = [name for name in ("draft", "category") if name not in rounds]
    if missing:
        raise ValueError(f"measuring a speedup needs the round table's columns {missing}")
    held_out = rounds["phase"] != "calibration" if "phase" in rounds else pd.Series(True, index=rounds.index)
    wall = rounds[list(ROUND_SECONDS)].sum(axis=1)
    rounds = cap_interruptions(rounds).assign(held_out=held_out, rounds=1, wall_seconds=wall)
    sums = rounds.groupby(["held_out", "category", "request_id", "draft", "gamma"], sort=False)[
        ["emitted", "rounds", "wall_seconds", *ROUND_SECONDS]
    ].sum()
    sums["seconds"] = sums[list(ROUND_SECONDS)].sum(axis=1)
    is_baseline = sums.index.get_level_values("gamma") == 0
    steps = (
        sums.loc[is_baseline, ["emitted", "seconds", "wall_seconds"]]
        .droplevel(["draft", "gamma"])
        .add_suffix("_baseline")
    )
    paired = sums[~is_baseline].join(steps, on=["held_out", "category", "request_id"])
    if paired["seconds_baseline"].isna().any():
        lacking = paired.index[paired["seconds_baseline"].isna()][0]
        raise ValueError(
            f"prompt '{lacking[2]}' was decoded with '{lacking[3]}' but never without a draft in the same phase; "
            "a speedup needs baseline rounds (gamma 0) of the same prompts"
        )
    rng = np.random.default_rng(seed)
    groups = paired.reset_index().groupby(["draft", "gamma", "category", "held_out"], sort=False)
    rows = [dict(zip(groups.keys, key, strict=True)) | _measure(part, rng, resamples) for key, part in groups]
    table = pd.DataFrame(rows)
    table.insert(0, "config", config_names(table))
    return table


def compare(predictions: pd.DataFrame, measurements: pd.DataFrame) -> pd.DataFrame:
    """Set every measured configuration beside its prediction.

    Args:
        predictions: from `analysis.predict.predict`.
        measurements: from `measured`.

    Returns:
        COMPARISON_COLUMNS, then `error_percent` (predicted over measured, less 1), `covered`, `measured_wall`, the
        measurement's prompts, tokens and rounds, `log_error` = log(predicted / measured), and its exact sum of
        `log_error_<part>` for every part of `PARTS` (see `decompose`).

    Raises:
        ValueError: a measured configuration has no prediction.
    """
    both = measurements.merge(predictions, on=KEYS, how="left", suffixes=("_measured", "_predicted"))
    if both["predicted"].isna().any():
        lacking = sorted(both.loc[both["predicted"].isna(), "config"])
        raise ValueError(f"measured configurations without a prediction: {lacking}; put them into the design")
    both["error_percent"] = 100 * (both["predicted"] / both["measured"] - 1)
    both["covered"] = (both["predicted_lo"] <= both["measured"]) & (both["measured"] <= both["predicted_hi"])
    both["log_error"] = np.log(both["predicted"] / both["measured"])
    shares = decompose(*(both[[f"{part}_{side}" for part in PARTS]].to_numpy() for side in ("predicted", "measured")))
    names = [f"log_error_{part}" for part in PARTS]
    both[names] = shares
    extra = ["error_percent", "covered", "measured_wall", "prompts", "tokens", "rounds", "log_error", *names]
    return both[[*COMPARISON_COLUMNS, *extra]]


def decompose(predicted: Array, measured: Array) -> Array:
    """Split log(predicted speedup / measured speedup) over the parts of a round, exactly.

    speedup = block_efficiency * baseline / (draft + verify + other). The two factors contribute the logs of their
    ratios. A time contributes its difference over the logarithmic mean of the two round times (the logarithmic mean
    Divisia index, Ang 2004), which sums exactly and depends on no order.

    Args:
        predicted: the parts in the order of `PARTS` [configs, 5].
        measured: the same.

    Returns:
        Contributions in the same order [configs, 5]; a positive one makes the prediction too high.
    """
    round_predicted, round_measured = predicted[:, 1:4].sum(axis=1), measured[:, 1:4].sum(axis=1)
    log_ratio = np.log(round_predicted / round_measured)
    even = np.isclose(log_ratio, 0, rtol=0, atol=1e-9)
    mean = np.where(even, round_measured, (round_predicted - round_measured) / np.where(even, 1.0, log_ratio))
    times = -(predicted[:, 1:4] - measured[:, 1:4]) / mean[:, None]
    factors = np.log(predicted[:, [0, 4]] / measured[:, [0, 4]])
    return np.column_stack([factors[:, 0], times, factors[:, 1]])


def score(comparison: pd.DataFrame, held_out: bool = True, seed: int = 0, resamples: int = 4000) -> Score:
    """Score the held-out configurations of a comparison, or, with held_out=False, the calibrated ones.

    Raises:
        ValueError: there are none.
    """
    table = comparison[comparison["held_out"] == held_out].reset_index(drop=True)
    if table.empty:
        raise ValueError(f"the comparison has no configurations with held_out={held_out}")
    error = table["error_percent"].abs()
    cluster = pd.factorize(table["draft"].astype(str) + "|" + table["category"].astype(str))[0]
    totals, sizes = np.bincount(cluster, error), np.bincount(cluster)
    drawn = np.random.default_rng(seed).integers(len(sizes), size=(resamples, len(sizes)))
    low, high = np.quantile(totals[drawn].sum(axis=1) / sizes[drawn].sum(axis=1), [0.025, 0.975])
    worst = table.iloc[int(error.to_numpy().argmax())]
    return Score(
        configs=len(table),
        mean_absolute_percentage_error=Estimate(float(error.mean()), float(low), float(high)),
        coverage=wilson(len(table), int(table["covered"].sum())),
        worst_config=str(worst["config"]),
        worst_error_percent=float(worst["error_percent"]),
        worst_part=largest_part(worst),
    )


def largest_part(row: pd.Series) -> str:
    """The part of the round that contributes most to a configuration's error, in its direction."""
    shares = row[[f"log_error_{part}" for part in PARTS]].to_numpy(np.float64) * np.sign(row["log_error"])
    return PART_NAMES[PARTS[int(shares.argmax())]]


def _measure(part: pd.DataFrame, rng: np.random.Generator, resamples: int) -> dict[str, float]:
    """The measurement of one configuration; `part` has one row a prompt."""
    sums = part[["emitted", "seconds", "emitted_baseline", "seconds_baseline"]].to_numpy(np.float64)
    prompts = len(part)
    low = high = np.nan
    if prompts > 1:
        counts = rng.multinomial(prompts, np.full(prompts, 1 / prompts), size=resamples)
        tokens, seconds, baseline_tokens, baseline = (counts @ sums).T
        low, high = np.quantile((baseline / baseline_tokens) / (seconds / tokens), [0.025, 0.975])
    tokens, seconds, baseline_tokens, baseline = sums.sum(axis=0)
    rounds = int(part["rounds"].sum())
    wall, baseline_wall = part["wall_seconds"].sum(), part["wall_seconds_baseline"].sum()
    return {
        "measured": (baseline / baseline_tokens) / (seconds / tokens),
        "measured_lo": float(low),
        "measured_hi": float(high),
        "measured_wall": float((baseline_wall / baseline_tokens) / (wall / tokens)),
        "prompts": prompts,
        "tokens": int(tokens),
        "rounds": rounds,
        "block_efficiency": tokens / rounds,
        **{name: float(part[name].sum()) / rounds for name in ROUND_SECONDS},
        "baseline_seconds": baseline / baseline_tokens,
    }
