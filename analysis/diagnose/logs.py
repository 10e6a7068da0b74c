"""Diagnose what lies in files: the project's own round tables, and engines' logs as far as they go.

A log seldom says how long a round took, and never how much of it was verification. Where it and a baseline say how
long a token took, what a round costs beyond a plain step is a cause: whole, or, where the log times drafting, without
that. Of a log without times the causes in acceptance are named.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analysis.diagnose import Diagnosis, diagnose, facts_of, plain_steps, verdict
from analysis.diagnose.acceptance_findings import find_reasons
from analysis.diagnose.causes import Part, acceptance_parts, as_causes
from analysis.diagnose.log_costs import costs_of, drafting_per_round, time_parts, with_untimed_draft
from analysis.diagnose.log_facts import draft_length, facts_of_log, fall_over_time, rounds_of
from analysis.diagnose.remedies import LENGTH_ONE
from analysis.diagnose.round_totals import add_up, best_of, interval
from analysis.diagnose.speedup_loss import GOOD_ACCEPTANCE, log_losses
from analysis.diagnose.token_seconds import token_seconds
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
        other: pd.DataFrame | float | None = None
        if baseline is not None:
            other = read_table(baseline) if is_round_table(baseline) else baseline_seconds(baseline)
        return diagnose(source, other, draft, gamma, seed)
    if draft is not None or gamma is not None:
        raise ValueError(f"{path} is a log of {source.engine}, which tells no drafts apart; leave draft and gamma out")
    own = seconds_per_token(source)
    if own is None and source.round_table is None:
        own = token_seconds(path)  # reads the file once more
    return diagnose_log(source, own, None if baseline is None else baseline_seconds(baseline), seed)


def read_source(path: Path) -> pd.DataFrame | ImportedLog:
    """A round table, or the import of a log."""
    if is_round_table(path):
        return read_table(path)
    from analysis.engine_logs import read_log

    return read_log(path)


def read_table(path: Path) -> pd.DataFrame:
    """The round table of a run folder, or of a file."""
    return read_rounds(path / "rounds.parquet" if path.is_dir() else path)


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
    if is_round_table(path):
        table = read_table(path)
        steps = plain_steps(table, table)
        assert steps is not None
        return float(steps[list(ROUND_SECONDS)].to_numpy().sum() / steps["emitted"].sum())
    seconds = token_seconds(path)
    if seconds is None:
        raise ValueError(f"{path} does not say how long its tokens took; give a baseline that does, or none")
    speculates = acceptance_length(path)
    if speculates is not None and speculates >= LENGTH_ONE:
        raise ValueError(f"{path} speculates too (mean acceptance length {speculates:.2f}); give a run without")
    return seconds


def acceptance_length(path: Path) -> float | None:
    """A log's mean acceptance length; None where it holds nothing about speculation."""
    from analysis.engine_logs import read_log

    try:
        return read_log(path).mean_acceptance_length
    except ValueError:
        return None


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


def diagnose_log(log: ImportedLog, own: float | None = None, baseline: float | None = None, seed: int = 0) -> Diagnosis:
    """Diagnose an engine's log.

    Args:
        log: as `analysis.engine_logs.read_log` gives it.
        own: its seconds per token; None where they are not known.
        baseline: seconds per token without speculation; None where they are not known.
        seed: of the bootstrap over requests.

    Raises:
        ValueError: the log has no mean acceptance length.
    """
    if log.round_table is not None:
        return diagnose(log.round_table, baseline, seed=seed)
    mean = log.mean_acceptance_length
    if mean is None and log.drafted and log.accepted == 0:
        mean = 1.0
    if mean is None:
        raise ValueError(f"the log of {log.engine} holds no mean acceptance length, so nothing can be diagnosed")
    warnings = list(log.warnings)
    gamma = draft_length(log, mean, warnings)
    rounds = None if log.steps is None else rounds_of(log.steps, log.requests, gamma)
    if rounds is not None and gamma:
        facts = facts_of(rounds)
        findings = [] if facts.not_loaded else find_reasons(rounds)
        totals = add_up(rounds, None, [one.reference for one in findings], np.random.default_rng(seed), 1000)
        tokens, references = totals.per_round("emitted"), list(totals.references())
        warnings += totals.warnings
    else:
        facts = facts_of_log(log, gamma, mean)
        tokens, references, findings = np.array([mean]), [], []
        found = None if facts.not_loaded else fall_over_time(log)
        if found is not None:
            findings.append(found)
            references.append(np.array([found.evidence["block_efficiency_first_quarter"]]))
    drafting = drafting_per_round(log)
    if own is not None and drafting is not None and drafting >= own * mean:
        warnings.append(
            f"drafting takes {1e3 * drafting:.3g} ms a round, and a whole round {1e3 * own * mean:.3g} ms: the log's "
            "times do not agree (several requests at once?), so drafting is not told apart"
        )
        drafting = None
    parts: list[Part] = []
    good = tokens if gamma is None else np.full_like(tokens, expected_tokens(GOOD_ACCEPTANCE, gamma))
    ideal = best_of(good, tokens, *references)
    acceptance = np.log(ideal / tokens)
    costs = costs_of(tokens, ideal, own, baseline, drafting)
    if costs is not None:
        losses = log_losses(costs)
        if facts.not_loaded:
            acceptance = losses.sum(axis=0)
        else:
            parts = time_parts(losses, costs, facts, drafting is not None)
    if gamma is not None:
        parts = [*acceptance_parts(acceptance, tokens, ideal, references, findings, facts, None), *parts]
    times = (None, None) if costs is None else (costs.seconds_per_token, costs.ideal_seconds_per_token)
    causes, gains = as_causes(parts, *times)
    if costs is None and not facts.not_loaded:
        causes = with_untimed_draft(causes, drafting, facts)
    speedup = None if own is None or baseline is None else baseline / own
    warnings += _what_is_missing(own, baseline, drafting)
    best = None if gamma is None else float(ideal[0])
    return Diagnosis(
        verdict=verdict(speedup, None, best, causes),
        speedup=speedup,
        speedup_ci=None,
        ideal_speedup=best,
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


def _split(log: ImportedLog, own: float | None, baseline: float | None) -> dict[str, Any]:
    """Milliseconds per token, as far as the log has them."""
    drafting = None if log.draft_seconds is None or not log.emitted else log.draft_seconds / log.emitted
    parts = {"draft": drafting, "verify": None, "other": None, "total": own, "baseline": baseline}
    split: dict[str, Any] = {}
    for name, seconds in parts.items():
        split[f"{name}_ms_per_token"] = None if seconds is None else 1e3 * seconds
        split[f"{name}_ms_per_token_ci"] = None
    return split


def _what_is_missing(own: float | None, baseline: float | None, drafting: float | None) -> list[str]:
    """What the log does not say, in words."""
    if own is not None and baseline is not None:
        return ["seconds per token are the engine's own: means over requests, with prefill where it counts that"]
    if own is None and baseline is None:
        return ["the log does not say how long its tokens took: no speedup, and causes are not weighed in seconds"]
    if drafting is None:
        if own is None:
            return ["the log does not say how long its tokens took, so the baseline does not help: no speedup"]
        return ["without a baseline there is no speedup, and there are no shares or seconds"]
    if own is None:
        return [
            "the log does not say how long its tokens took: no speedup. A round is taken to cost its drafting and a "
            "plain step, the least it can"
        ]
    return [
        "without a baseline there is no speedup. To weigh drafting, the rest of a round stands in for a plain step, so "
        "what verification and overhead cost beyond one is not known"
    ]
