import json
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.fit.roofline import (
    GROUPS,
    HeldOutError,
    checkerboard,
    fit_efficiency,
    held_out_error,
    predict_groups,
    read_forwards,
    splits,
)
from sim.hardware import find_device
from sim.roofline import COMMITTED, Efficiency, GroupEfficiency, fitted_efficiency

H100 = find_device("h100")
TABLE = read_forwards()
PEAK = GroupEfficiency(memory=1.0, compute=1.0, overlap=20.0, kernel_seconds=0.0)
PEAKS = Efficiency(PEAK, PEAK, PEAK, PEAK, link=1.0, all_reduce_seconds=0.0, routing=0.0, fitted_on="h100")


@cache
def score(split: str) -> HeldOutError:
    return held_out_error(TABLE, splits(TABLE)[split])


def forward_percent(efficiency: Efficiency) -> float:
    seconds = predict_groups(TABLE, H100, efficiency).drop(columns="attention_once").sum(axis=1)
    return 100 * float((seconds / TABLE["verify_ms"] * 1e3 - 1).abs().mean())


def table_of(efficiency: Efficiency, rows: pd.DataFrame) -> pd.DataFrame:
    """What the table would read if the factors were the truth."""
    seconds = predict_groups(rows, H100, efficiency)
    groups = {
        column: 1e3 * seconds["attention_once" if group == "attention" else group] for group, column in GROUPS.items()
    }
    return rows.assign(**groups, verify_ms=sum(groups.values()))


def test_committed_factors_are_what_the_fit_gives() -> None:
    fitted, committed = asdict(fit_efficiency(TABLE, H100)), json.loads(COMMITTED.read_text())["efficiency"]
    pd.testing.assert_series_equal(
        pd.json_normalize(fitted).iloc[0], pd.json_normalize(committed).iloc[0], rtol=1e-6, check_dtype=False
    )


def test_half_of_the_cells_predict_the_other_half() -> None:
    error = score("checkerboard")
    assert error.fitted_rows == error.held_out_rows == len(TABLE) / 2
    assert error.forward.hi < 6
    assert error.verify_ratio.hi < 5
    assert max(error.models.values()) < 6
    assert max(error.groups[name] for name in ("gemm", "logits", "moe+other")) < 6
    assert error.groups["attention"] < 10


def test_short_contexts_at_small_batches_predict_the_rest() -> None:
    error = score("small shapes")
    assert error.fitted_rows < error.held_out_rows / 2
    assert error.forward.hi < 6
    assert error.verify_ratio.hi < 5


@pytest.mark.parametrize("model", ["meta-llama/Meta-Llama-3.1-8B", "Qwen/Qwen3-1.7B", "Qwen/Qwen3-8B"])
def test_other_models_predict_a_dense_model(model: str) -> None:
    error = score(f"without {model}")
    assert set(error.models) == {model}
    assert error.forward.value < 6
    assert error.verify_ratio.value < 5


def test_dense_models_tell_less_of_one_with_experts() -> None:
    error = score("without Qwen/Qwen3-30B-A3B")
    assert error.forward.value < 9
    assert 5 < error.verify_ratio.value < 15


def test_peaks_without_factors_are_far_off() -> None:
    assert forward_percent(PEAKS) > 4 * forward_percent(fitted_efficiency(H100))


@pytest.mark.parametrize("group", ["gemm", "moe", "attention"])
def test_each_group_of_factors_earns_its_place(group: str) -> None:
    without = replace(fitted_efficiency(H100), **{group: PEAK})  # type: ignore[arg-type]  # the names are groups
    assert forward_percent(without) > 1.15 * forward_percent(fitted_efficiency(H100))


def test_the_fit_recovers_factors_that_are_the_truth() -> None:
    truth = fitted_efficiency(H100)
    truth = replace(
        truth,
        gemm=GroupEfficiency(0.7, 0.6, 2.0, 2e-6),
        moe=GroupEfficiency(0.7, 0.4, 3.0, 5e-6),
        attention=GroupEfficiency(0.7, truth.attention.compute, 2.0, 9e-6),
        other=GroupEfficiency(0.7, 1.0, 1.0, 3e-6),
        routing=1.2,
    )
    rows = TABLE[TABLE["new_tokens"].isin([1, 8, 64])]
    fitted = pd.json_normalize(asdict(fit_efficiency(table_of(truth, rows), H100))).iloc[0]
    pd.testing.assert_series_equal(fitted, pd.json_normalize(asdict(truth)).iloc[0], rtol=1e-5, check_dtype=False)


def test_the_score_sees_an_error_of_the_held_out_rows_only() -> None:
    """Exact but for a fifth on every held-out time: 1/6 of it is the error, and the ratio has none."""
    split = checkerboard(TABLE)
    rows = table_of(fitted_efficiency(H100), TABLE)
    exact = held_out_error(rows, split)
    assert exact.attention_once.value < 1e-3
    assert exact.verify_ratio.value < 3  # of attention to many tokens, which this table counts once, too
    columns = [*GROUPS.values(), "verify_ms"]
    rows.loc[~split, columns] *= 1.2
    slower = held_out_error(rows, split)
    assert slower.attention_once.value == pytest.approx(100 / 6, rel=1e-4)
    assert slower.verify_ratio.value == pytest.approx(exact.verify_ratio.value, rel=1e-6)
    assert slower.groups["gemm"] == pytest.approx(100 / 6, rel=1e-4)


def test_intervals_hold_the_value_and_repeat_with_the_seed() -> None:
    error = score("checkerboard")
    for estimate in (error.forward, error.attention_once, error.verify_ratio):
        assert estimate.lo < estimate.value < estimate.hi
    assert held_out_error(TABLE, checkerboard(TABLE)) == error


def test_the_checkerboard_holds_whole_cells_of_every_model_out() -> None:
    cells = TABLE.assign(fitted=checkerboard(TABLE)).groupby(["context", "batch"])["fitted"]
    assert (cells.nunique() == 1).all()
    board = cells.first().unstack()
    assert (board.to_numpy()[1:] != board.to_numpy()[:-1]).all()
    assert (board.to_numpy()[:, 1:] != board.to_numpy()[:, :-1]).all()


def test_the_table_is_what_its_readme_says() -> None:
    groups = TABLE[list(GROUPS.values())].sum(axis=1) + TABLE["comm_ms"]
    np.testing.assert_allclose(groups, TABLE["verify_ms"], rtol=1e-5)
    assert (TABLE.groupby(["model", "batch", "context"])["attn_once_ms"].nunique() == 1).all()
    dense = TABLE[TABLE["moe_ms"] == 0]
    for _, rows in dense.groupby("model"):
        tokens = rows["batch"] * rows["new_tokens"]
        line = np.polynomial.Polynomial.fit(tokens, rows["other_ms"], 1)
        np.testing.assert_allclose(line(tokens.to_numpy()), rows["other_ms"], rtol=1e-4)


def test_a_table_without_its_columns_is_refused(tmp_path: Path) -> None:
    TABLE.drop(columns="moe_ms").to_csv(tmp_path / "short.csv")
    with pytest.raises(ValueError, match=r"lacks the columns \['moe_ms'\]"):
        read_forwards(tmp_path / "short.csv")
