"""What to do about each cause of a lost speedup: one plain sentence with the numbers of the run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from analysis.acceptance.laws import solve_alpha
from analysis.diagnose.acceptance_findings import FALLS_WITH_CONTEXT, UNREPRESENTATIVE, Finding
from analysis.diagnose.speedup_loss import RoundCosts
from sim.theory import expected_tokens

POINTS = 0.1
"""how much more acceptance a remedy speaks of"""

LENGTH_ONE = 1.005
"""mean tokens per round below which engines print 1.00"""
KNOWS_NOTHING = 0.05
"""Acceptance rate of a draft that always proposes the commonest token: 'the' is 6.9% of English words (Kucera & Francis
1967), and less of tokens, which are also punctuation and parts of words."""
NOTHING_ACCEPTED = 0.2
"""What the acceptance rate must surely lie below for 'nothing was accepted' not to be chance: a table of bigrams, no
model at all, reaches 0.2 (Leviathan et al. 2023, sec. 4.2). 20 rejected tokens are enough."""
LEAST_ROUNDS = 20
"""rounds without a drafted token after which the draft is not there"""


@dataclass(frozen=True)
class Facts:
    """What the rounds of one draft add up to."""

    rounds: int | None
    """None where a log does not count them"""
    gamma: float
    """draft length asked for, the mean where it varies"""
    block_efficiency: float
    drafted: int | None
    accepted: int | None
    alpha: float | None
    """accepted per tested token; None where no token was tested"""
    alpha_ci: list[float] | None
    idle: float | None
    """share of rounds that drafted nothing"""
    batch: float | None

    @property
    def not_loaded(self) -> bool:
        """Whether the draft does no better than one that knows nothing; False where too little was drafted to tell."""
        enough = self.rounds is None or self.rounds >= LEAST_ROUNDS
        if self.drafted == 0:
            return enough
        if self.alpha_ci is None:
            return enough and self.block_efficiency < LENGTH_ONE
        return self.alpha_ci[1] < (NOTHING_ACCEPTED if self.accepted == 0 else KNOWS_NOTHING)

    @property
    def drafted_per_round(self) -> float:
        """Mean over rounds, 0 where it is not known."""
        return self.drafted / self.rounds if self.drafted and self.rounds else 0.0


def faster(costs: RoundCosts, **changed: Any) -> str:
    """How much faster decoding is with some costs changed, as '+12%'."""
    return f"{float((costs.seconds_per_token / replace(costs, **changed).seconds_per_token)[0] - 1):+.0%}"


def draft_remedy(costs: RoundCosts, facts: Facts) -> str:
    """For a draft that takes long."""
    steps = float((costs.draft_seconds / (costs.step_seconds if costs.plain else costs.verify_seconds))[0])
    unit = "plain steps" if costs.plain else "verifications"
    what = f"drafting {facts.drafted_per_round:.1f} tokens a round" if facts.drafted_per_round else "a round's drafting"
    return (
        f"{what} costs {steps:.2f} {unit}; a draft twice as fast "
        f"gives {faster(costs, draft_seconds=costs.draft_seconds / 2)}: take a smaller one, or fewer of its layers"
    )


def untimed_draft_remedy(drafting: float, facts: Facts) -> str:
    """For a draft of which only the time is known."""
    each = (
        "" if facts.drafted_per_round == 0 else f", {1e3 * drafting / facts.drafted_per_round:.3g} ms a drafted token"
    )
    return (
        f"drafting takes {1e3 * drafting:.3g} ms a round{each}; whether that is much depends on the target's forward, "
        "which the log does not time: give a baseline, or a log that holds decoding times"
    )


def rounds_remedy(costs: RoundCosts, drafting: bool) -> str:
    """For a round that takes longer than a plain step, in a log that does not say on what; drafting: but for that."""
    ratio = float(
        ((costs.verify_seconds if drafting else costs.draft_seconds + costs.verify_seconds) / costs.step_seconds)[0]
    )
    what, unknown = (
        ("beside drafting a round", "verification and the rest")
        if drafting
        else ("a round", "drafting, verification and the rest")
    )
    return (
        f"{what} takes {ratio:.2f} plain steps, and the log does not tell {unknown} apart: compare a shorter draft, "
        "which cuts both drafting and verification, and profile the host; a round table tells them apart"
    )


def verify_remedy(costs: RoundCosts, facts: Facts) -> str:
    """For a verification that costs more than a forward of one token."""
    ratio = float(costs.verify_seconds[0] / costs.step_forward_seconds[0])
    unit = "forwards of one token" if costs.plain else "of the narrowest verifications"
    return (
        f"verifying {facts.drafted_per_round + 1:.1f} tokens a round at batch {facts.batch:.3g} costs {ratio:.2f} "
        f"{unit}; at the price of one it would be "
        f"{faster(costs, verify_seconds=costs.step_forward_seconds)}: draft fewer tokens, or speculate at smaller "
        "batches only"
    )


def overhead_remedy(costs: RoundCosts, facts: Facts) -> str:
    """For a round that does more beside the forwards than a plain step."""
    own, plain = 1e3 * float(costs.other_seconds[0]), 1e3 * float(costs.step_other_seconds[0])
    beside = f", a plain step {plain:.3g} ms; without the excess" if costs.plain else "; without them"
    return (
        f"a round spends {own:.3g} ms beside the forwards{beside} it would be "
        f"{faster(costs, other_seconds=costs.step_other_seconds)}: cut host work, waiting and synchronisation"
    )


def acceptance_remedy(costs: RoundCosts | None, facts: Facts) -> str:
    """For a draft that the target often rejects."""
    if facts.idle is not None and facts.idle > 0.5:
        return (
            f"the draft proposes nothing in {facts.idle:.0%} of rounds: let another draft step in there, "
            "or use one that always proposes"
        )
    if facts.alpha is None or not float(facts.gamma).is_integer():
        words = f"rounds emit {facts.block_efficiency:.2f} of {facts.gamma + 1:.3g} tokens"
    else:
        gamma, better = int(facts.gamma), min(facts.alpha + POINTS, 1.0)
        words = f"{facts.alpha:.0%} of tested tokens are accepted"
        if costs is not None:
            growth = float(expected_tokens(better, gamma) / expected_tokens(facts.alpha, gamma))
            words += f", {_break_even(costs, gamma)}; at {better:.0%} it would be {growth - 1:+.0%}"
    return f"{words}: take a draft closer to the target (larger, or distilled from it)"


def not_loaded_remedy(costs: RoundCosts | None, facts: Facts) -> str:
    """For a draft of which nothing is accepted."""
    found = f"rounds emit {facts.block_efficiency:.2f} tokens on average"
    if facts.drafted == 0:
        found = f"nothing was drafted in {facts.rounds or 0:,} rounds"
    elif facts.drafted is not None and facts.accepted is not None:
        found = f"{facts.accepted:,} of {facts.drafted:,} drafted tokens were accepted"
    found += ": check that the draft's weights are loaded, and its vocabulary and prompt format the target's"
    if costs is None:
        return found
    return f"{found}; until then decode without it ({float(1 / costs.speedup[0] - 1):+.0%})"


def length_remedy(better: int, gamma: float, gain: str) -> str:
    """For a draft length above the best one."""
    return f"draft {better} token{'s' * (better > 1)} instead of {gamma:.3g}: {gain}"


def finding_remedy(finding: Finding) -> str:
    """For what the tests of acceptance found."""
    evidence = finding.evidence
    if finding.name == UNREPRESENTATIVE:
        better, other = evidence["block_efficiency_better_half"], evidence["block_efficiency_other_half"]
        categories = evidence.get("block_efficiency_by_category", {})
        poor = "" if not categories else f", the poorest in '{next(iter(categories))}'"
        return (
            f"the better half of requests emits {better:.2f} tokens a round, the other {other:.2f}{poor}: measure on "
            "your own mix of prompts, and decode without a draft where it does not pay"
        )
    first, last = evidence["block_efficiency_first_quarter"], evidence["block_efficiency_last_quarter"]
    if finding.name == FALLS_WITH_CONTEXT:
        short, long = evidence["mean_context_first_quarter"], evidence["mean_context_last_quarter"]
        return (
            f"tokens per round fall from {first:.2f} at {short:,.0f} tokens of context to {last:.2f} at {long:,.0f}: "
            "take a draft trained for contexts of that length, or draft less beyond them"
        )
    fall = f"tokens per round fall from {first:.2f} in the first quarter to {last:.2f} in the last"
    return f"{fall}: let a controller shorten drafts as acceptance falls, or renew the draft for what is asked now"


def break_even(costs: RoundCosts, gamma: int) -> float | None:
    """The iid acceptance rate at which drafting gamma tokens costs no time and gains none; None where none does."""
    price = float((costs.seconds_per_token * costs.tokens / costs.step_seconds)[0])
    return None if price >= gamma + 1 else solve_alpha(price, gamma)


def _break_even(costs: RoundCosts, gamma: int) -> str:
    alpha = break_even(costs, gamma)
    if alpha is None:
        return f"and gamma {gamma} pays at no acceptance rate at these costs"
    return f"and gamma {gamma} pays from {alpha:.0%} on"
