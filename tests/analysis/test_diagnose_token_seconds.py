"""Seconds per token out of what engines print and benchmarks save."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from analysis.diagnose.token_seconds import token_seconds

VLLM = "Avg generation throughput: {} tokens/s, Running: {} reqs, Waiting: 0 reqs\n"
SGLANG = "[2026-08-23 09:06:21 TP0] Decode batch. #running-req: {}, gen throughput (token/s): {}, #queue-req: 0\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Mean TPOT (ms):                          35.39     \n", 0.03539),
        (
            "prompt eval time = 900.0 ms / 9 tokens\n eval time = 100.0 ms / 4 tokens\n eval time = 50.0 ms / 6 runs\n",
            0.015,
        ),
        (VLLM.format(40, 2) + VLLM.format(0.0, 0) + VLLM.format(3, 2) + VLLM.format(40, 2), 0.05),
        ("\x1b[36m" + SGLANG.format(4, 80.0) + "\x1b[0m", 0.05),
        (
            json.dumps({"mean_tpot_ms": 20, "completed": 1}) + "\n" + json.dumps({"mean_tpot_ms": 40, "completed": 3}),
            0.035,
        ),
        (json.dumps({"itls": [[0.1, 0.1], [0.4]], "output_lens": [4, 4]}), 0.1),
        (json.dumps([{"timings": {"predicted_ms": 500.0, "predicted_n": 10}}]), 0.05),
        (json.dumps({"choices": [{"wall_time": [1.0, 2.0], "new_tokens": [20, 40]}]}), 0.05),
        ("nothing of the kind\n", None),
        ("", None),
        (VLLM.format(".", 1), None),
        (json.dumps({"mean_tpot_ms": None, "itls": "x", "output_lens": 3}), None),
    ],
)
def test_every_source_gives_its_own_number(tmp_path: Path, text: str, expected: float | None) -> None:
    (tmp_path / "plain").write_text(text)
    (tmp_path / "packed").write_bytes(gzip.compress(text.replace("\n", "\r\n").encode()))
    for name in ("plain", "packed"):
        found = token_seconds(tmp_path / name)
        assert found == (None if expected is None else pytest.approx(expected))


def test_a_folder_or_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a folder without a round table"):
        token_seconds(tmp_path)
    with pytest.raises(ValueError, match="cannot read"):
        token_seconds(tmp_path / "nowhere")


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.one_of(
        st.binary(max_size=200),
        st.lists(
            st.sampled_from(["eval time = ", "Mean TPOT (ms): ", "9.9.9", "1e999", " ms / ", " tokens", "\n", "{", "["])
        ).map(lambda parts: "".join(parts).encode()),
        st.recursive(
            st.none() | st.booleans() | st.floats() | st.text(max_size=3),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(["itls", "output_lens", "mean_tpot_ms", "predicted_ms", "wall_time"]), inner
                )
            ),
        ).map(lambda value: json.dumps(value).encode()),
    )
)
def test_no_file_crashes_it(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    found = token_seconds(tmp_path / "file")
    assert found is None or 0 < found < float("inf")
