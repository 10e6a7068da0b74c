"""Engines' knobs: what an engine draws from them is what was asked for, or the knob says that it is not."""

from __future__ import annotations

import json
import shlex

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.acceptance.laws import AcceptanceLaw, check_marginal, iid, marginal_of, minimum_variance
from analysis.acceptance.synthetic import ENGINES, Knob, knobs


def drawn_by(knob: Knob, gamma: int) -> list[float]:
    """The marginal acceptance that an engine draws from its knob, worked out from the engine's own rules."""
    settings = knob.settings
    if "synthetic_acceptance_rates" in settings:  # vLLM, and llama.cpp below: marginal as given
        return list(settings["synthetic_acceptance_rates"])
    if "--spec-synth-rates" in settings:
        return [float(rate) for rate in str(settings["--spec-synth-rates"]).split(",")]
    if "--spec-synth-len" in settings:  # the p with p + ... + p^gamma = length - 1, by 32 bisections
        low, high = 0.0, 1.0
        for _ in range(32):
            middle = (low + high) / 2
            short = sum(middle ** (i + 1) for i in range(gamma)) < float(str(settings["--spec-synth-len"])) - 1
            low, high = (middle, high) if short else (low, middle)
        return [low ** (i + 1) for i in range(gamma)]
    if "--aic-nextn-accept-rates" in settings:  # conditional, filled up with 0
        rates = [float(rate) for rate in str(settings["--aic-nextn-accept-rates"]).split(",")]
        return np.cumprod(rates + [0.0] * (gamma - len(rates))).tolist()
    accepted = next(
        float(str(settings[name])) - bonus
        for name, bonus in (
            ("synthetic_acceptance_length", 1),
            ("SGLANG_SIMULATE_ACC_LEN", 1),
            ("TLLM_SPEC_DECODE_FORCE_NUM_ACCEPTED_TOKENS", 0),
            ("--nextn-accepted", 0),
        )
        if name in settings
    )
    whole = int(accepted)  # always accepted, and one more with the chance of the fraction
    return ([1.0] * whole + [accepted - whole] + [0.0] * gamma)[:gamma]


LAWS = [
    iid(0.7, 5),
    iid(1.0, 3),
    minimum_variance(2.6, 3),
    minimum_variance(3.0, 4),
    AcceptanceLaw("measured", (0.8, 0.56, 0.1)),
]


@pytest.mark.parametrize("law", LAWS, ids=lambda law: f"{law.name}-{law.mean_length:.2f}")
@pytest.mark.parametrize("engine", ENGINES)
def test_engines_draw_the_mean_length_and_say_when_not_the_law(engine: str, law: AcceptanceLaw) -> None:
    """A mean with or without the bonus token, or marginal rates for conditional ones, would miss the mean."""
    (knob,) = knobs(law, engine)
    drawn = drawn_by(knob, law.gamma)
    assert 1 + sum(drawn) == pytest.approx(law.mean_length, abs=1e-8)
    if engine == "aiconfigurator":  # it draws nothing
        assert (knob.law, knob.same_law) == ("mean only", False)
    else:
        assert knob.same_law == (drawn == pytest.approx(law.marginal, abs=1e-8))


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=12))
def test_rates_for_engines_never_rise(conditional: list[float]) -> None:
    """vLLM and llama.cpp refuse rates that rise, be it by rounding."""
    law = AcceptanceLaw("measured", marginal_of(conditional))
    for engine in ("vllm", "llama.cpp"):
        check_marginal(drawn_by(knobs(law, engine)[0], law.gamma))


def test_vllm_s_flag_is_json_that_a_shell_passes_on() -> None:
    (knob,) = knobs(minimum_variance(2.6, 3), "vllm")
    flag, text = shlex.split(knob.text)
    assert flag == "--speculative-config"
    assert json.loads(text) == {
        "num_speculative_tokens": 3,
        "rejection_sample_method": "synthetic",
        "synthetic_acceptance_length": 2.6,
    }


def test_what_an_engine_cannot_do_is_said() -> None:
    (forced,) = knobs(iid(0.0, 4), "tensorrt-llm")
    assert forced.text == ""
    assert "cannot be forced" in forced.note
    (long,) = knobs(iid(0.7, 6), "dynamo")
    assert long.text == ""
    assert "1 to 5 tokens" in long.note


def test_an_unknown_engine_is_one_clear_error() -> None:
    with pytest.raises(ValueError, match="unknown engine 'exllama'; known: all, vllm"):
        knobs(iid(0.5, 4), "vllm,exllama")
