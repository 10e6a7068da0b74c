"""Files as they lie about: packed, rotated, cut, in other encodings, of any size, and none that we know."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.engine_logs import read_log, reading, rows, stream
from analysis.engine_logs.documents import Documents, StepTimes
from analysis.engine_logs.rows import Rows, Series
from analysis.engine_logs.values import Malformed
from tests.analysis.engine_logs.big_logs import request_lines, vllm_lines, write, write_bench_document
from tests.analysis.engine_logs.big_logs import vllm_line as line


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_packed_logs_are_read_whatever_their_name(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "log"
    path.write_bytes(pack((line(40, [30, 20]) + "\n").encode()))
    assert read_log(path).rounds == 40


def test_a_cut_archive_gives_what_lies_before_the_cut(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    text = "\n".join(line(40, [30, 20]) + f" {rng.random()}" for _ in range(3000))
    packed = gzip.compress(text.encode())
    path = tmp_path / "server.log.gz"
    path.write_bytes(packed[: len(packed) // 2])
    log = read_log(path)
    assert log.rounds is not None
    assert 40 * 1200 < log.rounds < 40 * 1800
    assert log.mean_acceptance_length == 2.25
    assert "server.log.gz is cut or damaged" in log.warnings[0]


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_pipes_and_standard_input_are_read(pack: Callable[[bytes], bytes]) -> None:
    standard_input = os.dup(0)
    try:
        for name in ("/dev/fd/{}", "-"):
            out, into = os.pipe()
            os.write(into, pack((line(40, [30, 20]) + "\n").encode()))
            os.close(into)
            os.dup2(out, 0)
            assert read_log(name.format(out)).rounds == 40
            os.close(out)
    finally:
        os.dup2(standard_input, 0)
        os.close(standard_input)


def test_a_file_that_adds_nothing_is_named(tmp_path: Path) -> None:
    good, other = tmp_path / "server.log", tmp_path / "other.log"
    good.write_text(line(40, [30, 20]))
    other.write_text("Accept length: 2.66\n")
    for files in ([good, other], [other, good]):
        log = read_log(files, "vllm")
        assert (log.rounds, log.warnings) == (40, (f"{other} holds nothing of vllm",))


def test_zstd_is_refused_with_advice(tmp_path: Path) -> None:
    path = tmp_path / "log.zst"
    path.write_bytes(b"\x28\xb5\x2f\xfd\x00")
    with pytest.raises(ValueError, match="unpack it first"):
        read_log(path)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
def test_logs_from_windows_are_read(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "log.txt"
    path.write_bytes((line(40, [30, 20]) + "\r\n" + line(10, [5, 5]) + "\r\n").encode(encoding))
    assert read_log(path).rounds == 50


def test_a_rotated_log_is_read_from_the_oldest_part_to_the_newest(tmp_path: Path) -> None:
    parts = {"s.log": "09-16 05:26:59", "s.log.1": "09-16 05:26:58", "s.log.2.gz": "09-16 05:26:57"}
    for name, clock in parts.items():
        text = (line(10, [5], clock) + "\n").encode()
        (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    log = read_log([tmp_path / name for name in parts])
    assert log.rounds == 30
    assert log.series is not None
    assert log.series["elapsed_seconds"].tolist() == [0, 1, 2]


def test_order_of_rotated_parts_and_of_other_files() -> None:
    names = ["b.log", "a.log-20260902.gz", "a.log", "a.log-20260901", "b.log.10", "b.log.9.xz"]
    order = stream.in_order_of_time([Path(name) for name in names])
    assert [path.name for path in order] == [
        "b.log.10",
        "b.log.9.xz",
        "b.log",
        "a.log-20260901",
        "a.log-20260902.gz",
        "a.log",
    ]
    for kept in (["z.prom", "a.prom"], ["page.1", "page.2"], ["run-1", "run-2"]):
        assert [path.name for path in stream.in_order_of_time([Path(name) for name in kept])] == kept


def test_blocks_end_with_lines_and_lose_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "LONGEST_LINE_BYTES", 50)
    rng = np.random.default_rng(1)
    text = b"".join(b"x" * int(length) + b"\n" for length in rng.integers(0, 200, size=300)) + b"end"
    cuts = sorted(rng.integers(0, len(text), size=200).tolist())
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    blocks = list(stream.whole_lines(iter(pieces)))
    assert b"".join(blocks) == text
    assert all(block.endswith(b"\n") or len(block) >= 50 for block in blocks[:-1])


def test_lines_with_a_marker_are_found_where_a_plain_search_finds_them() -> None:
    rng = np.random.default_rng(2)
    lines = [bytes(rng.choice([97, 98, 99], size=int(size))) for size in rng.integers(0, 12, size=500)]
    block = b"\n".join(lines)
    found = [block[start:end] for start, end in stream.lines_with(block, [b"ab", b"cc"])]
    assert found == [text for text in lines if b"ab" in text or b"cc" in text]


def test_a_log_of_many_blocks_gives_the_same_as_a_small_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "s.log", vllm_lines(np.random.default_rng(3), noise=2), 2 << 20)
    whole = read_log(path)
    monkeypatch.setattr(stream, "BLOCK_BYTES", 997)
    small = read_log(path)
    assert (small.rounds, small.accepted, small.skipped_lines) == (whole.rounds, whole.accepted, whole.skipped_lines)
    assert small.marginal_acceptance == pytest.approx(whole.marginal_acceptance)
    assert whole.warnings == ()


@pytest.mark.parametrize("kind", ["lines", "requests"])
def test_memory_does_not_grow_with_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(rows, "SERIES_ROWS", 512)
    monkeypatch.setattr(rows, "FLUSH", 256)
    monkeypatch.setattr(Rows.__init__, "__defaults__", (200,))
    monkeypatch.setattr(stream, "BLOCK_BYTES", 1 << 16)
    rng = np.random.default_rng(4)
    peaks = []
    for size in (1 << 20, 4 << 20):
        path = write(tmp_path / "s.log", vllm_lines(rng) if kind == "lines" else request_lines(rng), size)
        tracemalloc.start()
        log = read_log(path)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert log.rounds
    assert peaks[1] < 1.3 * peaks[0]
    assert peaks[1] < 2 << 20


def test_a_long_series_is_merged_and_keeps_its_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "SERIES_ROWS", 4096)
    series = Series(("tokens",), ("rate",))
    for second in range(40_000):
        series.add(("date", float(second)), "a", (1.0 if second % 2 else None, float(second)))
    table = series.frame()
    assert table is not None
    assert len(table) == 40_000 / 8
    assert table["tokens"].sum() == 20_000
    assert set(table["lines"]) == {8}
    assert table["rate"].tolist()[:2] == [3.5, 11.5]
    assert table["elapsed_seconds"].tolist()[:2] == [0, 8]


def test_rows_beyond_the_limit_are_counted() -> None:
    table = Rows(("a", "b"), most=2)
    for number in range(5):
        table.add(number, None)
    frame = table.frame()
    assert frame is not None
    pd.testing.assert_frame_equal(frame, pd.DataFrame({"a": [0, 1]}))
    assert table.warning("requests") == ["the table of requests holds the first 2 of 5; totals count all"]


def test_a_document_too_large_for_memory_is_read_piece_by_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_bench_document(tmp_path / "b.json", np.random.default_rng(5), 1 << 20)
    small = read_log(path)
    monkeypatch.setattr("analysis.engine_logs.documents.SMALL_CHARACTERS", 20_000)
    monkeypatch.setattr(reading, "_is_json_lines", lambda start: False)
    large = read_log(path)
    assert large.rounds == small.rounds
    assert large.mean_acceptance_length == small.mean_acceptance_length
    assert large.requests is not None
    assert small.requests is not None
    pd.testing.assert_frame_equal(large.requests, small.requests)


def pieces(text: str, size: int = 7) -> list[object]:
    """What Documents makes of a text that comes in small blocks."""
    data = text.encode()
    return list(Documents(iter([data[at : at + size] for at in range(0, len(data), size)])))


def test_large_documents_come_as_their_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("analysis.engine_logs.documents.SMALL_CHARACTERS", 60)
    monkeypatch.setattr("analysis.engine_logs.documents.AHEAD_CHARACTERS", 8)
    value = {"a": [1.5] * 40, "b": [[1, 2], [3]] * 20, "c": [{"x": 1}, {"x": 2}], "d": {"y": 3}, "e": "z", "f": 12345}
    first, second, third, shell = pieces(json.dumps(value, indent=1))
    assert [first, second, third] == [{"x": 1}, {"x": 2}, {"y": 3}]
    assert isinstance(shell, dict)
    assert shell["a"].tolist() == [1.5] * 40
    assert isinstance(shell["b"], StepTimes)
    assert (shell["b"].counts.tolist(), shell["b"].sums.tolist()) == ([2, 1] * 20, [3, 3] * 20)
    assert (shell["e"], shell["f"]) == ("z", 12345)
    assert pieces(json.dumps([{"n": number} for number in range(50)])) == [{"n": number} for number in range(50)]


def test_documents_one_after_another_survive_a_damaged_one() -> None:
    text = '{"a": 1}\n{"b": tru\n{"c": 3}\n  [{"d": 4}]{"e": 5}'
    found = pieces(text)
    assert [one for one in found if not isinstance(one, Malformed)] == [{"a": 1}, {"c": 3}, [{"d": 4}], {"e": 5}]
    assert sum(isinstance(one, Malformed) for one in found) == 1


def test_a_document_that_is_cut_gives_its_whole_parts(tmp_path: Path) -> None:
    record = {"specDecodingStats": {"numDraftTokens": 24, "numAcceptedTokens": 12, "numRequestsWithDraftTokens": 8}}
    text = json.dumps([record] * 20, indent=1)
    path = tmp_path / "stats.json"
    path.write_text(text[: text.rindex("numDraftTokens")])
    log = read_log(path)
    assert (log.rounds, log.skipped_lines) == (8 * 19, 1)


def test_a_log_that_begins_with_a_document_goes_on_as_text(tmp_path: Path) -> None:
    path = tmp_path / "s.log"
    path.write_text(
        json.dumps({"model": "m", "args": {"tp": 1}}, indent=2)
        + "\n"
        + line(40, [30, 20])
        + "\nnoise\n" * 1200
        + line(10, [5, 5])
    )
    log = read_log(path)
    assert (log.engine, log.rounds) == ("vllm", 50)


def test_damaged_json_lines_are_counted_even_without_a_mark(tmp_path: Path) -> None:
    good = json.dumps({"spec_verify_ct": 10, "spec_num_correct_drafts": 5})
    path = tmp_path / "r.jsonl"
    path.write_text(f'{good}\n{{"text": "cut of\n\n{good}\n{{"spec_verify_ct": 1\n')
    log = read_log(path)
    assert (log.rounds, log.skipped_lines) == (20, 2)
    assert {example.split(":")[0] for example in log.skipped_examples} == {"r.jsonl line 2", "r.jsonl line 5"}


def test_only_the_first_damaged_lines_are_shown_and_all_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "s.log"
    path.write_text(line(40, [30, 20]) + "\n" + "SpecDecoding metrics: Accepted: many\n" * 20)
    log = read_log(path)
    assert (log.skipped_lines, len(log.skipped_examples)) == (20, reading.EXAMPLES)
    assert "20 lines could not be read" in log.warnings[-1]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is empty"),
        ("hello\n", "known formats: vllm: "),
        (
            "INFO Engine 000: Avg prompt throughput: 1.0 tokens/s, Avg generation throughput: 2.0 tokens/s\n",
            "speculation or its",
        ),
        ("SpecDecoding metrics: Accepted: x\n", "nothing in .* could be read as vllm: s.log line 1"),
        ('{"iter": 1, "iterLatencyMS": 2.0}\n', "TensorRT-LLM statistics without specDecodingStats"),
    ],
)
def test_what_cannot_be_imported_is_one_line_with_the_reason(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "s.log"
    path.write_text(text)
    with pytest.raises(ValueError, match=says) as error:
        read_log(path)
    assert "\n" not in str(error.value)


def test_wrong_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown engine 'tgi'; known: auto, vllm"):
        read_log(tmp_path, "tgi")
    with pytest.raises(ValueError, match=r"cannot read .*: No such file"):
        read_log(tmp_path / "nowhere.log")
    with pytest.raises(ValueError, match=r"folder without rounds\.parquet"):
        read_log(tmp_path)
    with pytest.raises(ValueError, match="at least one"):
        read_log([])
    path = tmp_path / "s.log"
    path.write_text(line(40, [30, 20]))
    with pytest.raises(ValueError, match="holds nothing of sglang"):
        read_log(path, "sglang")


def test_spec_bench_answers_of_a_baseline_accept_nothing(tmp_path: Path) -> None:
    turns = {"decoding_steps": [5], "new_tokens": [5], "wall_time": [1.0], "accept_lengths": [1] * 5}
    answer = {"question_id": 1, "category": "qa", "choices": [{"index": 0, "turns": ["x"], **turns}], "tstamp": 1.0}
    path = tmp_path / "answers.jsonl"
    path.write_text(json.dumps(answer) + "\n")
    log = read_log(path)
    assert (log.rounds, log.mean_acceptance_length, log.conditional_acceptance) == (5, 1.0, ())
