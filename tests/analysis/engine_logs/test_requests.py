"""Statistics of single requests: their identities, the two means, and the same fields under their older names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from analysis.engine_logs import ImportedLog, read_log


def vllm(histogram: list[int], **changed: Any) -> dict[str, Any]:
    """One vLLM response."""
    rounds, accepted = sum(histogram), sum(j * count for j, count in enumerate(histogram))
    gamma = len(histogram) - 1
    stats = {
        "mean_acceptance_length": 1 + accepted / rounds if rounds else 1.0,
        "draft_acceptance_rate": accepted / (rounds * gamma) if rounds else 0.0,
        "acceptance_histogram": histogram,
        "num_spec_steps": rounds,
        "num_accepted_draft_tokens": accepted,
        "num_draft_tokens": rounds * gamma,
        "num_spec_tokens": gamma,
    }
    return {"id": "cmpl-1", "usage": {"completion_tokens": 9}, "metrics": {"speculative_decoding": stats | changed}}


def imported(folder: Path, *records: dict[str, Any]) -> ImportedLog:
    path = folder / "responses.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return read_log(path)


def test_requests_are_weighted_by_their_rounds(tmp_path: Path) -> None:
    log = imported(tmp_path, vllm([0, 0, 10]), vllm([90, 0, 0]))
    assert (log.rounds, log.mean_acceptance_length, log.mean_acceptance_length_per_request) == (100, 1.2, 2.0)
    assert log.marginal_acceptance == (0.1, 0.1)
    assert "1.2000 is a mean over rounds; the mean over requests is 2.0000" in log.notes[-1]
    assert log.requests is not None
    assert log.requests["output_tokens"].tolist() == [9, 9]


@pytest.mark.parametrize(
    ("changed", "names"),
    [
        ({"num_accepted_draft_tokens": 21}, "sum_j j*h_j = accepted"),
        ({"num_spec_steps": 44}, "sum_j h_j = rounds"),
        ({"mean_acceptance_length": 2.0}, "mean acceptance length = 1 + accepted/rounds"),
        ({"draft_acceptance_rate": 0.5}, "acceptance rate = accepted/drafted"),
    ],
)
def test_each_broken_identity_is_named_with_its_request(tmp_path: Path, changed: dict[str, Any], names: str) -> None:
    good = vllm([30, 6, 7])
    assert imported(tmp_path, good).warnings == ()
    log = imported(tmp_path, good, vllm([30, 6, 7], **changed))
    broken = [warning for warning in log.warnings if warning.startswith(names)]
    assert len(broken) == 1
    assert "in 1 of 2 places" in broken[0]
    assert "request cmpl-1" in broken[0]


@pytest.mark.parametrize(
    "changed",
    [
        {"num_spec_steps": -1},
        {"num_spec_steps": 1.5},
        {"acceptance_histogram": [1, "2"]},
        {"num_accepted_draft_tokens": 10**4},
        {"num_draft_tokens": True},
        {"per_step_accepted": [1], "per_step_drafted": [1, 2]},
        {"per_step_accepted": [3], "per_step_drafted": [2]},
        {"acceptance_histogram": {"0": 1, "x": 2}},
    ],
)
def test_impossible_records_are_skipped_and_counted(tmp_path: Path, changed: dict[str, Any]) -> None:
    log = imported(tmp_path, vllm([30, 6, 7]), vllm([30, 6, 7], **changed))
    assert (log.rounds, log.skipped_lines) == (43, 1)
    assert "responses.jsonl line 2" in log.skipped_examples[0]


def test_detailed_metrics_give_rows_of_rounds_and_acceptance_given_that_a_token_was_drafted(tmp_path: Path) -> None:
    detailed = {
        "per_step_accepted": [2, 0, 1],
        "per_step_drafted": [2, 1, 1],
        "num_draft_tokens": 4,
        "draft_acceptance_rate": 0.75,
    }
    log = imported(tmp_path, vllm([1, 1, 1], **detailed))
    assert (log.level, log.drafted, log.warnings) == ("steps", 4, ())
    assert log.steps is not None
    assert log.steps[["drafted", "accepted"]].to_numpy().tolist() == [[2, 2], [1, 0], [1, 1]]
    assert log.marginal_acceptance == pytest.approx((2 / 3, 1 / 3))
    assert log.conditional_acceptance == (2 / 3, 1.0)  # position 1 was drafted in one round that reached it
    assert any("fewer than gamma 2" in note for note in log.notes)


def test_requests_of_other_draft_lengths_do_not_lower_acceptance_given_that_a_token_was_drafted(tmp_path: Path) -> None:
    short = {"num_spec_tokens": 1, "num_draft_tokens": 10, "draft_acceptance_rate": 1.0}
    log = imported(tmp_path, vllm([30, 6, 7]), vllm([0, 10], **short))
    assert (log.rounds, log.drafted, log.accepted) == (53, 96, 30)
    assert log.marginal_acceptance == pytest.approx((23 / 53, 7 / 53))
    assert log.conditional_acceptance == pytest.approx((23 / 53, 7 / 13))  # 13 rounds drafted and reached position 1
    assert any("the draft length changes" in note for note in log.notes)


def test_rounded_means_and_rates_agree_within_their_digits(tmp_path: Path) -> None:
    rounded = {"mean_acceptance_length": 1.47, "draft_acceptance_rate": 0.233}  # of 1.46512 and 0.232558
    assert imported(tmp_path, vllm([30, 6, 7], **rounded)).warnings == ()
    assert len(imported(tmp_path, vllm([30, 6, 7], mean_acceptance_length=1.471)).warnings) == 1


def test_a_histogram_may_be_an_object_and_an_idle_request_has_no_mean(tmp_path: Path) -> None:
    log = imported(tmp_path, vllm([30, 6, 7], acceptance_histogram={"2": 7, "0": 30, "1": 6}), vllm([0, 0, 0]))
    assert (log.rounds, log.histogram, log.warnings) == (43, (30, 6, 7), ())
    assert log.mean_acceptance_length == log.mean_acceptance_length_per_request


def sglang(**changed: Any) -> dict[str, Any]:
    """A response of an older SGLang: other names, and a mean that counts prefill's token."""
    meta = {
        "id": "r1",
        "completion_tokens": 61,
        "spec_accept_length": 61 / 40,
        "spec_accept_rate": 20 / 120,
        "spec_accept_token_num": 20,
        "spec_draft_token_num": 120,
        "spec_verify_ct": 40,
        "spec_accept_histogram": [25, 10, 5],
    }
    return {"text": "x", "meta_info": meta | changed}


def test_older_sglang_names_are_read_and_prefills_token_is_left_out(tmp_path: Path) -> None:
    log = imported(tmp_path, sglang())
    assert (log.engine, log.rounds, log.drafted, log.accepted, log.gamma) == ("sglang", 40, 120, 20, 3)
    assert log.mean_acceptance_length == 1.5
    assert log.marginal_acceptance == (15 / 40, 5 / 40, 0)
    assert log.warnings == ()
    assert "counts prefill's token" in log.notes[0]
    assert log.requests is not None
    assert log.requests["request_id"].tolist() == ["r1"]


def test_a_histogram_that_counts_the_bonus_token_is_moved(tmp_path: Path) -> None:
    log = imported(tmp_path, sglang(spec_accept_histogram=[0, 25, 10, 5]))
    assert (log.histogram, log.warnings) == ((25, 10, 5, 0), ())
    assert "counted the bonus token" in log.notes[1]


def test_several_objects_in_a_line_or_an_array_all_count(tmp_path: Path) -> None:
    one = json.dumps(vllm([30, 6, 7]))
    path = tmp_path / "responses.log"
    for text in (
        f"{one}{one}\n",
        f"[{one}, {one}]\n",
        f"data: {one}\n\ndata: {one}\n",
        json.dumps(json.loads(f"[{one},{one}]"), indent=1),
    ):
        path.write_text(text)
        log = read_log(path)
        assert (log.rounds, log.skipped_lines) == (86, 0), text[:40]


def test_tensorrt_llm_choices_without_speculation_are_left_out(tmp_path: Path) -> None:
    on = {"avg_decoded_tokens_per_iter": 2.5, "speculative_decoding": None}
    off = {"avg_decoded_tokens_per_iter": None}
    log = imported(tmp_path, {"id": "a", "choices": [on]}, {"id": "b", "choices": [off]})
    assert (log.level, log.rounds, log.mean_acceptance_length) == ("mean", None, 2.5)
    assert log.requests is not None
    assert log.requests["request_id"].tolist() == ["a"]


def test_spec_bench_without_the_bonus_token_and_its_disagreements(tmp_path: Path) -> None:
    def answer(lengths: list[Any], new_tokens: int, steps: int) -> dict[str, Any]:
        choice = {
            "index": 0,
            "decoding_steps": [steps],
            "new_tokens": [new_tokens],
            "wall_time": [1.0],
            "accept_lengths": lengths,
        }
        return {"question_id": 1, "category": "c", "choices": [choice]}

    lengths = [1, 2, 3] * 20
    with_bonus = imported(tmp_path, answer(lengths, 119, 60))  # the last round was cut
    assert (with_bonus.emitted, with_bonus.mean_acceptance_length, with_bonus.warnings) == (120, 2.0, ())
    without = imported(tmp_path, answer([length - 1 for length in lengths], 120, 60))
    assert (without.emitted, without.mean_acceptance_length, without.accepted) == (120, 2.0, 60)
    turns = [lengths[:30], lengths[30:]]  # a list for each turn
    assert imported(tmp_path, answer(turns, 120, 60)).mean_acceptance_length == 2.0
    wild = imported(tmp_path, answer(lengths, 1000, 60))
    assert (wild.mean_acceptance_length, len(wild.warnings)) == (2.0, 1)
    odd = imported(tmp_path, answer(lengths, 140, 75))
    assert "new tokens" in odd.warnings[0]
    assert "decoding steps" in odd.warnings[1]


def test_mlc_counts_without_the_targets_own_position_are_flagged(tmp_path: Path) -> None:
    log = imported(tmp_path, {"draft_count": [100, 100], "accept_count": [60, 30]})
    assert (log.rounds, log.drafted, log.accepted, log.gamma) == (100, 200, 90, 2)
    assert "taken for the first drafted one" in log.warnings[0]


def test_an_unmeasured_profile_holds_no_rates(tmp_path: Path) -> None:
    stub = {
        "measured": False,
        "num_speculative_tokens": 3,
        "marginal_accept_rates": [0.0] * 3,
        "mean_accept_length": None,
    }
    log = imported(tmp_path, stub)
    assert (log.marginal_acceptance, log.mean_acceptance_length, log.gamma) == (None, None, 3)
    assert "not measured" in log.warnings[0]


def test_a_profile_cut_short_is_found_by_its_mean(tmp_path: Path) -> None:
    profile = {
        "measured": True,
        "marginal_accept_rates": [0.8, 0.6],
        "mean_accept_length": 3.0,
        "accept_length_model": "x",
    }
    (warning,) = imported(tmp_path, profile).warnings
    assert warning.startswith("mean acceptance length = 1 + sum of marginal acceptance does not hold")


def test_a_rounded_profile_agrees_and_a_histogram_that_holds_no_counts_is_left_out(tmp_path: Path) -> None:
    profile = {
        "measured": True, "conditional_accept_rates": [0.827, 0.714], "marginal_accept_rates": [0.827, 0.591],
        "mean_accept_length": 2.42, "acceptance_length_histogram": {"1": 173, "2": 236, "3": 591},
    }  # fmt: skip
    log = imported(tmp_path, profile)
    assert (log.rounds, log.marginal_acceptance, log.warnings) == (1000, (0.827, 0.591), ())
    log = imported(tmp_path, profile | {"acceptance_length_histogram": {"1": 0.173, "2": 0.827}})
    assert (log.rounds, log.marginal_acceptance, log.level) == (None, (0.827, 0.591), "positions")
    assert "histogram was left out" in log.warnings[0]


def test_a_draft_length_that_nobody_drafts_is_left_out(tmp_path: Path) -> None:
    log = imported(tmp_path, vllm([39, 1, 0, 3], num_spec_tokens=10**15))
    assert log.gamma is None
    assert any("draft length 1,000,000,000,000,000 is beyond 10,000" in warning for warning in log.warnings)
