"""One measured draft in numbers: its speedup over the baseline, its acceptance, and what its loop wastes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from analysis.compare import measured
from analysis.fit.acceptance import fit_acceptance
from sim.records import ROUND_SECONDS, chain_depth, summarise


def summarise_measurement(rounds: pd.DataFrame, seed: int = 0, resamples: int = 2000) -> dict[str, Any]:
    """Sum up the rounds of one draft at one draft length, and of the baseline on the same prompts.

    Args:
        rounds: a round table with `draft` and `category`; baseline rounds have gamma 0.
        seed: of the bootstrap over prompts.
        resamples: of prompts.

    Returns:
        `speedup` and `block_efficiency` (tokens per round) with `_ci` by bootstrap over prompts, `alpha` with `_ci`
        (accepted per tested token, clustered by prompt; of a tree, per tested depth, any sibling counting; None where
        nothing was drafted),
        `alpha_from_probability` with `_ci` (from min(1, p/q) of the tested tokens, less noisy), `tokens_per_second` and
        `baseline_tokens_per_second` (prefill excluded), `loop_efficiency` (measured speedup over the speedup that
        the forwards' own medians and the measured block efficiency give), and the sums of `sim.records.summarise`.

    Raises:
        ValueError: there is not exactly one draft at one draft length, or prompts lack their baseline.
    """
    steps, own = rounds[rounds["gamma"] == 0], rounds[rounds["gamma"] > 0]
    kinds = own[["draft", "gamma"]].drop_duplicates()
    if len(kinds) != 1:
        raise ValueError(f"expected rounds of one draft at one draft length, got {kinds.to_dict(orient='records')}")
    together = measured(rounds.assign(category="all"), seed, resamples).iloc[0]
    tested = bool(np.minimum(own["drafted"], own["emitted"]).sum())
    acceptance = fit_acceptance(own.assign(drafted=chain_depth(own))) if tested else None
    alpha = acceptance.alpha if acceptance else None
    smooth = acceptance.alpha_from_probability if acceptance else None
    tau = float(together["block_efficiency"])
    ideal = tau * steps["verify_seconds"].median() / (own["draft_seconds"].median() + own["verify_seconds"].median())
    seconds, baseline_seconds = (float(part[list(ROUND_SECONDS)].to_numpy().sum()) for part in (own, steps))
    return {
        "speedup": float(together["measured"]),
        "speedup_ci": _bounds(together["measured_lo"], together["measured_hi"]),
        "block_efficiency": tau,
        "block_efficiency_ci": _block_efficiency_interval(own, seed, resamples),
        "alpha": alpha.value if alpha else None,
        "alpha_ci": [alpha.lo, alpha.hi] if alpha else None,
        "alpha_from_probability": smooth.value if smooth else None,
        "alpha_from_probability_ci": [smooth.lo, smooth.hi] if smooth else None,
        "tokens_per_second": float(own["emitted"].sum()) / seconds,
        "baseline_tokens_per_second": float(steps["emitted"].sum()) / baseline_seconds,
        "loop_efficiency": float(together["measured"] / ideal),
        **{key: value for key, value in summarise(own).items() if key in ("rounds", "drafted", "accepted", "emitted")},
    }


def _block_efficiency_interval(rounds: pd.DataFrame, seed: int, resamples: int) -> list[float] | None:
    """95% by bootstrap over prompts; None for a single prompt."""
    per_prompt = rounds.groupby("request_id")["emitted"].agg(["sum", "size"]).to_numpy()
    prompts = len(per_prompt)
    if prompts < 2:
        return None
    weights = np.random.default_rng(seed).multinomial(prompts, np.full(prompts, 1 / prompts), size=resamples)
    emitted, count = (weights @ per_prompt).T
    low, high = np.quantile(emitted / count, [0.025, 0.975])
    return [float(low), float(high)]


def _bounds(low: float, high: float) -> list[float] | None:
    """An interval as JSON has it: None where there was one prompt only."""
    return None if np.isnan(low) else [float(low), float(high)]
