"""Why is speculative decoding slower than it could be? The loss of speedup, cause by cause.

The loss is between the ideal, a good draft's tokens (an acceptance rate of 0.8, or the run's own where that is better)
for the price of a plain step, and what was measured. Four factors (acceptance, draft time, verification width,
overhead) share it by Shapley values (`analysis.diagnose.speedup_loss`). The part of acceptance is then named: a draft
that is not there, falling acceptance, prompts that differ, or a draft that is not good enough. What a shorter draft
would gain at the observed acceptance and costs is a cause of its own; the factors then share the rest as they do at
that length. Of a draft that is not there, drafting and verifying too are lost.

Without plain steps the run's narrowest verification stands in for one, so that causes can still be weighed; a speedup
is not given then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.diagnose.acceptance_findings import find_reasons
from analysis.diagnose.causes import (
    Cause,
    Part,
    acceptance_parts,
    as_causes,
    cost_parts,
    lengths_to_try,
    set_length_apart,
)
from analysis.diagnose.remedies import Facts
from analysis.diagnose.round_totals import Totals, add_up, asked_tokens, interval, narrowest
from analysis.diagnose.speedup_loss import Lengths, RoundCosts, log_losses
from analysis.fit.acceptance import clustered_rate
from sim.records import ROUND_SECONDS, chain_depth, check_rounds


@dataclass(frozen=True)
class Diagnosis:
    """Speedup, ideal, and all that lies between them; what is not known is None."""

    verdict: str
    speedup: float | None
    speedup_ci: list[float] | None
    ideal_speedup: float | None
    """a good draft's tokens per round: the speedup at no cost"""
    causes: tuple[Cause, ...]
    """largest first; their seconds, and those of `gains`, sum to measured less ideal seconds per token"""
    gains: tuple[Cause, ...]
    """factors that cost less than in the ideal, as a verification cheaper than a plain step's forward; seldom any"""
    split: dict[str, Any]
    """milliseconds per emitted token of drafting, verifying and the rest, and of a plain step"""
    draft: str | None
    gamma: float | None
    rounds: int | None
    requests: int | None
    block_efficiency: float | None
    block_efficiency_ci: list[float] | None
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def diagnose(
    rounds: pd.DataFrame,
    baseline: pd.DataFrame | float | None = None,
    draft: str | None = None,
    gamma: int | None = None,
    seed: int = 0,
    resamples: int = 1000,
) -> Diagnosis:
    """Diagnose one draft at one draft length.

    Args:
        rounds: a round table; its rounds of gamma 0 are the baseline.
        baseline: a round table whose rounds of gamma 0 are the baseline instead, or seconds per token without
            speculation.
        draft: which draft, where the table holds several.
        gamma: which draft length, where the table holds several. Left out, what took most time is diagnosed.
        seed: of the bootstrap over requests.
        resamples: of requests.

    Raises:
        ValueError: a table breaks its schema, has no round of the draft and length, or the baseline no plain step.
    """
    check_rounds(rounds)
    own, warnings = choose_rounds(rounds, draft, gamma)
    steps, plain = price_of_a_step(rounds, own, baseline, warnings)
    facts = facts_of(own)
    if facts.accepted == 0 and not facts.not_loaded:
        warnings.append(f"nothing was accepted, but {facts.drafted:,} drafted tokens are too few to call it broken")
    findings = [] if facts.not_loaded else find_reasons(own)
    totals = add_up(own, steps, [one.reference for one in findings], np.random.default_rng(seed), resamples, plain)
    costs, tokens, ideal = totals.costs, totals.per_round("emitted"), totals.ideal
    parts: list[Part] = []
    best = None
    if costs is None:
        acceptance = np.log(ideal / tokens)
    elif facts.not_loaded:
        losses = log_losses(costs)
        acceptance, parts = losses[:3].sum(axis=0), cost_parts(losses[1:], costs, facts)[2:]
    else:
        losses = log_losses(costs)
        shorter = lengths_to_try(costs, totals, Lengths.fit(own), int(own["gamma"].max()))
        best = max([costs, *shorter.values()], key=lambda one: float(one.speedup[0]))
        losses, length = set_length_apart(losses, costs, shorter, facts.gamma)
        acceptance = losses[0]
        parts = [*cost_parts(losses[1:], costs, facts), *([] if length is None else [length])]
    parts = [*acceptance_parts(acceptance, tokens, ideal, totals.references(), findings, facts, costs), *parts]
    seconds = (None, None) if costs is None else (costs.seconds_per_token, costs.ideal_seconds_per_token)
    causes, gains = as_causes(parts, *seconds)
    speedup = speedup_ci = None
    if costs is not None and costs.plain:
        speedup, speedup_ci = float(costs.speedup[0]), interval(costs.speedup)
    return Diagnosis(
        verdict=verdict(speedup, speedup_ci, float(ideal[0]), causes, None if best is None else float(best.speedup[0])),
        speedup=speedup,
        speedup_ci=speedup_ci,
        ideal_speedup=float(ideal[0]),
        causes=causes,
        gains=gains,
        split=split_of(totals, costs),
        draft=str(own["draft"].iloc[0]) if "draft" in own else None,
        gamma=facts.gamma,
        rounds=facts.rounds,
        requests=int(own["request_id"].nunique()),
        block_efficiency=float(tokens[0]),
        block_efficiency_ci=interval(tokens),
        warnings=(*warnings, *totals.warnings),
    )


def choose_rounds(rounds: pd.DataFrame, draft: str | None, gamma: int | None) -> tuple[pd.DataFrame, list[str]]:
    """The rounds to diagnose, of one draft at one draft length, and a warning where others were left out."""
    drafting = rounds[rounds["gamma"] > 0]
    if drafting.empty:
        raise ValueError("no round of the table asked for a draft (every gamma is 0); diagnose a run with speculation")
    keys = [name for name in ("draft", "gamma") if name in drafting]
    spent = drafting[list(ROUND_SECONDS)].sum(axis=1).groupby([drafting[name] for name in keys]).sum()
    kinds = spent.sort_values(ascending=False, kind="stable").reset_index()[keys]
    wanted = {name: value for name, value in (("draft", draft), ("gamma", gamma)) if value is not None}
    left = kinds
    for name, value in wanted.items():
        left = left[left[name] == value] if name in left else left.iloc[:0]
    described = [" at gamma ".join(map(str, row)) for row in kinds.itertuples(index=False)]
    if left.empty:
        raise ValueError(f"no rounds of {wanted}; the table has {', '.join(described)}")
    chosen = left.iloc[0]
    own = drafting[(drafting[keys] == chosen).all(axis=1)].sort_values("round_index", kind="stable", ignore_index=True)
    warnings = []
    if len(left) > 1:
        others = [text for i, text in enumerate(described) if i in left.index[1:]]
        warnings.append(
            f"diagnosed {described[int(left.index[0])]}, on which most time was spent; also there: {', '.join(others)}"
        )
    return own, warnings


def price_of_a_step(
    rounds: pd.DataFrame, own: pd.DataFrame, baseline: pd.DataFrame | float | None, warnings: list[str]
) -> tuple[pd.DataFrame | float | None, bool]:
    """What says how much a token costs without speculation, and whether it is a baseline; words on what is not known.

    Plain steps at the batches of `own` where there are some, else at any. None where nothing has times.
    """
    if not own[list(ROUND_SECONDS)].to_numpy().any():
        warnings.append("the rounds have no times: no speedup, shares or seconds")
        return None, False
    if isinstance(baseline, float):
        warnings.append(
            "the baseline does not tell a step's forward from the rest of it: the forward is taken to cost as much as "
            "it can, no more than a verification, so verify_width is the least and engine_overhead the most there is"
        )
        return baseline, True
    steps = plain_steps(rounds, baseline)
    if steps is not None and steps["verify_seconds"].any():
        near = steps[steps["batch"].isin(own["batch"].unique())]
        return (near.reset_index(drop=True) if len(near) else steps), True
    if steps is not None:
        warnings.append("the forwards of the plain steps have no times, so what a token costs without is not known")
    else:
        warnings.append("there are no plain steps (gamma 0), so what a token costs without speculation is not known")
    if not own["verify_seconds"].any():
        warnings[-1] += ", and verifications have no times either: no speedup, shares or seconds"
        return None, False
    warnings[-1] += (
        ": no speedup. To weigh the causes, the narrowest verification of the run stands in for a plain step, so what "
        "verify_width costs is not known but for a part, and engine_overhead is the most it can be; name a run that "
        "has plain steps as the baseline"
    )
    return narrowest(rounds, own), False


def plain_steps(rounds: pd.DataFrame, baseline: pd.DataFrame | None) -> pd.DataFrame | None:
    """Rounds of gamma 0, of the baseline if one is given; None where the round table itself has none."""
    if baseline is not None:
        check_rounds(baseline)
    table = rounds if baseline is None else baseline
    steps = table[table["gamma"] == 0].reset_index(drop=True)
    if baseline is not None and steps.empty:
        raise ValueError("the baseline has no plain steps (gamma 0); give a run without speculation")
    return None if steps.empty else steps


def facts_of(rounds: pd.DataFrame) -> Facts:
    """Sum up the rounds of one draft."""
    tested = np.minimum(chain_depth(rounds), rounds["emitted"])
    passed = np.minimum(rounds["accepted"], tested)
    by_request = pd.DataFrame({"tested": tested, "passed": passed}).groupby(rounds["request_id"]).sum()
    by_request = by_request[by_request["tested"] > 0]
    sums = by_request.to_numpy(np.float64)
    alpha = clustered_rate(sums[:, 0], sums[:, 1]) if len(sums) else None
    return Facts(
        rounds=len(rounds),
        gamma=float(asked_tokens(rounds).mean()),
        block_efficiency=float(rounds["emitted"].mean()),
        drafted=int(rounds["drafted"].sum()),
        accepted=int(rounds["accepted"].sum()),
        alpha=None if alpha is None else alpha.value,
        alpha_ci=None if alpha is None else [alpha.lo, alpha.hi],
        idle=float((rounds["drafted"] == 0).mean()),
        batch=float(rounds["batch"].mean()),
    )


def split_of(totals: Totals, costs: RoundCosts | None) -> dict[str, Any]:
    """Milliseconds per emitted token of each part of a round, and of a plain step, with 95% intervals."""
    rows = {name.removesuffix("_seconds"): totals.rounds[name] / totals.rounds["emitted"] for name in ROUND_SECONDS}
    rows["total"] = np.sum(list(rows.values()), axis=0)
    if costs is not None and costs.plain:
        rows["baseline"] = costs.step_seconds
    split: dict[str, Any] = {}
    for name, seconds in rows.items():
        split[f"{name}_ms_per_token"], bounds = float(1e3 * seconds[0]), interval(1e3 * seconds)
        split[f"{name}_ms_per_token_ci"] = bounds
    if costs is None or not costs.plain:
        split["baseline_ms_per_token"] = split["baseline_ms_per_token_ci"] = None
    return split


def verdict(
    speedup: float | None,
    speedup_ci: list[float] | None,
    ideal: float | None,
    causes: Sequence[Cause],
    best: float | None = None,
) -> str:
    """One sentence: does speculation work, and what costs most.

    Args:
        speedup: measured.
        speedup_ci: its interval.
        ideal: that of a good draft at no cost.
        causes: largest first.
        best: the speedup at the best draft length.
    """
    lost = f"; first cause: {causes[0].name}" if causes else "; what is known names no cause"
    if speedup is None:
        if causes and causes[0].share is not None:
            lost = f"; of what can be told, most is lost to {causes[0].name} ({causes[0].share:.0%})"
        return f"the speedup is not known{lost}"
    low, high = speedup_ci or (speedup, speedup)
    shown = f"{speedup:.2f} times as fast as without" + (f" ({low:.2f} to {high:.2f})" if speedup_ci else "")
    if causes and causes[0].share is not None:
        lost = f"; most is lost to {causes[0].name} ({causes[0].share:.0%})"
    if low > 1:
        of = "" if ideal is None else f", of {ideal:.3g} with a good draft at no cost"
        # on a log scale, more than half of the way from 1 to the ideal
        return f"speculation works: {shown}{of}" + (
            "; no cause stands out" if ideal is not None and speedup**2 > ideal else lost
        )
    if high < 1:
        off = "; no shorter draft pays either" if best is not None and best < 1 else ""
        return f"speculation slows decoding down: {shown}{off}{lost}"
    return f"speculation makes no clear difference: {shown}{lost}"
