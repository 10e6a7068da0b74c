"""What a file says about one system's acceptance: a round table, a speculation profile, or an engine's log."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from analysis.acceptance.conversion import Acceptance, from_mean, from_ragged_mean
from analysis.acceptance.imports import is_import, read_log_or_import
from analysis.acceptance.laws import AcceptanceLaw, conditional_of, marginal_of
from analysis.acceptance.profile import MEAN_TOLERANCE, SpeculationProfile, read_profile
from analysis.interruptions import cap_interruptions
from sim.records import ROUND_SECONDS, read_rounds, summarise

if TYPE_CHECKING:
    from analysis.engine_logs import ImportedLog

PROFILE_KEYS = (
    *("conditional_accept_rates", "marginal_accept_rates", "mean_accept_length", "accept_length_model"),
    "acceptance_length_histogram",
)
FEWEST_ROUNDS = 10
"""taken as independent; with 2, 3 and 5 a test at 5% raises a false alarm in 26%, 13% and 9% of cases, with 10 in 6%"""
ROUND_TABLE_KEYS = ("round_index", "gamma", "accepted", "emitted")


@dataclass(frozen=True, eq=False)
class MeasuredAcceptance:
    """One system's acceptance; None where the file does not say. Lengths count the bonus or correction token."""

    name: str
    gamma: int | None = None
    mean_length: float | None = None
    """1 + accepted/rounds, as engines count it; a round cut by the output's end may have emitted less"""
    mean_length_per_request: float | None = None
    """mean over requests of each one's own mean"""
    rounds: int | None = None
    marginal: tuple[float, ...] | None = None
    """share of rounds in which positions 0..i were all accepted"""
    conditional: tuple[float | None, ...] | None = None
    """chance of position i once it was drafted and i-1 accepted"""
    histogram: tuple[int, ...] | None = None
    """rounds with 0, 1, 2, ... accepted tokens"""
    mean_drafted: float | None = None
    """tokens that a round drafted on average, where it was fewer than gamma"""
    requests: pd.DataFrame | None = None
    """rounds and accepted tokens of each request, its name as the index"""
    speedup: pd.DataFrame | None = None
    """tokens, seconds, baseline_tokens and baseline_seconds of each prompt, its name as the index"""
    method: str | None = None
    accept_length_model: str | None = None
    verification_method: str | None = None
    warnings: tuple[str, ...] = ()


def read_acceptance(
    paths: Sequence[Path], draft: str | None = None, gamma: int | None = None, engine: str = "auto"
) -> MeasuredAcceptance:
    """Read a round table (or a run's folder), a speculation profile, or the log files of an engine.

    Args:
        paths: one file, or several of one engine's log, such as two snapshots of its counters.
        draft: which draft of a round table, where it holds several.
        gamma: which draft length of a round table, where it holds several.
        engine: of a log; 'auto' finds out.

    Raises:
        ValueError: nothing readable is there, or a round table holds several configurations; one line.
    """
    if len(paths) == 1 and engine == "auto":
        path = paths[0] / "rounds.parquet" if paths[0].is_dir() and not is_import(paths[0]) else paths[0]
        if path.suffix == ".parquet" or (path.suffix == ".jsonl" and _begins_with(path, ROUND_TABLE_KEYS, all)):
            return of_rounds(read_rounds(path), str(paths[0]), draft, gamma)
        if path.name == "speculation_profile.json" or _begins_with(path, PROFILE_KEYS, any):
            return _at(of_profile(read_profile(path), str(path)), gamma)
    log = read_log_or_import(paths, engine)
    if log.round_table is not None:
        return of_rounds(log.round_table, str(paths[0]), draft, gamma)
    return _at(of_log(log), gamma)


def check_enough(measured: MeasuredAcceptance) -> None:
    """Can noise be told from a fall? Where several requests are known, their scatter says so, whatever their rounds.

    Raises:
        ValueError: too few rounds are known to judge by.
    """
    scatter = measured.requests is not None and len(measured.requests) > 1
    if not scatter and measured.rounds is not None and measured.rounds < FEWEST_ROUNDS:
        raise ValueError(
            f"{measured.name} has too few rounds to tell noise from a fall: {measured.rounds}; measure at least "
            f"{FEWEST_ROUNDS}, of several requests"
        )


def _at(measured: MeasuredAcceptance, gamma: int | None) -> MeasuredAcceptance:
    """The same, if it is not of another draft length than the one asked for."""
    if gamma is not None and measured.gamma is not None and gamma != measured.gamma:
        raise ValueError(f"{measured.name} is of gamma {measured.gamma}, not {gamma}; leave the choice of gamma out")
    return measured


def of_rounds(table: pd.DataFrame, name: str, draft: str | None = None, gamma: int | None = None) -> MeasuredAcceptance:
    """One configuration of a round table, and its speedup where the table has a baseline of every prompt.

    Raises:
        ValueError: the configuration asked for is not there, or none was asked for and there are several.
    """
    table = table.reset_index(drop=True)
    rounds, length, told = _configuration(table, name, draft, gamma)
    total, keys = summarise(rounds), _prompt_keys(rounds)
    tree = "depth" in rounds and bool((rounds["depth"] < rounds["drafted"]).any())
    positions = int(rounds["depth"].max()) if tree else length
    missing = positions - len(total["marginal_acceptance"])
    conditional = tuple(None if math.isnan(rate) else rate for rate in total["conditional_acceptance"])
    counted = rounds.assign(rounds=1).groupby(keys, dropna=False)[["rounds", "accepted"]].sum()
    if rounds["cut"].any():
        told.append(
            f"{int(rounds['cut'].sum()):,} of {len(rounds):,} rounds were cut by the end of an output; "
            "their accepted tokens count, whether emitted or not"
        )
    speedup, why = _speedup(table, rounds.index, keys)
    return MeasuredAcceptance(
        name=name,
        gamma=positions,
        mean_length=1 + total["accepted"] / total["rounds"],
        mean_length_per_request=float((1 + counted["accepted"] / counted["rounds"]).mean()),
        rounds=total["rounds"],
        marginal=(*total["marginal_acceptance"], *[0.0] * missing),
        conditional=(*conditional, *[None] * missing),
        histogram=(*total["histogram"], *[0] * missing),
        requests=counted,
        speedup=speedup,
        method=str(rounds["draft"].iloc[0]) if "draft" in rounds else None,
        accept_length_model="measured_per_k" if tree else None,
        warnings=(*told, *why),
    )


def of_profile(profile: SpeculationProfile, name: str) -> MeasuredAcceptance:
    """What a profile says; its mean over rounds is that of the histogram, where it has one.

    Raises:
        ValueError: it says that nothing was measured.
    """
    if not profile.measured:
        raise ValueError(f"{name} says that it was not measured; measure the draft first")
    marginal, conditional = profile.marginal_accept_rates, profile.conditional_accept_rates
    mean = profile.mean_accept_length
    counts = profile.acceptance_length_histogram
    rounds = histogram = None
    if marginal is None and conditional is not None:
        marginal = marginal_of(conditional)
    if counts is not None:
        histogram = tuple(counts.get(length, 0) for length in range(1, max(counts) + 1))
        rounds = sum(histogram)
        mean = 1 + sum(accepted * count for accepted, count in enumerate(histogram)) / rounds
        if marginal is None:
            survivors = [sum(histogram[position + 1 :]) / rounds for position in range(len(histogram) - 1)]
            marginal = (*survivors, *[0.0] * ((profile.num_speculative_tokens or 0) - len(survivors)))
    if mean is None and marginal is not None:
        mean = math.fsum((1.0, *marginal))
    return MeasuredAcceptance(
        name=name,
        gamma=profile.num_speculative_tokens if marginal is None else len(marginal),
        mean_length=mean,
        mean_length_per_request=profile.mean_accept_length_per_request,
        rounds=rounds,
        marginal=marginal,
        conditional=None if marginal is None else conditional_of(marginal),
        histogram=histogram,
        method=profile.method,
        accept_length_model=profile.accept_length_model,
        verification_method=profile.verification_method,
        warnings=tuple(profile.warnings()),
    )  # fmt: skip


def of_log(log: ImportedLog) -> MeasuredAcceptance:
    """What an engine's log says."""
    mean, per_request = log.mean_acceptance_length, log.mean_acceptance_length_per_request
    over_requests = log.rounds is None and mean is not None and mean == per_request
    marginal, conditional = log.marginal_acceptance, log.conditional_acceptance
    gamma = log.gamma
    if gamma is not None and marginal is not None and len(marginal) < gamma:
        missing = gamma - len(marginal)
        marginal = (*marginal, *[0.0] * missing)
        conditional = None if conditional is None else (*conditional, *[None] * missing)
    return MeasuredAcceptance(
        name=", ".join(log.files),
        gamma=gamma if marginal is None else len(marginal),
        mean_length=None if over_requests else mean,
        mean_length_per_request=per_request,
        rounds=log.rounds,
        marginal=marginal,
        conditional=conditional,
        histogram=log.histogram,
        mean_drafted=drafted_of(log),
        requests=_counted_requests(log),
        warnings=log.warnings,
    )


def drafted_of(log: ImportedLog) -> float | None:
    """Tokens that a round of a log drafted on average, where it was less than its draft length by more than 1%."""
    if log.gamma is None or not log.rounds or not log.drafted or log.drafted >= 0.99 * log.rounds * log.gamma:
        return None
    return log.drafted / log.rounds


def acceptance_of(measured: MeasuredAcceptance, gamma: int | None = None) -> Acceptance:
    """The law of a measurement: by position where it is known, else from its mean.

    A law is of rounds that draft all gamma tokens; where some drafted fewer, its mean length is above the measured one.

    Args:
        measured: from the functions above.
        gamma: the draft length behind a mean, where the measurement does not say it.

    Raises:
        ValueError: there is neither acceptance by position nor a mean with a draft length.
    """
    mean = measured.mean_length if measured.mean_length is not None else measured.mean_length_per_request
    rates = measured.conditional
    only_one = measured.accept_length_model == "measured_per_k"
    if rates:
        law = AcceptanceLaw("measured", marginal_of(rates))
        told = list(measured.warnings)
        if None in rates and (first := rates.index(None)) and law.marginal[first - 1] > 0:
            told.append(f"no round drafted position {first} after accepting those before; it counts as never accepted")
        if mean is not None and abs(law.mean_length - mean) > MEAN_TOLERANCE:
            told.append(
                f"the measured mean length is {mean:.4f}; rounds that draft all {law.gamma} tokens have "
                f"{law.mean_length:.4f} by the rates of their positions: some rounds drafted fewer"
            )
        return Acceptance(law, True, only_one, tuple(told))
    length = measured.gamma if measured.gamma is not None else gamma
    if mean is None or length is None:
        lacking = "acceptance" if mean is None else "the draft length; give it as --gamma"
        raise ValueError(f"{measured.name} does not say {lacking}")
    over_requests = measured.mean_length is None
    if measured.mean_drafted is None:
        given = from_mean(mean, length, over_requests=over_requests)
    else:
        given = from_ragged_mean(mean, length, measured.mean_drafted, over_requests)
    return replace(given, one_draft_length=only_one, warnings=(*measured.warnings, *given.warnings))


def _configuration(
    table: pd.DataFrame, name: str, draft: str | None, gamma: int | None
) -> tuple[pd.DataFrame, int, list[str]]:
    """The rounds of one draft and draft length, the length, and remarks.

    A draft length that changes from round to round within a request is one configuration; its length is the longest.
    """
    rounds = table[table["gamma"] > 0]
    if draft is not None:
        if "draft" not in rounds or not (rounds["draft"] == draft).any():
            known = sorted(rounds["draft"].unique()) if "draft" in rounds else "no names of drafts"
            raise ValueError(f"{name} has no draft '{draft}'; it has {known}")
        rounds = rounds[rounds["draft"] == draft]
    if gamma is not None:
        known = sorted(rounds["gamma"].unique().tolist())
        if gamma not in known:
            raise ValueError(f"{name} has no rounds with gamma {gamma}; it has {known}")
        rounds = rounds[rounds["gamma"] == gamma]
    if rounds.empty:
        raise ValueError(f"{name} holds no round with a draft (every gamma is 0)")
    lengths = sorted(rounds["gamma"].unique().tolist())
    drafts = sorted(rounds["draft"].unique()) if "draft" in rounds else [""]
    adaptive = not rounds.duplicated([*_prompt_keys(rounds), "round_index"]).any()
    if len(drafts) > 1 or (len(lengths) > 1 and not adaptive):
        found = rounds.groupby([*(["draft"] if "draft" in rounds else []), "gamma"]).size().index.tolist()
        raise ValueError(f"{name} holds several configurations (draft, gamma): {found}; choose one by draft and gamma")
    told = [f"the draft length changed from round to round, {lengths[0]} to {lengths[-1]}"] * (len(lengths) > 1)
    return rounds, lengths[-1], told


def _prompt_keys(table: pd.DataFrame) -> list[str]:
    return [name for name in ("phase", "category", "request_id") if name in table]


def _speedup(table: pd.DataFrame, chosen: pd.Index[int], keys: list[str]) -> tuple[pd.DataFrame | None, list[str]]:
    """Tokens and seconds of each prompt with the draft and without; interrupted rounds are capped as `compare` does."""
    if not (table["gamma"] == 0).any():
        return None, []
    capped = cap_interruptions(table)
    timed = capped.assign(tokens=capped["emitted"], seconds=capped[list(ROUND_SECONDS)].sum(axis=1))
    with_draft, without = (
        part.groupby(keys, dropna=False)[["tokens", "seconds"]].sum()
        for part in (timed.loc[chosen], timed[timed["gamma"] == 0])
    )
    both = with_draft.join(without.add_prefix("baseline_"))
    if (lacking := both["baseline_seconds"].isna()).any():
        return None, [
            f"no speedup: prompt {both.index[lacking][0]} was never decoded without a draft in the same phase"
        ]
    if (both[["seconds", "baseline_seconds"]] <= 0).any(axis=None):
        return None, ["no speedup: the rounds of some prompt took no time"]
    return both, []


def _counted_requests(log: ImportedLog) -> pd.DataFrame | None:
    """Rounds and accepted tokens of each request, where the log's rows are all of its rounds."""
    rows = log.requests
    if rows is None or not {"request_id", "rounds", "accepted"} <= set(rows.columns):
        if log.steps is None:
            return None
        rows = log.steps.assign(rounds=1)
    counted = rows[["request_id", "rounds", "accepted"]].dropna()
    if len(counted) < len(rows) or (log.rounds is not None and int(counted["rounds"].sum()) != log.rounds):
        return None
    counted = counted.astype({"rounds": "int64", "accepted": "int64"}).groupby("request_id").sum()
    return counted[counted["rounds"] > 0]


def _begins_with(path: Path, keys: Sequence[str], how: Callable[[Iterable[bool]], bool]) -> bool:
    """Are keys of JSON, any or all of them, in the file's first bytes?"""
    try:
        with open(path, "rb") as file:
            start = file.read(1 << 16)
    except OSError:
        return False
    return start.lstrip().startswith(b"{") and how(f'"{key}"'.encode() in start for key in keys)
