"""Predict published speedups from what their sources say of each configuration, and score the predictions.

A round emits its tokens in the time of its draft forwards and one verification, so a row's speedup is

    tokens per round / (draft forwards * c + verification)

in units of a target forward with one new token: exact where every round costs the same, which is what `sim.engine`
simulates for constant latencies. No measured speedup enters a prediction. Intervals hold what is uncertain in the
inputs: the digits that are not printed, the spread of alpha over prompts, and the error of what is modelled; and, for
what a source leaves out, what the intervals of other sources missed (`analysis.published.other_sources`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.special import roots_jacobi

from analysis.published.costs import Cost, NotGivenError, draft_cost, verify_cost
from analysis.published.other_sources import missed_by_others
from analysis.published.rows import PublishedRow, Range
from sim.acceptance import AcceptanceModel, BetaAcceptance, IidAcceptance
from sim.theory import expected_tokens

BETWEEN_PROMPTS, MOST_BETWEEN_PROMPTS = 0.053, 0.10
"""share of alpha (1 - alpha) that is variance of alpha between prompts: over all prompts of our own run in `docs/lab`
(0.055 and 0.051 for its two drafts), and the most in one draft's category of prompts there"""

LABELS = ("source", "table", "target", "draft", "task", "batch", "hardware", "gamma")
"""columns of a table of predictions that are copied from the rows"""
NUMBERS = (
    *("measured", "half_printed", "predicted", "lo", "hi", "formula", "source_prediction"),
    *("tokens", "draft_cost", "verify_cost"),
)
COLUMNS = ("row", *LABELS, *NUMBERS, "basis", "reason")
"""columns that a row's own numbers give"""


class Prediction(NamedTuple):
    """What the simulator says of a row."""

    speedup: Range
    tokens: Range
    """emitted per round"""
    draft: Cost
    verify: Cost


def predict_row(row: PublishedRow) -> Prediction:
    """The speedup of a row from its own acceptance and latencies.

    Raises:
        NotGivenError: the row leaves out an input that nothing else tells.
    """
    tokens, draft, verify = tokens_per_round(row), draft_cost(row), verify_cost(row)
    speedup = Range(
        tokens.value / (draft.share.value + verify.share.value),
        tokens.lo / (draft.share.hi + verify.share.hi),
        tokens.hi / (draft.share.lo + verify.share.lo),
    )
    return Prediction(speedup, tokens, draft, verify)


def tokens_per_round(row: PublishedRow) -> Range:
    """Tokens that a round emits: tau where it is measured, else what alpha comes to over prompts that differ.

    A mean alpha does not say how prompts differ. The value is the mean over prompts of what their own alphas, drawn
    from a Beta, yield; it is at least what the total time of such prompts comes to, and at most the mean over prompts,
    both for prompts that differ as much as a category of ours does.

    Raises:
        NotGivenError: the row gives no acceptance that its rounds follow from.
    """
    if tau := row.given("tau"):
        return tau
    inverted, gamma = row.given("alpha_iid_from_tau"), row.gamma
    alpha = inverted or row.given("alpha")
    if alpha is None:
        raise NotGivenError("alpha, tau: neither is given")
    if row.tree:
        raise NotGivenError("tau: what a tree yields does not follow from one alpha")
    if gamma is None:
        raise NotGivenError("gamma: not given")
    if inverted:
        return Range(*(float(expected_tokens(value, gamma)) for value in alpha))
    if row.counts_per_chain:
        return Range(*(1 + value * gamma for value in alpha))
    mean_over_prompts = prompts_of(alpha.value, BETWEEN_PROMPTS).expected_block_efficiency(gamma)
    most = prompts_of(alpha.hi, MOST_BETWEEN_PROMPTS).expected_block_efficiency(gamma)
    return Range(mean_over_prompts, tokens_over_time(alpha.lo, MOST_BETWEEN_PROMPTS, gamma), most)


def prompts_of(alpha: float, between: float) -> AcceptanceModel:
    """Prompts whose alphas have this mean, and this share of alpha (1 - alpha) as variance."""
    if alpha in (0.0, 1.0):
        return IidAcceptance(alpha)
    return BetaAcceptance(alpha * (1 / between - 1), (1 - alpha) * (1 / between - 1))


def tokens_over_time(alpha: float, between: float, gamma: int) -> float:
    """Tokens per round of prompts with equally many tokens, all rounds taken together: their harmonic mean."""
    model = prompts_of(alpha, between)
    if not isinstance(model, BetaAcceptance):
        return model.expected_block_efficiency(gamma)
    places, weights = roots_jacobi(64, model.b - 1, model.a - 1)
    return float(weights.sum() / np.sum(weights / expected_tokens((1 + places) / 2, gamma)))


def plain_formula(row: PublishedRow) -> float | None:
    """Leviathan et al. 2023, Thm 3.8, from the row's alpha, gamma and c; None where one of them is missing.

    Where the row gives tau, alpha is the one that yields it by eq. 1. A verification costs one forward.
    """
    gamma, ratio, tau = row.gamma, row.given("c"), row.given("tau")
    inverted = row.given("alpha_iid_from_tau")
    alpha = inverted or row.given("alpha")
    if gamma is None or ratio is None:
        return None
    if tau:
        tokens = tau.value
    elif alpha is None:
        return None
    elif row.counts_per_chain and not inverted:
        tokens = 1 + alpha.value * gamma
    else:
        tokens = float(expected_tokens(alpha.value, gamma))
    return tokens / (gamma * ratio.value + 1)


def predict_published(rows: Sequence[PublishedRow], reference: Sequence[PublishedRow] = ()) -> pd.DataFrame:
    """Predict every row that has what a prediction needs.

    Args:
        rows: of any sources.
        reference: measured rows, whose sources other than a row's own say how far intervals miss; without three such
            sources an interval holds what is uncertain in the inputs alone.

    Returns:
        One row each: `row` (from 1), the labels, `measured`, `predicted`, `lo` and `hi` (a 95% interval), `lo_inputs`
        and `hi_inputs` (of that, what is uncertain in the inputs), `error_percent`, `covered` (the measured value, as
        far as it is printed, lies in the interval) and `covered_by_inputs`, `formula` and `formula_error_percent`,
        `source_prediction` and `source_error_percent`, `tokens`, `draft_cost` and `verify_cost` (target forwards),
        `basis` (where both are from), and `reason` where the row was not predicted. What is missing is NaN or None.
    """
    table = _by_inputs(rows)
    others = table.copy() if reference is rows else _by_inputs(reference)
    missed = {source: missed_by_others(others, source) for source in table["source"].unique()}
    table["lo"] *= [missed[source].lower for source in table["source"]]
    table["hi"] *= [missed[source].upper for source in table["source"]]
    for name, column in (("error", "predicted"), ("formula_error", "formula"), ("source_error", "source_prediction")):
        table[f"{name}_percent"] = 100 * (table[column] / table["measured"] - 1)
    for name, suffix in (("covered", ""), ("covered_by_inputs", "_inputs")):
        least, most = table[f"lo{suffix}"] - table["half_printed"], table[f"hi{suffix}"] + table["half_printed"]
        held = table["measured"].between(least, most)
        table[name] = held.astype(object).where(table["error_percent"].notna(), None)
    return table[[*(name for name in table if name not in ("basis", "reason", "half_printed")), "basis", "reason"]]


def _by_inputs(rows: Sequence[PublishedRow]) -> pd.DataFrame:
    """The table of `predict_published` before errors, with intervals from the inputs alone."""
    table = pd.DataFrame([record(row) for row in rows], columns=list(COLUMNS))
    table = table.astype(dict.fromkeys(NUMBERS, np.float64))
    return table.assign(lo_inputs=table["lo"], hi_inputs=table["hi"])


def record(row: PublishedRow) -> dict[str, Any]:
    """A row of `predict_published`."""
    measured, source = row.given("speedup_measured"), row.given("speedup_predicted_by_source")
    cells: dict[str, Any] = dict.fromkeys(COLUMNS)
    cells |= {"row": row.number, **{name: row.text.get(name, "") for name in LABELS}}
    cells |= {
        "measured": measured and measured.value,
        "half_printed": measured and measured.hi - measured.value,
        "formula": plain_formula(row),
        "source_prediction": source and source.value,
    }
    try:
        speedup, tokens, draft, verify = predict_row(row)
    except NotGivenError as reason:
        return cells | {"reason": str(reason)}
    return cells | {
        "predicted": speedup.value,
        "lo": speedup.lo,
        "hi": speedup.hi,
        "tokens": tokens.value,
        "draft_cost": draft.share.value,
        "verify_cost": verify.share.value,
        "basis": f"{draft.basis}, {verify.basis}",
    }


def score_published(predictions: pd.DataFrame) -> pd.DataFrame:
    """Errors by source, in percent of the measured speedups, over the rows that are predicted.

    Returns:
        By source: `rows`, `predicted` (of them, with a measured speedup), `mape`, `bias` (the mean error, its sign
        kept), `max_error` (the largest in size), `coverage` (share of the intervals that hold the measured value),
        `coverage_by_inputs` (of those from the inputs alone), `formula_rows` and `formula_mape` (the plain formula on
        those of the predicted rows that give what it needs), `same_rows_mape` (ours on these), `source_rows` and
        `source_mape` (the source's own predictions), and `reason`, the commonest one for which rows are not predicted.
        NaN where there are none.
    """
    scores = []
    for source, rows in predictions.groupby("source", sort=False):
        scored = rows[rows["error_percent"].notna()]
        error, by_formula = scored["error_percent"], scored[scored["formula"].notna()]
        by_source = scored["source_error_percent"].dropna()
        scores.append(
            {
                "source": source,
                "rows": len(rows),
                "predicted": len(scored),
                "mape": error.abs().mean(),
                "bias": error.mean(),
                "max_error": error.abs().max(),
                "coverage": scored["covered"].astype(np.float64).mean(),
                "coverage_by_inputs": scored["covered_by_inputs"].astype(np.float64).mean(),
                "formula_rows": len(by_formula),
                "formula_mape": by_formula["formula_error_percent"].abs().mean(),
                "same_rows_mape": by_formula["error_percent"].abs().mean(),
                "source_rows": len(by_source),
                "source_mape": by_source.abs().mean(),
                "reason": next(iter(rows["reason"].value_counts().index), None),
            }
        )
    return pd.DataFrame(scores)
