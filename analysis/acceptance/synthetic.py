"""Engines' knobs for synthetic acceptance: rounds accept by chance, so that speed is measured at a known acceptance.

Checked against public sources: vLLM's SpeculativeConfig (vllm-project/vllm#40662), llama.cpp's common/speculative.cpp
(ggml-org/llama.cpp#27711; merged as --spec-synth-*), SGLang's spec_utils.py, TensorRT-LLM's
_torch/speculative/interface.py, aiconfigurator 0.12's command line, and Dynamo's mocker (common/speculative.rs). They
differ in whether the bonus token counts, in marginal or conditional rates, and in the law drawn for a mean length.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from analysis.acceptance.laws import SAME, AcceptanceLaw, minimum_variance

MEAN_ONLY = "mean only"
DECIMALS = 12
"""of the numbers given to engines"""
DYNAMO_LONGEST_DRAFT = 5
"""positions that Dynamo's mocker draws; it refuses a longer draft"""


@dataclass(frozen=True)
class Knob:
    """What to set in one engine."""

    engine: str
    kind: str
    """'flags' of its command line, or 'environment' variables"""
    settings: dict[str, object]
    """names and values; empty where the engine cannot draw such acceptance"""
    text: str
    """the same, to paste; empty where `settings` is"""
    law: str
    """the law that the engine then draws: a name of `acceptance_laws.LAWS`, or 'mean only'"""
    same_law: bool
    """whether that is the law asked for, and not only one with the same mean length"""
    note: str


def knobs(law: AcceptanceLaw, engines: str = "all") -> list[Knob]:
    """What to set so that engines accept as `law` does, or as nearly as they can.

    Args:
        law: acceptance at the draft length that the engine will use.
        engines: names of ENGINES with commas between, or 'all'.

    Raises:
        ValueError: an engine is unknown.
    """
    names = list(ENGINES) if engines == "all" else [name.strip().lower() for name in engines.split(",")]
    unknown = [name for name in names if name not in ENGINES]
    if unknown:
        raise ValueError(f"unknown engine '{unknown[0]}'; known: all, {', '.join(ENGINES)}")
    return [ENGINES[name](law) for name in names]


def _vllm(law: AcceptanceLaw) -> Knob:
    settings: dict[str, object] = {"num_speculative_tokens": law.gamma, "rejection_sample_method": "synthetic"}
    if law.name == "minimum-variance":
        settings["synthetic_acceptance_length"] = round(law.mean_length, DECIMALS)
        note = "a length counts the bonus token, and vLLM draws the minimum-variance law for it"
    else:
        settings["synthetic_acceptance_rates"] = [round(rate, DECIMALS) for rate in law.marginal]
        note = "rates are marginal, one for each drafted token; synthetic_acceptance_length would draw another law"
    note += "; add the method and model of the draft"
    return Knob("vllm", "flags", settings, f"--speculative-config '{json.dumps(settings)}'", law.name, True, note)


def _llama_cpp(law: AcceptanceLaw) -> Knob:
    settings: dict[str, object] = {"--spec-draft-n-max": law.gamma}
    if law.name == "iid":
        settings["--spec-synth-len"] = round(law.mean_length, DECIMALS)
        note = "a length counts the bonus token, and llama.cpp draws a constant conditional acceptance for it"
    else:
        settings["--spec-synth-rates"] = _listed(law.marginal)
        note = "rates are marginal, as many as the draft can be long"
    note += "; before their merge these were --spec-synthetic-acceptance-length and -rates"
    return Knob("llama.cpp", "flags", settings, _flags(settings), law.name, True, note)


def _sglang(law: AcceptanceLaw) -> Knob:
    settings: dict[str, object] = {
        "SGLANG_SIMULATE_ACC_LEN": round(law.mean_length, DECIMALS),
        "SGLANG_SIMULATE_ACC_METHOD": "match-expected",
        "SGLANG_SIMULATE_ACC_TOKEN_MODE": "real-draft-token",
    }
    note = (
        f"for --speculative-num-steps {law.gamma}; the length counts the bonus token, "
        "and one draw a step holds for the whole batch"
    )
    return _minimum_variance_knob("sglang", law, settings, note)


def _tensorrt_llm(law: AcceptanceLaw) -> Knob:
    if round(law.mean_accepted, DECIMALS) == 0:
        return Knob(
            "tensorrt-llm", "environment", {}, "", "", False,
            "0 accepted tokens cannot be forced: the variable's 0 turns it off",
        )  # fmt: skip
    settings: dict[str, object] = {"TLLM_SPEC_DECODE_FORCE_NUM_ACCEPTED_TOKENS": round(law.mean_accepted, DECIMALS)}
    note = "counts accepted draft tokens only: the mean length less 1"
    if abs(law.mean_accepted - round(law.mean_accepted)) > SAME:
        note += "; a fraction works where draft and target are one engine, the two-engine path takes whole numbers only"
    return _minimum_variance_knob("tensorrt-llm", law, settings, note)


def _aiconfigurator(law: AcceptanceLaw) -> Knob:
    settings: dict[str, object] = {"--nextn": law.gamma, "--nextn-accepted": round(law.mean_accepted, DECIMALS)}
    note = "counts accepted draft tokens only: the mean length less 1; nothing else of the law is used"
    return Knob("aiconfigurator", "flags", settings, _flags(settings), MEAN_ONLY, False, note)


def _dynamo(law: AcceptanceLaw) -> Knob:
    if law.gamma > DYNAMO_LONGEST_DRAFT:
        note = f"Dynamo takes drafts of 1 to {DYNAMO_LONGEST_DRAFT} tokens, this one has {law.gamma}"
        return Knob("dynamo", "flags", {}, "", "", False, note)
    rates = [rate or 0.0 for rate in law.conditional]
    settings: dict[str, object] = {"--aic-nextn": law.gamma, "--aic-nextn-accept-rates": _listed(rates)}
    note = "rates are conditional; positions left out count as 0"
    return Knob("dynamo", "flags", settings, _flags(settings), law.name, True, note)


def _minimum_variance_knob(engine: str, law: AcceptanceLaw, settings: dict[str, object], note: str) -> Knob:
    """Environment variables of an engine that knows the mean only and draws the minimum-variance law for it."""
    drawn = minimum_variance(law.mean_length, law.gamma)
    same = all(abs(one - other) <= SAME for one, other in zip(law.marginal, drawn.marginal, strict=True))
    if not same:
        note += (
            f"; its variance of accepted tokens is {drawn.variance:.3g}, for {law.variance:.3g} of the law asked for"
        )
    text = " ".join(f"{name}={value}" for name, value in settings.items())
    return Knob(engine, "environment", settings, text, drawn.name, same, note)


def _listed(rates: Sequence[float]) -> str:
    return ",".join(str(round(rate, DECIMALS)) for rate in rates)


def _flags(settings: dict[str, object]) -> str:
    return " ".join(f"{name} {value}" for name, value in settings.items())


ENGINES: dict[str, Callable[[AcceptanceLaw], Knob]] = {
    "vllm": _vllm,
    "llama.cpp": _llama_cpp,
    "sglang": _sglang,
    "tensorrt-llm": _tensorrt_llm,
    "aiconfigurator": _aiconfigurator,
    "dynamo": _dynamo,
}
