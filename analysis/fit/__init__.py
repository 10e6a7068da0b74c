"""Calibrate: all that a prediction needs, from calibration rounds and the forward table, and from no other rows."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.fit.acceptance import AcceptanceCounts, AcceptanceFit, count_acceptance, fit_acceptance, has_probabilities
from analysis.fit.costs import BaselineCosts, DraftCosts, fit_baseline, fit_draft_costs
from analysis.fit.latency import LatencyFit, fit_latency
from analysis.goodness_of_fit import GoodnessOfFit, goodness_of_fit
from analysis.interruptions import cap_interruptions
from analysis.pooling import PooledRates, pool
from sim.records import check_rounds

ALL_CATEGORIES = "all"


@dataclass(frozen=True)
class ProposalFit:
    """How much a draft proposes when asked: whether anything, by prompt, and then each further token."""

    proposes: PooledRates
    continues: NDArray[np.float64]
    """chance of one more token after k, for k = 1, 2, ... up to the calibrated gamma - 1 [draws, positions]"""


@dataclass(frozen=True)
class DraftFit:
    """One draft source, fitted."""

    gammas: tuple[int, ...]
    """calibrated draft lengths"""
    acceptance: Mapping[str, AcceptanceFit]
    """by category, and under 'all'"""
    goodness: Mapping[str, GoodnessOfFit]
    """as `acceptance`"""
    rates: PooledRates
    proposals: ProposalFit | None
    """None where the draft always proposes as many tokens as asked"""
    costs: DraftCosts


@dataclass(frozen=True)
class Calibration:
    """What calibration found; `predict` reads nothing else but the design."""

    latency: LatencyFit
    baseline: BaselineCosts
    drafts: Mapping[str, DraftFit]
    output_tokens: Mapping[str, NDArray[np.int64]]
    """tokens of each calibrated output, by category; an output at the length limit is the greatest of them"""
    draws: int


def calibrate(rounds: pd.DataFrame, forwards: pd.DataFrame, seed: int = 0, draws: int = 400) -> Calibration:
    """Fit latency, acceptance and the loop's own costs.

    Only rows of phase 'calibration' are read (all rows, where the table has no phase). They must hold, for each draft,
    at least one draft length, and autoregressive steps (draft 'none', gamma 0) of calibration prompts.

    Raises:
        ValueError: a table breaks its schema, or calibration rows of a kind are missing.
    """
    rounds = cap_interruptions(calibration_rounds(rounds))
    latency = fit_latency(forwards, stream(seed, "latency"), draws)
    steps = rounds[rounds["gamma"] == 0]
    if steps.empty:
        raise ValueError(
            "calibration rounds hold no autoregressive steps (gamma 0); decode calibration prompts without a draft too"
        )
    weights = bootstrap_requests(rounds, stream(seed, "requests"), draws)
    baseline = fit_baseline(latency, steps, weights)
    drafts = {
        str(name): fit_draft(str(name), part, steps, latency, baseline, weights, seed, draws)
        for name, part in rounds[rounds["gamma"] > 0].groupby("draft", sort=False)
    }
    if not drafts:
        raise ValueError("calibration rounds hold no draft (every gamma is 0); calibrate each draft at one gamma")
    return Calibration(latency, baseline, drafts, output_lengths(rounds), draws)


def fit_draft(
    name: str,
    rounds: pd.DataFrame,
    steps: pd.DataFrame,
    latency: LatencyFit,
    baseline: BaselineCosts,
    weights: pd.DataFrame,
    seed: int,
    draws: int,
) -> DraftFit:
    """Fit one draft source to its calibration rounds."""
    parts = {ALL_CATEGORIES: rounds} | {str(key): part for key, part in rounds.groupby("category", sort=True)}
    tested = {key: part for key, part in parts.items() if np.minimum(part["drafted"], part["emitted"]).sum() > 0}
    if not tested:
        raise ValueError(
            f"draft '{name}' had no token tested in calibration, so nothing is known of its acceptance; "
            "calibrate on more or longer outputs, or leave it out"
        )
    counts = count_acceptance(rounds, probabilities=has_probabilities(rounds))
    return DraftFit(
        gammas=tuple(sorted(rounds["gamma"].unique().tolist())),
        acceptance={key: fit_acceptance(part) for key, part in tested.items()},
        goodness={key: goodness_of_fit(part, stream(seed, f"goodness {name} {key}")) for key, part in tested.items()},
        rates=pool(counts, stream(seed, f"rates {name}"), draws),
        proposals=fit_proposals(rounds, stream(seed, f"proposals {name}"), draws),
        costs=fit_draft_costs(latency, name, rounds, steps, baseline, weights),
    )


def fit_proposals(rounds: pd.DataFrame, rng: np.random.Generator, draws: int) -> ProposalFit | None:
    """Fit how many tokens a draft proposes, or None where it always proposes gamma.

    The number proposed is right-censored at gamma, so each further token is a test that passes or fails, as for
    acceptance; whether anything is proposed is pooled over prompts, further tokens over the draft (the posteriors are
    Beta(n + 1/2, m + 1/2)). Rounds near the end of an output, where fewer than gamma + 1 tokens were wanted, say
    nothing.
    """
    full = rounds[remaining_tokens(rounds) > rounds["gamma"]]
    drafted, gamma = full["drafted"].to_numpy(np.int64), full["gamma"].to_numpy(np.int64)
    if (drafted == gamma).all():
        return None
    request, names = pd.factorize(full["request_id"])
    size = len(names)
    asked = np.bincount(request, minlength=size).astype(np.float64)[:, None]
    proposed = np.bincount(request, weights=drafted > 0, minlength=size).astype(np.float64)[:, None]
    category = full.groupby("request_id", sort=False)["category"].first().astype(str)
    counts = AcceptanceCounts(tuple(map(str, names)), tuple(category), asked, proposed)
    length = np.arange(1, max(int(gamma.max()), 2))
    reached = ((drafted[:, None] >= length) & (gamma[:, None] > length)).sum(axis=0)
    went_on = ((drafted[:, None] > length) & (gamma[:, None] > length)).sum(axis=0)
    continues = rng.beta(went_on + 0.5, reached - went_on + 0.5, size=(draws, len(length)))
    return ProposalFit(pool(counts, rng, draws), continues)


def calibration_rounds(rounds: pd.DataFrame) -> pd.DataFrame:
    """The calibration rows of a round table, checked.

    Raises:
        ValueError: the table breaks its schema, lacks `draft` or `category`, or has no calibration rows.
    """
    check_rounds(rounds)
    for name in ("draft", "category"):
        if name not in rounds:
            raise ValueError(f"calibration needs the round table's column '{name}'")
    if "phase" in rounds:
        rounds = rounds[rounds["phase"] == "calibration"]
    if rounds.empty:
        raise ValueError("no rows of phase 'calibration' in the round table; measure calibration prompts first")
    if (rounds["batch"] != 1).any():
        raise ValueError(
            f"calibration works at batch 1, got {int(rounds['batch'].max())}; measure one request at a time"
        )
    return rounds.reset_index(drop=True)


def remaining_tokens(rounds: pd.DataFrame) -> pd.Series[int]:
    """Tokens of the output not yet emitted when each round starts, the round's own included."""
    emitted = rounds.groupby(["draft", "gamma", "request_id"], sort=False)["emitted"]
    return emitted.transform("sum") - emitted.cumsum() + rounds["emitted"]


def output_lengths(rounds: pd.DataFrame) -> dict[str, NDArray[np.int64]]:
    """Tokens of every calibrated output, by category."""
    lengths = rounds.groupby(["category", "draft", "gamma", "request_id"])["emitted"].sum()
    return {str(name): part.to_numpy(np.int64) for name, part in lengths.groupby(level="category")}


def bootstrap_requests(rounds: pd.DataFrame, rng: np.random.Generator, draws: int) -> pd.DataFrame:
    """How often each request (index) comes in each draw; column 0 has every one once."""
    names = rounds["request_id"].unique()
    counts = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws)
    return pd.DataFrame(np.vstack([np.ones(len(names), dtype=np.int64), counts]).T, index=names)


def stream(seed: int, purpose: str) -> np.random.Generator:
    """The generator of one purpose: its draws do not depend on what else is drawn."""
    return np.random.default_rng([seed, zlib.crc32(purpose.encode())])
