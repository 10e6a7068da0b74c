"""DSI over a grid of drafts: whole maps in seconds, with the latencies of `sim.topologies.dsi`.

With constant latencies a speculation's verdicts come at times that depend on the draft's speed and on the tokens left,
not on chance; chance says which verdict ends it. So the times are tabulated once for each draft latency, and all runs
of all acceptance rates step through their speculations together. The maps are those of Timor et al. 2024
(arXiv:2405.14105, Fig. 2): DSI, draft-then-verify (SI) and the target alone (non-SI), by draft latency and acceptance.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from sim.acceptance import IntArray
from sim.theory import FloatArray, check_cost, check_probability
from sim.topologies.dsi import drafted_by, next_reach
from sim.topologies.theory import dsi_lookahead


def dsi_heatmap(
    draft_seconds: ArrayLike,
    alphas: ArrayLike,
    seed: int | np.random.Generator,
    target_seconds: float = 1.0,
    tokens: int = 100,
    target_servers: int = 7,
    lookahead: int | None = None,
    si_lookahead: int | None = None,
    repeats: int = 100,
) -> pd.DataFrame:
    """Mean latencies over a grid of draft latencies and acceptance rates, all from the same random numbers.

    Args:
        draft_seconds: one draft forward [drafts].
        alphas: acceptance rates, iid [alphas].
        seed: the run's seed, or a generator to draw from.
        target_seconds: one target forward, however many tokens it verifies.
        tokens: output tokens of a request.
        target_servers: target forwards that can run at once.
        lookahead: of DSI; None: for each draft the least that eq. (1) allows on so many servers.
        si_lookahead: of SI; None: DSI's.
        repeats: requests simulated in each cell.

    Returns:
        One row per cell: draft_seconds, alpha, lookahead, si_lookahead, dsi_seconds, si_seconds, non_si_seconds, and
        the standard errors dsi_error and si_error (NaN for one repeat).

    Raises:
        ValueError: an argument is out of its range.
    """
    drafts, rates = np.atleast_1d(check_cost("draft_seconds", draft_seconds)), np.atleast_1d(alphas)
    if drafts.min() <= 0 or check_cost("target_seconds", target_seconds) <= 0:
        raise ValueError(f"draft and target seconds must be > 0, got {drafts.min()} and {target_seconds}")
    whole = {"tokens": tokens, "target_servers": target_servers, "repeats": repeats}
    given = {"lookahead": lookahead, "si_lookahead": si_lookahead}
    whole |= {name: value for name, value in given.items() if value is not None}
    for name, value in whole.items():
        if value < 1 or value != int(value):
            raise ValueError(f"{name} must be a whole number >= 1, got {value}")
    stops = first_disagreements(np.random.default_rng(seed).random((repeats, tokens)), rates)
    cells = []
    for draft in drafts.tolist():
        ahead = lookahead or dsi_lookahead(draft, target_seconds, target_servers)
        si_ahead = si_lookahead or ahead
        runs = (
            dsi_seconds(stops, draft, target_seconds, ahead, target_servers),
            si_seconds(stops, draft, target_seconds, si_ahead),
        )
        means, errors = zip(*((run.mean(axis=1), standard_error(run)) for run in runs), strict=True)
        cells.append(
            pd.DataFrame(
                {
                    "draft_seconds": draft,
                    "alpha": rates,
                    "lookahead": ahead,
                    "si_lookahead": si_ahead,
                    "dsi_seconds": means[0],
                    "si_seconds": means[1],
                    "non_si_seconds": tokens * target_seconds,
                    "dsi_error": errors[0],
                    "si_error": errors[1],
                }
            )
        )
    return pd.concat(cells, ignore_index=True)


def standard_error(runs: FloatArray) -> FloatArray:
    """Standard errors of means over the last axis; NaN for one run."""
    count = runs.shape[-1]
    if count < 2:
        return np.full(runs.shape[:-1], np.nan)
    error: FloatArray = runs.std(axis=-1, ddof=1) / np.sqrt(count)
    return error


def first_disagreements(uniform: FloatArray, alphas: ArrayLike) -> IntArray:
    """The first output position, from each on, where the draft disagrees with the target.

    Args:
        uniform: one random number per request and output position [requests, tokens].
        alphas: acceptance rates [alphas].

    Returns:
        Positions [alphas, requests, tokens]; the number of tokens where the draft agrees to the end.
    """
    tokens = uniform.shape[-1]
    agrees = uniform < check_probability("alpha", alphas)[:, None, None]
    position = np.where(agrees, tokens, np.arange(tokens))
    return np.minimum.accumulate(position[..., ::-1], axis=-1)[..., ::-1]


def dsi_seconds(
    stops: IntArray, draft_seconds: float, target_seconds: float, lookahead: int, target_servers: int
) -> FloatArray:
    """Latency of each request with DSI: that of `sim.topologies.dsi` on the same random numbers, up to rounding.

    Args:
        stops: as `first_disagreements` gives them [alphas, requests, tokens].
        draft_seconds: one draft forward.
        target_seconds: one target forward.
        lookahead: drafted tokens between the starts of target forwards.
        target_servers: target forwards that can run at once.

    Returns:
        Seconds [alphas, requests].
    """
    tokens = stops.shape[-1]
    ready = np.cumsum(np.full(tokens, draft_seconds)).tolist()
    schedules = [
        verdicts(ready[: room - 1], target_seconds, lookahead, target_servers) for room in range(1, tokens + 1)
    ]
    most = np.array([len(seconds) for seconds in schedules])
    table = np.zeros((tokens, tokens))
    for seconds, row in zip(schedules, table, strict=True):
        row[: len(seconds)] = seconds

    def speculation(output: IntArray, stop: IntArray) -> tuple[IntArray, FloatArray]:
        left = tokens - output - 1
        emitted = np.minimum(stop - output + 1, most[left])
        return emitted, table[left, emitted - 1]

    return total_seconds(stops, speculation)


def si_seconds(stops: IntArray, draft_seconds: float, target_seconds: float, lookahead: int) -> FloatArray:
    """Latency of each request with draft-then-verify rounds, whose drafts never reach beyond the last token but one.

    Arguments and result as for `dsi_seconds`; the bonus token leaves its position's random number unused.
    """
    tokens = stops.shape[-1]
    ready = np.cumsum([0.0] + [draft_seconds] * lookahead)

    def round_of(output: IntArray, stop: IntArray) -> tuple[IntArray, FloatArray]:
        drafted = np.minimum(lookahead, tokens - output - 1)
        return np.minimum(stop - output, drafted) + 1, ready[drafted] + target_seconds

    return total_seconds(stops, round_of)


def verdicts(ready: list[float], target_seconds: float, lookahead: int, target_servers: int) -> list[float]:
    """When a speculation that never fails knows each token, until the target overtakes the draft or all is out.

    The rules of `sim.topologies.dsi.speculate` without its event loop.

    Args:
        ready: seconds until each token is drafted [tokens that may be drafted].
        target_seconds: one target forward.
        lookahead: drafted tokens between the starts of target forwards.
        target_servers: target forwards that can run at once.

    Returns:
        Seconds of each token; at most one more than may be drafted.
    """
    known: list[float] = []
    running: deque[tuple[float, int]] = deque()
    now, reach, limit = 0.0, -1, len(ready)
    while True:
        due = next_reach(reach, lookahead, limit)
        free = reach < limit and len(running) < target_servers
        drafted = drafted_by(ready, now)
        if not running or (free and drafted >= due):
            reach = drafted
            running.append((now + target_seconds, reach))
            continue
        if free and (timer := now + max(0.0, ready[due - 1] - now)) < running[0][0]:
            now = timer
            continue
        now, verified = running.popleft()
        known += [now] * (verified + 1 - len(known))
        if verified == limit or verified + 1 > drafted_by(ready, now):
            return known


def total_seconds(stops: IntArray, step: Callable[[IntArray, IntArray], tuple[IntArray, FloatArray]]) -> FloatArray:
    """Latency of requests that advance step by step, all of them together.

    Args:
        stops: as `first_disagreements` gives them [alphas, requests, tokens].
        step: what the next step of each request emits and how long it lasts, given its output tokens and the first
            position from there on where the draft disagrees.

    Returns:
        Seconds [alphas, requests].
    """
    tokens = stops.shape[-1]
    flat = stops.reshape(-1, tokens)
    total, output = np.zeros(len(flat)), np.zeros(len(flat), dtype=np.int64)
    going = np.arange(len(flat))
    while going.size:
        at = output[going]
        emitted, seconds = step(at, flat[going, at])
        total[going] += seconds
        output[going] = at + emitted
        going = going[at + emitted < tokens]
    return total.reshape(stops.shape[:-1])
