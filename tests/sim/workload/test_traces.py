import gzip
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sim.workload.trace_rows
from sim.workload import PoissonArrivals, UniformLength, Workload, make_workload
from sim.workload.traces import PUBLISHED_LENGTHS, Trace, read_trace, synthesise_trace, write_trace

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
BURSTGPT = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
RESOLUTION = {"azure": 1e7, "burstgpt": 1e6, "mooncake": 1e3}

# rows as they are published: arrivals after the first, prompts, outputs
PUBLISHED: dict[str, tuple[str, str, list[float], list[int], list[int]]] = {
    "azure 2023": (
        "azure",
        AZURE + "2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9951690,396,109\n",
        [0.0, 4.314579],
        [374, 396],
        [44, 109],
    ),
    "azure 2024, whole seconds without a fraction": (
        "azure",
        AZURE + "2024-05-11 23:59:59.001163+00:00,1452,3\n2024-05-12 00:00:00+00:00,584,3\n",
        [0.0, 0.998837],
        [1452, 584],
        [3, 3],
    ),
    "burstgpt": (
        "burstgpt",
        BURSTGPT + "5,ChatGPT,472,18,490,Conversation log\n118,GPT-4,417,276,693,Conversation log\n",
        [0.0, 113.0],
        [472, 417],
        [18, 276],
    ),
    "burstgpt, third file": (
        "burstgpt",
        "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        "19440110.0,1722ac82-0a46-4bf0-aa08-89794e7a2b3f,43,GPT-4,906,446,1352,Conversation log\n"
        "19440161.0,,2,ChatGPT,36,29,65,API log\n",
        [0.0, 51.0],
        [906, 36],
        [446, 29],
    ),
    "mooncake": (
        "mooncake",
        '{"timestamp": 27482, "input_length": 6955, "output_length": 52, "hash_ids": [46, 2353, 2354]}\n'
        '{"timestamp": 30535, "input_length": 6472, "output_length": 26}\n',
        [0.0, 3.053],
        [6955, 6472],
        [52, 26],
    ),
}


def trace_of(tmp_path: Path, text: str, **options: Any) -> Trace:
    (tmp_path / "trace.txt").write_text(text, newline="")
    return read_trace(tmp_path / "trace.txt", **options)


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("change", ["as it is", "blank lines", "windows", "byte order mark", "no last newline"])
def test_published_rows_are_read(tmp_path: Path, name: str, change: str) -> None:
    format, text, arrivals, prompts, outputs = PUBLISHED[name]
    text = {
        "as it is": text,
        "blank lines": "\n" + text.replace("\n", "\n \n"),
        "windows": text.replace("\n", "\r\n"),
        "byte order mark": "\ufeff" + text,
        "no last newline": text.rstrip(),
    }[change]
    trace = trace_of(tmp_path, text)
    assert (trace.format, trace.rows, len(trace.broken)) == (format, 2, 0)
    np.testing.assert_array_equal(trace.workload.arrival_seconds, arrivals)
    np.testing.assert_array_equal(trace.workload.prompt_tokens, prompts)
    np.testing.assert_array_equal(trace.workload.output_tokens, outputs)


def test_time_zones_are_one_clock(tmp_path: Path) -> None:
    trace = trace_of(tmp_path, AZURE + "2024-05-12T01:30:00+01:30,1,1\n2024-05-12 00:00:01Z,1,1\n")
    np.testing.assert_array_equal(trace.workload.arrival_seconds, [0, 1])


@pytest.mark.parametrize("ending", ["txt", "gz"])
@pytest.mark.parametrize("format", RESOLUTION)
def test_a_written_trace_reads_back_to_its_resolution(tmp_path: Path, format: str, ending: str) -> None:
    workload = make_workload(PoissonArrivals(50), UniformLength(1, 9000), UniformLength(1, 70), requests=2000, seed=1)
    steps = np.rint(workload.arrival_seconds * RESOLUTION[format])
    write_trace(workload, tmp_path / f"one.{ending}", format)
    trace = read_trace(tmp_path / f"one.{ending}")
    assert trace.format == format
    read = np.rint(trace.workload.arrival_seconds * RESOLUTION[format])
    np.testing.assert_array_equal(read, steps - steps[0])
    np.testing.assert_array_equal(trace.workload.prompt_tokens, workload.prompt_tokens)
    np.testing.assert_array_equal(trace.workload.output_tokens, workload.output_tokens)
    write_trace(trace.workload, tmp_path / f"two.{ending}", format, start=trace.start)
    assert (tmp_path / f"two.{ending}").read_bytes() == (tmp_path / f"one.{ending}").read_bytes()


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_times_are_written_as_they_were_read(tmp_path: Path, name: str) -> None:
    format, text, *_ = PUBLISHED[name]
    trace = trace_of(tmp_path, text)
    write_trace(trace.workload, tmp_path / "again", format, start=trace.start)
    again = read_trace(tmp_path / "again")
    assert again.start == trace.start
    np.testing.assert_array_equal(again.workload.arrival_seconds, trace.workload.arrival_seconds)


def test_the_newest_azure_times_keep_a_hundred_nanoseconds(tmp_path: Path) -> None:
    workload = Workload([0.0, 1e-7, 2.5], [1, 2, 3], [4, 5, 6])
    write_trace(workload, tmp_path / "t", "azure", start="2023-11-16 18:15:46.6805901")
    rows = (tmp_path / "t").read_text().splitlines()[1:]
    assert rows == [
        "2023-11-16 18:15:46.6805901,1,4",
        "2023-11-16 18:15:46.6805902,2,5",
        "2023-11-16 18:15:49.1805901,3,6",
    ]


BROKEN_ROWS: dict[str, tuple[str, str, int, str, str, str]] = {
    "no number": ("azure", "2023-11-16 18:15:47,12,x", 2, "GeneratedTokens", "x", "not a finite number"),
    "infinite": ("azure", "2023-11-16 18:15:47,inf,3", 2, "ContextTokens", "inf", "not a finite number"),
    "overflow": ("azure", "2023-11-16 18:15:47,1e999,3", 2, "ContextTokens", "1e999", "not a finite number"),
    "zero": ("azure", "2023-11-16 18:15:47,0,3", 2, "ContextTokens", "0", "below 1"),
    "negative": ("azure", "2023-11-16 18:15:47,3,-2", 2, "GeneratedTokens", "-2", "below 1"),
    "half": ("azure", "2023-11-16 18:15:47,3,2.5", 2, "GeneratedTokens", "2.5", "not a whole number"),
    "huge": ("azure", "2023-11-16 18:15:47,3e10,2", 2, "ContextTokens", "3e10", "above 2147483647"),
    "missing": ("azure", "2023-11-16 18:15:47,3", 2, "GeneratedTokens", "", "missing"),
    "no such day": ("azure", "2023-02-30 18:15:47,3,3", 2, "TIMESTAMP", "2023-02-30 18:15:47", "not a time"),
    "a word": ("azure", "today,3,3", 2, "TIMESTAMP", "today", "not a time"),
    "too many": ("azure", "2023-11-16 18:15:47,3,3,3", 2, "row", "2023-11-16 18:15:47,3,3,3", "a row of more than"),
    "failed": ("burstgpt", "1106,ChatGPT,0,0,0,Conversation log", 2, "Response tokens", "0", "a failed request"),
    "empty": ("burstgpt", ",ChatGPT,1,1,2,API log", 2, "Timestamp", "", "missing"),
    "nan": ("burstgpt", "nan,ChatGPT,1,1,2,API log", 2, "Timestamp", "nan", "not a time"),
    "no key": ("mooncake", '{"timestamp": 28000, "input_length": 3}', 1, "output_length", "", "missing"),
    "null": ("mooncake", '{"timestamp": null, "input_length": 3, "output_length": 1}', 1, "timestamp", "", "missing"),
    "text": (
        "mooncake",
        '{"timestamp": 1, "input_length": "3", "output_length": 1}',
        1,
        "input_length",
        "'3'",
        "not a",
    ),
    "true": (
        "mooncake",
        '{"timestamp": 1, "input_length": 3, "output_length": true}',
        1,
        "output_length",
        "True",
        "not",
    ),
    "NaN": ("mooncake", '{"timestamp": NaN, "input_length": 3, "output_length": 1}', 1, "timestamp", "nan", "not a"),
    "list": ("mooncake", "[3, 4]", 1, "row", "[3, 4]", "not a JSON object"),
    "cut off": ("mooncake", '{"timestamp": 1, "inp', 1, "row", '{"timestamp": 1, "inp', "not a JSON object"),
    "deep": ("mooncake", "[" * 100_000, 1, "row", "[" * 80, "not a JSON object"),
}


@pytest.mark.parametrize("name", BROKEN_ROWS)
def test_a_broken_row_is_refused_by_line_field_value_and_reason_or_counted(tmp_path: Path, name: str) -> None:
    """The row stands after the first published one, and again at the end, behind a blank line."""
    format, row, before, field, value, reason = BROKEN_ROWS[name]
    published = PUBLISHED[{"azure": "azure 2023"}.get(format, format)][1].splitlines()
    text = "\n".join([*published[:before], row, *published[before:], "", row])
    with pytest.raises(ValueError, match="pass skip_broken=True to leave them out") as caught:
        trace_of(tmp_path, text)
    message = str(caught.value)
    assert f"trace.txt, line {before + 1}: {field} {value!r} is {reason}" in message
    assert "2 of 4 rows are broken" in message
    assert "\n" not in message
    trace = trace_of(tmp_path, text, skip_broken=True)
    assert trace.rows == 4
    assert len(trace.workload) == 2
    assert trace.broken["line"].tolist() == [before + 1, len(published) + 3]
    assert trace.broken["field"].tolist() == [field] * 2
    assert trace.broken["value"].tolist() == [value] * 2
    assert all(found.startswith(reason) for found in trace.broken["reason"])


def test_line_numbers_hold_across_blocks_and_blank_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    lines = [AZURE.strip()]
    broken: list[int] = []
    for i in range(3000):
        kind = rng.integers(4)
        lines.append(
            "" if kind == 0 else f"2023-11-16 18:15:{i // 100:02d}.{i % 100:02d},{i + 1},{'x' if kind == 1 else ''}7"
        )
        if kind == 1:
            broken.append(len(lines))
    whole = trace_of(tmp_path, "\n".join(lines), skip_broken=True)
    monkeypatch.setattr(sim.workload.trace_rows, "BLOCK_CHARACTERS", 97)
    blocks = trace_of(tmp_path, "\n".join(lines), skip_broken=True)
    for trace in (whole, blocks):
        assert trace.broken["line"].tolist() == broken
        assert trace.rows == sum(line != "" for line in lines) - 1
    np.testing.assert_array_equal(whole.workload.prompt_tokens, blocks.workload.prompt_tokens)
    np.testing.assert_array_equal(whole.workload.arrival_seconds, blocks.workload.arrival_seconds)


@pytest.mark.parametrize("skip_broken", [False, True])
def test_an_unsorted_trace_is_refused_or_sorted_on_demand(tmp_path: Path, skip_broken: bool) -> None:
    rows = ["9,a,10,1,11,l", "9,a,20,1,21,l", "7.5,a,30,1,31,l", "9,a,40,1,41,l"]
    text = BURSTGPT + "\n".join(rows)
    with pytest.raises(ValueError, match=r"not sorted: Timestamp 7\.5 on line 4 comes after 9\.0 on line 3; .*sort=T"):
        trace_of(tmp_path, text, skip_broken=skip_broken)
    trace = trace_of(tmp_path, text, skip_broken=skip_broken, sort=True)
    np.testing.assert_array_equal(trace.workload.arrival_seconds, [0, 1.5, 1.5, 1.5])
    np.testing.assert_array_equal(trace.workload.prompt_tokens, [30, 10, 20, 40])
    assert trace.start == "7.5"


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {}, "is empty"),
        (" \n\n", {}, "is empty"),
        (AZURE, {}, "has no requests: 0 rows"),
        (AZURE + "x,y,z\n", {"skip_broken": True}, "has no requests: 1 rows, all broken"),
        (
            "when,in,out\n1,2,3\n",
            {},
            r"starts with 'when,in,out'; known: azure \(csv with TIMESTAMP, .*burstgpt.*mooncake \(jsonl with",
        ),
        ("TIMESTAMP,ContextTokens\n", {}, "no trace that is known"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens,ContextTokens\n", {}, "no trace that is known"),
        ('{"prompt": "hello"}\n', {}, "no trace that is known"),
        (AZURE, {"format": "burstgpt"}, r"known: burstgpt \(csv with Timestamp, Response tokens, Request tokens\)"),
        (AZURE, {"format": "sharegpt"}, r"trace format must be one of \['azure', 'burstgpt', 'mooncake'\], got 'share"),
        ('{"prompt": "hello"}\n', {"format": "mooncake"}, "line 1: timestamp '' is missing"),
    ],
)
def test_what_is_no_trace_is_refused(tmp_path: Path, text: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trace_of(tmp_path, text, **options)


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere.csv", tmp_path):
        with pytest.raises(ValueError, match="cannot be read"):
            read_trace(path)
    whole = gzip.compress((AZURE + "2023-11-16 18:15:46,3,4\n" * 50).encode())
    for damaged in (whole[:-12], whole[:20] + b"\0\xff\xff" + whole[23:], whole[:3]):
        (tmp_path / "t.gz").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"t\.gz cannot be read"):
            read_trace(tmp_path / "t.gz")


@pytest.mark.parametrize(
    ("arrivals", "format", "start", "message"),
    [
        ([0, 1], "sharegpt", None, "trace format must be one of .*, got 'sharegpt'"),
        ([0, 1], "azure", "yesterday", "start must be a time as in a azure trace, such as '2000-01-01 .*'yesterday'"),
        ([0, 1], "mooncake", "nan", "start must be .* got 'nan'"),
        ([0, 1e10], "azure", None, "times must be within .*, got 9.46685e[+]08 to 1.09467e[+]10"),
        ([0, 1], "burstgpt", "-9e18", "times must be within"),
        ([0, 1], "mooncake", "9e80", "times must be within"),
    ],
)
def test_what_cannot_be_written_is_refused(
    tmp_path: Path, arrivals: Any, format: str, start: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        write_trace(Workload(arrivals, [1, 1], [1, 1]), tmp_path / "t", format, start)
    assert list(tmp_path.iterdir()) == []


NASTY = st.one_of(
    st.sampled_from(
        [
            "",
            "1",
            "0",
            "-1",
            "nan",
            "inf",
            "1e99",
            "1e999",
            "9" * 19,
            "1_0",
            "0x1",
            "١",
            "now",
            "true",
            "null",
            '"',
            "{}",
        ]
    ),
    st.sampled_from(["2023-11-16 18:15:46.6805900", "2099-12-31 23:59:60", "2024-05-12 00:00:00+99:99", "2023-11-16"]),
    st.integers(-(2**70), 2**70).map(str),
    st.floats().map(str),
    st.text(max_size=6),
)
CSV = st.lists(st.lists(NASTY, max_size=7).map(",".join), max_size=8).map("\n".join)
JSONL = st.lists(
    st.one_of(
        st.text(max_size=20),
        st.fixed_dictionaries(
            {},
            optional={
                name: st.one_of(st.integers(), st.floats(), st.none(), st.booleans(), st.text(max_size=4))
                for name in ("timestamp", "input_length", "output_length", "hash_ids")
            },
        ).map(json.dumps),
    ),
    max_size=8,
).map("\n".join)
FILES = st.one_of(
    st.text().map(str.encode),
    st.binary(),
    st.binary().map(lambda data: b"\x1f\x8b" + data),
    st.tuples(st.sampled_from([AZURE, BURSTGPT, ""]), CSV).map("".join).map(str.encode),
    JSONL.map(str.encode),
    JSONL.map(lambda text: gzip.compress(text.encode())),
)


@settings(max_examples=600, deadline=None)
@given(
    data=FILES,
    format=st.sampled_from(["auto", "azure", "burstgpt", "mooncake"]),
    skip_broken=st.booleans(),
    sort=st.booleans(),
)
def test_any_file_is_a_trace_or_a_value_error(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, format: str, skip_broken: bool, sort: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz"
    path.write_bytes(data)
    trace, message = None, ""
    try:
        trace = read_trace(path, format, skip_broken, sort)
    except ValueError as error:
        message = str(error)
    if trace is None:  # with a message of ours, on one line
        assert str(path) in message
        assert "\n" not in message
        return
    assert trace.rows == len(trace.workload) + len(trace.broken)
    assert trace.workload.arrival_seconds[0] == 0
    assert skip_broken or trace.broken.empty


@settings(max_examples=100, deadline=None)
@given(
    gaps=st.lists(st.floats(0, 1e6), min_size=1, max_size=20),
    format=st.sampled_from(sorted(RESOLUTION)),
    tokens=st.integers(1, 2**31 - 1),
)
def test_any_workload_is_written_and_read_back(
    tmp_path_factory: pytest.TempPathFactory, gaps: list[float], format: str, tokens: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "round"
    arrivals = np.cumsum(gaps)
    write_trace(Workload(arrivals, [tokens] * len(gaps), [1] * len(gaps)), path, format)
    trace = read_trace(path)
    error = np.abs(trace.workload.arrival_seconds - (arrivals - arrivals[0]))
    assert error.max() <= 1 / RESOLUTION[format] + 1e-8  # half a step at either end, and the last digit of a float
    np.testing.assert_array_equal(trace.workload.prompt_tokens, tokens)


@pytest.mark.parametrize(
    ("kind", "prompt", "output", "statistic"),
    [
        ("azure-code", 1500, 13, "median"),
        ("azure-conversation", 1020, 129, "median"),
        ("burstgpt", 621, 126, "mean"),
        ("mooncake", 7590, 182, "mean"),
    ],
)
def test_synthesised_lengths_have_the_published_statistic(kind: str, prompt: int, output: int, statistic: str) -> None:
    """Shares at most the median, and means, within 4 standard errors; 12 cells: false alarms 0.08%."""
    count = 100_000
    workload = synthesise_trace(kind, count, rate=5.0, seed=1)
    assert workload.requests_per_second == pytest.approx(5.0, rel=4 / math.sqrt(count))
    for lengths, published in ((workload.prompt_tokens, prompt), (workload.output_tokens, output)):
        if statistic == "mean":
            assert abs(lengths.mean() - published) <= 4 * lengths.std(ddof=1) / math.sqrt(count)
        else:
            assert abs((lengths <= published).mean() - 0.5) <= 4 * 0.5 / math.sqrt(count)


def test_an_unknown_kind_is_named() -> None:
    with pytest.raises(ValueError, match=r"kind must be one of \['azure-code', .*\], got 'azure'"):
        synthesise_trace("azure", 10, 1.0, 0)
    assert len(PUBLISHED_LENGTHS) == 4
