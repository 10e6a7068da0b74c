"""Diagnose what lies in files: the project's own round tables, and engines' logs as far as they go.

A log seldom says how long a round took, and never how much of it was verification. So of a log the causes in acceptance
are named, and shares are given only where both it and the baseline say how long their requests took.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.optimize import brentq

from analysis.diagnose import Diagnosis, diagnose, facts_of, plain_steps, verdict
from analysis.diagnose.acceptance_findings import Finding, falls_over_log, find_reasons
from analysis.diagnose.causes import acceptance_parts, as_causes
from analysis.diagnose.remedies import LENGTH_ONE, Facts
from analysis.diagnose.round_totals import add_up, interval
from analysis.fit.acceptance import wilson
from sim.records import ROUND_SECONDS, read_rounds
from sim.theory import expected_tokens

if TYPE_CHECKING:
    from analysis.engine_logs import ImportedLog

SECONDS = ("eval_seconds", "seconds")
"""columns of a log's requests that may hold how long a request took"""


def diagnose_files(
    path: Path, baseline: Path | None = None, draft: str | None = None, gamma: int | None = None, seed: int = 0
) -> Diagnosis:
    """Diagnose a run folder, a round table or an engine's log.

    Args:
        path: what to diagnose.
        baseline: the same without speculation.
        draft: which draft, where a round table holds several.
        gamma: which draft length, where a round table holds several.
        seed: of the bootstrap.

    Raises:
        ValueError: a file cannot be read, or holds nothing to diagnose or compare with.
    """
    source = read_source(path)
    if isinstance(source, pd.DataFrame):
        other = None if baseline is None else read_source(baseline)
        if other is not None and not isinstance(other, pd.DataFrame):
            raise ValueError(
                f"the baseline of a round table must be a round table too, {baseline} is a log of {other.engine}; "
                "measure one with `specdec measure`"
            )
        return diagnose(source, other, draft, gamma, seed)
    if draft is not None or gamma is not None:
        raise ValueError(f"{path} is a log of {source.engine}, which tells no drafts apart; leave draft and gamma out")
    return diagnose_log(source, None if baseline is None else baseline_seconds(baseline), seed)


def read_source(path: Path) -> pd.DataFrame | ImportedLog:
    """A round table, or the import of a log."""
    if is_round_table(path):
        return read_rounds(path / "rounds.parquet" if path.is_dir() else path)
    from analysis.engine_logs import read_log

    return read_log(path)


def is_round_table(path: Path) -> bool:
    """Is this a run folder, a Parquet file, or JSON lines with the columns of a round table?"""
    if path.is_dir() or path.suffix == ".parquet":
        return True
    if path.suffix != ".jsonl" or not path.is_file():
        return False
    with open(path, encoding="utf-8", errors="replace") as file:
        try:
            first = json.loads(file.readline(1 << 20))
        except (ValueError, RecursionError):
            return False
    return isinstance(first, dict) and {"round_index", "gamma", "accepted", "emitted"} <= first.keys()


def baseline_seconds(path: Path) -> float:
    """Seconds per token without speculation, from plain steps or from a log's requests.

    Raises:
        ValueError: the file does not say.
    """
    source = read_source(path)
    if isinstance(source, pd.DataFrame):
        steps = plain_steps(source, source)
        assert steps is not None
        return float(steps[list(ROUND_SECONDS)].to_numpy().sum() / steps["emitted"].sum())
    seconds = seconds_per_token(source)
    if seconds is None:
        raise ValueError(f"{path} does not say how long its requests took; give a baseline that does, or none")
    return seconds


def seconds_per_token(log: ImportedLog) -> float | None:
    """Seconds of requests over their output tokens; None where the log does not hold both of every request."""
    table = log.requests
    column = None if table is None else next((name for name in SECONDS if name in table), None)
    if table is None or column is None or "output_tokens" not in table or not len(table):
        return None
    sums = table[["output_tokens", column]].astype(np.float64)
    if sums.isna().any(axis=None) or not (sums.sum() > 0).all():
        return None
    return float(sums[column].sum() / sums["output_tokens"].sum())


def diagnose_log(log: ImportedLog, baseline: float | None = None, seed: int = 0) -> Diagnosis:
    """Diagnose an engine's log.

    Args:
        log: as `analysis.engine_logs.read_log` gives it.
        baseline: seconds per token without speculation; None where they are not known.
        seed: of the bootstrap over requests.

    Raises:
        ValueError: the log has no mean acceptance length.
    """
    if log.round_table is not None:
        return diagnose(log.round_table, seed=seed)
    mean = log.mean_acceptance_length
    if mean is None and log.drafted and log.accepted == 0:
        mean = 1.0
    if mean is None:
        raise ValueError(f"the log of {log.engine} holds no mean acceptance length, so nothing can be diagnosed")
    warnings = list(log.warnings)
    gamma = _draft_length(log, mean, warnings)
    rounds = None if log.steps is None else rounds_of(log.steps, log.requests, gamma)
    if rounds is not None and gamma:
        facts = facts_of(rounds)
        findings = [] if facts.not_loaded else find_reasons(rounds)
        totals = add_up(rounds, None, [one.reference for one in findings], np.random.default_rng(seed), 1000)
        tokens, references = totals.per_round("emitted"), list(totals.references)
        warnings += totals.warnings
    else:
        facts = facts_of_log(log, gamma, mean)
        tokens, references, findings = np.array([mean]), [], []
        found = None if facts.not_loaded else _over_time(log)
        if found is not None:
            findings.append(found)
            references.append(np.array([found.evidence["block_efficiency_first_quarter"]]))
    own = seconds_per_token(log)
    measured = ideal = None
    if gamma is None:
        parts = []
    else:
        acceptance = np.log((gamma + 1) / tokens)
        parts = acceptance_parts(acceptance, tokens, references, findings, facts, None)
        if own is not None and baseline is not None:
            measured = np.full_like(tokens, own)
            ideal = np.full_like(tokens, baseline / (gamma + 1))
    causes, gains = as_causes(parts, measured, ideal)
    speedup = None if own is None or baseline is None else baseline / own
    warnings += _what_is_missing(own, baseline, sum(cause.share or 0 for cause in causes))
    return Diagnosis(
        verdict=verdict(speedup, None, None if gamma is None else gamma + 1.0, causes),
        speedup=speedup,
        speedup_ci=None,
        ideal_speedup=None if gamma is None else gamma + 1.0,
        causes=causes,
        gains=gains,
        split=_split(log, own, baseline),
        draft=None,
        gamma=gamma,
        rounds=log.rounds,
        requests=None if log.requests is None else len(log.requests),
        block_efficiency=float(tokens[0]),
        block_efficiency_ci=interval(tokens),
        warnings=tuple(warnings),
    )


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
        alpha = float(brentq(lambda rate: float(expected_tokens(rate, gamma)) - mean, 0.0, 1.0))
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


def _draft_length(log: ImportedLog, mean: float, warnings: list[str]) -> int | None:
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


def _over_time(log: ImportedLog) -> Finding | None:
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


def _split(log: ImportedLog, own: float | None, baseline: float | None) -> dict[str, Any]:
    """Milliseconds per token, as far as the log has them."""
    drafting = None if log.draft_seconds is None or not log.emitted else log.draft_seconds / log.emitted
    parts = {"draft": drafting, "verify": None, "other": None, "total": own, "baseline": baseline}
    split: dict[str, Any] = {}
    for name, seconds in parts.items():
        split[f"{name}_ms_per_token"] = None if seconds is None else 1e3 * seconds
        split[f"{name}_ms_per_token_ci"] = None
    return split


def _what_is_missing(own: float | None, baseline: float | None, explained: float) -> list[str]:
    """What the log does not say, in words."""
    if own is None:
        return ["the log does not say how long its requests took: no speedup, shares or seconds"]
    if baseline is None:
        return ["without a baseline there is no speedup, and there are no shares or seconds"]
    return [
        "seconds are those of whole requests, with prefill where the engine counts it",
        f"{max(1 - explained, 0):.0%} of the loss is time of rounds, which the log does not split into draft, "
        "verification and the rest",
    ]
