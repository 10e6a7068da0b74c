import itertools

import numpy as np
import pytest

from sim.architectures.routing import distinct_experts, inclusion_probabilities


def enumerated(weights: np.ndarray, chosen: int) -> np.ndarray:
    """Chance of each expert to be chosen, summed over every ordered draw without replacement."""
    inclusion = np.zeros(len(weights))
    for order in itertools.permutations(range(len(weights)), chosen):
        left, chance = set(range(len(weights))), 1.0
        for expert in order:
            chance *= weights[expert] / sum(weights[other] for other in left)
            left.remove(expert)
        inclusion[list(order)] += chance
    return inclusion


@pytest.mark.parametrize("chosen", [1, 2, 3, 4, 5])
def test_inclusion_is_that_of_draws_without_replacement(chosen: int) -> None:
    for weights in ([1.0, 2.0, 3.0, 0.5, 7.0], [1e-6, 1.0, 1e6, 3.0, 0.2], [5.0, 5.0, 5.0, 5.0, 5.0]):
        np.testing.assert_allclose(
            inclusion_probabilities(5, chosen, weights), enumerated(np.array(weights), chosen), rtol=1e-11
        )


@pytest.mark.parametrize(("experts", "per_token"), [(8, 2), (8, 8), (64, 6), (128, 8), (256, 8)])
@pytest.mark.parametrize("exponent", [1e-6, 0.5, 1.0, 2.0, 8.0])
def test_inclusion_sums_to_the_experts_of_a_token_and_falls_with_rank(
    experts: int, per_token: int, exponent: float
) -> None:
    inclusion = inclusion_probabilities(experts, per_token, exponent)
    assert inclusion.sum() == pytest.approx(per_token, abs=1e-9)
    assert inclusion.max() <= 1
    assert np.all(np.diff(inclusion) <= 1e-12)


def test_experts_that_nobody_likes_are_never_chosen() -> None:
    np.testing.assert_allclose(inclusion_probabilities(4, 2, [3.0, 0.0, 1e-9, 0.0]), [1, 0, 1, 0], atol=1e-12)
    assert inclusion_probabilities(4, 2, [3.0, 0.0, 1.0, 2.0])[1] == 0
    assert distinct_experts(4, 2, 10_000, [3.0, 0.0, 1.0, 2.0]) == pytest.approx(3, rel=1e-12)


def test_distinct_experts_matches_simulated_routers() -> None:
    """4,000 forwards of 6 tokens whose router takes the top 8 of log popularity plus Gumbel noise.

    The mean is within 4.5 standard errors: a false alarm in 150,000. Independent draws with the same mean, which ignore
    that an expert is chosen once, are further off than that.
    """
    rng = np.random.default_rng(0)
    experts, per_token, tokens, forwards = 128, 8, 6, 4000
    log_popularity = -1.2 * np.log(np.arange(1, experts + 1))
    scores = log_popularity + rng.gumbel(size=(forwards, tokens, experts))
    chosen = np.argpartition(scores, -per_token, axis=-1)[..., -per_token:].reshape(forwards, -1)
    touched = (np.diff(np.sort(chosen), axis=1) > 0).sum(axis=1) + 1
    error = touched.std(ddof=1) / forwards**0.5
    assert abs(distinct_experts(experts, per_token, tokens, 1.2) - touched.mean()) < 4.5 * error
    popularity = np.exp(log_popularity) / np.exp(log_popularity).sum()
    independent = (1 - (1 - popularity) ** (per_token * tokens)).sum()
    assert abs(independent - touched.mean()) > 4.5 * error


def test_uniform_routing_is_the_closed_form_and_the_limit_of_no_skew() -> None:
    tokens = np.array([0, 1, 2.5, 8, 1000])
    uniform = distinct_experts(128, 8, tokens)
    np.testing.assert_allclose(uniform, 128 * (1 - (1 - 8 / 128) ** tokens))
    np.testing.assert_allclose(uniform[:2], [0, 8], atol=1e-12)
    np.testing.assert_allclose(distinct_experts(128, 8, tokens, 1e-10), uniform, atol=1e-7)
    np.testing.assert_allclose(distinct_experts(128, 8, tokens, np.full(128, 0.3)), uniform, atol=1e-9)


def test_skew_touches_fewer_experts_and_more_tokens_touch_more() -> None:
    touched = np.array([distinct_experts(64, 6, np.arange(1, 40), s) for s in (0.0, 0.5, 1.0, 2.0)])
    np.testing.assert_allclose(touched[:, 0], 6, rtol=1e-12)
    assert np.all(np.diff(touched[:, 1:], axis=0) < 0)
    assert np.all(np.diff(touched, axis=1) > 0)


def test_distinct_experts_broadcasts_and_gives_a_float_for_a_number() -> None:
    assert isinstance(distinct_experts(8, 2, 3), float)
    assert isinstance(distinct_experts(8, 2, 3, 1.0), float)
    assert distinct_experts(8, 2, np.ones((2, 3)), 1.0).shape == (2, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((8, 0, 1), "experts per token must be 1 to the layer's 8 experts, got 0"),
        ((8, 9, 1), "got 9"),
        ((8, 2, -1), "tokens must be finite and >= 0, got -1"),
        ((8, 2, np.nan), "tokens must be finite"),
        ((8, 2, 1, -0.5), "Zipf exponent must be finite and >= 0, got -0.5"),
        ((256, 8, 1, 1000.0), "a Zipf exponent above 100"),
        ((3, 2, 1, [1.0, 2.0]), "one weight for each of 3 experts"),
        ((2, 1, 1, [1.0, -2.0]), "popularity must be finite and >= 0, got a least weight of -2"),
        ((3, 2, 1, [1.0, 0.0, 0.0]), "must be > 0 for the 2 experts of a token at least, got 1"),
    ],
)
def test_impossible_routing_is_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        distinct_experts(*arguments)
