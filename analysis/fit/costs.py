"""Fit what a round costs from calibration rounds: the sweep's forwards corrected in situ, lookups, and the rest.

A forward inside the decoding loop finds other caches and other neighbours than one in a sweep, so each stream of
forwards (the baseline's steps, a draft's verifications, a draft's own forwards) gets one factor on its fitted curve:
the sweep says how cost moves with the shape, calibration rounds say how high it lies. Both come from calibration only.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.optimize import nnls

from analysis.fit.latency import Array, FittedLatency, Index, LatencyFit, winsorise
from sim.forwards import TARGET_ROLE
from sim.records import ROUND_SECONDS


@dataclass(frozen=True)
class PerRound:
    """Seconds of a part of a round that runs no forward: a fixed cost and one per drafted token, neither negative."""

    fixed_seconds: float
    seconds_per_drafted: float

    def seconds(self, drafted: Index) -> Array:
        """Seconds in rounds that drafted so many tokens."""
        return np.asarray(self.fixed_seconds + self.seconds_per_drafted * drafted, dtype=np.float64)


@dataclass(frozen=True)
class BaselineCosts:
    """An autoregressive step: one target forward of one token, and the loop's own time."""

    forward: FittedLatency
    """In situ; row 0 is the fit, the others are draws."""
    in_situ: Array
    """Factor on the sweep's curve [rows]."""
    other_seconds: float
    log_noise: dict[str, float]
    """log(measured / fitted seconds) of each calibration request; empty where no baseline was calibrated."""


@dataclass(frozen=True)
class DraftCosts:
    """A round of one draft source."""

    verify: FittedLatency
    verify_in_situ: Array
    draft: FittedLatency | PerRound
    """The draft model's forward in situ, or a lookup's cost."""
    draft_in_situ: Array | None
    other: PerRound
    log_noise: Array
    """log(measured / fitted seconds) of calibration requests, less their baseline's (see `request_noise`)"""

    def price(self, drafted: Index, context: Index, row: ArrayLike = 0) -> tuple[Array, Array, Array]:
        """Draft, verify and other seconds of rounds under one row of the fits, or under each round's own.

        A draft of k tokens runs k forwards of one token; cost is linear in context, so they are priced at the mean one.
        """
        if isinstance(self.draft, PerRound):
            drafting = self.draft.seconds(drafted)
        else:
            drafting = drafted * self.draft.at(row).forward_seconds(1, 1, context + (drafted - 1) / 2)
        return drafting, self.verify.at(row).forward_seconds(1, drafted + 1, context), self.other.seconds(drafted)


def fit_baseline(latency: LatencyFit, steps: pd.DataFrame, weights: pd.DataFrame) -> BaselineCosts:
    """Fit the autoregressive step.

    `weights` are bootstrap counts of calibration requests (index) in each draw (columns); row 0 of every curve is the
    fit itself, with weights of one.
    """
    curve = latency.curves[TARGET_ROLE]
    factor = in_situ_factor(curve, steps, "verify_seconds", np.ones(len(steps)), weights)
    other = float(steps["other_seconds"].mean())
    forward = curve.scaled(factor)
    fitted = forward.forward_seconds(1, steps["drafted"] + 1, steps["context"]) + other
    return BaselineCosts(forward, factor, other, log_ratio(steps, fitted))


def fit_draft_costs(
    latency: LatencyFit,
    draft: str,
    rounds: pd.DataFrame,
    steps: pd.DataFrame,
    baseline: BaselineCosts,
    weights: pd.DataFrame,
) -> DraftCosts:
    """Fit one draft's rounds; `steps` are the baseline's calibration rounds, `weights` as in `fit_baseline`."""
    target = latency.curves[TARGET_ROLE]
    verify_factor = in_situ_factor(target, rounds, "verify_seconds", np.ones(len(rounds)), weights)
    drafting: FittedLatency | PerRound
    if draft in latency.curves:
        drafted = rounds["drafted"].to_numpy(np.float64)
        draft_factor = in_situ_factor(latency.curves[draft], rounds, "draft_seconds", drafted, weights)
        drafting = latency.curves[draft].scaled(draft_factor)
    else:
        draft_factor, drafting = None, fit_per_round(rounds, "draft_seconds")
    # Baseline steps draft nothing: they hold the fixed part apart from the part per token.
    other = fit_per_round(pd.concat([rounds, steps]), "other_seconds")
    costs = DraftCosts(target.scaled(verify_factor), verify_factor, drafting, draft_factor, other, np.zeros(1))
    return replace(costs, log_noise=request_noise(costs, rounds, baseline))


def request_noise(costs: DraftCosts, rounds: pd.DataFrame, baseline: BaselineCosts) -> Array:
    """log(measured / fitted) seconds of each request, less the baseline's of the same request, centred on 0.

    A request's own slow spell hits its baseline too when the two are measured in turn, so only the difference moves its
    speedup. Widened by sqrt(R / (R - 1)) for R requests.
    """
    drafted, context = rounds["drafted"].to_numpy(np.int64), rounds["context"].to_numpy(np.int64)
    own = log_ratio(rounds, np.sum(costs.price(drafted, context), axis=0))
    noise = np.array([value - baseline.log_noise.get(name, 0.0) for name, value in own.items()])
    return np.asarray((noise - noise.mean()) * np.sqrt(len(noise) / max(len(noise) - 1, 1)))


def in_situ_factor(
    curve: FittedLatency, rounds: pd.DataFrame, column: str, forwards: Array, weights: pd.DataFrame
) -> Array:
    """Measured over fitted seconds, for every row of the curve [rows].

    The Huber location over requests of log(measured / fitted), in which a request counts as often as the row's
    bootstrap drew it. `column` holds the measured seconds of `forwards` forwards a round: verifications of drafted + 1
    tokens, or draft forwards of one token each.
    """
    drafted, context = rounds["drafted"].to_numpy(), rounds["context"].to_numpy()
    every = curve.at(np.arange(len(curve.level_seconds))[:, None])
    if column == "verify_seconds":
        per_forward = every.forward_seconds(1, drafted + 1, context)
    else:
        per_forward = every.forward_seconds(1, 1, context + (drafted - 1) / 2)
    request, names = pd.factorize(rounds["request_id"])
    member = (request[:, None] == np.arange(len(names))).astype(np.float64)
    measured, fitted = rounds[column].to_numpy() @ member, (per_forward * forwards) @ member
    used = (measured > 0) & (fitted[0] > 0)
    if not used.any():
        raise ValueError(f"calibration rounds hold no {column} above 0; the forwards were not timed")
    log = winsorise(np.log(measured[used] / fitted[:, used]).T)
    weight = weights.loc[names[used]].to_numpy(np.float64)
    total = weight.sum(axis=0)
    mean = np.where(total > 0, (weight * log).sum(axis=0) / np.maximum(total, 1), log.mean(axis=0))
    return np.asarray(np.exp(mean))


def fit_per_round(rounds: pd.DataFrame, column: str) -> PerRound:
    """Non-negative least squares of a time on 1 and the drafted tokens; all fixed where drafts are of one length."""
    drafted, seconds = rounds["drafted"].to_numpy(np.float64), rounds[column].to_numpy(np.float64)
    if np.ptp(drafted) == 0:
        return PerRound(float(seconds.mean()), 0.0)
    fixed, per_drafted = nnls(np.column_stack([np.ones_like(drafted), drafted]), seconds)[0]
    return PerRound(float(fixed), float(per_drafted))


def log_ratio(rounds: pd.DataFrame, fitted: Array) -> dict[str, float]:
    """log(measured / fitted) seconds of whole rounds, summed by request."""
    measured = rounds[list(ROUND_SECONDS)].sum(axis=1).to_numpy()
    sums = pd.DataFrame({"measured": measured, "fitted": fitted}).groupby(rounds["request_id"].to_numpy()).sum()
    return {str(name): float(np.log(row["measured"] / row["fitted"])) for name, row in sums.iterrows()}
