"""What an engine's log says about acceptance, in the words of the diagnosis, as far as it goes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from analysis.acceptance.laws import solve_alpha
from analysis.diagnose.acceptance_findings import Finding, falls_over_log
from analysis.diagnose.remedies import LENGTH_ONE, Facts
from analysis.fit.acceptance import wilson
from sim.records import ROUND_SECONDS

if TYPE_CHECKING:
    from analysis.engine_logs import ImportedLog


def rounds_of(steps: pd.DataFrame, requests: pd.DataFrame | None, gamma: int | None) -> pd.DataFrame | None:
    """A log's steps as rounds without times: what acceptance can be judged by."""
    if gamma is None or steps.empty:
        return None
    rounds = pd.DataFrame(
        {
            "request_id": steps["request_id"].astype(str),
            "batch": 1,
            "gamma": gamma,
            "drafted": steps.get("drafted", gamma),
            "accepted": steps["accepted"],
            "emitted": steps["accepted"] + 1,
            **dict.fromkeys(ROUND_SECONDS, 0.0),
        }
    ).reset_index(drop=True)
    if requests is not None and "category" in requests and requests["request_id"].is_unique:
        names = requests.set_index(requests["request_id"].astype(str))["category"]
        rounds["category"] = rounds["request_id"].map(names).fillna("").astype(str)
    return rounds


def facts_of_log(log: ImportedLog, gamma: int | None, mean: float) -> Facts:
    """Facts from sums: the acceptance rate is the iid one that gives the mean length (Leviathan et al. 2023, eq. 1)."""
    alpha = bounds = None
    if gamma and log.rounds and log.drafted != 0 and 1 <= mean <= gamma + 1:
        alpha = solve_alpha(mean, gamma)
        accepted = log.rounds * (mean - 1)
        # of every round its first token was tested at least
        interval_of_alpha = wilson(max(accepted / alpha, log.rounds) if alpha else log.rounds, accepted)
        bounds = [interval_of_alpha.lo, interval_of_alpha.hi]
    return Facts(
        rounds=log.rounds,
        gamma=float(gamma or 0),
        block_efficiency=mean,
        drafted=log.drafted,
        accepted=log.accepted,
        alpha=alpha,
        alpha_ci=bounds,
        idle=None,
        batch=None,
    )


def draft_length(log: ImportedLog, mean: float, warnings: list[str]) -> int | None:
    """Tokens that a round drafts: as the log says, or drafted over rounds, or else the most that were accepted."""
    if log.gamma:
        return log.gamma
    if log.drafted and log.rounds and log.drafted % log.rounds == 0:
        return log.drafted // log.rounds
    longest = 0
    if log.histogram is not None:
        longest = max((count for count, rounds in enumerate(log.histogram) if rounds), default=0)
    elif log.marginal_acceptance is not None:
        longest = len(log.marginal_acceptance)
    if longest == 0 and mean >= LENGTH_ONE:
        warnings.append("the log does not say how many tokens a round drafts, so the ideal is not known")
        return None
    least = max(longest, 1)
    warnings.append(
        f"the log does not say how many tokens a round drafts; the ideal is that of the least possible, {least}"
    )
    return least


def fall_over_time(log: ImportedLog) -> Finding | None:
    """A fall of the mean length over the log's own lines."""
    series = log.series
    if series is None or "rounds" not in series:
        return None
    known = series[series["rounds"] > 0]
    if "emitted" not in known:
        if "accepted" not in known:
            return None
        known = known.assign(emitted=known["rounds"] + known["accepted"])
    return falls_over_log(known.dropna(subset=["rounds", "emitted"]).reset_index(drop=True))
