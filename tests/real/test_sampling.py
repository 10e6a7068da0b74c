from __future__ import annotations

import pytest
import torch
from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from real.sampling import SamplingSettings, probabilities

LOGITS = torch.randn(7, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3


@pytest.mark.parametrize(
    ("settings", "warpers"),
    [
        (SamplingSettings(temperature=0.7), [TemperatureLogitsWarper(0.7)]),
        (SamplingSettings(top_k=5), [TopKLogitsWarper(5)]),
        (SamplingSettings(top_p=0.8), [TopPLogitsWarper(0.8)]),
        (SamplingSettings(min_p=0.1), [MinPLogitsWarper(0.1)]),
        (
            SamplingSettings(temperature=1.3, top_k=20, top_p=0.9, min_p=0.02),
            [TemperatureLogitsWarper(1.3), TopKLogitsWarper(20), TopPLogitsWarper(0.9), MinPLogitsWarper(0.02)],
        ),
    ],
    ids=["temperature", "top_k", "top_p", "min_p", "all"],
)
def test_probabilities_equal_those_of_transformers_warpers(settings: SamplingSettings, warpers: list) -> None:
    expected = LOGITS
    for warper in warpers:
        expected = warper(None, expected)
    torch.testing.assert_close(probabilities(LOGITS, settings), expected.softmax(-1), rtol=1e-12, atol=0)


def test_probabilities_sum_to_one_and_keep_the_most_likely_token() -> None:
    p = probabilities(LOGITS, SamplingSettings(top_p=1e-9))
    assert torch.equal(p.sum(-1), torch.ones(7, dtype=torch.float64))
    assert torch.equal(p.argmax(-1), LOGITS.argmax(-1))
    assert ((p > 0).sum(-1) == 1).all()


def test_half_precision_logits_are_widened() -> None:
    assert probabilities(LOGITS.bfloat16(), SamplingSettings()).dtype == torch.float32


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"temperature": -1}, "temperature must be >= 0"),
        ({"temperature": float("nan")}, "temperature must be >= 0"),
        ({"top_k": 0}, "top_k must be >= 1, got 0"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\], got 0.0"),
        ({"min_p": 1.5}, r"min_p must be in \(0, 1\], got 1.5"),
    ],
)
def test_settings_out_of_range_are_refused(bad: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        SamplingSettings(**bad)


def test_greedy_settings_have_no_distribution() -> None:
    with pytest.raises(ValueError, match="argmax"):
        probabilities(LOGITS, SamplingSettings(temperature=0))
