"""Acceptance from one unit to all others, to another draft length, and to another law with the same mean length."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from analysis.acceptance.laws import (
    SAME,
    AcceptanceLaw,
    alpha_of_mean,
    check_marginal,
    draft_length,
    iid,
    marginal_of,
    minimum_variance,
)
from sim.theory import check_probability

LAWS = ("iid", "minimum-variance", "measured")
SYNONYMS = {"constant-conditional": "iid", "per-position": "measured"}
OVER_REQUESTS = (
    "a mean over requests is taken for one over rounds; they differ where requests differ, and only rounds tell by how "
    "much"
)


@dataclass(frozen=True)
class Acceptance:
    """Acceptance as it was given: a law, and whether its shape was given or only its mean."""

    law: AcceptanceLaw
    shape_known: bool
    one_draft_length: bool = False
    """whether the numbers hold at this gamma only, as for a draft that plans its whole block anew"""
    warnings: tuple[str, ...] = ()


def from_alpha(alpha: float, gamma: int) -> Acceptance:
    """Independent tokens, each accepted with the chance alpha once it is reached (Leviathan et al. 2023, Sec. 3.1).

    Raises:
        ValueError: alpha is no probability, or gamma no draft length.
    """
    check_probability("alpha", alpha)
    return Acceptance(iid(alpha, draft_length(gamma)), shape_known=True)


def from_mean(mean: float, gamma: int, bonus: bool = True, over_requests: bool = False) -> Acceptance:
    """A mean length in tokens; its law is taken as iid until another one is asked for.

    Args:
        mean: tokens per round.
        gamma: draft length in tokens.
        bonus: whether the bonus or correction token of each round is counted in the mean.
        over_requests: whether it is a mean over requests of their own means, and not over rounds.

    Raises:
        ValueError: no round of gamma tokens can have such a mean.
    """
    gamma = draft_length(gamma)
    low = 1 if bonus else 0
    if not low <= mean <= gamma + low:
        counted = "with the bonus token" if bonus else "without the bonus token"
        hint = "; is the bonus token not counted in it (--without-bonus)?" if bonus and 0 <= mean < 1 else ""
        raise ValueError(
            f"a mean length {counted} must be in [{low}, {gamma + low}] at gamma {gamma}, got {mean}{hint}"
        )
    length = mean if bonus else mean + 1
    warnings = [_one_mean(length, gamma)]
    if over_requests:
        warnings.append(OVER_REQUESTS)
    return Acceptance(iid(alpha_of_mean(length, gamma), gamma), shape_known=False, warnings=tuple(warnings))


def from_ragged_mean(mean: float, gamma: int, drafted: float, over_requests: bool = False) -> Acceptance:
    """A mean length, bonus token counted, of rounds that drafted fewer than gamma tokens: `drafted` on average.

    Raises:
        ValueError: no rounds of so many tokens have such a mean.
    """
    alpha = alpha_of_mean(mean, drafted)
    told = (
        f"rounds drafted {drafted:.4g} of {gamma} tokens on average; alpha {alpha:.4g} yields the mean length "
        f"{mean:.4g} as if all of them had drafted so many, and more where all {gamma} are drafted"
    )
    given = from_alpha(alpha, draft_length(gamma))
    return replace(given, shape_known=False, warnings=(told, *([OVER_REQUESTS] if over_requests else [])))


def from_share(share: float, gamma: int) -> Acceptance:
    """Accepted tokens / drafted tokens, as engines print an acceptance rate; all rounds are taken to draft gamma.

    Raises:
        ValueError: the share is no probability, or gamma no draft length.
    """
    check_probability("the share of drafted tokens accepted", share)
    gamma = draft_length(gamma)
    given = from_mean(share * gamma, gamma, bonus=False)
    told = f"every round is taken to draft {gamma} tokens; shorter drafts would make the mean length smaller"
    return replace(given, warnings=(*given.warnings, told))


def from_conditional(conditional: Sequence[float]) -> Acceptance:
    """Conditional acceptance by position: the chance of position i once i-1 was accepted.

    Raises:
        ValueError: there is none, or one is no probability.
    """
    check_probability("conditional acceptance", conditional)
    draft_length(len(conditional))
    return Acceptance(AcceptanceLaw("measured", marginal_of(conditional)), shape_known=True)


def from_marginal(marginal: Sequence[float]) -> Acceptance:
    """Marginal acceptance by position: the chance that positions 0..i are all accepted, as engines print it.

    Raises:
        ValueError: there is none, one is no probability, or they rise.
    """
    check_marginal(marginal)
    draft_length(len(marginal))
    return Acceptance(AcceptanceLaw("measured", tuple(map(float, marginal))), shape_known=True)


def convert(given: Acceptance, law: str | None = None, gamma: int | None = None) -> Acceptance:
    """The same acceptance at another draft length, or as another law with the same mean length.

    A longer draft goes on with the last conditional acceptance. Warnings say what was lost or assumed.

    Args:
        given: from one of the functions above.
        law: one of LAWS or SYNONYMS; by default the one given.
        gamma: draft length in tokens; by default the one given.

    Raises:
        ValueError: the law is unknown, or the numbers given do not hold at this draft length or know no positions.
    """
    name = SYNONYMS.get(law, law) if law is not None else given.law.name
    if name not in LAWS:
        raise ValueError(f"law must be one of {', '.join((*LAWS, *SYNONYMS))}, got '{law}'")
    if name == "measured" and given.law.name != "measured":
        raise ValueError("law 'measured' needs acceptance by position; use iid or minimum-variance")
    told = list(given.warnings)
    base = given.law
    if gamma is not None and gamma != base.gamma:
        if given.one_draft_length:
            raise ValueError(
                f"acceptance was measured at gamma {base.gamma} and, as its profile says (measured_per_k), holds at no "
                f"other; measure it at gamma {gamma}, or give --conditional yourself"
            )
        told.append(_carried(given, gamma))
        base = AcceptanceLaw(base.name, marginal_of(_carry(base, draft_length(gamma))))
    result = base if name == base.name else _with_mean(name, base.mean_length, base.gamma)
    if given.shape_known and (lost := _distance(base, result)) > SAME:
        told.append(
            f"the {name} law keeps the mean length only: its marginals differ from those given by up to {lost:.3g}, "
            f"and its variance is {result.variance:.3g} for {base.variance:.3g}"
        )
    if not _is_constant(result):
        told.append(
            "alpha is that of iid tokens with the same mean length; "
            "conditional acceptance is not constant here, so eq. 1 with it is wrong at any other gamma"
        )
    return replace(given, law=result, warnings=tuple(told))


def units(law: AcceptanceLaw) -> dict[str, Any]:
    """A law in every unit, for JSON: rates are per round, `histogram` holds chances of 0, 1, ... accepted tokens."""
    tested = math.fsum((1.0, *law.marginal[:-1]))
    return {
        "law": law.name,
        "gamma": law.gamma,
        "alpha": law.alpha,
        "mean_acceptance_length": law.mean_length,
        "mean_accepted": law.mean_accepted,
        "accepted_per_drafted": law.mean_accepted / law.gamma,
        "accepted_per_tested": law.mean_accepted / tested,
        "variance": law.variance,
        "conditional_acceptance": list(law.conditional),
        "marginal_acceptance": list(law.marginal),
        "histogram": list(law.histogram),
    }


def _with_mean(name: str, mean_length: float, gamma: int) -> AcceptanceLaw:
    return minimum_variance(mean_length, gamma) if name == "minimum-variance" else iid(
        alpha_of_mean(mean_length, gamma), gamma
    )  # fmt: skip


def _carry(law: AcceptanceLaw, gamma: int) -> list[float | None]:
    """Conditional acceptance at another draft length: cut, or with the last one repeated."""
    known = [*law.conditional]
    return known[:gamma] + [known[-1]] * (gamma - len(known))


def _carried(given: Acceptance, gamma: int) -> str:
    """What going to another draft length assumes."""
    law = given.law
    if gamma > law.gamma and law.name == "measured":
        return (
            f"positions from {law.gamma} on were not measured: they get the last conditional acceptance, "
            f"{law.conditional[-1] or 0.0:.4g}"
        )
    if not given.shape_known:
        return (
            f"the mean length was given at gamma {law.gamma}; at {gamma} it is that of iid tokens with the same alpha"
        )
    return (
        f"from gamma {law.gamma} to {gamma}: the draft is taken to propose the same tokens at the positions they share"
    )


def _one_mean(length: float, gamma: int) -> str:
    """How much a mean length leaves open: the extremes are the minimum-variance law and all or nothing."""
    accepted = length - 1
    fraction = accepted - int(accepted)
    return (
        f"a mean length of {length:.6g} fits many laws: at gamma {gamma} the variance of accepted tokens can be "
        f"{fraction * (1 - fraction):.3g} to {accepted * (gamma - accepted):.3g}"
    )


def _distance(one: AcceptanceLaw, other: AcceptanceLaw) -> float:
    return max(abs(a - b) for a, b in zip(one.marginal, other.marginal, strict=True))


def _is_constant(law: AcceptanceLaw) -> bool:
    return _distance(law, iid(law.alpha, law.gamma)) <= SAME
