"""The tables of a run's report, as plain data: what was predicted, measured and fitted, and with what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.compare import PART_NAMES, PARTS, largest_part
from analysis.fit import ALL_CATEGORIES, Calibration, DraftFit
from analysis.fit.acceptance import Estimate
from analysis.fit.costs import PerRound
from sim.records import RunMetadata
from sim.theory import source_table as source_speedups

LONGEST_SETTING = 120


@dataclass(frozen=True)
class ReportTable:
    """A table and what it shows; notes and cells may hold Markdown's emphasis and code."""

    note: str
    head: tuple[str, ...]
    body: Sequence[Sequence[Any]]


def comparison_table(rows: pd.DataFrame) -> ReportTable:
    """Every configuration: predicted and measured speedup with 95% intervals."""
    body = [
        [
            row["draft"],
            row["gamma"],
            row["category"],
            interval(row["predicted"], row["predicted_lo"], row["predicted_hi"]),
            interval(row["measured"], row["measured_lo"], row["measured_hi"]),
            f"{row['error_percent']:+.1f}%",
            "yes" if row["covered"] else "**no**",
            f"{row['prompts']} / {row['tokens']}",
        ]
        for row in rows.to_dict("records")
    ]
    head = ["draft", "γ", "category", "predicted", "measured", "error", "covered", "prompts / tokens"]
    note = (
        "Speedup is autoregressive seconds per token over speculative seconds per token on the same prompts, prefill "
        "excluded; rounds that another process interrupted are capped. Predicted intervals hold the fit's uncertainty "
        "and that of a measurement of this size; measured ones resample prompts."
    )
    return ReportTable(note, tuple(head), body)


def misses_table(rows: pd.DataFrame) -> ReportTable:
    """The error of every configuration over the parts of a round."""
    shares = [f"log_error_{part}" for part in PARTS]
    body = [
        [row["config"], f"{100 * row['log_error']:+.1f}", *(f"{100 * row[name]:+.1f}" for name in shares)]
        for row in rows.to_dict("records")
    ]
    typical = rows[["log_error", *shares]].abs().mean()
    body.append(["**mean size**", *(f"**{100 * value:.1f}**" for value in typical)])
    note = (
        "100 × log(predicted / measured speedup), split exactly over the parts of a round (logarithmic mean Divisia "
        "index); a positive entry makes the prediction too high. `acceptance` is tokens per round."
    )
    head = ["configuration", "total", *PART_NAMES.values()]
    return ReportTable(note, tuple(head), body)


def misses_sentences(rows: pd.DataFrame) -> list[str]:
    """Every configuration whose interval missed, in words, and the part of a round that the error is largest in."""
    sentences = [_miss(row) for _, row in rows[~rows["covered"]].iterrows()]
    if not sentences:
        sentences = ["No measured value lies outside its predicted interval."]
    typical = rows[[f"log_error_{part}" for part in PARTS]].abs().mean()
    largest = PART_NAMES[PARTS[int(typical.to_numpy().argmax())]]
    return [*sentences, f"Over all held-out configurations the largest part of the error is {largest}."]


def acceptance_table(calibration: Calibration) -> ReportTable:
    """Acceptance by draft and category, the tests of the iid model, and the pooled rates that predictions use."""
    head = [
        "draft",
        "category",
        "tested",
        "α",
        "α from min(1, p/q)",
        "positions p",
        "requests p",
        "verdict",
        "best AIC",
    ]
    head.append("pooled α, first token")
    body = [
        _acceptance_row(name, category, draft)
        for name, draft in calibration.drafts.items()
        for category in draft.acceptance
    ]
    calibrated = "; ".join(
        f"{name} at γ = {', '.join(map(str, draft.gammas))}" for name, draft in calibration.drafts.items()
    )
    note = (
        f"Calibrated: {calibrated}. α is the maximum-likelihood estimate on censored rounds, its interval clustered by "
        "prompt. `positions p` tests one α against one per position, `requests p` whether prompts differ more than "
        "chance; either below 0.025 rejects iid acceptance. Predictions use the pooled rates: prompts within "
        "categories within drafts, with an offset per position."
    )
    return ReportTable(note, tuple(head), body)


def latency_table(calibration: Calibration) -> ReportTable:
    """Fitted levels and slopes, and how far the measured cells lie from them."""
    fit = calibration.latency
    body = [
        [
            row["role"],
            row["coefficient"],
            "" if pd.isna(row["batch"]) else row["batch"],
            "" if pd.isna(row["new_tokens"]) else row["new_tokens"],
            milliseconds(row["seconds"], row["seconds_lo"], row["seconds_hi"]),
        ]
        for row in fit.coefficients.to_dict("records")
    ]
    distance = fit.residuals["residual_percent"].abs()
    worst = fit.residuals.iloc[int(distance.to_numpy().argmax())]
    note = (
        f"From {fit.repeats} interleaved sweeps, between which the machine's speed varied by {fit.drift_percent:.1f}% "
        "(standard deviation). Of the measured cells, the one furthest from its fit is "
        f"`{worst['role']}` with {worst['new_tokens']} new tokens at context {worst['context']}, "
        f"{worst['residual_percent']:+.1f}%; the typical distance is {distance.median():.1f}%."
    )
    return ReportTable(note, ("role", "coefficient", "batch", "new tokens", "milliseconds"), body)


def costs_table(calibration: Calibration) -> ReportTable:
    """In-situ factors, and what a round costs outside its forwards."""
    baseline = calibration.baseline
    body = [["autoregressive", factor(baseline.in_situ), "", "", f"{1e3 * baseline.other_seconds:.3f}", "", ""]]
    for name, draft in calibration.drafts.items():
        costs = draft.costs
        lookup = per_round(costs.draft) if isinstance(costs.draft, PerRound) else ""
        drafting = "" if costs.draft_in_situ is None else factor(costs.draft_in_situ)
        spread = f"{100 * float(np.std(costs.log_noise)):.1f}%"
        proposes = f"{_proposal_rate(draft):.2f}"
        body.append([name, factor(costs.verify_in_situ), drafting, lookup, per_round(costs.other), spread, proposes])
    head = ["round", "target in situ", "draft in situ", "lookup, ms", "other, ms", "timing spread", "proposes"]
    note = (
        "Factors in situ are measured seconds inside the decoding loop over the sweep's, from calibration rounds only. "
        "`timing spread` is the standard deviation between prompts of a round's time against its fit and its baseline; "
        "`proposes` is the chance that a draft proposes anything on a typical prompt."
    )
    return ReportTable(note, tuple(head), body)


def source_table() -> ReportTable:
    """The source algorithm's printed speedups beside its own formula and the exact expected tokens."""
    table = source_speedups()
    body = [[f"{value:.2f}" if isinstance(value, float) else value for value in row] for row in table.to_numpy(object)]
    note = (
        "The printed column is what the source algorithm's table says, beside its own formula 1/(1 − α + α/γ) and the "
        "exact expected tokens per round (Leviathan et al. 2023, eq. 1), which is the speedup when drafting is free."
    )
    return ReportTable(note, tuple(str(name).replace("_", " ") for name in table.columns), body)


def machine_table(metadata: RunMetadata) -> ReportTable:
    """What the run was made with."""
    facts: dict[str, Any] = {
        "rounds from": metadata.source,
        "target": metadata.target,
        "drafts": ", ".join(metadata.drafts),
        "device": metadata.device,
        "dtype": metadata.dtype,
        "threads": metadata.threads,
        "seed": metadata.seed,
        "git commit": metadata.git_commit,
        "created": metadata.created,
        "versions": ", ".join(f"{name} {version}" for name, version in sorted(metadata.versions.items())),
        **{str(name).replace("_", " "): _setting(value) for name, value in metadata.settings.items()},
    }
    return ReportTable("", ("", ""), [[name, value] for name, value in facts.items() if value not in (None, "")])


def interval(value: float, low: float, high: float) -> str:
    """A value and its interval, two decimals."""
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"


def milliseconds(value: float, low: float, high: float) -> str:
    """Seconds as milliseconds, four significant digits."""
    return f"{1e3 * value:.4g} [{1e3 * low:.4g}, {1e3 * high:.4g}]"


def factor(rows: np.ndarray[Any, np.dtype[np.float64]]) -> str:
    """A factor and its bootstrap interval; row 0 is the fit."""
    low, high = np.quantile(rows[1:], [0.025, 0.975])
    return f"{rows[0]:.3f} [{low:.3f}, {high:.3f}]"


def per_round(cost: PerRound) -> str:
    """A cost per round and per drafted token, in milliseconds."""
    return f"{1e3 * cost.fixed_seconds:.3f} + {1e3 * cost.seconds_per_drafted:.3f} per drafted token"


def _setting(value: Any) -> Any:
    """A setting in one short cell."""
    text = ", ".join(f"{key} {entry}" for key, entry in value.items()) if isinstance(value, dict) else str(value)
    return text if len(text) <= LONGEST_SETTING else "see run.json"


def _acceptance_row(name: str, category: str, draft: DraftFit) -> list[Any]:
    fit, test = draft.acceptance[category], draft.goodness[category]
    pooled = ""
    if category != ALL_CATEGORIES:
        rates = draft.rates.category_rate(category)
        pooled = str(Estimate(float(np.mean(rates)), *map(float, np.quantile(rates, [0.025, 0.975]))))
    smooth = "" if fit.alpha_from_probability is None else str(fit.alpha_from_probability)
    tests = [f"{test.positions.p_value:.3f}", f"{test.requests.p_value:.3f}", test.verdict]
    return [name, category, fit.tested, fit.alpha, smooth, *tests, fit.best, pooled]


def _proposal_rate(draft: DraftFit) -> float:
    """Chance of proposing anything on a typical prompt, the mean over categories; 1 for a draft that always does."""
    if draft.proposals is None:
        return 1.0
    rates = draft.proposals.proposes
    return float(np.mean([rates.category_rate(category).mean() for category in rates.categories]))


def _miss(row: pd.Series[Any]) -> str:
    """A configuration outside its interval, in words."""
    way = "too high" if row["log_error"] > 0 else "too low"
    part = largest_part(row)
    share = row[f"log_error_{next(key for key, value in PART_NAMES.items() if value == part)}"]
    predicted = interval(row["predicted"], row["predicted_lo"], row["predicted_hi"])
    return (
        f"`{row['config']}`: predicted {predicted}, measured {row['measured']:.2f}; {way}, "
        f"of which {100 * share:+.1f} of {100 * row['log_error']:+.1f} log-percent is {part}."
    )
