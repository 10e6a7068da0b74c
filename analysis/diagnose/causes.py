"""Causes of a lost speedup: each part of the loss with its name, its numbers and its remedy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.diagnose.acceptance_findings import Finding
from analysis.diagnose.remedies import (
    Facts,
    acceptance_remedy,
    break_even,
    draft_remedy,
    finding_remedy,
    length_remedy,
    not_loaded_remedy,
    overhead_remedy,
    verify_remedy,
)
from analysis.diagnose.round_totals import Totals, best_of, interval
from analysis.diagnose.speedup_loss import (
    GOOD_ACCEPTANCE,
    Lengths,
    RoundCosts,
    as_seconds,
    at_better_length,
    log_losses,
)
from sim.theory import FloatArray, expected_tokens

LOW_ACCEPTANCE, NOT_LOADED, TOO_LONG = "low_acceptance", "draft_not_loaded", "draft_too_long"
SLOW_DRAFT, VERIFY_WIDTH, OVERHEAD = "slow_draft", "verify_width", "engine_overhead"

LEAST_GAIN = 0.01
"""log gain from which a shorter draft is worth a word"""
NOTHING = 1e-9
"""log losses below are rounding"""
GAIN = "costs less than in the ideal: nothing to change"
"""instead of a remedy"""


@dataclass(frozen=True, eq=False)
class Part:
    """A part of the loss, before it is weighed against the others."""

    name: str
    log_loss: FloatArray
    """what it adds to the log of seconds per token [rows], row 0 the estimate and the others draws"""
    remedy: str
    evidence: dict[str, Any]


@dataclass(frozen=True)
class Cause:
    """One cause; fields with _ci are 95% intervals, None where nothing could be resampled."""

    name: str
    share: float | None
    """of the loss, 0 to 1; None where nothing says what a forward of the target costs"""
    share_ci: list[float] | None
    seconds_per_token: float | None
    """what the cause costs; None where that is not known"""
    seconds_per_token_ci: list[float] | None
    log_loss: float | None
    """log of the factor by which the cause divides the speedup; None where only its seconds are known"""
    log_loss_ci: list[float] | None
    remedy: str
    evidence: dict[str, Any]


def acceptance_parts(
    acceptance: FloatArray,
    tokens: FloatArray,
    ideal: FloatArray,
    references: Sequence[FloatArray],
    findings: Sequence[Finding],
    facts: Facts,
    costs: RoundCosts | None,
) -> list[Part]:
    """Split what acceptance costs: each finding gets what its reference rounds emit more, low acceptance the rest.

    Findings overlap, so where they would explain more than there is they are scaled down together.

    Args:
        acceptance: log loss of acceptance [rows].
        tokens: tokens per round [rows].
        ideal: tokens per round of a good draft [rows].
        references: tokens per round in the reference rounds of each finding [rows].
        findings: what the tests of acceptance found.
        facts: sums over the rounds.
        costs: of a round, where they are known.
    """
    costs = costs if costs is not None and costs.plain else None
    evidence: dict[str, Any] = {
        "block_efficiency": float(tokens[0]),
        "ideal_tokens_per_round": float(ideal[0]),
        "drafted": facts.drafted,
        "accepted": facts.accepted,
        "alpha": facts.alpha,
        "alpha_ci": facts.alpha_ci,
        "rounds_without_proposal": facts.idle,
    }
    if facts.not_loaded:
        return [Part(NOT_LOADED, acceptance, not_loaded_remedy(costs, facts), evidence)]
    explained = [np.maximum(np.log(better / tokens), 0.0) for better in references]
    total = np.sum(explained, axis=0) if explained else np.zeros_like(tokens)
    scale = np.minimum(1.0, np.maximum(acceptance, 0.0) / np.where(total > 0, total, 1.0))
    parts = [
        Part(finding.name, scale * loss, finding_remedy(finding), finding.evidence)
        for finding, loss in zip(findings, explained, strict=True)
    ]
    if costs is not None and float(facts.gamma).is_integer():
        evidence["break_even_alpha"] = break_even(costs, int(facts.gamma))
    rest = acceptance - scale * total
    return [*parts, Part(LOW_ACCEPTANCE, rest, acceptance_remedy(costs, facts), evidence)]


def cost_parts(losses: FloatArray, costs: RoundCosts, facts: Facts) -> list[Part]:
    """Draft time, verification width and overhead, from their log losses [3, rows]."""
    per_token = None if facts.drafted_per_round == 0 else float(costs.draft_seconds[0] / facts.drafted_per_round)
    draft = {
        "draft_seconds_per_round": float(costs.draft_seconds[0]),
        "draft_forward_over_verification": None if per_token is None else per_token / float(costs.verify_seconds[0]),
    }
    if costs.plain and per_token is not None:
        draft["cost_ratio"] = per_token / float(costs.step_forward_seconds[0])
    ratio = "verify_ratio" if costs.plain else "verify_ratio_at_least"
    verify = {
        ratio: float(costs.verify_seconds[0] / costs.step_forward_seconds[0]),
        f"{ratio}_ci": interval(costs.verify_seconds / costs.step_forward_seconds),
        "new_tokens": facts.drafted_per_round + 1,
        "batch": facts.batch,
    }
    other = {
        "other_seconds_per_round": float(costs.other_seconds[0]),
        "other_seconds_per_plain_step": float(costs.step_other_seconds[0]) if costs.plain else None,
    }
    return [
        Part(SLOW_DRAFT, losses[0], draft_remedy(costs, facts), draft),
        Part(VERIFY_WIDTH, losses[1], verify_remedy(costs, facts), verify),
        Part(OVERHEAD, losses[2], overhead_remedy(costs, facts), other),
    ]


def lengths_to_try(costs: RoundCosts, totals: Totals, lengths: Lengths, longest: int) -> dict[int, RoundCosts]:
    """The costs at every draft length below the longest; empty for trees, and where nothing was drafted."""
    drafted = totals.per_round("drafted")
    if "emitted_to_1" not in totals.rounds or not (drafted > 0).all():
        return {}
    last = max(n for n in range(1, longest + 1) if f"emitted_to_{n}" in totals.rounds)
    found = {}
    for n in range(1, last):
        # output that was cut is missing at every length in the same proportion
        whole = costs.tokens / totals.per_round(f"emitted_to_{last}")
        tokens = whole * totals.per_round(f"emitted_to_{n}")
        good = np.full_like(tokens, expected_tokens(GOOD_ACCEPTANCE, n))
        ideal = best_of(good, tokens, *(whole * one for one in totals.references(f"_to_{n}")))
        found[n] = lengths.shortened(costs, tokens, ideal, drafted, totals.per_round(f"drafted_to_{n}"))
    return found


def set_length_apart(
    losses: FloatArray, costs: RoundCosts, shorter: dict[int, RoundCosts], gamma: float
) -> tuple[FloatArray, Part | None]:
    """The factors' losses [4, rows] beside what is lost by drafting more than the best length, and that part.

    None where no shorter draft is faster by more than LEAST_GAIN, or the gain's 95% interval reaches 0.
    """
    if not shorter:
        return losses, None
    best = max(shorter, key=lambda n: float(shorter[n].speedup[0]))
    gain = np.log(shorter[best].speedup / costs.speedup)
    bounds = interval(gain)
    if gain[0] < LEAST_GAIN or bounds is None or bounds[0] <= 0:
        return losses, None
    evidence = {
        "gamma": gamma,
        "better_gamma": best,
        "speedup_at_better_gamma": float(shorter[best].speedup[0]) if costs.plain else None,
        "gain": float(np.expm1(gain[0])),
        "gain_ci": np.expm1(bounds).tolist(),
    }
    words = f"{np.expm1(gain[0]):+.0%} ({np.expm1(bounds[0]):+.0%} to {np.expm1(bounds[1]):+.0%})"
    part = Part(TOO_LONG, gain, length_remedy(best, gamma, words), evidence)
    return at_better_length(gain, losses, log_losses(shorter[best])), part


def as_causes(
    parts: Sequence[Part], measured: FloatArray | None, ideal: FloatArray | None
) -> tuple[tuple[Cause, ...], tuple[Cause, ...]]:
    """Parts of a loss as causes, largest first, and those that are gains.

    A share is of all that is lost: of the positive parts, or of the whole loss where parts explain less of it.

    Args:
        parts: of the loss.
        measured: seconds per token [rows]; None where there is no baseline.
        ideal: seconds per token of a good draft's tokens for the price of a plain step [rows].
    """
    if not parts:
        return (), ()
    lost = np.maximum(np.stack([part.log_loss for part in parts]), 0.0)
    shares = seconds = None
    if measured is not None and ideal is not None:
        whole = np.maximum(lost.sum(axis=0), np.log(measured / ideal))
        shares = lost / np.where(whole > 0, whole, 1.0)
        seconds = as_seconds(np.stack([part.log_loss for part in parts]), measured, ideal)
    order = np.argsort([-float(part.log_loss[0]) for part in parts], kind="stable")
    causes = [
        Cause(
            name=part.name,
            share=None if shares is None else float(shares[i, 0]),
            share_ci=None if shares is None else interval(shares[i]),
            seconds_per_token=None if seconds is None else float(seconds[i, 0]),
            seconds_per_token_ci=None if seconds is None else interval(seconds[i]),
            log_loss=float(part.log_loss[0]),
            log_loss_ci=interval(part.log_loss),
            remedy=part.remedy if part.log_loss[0] > 0 else GAIN,
            evidence=part.evidence,
        )
        for i, part in ((i, parts[i]) for i in order)
    ]
    sizes = [float(parts[i].log_loss[0]) for i in order]
    named = list(zip(causes, sizes, strict=True))
    return tuple(c for c, size in named if size > NOTHING), tuple(c for c, size in named if size < -NOTHING)
