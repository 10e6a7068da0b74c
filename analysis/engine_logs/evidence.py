"""From what each format in a log says to one result: the most telling format counts, the others are compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pandas as pd

from analysis.engine_logs.identities import Check, Identities
from analysis.engine_logs.imported import LEVELS, ImportedLog, conditional_from, marginal_from
from analysis.engine_logs.values import rounding

LONGEST_DRAFT = 10_000
"""tokens; a log that says more is broken"""


@dataclass(frozen=True, eq=False)
class Evidence:
    """What one format says; the fields are those of `ImportedLog`."""

    format: str
    level: str
    rounds: int | None = None
    drafted: int | None = None
    accepted: int | None = None
    emitted: int | None = None
    mean: float | None = None
    """mean over rounds; where None, it follows from rounds and accepted, if both are there"""
    mean_per_request: float | None = None
    marginal: tuple[float, ...] | None = None
    conditional: tuple[float | None, ...] | None = None
    """where None, it follows from `marginal`"""
    marginal_tolerance: float | None = 1e-9
    """how far 1 + the sum of `marginal` may be from the mean, for rounding; None where rounds were cut"""
    histogram: tuple[int, ...] | None = None
    gamma: int | None = None
    draft_seconds: float | None = None
    doubts: int = 0
    """how unsure the rounds are beside other formats of the engine: 0 counted, 1 inferred, 2 perhaps counted twice"""
    series: pd.DataFrame | None = None
    requests: pd.DataFrame | None = None
    steps: pd.DataFrame | None = None
    round_table: pd.DataFrame | None = None
    checks: tuple[Check, ...] = ()
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def completed(self) -> Evidence:
        """The same with everything that follows from what is there."""
        rounds, accepted = self.rounds, self.accepted
        mean = self.mean
        if mean is None and rounds and accepted is not None:
            mean = 1 + accepted / rounds
        emitted = self.emitted
        if emitted is None and rounds is not None and accepted is not None:
            emitted = rounds + accepted
        marginal = self.marginal
        if marginal is None and self.histogram and sum(self.histogram) > 0:
            marginal = marginal_from(self.histogram)
        conditional = self.conditional
        if conditional is None and marginal is not None:
            conditional = conditional_from(marginal)
        identities = Identities()
        if accepted is not None and self.drafted is not None:
            most = max(accepted, self.drafted)
            identities.compare("accepted <= drafted", ("accepted", most), ("drafted", self.drafted))
        if mean is not None:
            identities.compare(
                "mean acceptance length >= 1, the bonus token included",
                ("the mean", mean),
                ("the least", max(mean, 1.0)),
            )
        per_round = emitted / rounds if emitted is not None and rounds else None
        identities.compare(
            "mean acceptance length = emitted/rounds", ("the mean", mean), ("emitted/rounds", per_round),
            max(1e-6, rounding(mean or 0.0)),
        )  # fmt: skip
        if marginal is not None and self.marginal_tolerance is not None:
            identities.compare(
                "mean acceptance length = 1 + sum of marginal acceptance",
                ("the mean", mean), ("1 + the sum", 1 + sum(marginal)), self.marginal_tolerance, self.format,
            )  # fmt: skip
            for position in range(1, len(marginal)):
                identities.compare(
                    "marginal acceptance never rises with the position",
                    ("its rise", max(marginal[position] - marginal[position - 1], 0.0)), ("the most", 0.0), 1e-9,
                    f"position {position}",
                )  # fmt: skip
        gamma, warnings = self.gamma, self.warnings
        if rounds == 0 and not any("nothing was drafted" in warning for warning in warnings):
            warnings = (*warnings, "nothing was drafted")
        if gamma is not None and gamma > LONGEST_DRAFT:
            gamma, warnings = None, (*warnings, f"the draft length {gamma:,} is beyond {LONGEST_DRAFT:,}: left out")
        return replace(
            self, mean=mean, emitted=emitted, marginal=marginal, conditional=conditional, gamma=gamma,
            warnings=warnings, checks=(*self.checks, *identities.checks()),
        )  # fmt: skip


def combine(
    engine: str,
    found: Sequence[Evidence],
    files: Sequence[str],
    warnings: Sequence[str],
    skipped: int,
    examples: Sequence[str],
) -> ImportedLog:
    """One result from all formats found in a log.

    The most telling format gives the numbers; draft seconds, a time series and requests may come from another one.

    Args:
        engine: the engine's name.
        found: at least one, in the engine's own order.
        files: names of what was read.
        warnings: of the reading itself.
        skipped: lines that could not be read.
        examples: the first of them.
    """
    complete = [evidence.completed() for evidence in found]
    best = _most_telling(complete)
    others = [one for one in complete if one is not best]
    draft_seconds, timed_by = _draft_seconds(best, others)
    checks = tuple(check for one in complete for check in one.checks)
    notes = [*best.notes, *(_beside(best, other) for other in others), *timed_by]
    if best.mean_per_request is not None and best.mean is not None and abs(best.mean - best.mean_per_request) > 5e-5:
        notes.append(
            f"mean_acceptance_length {best.mean:.4f} is a mean over rounds; "
            f"the mean over requests is {best.mean_per_request:.4f}"
        )
    all_warnings = [
        *warnings,
        *(warning for one in complete for warning in one.warnings),
        *(check.warning() for check in checks if check.failed),
    ]
    if skipped:
        all_warnings.append(f"{skipped:,} lines could not be read and were skipped, e.g. {examples[0]}")
    return ImportedLog(
        engine=engine,
        format=best.format,
        level=best.level,
        files=tuple(files),
        rounds=best.rounds,
        drafted=best.drafted,
        accepted=best.accepted,
        emitted=best.emitted,
        mean_acceptance_length=best.mean,
        mean_acceptance_length_per_request=_first_of("mean_per_request", best, others),
        marginal_acceptance=best.marginal,
        conditional_acceptance=best.conditional,
        histogram=best.histogram,
        gamma=best.gamma,
        draft_seconds=draft_seconds,
        series=_first_of("series", best, others),
        requests=_first_of("requests", best, others),
        steps=best.steps,
        round_table=best.round_table,
        checks=checks,
        warnings=tuple(dict.fromkeys(all_warnings)),
        notes=tuple(notes),
        skipped_lines=skipped,
        skipped_examples=tuple(examples),
    )


def _most_telling(found: Sequence[Evidence]) -> Evidence:
    """The first of those of the best level that count rounds; one whose rounds are surer, if it counts no less."""
    best = min(found, key=lambda one: (LEVELS.index(one.level), one.rounds is None))
    for one in found:
        surer = one.level == best.level and one.rounds is not None and one.doubts < best.doubts
        if surer and (one.drafted or 0) >= (best.drafted or 0):
            best = one
    return best


def _first_of(name: str, best: Evidence, others: Sequence[Evidence]):  # type: ignore[no-untyped-def]  # any field
    return next((value for one in (best, *others) if (value := getattr(one, name)) is not None), None)


def _draft_seconds(best: Evidence, others: Sequence[Evidence]) -> tuple[float | None, list[str]]:
    """Time spent drafting; that of another format is taken per round, for it may count other rounds."""
    timed = next((one for one in (best, *others) if one.draft_seconds is not None), best)
    if timed is best or timed.draft_seconds is None or timed.rounds == best.rounds:
        return timed.draft_seconds, []
    if not timed.rounds or best.rounds is None:
        return None, []
    return timed.draft_seconds / timed.rounds * best.rounds, [f"draft seconds are those of a round in {timed.format}"]


def _beside(best: Evidence, other: Evidence) -> str:
    """What another format in the same log says."""
    said = [
        f"{label} {value:,.4f}".rstrip("0").rstrip(".")
        for label, value in (("rounds", other.rounds), ("mean acceptance length", other.mean))
        if value is not None
    ]
    return f"numbers are from {best.format}; {other.format} in the same log: {', '.join(said) or 'no mean'}"
