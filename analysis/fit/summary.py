"""A calibration as plain numbers, for scripts."""

from __future__ import annotations

from typing import Any

import pandas as pd

from analysis.fit import Calibration, DraftFit
from analysis.fit.acceptance import Estimate
from analysis.fit.costs import PerRound


def fit_summary(calibration: Calibration) -> dict[str, Any]:
    """The fits as JSON has them: estimates as {value, lo, hi}, seconds in seconds.

    Returns:
        `latency` (one row per coefficient), `drift_percent`, `baseline` and, by name, `drafts`, each with `acceptance`
        by category and its test of the iid model.
    """
    coefficients = calibration.latency.coefficients.astype(object)
    return {
        "latency": coefficients.where(pd.notna(coefficients), None).to_dict(orient="records"),
        "drift_percent": calibration.latency.drift_percent,
        "baseline": {
            "in_situ": float(calibration.baseline.in_situ[0]),
            "other_seconds": calibration.baseline.other_seconds,
        },
        "drafts": {name: _draft(draft) for name, draft in calibration.drafts.items()},
    }


def _draft(draft: DraftFit) -> dict[str, Any]:
    costs = draft.costs
    return {
        "gammas": list(draft.gammas),
        "acceptance": {category: _acceptance(draft, category) for category in draft.acceptance},
        "verify_in_situ": float(costs.verify_in_situ[0]),
        "draft_in_situ": None if costs.draft_in_situ is None else float(costs.draft_in_situ[0]),
        "lookup": _per_round(costs.draft) if isinstance(costs.draft, PerRound) else None,
        "other": _per_round(costs.other),
    }


def _acceptance(draft: DraftFit, category: str) -> dict[str, Any]:
    fit, test = draft.acceptance[category], draft.goodness[category]
    return {
        "tested": fit.tested,
        "alpha": _estimate(fit.alpha),
        "alpha_from_probability": _estimate(fit.alpha_from_probability),
        "conditional_acceptance": [_estimate(one) for one in fit.conditional_acceptance],
        "positions_p": test.positions.p_value,
        "requests_p": test.requests.p_value,
        "verdict": test.verdict,
        "best": fit.best,
    }


def _estimate(estimate: Estimate | None) -> dict[str, float] | None:
    return None if estimate is None else {"value": estimate.value, "lo": estimate.lo, "hi": estimate.hi}


def _per_round(cost: PerRound) -> dict[str, float]:
    return {"fixed_seconds": cost.fixed_seconds, "seconds_per_drafted": cost.seconds_per_drafted}
