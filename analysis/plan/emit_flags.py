"""Flags that tell serving engines to speculate as planned.

Option names are those of the engines' own documentation in September 2026: vLLM docs/features/speculative_decoding,
SGLang docs/advanced_features/speculative_decoding, TensorRT-LLM llmapi (`DecodingBaseConfig`), llama.cpp
docs/speculative.md. What an engine cannot do is said in a note instead of in a flag.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from sim.trees import TokenTree

Method = Literal["draft_model", "ngram", "suffix", "eagle", "eagle3", "mtp"]
METHODS: tuple[str, ...] = get_args(Method)


@dataclass(frozen=True)
class Speculate:
    """What an engine is to do."""

    method: str
    """one of METHODS"""
    gamma: int
    """0: nothing"""
    draft: str | None = None
    """repository or path of the draft's weights; None for lookups, and for MTP, whose heads come with the target"""
    tree: TokenTree | None = None
    """instead of a chain, where the engine drafts trees"""
    schedule: Sequence[tuple[int, int, int]] = ()
    """draft length by batch: (first batch, last batch, gamma), from 1 on; empty: gamma at every batch"""
    draft_tensor_parallel: int | None = None
    """devices that share the draft, where they are not as many as share the target"""
    lookup_tokens: int | None = None
    """longest n-gram that a lookup matches; None: the engine's own"""
    batch: int | None = None
    """the batch that gamma is best for, where the schedule has others for other batches"""

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"speculation method must be one of {', '.join(METHODS)}, got {self.method!r}")
        if self.gamma < 0 or self.gamma != int(self.gamma):
            raise ValueError(f"gamma must be a whole number >= 0, got {self.gamma}; 0 emits no flags")
        if self.method in ("draft_model", "eagle", "eagle3") and self.gamma and not self.draft:
            raise ValueError(f"method {self.method} needs the draft's repository or path, got none")
        first = 1
        for start, end, gamma in self.schedule:
            if start != first or end < start or gamma < 0:
                raise ValueError(f"a schedule must cover batches from 1 on without a gap, got {list(self.schedule)}")
            first = end + 1

    @property
    def last_batch(self) -> int | None:
        """The largest batch that still drafts; None where every batch of the schedule does, or there is none."""
        drafting = [end for _, end, gamma in self.schedule if gamma]
        if not drafting or drafting[-1] == self.schedule[-1][1]:
            return None
        return drafting[-1]


def emit(asked: Speculate) -> dict[str, Any]:
    """Flags by engine, to paste behind its command (for TensorRT-LLM, into its YAML), and what to know of them.

    Returns:
        vllm, sglang, tensorrt_llm, llama_cpp and llama_cpp_before_2026_05; empty where the engine cannot, or where
        nothing is to be done; and `notes` by engine.
    """
    if not asked.gamma and not any(gamma for *_, gamma in asked.schedule):
        return emit_nothing("do not speculate: leave these options out")
    return {engine: write(asked) for engine, write in ENGINES.items()} | {"notes": notes(asked)}


def emit_nothing(why: str) -> dict[str, Any]:
    """No flags for any engine, and why."""
    return dict.fromkeys(ENGINES, "") | {"notes": {"all": why}}


def vllm(asked: Speculate) -> str:
    """--speculative-config of vLLM; a schedule as its num_speculative_tokens_per_batch_size, in which 0 is off."""
    longest = max([asked.gamma, *(gamma for *_, gamma in asked.schedule)])
    config: dict[str, Any] = {"method": asked.method}
    if asked.draft and asked.method not in ("ngram", "suffix", "mtp"):
        config["model"] = asked.draft
    config["num_speculative_tokens"] = longest
    if asked.method == "ngram" and asked.lookup_tokens is not None:
        config |= {"prompt_lookup_max": asked.lookup_tokens, "prompt_lookup_min": 1}
    if asked.draft_tensor_parallel is not None:
        config["draft_tensor_parallel_size"] = asked.draft_tensor_parallel
    if len({gamma for *_, gamma in asked.schedule}) > 1:
        config["num_speculative_tokens_per_batch_size"] = [list(entry) for entry in asked.schedule]
    return f"--speculative-config {shlex.quote(json.dumps(config))}"


SGLANG = {"draft_model": "STANDALONE", "ngram": "NGRAM", "eagle": "EAGLE", "eagle3": "EAGLE3", "mtp": "EAGLE"}


def sglang(asked: Speculate) -> str:
    """SGLang's options; its draft tokens count the last known token, which is verified along."""
    if asked.method not in SGLANG:
        return ""
    tree = asked.tree if asked.tree is not None and asked.method != "ngram" else TokenTree.chain(asked.gamma)
    if not tree.size:
        return ""
    options: dict[str, object] = {"speculative-algorithm": SGLANG[asked.method]}
    if asked.draft and asked.method not in ("ngram", "mtp"):
        options["speculative-draft-model-path"] = asked.draft
    if asked.method != "ngram":
        options |= {"speculative-num-steps": tree.depth, "speculative-eagle-topk": tree.width}
    options["speculative-num-draft-tokens"] = tree.size + 1
    if asked.method == "ngram":
        options["speculative-ngram-max-bfs-breadth"] = 1
    return flags(options)


TENSORRT_LLM = {"draft_model": "Draft_Target", "ngram": "NGram", "suffix": "SA", "eagle3": "Eagle3", "mtp": "MTP"}


def tensorrt_llm(asked: Speculate) -> str:
    """TensorRT-LLM's speculative_config as YAML, for --config of trtllm-serve and trtllm-bench."""
    if asked.method not in TENSORRT_LLM or not asked.gamma:
        return ""
    config: dict[str, object] = {"decoding_type": TENSORRT_LLM[asked.method], "max_draft_len": asked.gamma}
    if asked.draft and asked.method in ("draft_model", "eagle3"):
        config["speculative_model"] = json.dumps(asked.draft)
    if asked.method == "ngram" and asked.lookup_tokens is not None:
        config["max_matching_ngram_size"] = asked.lookup_tokens
    tree = asked.tree
    if tree is not None and not tree.is_chain and asked.method == "eagle3":
        # it grows trees by its own confidence, within these bounds: at most topK tokens a level
        widest = max(map(len, tree.levels))
        config |= {
            "max_draft_len": tree.depth, "use_dynamic_tree": "true", "dynamic_tree_max_topK": widest,
            "max_total_draft_tokens": tree.size,
        }  # fmt: skip
    if asked.last_batch is not None:
        config["max_concurrency"] = asked.last_batch
    lines = ["speculative_config:", *(f"  {name}: {value}" for name, value in config.items())]
    if asked.method in ("draft_model", "ngram"):
        lines.append("disable_overlap_scheduler: true")
    return "\n".join(lines)


LLAMA_CPP = {
    "draft_model": "draft-simple",
    "ngram": "ngram-simple",
    "eagle3": "draft-eagle3",
    "mtp": "draft-mtp",
}


def llama_cpp(asked: Speculate) -> str:
    """llama-server's options since May 2026 (pull requests 22397 and 22964)."""
    if asked.method not in LLAMA_CPP or not asked.gamma:
        return ""
    options: dict[str, object] = {"spec-type": LLAMA_CPP[asked.method]}
    if asked.method == "ngram":
        if asked.lookup_tokens is not None:
            options["spec-ngram-simple-size-n"] = asked.lookup_tokens
        return flags(options | {"spec-ngram-simple-size-m": asked.gamma})
    if asked.draft and asked.method != "mtp":
        options["spec-draft-model"] = gguf(asked.draft)
    # drafts as planned: as long as asked for, however unsure the draft is
    return flags(options | {"spec-draft-n-max": asked.gamma, "spec-draft-n-min": 0, "spec-draft-p-min": 0})


def llama_cpp_before_2026_05(asked: Speculate) -> str:
    """llama-server's options until April 2026; later ones refuse --draft-max and --draft-min."""
    if asked.method == "ngram" and asked.gamma:
        return flags({"spec-type": "ngram-simple", "draft-max": asked.gamma, "draft-min": 0})
    if asked.method != "draft_model" or not asked.gamma:
        return ""
    draft = gguf(asked.draft or "")
    return flags({"model-draft": draft, "draft-max": asked.gamma, "draft-min": 0, "draft-p-min": 0})


def gguf(draft: str) -> str:
    """The GGUF file of a draft, named as its repository is where the file is not known."""
    return draft if draft.endswith(".gguf") else f"{Path(draft).name}.gguf"


def flags(options: Mapping[str, object]) -> str:
    """Options as words of a shell."""
    return " ".join(f"--{name} {shlex.quote(str(value))}" for name, value in options.items())


def notes(asked: Speculate) -> dict[str, str]:
    """What to know of the flags, by engine.

    On vLLM: docs/features/speculative_decoding/dynamic_speculative_decoding, v1/spec_decode/draft_model.py (devices).
    """
    one = ""
    if asked.batch is not None and len({gamma for *_, gamma in asked.schedule}) > 1:
        one = (
            f" Its one draft length is that of batch {asked.batch}: {asked.gamma or 'none, for it does not pay there'}."
        )
    off = "" if asked.last_batch is None else f" Speculation stops paying above batch {asked.last_batch}."
    found = {
        "vllm": "Chains only. num_speculative_tokens_per_batch_size (draft length by batch, 0 is off) is of vLLM 0.24 "
        "and later, not with data parallelism, and was tested there for EAGLE, EAGLE-3 and DFlash; "
        "disable_by_batch_size has done nothing since 0.10.",
        "sglang": "No option turns speculation off above a batch; --max-running-requests bounds the batch." + off + one,
        "tensorrt_llm": "max_concurrency turns speculation off above that batch. draft_len_schedule is left out: its "
        "keys were lower bounds of the batch in earlier releases and are upper bounds now." + one,
        "llama_cpp": "No option turns speculation off above a batch; --parallel bounds the batch." + off + one,
    }
    if asked.method == "draft_model":
        found["tensorrt_llm"] += " decoding_type was spelled DraftTarget in its first releases."
    if asked.method == "draft_model" and asked.draft_tensor_parallel is not None:
        found["vllm"] += " It refuses a draft model that is shared by another number of devices than its target."
    lacking = {
        "sglang": (SGLANG, "SGLang has no suffix decoding."),
        "tensorrt_llm": (TENSORRT_LLM, "TensorRT-LLM reads EAGLE-3 heads only."),
        "llama_cpp": (LLAMA_CPP, "llama.cpp drafts with models, EAGLE-3 heads, MTP heads and n-grams only."),
    }
    found |= {engine: text for engine, (known, text) in lacking.items() if asked.method not in known}
    if asked.method in ("draft_model", "eagle3") and "llama_cpp" in found:
        found["llama_cpp"] += f" The draft is a GGUF file, here {gguf(asked.draft or '')}."
    if asked.tree is not None and not asked.tree.is_chain:
        planned = f" The planned tree is {asked.tree}"
        found["sglang"] += planned + "; SGLang grows one of that size by its draft's confidence."
        found["tensorrt_llm"] += planned + "; TensorRT-LLM grows one of that size by its draft's confidence."
    return found


ENGINES = {
    "vllm": vllm,
    "sglang": sglang,
    "tensorrt_llm": tensorrt_llm,
    "llama_cpp": llama_cpp,
    "llama_cpp_before_2026_05": llama_cpp_before_2026_05,
}
