"""What a round costs, as far as an engine's log times it, and which causes that makes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from analysis.diagnose.causes import SLOW_DRAFT, Cause, Part
from analysis.diagnose.remedies import Facts, draft_remedy, rounds_remedy, untimed_draft_remedy
from analysis.diagnose.speedup_loss import RoundCosts
from sim.theory import FloatArray

if TYPE_CHECKING:
    from analysis.engine_logs import ImportedLog

NOT_TOLD_APART, NOT_DRAFTING = "draft_verify_or_overhead", "verify_or_overhead"
"""what a round costs beyond a plain step, where the log does not split it; the second where it times drafting"""
NOTICEABLE = 0.1
"""log loss from which acceptance comes before drafting of which only the time is known"""


def drafting_per_round(log: ImportedLog) -> float | None:
    """Seconds of drafting in a round; None where the log does not time it."""
    return None if log.draft_seconds is None or not log.rounds else log.draft_seconds / log.rounds


def costs_of(
    tokens: FloatArray, ideal: FloatArray, own: float | None, baseline: float | None, drafting: float | None
) -> RoundCosts | None:
    """A round's costs as far as times are known, with all that is not drafting as its verification.

    Args:
        tokens: per round [rows].
        ideal: per round with a good draft [rows].
        own: seconds per token.
        baseline: seconds per token without speculation; where it is not known, what is not drafting stands in for a
            plain step.
        drafting: seconds of a round's drafting.

    Returns:
        None where a round cannot be weighed against a plain step.
    """
    draft = np.full_like(tokens, drafting or 0.0)
    if own is not None and (baseline is not None or drafting is not None):
        rest = own * tokens - draft
        step = rest if baseline is None else np.full_like(tokens, baseline)
    elif baseline is not None and drafting is not None:
        rest = step = np.full_like(tokens, baseline)
    else:
        return None
    if not ((step > 0) & (rest > 0)).all():
        return None
    nothing = np.zeros_like(tokens)
    return RoundCosts(tokens, ideal, draft, rest, nothing, step, nothing, plain=baseline is not None)


def time_parts(losses: FloatArray, costs: RoundCosts, facts: Facts, drafting: bool) -> list[Part]:
    """What a round's time adds to the loss, from log losses [4, rows], with drafting apart where it is timed."""
    over = costs.draft_seconds + costs.verify_seconds - costs.step_seconds
    evidence = {"seconds_per_round": float((costs.draft_seconds + costs.verify_seconds)[0])}
    parts = []
    if drafting:
        timed = evidence | {"draft_seconds_per_round": float(costs.draft_seconds[0])}
        parts.append(Part(SLOW_DRAFT, losses[1], draft_remedy(costs, facts), timed))
        over = over - costs.draft_seconds
    if costs.plain and np.abs(over[0]) > 0:
        name = NOT_DRAFTING if drafting else NOT_TOLD_APART
        parts.append(Part(name, losses[2], rounds_remedy(costs, drafting), evidence))
    return parts


def with_untimed_draft(causes: tuple[Cause, ...], drafting: float | None, facts: Facts) -> tuple[Cause, ...]:
    """The causes and drafting, where it is timed and cannot be weighed against them; before a small loss, else last."""
    if not drafting:
        return causes
    remedy = untimed_draft_remedy(drafting, facts)
    evidence = {"draft_seconds_per_round": drafting}
    per_token = drafting / facts.block_efficiency
    cause = Cause(SLOW_DRAFT, None, None, per_token, None, None, None, remedy, evidence)
    small = sum(one.log_loss or 0.0 for one in causes) < NOTICEABLE
    return (cause, *causes) if small else (*causes, cause)
