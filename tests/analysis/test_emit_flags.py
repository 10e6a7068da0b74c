"""Flags of serving engines: what they are told is what was planned."""

from __future__ import annotations

import json
import shlex
from typing import Any

import pytest
import yaml

from analysis.plan.emit_flags import METHODS, Speculate, emit
from analysis.plan.output import method_of, repository
from sim.trees import TokenTree

MODEL = "meta-llama/Llama-3.2-1B"
SCHEDULE = ((1, 16, 5), (17, 64, 2), (65, 512, 0))


def options(text: str) -> dict[str, str]:
    """Words of a shell as options and their values."""
    words = shlex.split(text)
    return dict(zip(words[::2], words[1::2], strict=True))


def vllm(asked: Speculate) -> dict[str, Any]:
    found = options(emit(asked)["vllm"])
    assert list(found) == ["--speculative-config"]
    config: dict[str, Any] = json.loads(found["--speculative-config"])
    return config


def test_vllm_is_told_the_draft_and_its_length_by_batch() -> None:
    assert vllm(Speculate("draft_model", 5, MODEL, schedule=SCHEDULE)) == {
        "method": "draft_model",
        "model": MODEL,
        "num_speculative_tokens": 5,
        "num_speculative_tokens_per_batch_size": [[1, 16, 5], [17, 64, 2], [65, 512, 0]],
    }


def test_vllm_gets_no_schedule_where_one_length_is_best_everywhere() -> None:
    assert vllm(Speculate("eagle3", 3, "some/head", schedule=((1, 200, 3),))) == {
        "method": "eagle3",
        "model": "some/head",
        "num_speculative_tokens": 3,
    }


def test_vllm_s_window_is_the_longest_of_the_schedule() -> None:
    assert vllm(Speculate("draft_model", 2, MODEL, schedule=SCHEDULE))["num_speculative_tokens"] == 5


def test_vllm_s_other_keys() -> None:
    assert vllm(Speculate("ngram", 4, lookup_tokens=3)) == {
        "method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 3, "prompt_lookup_min": 1,
    }  # fmt: skip
    assert vllm(Speculate("mtp", 1)) == {"method": "mtp", "num_speculative_tokens": 1}


def test_a_draft_on_other_devices_than_its_target_is_told_to_vllm_and_warned_of() -> None:
    """vLLM takes the target's number where nothing is said, and refuses another one for draft models."""
    apart = Speculate("draft_model", 2, MODEL, draft_tensor_parallel=1)
    assert vllm(apart)["draft_tensor_parallel_size"] == 1
    assert "refuses a draft model" in emit(apart)["notes"]["vllm"]
    alike = Speculate("draft_model", 2, MODEL)
    assert "draft_tensor_parallel_size" not in vllm(alike)
    assert "refuses" not in emit(alike)["notes"]["vllm"]


@pytest.mark.parametrize(("gamma", "says"), [(2, "batch 32: 2."), (0, "batch 32: none, for it does not pay there.")])
def test_engines_with_one_draft_length_say_which_batch_it_is_for(gamma: int, says: str) -> None:
    found = emit(Speculate("draft_model", gamma, MODEL, schedule=SCHEDULE, batch=32))
    for engine in ("sglang", "tensorrt_llm", "llama_cpp"):
        assert says in found["notes"][engine]
        assert bool(found[engine]) == bool(gamma)
    assert says not in found["notes"]["vllm"]


def test_sglang_counts_the_last_known_token_among_its_draft_tokens() -> None:
    assert options(emit(Speculate("draft_model", 4, MODEL))["sglang"]) == {
        "--speculative-algorithm": "STANDALONE",
        "--speculative-draft-model-path": MODEL,
        "--speculative-num-steps": "4",
        "--speculative-eagle-topk": "1",
        "--speculative-num-draft-tokens": "5",
    }


def test_a_tree_goes_to_the_engines_that_grow_trees() -> None:
    tree = TokenTree.parse("3,2,1")
    flags = emit(Speculate("eagle3", 3, "some/head", tree))
    assert options(flags["sglang"]) == {
        "--speculative-algorithm": "EAGLE3",
        "--speculative-draft-model-path": "some/head",
        "--speculative-num-steps": "3",
        "--speculative-eagle-topk": "3",
        "--speculative-num-draft-tokens": "16",
    }
    config = yaml.safe_load(flags["tensorrt_llm"])["speculative_config"]
    assert config["use_dynamic_tree"] is True
    # what TensorRT-LLM demands of these
    assert config["max_draft_len"] <= config["max_total_draft_tokens"] == 15
    assert config["max_total_draft_tokens"] <= config["dynamic_tree_max_topK"] * config["max_draft_len"]
    assert "3,2,1" in flags["notes"]["sglang"]


def test_tensorrt_llm_stops_above_the_last_batch_that_pays() -> None:
    found = yaml.safe_load(emit(Speculate("draft_model", 5, MODEL, schedule=SCHEDULE))["tensorrt_llm"])
    assert found == {
        "speculative_config": {
            "decoding_type": "Draft_Target", "max_draft_len": 5, "speculative_model": MODEL, "max_concurrency": 64,
        },
        "disable_overlap_scheduler": True,
    }  # fmt: skip
    always = yaml.safe_load(emit(Speculate("eagle3", 5, MODEL, schedule=((1, 9, 5), (10, 20, 1))))["tensorrt_llm"])
    assert "max_concurrency" not in always["speculative_config"]


@pytest.mark.parametrize(
    ("method", "spelled"),
    [("draft_model", "Draft_Target"), ("ngram", "NGram"), ("suffix", "SA"), ("eagle3", "Eagle3"), ("mtp", "MTP")],
)
def test_tensorrt_llm_s_decoding_types_are_the_literals_that_it_accepts(method: str, spelled: str) -> None:
    """Of tensorrt_llm/llmapi/llm_args.py, release 1.3; any other spelling is refused when the file is read."""
    found = yaml.safe_load(emit(Speculate(method, 3, MODEL))["tensorrt_llm"])
    assert found["speculative_config"]["decoding_type"] == spelled


def test_llama_cpp_has_its_new_names_and_its_old_ones_apart() -> None:
    flags = emit(Speculate("draft_model", 6, MODEL))
    assert options(flags["llama_cpp"]) == {
        "--spec-type": "draft-simple",
        "--spec-draft-model": "Llama-3.2-1B.gguf",
        "--spec-draft-n-max": "6",
        "--spec-draft-n-min": "0",
        "--spec-draft-p-min": "0",
    }
    old = options(flags["llama_cpp_before_2026_05"])
    assert (old["--draft-max"], old["--draft-min"]) == ("6", "0")
    assert options(emit(Speculate("ngram", 6))["llama_cpp"]) == {
        "--spec-type": "ngram-simple", "--spec-ngram-simple-size-m": "6",
    }  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_emitted_where_nothing_is_to_be_drafted(method: str) -> None:
    flags = emit(Speculate(method, 0, MODEL, schedule=((1, 100, 0),)))
    assert not any(text for engine, text in flags.items() if engine != "notes")
    assert "do not speculate" in flags["notes"]["all"]


@pytest.mark.parametrize("method", METHODS)
def test_what_an_engine_cannot_do_is_a_note(method: str) -> None:
    flags = emit(Speculate(method, 3, MODEL))
    for engine in ("sglang", "tensorrt_llm", "llama_cpp"):
        assert flags[engine] or "only" in flags["notes"][engine] or "has no" in flags["notes"][engine]


def test_names_are_quoted_for_the_shell() -> None:
    asked = Speculate("draft_model", 2, "my models/it's.gguf")
    assert options(emit(asked)["llama_cpp"])["--spec-draft-model"] == "my models/it's.gguf"
    assert vllm(asked)["model"] == "my models/it's.gguf"
    assert yaml.safe_load(emit(asked)["tensorrt_llm"])["speculative_config"]["speculative_model"] == asked.draft


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("magic", 3), "method must be one of"),
        (("ngram", -1), "gamma must be a whole number >= 0"),
        (("eagle3", 3), "method eagle3 needs the draft's repository"),
        (("ngram", 3, None, None, ((2, 5, 1),)), "without a gap"),
        (("ngram", 3, None, None, ((1, 4, 2), (6, 9, 1))), "without a gap"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: tuple[Any, ...], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Speculate(*arguments)


@pytest.mark.parametrize(
    ("draft", "method", "named"),
    [
        ("llama-3.2-1b", "draft_model", MODEL),
        ("yuhuili/EAGLE3-LLaMA3.1-Instruct-8B", "eagle3", "yuhuili/EAGLE3-LLaMA3.1-Instruct-8B"),
        ("yuhuili/EAGLE-LLaMA3-Instruct-8B", "eagle", "yuhuili/EAGLE-LLaMA3-Instruct-8B"),
        ("mtp", "mtp", "mtp"),
        ("prompt-lookup:3", "ngram", "prompt-lookup:3"),
        ("suffix", "suffix", "suffix"),
        ("models/llama/config.json", "draft_model", "models/llama"),
    ],
)
def test_methods_and_repositories_follow_from_names(draft: str, method: str, named: str) -> None:
    assert method_of(draft) == method
    assert repository(draft) == named
