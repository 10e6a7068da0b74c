from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest

from analysis.compare import COMPARISON_COLUMNS, PART_NAMES, PARTS, compare, decompose, largest_part, measured, score
from sim.records import make_rounds

SHARES = [f"log_error_{part}" for part in PARTS]


def two_prompts() -> pd.DataFrame:
    """Two prompts, each with two baseline steps and one speculative round."""
    return make_rounds(
        request_id=["a", "a", "a", "b", "b", "b"],
        round_index=[0, 1, 0, 0, 1, 0],
        batch=1,
        context=10,
        gamma=[0, 0, 2, 0, 0, 2],
        drafted=[0, 0, 2, 0, 0, 2],
        accepted=[0, 0, 1, 0, 0, 2],
        emitted=[1, 1, 2, 1, 1, 3],
        cut=False,
        start_seconds=0.0,
        draft_seconds=[0, 0, 0.5, 0, 0, 0.5],
        verify_seconds=[1, 1, 1, 2, 2, 1.5],
        other_seconds=[0, 0, 0, 0, 0, 0.5],
        phase="evaluation",
        draft=["none", "none", "d", "none", "none", "d"],
        category="chat",
    )


def test_measured_speedup_follows_the_definition() -> None:
    row = measured(two_prompts()).iloc[0]
    # Baseline: 6 seconds for 4 tokens; speculative: 4 seconds for 5 tokens.
    assert row["measured"] == pytest.approx((6 / 4) / (4 / 5))
    assert (row["config"], row["prompts"], row["tokens"], row["rounds"]) == ("d|2|chat", 2, 5, 2)
    assert row["block_efficiency"] == 2.5
    assert bool(row["held_out"])
    # Resampling prompts gives a alone, both, or b alone.
    assert row["measured_lo"] == pytest.approx(1 / (1.5 / 2))
    assert row["measured_hi"] == pytest.approx(2 / (2.5 / 3))


def test_a_slow_spell_shared_with_the_baseline_leaves_the_speedup_alone() -> None:
    slow = two_prompts()
    of_b = slow["request_id"] == "b"
    slow.loc[:, ["draft_seconds", "verify_seconds", "other_seconds"]] *= 3
    assert measured(slow).loc[0, "measured"] == pytest.approx(measured(two_prompts()).loc[0, "measured"])
    lone = measured(two_prompts()[of_b]).iloc[0]
    assert lone["measured"] == pytest.approx(2 / (2.5 / 3))
    assert np.isnan(lone["measured_lo"])


def test_prompts_without_baseline_are_refused() -> None:
    rounds = two_prompts()
    with pytest.raises(ValueError, match="prompt 'b' was decoded with 'd' but never without a draft"):
        measured(rounds[(rounds["request_id"] == "a") | (rounds["gamma"] > 0)])
    with pytest.raises(ValueError, match=r"columns \['category'\]"):
        measured(rounds.drop(columns="category"))


def test_comparison_has_the_contracted_columns_first(comparison: pd.DataFrame) -> None:
    assert tuple(comparison.columns[: len(COMPARISON_COLUMNS)]) == (
        "config",
        "draft",
        "gamma",
        "category",
        "held_out",
        "predicted",
        "predicted_lo",
        "predicted_hi",
        "measured",
        "measured_lo",
        "measured_hi",
    )
    assert not comparison.duplicated(["config", "held_out"]).any()


def test_error_parts_sum_to_the_whole_error(comparison: pd.DataFrame) -> None:
    np.testing.assert_allclose(comparison[SHARES].sum(axis=1), comparison["log_error"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(
        comparison["log_error"], np.log(comparison["predicted"] / comparison["measured"]), rtol=0, atol=1e-12
    )


def test_decomposition_blames_the_part_that_is_wrong() -> None:
    """One wrong part takes the whole error, and equal round times split without dividing by zero."""
    truth = np.array([[3.0, 0.03, 0.05, 0.01, 0.04]])
    for i, wrong in itertools.product(range(5), (0.7, 1.4)):
        predicted = truth.copy()
        predicted[0, i] *= wrong
        shares = decompose(predicted, truth)[0]
        expected = np.zeros(5)
        before, after = (part[0, 0] * part[0, 4] / part[0, 1:4].sum() for part in (truth, predicted))
        expected[i] = np.log(after / before)
        np.testing.assert_allclose(shares, expected, atol=1e-12)
    swapped = truth.copy()
    swapped[0, 1:3] += (0.01, -0.01)
    shares = decompose(swapped, truth)[0]
    np.testing.assert_allclose(shares, [0, -0.01 / 0.09, 0.01 / 0.09, 0, 0], atol=1e-12)


def test_decomposition_depends_on_no_order() -> None:
    rng = np.random.default_rng(0)
    predicted, truth = rng.uniform(0.5, 2, (2, 20, 5))
    np.testing.assert_allclose(decompose(predicted, truth), -decompose(truth, predicted), atol=1e-12)


def test_score_counts_and_names_the_worst(comparison: pd.DataFrame) -> None:
    result = score(comparison)
    held_out = comparison[comparison["held_out"]]
    assert result.configs == len(held_out) == 36
    error = result.mean_absolute_percentage_error
    assert error.value == pytest.approx(held_out["error_percent"].abs().mean())
    assert error.lo < error.value < error.hi
    assert result.coverage.value == pytest.approx(held_out["covered"].mean())
    order = held_out["error_percent"].abs().argsort()
    assert result.worst_config == held_out["config"].iloc[order.iloc[-1]]
    assert result.worst_part in PART_NAMES.values()
    assert score(comparison, held_out=False).configs == 12
    with pytest.raises(ValueError, match="no configurations with held_out=False"):
        score(held_out, held_out=False)


def test_largest_part_points_the_way_of_the_error() -> None:
    row = pd.Series(dict.fromkeys(SHARES, 0.0) | {"log_error": -0.1})
    row["log_error_verify_seconds"], row["log_error_block_efficiency"] = -0.3, 0.2
    assert largest_part(row) == "verify time"
    row["log_error"] = 0.1
    assert largest_part(row) == "acceptance"


def test_measurements_without_a_prediction_are_refused(predictions: pd.DataFrame, comparison: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match=r"without a prediction: \['d\|2\|chat'\]"):
        compare(predictions, measured(two_prompts()))
    assert comparison["predicted"].notna().all()
