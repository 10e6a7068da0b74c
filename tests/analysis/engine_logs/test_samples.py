"""Lines as users post them import to the values printed in them; what they lack stays missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from analysis.engine_logs import ENGINES, ImportedLog, read_log

SAMPLES = Path(__file__).parent / "samples"
COUNTS = ("rounds", "drafted", "accepted", "emitted", "gamma", "draft_seconds")

EXPECTED: dict[str, tuple[str, str, dict[str, Any]]] = {
    "vllm.log": (
        "vllm",
        "positions",
        {"rounds": 45, "drafted": 90, "accepted": 90, "emitted": 135, "gamma": 2, "mean": 3.0, "marginal": [1, 1]},
    ),
    "vllm_depth.log": (
        "vllm",
        "positions",
        {
            "rounds": 44, "drafted": 308, "accepted": 256, "emitted": 300, "gamma": 7, "mean": 1 + 256 / 44,
            "marginal": [1, 1, 1, 1, 0.795, 0.614, 0.409],
        },
    ),
    "vllm_older.log": (
        "vllm",
        "positions",
        {
            "rounds": 129, "drafted": 387, "accepted": 150, "emitted": 279, "gamma": 3, "mean": 1 + 150 / 129,
            "marginal": [0.543, 0.357, 0.264],
        },
    ),
    "vllm_first.log": ("vllm", "totals", {"drafted": 40, "accepted": 30}),
    "vllm_v0.log": (
        "vllm",
        "totals",
        {"rounds": 662, "drafted": 2648, "accepted": 1735, "emitted": 2149, "gamma": 4, "mean": 2149 * 4 / 2648},
    ),
    "vllm_request.json": (
        "vllm",
        "histogram",
        {
            "rounds": 43, "drafted": 129, "accepted": 10, "emitted": 53, "gamma": 3, "mean": 1.2325581395348837,
            "marginal": [4 / 43, 3 / 43, 3 / 43], "conditional": [4 / 43, 3 / 4, 1],
        },
    ),
    "vllm_bench.txt": (
        "vllm",
        "positions",
        {
            "rounds": 6393, "drafted": 19179, "accepted": 14090, "emitted": 20483, "gamma": 3, "mean": 1 + 14090 / 6393,
            "marginal": [0.8342, 0.7291, 0.6407],
        },
    ),
    "vllm_metrics.prom": (
        "vllm",
        "positions",
        {
            "rounds": 45, "drafted": 90, "accepted": 60, "emitted": 105, "gamma": 2, "mean": 1 + 60 / 45,
            "marginal": [40 / 45, 20 / 45], "conditional": [40 / 45, 1 / 2],
        },
    ),
    "sglang.log": ("sglang", "mean", {"mean": 3.55, "gamma": 5}),
    "sglang_older.log": ("sglang", "mean", {"mean": 2.66}),
    "sglang_request.json": (
        "sglang",
        "histogram",
        {
            "rounds": 43, "drafted": 215, "accepted": 63, "emitted": 106, "gamma": 5, "mean": 2.4651162790697674,
            "marginal": [32 / 43, 18 / 43, 7 / 43, 3 / 43, 3 / 43],
        },
    ),
    "sglang_bench.txt": ("sglang", "mean", {"mean": 2.66}),
    "sglang_server_info.json": ("sglang", "mean", {"mean": 2.66}),
    "sglang_metrics.prom": ("sglang", "totals", {"rounds": 1000, "emitted": 2660, "mean": 2.66}),
    "llama_summary.txt": (
        "llama.cpp",
        "totals",
        {"rounds": 35, "drafted": 245, "accepted": 231, "emitted": 266, "gamma": 53, "mean": 266 / 35},
    ),
    "llama_server.log": (
        "llama.cpp",
        "positions",
        {
            "rounds": 87, "drafted": 259, "accepted": 167, "emitted": 254, "mean": 1 + 167 / 87,
            "marginal": [0.805, 0.632, 0.483], "draft_seconds": 0.325555,
        },
    ),
    "llama_newer.log": (
        "llama.cpp",
        "positions",
        {
            "rounds": 203, "drafted": 405, "accepted": 308, "emitted": 511, "mean": 1 + 308 / 203,
            "marginal": [0.847, 0.670], "draft_seconds": 1.014965,
        },
    ),
    "llama_older.log": (
        "llama.cpp",
        "totals",
        {
            "rounds": 690, "drafted": 1207, "accepted": 1186, "emitted": 1876, "mean": 1 + 1186 / 690,
            "draft_seconds": 3.112317,
        },
    ),
    "llama_timings.json": ("llama.cpp", "totals", {"drafted": 40, "accepted": 20}),
    "tensorrt_llm_choice.json": (
        "tensorrt-llm",
        "histogram",
        {
            "rounds": 20, "drafted": 60, "accepted": 30, "emitted": 50, "gamma": 3, "mean": 2.5,
            "marginal": [0.6, 0.6, 0.3], "conditional": [0.6, 1, 0.5],
        },
    ),
    "tensorrt_llm_iterations.jsonl": (
        "tensorrt-llm",
        "totals",
        {"rounds": 12, "drafted": 36, "accepted": 20, "emitted": 32, "mean": 1 + 20 / 12, "draft_seconds": 0.006},
    ),
    "spec_bench.jsonl": (
        "spec-bench",
        "steps",
        {"rounds": 6, "accepted": 12, "emitted": 18, "mean": 3.0, "marginal": [5 / 6, 4 / 6, 2 / 6, 1 / 6]},
    ),
    "mlc_llm.json": (
        "mlc-llm",
        "positions",
        {
            "rounds": 100, "drafted": 200, "accepted": 90, "emitted": 190, "gamma": 2, "mean": 1.9,
            "marginal": [0.6, 0.3],
        },
    ),
    "speculation_profile.json": (
        "speculation-profile",
        "histogram",
        {
            "rounds": 30653, "accepted": 45161, "emitted": 75814, "gamma": 3, "mean": 2.473298,
            "marginal": [0.719081, 0.464163, 0.290053], "conditional": [0.719081, 0.645495, 0.624895],
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", EXPECTED)
def test_sample_imports_to_its_printed_values(name: str) -> None:
    engine, level, values = EXPECTED[name]
    for asked in ("auto", engine):
        log = read_log(SAMPLES / name, asked)
        assert (log.engine, log.level, log.skipped_lines) == (engine, level, 0)
        for count in COUNTS:
            assert getattr(log, count) == pytest.approx(values.get(count)), count
        assert log.mean_acceptance_length == pytest.approx(values.get("mean"))
        marginal = values.get("marginal")
        assert log.marginal_acceptance == (None if marginal is None else pytest.approx(marginal))
        if "conditional" in values:
            assert log.conditional_acceptance == pytest.approx(values["conditional"])
        assert all(check.failed == 0 for check in log.checks)


def test_every_sample_is_expected_and_every_log_engine_has_one() -> None:
    assert {path.name for path in SAMPLES.iterdir()} == set(EXPECTED)
    assert {engine for engine, _, _ in EXPECTED.values()} == set(ENGINES) - {"specdec"}


@pytest.mark.parametrize("name", EXPECTED)
def test_summary_is_json_with_null_for_what_is_missing(name: str) -> None:
    log = read_log(SAMPLES / name)
    summary = json.loads(json.dumps(log.summary(), allow_nan=False))
    for key in ("rounds", "drafted", "accepted", "marginal_acceptance", "conditional_acceptance"):
        assert (summary[key] is None) == (getattr(log, key) is None)


def imported(name: str) -> ImportedLog:
    return read_log(SAMPLES / name)


def test_clean_samples_have_no_warnings_but_those_that_are_easily_misread_do() -> None:
    warned = {name for name in EXPECTED if imported(name).warnings}
    assert warned == {"vllm_v0.log", "vllm_first.log", "vllm_metrics.prom", "sglang_metrics.prom"}
    assert "after the first rejection" in imported("vllm_v0.log").warnings[0]
    assert "since the server started" in imported("vllm_metrics.prom").warnings[0]


def test_two_means_of_one_log_are_told_apart() -> None:
    log = imported("speculation_profile.json")
    assert log.mean_acceptance_length_per_request == 2.54671
    assert "2.4733 is a mean over rounds; the mean over requests is 2.5467" in " ".join(log.notes)


def test_step_rows_and_request_rows_come_with_logs_that_have_them() -> None:
    answers = imported("spec_bench.jsonl")
    assert answers.steps is not None
    assert answers.requests is not None
    assert answers.steps["accepted"].tolist() == [2, 3, 1, 0, 2, 4]
    assert answers.steps["request_id"].tolist() == ["81"] * 5 + ["82"]
    assert "drafted" not in answers.steps
    assert answers.requests["category"].tolist() == ["writing", "roleplay"]
    server = imported("llama_server.log").requests
    assert server is not None
    assert server.loc[0, ["slot", "eval_seconds", "output_tokens"]].tolist() == [1, 3.1332, 254]
    iterations = imported("tensorrt_llm_iterations.jsonl").series
    assert iterations is not None
    assert iterations["elapsed_seconds"].tolist() == [0, 1]
    assert iterations["timestamp"].tolist() == ["2026-09-16 05:26:58", "2026-09-16 05:26:59"]
