"""Tests for real vocabularies and for greedy outputs.

False-alarm rate: 1e-9 for each check; every leak below is one that its sample sees with more than 99% power.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from analysis.losslessness import check_acceptance, check_tokens, classify_divergence
from analysis.losslessness.rows import Floats, Ints

VOCAB, CHUNK = 3000, 250


def steps(kind: str, count: int, seed: int = 0, with_q: bool = True) -> Iterator[tuple[Floats, Floats | None, Ints]]:
    """Laws as peaked as a language model's, and tokens drawn from p or from what a bug makes of it."""
    rng = np.random.default_rng(seed)
    for _ in range(count // CHUNK):
        logits = 2.0 * rng.gumbel(size=(CHUNK, VOCAB))
        p, q = softmax(logits), softmax(logits + 0.7 * rng.standard_normal(logits.shape))
        law = {
            "correct": p,
            "leak": p + 0.4 * (q - p),
            "temperature": softmax(1.25 * logits),
            "truncated": np.where(p >= np.sort(p, axis=-1)[:, -3, None], p, 0.0),
            "one token missing": np.where(np.arange(VOCAB) == p.argmax(-1)[:, None], 0.2 * p, p),
        }[kind]
        cumulative = np.cumsum(law, axis=-1)
        yield p, q if with_q else None, (cumulative <= rng.random((CHUNK, 1)) * cumulative[:, -1:]).sum(-1)


def softmax(logits: Floats) -> Floats:
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(weights / weights.sum(-1, keepdims=True))


@pytest.mark.parametrize("with_q", [True, False])
def test_tokens_of_the_target_pass_at_a_large_vocabulary(with_q: bool) -> None:
    result = check_tokens(steps("correct", 2000, with_q=with_q))
    assert result.lossless
    assert result.detectable_tv < 0.25


@pytest.mark.parametrize(
    ("kind", "count"), [("leak", 4000), ("temperature", 2000), ("truncated", 2000), ("one token missing", 2000)]
)
def test_a_bug_shows_at_a_large_vocabulary(kind: str, count: int) -> None:
    assert not check_tokens(steps(kind, count)).lossless


def test_tokens_that_repeat_the_noise_of_the_step_before_are_found() -> None:
    """Each token is right by itself: every second step reuses the uniform of the step before."""

    def stale() -> Iterator[tuple[Floats, None, Ints]]:
        rng = np.random.default_rng(3)
        p = softmax(rng.gumbel(size=(2000, 50)) * 0.2)
        uniform = np.repeat(rng.random(1000), 2)[:, None]
        yield p, None, (np.cumsum(p, axis=-1) <= uniform).sum(-1).clip(max=49)

    result = check_tokens(stale())
    assert not result.lossless
    assert "after the token before" in result.worst_cell["test"]


def test_a_token_of_probability_zero_is_never_excused() -> None:
    p = np.tile([0.5, 0.5, 0.0], (10, 1))
    result = check_tokens([(p, None, np.array([0, 1, 0, 1, 2, 1, 0, 1, 0, 1]))])
    assert not result.lossless
    assert result.worst_cell["test"] == "token of probability zero"


@pytest.mark.parametrize(
    ("p", "tokens", "message"),
    [
        (np.full((2, 3), 0.5), np.array([0, 1]), r"p row \(0,\)"),
        (np.full((2, 2), 0.5), np.array([0, 1, 1]), r"p must be \[steps, vocab\] for 3 tokens"),
        (np.full((2, 2), 0.5), np.array([0, 7]), r"tokens must be in 0..1"),
    ],
)
def test_bad_steps_are_refused(p: Floats, tokens: Ints, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_tokens([(p, None, tokens)])


def test_no_steps_are_refused() -> None:
    with pytest.raises(ValueError, match="no steps to check"):
        check_tokens([])


def test_the_accepted_count_is_held_against_the_coupling() -> None:
    rng = np.random.default_rng(4)
    chances = rng.uniform(0.3, 0.95, size=20_000)
    assert check_acceptance(chances, rng.random(20_000) < chances).p_value > 1e-9
    more = check_acceptance(chances, rng.random(20_000) < chances + 0.2 * (1 - chances))
    assert more.p_value < 1e-9
    assert more.tv > 0
    assert check_acceptance(np.array([0.0, 1.0]), np.array([True, True])).log_e == np.inf


def test_chances_outside_the_unit_interval_are_refused() -> None:
    with pytest.raises(ValueError, match=r"chances must be \[n\] in \[0, 1\]"):
        check_acceptance(np.array([1.5]), np.array([True]))


# ---- greedy


def test_equal_outputs_need_no_logits() -> None:
    assert classify_divergence([1, 2, 3], [1, 2, 3], None).kind == "identical"


@pytest.mark.parametrize(
    ("gap", "dtype", "kind"),
    [
        (1e-5, "float32", "numeric tie"),
        (1e-5, "float64", "bug"),
        (0.05, "float32", "bug"),
        (0.05, "bfloat16", "numeric tie"),
        (0.0, "float64", "numeric tie"),
    ],
)
def test_a_gap_is_a_tie_only_if_the_dtype_explains_it(gap: float, dtype: str, kind: str) -> None:
    logits = np.array([3.0, 20.0, 20.0 - gap, -5.0])
    found = classify_divergence([7, 1, 4], [7, 2, 4], logits, dtype=dtype)
    assert (found.kind, found.position, found.tokens) == (kind, 1, (1, 2))
    assert found.logit_gap == pytest.approx(gap, abs=1e-12)


def test_the_noise_between_two_batch_shapes_bounds_the_tie() -> None:
    logits = np.array([3.0, 20.0, 19.9, -5.0])
    close = logits + np.array([0.0, -0.06, 0.06, 0.0])
    assert classify_divergence([1], [2], logits, close, dtype="bfloat16").kind == "numeric tie"
    assert classify_divergence([1], [2], logits, logits + 0.01, dtype="bfloat16").kind == "bug"
    other_context = classify_divergence([1], [2], logits, logits[::-1], dtype="bfloat16")
    assert other_context.kind == "bug"
    assert "did not see the same context" in other_context.verdict


def test_an_output_that_ends_early_is_a_bug() -> None:
    found = classify_divergence([1, 2, 3], [1, 2], None)
    assert (found.kind, found.position, found.tokens) == ("bug", 2, (3, None))


def test_a_reference_that_is_not_greedy_is_a_bug() -> None:
    assert "prefer 2" in classify_divergence([1], [2], np.array([0.0, 1.0, 9.0])).verdict


def test_an_unknown_dtype_or_missing_logits_are_refused() -> None:
    with pytest.raises(ValueError, match="dtype must be one of"):
        classify_divergence([1], [2], np.array([0.0, 1.0, 2.0]), dtype="int8")
    with pytest.raises(ValueError, match="outputs differ at 0"):
        classify_divergence([1], [2], None)
