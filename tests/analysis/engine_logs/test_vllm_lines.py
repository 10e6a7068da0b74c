"""vLLM's log lines across versions, processes and damage."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from analysis.engine_logs import ImportedLog, read_log
from tests.analysis.engine_logs.big_logs import vllm_line as line


def imported(folder: Path, *lines: str, name: str = "server.log", engine: str = "auto") -> ImportedLog:
    path = folder / name
    path.write_text("\n".join(lines) + "\n")
    return read_log(path, engine)


def test_lines_are_weighted_by_their_rounds(tmp_path: Path) -> None:
    log = imported(tmp_path, line(10, [10, 10]), line(90, [45, 9]))
    assert (log.rounds, log.drafted, log.accepted) == (100, 200, 74)
    assert log.mean_acceptance_length == 1.74  # the mean of the two printed means is 2.3
    assert log.marginal_acceptance == pytest.approx([0.55, 0.19])
    assert log.series is not None
    assert log.series["rounds"].tolist() == [10, 90]


def test_keys_are_read_in_any_order(tmp_path: Path) -> None:
    head, _, body = line(40, [30, 20, 10]).partition("metrics: ")
    pieces = [
        "Mean acceptance length: 2.50", "Accepted throughput: 6.00 tokens/s", "Drafted throughput: 12.00 tokens/s",
        "Accepted: 60 tokens", "Drafted: 120 tokens", "Per-position acceptance rate: 0.750, 0.500, 0.250",
        "Avg Draft acceptance rate: 50.0%",
    ]  # fmt: skip
    assert body == ", ".join(pieces)
    for turn in range(len(pieces)):
        log = imported(tmp_path, f"{head}metrics: {', '.join(pieces[turn:] + pieces[:turn])}")
        assert (log.rounds, log.accepted, log.marginal_acceptance) == (40, 60, (0.75, 0.5, 0.25))


def test_colours_prefixes_and_wrapping_do_not_matter(tmp_path: Path) -> None:
    plain = line(40, [30, 20])
    coloured = "\x1b[1;36m(APIServer pid=17)\x1b[0;0m \x1b[32m" + plain + "\x1b[0m"
    container = json.dumps({"log": "(EngineCore_DP0 pid=9) " + plain + "\n", "stream": "stderr", "time": "t"})
    kubernetes = "2026-09-16T05:26:57.123456789Z stderr F " + plain + "\r"
    for text, source in ((coloured, "APIServer pid=17"), (container, "EngineCore_DP0 pid=9"), (kubernetes, "")):
        log = imported(tmp_path, "noise", text)
        assert (log.rounds, log.accepted, log.skipped_lines, log.warnings) == (40, 50, 0, ())
        assert log.series is not None
        assert log.series["source"].tolist() == [source]


def test_processes_that_write_into_one_line_are_both_read(tmp_path: Path) -> None:
    log = imported(tmp_path, line(10, [5]) + line(20, [5], prefix="(APIServer pid=2) "))
    assert (log.rounds, log.accepted, log.skipped_lines) == (30, 10, 0)


def test_short_drafts_are_named(tmp_path: Path) -> None:
    log = imported(tmp_path, line(40, [30, 10, 2], drafted=90))
    assert log.rounds == 40
    assert any("fewer tokens were drafted" in note for note in log.notes)


def test_a_mean_without_the_bonus_token_is_found_by_its_rates(tmp_path: Path) -> None:
    log = imported(tmp_path, line(40, [30, 20]).replace("length: 2.25", "length: 1.25"))
    assert (log.rounds, log.mean_acceptance_length) == (40, 2.25)
    assert "leaves out the bonus token" in log.warnings[0]


@pytest.mark.parametrize(
    ("find", "replace", "names"),
    [
        ("length: 2.25", "length: 2.45", "mean acceptance length = 1 + sum of per-position rates"),
        ("rate: 62.5%", "rate: 32.5%", "average draft acceptance rate = accepted/drafted"),
    ],
)
def test_numbers_that_disagree_are_named(tmp_path: Path, find: str, replace: str, names: str) -> None:
    good = line(40, [30, 20])
    assert find in good
    log = imported(tmp_path, good, good.replace(find, replace))
    assert any(names in warning and "in 1 of 2 places" in warning for warning in log.warnings)
    assert imported(tmp_path, good, good).warnings == ()


@pytest.mark.parametrize(
    "cut", ["Accepted: 5", "Drafted: 8", "Drafted: 80 tokens, Per-position acceptance rate: 0.750, 0.5"]
)
def test_a_line_cut_inside_a_number_is_skipped_and_shown(tmp_path: Path, cut: str) -> None:
    good = line(40, [30, 20])
    at = good.index(cut) + len(cut)
    log = imported(tmp_path, good, good[:at])
    assert (log.rounds, log.skipped_lines) == (40, 1)
    assert log.skipped_examples[0].startswith("server.log line 2: ")
    assert "1 lines could not be read" in log.warnings[-1]


@pytest.mark.parametrize("cut", ["length: 2.25", "throughput: 8", "Accepted:", "Drafted: 80 tok"])
def test_a_line_cut_before_its_counts_is_skipped_and_counted(tmp_path: Path, cut: str) -> None:
    good = line(40, [30, 20])
    log = imported(tmp_path, good, good[: good.index(cut) + len(cut)])
    assert (log.rounds, log.skipped_lines) == (40, 1)


def test_rates_cut_between_two_of_them_are_named_and_left_out(tmp_path: Path) -> None:
    good = line(40, [30, 20])
    cut = good[: good.index("0.750,") + 6]
    log = imported(tmp_path, good, cut)
    assert (log.rounds, log.accepted, log.marginal_acceptance, log.gamma) == (80, 100, (0.75, 0.5), 2)
    assert [warning.partition(" does not hold")[0] for warning in log.warnings] == [
        "mean acceptance length = 1 + sum of per-position rates"
    ]


def test_short_drafts_of_which_none_was_accepted_do_not_hide_the_mean(tmp_path: Path) -> None:
    log = imported(tmp_path, line(40, [30, 20, 10]), line(5, [0, 0, 0], drafted=7))
    assert (log.drafted, log.accepted, log.warnings) == (127, 60, ())
    assert (log.rounds, log.mean_acceptance_length) == (45, 1 + 60 / 45)  # 7 tokens: 3 to 7 rounds, 5 in the middle
    assert any("rounds: in all from 43 to 47, a mean from 2.2766 to 2.3953" in note for note in log.notes)


def test_lines_that_do_not_tell_their_rounds_leave_the_mean_of_the_others(tmp_path: Path) -> None:
    first = "INFO 05-01 10:00:00 [metrics.py:61] SpecDecoding metrics: Draft acceptance rate: 50.0%, "
    log = imported(tmp_path, line(40, [30, 20]), f"{first}Accepted: 9 tokens, Drafted: 18 tokens")
    assert (log.rounds, log.drafted, log.accepted, log.mean_acceptance_length) == (None, 98, 59, 2.25)
    assert log.warnings == ("1 of 2 lines do not tell their rounds: the mean is of the others",)


def test_more_tokens_than_the_rounds_can_draft_are_named(tmp_path: Path) -> None:
    log = imported(tmp_path, line(40, [40, 40], drafted=90))
    assert any("drafted <= draft length x rounds does not hold: drafted is 90" in one for one in log.warnings)


def test_a_line_without_rates_leaves_those_of_the_others(tmp_path: Path) -> None:
    bare = line(60, [30, 20]).replace("Per-position acceptance rate: 0.500, 0.333, ", "")
    assert "Per-position" not in bare
    log = imported(tmp_path, line(40, [30, 20]), bare)
    assert (log.rounds, log.accepted, log.marginal_acceptance, log.warnings) == (100, 100, (0.75, 0.5), ())
    assert any("of the 1 lines that hold it" in note for note in log.notes)


def test_the_current_depth_is_the_draft_length_where_it_is_printed(tmp_path: Path) -> None:
    text = line(40, [30, 20, 0, 0], drafted=80).replace(
        "Accepted throughput", "Current speculative depth: 2, Accepted throughput"
    )
    log = imported(tmp_path, text)
    assert (log.rounds, log.gamma, log.warnings) == (40, 2, ())
    assert not any("fewer tokens" in note for note in log.notes)


def test_idle_lines_are_no_rounds(tmp_path: Path) -> None:
    idle = (
        "INFO 09-16 05:27:07 [metrics.py:120] SpecDecoding metrics: Mean acceptance length: nan, Accepted throughput: "
        "0.00 tokens/s, Drafted throughput: 0.00 tokens/s, Accepted: 0 tokens, Drafted: 0 tokens, "
        "Per-position acceptance rate: nan, nan, Avg Draft acceptance rate: nan%"
    )
    log = imported(tmp_path, line(40, [30, 20]), idle)
    assert (log.rounds, log.skipped_lines, log.mean_acceptance_length) == (40, 0, 2.25)
    only = imported(tmp_path, idle)
    assert (only.rounds, only.mean_acceptance_length, only.drafted) == (None, None, 0)
    assert "nothing was drafted" in only.warnings[0]


def test_a_log_over_new_year_goes_on_in_time(tmp_path: Path) -> None:
    log = imported(tmp_path, line(1, [1], "12-31 23:59:55"), line(1, [1], "01-01 00:00:05"))
    assert log.series is not None
    assert log.series["elapsed_seconds"].tolist() == [0, 10]
    assert log.series["timestamp"].tolist() == ["12-31 23:59:55", "01-01 00:00:05"]


def test_v0_counts_grow_from_the_start_of_the_process(tmp_path: Path) -> None:
    def v0(rounds: int, accepted: int, emitted: int) -> str:
        return (
            "INFO 02-11 14:50:38 metrics.py:477] Speculative metrics: "
            f"Draft acceptance rate: {accepted / rounds / 4:.3f}, System efficiency: {emitted / rounds / 5:.3f}, "
            f"Number of speculative tokens: 4, Number of accepted tokens: {accepted}, "
            f"Number of draft tokens: {4 * rounds}, Number of emitted tokens: {emitted}."
        )

    log = imported(tmp_path, v0(10, 20, 25), v0(30, 60, 75), v0(5, 12, 15))  # the last of another process
    assert (log.rounds, log.drafted, log.emitted, log.mean_acceptance_length) == (35, 140, 90, 90 / 35)
    assert log.series is not None
    assert log.series["emitted"].tolist() == [25, 50, 15]
    idle = imported(tmp_path, v0(10, 20, 25).replace("0.500", "nan").replace("40", "0").replace("25", "0"))
    assert (idle.rounds, idle.drafted, idle.mean_acceptance_length) == (None, 0, None)
    assert "nothing was drafted" in idle.warnings
    cut = imported(tmp_path, v0(10, 20, 25), v0(30, 60, 75)[:-2])
    assert (cut.rounds, cut.skipped_lines) == (10, 1)
