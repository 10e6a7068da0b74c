from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pytest

from sim.latency import AffineLatency, ConstantLatency, TableLatency, burst_seconds, latency_from_json

AFFINE = AffineLatency(0.01, 0.002, 1e-5)


def rows_of(latency: Any, batches: list[int], tokens: list[int], contexts: list[int]) -> list[dict[str, float]]:
    return [
        {"batch": b, "new_tokens": n, "context": c, "seconds": float(latency.forward_seconds(b, n, c))}
        for b, n, c in product(batches, tokens, contexts)
    ]


def test_constant_is_the_same_for_every_forward() -> None:
    assert ConstantLatency(0.5).forward_seconds(1, 2, 3) == 0.5
    np.testing.assert_array_equal(ConstantLatency(0.5).forward_seconds(1, [1, 2], [[0], [9]]), np.full((2, 2), 0.5))


def test_affine_counts_new_tokens_and_cache_of_every_request() -> None:
    assert AFFINE.forward_seconds(3, 4, 100) == pytest.approx(0.01 + 0.002 * 12 + 1e-5 * 300, rel=1e-15)


def test_interpolation_is_exact_on_functions_linear_in_each_axis() -> None:
    """AffineLatency has the products batch * new_tokens and batch * context: multilinear, so reproduced in and out."""
    rng = np.random.default_rng(0)
    table = TableLatency(rows_of(AFFINE, [1, 4, 8], [1, 2, 9], [0, 100, 1000]))
    batch, tokens, context = rng.uniform(1, 8, 500), rng.uniform(1, 9, 500), rng.uniform(0, 1000, 500)
    expected = AFFINE.forward_seconds(batch, tokens, context)
    np.testing.assert_allclose(table.forward_seconds(batch, tokens, context), expected, rtol=1e-12)
    outside = TableLatency(table.rows, extrapolate=True)
    assert outside.forward_seconds(16, 20, 5000) == pytest.approx(AFFINE.forward_seconds(16, 20, 5000), rel=1e-12)


def test_measured_points_come_back_exactly_in_any_row_order() -> None:
    rng = np.random.default_rng(1)
    rows = [row | {"seconds": rng.uniform(1, 2)} for row in rows_of(AFFINE, [1, 2], [1, 5, 6], [10, 20])]
    table = TableLatency([rows[i] for i in rng.permutation(len(rows))])
    for row in rows:
        assert table.forward_seconds(row["batch"], row["new_tokens"], row["context"]) == row["seconds"]


def test_an_axis_with_one_value_is_constant() -> None:
    table = TableLatency(rows_of(AFFINE, [1], [1, 5], [64]))
    assert table.forward_seconds(7, 3, 9999) == pytest.approx(AFFINE.forward_seconds(1, 3, 64), rel=1e-12)


@pytest.mark.parametrize("tokens", [0, 6, np.nan])
def test_a_forward_outside_the_grid_is_refused(tokens: float) -> None:
    table = TableLatency(rows_of(AFFINE, [1], [1, 5], [0, 10]))
    with pytest.raises(ValueError, match=f"new_tokens {tokens:g} is outside the measured 1 to 5; .*extrapolate=True"):
        table.forward_seconds(1, tokens, 5)


def test_extrapolation_to_a_negative_time_is_refused() -> None:
    rows = [{"batch": 1, "new_tokens": n, "context": 0, "seconds": s} for n, s in ((1, 2.0), (2, 1.0))]
    with pytest.raises(ValueError, match="extrapolates to -1 seconds"):
        TableLatency(rows, extrapolate=True).forward_seconds(1, 4, 0)


def test_a_ragged_or_doubled_or_incomplete_table_is_refused() -> None:
    rows = rows_of(AFFINE, [1, 2], [1, 2], [0, 5])
    with pytest.raises(ValueError, match=r"not a full grid: \{'batch': '2', 'new_tokens': '2', 'context': '5'\}"):
        TableLatency(rows[:-1])
    with pytest.raises(ValueError, match=r"\{'batch': '1', 'new_tokens': '1', 'context': '0'\} more than once"):
        TableLatency([*rows, rows[0]])
    with pytest.raises(ValueError, match=r"missing \['seconds'\]"):
        TableLatency([{"batch": 1, "new_tokens": 1, "context": 0}])
    with pytest.raises(ValueError, match="needs rows"):
        TableLatency([])
    with pytest.raises(ValueError, match="seconds must be finite"):
        TableLatency([rows[0] | {"seconds": np.nan}])


@pytest.mark.parametrize("model", [ConstantLatency, AffineLatency])
@pytest.mark.parametrize("seconds", [-1.0, np.nan, np.inf])
def test_a_negative_or_endless_forward_is_refused(model: type, seconds: float) -> None:
    with pytest.raises(ValueError, match=f"must be finite and >= 0, got {seconds}"):
        model(seconds)


@dataclass(frozen=True)
class Opaque:
    """Hides what kind of model it is, so that a burst is summed forward by forward."""

    inner: Any

    def forward_seconds(self, batch: Any, new_tokens: Any, context: Any) -> Any:
        return self.inner.forward_seconds(batch, new_tokens, context)


@pytest.mark.parametrize("latency", [ConstantLatency(0.3), AffineLatency(0.2, 0.1), AFFINE])
def test_the_closed_form_of_a_burst_is_the_sum_of_its_forwards(latency: Any) -> None:
    drafted, context = np.array([0, 1, 5, 3]), np.array([7, 0, 100, 2000])
    np.testing.assert_allclose(
        burst_seconds(latency, drafted, context), burst_seconds(Opaque(latency), drafted, context), rtol=1e-12, atol=0
    )
    assert burst_seconds(latency, 3, 10) == pytest.approx(sum(latency.forward_seconds(1, 1, 10 + i) for i in range(3)))


@pytest.mark.parametrize("latency", [ConstantLatency(0.3), AffineLatency(0.2, 0.1), AFFINE, Opaque(AFFINE)])
def test_a_burst_of_a_batch_is_the_sum_of_its_forwards(latency: Any) -> None:
    batch = np.array([1, 4, 64])
    expected = [sum(latency.forward_seconds(b, 1, 10 + i) for i in range(5)) for b in (1, 4, 64)]
    np.testing.assert_allclose(np.broadcast_to(burst_seconds(latency, 5, 10, batch), 3), expected, rtol=1e-12)
    assert burst_seconds(latency, 5, 10, 64) == pytest.approx(expected[2], rel=1e-12)
    assert burst_seconds(latency, 5, 10, 1) == burst_seconds(latency, 5, 10)


def test_a_round_that_stopped_drafting_is_not_priced_beyond_the_grid() -> None:
    table = TableLatency(rows_of(AFFINE, [1], [1], [0, 12]))
    expected = burst_seconds(AFFINE, np.array([2, 5]), np.array([11, 8]))
    np.testing.assert_allclose(burst_seconds(table, np.array([2, 5]), np.array([11, 8])), expected, rtol=1e-12)


def test_latency_from_json_builds_every_kind() -> None:
    affine = {"kind": "affine", "fixed_seconds": 0.01, "seconds_per_token": 0.002, "seconds_per_kv_token": 1e-5}
    assert latency_from_json(affine) == AFFINE
    assert latency_from_json({"kind": "constant", "seconds": 2.0}) == ConstantLatency(2.0)
    rows = rows_of(AFFINE, [1], [1, 3], [0])
    assert latency_from_json({"kind": "table", "rows": rows}).forward_seconds(1, 2, 0) == pytest.approx(0.014)


@pytest.mark.parametrize(
    "value", [{"kind": "affine"}, {"kind": "constant", "seconds": 1.0, "speed": 2}, {"kind": "x"}, {}]
)
def test_latency_from_json_refuses_what_it_does_not_know(value: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"does not fit its kind|kind must be"):
        latency_from_json(value)


def test_a_quoted_number_is_no_number() -> None:
    with pytest.raises(ValueError, match=r"latency fixed_seconds must be a number, got '0\.02'"):
        latency_from_json({"kind": "affine", "fixed_seconds": "0.02"})
