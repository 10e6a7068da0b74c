"""Why acceptance is what it is: does it fall within requests, over the run's clock, or differ between prompts?

Each test has a false-alarm rate of FALSE_ALARM_RATE. A finding also names the rounds in which acceptance was as it
could be; how much more they emit is what the finding explains.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import linregress

from analysis.diagnose.trends import Trend, residuals, trend, variance_test
from sim.theory import FloatArray

FALSE_ALARM_RATE = 0.01
LEAST_REQUESTS = 10
"""for a trend, whose variance is estimated from the differences between requests"""
PARTS = 20
"""successive parts of an engine's log, or of fewer requests together, that count as independent"""
LEAST_PART_ROUNDS = 4
"""of such a part of requests"""
STRONG_RATIO = 1.5
"""prompts differ strongly where the better half of requests emits half as much again per round as the other half"""
FALLS_WITH_CONTEXT, FALLS_OVER_TIME = "acceptance_falls_with_context", "acceptance_falls_over_time"
UNREPRESENTATIVE = "unrepresentative_prompts"


@dataclass(frozen=True, eq=False)
class Finding:
    """A reason for low acceptance."""

    name: str
    reference: NDArray[np.bool_]
    """[rounds] where acceptance is as it could be everywhere"""
    evidence: dict[str, Any]


def find_reasons(rounds: pd.DataFrame) -> list[Finding]:
    """All findings in the rounds of one draft, each request's in the order of time, at most one of each name.

    The columns context, start_seconds and category may be missing; then less can be told apart.
    """
    within = falls_within_requests(rounds)
    found = [differs_between_requests(rounds), falls_between_prompts(rounds) if within is None else within]
    if "start_seconds" in rounds and all(one is None or one.name != FALLS_OVER_TIME for one in found):
        found.append(falls_over_clock(rounds))
    return [one for one in found if one is not None]


def falls_within_requests(rounds: pd.DataFrame) -> Finding | None:
    """Does acceptance fall from the first rounds of requests to the last?

    If so, prompts of different lengths tell whether context is why: where it is, requests that start with a longer
    context are worse by the same slope per token; where they are not, output is what matters. The last round of each
    request is left out: that it was the last depends on what it accepted. Where requests follow one another on one
    clock, acceptance that does not recover with the next request falls over time. Of fewer than LEAST_REQUESTS
    requests, successive parts count as independent.
    """
    place, last = _places(rounds)
    size = rounds.groupby("request_id", sort=False)["request_id"].transform("size").to_numpy()
    inner = rounds[~last]
    request = _codes(inner["request_id"])
    requests = int(request.max(initial=-1)) + 1
    cluster = request
    if requests < LEAST_REQUESTS:
        if len(inner) < LEAST_PART_ROUNDS * PARTS:
            return None
        parts = -(-PARTS // requests)
        cluster = request * parts + place[~last] * parts // size[~last]
    residual, tested = residuals(inner)
    fall = trend(residual, tested, place[~last].astype(np.float64), request, cluster)
    if fall.p_value >= FALSE_ALARM_RATE:
        return None
    if _follow_one_another(inner):
        clock = inner["start_seconds"].to_numpy(np.float64)
        own = trend(residual, tested, clock, request, cluster)
        whole = trend(residual, tested, clock, np.zeros_like(request), cluster)
        if whole.slope < own.slope / 2:  # a fall that each request starts anew leaves 1 / requests^2 of its slope
            return _over_clock(rounds, whole)
    share = place / size
    first, final = share < 0.25, share >= 0.75
    if "context" not in rounds:
        return Finding(FALLS_OVER_TIME, first, _fall_evidence(rounds, fall, first, final))
    context = inner["context"].to_numpy(np.float64)
    start = inner.groupby("request_id", sort=False)["context"].transform("first").to_numpy(np.float64)
    per_token = trend(residual, tested, context - start, request, cluster)
    between = _between_prompts(inner, residual, tested, start, request)
    undecided = not between.error < abs(per_token.slope) / 2
    by_context = not np.isnan(per_token.slope) and (undecided or between.slope < per_token.slope / 2)
    evidence = _context_evidence(rounds, fall) if by_context else _fall_evidence(rounds, fall, first, final)
    evidence |= {
        "slope_per_1000_tokens_within_requests": None if np.isnan(per_token.slope) else 1000 * per_token.slope,
        "slope_per_1000_tokens_between_prompts": None if np.isnan(between.slope) else 1000 * between.slope,
        "prompt_lengths_decide": not undecided,
    }
    if by_context:
        return Finding(FALLS_WITH_CONTEXT, _quarters(rounds)[0], evidence)
    return Finding(FALLS_OVER_TIME, first, evidence)


def falls_between_prompts(rounds: pd.DataFrame) -> Finding | None:
    """Do longer prompts have lower acceptance, within categories?"""
    if "context" not in rounds:
        return None
    start = rounds.groupby("request_id", sort=False)["context"].transform("first").to_numpy(np.float64)
    fall = _between_prompts(rounds, *residuals(rounds), start, _codes(rounds["request_id"]))
    if fall.p_value >= FALSE_ALARM_RATE:
        return None
    evidence = _context_evidence(rounds, fall) | {"slope_per_1000_tokens_between_prompts": 1000 * fall.slope}
    return Finding(FALLS_WITH_CONTEXT, _quarters(rounds)[0], evidence)


def falls_over_clock(rounds: pd.DataFrame) -> Finding | None:
    """Does acceptance fall from the run's first seconds to its last, within categories?

    Only where starts lie further apart than a request lasts; else each request has a clock of its own.
    """
    request = _codes(rounds["request_id"])
    if len(np.unique(request)) < LEAST_REQUESTS or not _follow_one_another(rounds):
        return None
    begins = rounds.groupby("request_id", sort=False)["start_seconds"].transform("min").to_numpy(np.float64)
    residual, tested = residuals(rounds)
    fall = trend(residual, tested, begins, _codes(_category(rounds)), request)
    return None if fall.p_value >= FALSE_ALARM_RATE else _over_clock(rounds, fall)


def _follow_one_another(rounds: pd.DataFrame) -> bool:
    """Whether several requests share a clock, and start further apart on it than one lasts."""
    if "start_seconds" not in rounds or rounds["request_id"].nunique() < 2:
        return False
    starts = rounds.groupby("request_id", sort=False)["start_seconds"]
    return bool(np.ptp(starts.min()) > (starts.max() - starts.min()).median())


def _over_clock(rounds: pd.DataFrame, fall: Trend) -> Finding:
    clock = rounds["start_seconds"].to_numpy(np.float64)
    early, late = clock <= np.quantile(clock, 0.25), clock >= np.quantile(clock, 0.75)
    evidence = _fall_evidence(rounds, fall, early, late) | {"slope_per_second": fall.slope}
    return Finding(FALLS_OVER_TIME, early, evidence)


def falls_over_log(series: pd.DataFrame) -> Finding | None:
    """Does the mean acceptance length fall over an engine's log (columns rounds, emitted, elapsed_seconds)?

    Successive lines depend on each other, so the log is cut into PARTS and these are regressed on time, or on their
    order where the log has no times.
    """
    if len(series) < PARTS:
        return None
    part = np.arange(len(series)) * PARTS // len(series)
    sums = series.assign(lines=1.0).groupby(part)[["rounds", "emitted", "elapsed_seconds", "lines"]].sum()
    if not (sums["rounds"] > 0).all():
        return None
    length = (sums["emitted"] / sums["rounds"]).to_numpy()
    timed = series["elapsed_seconds"].notna().all() and np.ptp(series["elapsed_seconds"]) > 0
    x = (sums["elapsed_seconds"] / sums["lines"]).to_numpy() if timed else np.arange(float(PARTS))
    fit = linregress(x, length, alternative="less")
    if not fit.pvalue < FALSE_ALARM_RATE:
        return None
    first, last = part < PARTS / 4, part >= 3 * PARTS / 4
    means = [float(series.loc[rows, "emitted"].sum() / series.loc[rows, "rounds"].sum()) for rows in (first, last)]
    return Finding(
        FALLS_OVER_TIME,
        first,
        {
            "p_value": float(fit.pvalue),
            "false_alarm_rate": FALSE_ALARM_RATE,
            "block_efficiency_first_quarter": means[0],
            "block_efficiency_last_quarter": means[1],
        },
    )


def differs_between_requests(rounds: pd.DataFrame) -> Finding | None:
    """Do requests differ in tokens per round, significantly (one-way analysis of variance) and strongly?"""
    better, other = better_half(rounds)
    if better.sum() == 0:
        return None
    _, last = _places(rounds)
    inner = rounds[~last]
    p_value = variance_test(inner["accepted"].to_numpy(np.float64), _codes(inner["request_id"]))
    good, poor = (float(rounds.loc[half, "emitted"].mean()) for half in (better, other))
    if p_value >= FALSE_ALARM_RATE or good < STRONG_RATIO * poor:
        return None
    evidence: dict[str, Any] = {
        "p_value": p_value,
        "false_alarm_rate": FALSE_ALARM_RATE,
        "block_efficiency_better_half": good,
        "block_efficiency_other_half": poor,
    }
    category = _category(rounds)
    if category.nunique() > 1:
        means = rounds.groupby(category)["emitted"].mean().sort_values()
        evidence["block_efficiency_by_category"] = {str(name): float(value) for name, value in means.items()}
    return Finding(UNREPRESENTATIVE, better, evidence)


def better_half(rounds: pd.DataFrame) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Rounds of the better half of requests, and of the other half [rounds]; none of fewer than 4 requests.

    A request is ranked by its even rounds to judge the odd ones, and the other way round, so that none counts as good
    because it was lucky.
    """
    place, _ = _places(rounds)
    request, fold = _codes(rounds["request_id"]), place % 2
    cell, cells = 2 * request + fold, 2 * (request.max() + 1)
    counts = np.bincount(cell, minlength=cells).reshape(-1, 2).T
    emitted = np.bincount(cell, rounds["emitted"], minlength=cells).reshape(-1, 2).T
    both = (counts > 0).all(axis=0)
    better, other = np.zeros((2, *counts.shape), dtype=bool)
    half = int(both.sum()) // 2
    if half >= 2:
        rates = np.where(both, emitted / np.maximum(counts, 1), np.inf)
        order = np.argsort(rates, axis=1, kind="stable")[:, : both.sum()]
        for judged in (0, 1):
            other[judged, order[1 - judged, :half]] = better[judged, order[1 - judged, -half:]] = True
    return better[fold, request], other[fold, request]


def _fall_evidence(
    rounds: pd.DataFrame, fall: Trend, first: NDArray[np.bool_], last: NDArray[np.bool_]
) -> dict[str, Any]:
    return {
        "p_value": fall.p_value,
        "false_alarm_rate": FALSE_ALARM_RATE,
        "block_efficiency_first_quarter": float(rounds.loc[first, "emitted"].mean()),
        "block_efficiency_last_quarter": float(rounds.loc[last, "emitted"].mean()),
    }


def _context_evidence(rounds: pd.DataFrame, fall: Trend) -> dict[str, Any]:
    """Tokens per round in the quarter of rounds with the shortest context, and with the longest."""
    first, last = _quarters(rounds)
    means = {f"mean_context_{name}_quarter": rounds.loc[rows, "context"] for name, rows in
             (("first", first), ("last", last))}  # fmt: skip
    return _fall_evidence(rounds, fall, first, last) | {name: float(rows.mean()) for name, rows in means.items()}


def _quarters(rounds: pd.DataFrame) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Rounds of the quarter with the shortest context, and with the longest."""
    context = rounds["context"].to_numpy()
    return context <= np.quantile(context, 0.25), context >= np.quantile(context, 0.75)


def _between_prompts(
    rounds: pd.DataFrame, residual: FloatArray, tested: FloatArray, start: FloatArray, request: NDArray[np.intp]
) -> Trend:
    """Acceptance against the context at which requests start, within categories; not known of few requests."""
    if int(request.max(initial=-1)) + 1 < LEAST_REQUESTS:
        return Trend(np.nan, np.nan, 1.0)
    return trend(residual, tested, start, _codes(_category(rounds)), request)


def _places(rounds: pd.DataFrame) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Each round's place in its request, and whether it is the last one."""
    requests = rounds.groupby("request_id", sort=False)
    place = np.asarray(requests.cumcount(), dtype=np.int64)
    return place, np.asarray(place == requests["request_id"].transform("size") - 1)


def _codes(labels: pd.Series[Any]) -> NDArray[np.intp]:
    return pd.factorize(labels)[0]


def _category(rounds: pd.DataFrame) -> pd.Series[Any]:
    """Category of each round, "" for all where there is none."""
    return rounds["category"].astype(str) if "category" in rounds else pd.Series("", index=rounds.index)
