"""What an engine's log says about speculative decoding, in the project's words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from analysis.engine_logs.identities import Check

LEVELS = ("steps", "histogram", "positions", "totals", "mean")
"""what a log knows, the most telling first: accepted tokens of every round, how many rounds accepted 0, 1, 2, ...
tokens, acceptance by position, sums over all rounds, a mean only"""


@dataclass(frozen=True, eq=False)
class ImportedLog:
    """A log, summed up. What the log does not hold is None, never zero."""

    engine: str
    format: str
    """which of the engine's formats the numbers are from"""
    level: str
    """one of LEVELS"""
    files: tuple[str, ...]
    rounds: int | None
    drafted: int | None
    """tokens proposed"""
    accepted: int | None
    """proposed tokens that were accepted, as the log counts them"""
    emitted: int | None
    """tokens added to outputs by these rounds"""
    mean_acceptance_length: float | None
    """tokens emitted per round, bonus or correction included: a mean over rounds (block efficiency)"""
    mean_acceptance_length_per_request: float | None
    """the mean over requests of each request's own mean"""
    marginal_acceptance: tuple[float, ...] | None
    """share of rounds in which positions 0..i were all accepted"""
    conditional_acceptance: tuple[float | None, ...] | None
    """chance of position i once i-1 was accepted; None where no round got that far"""
    histogram: tuple[int, ...] | None
    """rounds in which 0, 1, 2, ... tokens were accepted"""
    gamma: int | None
    """draft length asked for"""
    draft_seconds: float | None
    """time spent drafting, of all rounds together"""
    series: pd.DataFrame | None
    """the log over time"""
    requests: pd.DataFrame | None
    """one row per request"""
    steps: pd.DataFrame | None
    """one row per round: request_id, step, accepted, and drafted where it is known"""
    round_table: pd.DataFrame | None
    """the project's own round table (`sim.records`), where the file is one"""
    checks: tuple[Check, ...]
    warnings: tuple[str, ...]
    """what disagrees, is damaged or is easily misread"""
    notes: tuple[str, ...]
    """how numbers were come by"""
    skipped_lines: int
    """lines or objects with a known mark that could not be read"""
    skipped_examples: tuple[str, ...]
    """the first of them, with line numbers"""

    def summary(self) -> dict[str, Any]:
        """All but the tables, for JSON."""
        tables = ("series", "requests", "steps", "round_table")
        plain = {name: value for name, value in vars(self).items() if name not in tables}
        return plain | {
            "checks": [asdict(check) for check in self.checks],
            "tables": {name: len(getattr(self, name)) for name in tables if getattr(self, name) is not None},
        }


def conditional_from(marginal: Sequence[float]) -> tuple[float | None, ...]:
    """Conditional acceptance from marginal acceptance; None where the position before was never accepted."""
    before = [1.0, *marginal][: len(marginal)]
    return tuple(rate / last if last > 0 else None for rate, last in zip(marginal, before, strict=True))


def marginal_from(histogram: Sequence[int]) -> tuple[float, ...]:
    """Marginal acceptance of positions 0, 1, ... from rounds with 0, 1, 2, ... accepted tokens."""
    rounds = sum(histogram)
    return tuple(sum(histogram[position + 1 :]) / rounds for position in range(len(histogram) - 1))
