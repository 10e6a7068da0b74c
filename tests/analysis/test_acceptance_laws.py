"""Laws of acceptance, conversions between units, and `specdec convert`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from analysis.acceptance.conversion import (
    Acceptance,
    convert,
    from_alpha,
    from_conditional,
    from_marginal,
    from_mean,
    from_ragged_mean,
    from_share,
    units,
)
from analysis.acceptance.laws import (
    AcceptanceLaw,
    alpha_of_mean,
    check_marginal,
    conditional_of,
    iid,
    marginal_of,
    minimum_variance,
)
from analysis.acceptance.synthetic import ENGINES
from sim.acceptance import PerPositionAcceptance
from sim.theory import expected_tokens, expected_tokens_per_position
from specdec_lab import main

ALPHAS = st.floats(0, 1)
GAMMAS = st.integers(1, 64)
RATES = st.lists(st.floats(0.01, 1), min_size=1, max_size=12)


@st.composite
def means(draw: st.DrawFn) -> tuple[float, int]:
    """A draft length and a mean length that it can have."""
    gamma = draw(GAMMAS)
    return draw(st.floats(1, gamma + 1)), gamma


@given(ALPHAS, GAMMAS)
def test_alpha_to_mean_length_and_back_is_exact(alpha: float, gamma: int) -> None:
    assert alpha_of_mean(float(expected_tokens(alpha, gamma)), gamma) == pytest.approx(alpha, abs=1e-12)


@given(st.floats(0.05, 0.999), st.floats(0.2, 60))
def test_alpha_follows_from_a_mean_of_draft_lengths_too(alpha: float, drafted: float) -> None:
    length = (1 - alpha ** (drafted + 1)) / (1 - alpha)
    assert float(expected_tokens(alpha_of_mean(length, drafted), 3)) == pytest.approx(
        float(expected_tokens(alpha, 3)), rel=1e-6
    )


def test_a_mean_length_of_short_drafts_is_not_taken_for_one_of_long_ones() -> None:
    """llama.cpp's own example: 35 rounds drafted 245 of up to 53 tokens and accepted 231, so tokens are nearly sure."""
    given_short = from_ragged_mean(266 / 35, 53, 7.0)
    assert given_short.law.gamma == 53
    assert given_short.law.alpha == pytest.approx(from_mean(266 / 35, 7).law.alpha)
    assert given_short.law.alpha > 0.98 > 0.87 > from_mean(266 / 35, 53).law.alpha
    assert "7 of 53 tokens" in given_short.warnings[0]
    with pytest.raises(ValueError, match=r"must be in \[1, 3.5\] at gamma 2.5, got 3.6"):
        from_ragged_mean(3.6, 4, 2.5)


@given(means(), st.sampled_from(["iid", "minimum-variance"]))
def test_every_law_has_the_mean_length_asked_for(mean: tuple[float, int], law: str) -> None:
    length, gamma = mean
    result = convert(from_mean(length, gamma), law).law
    assert result.name == law
    assert result.gamma == gamma
    assert result.mean_length == pytest.approx(length, abs=1e-12)
    check_marginal(result.marginal)


@given(RATES)
def test_conditional_to_marginal_and_back_is_the_same(conditional: list[float]) -> None:
    assert conditional_of(marginal_of(conditional)) == pytest.approx(conditional, rel=1e-12)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_marginal_to_conditional_and_back_is_the_same(rates: list[float]) -> None:
    marginal = sorted(rates, reverse=True)
    assert marginal_of(conditional_of(marginal)) == pytest.approx(marginal, rel=1e-12)


@given(RATES, st.sampled_from(["iid", "minimum-variance"]))
def test_another_law_keeps_the_mean_length(conditional: list[float], law: str) -> None:
    start = from_conditional(conditional)
    assert convert(start, law).law.mean_length == pytest.approx(start.law.mean_length, abs=1e-12)


@given(RATES, st.integers(1, 20))
def test_another_draft_length_goes_on_as_the_simulation_does(conditional: list[float], gamma: int) -> None:
    expected = PerPositionAcceptance(tuple(conditional)).expected_block_efficiency(gamma)
    assert convert(from_conditional(conditional), gamma=gamma).law.mean_length == pytest.approx(expected, rel=1e-12)


@settings(max_examples=60)
@given(means().filter(lambda mean: mean[1] <= 12))
def test_no_law_has_less_variance_than_minimum_variance(mean: tuple[float, int]) -> None:
    """The linear program over all laws with this mean finds nothing below it."""
    length, gamma = mean
    tokens = np.arange(gamma + 1)
    least = linprog(
        tokens.astype(np.float64) ** 2, A_eq=np.array([np.ones(gamma + 1), tokens]), b_eq=[1, length - 1], bounds=(0, 1)
    )
    assert least.status == 0
    law = minimum_variance(length, gamma)
    assert law.variance == pytest.approx(least.fun - (length - 1) ** 2, abs=1e-6)
    assert law.variance <= iid(alpha_of_mean(length, gamma), gamma).variance + 1e-9


@pytest.mark.parametrize(
    ("length", "gamma", "rates"),
    [
        (2.6, 3, [1.0, 0.6, 0.0]),
        (1.0, 3, [0.0, 0.0, 0.0]),
        (4.0, 3, [1.0, 1.0, 1.0]),
        (2.0, 3, [1.0, 0.0, 0.0]),
        (3.5, 4, [1.0, 1.0, 0.5, 0.0]),
    ],
)
def test_minimum_variance_is_vllm_s_schedule(length: float, gamma: int, rates: list[float]) -> None:
    """The cases of vLLM's own tests (tests/v1/spec_decode, vllm-project/vllm#40662)."""
    assert minimum_variance(length, gamma).marginal == pytest.approx(rates)


def test_iid_is_llama_cpp_s_schedule() -> None:
    """The case of llama.cpp's own tests (ggml-org/llama.cpp#27711): length 3.4 at 4 drafted tokens."""
    law = convert(from_mean(3.4, 4), "constant-conditional").law
    assert law.marginal == pytest.approx([0.80581, 0.64933, 0.52323, 0.42163], abs=1e-5)


def test_the_law_s_numbers_are_those_of_its_histogram() -> None:
    law = AcceptanceLaw("measured", (0.8, 0.56, 0.1))
    chances, tokens = np.array(law.histogram), np.arange(4)
    assert chances.sum() == pytest.approx(1)
    assert law.mean_accepted == pytest.approx(chances @ tokens)
    assert law.variance == pytest.approx(chances @ tokens**2 - (chances @ tokens) ** 2)
    assert law.mean_length == pytest.approx(float(expected_tokens_per_position([0.8, 0.7, 0.1 / 0.56])))
    values = units(law)
    assert values["accepted_per_drafted"] == pytest.approx(1.46 / 3)
    assert values["accepted_per_tested"] == pytest.approx(1.46 / 2.36)


def test_units_agree_with_each_other() -> None:
    """Every unit of iid tokens leads back to the same law."""
    law = from_alpha(0.7, 5).law
    ways = [
        from_mean(law.mean_length, 5),
        from_mean(law.mean_accepted, 5, bonus=False),
        from_share(law.mean_accepted / 5, 5),
        from_conditional([0.7] * 5),
        from_marginal(law.marginal),
    ]
    for way in ways:
        assert way.law.marginal == pytest.approx(law.marginal, rel=1e-12)


class TestWarnings:
    """What a conversion loses or assumes is said, and nothing else is."""

    def test_a_mean_length_says_how_much_it_leaves_open(self) -> None:
        """The extremes are fraction * (1 - fraction) and all or nothing."""
        assert "variance of accepted tokens can be 0.16 to 3.96" in from_mean(3.2, 4).warnings[0]

    def test_alpha_and_rates_by_position_lose_nothing(self) -> None:
        assert convert(from_alpha(0.7, 5)).warnings == ()
        assert convert(from_alpha(0.7, 5), "iid", 5).warnings == ()
        assert convert(from_conditional([0.6, 0.6])).warnings == ()

    @pytest.mark.parametrize(
        ("given", "law", "gamma", "says"),
        [
            (from_conditional([0.8, 0.5]), None, None, "eq. 1 with it is wrong at any other gamma"),
            (from_conditional([0.8, 0.5]), "iid", None, "keeps the mean length only: its marginals differ"),
            (from_conditional([0.8, 0.5]), None, 4, "positions from 2 on were not measured"),
            (from_conditional([0.8, 0.5]), None, 1, "the same tokens at the positions they share"),
            (from_mean(3.2, 4), None, 6, "was given at gamma 4"),
            (from_mean(3.2, 4, over_requests=True), None, None, "taken for one over rounds"),
            (from_share(0.5, 4), None, None, "every round is taken to draft 4 tokens"),
        ],
    )
    def test_losses_are_named(self, given: Acceptance, law: str | None, gamma: int | None, says: str) -> None:
        assert says in " ".join(convert(given, law, gamma).warnings)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda: from_alpha(1.2, 4), "alpha must be in [0, 1], got 1.2"),
        (lambda: from_alpha(0.5, 0), "gamma must be 1 to 1024 drafted tokens, got 0"),
        (lambda: from_mean(5.2, 4), "must be in [1, 5] at gamma 4, got 5.2"),
        (lambda: from_mean(0.7, 4), "is the bonus token not counted in it"),
        (lambda: from_mean(4.2, 4, bonus=False), "without the bonus token must be in [0, 4]"),
        (lambda: from_mean(float("nan"), 4), "got nan"),
        (lambda: from_marginal([0.5, 0.6]), "must not rise, got 0.5 then 0.6 at position 1"),
        (lambda: from_conditional([]), "gamma must be 1 to 1024"),
        (lambda: from_conditional([80.0, 70.0]), "give a probability, not a percentage"),
        (lambda: convert(from_alpha(0.5, 4), "geometric"), "law must be one of iid, minimum-variance"),
        (lambda: convert(from_mean(2.0, 4), "measured"), "needs acceptance by position"),
        (lambda: convert(Acceptance(iid(0.5, 4), True, one_draft_length=True), gamma=3), "measured_per_k"),
    ],
)
def test_what_cannot_be_is_one_clear_error(wrong: Any, says: str) -> None:
    with pytest.raises(ValueError, match=r".+") as raised:
        wrong()
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


def call(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["specdec", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


class TestCommand:
    """`specdec convert`."""

    def test_it_prints_all_units_and_knobs(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert call(monkeypatch, "convert", "--alpha", "0.7", "--gamma", "5", "--json") == 0
        result = json.loads(capsys.readouterr().out)
        assert result["mean_acceptance_length"] == pytest.approx(2.94117)
        assert set(result["knobs"]) == set(ENGINES)
        assert result["warnings"] == []
        assert call(monkeypatch, "convert", "--alpha", "0.7", "--gamma", "5", "--to", "sglang") == 0
        assert "SGLANG_SIMULATE_ACC_LEN=2.94117" in capsys.readouterr().out

    def test_the_bonus_token_is_counted_unless_said_otherwise(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        lengths = []
        for words in (("3.2",), ("2.2", "--without-bonus")):
            call(monkeypatch, "convert", "--mean-length", *words, "--gamma", "4", "--law", "minimum-variance", "--json")
            lengths.append(json.loads(capsys.readouterr().out)["mean_acceptance_length"])
        assert lengths == pytest.approx([3.2, 3.2])

    @pytest.mark.parametrize(
        ("words", "says"),
        [
            ((), "give one of --alpha"),
            (("--alpha", "0.7", "--marginal", "0.5", "--gamma", "1"), "got --alpha and --marginal"),
            (("--alpha", "0.7"), "--alpha needs the draft length: --gamma"),
            (("--mean-length", "6", "--gamma", "4"), "must be in [1, 5] at gamma 4, got 6.0"),
            (("--marginal", "0.5,0.6"), "must not rise"),
            (("--conditional", "0.5;0.6"), "numbers with commas"),
            (("--alpha", "0.7", "--gamma", "4", "--without-bonus"), "about --mean-length"),
            (("--alpha", "0.7", "--gamma", "4", "--out", "p.json"), "about --from FILE"),
            (("--from", "nowhere.json"), "nowhere.json"),
        ],
    )
    def test_bad_use_is_one_line_and_exit_code_two(
        self,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        tmp_path: Path,
        words: tuple[str, ...],
        says: str,
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert call(monkeypatch, "convert", *words) == 2
        error = capsys.readouterr().err
        assert says in error
        assert error.count("\n") == 1
        assert list(tmp_path.iterdir()) == []
