from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import expit

from analysis.fit.acceptance import AcceptanceCounts
from analysis.pooling import PooledRates, fit_offsets, pool

Array = NDArray[np.float64]
CATEGORIES, PROMPTS, DEPTH = 6, 4, 5
OFFSET = np.array([0.0, 0.3, 0.4, 0.3, 0.2])


def draw_counts(
    rng: np.random.Generator, between: float, within: float, rounds: int = 12, prompts: int = PROMPTS
) -> tuple[AcceptanceCounts, Array]:
    """Counts of 6 categories, and their true kappas."""
    kappa = 0.8 + between * rng.standard_normal(CATEGORIES)
    eta = np.repeat(kappa, prompts) + within * rng.standard_normal(CATEGORIES * prompts)
    rate = expit(eta[:, None] + OFFSET)
    tested, passed = np.zeros_like(rate), np.zeros_like(rate)
    reached = np.full(len(eta), rounds)
    for k in range(DEPTH):
        tested[:, k] = reached
        reached = rng.binomial(reached, rate[:, k])
        passed[:, k] = reached
    names = tuple(str(i) for i in range(len(eta)))
    category = tuple(str(i) for i in np.repeat(np.arange(CATEGORIES), prompts))
    return AcceptanceCounts(names, category, tested, passed), kappa


def test_pooling_lowers_the_error_of_category_rates() -> None:
    """40 samples of 6 categories with 4 prompts each: the root mean square error falls by at least 15%.

    The rival is each category's own ratio of passes to tests at the first position.
    """
    rng = np.random.default_rng(0)
    pooled, alone = [], []
    for _ in range(40):
        counts, kappa = draw_counts(rng, between=0.4, within=0.35)
        rates = pool(counts, rng, draws=200)
        by_category = (part.reshape(CATEGORIES, PROMPTS, DEPTH)[:, :, 0].sum(axis=1) for part in _both(counts))
        passed, tested = by_category
        pooled.append(expit(rates.category_logit).mean(axis=0) - expit(kappa))
        alone.append(passed / tested - expit(kappa))
    assert np.sqrt(np.mean(np.square(pooled))) < 0.85 * np.sqrt(np.mean(np.square(alone)))


@pytest.mark.parametrize(("between", "within"), [(0.0, 0.0), (0.4, 0.35), (0.9, 0.8)])
def test_rates_of_new_prompts_are_covered(between: float, within: float) -> None:
    """The mean rate of 4 new prompts, 40 samples of 6 categories: the 95% interval covers at least 0.88 of them.

    Over 150 samples it covered 0.97, 0.93 and 0.92, with a standard error of 0.019 for 40 samples: below 0.88 in
    under 2% of seeds. The mutant, which forgets that prompts differ, covered 0.83 where they differ most.
    """
    rng = np.random.default_rng(17)
    covered: list[bool] = []
    mutant: list[bool] = []
    for _ in range(40):
        counts, kappa = draw_counts(rng, between, within)
        rates = pool(counts, rng, draws=200)
        blind = PooledRates(**(vars(rates) | {"within": np.zeros_like(rates.within)}))
        for c in range(CATEGORIES):
            truth = float(expit(kappa[c] + within * rng.standard_normal(4)).mean())
            for model, hits in ((rates, covered), (blind, mutant)):
                means = model.new_prompts(rng, np.arange(200), str(c), 4, 1).mean(axis=(1, 2))
                low, high = np.quantile(means, [0.025, 0.975])
                hits.append(bool(low <= truth <= high))
    assert np.mean(covered) >= 0.88
    if within > 0.5:
        assert np.mean(mutant) < 0.88


def test_offsets_are_not_taken_for_differences_between_prompts() -> None:
    """Very unlike prompts: raw pass rates rise with position by survival alone, fitted offsets do not.

    1980 prompts of 12 rounds: offsets within 0.12 of the truth, above 4 standard errors of each.
    """
    counts, _ = draw_counts(np.random.default_rng(2), between=0.0, within=1.2, prompts=330)
    offset, deviation, share = fit_offsets(counts)
    passed, tested = _both(counts)
    raw = passed.sum(axis=0) / tested.sum(axis=0)
    naive = np.log(raw / (1 - raw)) - np.log(raw[0] / (1 - raw[0]))
    assert np.abs(offset - OFFSET).max() < 0.12
    assert np.abs(naive - OFFSET).max() > 0.3
    assert (deviation[1:] < 0.1).all()
    np.testing.assert_allclose(share.sum(), 1)


def test_positions_beyond_calibration_have_the_last_rate() -> None:
    rng = np.random.default_rng(3)
    rates = pool(draw_counts(rng, 0.4, 0.35)[0], rng, draws=50)
    deep = rates.new_prompts(rng, np.arange(50), "0", 3, 9)
    assert deep.shape == (50, 3, 9)
    np.testing.assert_array_equal(deep[..., 5:], np.repeat(deep[..., 4:5], 4, axis=-1))


def test_an_unknown_category_is_drawn_from_those_known_and_is_less_certain() -> None:
    rng = np.random.default_rng(4)
    rates = pool(draw_counts(rng, 0.8, 0.2, prompts=12)[0], rng, draws=2000)
    known = [rates.new_prompts(rng, np.arange(2000), str(c), 1, 1).std() for c in range(CATEGORIES)]
    unknown = rates.new_prompts(rng, np.arange(2000), "poetry", 1, 1)
    assert unknown.std() > max(known)
    assert abs(float(unknown.mean()) - np.mean([rates.category_rate(str(c)).mean() for c in range(CATEGORIES)])) < 0.08


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_drafts_that_always_fail_or_always_pass_are_handled(share: float) -> None:
    tested = np.full((8, 2), 15.0)
    counts = AcceptanceCounts(tuple("abcdefgh"), tuple("aabbccdd"), tested, share * tested)
    rates = pool(counts, np.random.default_rng(5), draws=100)
    assert abs(rates.category_rate("a").mean() - share) < 0.1
    assert np.isfinite(rates.offset).all()


def test_a_weighted_test_counts_as_so_many() -> None:
    tested, passed = np.full((6, 1), 20.0), np.full((6, 1), 14.0)
    names, category = tuple("abcdef"), tuple("aabbcc")
    once = pool(AcceptanceCounts(names, category, 4 * tested, 4 * passed), np.random.default_rng(6))
    weighted = pool(AcceptanceCounts(names, category, tested, passed, weight=4.0), np.random.default_rng(6))
    np.testing.assert_allclose(weighted.category_logit, once.category_logit)


def _both(counts: AcceptanceCounts) -> tuple[Array, Array]:
    return counts.passed, counts.tested
