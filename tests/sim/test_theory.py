import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.theory import (
    acceptance_rate,
    best_gamma,
    divergence_lk,
    expected_tokens,
    expected_tokens_per_position,
    operations_increase,
    pays,
    source_approximation,
    source_table,
    speedup,
    speedup_bound,
)

ALPHAS = st.floats(0, 1)
GAMMAS = st.integers(0, 64)


def simplex(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.dirichlet(np.ones(shape[-1]), size=shape[:-1])


def test_acceptance_rate_is_the_overlap_by_hand() -> None:
    assert acceptance_rate([0.5, 0.3, 0.2], [0.2, 0.2, 0.6]) == pytest.approx(0.6, abs=1e-15)
    assert acceptance_rate([1.0, 0.0], [0.0, 1.0]) == 0.0


def test_acceptance_rate_is_what_rejection_sampling_accepts() -> None:
    """The sum over x of q(x) min(1, p(x)/q(x)), enumerated."""
    rng = np.random.default_rng(0)
    p, q = simplex(rng, 7, 3, 11), simplex(rng, 7, 3, 11)
    assert acceptance_rate(p, q).shape == (7, 3)
    np.testing.assert_allclose(acceptance_rate(p, q), (q * np.minimum(1, p / q)).sum(axis=-1), rtol=1e-12)


def test_divergence_lk_is_a_symmetric_distance_to_the_midpoint() -> None:
    rng = np.random.default_rng(1)
    p, q = simplex(rng, 20, 9), simplex(rng, 20, 9)
    np.testing.assert_allclose(divergence_lk(p, q), np.abs(p - (p + q) / 2).sum(axis=-1), atol=1e-12)
    np.testing.assert_array_equal(divergence_lk(p, q), divergence_lk(q, p))
    np.testing.assert_allclose(divergence_lk(p, p), 0, atol=1e-12)


@given(ALPHAS, GAMMAS)
def test_expected_tokens_is_the_sum_of_powers(alpha: float, gamma: int) -> None:
    """Eq. 1 without its division, also where that loses every digit."""
    assert expected_tokens(alpha, gamma) == pytest.approx(math.fsum(alpha**i for i in range(gamma + 1)), rel=1e-13)


def test_expected_tokens_is_exact_at_the_ends_and_broadcasts() -> None:
    np.testing.assert_array_equal(expected_tokens([[0.0], [1.0]], [0, 1, 7]), [[1, 1, 1], [1, 2, 8]])
    assert isinstance(expected_tokens(0.8, 5), float)


@given(ALPHAS, GAMMAS)
def test_equal_positions_give_eq_1(alpha: float, gamma: int) -> None:
    assert expected_tokens_per_position(np.full(gamma, alpha)) == pytest.approx(
        expected_tokens(alpha, gamma), rel=1e-12
    )


@pytest.mark.parametrize(
    ("alpha", "gamma", "operations", "faster"),
    [
        (0.6, 2, 1.53, 1.96),
        (0.7, 3, 1.58, 2.53),
        (0.8, 2, 1.23, 2.44),
        (0.8, 5, 1.63, 3.69),
        (0.9, 2, 1.11, 2.71),
        (0.9, 10, 1.60, 6.86),
    ],
)
def test_leviathan_table_1_follows_from_theorems_3_8_and_3_11(
    alpha: float, gamma: int, operations: float, faster: float
) -> None:
    """The paper's Table 1, whose draft is free."""
    assert round(float(speedup(alpha, gamma, 0.0)), 2) == faster
    assert round(float(operations_increase(alpha, gamma, 0.0)), 2) == operations


@given(ALPHAS, st.floats(0, 2))
def test_corollary_3_9_is_the_speedup_at_gamma_1_and_is_reached(alpha: float, cost: float) -> None:
    bound = speedup_bound(alpha, cost)
    assert bound == pytest.approx(speedup(alpha, 1, cost), rel=1e-12)
    if pays(alpha, cost):
        assert speedup(alpha, max(1, best_gamma(alpha, cost)), cost) >= bound * (1 - 1e-12)
    else:
        assert np.all(speedup(alpha, np.arange(1, 65), cost) <= 1 + 1e-12)


def test_a_dearer_verification_shrinks_the_speedup_by_its_share() -> None:
    assert speedup(0.8, 5, 0.05, 1.5) == pytest.approx(3.68928 / 1.75, rel=1e-12)


def test_best_gamma_is_the_best_of_all() -> None:
    assert best_gamma(0.8, 0.05) == 1 + int(np.argmax(speedup(0.8, np.arange(1, 65), 0.05)))
    assert best_gamma(0.04, 0.05) == 0, "no draft pays"
    assert best_gamma(1.0, 0.0, max_gamma=20) == 20, "longer is always better"
    assert best_gamma(0.8, 0.0, lambda n: 1.0 + 0.4 * (n - 1)) < best_gamma(0.8, 0.0)
    assert best_gamma(0.8, 0.05, 5.0) == 0, "verification costs what the longest draft emits"


def test_source_table_prints_the_sources_numbers_beside_its_formula_and_the_exact_ones() -> None:
    table = source_table()
    assert table["printed"].tolist() == [2.1, 2.5, 2.5, 3.3]
    np.testing.assert_allclose(table["formula"], [2.10526, 2.58065, 2.5, 3.33333], atol=5e-6)
    np.testing.assert_allclose(table["exact"], [2.7731, 3.19882, 3.3616, 4.32891], atol=5e-6)
    off = (table["printed"] - table["formula"]).abs() > 0.05
    assert table.loc[off, ["alpha", "gamma"]].to_numpy().tolist() == [[0.7, 8.0]], "the one number that is misprinted"


@pytest.mark.parametrize("alpha", [-0.1, 1.1, 80, math.nan, math.inf])
def test_alpha_outside_the_unit_interval_is_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match=rf"alpha must be in \[0, 1\], got {alpha}.*probability"):
        expected_tokens(alpha, 5)


@pytest.mark.parametrize("gamma", [-1, 2.5, math.nan, math.inf])
def test_gamma_that_is_no_length_is_refused(gamma: float) -> None:
    with pytest.raises(ValueError, match=f"gamma must be a whole number >= 0, got {gamma:g}; 0 means autoregressive"):
        speedup(0.5, gamma, 0.1)


def test_other_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"cost_ratio must be finite and >= 0, got -0\.1"):
        speedup(0.5, 1, -0.1)
    with pytest.raises(ValueError, match="verify_ratio must be > 0"):
        speedup(0.5, 1, 0.1, 0)
    with pytest.raises(ValueError, match=r"gamma must be >= 1.*expected_tokens"):
        source_approximation(0.5, 0)
    with pytest.raises(ValueError, match=r"q must sum to 1 .* got 2\.0; apply a softmax"):
        acceptance_rate([0.5, 0.5], [1.0, 1.0])
    with pytest.raises(ValueError, match="one vocabulary, got 2 and 3"):
        acceptance_rate([0.5, 0.5], [0.2, 0.3, 0.5])
    with pytest.raises(ValueError, match="vocabulary axis"):
        acceptance_rate(1.0, 1.0)
