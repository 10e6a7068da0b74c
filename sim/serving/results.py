"""What a serving run says: latencies, throughput and goodput with 95% intervals, and the server over time.

TTFT is the time from arrival to the first token, TPOT a request's mean time per token after it, ITL the time between
two emissions. Without speculation every emission is one token and the mean ITL is the mean TPOT over tokens; with it an
emission is a whole round's tokens, so ITL stays near the step's time while TPOT falls by the block efficiency.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from sim.acceptance import IntArray
from sim.engine import ratio_interval
from sim.output_analysis import Estimate, batch_means, mean_interval, quantile_interval, warm_up
from sim.serving.log import PREFILL_DEVICES, ServingLog
from sim.serving.scenario import Objective, ServingScenario
from sim.theory import FloatArray

PERCENTILES = (50, 90, 95, 99)
REQUEST_METRICS = ("waiting_seconds", "ttft_seconds", "tpot_seconds", "latency_seconds")
BATCHES = 20
"""most batches behind an interval within one run"""
LEAST_BATCHES = 10
"""10 to 30 are enough (Schmeiser 1982, Operations Research 30:556)"""
LEAST_WARM_UP = 50
"""requests without which no warm-up is looked for"""


@dataclass(frozen=True)
class ServingResult:
    """One run's measures by name, such as ttft_seconds.p99; a name's interval is missing where the run is too short."""

    values: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    over_time: pd.DataFrame
    """means over equal parts of the run: queue, batch, kv_tokens, tokens_per_second, by each part's end (seconds)"""


def as_json(values: Mapping[str, float], intervals: Mapping[str, tuple[float, float]]) -> dict[str, Any]:
    """Measures by metric and statistic, each with `_ci` where it has an interval; null for what is not finite."""
    nested: dict[str, Any] = {}
    for name, value in values.items():
        metric, _, statistic = name.partition(".")
        place = nested.setdefault(metric, {}) if statistic else nested
        place[statistic or metric] = number(value)
        if name in intervals:
            place[f"{statistic or metric}_ci"] = [number(bound) for bound in intervals[name]]
    return nested


def number(value: float) -> float | int | None:
    """The value for JSON, which has no NaN and no infinity."""
    if not math.isfinite(value):
        return None
    return int(value) if isinstance(value, int | np.integer) else float(value)


def measure(scenario: ServingScenario, log: ServingLog, drop: int | Literal["auto"] = "auto") -> ServingResult:
    """Measure a run.

    Args:
        scenario: what was run.
        log: what happened.
        drop: requests at the start that count as warm-up; "auto": what MSER-5 finds in the requests' latencies, or none
            where all arrive at once or there are fewer than 50.

    Raises:
        ValueError: drop leaves no request.
    """
    requests = log.request_table()
    if drop == "auto":
        drop = warm_up_requests(requests)
    if not 0 <= drop < len(requests):
        raise ValueError(f"warm-up must leave a request, got {drop} of {len(requests)}")
    kept = requests.iloc[drop:]
    start = float(kept["arrival_seconds"].iloc[0]) if drop else 0.0
    end = float(requests["finished_seconds"].max())
    steps = log.step_table()
    estimates: dict[str, Estimate | float] = {
        "requests": len(kept),
        "warm_up_requests": drop,
        "seconds": end - start,
        "preemptions": int(kept["preemptions"].sum()),
    }
    for metric in REQUEST_METRICS:
        estimates |= statistics(metric, kept[metric].dropna().to_numpy())
    estimates |= gap_statistics(log.gap_table(), start)
    estimates |= rates(scenario.objective, kept, start, end)
    estimates |= acceptance(kept)
    estimates |= load(scenario, requests, steps, start, end)
    values = {name: one.value if isinstance(one, Estimate) else one for name, one in estimates.items()}
    intervals = {name: (one.lo, one.hi) for name, one in estimates.items() if isinstance(one, Estimate)}
    return ServingResult(values, intervals, over_time(requests, steps, end))


def warm_up_requests(requests: pd.DataFrame) -> int:
    """Requests at the start of a run to leave out."""
    if len(requests) < LEAST_WARM_UP or requests["arrival_seconds"].nunique() == 1:
        return 0
    return warm_up(requests["latency_seconds"].to_numpy()).observations


def statistics(metric: str, values: FloatArray) -> dict[str, Estimate | float]:
    """Mean and percentiles of one metric over requests in order of arrival."""
    if not len(values):
        return {f"{metric}.{name}": math.nan for name in ("mean", *(f"p{p}" for p in PERCENTILES))}
    found = {f"{metric}.mean": mean_of_all(values)}
    for percentile in PERCENTILES:
        share = percentile / 100
        enough = len(values) >= 2 * BATCHES
        one = quantile_interval(values, share, batches_of(values)) if enough else float(np.quantile(values, share))
        found[f"{metric}.p{percentile}"] = one
    return found


def mean_of_all(values: FloatArray) -> Estimate | float:
    """The mean of one run's values with the interval of batch means, around it where a few values fill no batch."""
    mean = float(values.mean())
    if len(values) < 2 * BATCHES:
        return mean
    batched = batch_means(values, batches_of(values))
    return replace(batched, value=mean, lo=mean - batched.half_width, hi=mean + batched.half_width)


def batches_of(values: FloatArray) -> int:
    """The number of batches that leaves the fewest values out, the largest such number."""
    return min(range(LEAST_BATCHES, BATCHES + 1), key=lambda batches: (len(values) % batches, -batches))


def gap_statistics(gaps: pd.DataFrame, start: float) -> dict[str, Estimate | float]:
    """Mean and percentiles of the time between two emissions of one request, by batches of equal time."""
    gaps = gaps[gaps["end_seconds"] >= start].sort_values("seconds", kind="stable")
    names = ("mean", *(f"p{percentile}" for percentile in PERCENTILES))
    if gaps.empty:
        return {f"itl_seconds.{name}": math.nan for name in names}
    seconds, count, ends = (gaps[name].to_numpy(dtype=np.float64) for name in ("seconds", "count", "end_seconds"))
    part = np.minimum(((ends - ends.min()) / (np.ptp(ends) or 1.0) * BATCHES).astype(np.int64), BATCHES - 1)
    total = np.bincount(part, count, BATCHES)
    filled = total > 0
    found: dict[str, Estimate | float] = {}
    sums = np.bincount(part, seconds * count, BATCHES)
    found["itl_seconds.mean"] = ratio_estimate(sums[filled], total[filled])
    below = np.cumsum(count) / count.sum()

    def at(share: float) -> float:
        if not 0 < share < 1:
            return math.copysign(math.inf, share - 0.5)
        return float(seconds[min(int(np.searchsorted(below, share)), len(seconds) - 1)])

    for percentile in PERCENTILES:
        value = at(percentile / 100)
        passed = np.bincount(part, count * (seconds <= value), BATCHES)
        inside = ratio_estimate(passed[filled], total[filled])
        half = inside.half_width if isinstance(inside, Estimate) else math.nan
        bounds = at(percentile / 100 - half), at(percentile / 100 + half)
        exact = math.isfinite(half)
        found[f"itl_seconds.p{percentile}"] = Estimate(value, *bounds, int(filled.sum())) if exact else value
    return found


def ratio_estimate(numerator: FloatArray | IntArray, denominator: FloatArray | IntArray) -> Estimate | float:
    """A ratio of sums with its interval, without one for a single batch."""
    if len(numerator) < 2:
        return float(numerator.sum() / denominator.sum())
    value, (lo, hi) = ratio_interval(numerator, denominator)
    return Estimate(value, lo, hi, len(numerator))


def rates(objective: Objective, kept: pd.DataFrame, start: float, end: float) -> dict[str, Estimate | float]:
    """Throughput and goodput from the first arrival that counts to the last token, by parts of equal time."""
    met = np.ones(len(kept), dtype=bool)
    for metric in ("ttft_seconds", "tpot_seconds", "latency_seconds"):
        most = getattr(objective, metric)
        if most is not None:
            met &= ~(kept[metric] > most).to_numpy()
    edges = np.linspace(start, end, BATCHES + 1)
    finished = kept["finished_seconds"].to_numpy()
    found: dict[str, Estimate | float] = {}
    for name, weight in (
        ("tokens_per_second", kept["output_tokens"].to_numpy(dtype=np.float64)),
        ("requests_per_second", np.ones(len(kept))),
        ("goodput_requests_per_second", met.astype(np.float64)),
    ):
        # a request's tokens are spread evenly from its first to its last, so that long outputs do not arrive in lumps
        begins = kept["first_token_seconds"].to_numpy() if name == "tokens_per_second" else finished
        emitted = np.diff(spread(edges, begins, finished, weight)) / np.diff(edges)
        interval = mean_interval(emitted)
        mean = float(weight.sum()) / (end - start)
        found[name] = Estimate(mean, mean - interval.half_width, mean + interval.half_width, BATCHES)
    found["goodput_share"] = mean_of_all(met.astype(np.float64))
    return found


def spread(times: ArrayLike, starts: ArrayLike, ends: ArrayLike, amounts: ArrayLike) -> FloatArray:
    """How much of all amounts, each spread evenly from its start to its end, has come by each time."""
    starts, ends, amounts = (np.asarray(column, dtype=np.float64) for column in (starts, ends, amounts))
    length = ends - starts
    sudden = length == 0
    rate = np.divide(amounts, length, out=np.zeros_like(amounts), where=~sudden)
    return area(times, starts, ends, rate) + past(times, ends[sudden], amounts[sudden])


def area(times: ArrayLike, starts: FloatArray, ends: FloatArray, heights: FloatArray) -> FloatArray:
    """The area up to each time under all steps of some height from a start to an end."""
    total = np.zeros(np.shape(times))
    for edges, sign in ((starts, 1.0), (ends, -1.0)):
        order = np.argsort(edges, kind="stable")
        index = np.searchsorted(edges[order], times, side="right")
        height = np.concatenate([[0.0], np.cumsum(heights[order])])[index]
        moment = np.concatenate([[0.0], np.cumsum(heights[order] * edges[order])])[index]
        total += sign * (height * np.asarray(times) - moment)
    return total


def past(times: ArrayLike, moments: FloatArray, amounts: FloatArray) -> FloatArray:
    """The sum of all amounts whose moment is not later than each time."""
    order = np.argsort(moments, kind="stable")
    return np.concatenate([[0.0], np.cumsum(amounts[order])])[np.searchsorted(moments[order], times, side="right")]


def acceptance(kept: pd.DataFrame) -> dict[str, Estimate | float]:
    """Tokens per round (a per-round mean) and the share of drafted tokens that were accepted, over requests."""
    names = ("rounds", "round_tokens", "drafted", "accepted")
    rounds, emitted, drafted, accepted = (kept[name].to_numpy(dtype=np.float64) for name in names)
    found: dict[str, Estimate | float] = {"block_efficiency": math.nan, "accepted_share": math.nan}
    if rounds.sum():
        found["block_efficiency"] = ratio_estimate(emitted, rounds)
    if drafted.sum():
        found["accepted_share"] = ratio_estimate(accepted, drafted)
    return found


def load(
    scenario: ServingScenario, requests: pd.DataFrame, steps: pd.DataFrame, start: float, end: float
) -> dict[str, Estimate | float]:
    """How full the server was: means over time, of a replica where there are several."""
    counted = steps[steps["start_seconds"] >= start]
    here = counted[counted["replica"] != PREFILL_DEVICES]
    parts = {name: here[f"{name}_seconds"].to_numpy() for name in ("draft", "verify", "other")}
    seconds = np.sum(list(parts.values()), axis=0)
    busy = float(seconds.sum())
    span = scenario.replicas * (end - start)
    decoding = (here["batch"] > 0).to_numpy()
    arrived, admitted = requests["arrival_seconds"].to_numpy(), requests["admitted_seconds"].to_numpy()
    queued = np.diff(area([start, end], arrived, admitted, np.ones(len(requests))))
    found: dict[str, Estimate | float] = {
        "utilisation": busy / span,
        "queue.mean": float(queued[0]) / span,
        "queue.max": longest_queue(arrived, admitted),
        "batch.mean": float(np.average(here["batch"][decoding], weights=seconds[decoding])) if decoding.any() else 0.0,
        "batch.max": int(here["batch"].max()) if len(here) else 0,
        "kv_tokens.mean": float((here["kv_tokens"] * seconds).sum()) / span,
        "kv_tokens.max": int(here["kv_tokens"].max()) if len(here) else 0,
    }
    if busy:
        found |= {f"{name}_share": float(part.sum()) / busy for name, part in parts.items()}
    return found


def longest_queue(arrived: FloatArray, admitted: FloatArray) -> int:
    """Most requests that waited at any arrival; one that is taken at once does not wait."""
    taken = np.searchsorted(np.sort(admitted), arrived, side="right")
    return int((np.arange(1, len(arrived) + 1) - taken).max())


def over_time(requests: pd.DataFrame, steps: pd.DataFrame, end: float, parts: int = 50) -> pd.DataFrame:
    """The server in equal parts of a run, all replicas together: see `ServingResult.over_time`."""
    edges = np.linspace(0.0, end, parts + 1)
    width = np.diff(edges)
    here = steps[steps["replica"] != PREFILL_DEVICES]
    begins = here["start_seconds"].to_numpy()
    ends = begins + here[["draft_seconds", "verify_seconds", "other_seconds"]].sum(axis=1).to_numpy()
    arrived, admitted, first, finished = (
        requests[f"{name}_seconds"].to_numpy() for name in ("arrival", "admitted", "first_token", "finished")
    )
    tokens = requests["output_tokens"].to_numpy(dtype=np.float64)
    return pd.DataFrame(
        {
            "seconds": edges[1:],
            "queue": np.diff(area(edges, arrived, admitted, np.ones(len(arrived)))) / width,
            "batch": np.diff(area(edges, begins, ends, here["batch"].to_numpy(dtype=np.float64))) / width,
            "kv_tokens": np.diff(area(edges, begins, ends, here["kv_tokens"].to_numpy(dtype=np.float64))) / width,
            "tokens_per_second": np.diff(spread(edges, first, finished, tokens)) / width,
        }
    )
