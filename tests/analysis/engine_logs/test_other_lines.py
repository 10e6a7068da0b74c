"""Log lines of SGLang and llama.cpp, and printed and saved benchmarks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from analysis.engine_logs import ImportedLog, read_log


def imported(folder: Path, *lines: str, engine: str = "auto") -> ImportedLog:
    path = folder / "server.log"
    path.write_text("\n".join(lines) + "\n")
    return read_log(path, engine)


def decode(
    length: float, rate: float | None, running: int | None, second: int = 0, rank: str = "TP0", extra: str = ""
) -> str:
    """A decode line of SGLang."""
    parts = [f"#running-req: {running}"] * (running is not None) + ["#token: 305", "token usage: 0.00"]
    parts += (
        [extra] * bool(extra)
        + [f"accept len: {length:.2f}"]
        + ([f"accept rate: {rate:.2f}"] if rate is not None else [])
    )
    head = f"[2026-08-23 09:06:{second:02} {rank}] Decode batch [{second}], "
    return f"{head}{', '.join(parts)}, gen throughput (token/s): 98.11, #queue-req: 0"


def test_sglang_lines_are_weighted_by_running_requests(tmp_path: Path) -> None:
    log = imported(
        tmp_path,
        decode(2.0, 0.25, 1),
        "[...] Prefill batch, #new-seq: 1",
        decode(4.0, 0.75, 3, second=7, rank="DP1 TP1"),
    )
    assert (log.mean_acceptance_length, log.gamma, log.rounds, log.marginal_acceptance) == (3.5, 4, None, None)
    assert "weighted by running requests (unweighted 3.0000)" in log.notes[1]
    assert log.series is not None
    assert log.series["elapsed_seconds"].tolist() == [0, 7]
    assert log.series["source"].tolist() == ["TP0", "DP1 TP1"]
    unweighted = imported(tmp_path, decode(2.0, None, None), decode(4.0, None, None))
    assert unweighted.mean_acceptance_length == 3.0
    assert "each with the same weight" in unweighted.notes[0]


def test_sglang_rates_that_count_the_bonus_token_give_the_same_draft_length(tmp_path: Path) -> None:
    lengths = (1.5, 2.2, 3.9)
    newer = imported(tmp_path, *(decode(length, (length - 1) / 4, 1) for length in lengths))
    older = imported(tmp_path, *(decode(length, length / 5, 1) for length in lengths))
    assert newer.gamma == older.gamma == 4
    assert "counts the bonus token" in older.notes[0]
    assert imported(tmp_path, decode(1.5, 0.125, 1), decode(1.5, 0.25, 1)).gamma is None  # it changed


def test_sglang_builds_that_count_rounds_give_them(tmp_path: Path) -> None:
    lines = [
        decode(2.0, 0.33, 1, extra="spec tokens: 12, spec rounds: 6"),
        decode(1.0, 0.0, 1, extra="spec tokens: 2, spec rounds: 2"),
    ]
    log = imported(tmp_path, *lines)
    assert (log.rounds, log.emitted, log.mean_acceptance_length) == (8, 14, 1.75)


def test_a_mean_without_the_bonus_token_is_named(tmp_path: Path) -> None:
    (warning,) = imported(tmp_path, "Accept length: 0.66").warnings
    assert warning.startswith("mean acceptance length >= 1, the bonus token included does not hold: the mean is 0.66")


def test_sglang_lines_of_idle_times_hold_no_mean(tmp_path: Path) -> None:
    idle = decode(0.0, 0.0, 0)
    assert imported(tmp_path, decode(2.0, 0.25, 1), idle).mean_acceptance_length == 2.0
    log = imported(tmp_path, idle, idle.replace("0.00, accept rate: 0.00", "nan, accept rate: nan"))
    assert (log.mean_acceptance_length, log.rounds, log.skipped_lines) == (None, None, 0)
    assert log.warnings == ("all 2 lines are of idle times: nothing was drafted",)


def test_sglang_without_speculation_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="without 'accept len': speculation was off"):
        imported(tmp_path, decode(2.0, None, 1).replace("accept len: 2.00, ", ""))


def print_timing(task: int, rounds: int, passed: list[int], drafted: int) -> str:
    """A server line of llama.cpp."""
    accepted = sum(passed)
    rates = ", ".join(f"{count / rounds:.3f}" for count in passed)
    return (
        f"slot print_timing: id  1 | task {task} | draft acceptance = {accepted / drafted:.5f} "
        f"({accepted:5d} accepted / {drafted:5d} generated), mean acceptance length = {1 + accepted / rounds:5.2f}, "
        f"acceptance rate per position = ({rates})"
    )


def test_llama_rounds_follow_from_rounded_rates(tmp_path: Path) -> None:
    log = imported(tmp_path, print_timing(3, 97, [78, 68, 61, 50], 388), print_timing(4, 10, [0, 0], 20))
    assert (log.rounds, log.accepted, log.drafted) == (107, 257, 408)
    assert log.marginal_acceptance == pytest.approx([78 / 107, 68 / 107, 61 / 107, 50 / 107], abs=5e-4)
    assert log.requests is not None
    assert log.requests["request_id"].tolist() == ["task 3", "task 4"]


@pytest.mark.parametrize("cut", ["/   3", "generated), mean acc", "length =  3", "length =  3.6", "0.701, 0.6", "0.5"])
def test_llama_lines_cut_short_are_skipped(tmp_path: Path, cut: str) -> None:
    line = print_timing(3, 97, [78, 68, 61, 50], 388)
    log = imported(tmp_path, line, line[: line.rindex(cut) + len(cut)])
    assert (log.rounds, log.skipped_lines) == (97, 1)


def statistics(name: str, rounds: int, drafted: int, accepted: int) -> str:
    return (
        f"statistics {name:>16}: #calls(b,g,a) =    1 {rounds:6d} {rounds:6d}, #gen drafts = {rounds:6d}, "
        f"#acc drafts = {accepted:5d}, #gen tokens = {drafted:6d}, #acc tokens = {accepted:5d}, "
        f"dur(b,g,a) = 0.1, {rounds}.000, 0.1 ms"
    )


def test_llama_statistics_count_from_the_start_and_by_source(tmp_path: Path) -> None:
    log = imported(
        tmp_path,
        statistics("ngram-mod", 10, 100, 50), statistics("draft-mtp", 100, 300, 150),
        statistics("ngram-mod", 20, 180, 60), statistics("draft-mtp", 150, 450, 200),
    )  # fmt: skip
    assert (log.rounds, log.drafted, log.accepted) == (170, 630, 260)
    assert log.draft_seconds == pytest.approx(0.17)
    assert log.series is not None
    assert log.series["rounds"].tolist() == [10, 100, 10, 50]
    restarted = imported(tmp_path, statistics("draft-mtp", 100, 300, 150), statistics("draft-mtp", 50, 150, 60))
    assert (restarted.rounds, restarted.accepted) == (150, 210)
    assert "fall 1 times" in restarted.warnings[0]


def test_llama_rounds_that_are_counted_are_preferred_to_those_that_follow_from_rounded_digits(tmp_path: Path) -> None:
    short = print_timing(3, 97, [0, 0, 0], 200)  # 67 to 200 rounds
    alone = imported(tmp_path, short)
    assert alone.rounds == 134
    assert any("from 67 to 200" in note for note in alone.notes)
    rates = "#mean acc len = 1.00, #acc rate/pos = (0.000, 0.000, 0.000), dur"
    log = imported(tmp_path, short, statistics("draft-mtp", 97, 200, 0).replace("dur", rates))
    assert (log.rounds, log.mean_acceptance_length, log.format) == (97, 1.0, "llama.cpp statistics")
    assert log.requests is not None
    slots = imported(
        tmp_path, print_timing(3, 50, [40], 50), *(statistics("d", count, count, 40) for count in (90, 50))
    )
    assert (slots.rounds, slots.format) == (50, "llama.cpp server lines")  # the counts may be of two slots


def test_llama_statistics_cut_before_their_rates_are_skipped(tmp_path: Path) -> None:
    rates = "#mean acc len = 1.80, #acc rate/pos = (0.800), dur"
    whole = [statistics("d", count, count, 8 * count // 10).replace("dur", rates) for count in (50, 100)]
    for cut in ("#acc tokens =    8", "#mean acc len = 1.8"):
        log = imported(tmp_path, whole[0], whole[1][: whole[1].index(cut) + len(cut)])
        assert (log.rounds, log.accepted, log.marginal_acceptance, log.skipped_lines) == (50, 40, (0.8,), 1)


def test_draft_seconds_of_another_format_are_taken_by_round(tmp_path: Path) -> None:
    log = imported(tmp_path, print_timing(3, 50, [40], 50), statistics("draft-mtp", 200, 200, 160))
    assert (log.format, log.rounds) == ("llama.cpp server lines", 50)  # the only one with rates
    assert log.draft_seconds == pytest.approx(0.05)
    assert "draft seconds are those of a round in llama.cpp statistics" in log.notes


def test_llama_statistics_of_an_older_version_have_one_number_of_calls(tmp_path: Path) -> None:
    log = imported(
        tmp_path,
        "statistics ngram_mod: #calls = 810, #gen drafts = 15, #acc drafts = 15, #gen tokens = 960, #acc tokens = 730, "
        "dur(b,g,a) = 0.149, 0.347, 0.005 ms",
    )
    assert (log.rounds, log.drafted, log.accepted, log.mean_acceptance_length) == (15, 960, 730, 1 + 730 / 15)


def test_llama_summaries_of_several_runs_are_added_up(tmp_path: Path) -> None:
    run = ("n_draft   = 4", "n_predict = {}", "n_drafted = 100", "n_accept  = {}", "accept    = {:.3f}%")
    lines = [line.format(value) for value, line in zip((0, 80, 0, 55, 55), run, strict=True)]
    lines += [line.format(value) for value, line in zip((0, 60, 0, 35, 35), run, strict=True)]
    log = imported(tmp_path, *lines)
    assert (log.rounds, log.drafted, log.accepted, log.gamma) == (50, 200, 90, 4)
    impossible = imported(tmp_path, *lines, *lines[:1], "n_predict = 3", *lines[2:5])
    assert (impossible.rounds, impossible.skipped_lines) == (50, 1)


REPORT = """============ Serving Benchmark Result ============
Mean TPOT (ms):                          {tpot}
Mean ITL (ms):                           {itl}
Acceptance rate (%):                     {rate}
Acceptance length:                       {length}
Drafts:                                  1000
Draft tokens:                            3000
Accepted tokens:                         640
"""


@pytest.mark.parametrize(("itl", "tpot", "warned"), [("57.98", "35.39", False), ("57.98", "30.00", True)])
def test_times_between_chunks_over_times_per_token_agree_with_the_length(
    tmp_path: Path, itl: str, tpot: str, warned: bool
) -> None:
    log = imported(tmp_path, REPORT.format(itl=itl, tpot=tpot, rate="21.33", length="1.64"))
    check = next(check for check in log.checks if check.name.startswith("mean ITL / mean TPOT"))
    assert (check.compared, check.failed) == (1, int(warned))
    assert any("ITL" in warning for warning in log.warnings) == warned


@pytest.mark.parametrize(
    "prefix", ["bench-1  | ", "2026-09-16T05:26:57.12Z stdout F ", "host bench[7]: ", "run.log:12:"]
)
def test_reports_are_read_behind_prefixes(tmp_path: Path, prefix: str) -> None:
    text = REPORT.format(itl="57.98", tpot="35.39", rate="21.33", length="1.64")
    text += "Per-position acceptance (%):\n  Position 0:      30.00\n  Position 1:   20.00\n  Position 2:    14.00\n"
    log = imported(tmp_path, *(prefix + row for row in text.splitlines()), f"{prefix}Total Draft tokens:    9")
    assert (log.rounds, log.drafted, log.accepted, log.warnings) == (1000, 3000, 640, ())
    assert log.marginal_acceptance == (0.3, 0.2, 0.14)


def test_a_list_of_positions_that_is_cut_is_named_once(tmp_path: Path) -> None:
    text = REPORT.format(itl="57.98", tpot="35.39", rate="21.33", length="1.64") + "  Position 0:     30.00\n"
    log = imported(tmp_path, text)
    assert (log.marginal_acceptance, log.gamma) == ((0.3,), 3)
    assert log.warnings == ("1 of 1 runs list fewer positions than were drafted: the others are missing",)


def test_runs_in_one_file_are_added_up_and_disagreement_is_named(tmp_path: Path) -> None:
    good = REPORT.format(itl="57.98", tpot="35.39", rate="21.33", length="1.64")
    log = imported(
        tmp_path, good, good.replace("Accepted tokens:                         640", "Accepted tokens:   940")
    )
    assert (log.rounds, log.accepted) == (2000, 1580)
    assert any("acceptance length = 1 + accepted/drafts" in warning and "run 1" in warning for warning in log.warnings)


def saved(**changed: Any) -> dict[str, Any]:
    """A result of `vllm bench serve --save-detailed`."""
    result = {
        "mean_tpot_ms": 12.5, "mean_itl_ms": 37.5, "spec_decode_acceptance_rate": 100 * 200 / 300,
        "spec_decode_acceptance_length": 3.0, "spec_decode_num_drafts": 100, "spec_decode_draft_tokens": 300,
        "spec_decode_accepted_tokens": 200, "spec_decode_per_position_acceptance_rates": [0.9, 0.7, 0.4],
        "ttfts": [0.5, 0.6], "itls": [[0.04] * 60, [0.035] * 40], "input_lens": [10, 20], "output_lens": [181, 121],
        "start_times": [1.0, 2.0],
    }  # fmt: skip
    return result | changed


def test_a_saved_benchmark_gives_its_requests(tmp_path: Path) -> None:
    log = imported(tmp_path, json.dumps(saved()))
    assert (log.rounds, log.gamma, log.marginal_acceptance, log.warnings) == (100, 3, (0.9, 0.7, 0.4), ())
    assert log.requests is not None
    assert log.requests["mean_acceptance_length"].tolist() == [3.0, 3.0]
    assert log.requests["seconds_per_round"].tolist() == pytest.approx([0.04, 0.035])
    assert log.mean_acceptance_length_per_request == 3.0
    assert imported(tmp_path, json.dumps(saved(mean_itl_ms=0.0375))).warnings != ()


def test_saved_numbers_rounded_to_two_decimals_agree(tmp_path: Path) -> None:
    rounded = {
        "spec_decode_acceptance_rate": 73.47, "spec_decode_acceptance_length": 3.2, "spec_decode_num_drafts": 6393,
        "spec_decode_draft_tokens": 19179, "spec_decode_accepted_tokens": 14090, "mean_itl_ms": 40.5,
        "mean_tpot_ms": 12.65, "spec_decode_per_position_acceptance_rates": [0.8342, 0.732, 0.6378],
    }  # fmt: skip
    log = imported(tmp_path, json.dumps(rounded))
    assert (log.rounds, log.warnings, [check.failed for check in log.checks]) == (6393, (), [0] * len(log.checks))
    assert len(imported(tmp_path, json.dumps(rounded | {"spec_decode_acceptance_length": 3.21})).warnings) == 1


@pytest.mark.parametrize(
    ("changed", "names"),
    [
        ({}, ()),
        ({"output_lens": [400, 300]}, ("mean ITL / mean TPOT = mean acceptance length (to 5%)",)),
        ({"mean_itl_ms": 80.0}, ("the mean ITL = that of the requests' itls (to 5%)", "mean ITL / mean TPOT")),
    ],
)
def test_lengths_are_compared_with_the_times_of_the_requests(
    tmp_path: Path, changed: dict[str, Any], names: tuple[str, ...]
) -> None:
    bare = saved(mean_itl_ms=None, mean_tpot_ms=None) | changed  # the means follow from itls and output_lens
    log = imported(tmp_path, json.dumps(bare))
    assert next(check for check in log.checks if check.name.startswith("mean ITL / mean TPOT")).compared == 1
    assert len(log.warnings) == len(names)
    assert all(warning.startswith(name) for warning, name in zip(log.warnings, names, strict=True))


def test_lines_of_another_engine_are_named(tmp_path: Path) -> None:
    log = imported(tmp_path, decode(2.0, 0.25, 1), decode(2.0, 0.25, 1), print_timing(3, 97, [78], 97))
    assert log.engine == "sglang"
    assert "there are also lines of llama.cpp" in log.warnings[0]
    assert imported(tmp_path, decode(2.0, 0.25, 1), print_timing(3, 97, [78], 97), engine="llamacpp").rounds == 97
