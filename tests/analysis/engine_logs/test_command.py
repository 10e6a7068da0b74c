"""`specdec import`: what scripts rely on."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pandas as pd
import pytest

from specdec_lab import main

SAMPLES = Path(__file__).parent / "samples"


def call(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """Run `specdec import WORDS` and return its exit code."""
    monkeypatch.setattr(sys, "argv", ["specdec", "import", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


@pytest.mark.parametrize("name", sorted(path.name for path in SAMPLES.iterdir()))
def test_json_has_every_promised_key(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert call(monkeypatch, str(SAMPLES / name), "--json") == 0
    result = json.loads(capsys.readouterr().out)
    promised = {
        "engine", "rounds", "drafted", "accepted", "mean_acceptance_length", "marginal_acceptance",
        "conditional_acceptance", "warnings", "skipped_lines",
    }  # fmt: skip
    assert promised <= result.keys()
    assert isinstance(result["warnings"], list)
    assert result["skipped_lines"] == 0


def test_the_same_for_people_names_warnings_and_notes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, str(SAMPLES / "vllm_v0.log"), "--engine", "vLLM") == 0
    out = capsys.readouterr().out
    assert "3.2462" in out
    assert "warning: accepted 1,735 counts tokens after the first rejection" in out
    assert "note: rounds are drafted tokens / speculative tokens per round" in out


def test_out_writes_summary_profile_and_tables(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = tmp_path / "vllm"
    for _ in range(2):  # a second import replaces the first
        assert call(monkeypatch, str(SAMPLES / "vllm.log"), "--out", str(folder), "--json") == 0
    printed = capsys.readouterr().out.splitlines()[-1]
    assert {path.name for path in folder.iterdir()} == {"import.json", "series.parquet", "speculation_profile.json"}
    assert json.loads((folder / "import.json").read_text()) == json.loads(printed)
    assert pd.read_parquet(folder / "series.parquet")["accepted"].tolist() == [90]
    assert call(monkeypatch, str(folder / "speculation_profile.json"), "--json") == 0
    profile = json.loads(capsys.readouterr().out)
    assert (profile["engine"], profile["marginal_acceptance"], profile["gamma"]) == ("speculation-profile", [1, 1], 2)
    for name, tables in (("spec_bench.jsonl", {"requests", "steps"}), ("llama_server.log", {"requests", "series"})):
        assert call(monkeypatch, str(SAMPLES / name), "--out", str(tmp_path / name)) == 0
        assert {path.stem for path in (tmp_path / name).glob("*.parquet")} == tables


def test_a_run_of_this_program_is_imported_and_written_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = Path(__file__).parents[3] / "docs" / "lab"
    assert call(monkeypatch, str(run), "--out", str(tmp_path / "a"), "--json") == 0
    first = json.loads(capsys.readouterr().out)
    assert call(monkeypatch, str(tmp_path / "a"), "--json") == 0
    again = {"files": [str(tmp_path / "a")], "command": f"specdec import {tmp_path / 'a'} --json"}
    assert json.loads(capsys.readouterr().out) == first | again


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "Missing argument 'FILE...'"),
        (("nowhere.log",), "cannot read nowhere.log: No such file or directory"),
        (("text.log",), "known formats: vllm:"),
        (("text.log", "--engine", "tgi"), "unknown engine 'tgi'"),
        ((str(SAMPLES / "vllm.log"), "--out", "text.log"), "--out text.log is a file"),
        ((str(SAMPLES / "vllm.log"), "--engine", "sglang"), "holds nothing of sglang"),
    ],
)
def test_bad_use_is_one_line_and_exit_code_two(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    words: tuple[str, ...],
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.log").write_text("hello\n")
    assert call(monkeypatch, *words) == 2
    error = capsys.readouterr().err
    assert says in error
    assert "Traceback" not in error
    assert len(list(tmp_path.iterdir())) == 1
