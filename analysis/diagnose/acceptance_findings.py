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
from scipy.stats import f as f_distribution
from scipy.stats import linregress
from scipy.stats import t as t_distribution

from sim.records import chain_depth
from sim.theory import FloatArray

FALSE_ALARM_RATE = 0.01
LEAST_REQUESTS = 10
"""for a trend, whose variance is estimated from the differences between requests"""
LOG_PARTS = 20
"""successive parts of an engine's log that count as independent"""
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


@dataclass(frozen=True)
class Trend:
    """Passes per tested token against some x, at equal positions of the draft and within groups."""

    slope: float
    error: float
    """standard error of the slope, clustered"""
    p_value: float
    """one-sided: the chance of a fall as steep where there is none"""


def find_reasons(rounds: pd.DataFrame) -> list[Finding]:
    """All findings in the rounds of one draft, each request's in the order of time, at most one of each name.

    The columns context, start_seconds and category may be missing; then less can be told apart.
    """
    found = [differs_between_requests(rounds), falls_within_requests(rounds)]
    if "start_seconds" in rounds and all(one is None or one.name != FALLS_OVER_TIME for one in found):
        found.append(falls_over_clock(rounds))
    return [one for one in found if one is not None]


def falls_within_requests(rounds: pd.DataFrame) -> Finding | None:
    """Does acceptance fall from the first rounds of requests to the last?

    If so, prompts of different lengths tell whether context is why: where it is, requests that start with a longer
    context are worse by the same slope per token; where they are not, output is what matters. The last round of each
    request is left out: that it was the last depends on what it accepted.
    """
    place, last = _places(rounds)
    inner = rounds[~last]
    request = _codes(inner["request_id"])
    if len(np.unique(request)) < LEAST_REQUESTS:
        return None
    residual, tested = residuals(inner)
    fall = trend(residual, tested, place[~last].astype(np.float64), request, request)
    if fall.p_value >= FALSE_ALARM_RATE:
        return None
    share = place / rounds.groupby("request_id", sort=False)["request_id"].transform("size").to_numpy()
    first, final = share < 0.25, share >= 0.75
    evidence = _fall_evidence(rounds, fall, first, final)
    if "context" not in rounds:
        return Finding(FALLS_OVER_TIME, first, evidence)
    context = inner["context"].to_numpy(np.float64)
    start = inner.groupby("request_id", sort=False)["context"].transform("first").to_numpy(np.float64)
    per_token = trend(residual, tested, context - start, request, request)
    between = trend(residual, tested, start, _codes(_category(inner)), request)
    undecided = not between.error < abs(per_token.slope) / 2
    by_context = undecided or between.slope < per_token.slope / 2
    evidence |= {
        "slope_per_1000_tokens_within_requests": None if np.isnan(per_token.slope) else 1000 * per_token.slope,
        "slope_per_1000_tokens_between_prompts": None if np.isnan(between.slope) else 1000 * between.slope,
        "prompt_lengths_decide": not undecided,
        "mean_context_last_quarter": float(rounds.loc[final, "context"].mean()),
    }
    return Finding(FALLS_WITH_CONTEXT if by_context else FALLS_OVER_TIME, first, evidence)


def falls_over_clock(rounds: pd.DataFrame) -> Finding | None:
    """Does acceptance fall from the run's first seconds to its last, within categories?

    Only where starts lie further apart than a request lasts; else each request has a clock of its own.
    """
    starts = rounds.groupby("request_id", sort=False)["start_seconds"]
    begins = starts.transform("min").to_numpy(np.float64)
    request = _codes(rounds["request_id"])
    lasts = float((starts.max() - starts.min()).median())
    if len(np.unique(request)) < LEAST_REQUESTS or not np.ptp(begins) > lasts:
        return None
    residual, tested = residuals(rounds)
    fall = trend(residual, tested, begins, _codes(_category(rounds)), request)
    if fall.p_value >= FALSE_ALARM_RATE:
        return None
    early, late = begins <= np.quantile(begins, 0.25), begins >= np.quantile(begins, 0.75)
    evidence = _fall_evidence(rounds, fall, early, late) | {"slope_per_second": fall.slope}
    return Finding(FALLS_OVER_TIME, early, evidence)


def falls_over_log(series: pd.DataFrame) -> Finding | None:
    """Does the mean acceptance length fall over an engine's log (columns rounds, emitted, elapsed_seconds)?

    Successive lines depend on each other, so the log is cut into LOG_PARTS and these are regressed on time, or on their
    order where the log has no times.
    """
    if len(series) < LOG_PARTS:
        return None
    part = np.arange(len(series)) * LOG_PARTS // len(series)
    sums = series.assign(lines=1.0).groupby(part)[["rounds", "emitted", "elapsed_seconds", "lines"]].sum()
    if not (sums["rounds"] > 0).all():
        return None
    length = (sums["emitted"] / sums["rounds"]).to_numpy()
    timed = series["elapsed_seconds"].notna().all() and np.ptp(series["elapsed_seconds"]) > 0
    x = (sums["elapsed_seconds"] / sums["lines"]).to_numpy() if timed else np.arange(float(LOG_PARTS))
    fit = linregress(x, length, alternative="less")
    if not fit.pvalue < FALSE_ALARM_RATE:
        return None
    first, last = part < LOG_PARTS / 4, part >= 3 * LOG_PARTS / 4
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


def residuals(rounds: pd.DataFrame) -> tuple[FloatArray, FloatArray]:
    """Passed tokens less those expected at equal positions, and tested tokens, of each round.

    A round tests its drafted tokens one by one until the first rejection or cut, so this is a martingale difference:
    its mean is 0 however many tokens were drafted, as long as a position's chance is the same everywhere.
    """
    emitted = rounds["emitted"].to_numpy()
    tested = np.minimum(chain_depth(rounds).to_numpy(), emitted)
    passed = np.minimum(rounds["accepted"].to_numpy(), tested)
    position = np.arange(int(tested.max(initial=0)))[:, None]
    reached, went_on = (tested > position).sum(axis=1), (passed > position).sum(axis=1)
    expected = np.concatenate([[0.0], np.cumsum(went_on / np.maximum(reached, 1))])
    return passed - expected[tested], tested.astype(np.float64)


def trend(
    residual: FloatArray, tested: FloatArray, x: FloatArray, group: NDArray[np.intp], cluster: NDArray[np.intp]
) -> Trend:
    """Least squares of residuals on x within groups, tested tokens as weights.

    The variance is clustered and approximates a jackknife over clusters (CR3: Bell & McCaffrey 2002), so rounds of one
    cluster may depend on each other in any way. Student's t has one degree of freedom less than there would be clusters
    of equal leverage. NaN where x does not vary within groups, with a p-value of 1.
    """
    weight = np.bincount(group, tested)
    weight = np.where(weight > 0, weight, 1.0)
    centred = x - (np.bincount(group, tested * x) / weight)[group]
    own = residual - tested * (np.bincount(group, residual) / weight)[group]
    spread = float((tested * centred**2).sum())
    if spread <= 1e-12 * float((tested * x**2).sum()):
        return Trend(np.nan, np.nan, 1.0)
    slope = float((own * centred).sum()) / spread
    score = np.bincount(cluster, (own - slope * tested * centred) * centred)
    leverage = np.bincount(cluster, tested * centred**2) / spread
    error = float(np.sqrt(((score / (1 - np.minimum(leverage, 0.99))) ** 2).sum())) / spread
    freedom = max(1 / float((leverage**2).sum()) - 1, 1.0)
    return Trend(slope, error, float(t_distribution.cdf(slope / error, freedom)) if error > 0 else 1.0)


def variance_test(values: FloatArray, group: NDArray[np.intp]) -> float:
    """p-value of one-way analysis of variance (Fisher 1925); 1 where a group has fewer than 2 values on average."""
    size = np.bincount(group)
    groups = int((size > 0).sum())
    inner = len(values) - groups
    if groups < 2 or inner < groups:
        return 1.0
    means = np.bincount(group, values) / np.maximum(size, 1)
    within = float(((values - means[group]) ** 2).sum())
    between = float((size * (means - values.mean()) ** 2)[size > 0].sum())
    if within == 0:
        return 0.0 if between > 0 else 1.0
    return float(f_distribution.sf(between / (groups - 1) / (within / inner), groups - 1, inner))


def _fall_evidence(
    rounds: pd.DataFrame, fall: Trend, first: NDArray[np.bool_], last: NDArray[np.bool_]
) -> dict[str, Any]:
    return {
        "p_value": fall.p_value,
        "false_alarm_rate": FALSE_ALARM_RATE,
        "block_efficiency_first_quarter": float(rounds.loc[first, "emitted"].mean()),
        "block_efficiency_last_quarter": float(rounds.loc[last, "emitted"].mean()),
    }


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
