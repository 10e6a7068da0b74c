"""Plan speculation: the draft length for each batch, what it brings, and where it stops paying.

A batch's round takes T(gamma) seconds and emits tau(gamma) tokens for each request, a step without speculation takes T0
and emits one, so the speedup is tau * T0 / T (Leviathan et al. 2023, Thm 3.8, with costs that depend on the batch).
Requests are taken to come and go one by one: batches stay full, and a last round that is cut short counts for nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from analysis.plan.acceptance import DraftLaw
from analysis.plan.costs import ModelCosts, PlanCosts, Prices
from analysis.pooling import Array
from sim.tree_search import best_tree_for_latency
from sim.trees import TokenTree, expected_tokens

MOST_BATCH = 4096
"""batches searched where neither memory nor a latency table ends the search"""
CHUNK = 64
"""batches priced at a time"""


@dataclass(frozen=True)
class LengthSpeedup:
    """What one draft length brings."""

    gamma: int
    speedup: float
    speedup_ci: tuple[float, float]


@dataclass(frozen=True)
class Choice:
    """The best draft length for one batch and context."""

    batch: int
    context: float
    gamma: int
    """0: do not speculate"""
    speedup: float
    speedup_ci: tuple[float, float]
    """95%, of the speedup at this draft length; `interval` says what it holds"""
    block_efficiency: float
    itl_seconds: float
    """between two emissions of a request: a round"""
    tpot_seconds: float
    """per token"""
    baseline_tpot_seconds: float
    draft_seconds: float
    """of a round, as the next two"""
    verify_seconds: float
    other_seconds: float
    by_gamma: tuple[LengthSpeedup, ...]
    reason: str

    @property
    def tokens_per_second(self) -> float:
        """Of the whole batch."""
        return self.batch / self.tpot_seconds


@dataclass(frozen=True)
class TreeChoice:
    """The fastest token tree found for one batch and context."""

    tree: TokenTree
    speedup: float
    block_efficiency: float


@dataclass(frozen=True)
class Crossover:
    """From which batch on speculation stops paying."""

    batch: int | None
    """the first batch from which on, up to `searched`, no draft length pays; 1: it never pays, None: it always does"""
    batch_ci: tuple[int | None, int | None]
    """95%; None: beyond `searched`"""
    searched: int
    """the largest batch looked at"""
    schedule: tuple[tuple[int, int, int], ...]
    """the best draft length by batch: (first batch, last batch, gamma), from 1 to `searched`"""

    @property
    def last_batch(self) -> int:
        """The largest batch at which it pays; 0 for none."""
        return self.searched if self.batch is None else self.batch - 1


def speedups(law: DraftLaw, costs: PlanCosts, batch: Sequence[int], context: float) -> tuple[Array, Prices]:
    """Speedup by draft length from 0, which is 1 [rows, batches, gamma + 1], and the prices behind it.

    Raises:
        ValueError: a shape is not priced, or a round takes no time.
    """
    prices = costs.price(law, np.asarray(batch), context)
    rounds = prices.rounds
    if not (rounds[..., 1:] > 0).all() or not (prices.step > 0).all():
        raise ValueError("rounds and steps must take time, got 0 seconds; give latencies above 0")
    with np.errstate(divide="ignore"):
        found: Array = law.tokens[:, None] * prices.step[..., None] / rounds
    found[..., 0] = 1.0
    return found, prices


def choose(law: DraftLaw, costs: PlanCosts, batch: int, context: float) -> Choice:
    """The draft length with the greatest estimated speedup, the shortest one of equals.

    Args:
        law: what rounds yield.
        costs: what they cost.
        batch: requests that decode together.
        context: tokens that each of them has, at the middle of its output.

    Raises:
        ValueError: as `speedups`.
    """
    if batch < 1:
        raise ValueError(f"batch must be >= 1, got {batch}")
    found, prices = speedups(law, costs, [batch], context)
    curve = found[:, 0]
    gamma = int(np.argmax(curve[0]))
    low, high = np.quantile(curve[1:] if len(curve) > 1 else curve, [0.025, 0.975], axis=0)
    low, high = np.minimum(low, curve[0]), np.maximum(high, curve[0])  # an estimate at its bound, such as alpha 1
    lengths = [
        LengthSpeedup(length, float(curve[0, length]), (float(low[length]), float(high[length])))
        for length in range(curve.shape[1])
    ]
    step = float(prices.step[0, 0])
    parts = (
        [float(part[0, 0, gamma]) for part in (prices.draft, prices.verify, prices.other)] if gamma else [0, step, 0]
    )
    tokens, seconds = float(law.tokens[0, gamma]), float(sum(parts))
    return Choice(
        batch=batch,
        context=context,
        gamma=gamma,
        speedup=lengths[gamma].speedup,
        speedup_ci=lengths[gamma].speedup_ci,
        block_efficiency=tokens,
        itl_seconds=seconds,
        tpot_seconds=seconds / tokens,
        baseline_tpot_seconds=step,
        draft_seconds=parts[0],
        verify_seconds=parts[1],
        other_seconds=parts[2],
        by_gamma=tuple(lengths[1:]),
        reason=reason(law, prices, lengths, gamma),
    )


def reason(law: DraftLaw, prices: Prices, lengths: Sequence[LengthSpeedup], gamma: int) -> str:
    """Why a draft length, in tokens and in steps without speculation; for 0, why the best other one does not pay."""
    if len(lengths) == 1:
        return "do not use it: no draft length was considered"
    shown = gamma or max(lengths[1:], key=lambda one: one.speedup).gamma
    step = float(prices.step[0, 0])
    draft, verify, other = (float(part[0, 0, shown]) / step for part in (prices.draft, prices.verify, prices.other))
    what = (
        f"gamma {shown} emits {law.tokens[0, shown]:.2f} tokens a round of {draft + verify + other:.2f} steps "
        f"(drafting {draft:.2f}, verification {verify:.2f}, other {other:.2f}): {lengths[shown].speedup:.3f}x"
    )
    return what if gamma else f"do not use it: even the best draft length is no faster; {what}"


def crossover(law: DraftLaw, costs: PlanCosts, context: float, most: int = MOST_BATCH) -> Crossover:
    """Search all batches for where speculation stops paying.

    Args:
        law: what rounds yield.
        costs: what they cost.
        context: tokens of each request.
        most: the largest batch to look at, such as what memory holds; fewer where prices are known for fewer.

    Raises:
        ValueError: as `speedups`.
    """
    searched = int(min(most, costs.most_batch))
    if searched < 1:
        raise ValueError(f"the largest batch must be >= 1, got {searched}; memory must hold one request")
    best, last = [], np.zeros(1, dtype=np.int64)
    for first in range(1, searched + 1, CHUNK):
        batches = np.arange(first, min(first + CHUNK, searched + 1))
        found, _ = speedups(law, costs, batches.tolist(), context)
        best += np.argmax(found[0], axis=1).tolist()
        pays = found[..., 1:].max(axis=2, initial=0.0) > 1
        last = np.maximum(last, (pays * batches).max(axis=1))
    ends = last[1:] if len(last) > 1 else last
    low, high = np.quantile(ends, [0.025, 0.975], method="nearest")
    pairs = [list(group) for _, group in groupby(enumerate(best, start=1), key=lambda pair: pair[1])]
    return Crossover(
        after(int(last[0]), searched),
        (after(int(low), searched), after(int(high), searched)),
        searched,
        tuple((run[0][0], run[-1][0], run[0][1]) for run in pairs),
    )


def after(last: int, searched: int) -> int | None:
    """The batch after the last one that pays; None where that was not looked at."""
    return None if last >= searched else last + 1


def choose_tree(
    law: DraftLaw, costs: PlanCosts, batch: int, context: float, max_size: int, max_depth: int
) -> TreeChoice | None:
    """The token tree with the most expected tokens per second, where acceptance by rank is known (Sequoia).

    None where it is not, where nothing pays, or for fits to a run, whose draft forwards were timed with one token only.

    Raises:
        ValueError: as `sim.tree_search.best_tree_for_latency`.
    """
    if law.ranks is None or not isinstance(costs, ModelCosts):
        return None
    tree, rate = best_tree_for_latency(
        law.ranks, costs.draft, costs.target, max_size, min(max_depth, len(law.ranks)), batch=batch, context=context,
        overhead_seconds=costs.overhead_seconds, proposal_seconds=costs.proposal_seconds,
    )  # fmt: skip
    if not tree.size:
        return None
    step = float(costs.price(law, np.array([batch]), context).step[0, 0])
    return TreeChoice(tree, rate * step, expected_tokens(tree, law.ranks))


def interval(law: DraftLaw, costs: PlanCosts) -> str:
    """What the plan's intervals hold, and what they leave out."""
    held = [spread for spread in (law.spread, costs.spread) if spread is not None]
    left_out = [
        name for name, spread in (("acceptance", law.spread), ("latency", costs.spread)) if spread is None
    ]  # fmt: skip
    says = f"95%; holds {'; and '.join(held)}" if held else "of no width"
    if left_out:
        says += f"; the error of {' and '.join(left_out)} is not known and not in it"
    return says


def check_plan(law: DraftLaw, costs: PlanCosts) -> DraftLaw:
    """The law for the draft lengths that are priced.

    Raises:
        ValueError: not even one drafted token is.
    """
    if costs.most_gamma < 1:
        raise ValueError("the target's latency must cover 2 new tokens, to verify a drafted one; time wider forwards")
    return law.up_to(int(min(law.max_gamma, costs.most_gamma)))
