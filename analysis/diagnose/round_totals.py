"""Sums over rounds and over plain steps, bootstrapped over requests: row 0 is the estimate, the others are draws.

What a plain step costs comes from rounds of gamma 0, or from a log's seconds per token, or, where neither is known,
from the narrowest verifications of the run, which cost no less than a forward of one token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.diagnose.speedup_loss import GOOD_ACCEPTANCE, RoundCosts
from analysis.interruptions import cap_interruptions
from sim.records import ROUND_SECONDS, chain_depth
from sim.theory import FloatArray, expected_tokens

LEAST_REQUESTS = 2
BLOCKS = 20
"""successive parts of a single request, which stand in for requests"""
LEAST_STEPS = 20
"""rounds of one width that say what such a verification costs"""
LITTLE = 0.05
"""share of time up to which interruptions are left out"""
RARE = 0.02
"""Share of rounds up to which long ones count as interrupted; more of them are how the engine runs. On the committed
run's shared machine 1% to 1.9% of rounds are capped."""


@dataclass(frozen=True)
class Totals:
    """Weighted sums [rows] of one draft's rounds, and of plain steps if there are any."""

    rounds: Mapping[str, FloatArray]
    """rounds, emitted, ideal (tokens), drafted, the three seconds; emitted_to_n and drafted_to_n of drafts cut to n;
    rounds_of_i, emitted_of_i and emitted_of_i_to_n of those where finding i says that acceptance is as it could be"""
    findings: int
    steps: Mapping[str, FloatArray] | None
    """sums over plain steps, or over what stands in for them"""
    step_seconds: float | None
    """seconds per token of a baseline that tells no parts of them apart"""
    plain: bool
    """whether a baseline is known"""
    warnings: tuple[str, ...]

    def per_round(self, name: str) -> FloatArray:
        """A mean over rounds."""
        return self.rounds[name] / self.rounds["rounds"]

    def references(self, suffix: str = "") -> tuple[FloatArray, ...]:
        """Tokens per round in the rounds of each finding, as they were or with `_to_n` cut to n."""
        with np.errstate(invalid="ignore", divide="ignore"):  # a draw may hold no such round
            return tuple(
                self.rounds[f"emitted_of_{i}{suffix}"] / self.rounds[f"rounds_of_{i}"] for i in range(self.findings)
            )

    @property
    def ideal(self) -> FloatArray:
        """Tokens per round with a good draft, or where findings say that this one is better than that."""
        return best_of(self.per_round("ideal"), self.per_round("emitted"), *self.references())

    @property
    def costs(self) -> RoundCosts | None:
        """Means per round and per plain step; None where nothing says what a forward of the target costs."""
        verify = self.per_round("verify_seconds")
        if self.step_seconds is not None:
            whole = np.full_like(verify, self.step_seconds)
            # as dear as the forward can be: a verification costs no less than a forward of one token
            forward = np.minimum(verify, whole)
        elif self.steps is not None:
            forward, whole = (self.steps[name] / self.steps["emitted"] for name in ("verify_seconds", "seconds"))
        else:
            return None
        return RoundCosts(
            tokens=self.per_round("emitted"),
            ideal_tokens=self.ideal,
            **{name: self.per_round(name) for name in ROUND_SECONDS},
            step_forward_seconds=forward,
            step_other_seconds=whole - forward,
            plain=self.plain,
        )


def add_up(
    rounds: pd.DataFrame,
    steps: pd.DataFrame | float | None,
    references: Sequence[NDArray[np.bool_]],
    rng: np.random.Generator,
    resamples: int,
    plain: bool = True,
) -> Totals:
    """Sum rounds and plain steps by request, and draw requests again and again.

    Rounds that something interrupted are capped (see `analysis.interruptions`) where they are rare. A request is drawn
    together with its own plain steps where every request has some; else the two are drawn apart. A single request is
    cut into successive parts.

    Args:
        rounds: of one draft.
        steps: rounds of gamma 0, or seconds per token without speculation, or None.
        references: a mask of rounds for each finding.
        rng: of the bootstrap.
        resamples: how often to draw.
        plain: whether the steps are plain ones, not what stands in for them.
    """
    warnings: list[str] = []
    columns = _columns(_capped(rounds, warnings, "rounds"), references)
    unit, names = pd.factorize(rounds["request_id"])
    if len(names) < LEAST_REQUESTS:
        unit = _blocks(len(rounds))
        warnings.append("a single request: intervals are over its successive parts, and leave out how requests differ")
    sums = columns.groupby(unit).sum()
    by_step, paired = None, False
    if isinstance(steps, pd.DataFrame):
        by_step, paired = _step_sums(_capped(steps, warnings, "plain steps"), names)
        if not paired and plain and len(names) >= LEAST_REQUESTS:
            warnings.append("not every request has plain steps of its own: the baseline is of other requests")
        batches = rounds["batch"].mean(), steps["batch"].mean()
        if not np.isclose(*batches, rtol=0.1):
            warnings.append(
                f"rounds ran at a mean batch of {batches[0]:.3g}, plain steps at {batches[1]:.3g}: the speedup is not "
                "that of speculation alone, and verify_width holds what the batch changes; give a baseline at the same"
            )
        if min(len(sums), len(by_step)) == 1:
            resamples = 0
    weights = _weights(len(sums), rng, resamples)
    step_totals = None
    if by_step is not None:
        step_totals = _totals(by_step, weights if paired else _weights(len(by_step), rng, resamples))
    seconds = float(steps) if isinstance(steps, float | int) else None
    return Totals(_totals(sums, weights), len(references), step_totals, seconds, plain, tuple(warnings))


def _step_sums(steps: pd.DataFrame, names: pd.Index[Any]) -> tuple[pd.DataFrame, bool]:
    """Sums of plain steps by request, those of `names` in their order if each has some and there are several."""
    by_step = steps[["emitted", "verify_seconds"]].assign(seconds=steps[list(ROUND_SECONDS)].sum(axis=1))
    by_request = by_step.groupby(steps["request_id"]).sum()
    if len(names) >= LEAST_REQUESTS and by_request.index.isin(names).sum() == len(names):
        return by_request.loc[names], True
    return by_request if len(by_request) >= LEAST_REQUESTS else by_step.groupby(_blocks(len(by_step))).sum(), False


def narrowest(rounds: pd.DataFrame, own: pd.DataFrame) -> pd.DataFrame:
    """What stands in for plain steps: the verifications of fewest tokens at the batches of `own`, and nothing else.

    Args:
        rounds: of all drafts and draft lengths.
        own: those that are diagnosed.
    """
    drafting = rounds[(rounds["gamma"] > 0) & rounds["batch"].isin(own["batch"].unique())]
    counts = drafting["drafted"].value_counts()
    enough = counts[counts >= LEAST_STEPS].index
    chosen = drafting[drafting["drafted"] == enough.min()] if len(enough) else own
    return chosen.assign(gamma=0, drafted=0, accepted=0, emitted=1, draft_seconds=0.0, other_seconds=0.0).reset_index(
        drop=True
    )


def asked_tokens(rounds: pd.DataFrame) -> NDArray[np.int64]:
    """Draft length that each round asked for, or a tree's depth."""
    depth, drafted = chain_depth(rounds).to_numpy(), rounds["drafted"].to_numpy()
    asked = rounds["gamma"].to_numpy() if (depth == drafted).all() else np.full(len(rounds), depth.max())
    return asked.astype(np.int64)


def best_of(ideal: FloatArray, *others: FloatArray) -> FloatArray:
    """The most tokens per round of all [rows]; a draw without a value counts for nothing."""
    return np.asarray(np.fmax.reduce([ideal, *others]))


def interval(rows: FloatArray) -> list[float] | None:
    """95% of the draws, row 0 left out; None where there are none."""
    draws = rows[1:][np.isfinite(rows[1:])]
    if len(draws) == 0:
        return None
    low, high = np.quantile(draws, [0.025, 0.975])
    return [float(low), float(high)]


def _capped(rounds: pd.DataFrame, warnings: list[str], what: str) -> pd.DataFrame:
    """Rounds of one draft, capped if that touches few; without its name, whose grouping takes longer than the rest.

    What is capped is left out where it is little, and else counts as other time: nobody was drafting or verifying.
    """
    seconds = list(ROUND_SECONDS)
    whole = rounds.drop(columns="draft", errors="ignore")
    capped = cap_interruptions(whole)
    waited = (whole[seconds] - capped[seconds]).sum(axis=1)
    count, share = int((waited > 0).sum()), float(waited.sum() / max(whole[seconds].to_numpy().sum(), 1e-300))
    if count > max(1, RARE * len(whole)):
        return whole
    if share <= LITTLE:
        return capped
    warnings.append(
        f"{share:.0%} of the time of {what} is in {count} of {len(whole):,} that took far longer than the others; it "
        "counts as time beside the forwards"
    )
    return capped.assign(other_seconds=capped["other_seconds"] + waited)


def _columns(rounds: pd.DataFrame, references: Sequence[NDArray[np.bool_]]) -> pd.DataFrame:
    """What is summed of every round; rounds cut to n tokens only for chains."""
    sums: dict[str, Any] = {name: rounds[name].to_numpy() for name in ("emitted", "drafted", *ROUND_SECONDS)}
    sums |= {"rounds": 1.0, "ideal": expected_tokens(GOOD_ACCEPTANCE, asked_tokens(rounds))}
    accepted, drafted = rounds["accepted"].to_numpy(), rounds["drafted"].to_numpy()
    if (chain_depth(rounds).to_numpy() == drafted).all():
        for n in range(1, int(drafted.max()) + 1):
            sums[f"emitted_to_{n}"] = np.minimum(accepted, n) + 1
            sums[f"drafted_to_{n}"] = np.minimum(drafted, n)
    tokens = {name.removeprefix("emitted"): count for name, count in sums.items() if name.startswith("emitted")}
    for i, chosen in enumerate(references):
        sums[f"rounds_of_{i}"] = chosen
        sums |= {f"emitted_of_{i}{suffix}": chosen * count for suffix, count in tokens.items()}
    return pd.DataFrame(sums, index=rounds.index)


def _weights(units: int, rng: np.random.Generator, resamples: int) -> FloatArray:
    drawn = rng.multinomial(units, np.full(units, 1 / units), size=resamples if units > 1 else 0)
    return np.vstack([np.ones((1, units)), drawn.reshape(-1, units)])


def _blocks(count: int) -> NDArray[np.int64]:
    return np.arange(count) * min(BLOCKS, count) // count


def _totals(sums: pd.DataFrame, weights: FloatArray) -> dict[str, FloatArray]:
    values = weights @ sums.to_numpy(np.float64)
    return {str(name): values[:, i] for i, name in enumerate(sums.columns)}
