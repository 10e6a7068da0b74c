"""No bytes crash or hang the importers: they return a result that is JSON, or raise ValueError with one line."""

from __future__ import annotations

import contextlib
import gzip
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from analysis.acceptance.profile import profile_of
from analysis.acceptance.sources import of_log
from analysis.engine_logs import ENGINES, read_log

SAMPLES = [path.read_bytes() for path in sorted((Path(__file__).parent / "samples").iterdir())]
NUMBERS = [
    b"-1",
    b"nan",
    b"1e999",
    b"9" * 400,
    b"0",
    b"1.5",
    b"1e15",
    b"NaN",
    b"null",
    b"true",
    b'"x"',
    b"[]",
    b"{}",
    b"",
    b"\xff",
]
FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def check(data: bytes, engine: str = "auto", name: str = "log") -> None:
    """Import the bytes; whatever comes back is finite, consistent JSON."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(data)
        message = ""
        try:
            log = read_log(path, engine)
        except ValueError as error:
            message = str(error)
        if message:
            assert "\n" not in message
            return
        json.dumps(log.summary(), allow_nan=False)
        with contextlib.suppress(ValueError):  # rates that rise with the position are no draft's
            json.dumps(profile_of(of_log(log)).document(), allow_nan=False)
        for number in (log.rounds, log.drafted, log.accepted, log.emitted, log.mean_acceptance_length):
            assert number is None or number >= 0
        assert all(0 <= rate <= 1 for rate in log.marginal_acceptance or ())
        assert all(rate is None or rate >= 0 for rate in log.conditional_acceptance or ())
        assert log.skipped_lines >= len(log.skipped_examples)


@given(
    st.binary(max_size=400), st.sampled_from(["auto", *ENGINES]), st.sampled_from(["log", "log.jsonl", "log.parquet"])
)
@FUZZ
def test_any_bytes(data: bytes, engine: str, name: str) -> None:
    check(data, engine, name)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A sample with bytes cut out, put in, doubled, or with one of its numbers replaced."""
    data = draw(st.sampled_from(SAMPLES))
    for _ in range(draw(st.integers(1, 4))):
        at, end = sorted((draw(st.integers(0, len(data))), draw(st.integers(0, len(data)))))
        kind = draw(st.sampled_from(["cut", "insert", "double", "number", "other"]))
        if kind == "cut":
            data = data[:at] + data[min(end, at + 40) :]
        elif kind == "insert":
            data = data[:at] + draw(st.binary(max_size=8)) + data[at:]
        elif kind == "double":
            data += data[at:end]
        elif kind == "other":
            data += draw(st.sampled_from(SAMPLES))
        else:
            digits = [place for place, letter in enumerate(data) if 48 <= letter <= 57]
            if digits:
                place = draw(st.sampled_from(digits))
                data = data[:place] + draw(st.sampled_from(NUMBERS)) + data[place + 1 :]
    return data


@given(mutated(), st.sampled_from(["auto", *ENGINES]))
@FUZZ
def test_damaged_samples(data: bytes, engine: str) -> None:
    check(data, engine)


@given(mutated(), st.integers(1, 200))
@FUZZ
def test_cut_archives(data: bytes, cut: int) -> None:
    check(gzip.compress(data)[:-cut])


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
JSON = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
KEYS = [
    "num_accepted_draft_tokens", "num_spec_steps", "acceptance_histogram", "per_step_accepted", "per_step_drafted",
    "spec_verify_ct", "spec_accept_length", "spec_accept_histogram", "completion_tokens", "draft_n_accepted", "draft_n",
    "specDecodingStats", "numDraftTokens", "numAcceptedTokens", "numRequestsWithDraftTokens", "acceptanceLength",
    "avg_decoded_tokens_per_iter", "speculative_decoding", "total_accepted_draft_tokens", "accept_lengths",
    "new_tokens",
    "wall_time", "decoding_steps", "choices", "question_id", "category", "draft_count", "accept_count", "measured",
    "marginal_accept_rates", "conditional_accept_rates", "mean_accept_length", "acceptance_length_histogram",
    "spec_decode_num_drafts", "spec_decode_acceptance_length", "spec_decode_per_position_acceptance_rates", "itls",
    "output_lens", "ttfts", "avg_spec_accept_length", "accept_length", "mean_itl_ms", "mean_tpot_ms", "timings", "id",
    "num_speculative_tokens", "num_spec_tokens", "usage", "index", "timestamp", "iterLatencyMS", "verification_method",
]  # fmt: skip
COUNTS = (
    st.integers(0, 50)
    | st.lists(st.integers(0, 9), max_size=4)
    | st.floats(0, 9)
    | st.lists(st.floats(0, 1), max_size=3)
)
RECORDS = st.recursive(
    st.dictionaries(st.sampled_from(KEYS), COUNTS | JSON, min_size=1, max_size=9),
    lambda inner: st.dictionaries(st.sampled_from(KEYS), COUNTS | inner | st.lists(inner, max_size=2), max_size=4),
    max_leaves=5,
)


@given(st.lists(RECORDS, max_size=4), st.sampled_from([None, 1]), st.booleans())
@FUZZ
def test_any_json_under_known_names(records: list[object], indent: int | None, one_list: bool) -> None:
    documents = [records] if one_list else records
    check("\n".join(json.dumps(document, indent=indent) for document in documents).encode("utf-8", "surrogatepass"))


DEEP: list[Callable[[], bytes]] = [
    lambda: b"[" * 100_000,
    lambda: b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    lambda: b'{"spec_verify_ct": ' + b"[" * 50_000 + b"\n",
    lambda: b"{\n" * 20_000,
    lambda: b"{}\n" * 20_000,
    lambda: b"[1,\n" * 5_000 + b"x",
    lambda: b"SpecDecoding metrics:" * 20_000,
    lambda: b"accept len: Decode batch" * 20_000,
    lambda: b"#gen tokens = statistics a: #calls " + b"= , #" * 50_000,
    lambda: b"draft acceptance = 1 (" + b" " * 100_000,
    lambda: b"n_drafted =" + b" x" * 50_000,
    lambda: b'vllm:spec_decode_num_drafts_total{a="' + b'\\"' * 50_000 + b"\n",
    lambda: b"Acceptance length:" + b" -" * 50_000 + b"\n",
    lambda: b"\x1b]" * 50_000 + b"SpecDecoding metrics:",
    lambda: b"\xff\xfe" + b"S\x00" * 10_000,
    lambda: b"\n" * 100_000,
]


@given(st.sampled_from(range(len(DEEP))))
@example(0)
@settings(max_examples=40, deadline=5000)
def test_long_and_deep_input_ends_in_time(which: int) -> None:
    check(DEEP[which]())
