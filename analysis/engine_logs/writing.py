"""Prints a round table as an engine would have logged it; what is printed reads back to the same acceptance."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from analysis.engine_logs.detect import engine_named
from sim.records import ROUND_SECONDS, check_rounds, summarise

KEYS = ("draft", "category", "gamma", "request_id")


def write_as(engine: str, rounds: pd.DataFrame) -> str:
    """A round table in an engine's own format.

    Rounds without a draft (gamma 0) are left out. The formats: vLLM's log line (all rounds in one), SGLang's and
    TensorRT-LLM's per-request JSON, llama.cpp's server lines and statistics, Spec-Bench's answers, MLC-LLM's metrics,
    a speculation profile, and the round table itself as JSON lines.

    Args:
        engine: one of `detect.ENGINES`.
        rounds: a round table of chains (`sim.records`).

    Raises:
        ValueError: the engine is unknown, or the table breaks its schema or has no round with a draft.
    """
    check_rounds(rounds)
    drafting = rounds[rounds["gamma"] > 0]
    if drafting.empty:
        raise ValueError("the round table has no round with a draft (every gamma is 0)")
    match engine_named(engine):
        case "vllm":
            return _vllm(drafting)
        case "sglang":
            return _json_lines(map(_sglang, _requests(drafting)))
        case "llama.cpp":
            return _llama_cpp(drafting)
        case "tensorrt-llm":
            return _json_lines(map(_tensorrt_llm, _requests(drafting)))
        case "spec-bench":
            return _json_lines(_spec_bench(drafting))
        case "mlc-llm":
            return _mlc_llm(drafting)
        case "speculation-profile":
            return _profile(drafting)
        case "specdec":
            return "".join(json.dumps(row, default=np.ndarray.tolist) + "\n" for row in drafting.to_dict("records"))
    raise ValueError(f"there is no writer for '{engine}'; name an engine")


def _vllm(rounds: pd.DataFrame) -> str:
    total = summarise(rounds)
    seconds = total["seconds"]
    accepted, drafted = total["accepted"], total["drafted"]
    rates = ", ".join(f"{rate:.3f}" for rate in _padded(total["marginal_acceptance"], rounds))
    return (
        f"SpecDecoding metrics: Mean acceptance length: {1 + accepted / total['rounds']:.2f}, "
        f"Accepted throughput: {accepted / seconds if seconds else 0:.2f} tokens/s, "
        f"Drafted throughput: {drafted / seconds if seconds else 0:.2f} tokens/s, "
        f"Accepted: {accepted} tokens, Drafted: {drafted} tokens, "
        f"Per-position acceptance rate: {rates}, "
        f"Avg Draft acceptance rate: {100 * accepted / drafted if drafted else float('nan'):.1f}%\n"
    )


def _sglang(request: dict[str, Any]) -> dict[str, Any]:
    rounds, drafted, accepted = request["rounds"], request["drafted"], request["accepted"]
    return {
        "meta_info": {
            "id": request["request_id"],
            "completion_tokens": request["emitted"],
            "spec_accept_rate": accepted / drafted if drafted else 0.0,
            "spec_accept_length": 1 + accepted / rounds,
            "spec_num_correct_drafts": accepted,
            "spec_num_proposed_drafts": drafted,
            "spec_verify_ct": rounds,
            "spec_correct_drafts_histogram": request["histogram"],
        }
    }


def _tensorrt_llm(request: dict[str, Any]) -> dict[str, Any]:
    rounds, drafted, accepted = request["rounds"], request["drafted"], request["accepted"]
    return {
        "id": request["request_id"],
        "choices": [
            {
                "avg_decoded_tokens_per_iter": 1 + accepted / rounds,
                "speculative_decoding": {
                    "acceptance_rate": accepted / drafted if drafted else 0.0,
                    "total_accepted_draft_tokens": accepted,
                    "total_draft_tokens": drafted,
                    "num_spec_steps": rounds,
                    "acceptance_histogram": request["histogram"],
                    "num_spec_tokens": request["gamma"],
                },
            }
        ],
    }


def _llama_cpp(rounds: pd.DataFrame) -> str:
    lines = []
    for task, request in enumerate(_requests(rounds)):
        accepted, drafted, count = request["accepted"], request["drafted"], request["rounds"]
        if drafted:
            rates = ", ".join(f"{rate:.3f}" for rate in request["marginal"])
            lines.append(
                f"slot print_timing: id  0 | task {task} | draft acceptance = {accepted / drafted:.5f} "
                f"({accepted:5d} accepted / {drafted:5d} generated), mean acceptance length = "
                f"{1 + accepted / count:5.2f}, acceptance rate per position = ({rates})"
            )
    total = summarise(rounds)
    rates = ", ".join(f"{rate:.3f}" for rate in _padded(total["marginal_acceptance"], rounds))
    count, some = total["rounds"], int((rounds["accepted"] > 0).sum())
    milliseconds = 1000 * float(rounds["draft_seconds"].sum())
    lines.append(
        f"statistics {'draft':>16}: #calls(b,g,a) = {len(lines):4d} {count:6d} {count:6d}, #gen drafts = {count:6d}, "
        f"#acc drafts = {some:5d}, #gen tokens = {total['drafted']:6d}, #acc tokens = {total['accepted']:5d}, "
        f"#mean acc len = {1 + total['accepted'] / count:.2f}, #acc rate/pos = ({rates}), "
        f"dur(b,g,a) = 0.000, {milliseconds:.3f}, 0.000 ms"
    )
    return "\n".join(lines) + "\n"


def _spec_bench(rounds: pd.DataFrame) -> Iterator[dict[str, Any]]:
    for request in _requests(rounds):
        yield {
            "question_id": request["request_id"],
            "category": request["category"],
            "choices": [
                {
                    "index": 0,
                    "turns": [""],
                    "decoding_steps": [request["rounds"]],
                    "new_tokens": [request["emitted"]],
                    "wall_time": [request["seconds"]],
                    "accept_lengths": [accepted + 1 for accepted in request["steps"]],
                }
            ],
        }


def _mlc_llm(rounds: pd.DataFrame) -> str:
    accepted, drafted = (rounds[name].to_numpy() for name in ("accepted", "drafted"))
    position = np.arange(int(rounds["gamma"].max()) + 1)[:, None]  # position 0 is the target's own token
    counts = {
        "draft_count": (drafted + 1 > position).sum(axis=1).tolist(),
        "accept_count": (accepted + 1 > position).sum(axis=1).tolist(),
    }
    return json.dumps({"spec_decode": counts}) + "\n"


def _profile(rounds: pd.DataFrame) -> str:
    total = summarise(rounds)
    marginal = _padded(total["marginal_acceptance"], rounds)
    requests = list(_requests(rounds))
    conditional = [rate / before if before else 0.0 for rate, before in zip(marginal, [1.0, *marginal], strict=False)]
    profile = {
        "schema_version": "1.0",
        "measured": True,
        "num_speculative_tokens": int(rounds["gamma"].max()),
        "conditional_accept_rates": [round(rate, 6) for rate in conditional],
        "marginal_accept_rates": [round(rate, 6) for rate in marginal],
        "mean_accept_length": round(1 + total["accepted"] / total["rounds"], 6),
        "mean_accept_length_per_request": round(
            sum(1 + one["accepted"] / one["rounds"] for one in requests) / len(requests), 6
        ),
        "acceptance_length_histogram": {str(j + 1): count for j, count in enumerate(total["histogram"]) if count},
        "accept_length_model": "measured_per_k",
        "verification_method": "longest_prefix",
    }
    return json.dumps(profile, indent=2) + "\n"


def _requests(rounds: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Each request's counts, in the order of the table."""
    keys = [name for name in KEYS if name in rounds]
    for _, part in rounds.groupby(keys, dropna=False, sort=False):
        gamma = int(part["gamma"].iloc[0])
        accepted = part["accepted"].to_numpy()
        histogram = np.bincount(accepted, minlength=gamma + 1)
        yield {
            "request_id": str(part["request_id"].iloc[0]),
            "category": str(part["category"].iloc[0]) if "category" in part else "",
            "gamma": gamma,
            "rounds": len(part),
            "drafted": int(part["drafted"].sum()),
            "accepted": int(accepted.sum()),
            "emitted": int(part["emitted"].sum()),
            "seconds": float(part[list(ROUND_SECONDS)].to_numpy().sum()),
            "histogram": histogram.tolist(),
            "marginal": (histogram[::-1].cumsum()[::-1][1:] / len(part)).tolist(),
            "steps": accepted.tolist(),
        }


def _padded(marginal: list[float], rounds: pd.DataFrame) -> list[float]:
    """Marginal acceptance with an entry for every position up to the greatest draft length."""
    return marginal + [0.0] * (int(rounds["gamma"].max()) - len(marginal))


def _json_lines(records: Iterator[dict[str, Any]]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)
