"""Does the harness catch every mutant and pass every correct sampler?

False-alarm rate: each check of a correct sampler, 1e-9. A mutant's check is deterministic, its seed being fixed.
"""

from __future__ import annotations

import numpy as np
import pytest

from analysis.losslessness import CORRECT, EXACT_TOLERANCE, Rule, chain_sampler, check
from analysis.losslessness.rules import ratio, residual
from analysis.losslessness.selftest import first_token_chi_square, largest_exact_distance
from tests.statistical.mutants import MUTANTS

REDUCED = 150_000  # rounds for each correct sampler; the default budget is 4.9 million


@pytest.mark.parametrize("name", MUTANTS)
def test_every_mutant_is_caught(name: str) -> None:
    result = check(MUTANTS[name].sampler, seed=1)
    assert not result.lossless, result.table()
    assert result.p_value <= 1e-9


@pytest.mark.parametrize("name", [name for name, mutant in MUTANTS.items() if mutant.rule is not None])
def test_every_mutant_that_is_a_pure_rule_is_caught_exactly(name: str) -> None:
    rule = MUTANTS[name].rule
    assert rule is not None
    assert largest_exact_distance(rule, vocab=4, gamma=2) > 1e6 * EXACT_TOLERANCE


@pytest.mark.parametrize("name", CORRECT)
def test_every_correct_sampler_passes(name: str) -> None:
    result = check(CORRECT[name], max_samples=REDUCED, seed=2)
    assert result.lossless, result.verdict


@pytest.mark.parametrize(("gamma", "vocab"), [(1, 3), (2, 5), (7, 8), (3, 40)])
def test_other_draft_lengths_and_vocabularies(gamma: int, vocab: int) -> None:
    assert check(CORRECT["rejection_sampling"], gamma, vocab, max_samples=40_000).lossless
    for name in ("bonus missing", "resample from p", "noise shared across rounds", "batch rows mixed up"):
        assert not check(MUTANTS[name].sampler, gamma, vocab, max_samples=600_000).lossless, name


def test_the_usual_first_token_test_misses_what_the_harness_catches() -> None:
    """The reason for the harness: mutants whose first token is distributed perfectly."""
    for name in ("bonus from q", "noise shared across rounds", "stale draft cache", "one uniform for the whole block"):
        statistic, threshold = first_token_chi_square(MUTANTS[name].sampler, np.random.default_rng(3))
        assert statistic < threshold, name


def test_an_autoregressive_sampler_is_lossless_too() -> None:
    """One token a round, none drafted: nothing to find, and nothing said about positions never reached."""

    def one_by_one(p: np.ndarray, q: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
        tokens = np.full((n, p.shape[-2]), -1)
        cumulative = np.cumsum(np.broadcast_to(p[..., 0, :], (n, p.shape[-1])), axis=-1)
        tokens[:, 0] = (cumulative < rng.random((n, 1)) * cumulative[:, -1:]).sum(1)
        return tokens

    result = check(one_by_one, max_samples=50_000)
    assert result.lossless
    assert result.detectable_tv == 1.0
    assert "reached too seldom" in result.verdict


def test_a_leak_of_one_in_a_thousand_rejects_is_found_within_the_default_budget() -> None:
    def leaky(p: np.ndarray, q: np.ndarray, ids: np.ndarray) -> np.ndarray:
        chances = np.minimum(1.0, ratio(p, q, ids))
        return np.cumprod(chances + 0.001 * (1 - chances), axis=1)

    assert not check(chain_sampler(Rule(leaky, residual)), seed=4).lossless
