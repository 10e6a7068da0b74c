"""Diagnoses of files: run folders, round tables, engines' logs, and the command."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from analysis.diagnose import diagnose
from analysis.diagnose.logs import diagnose_files
from sim.records import ROUND_SECONDS, write_rounds
from specdec_lab import main
from tests.analysis.planted import planted_run as run

SAMPLES = Path(__file__).parent / "engine_logs" / "samples"


def test_a_folder_and_its_table_give_the_same(tmp_path: Path) -> None:
    table = run("slow_draft", 24)
    write_rounds(table, tmp_path / "rounds.parquet")
    write_rounds(table, tmp_path / "rounds.jsonl")
    expected = diagnose(table).to_json()
    for path in (tmp_path, tmp_path / "rounds.parquet", tmp_path / "rounds.jsonl"):
        assert diagnose_files(path).to_json() == expected


def test_of_a_log_acceptance_is_diagnosed() -> None:
    found = diagnose_files(SAMPLES / "vllm_request.json")
    assert [one.name for one in found.causes] == ["low_acceptance"]
    assert found.speedup is None
    assert found.causes[0].log_loss == pytest.approx(np.log(4 / 1.2325581))
    assert "19% of tested tokens are accepted" in found.causes[0].remedy


def test_a_log_of_a_broken_draft_names_it(tmp_path: Path) -> None:
    line = (
        "INFO 09-16 05:{:02d}:57 [metrics.py:120] SpecDecoding metrics: Mean acceptance length: 1.00, Accepted "
        "throughput: 0.00 tokens/s, Drafted throughput: 9.00 tokens/s, Accepted: 0 tokens, Drafted: 90 tokens, "
        "Per-position acceptance rate: 0.000, 0.000, 0.000, Avg Draft acceptance rate: 0.0%\n"
    )
    (tmp_path / "server.log").write_text("".join(line.format(minute) for minute in range(30)))
    found = diagnose_files(tmp_path / "server.log")
    assert [one.name for one in found.causes] == ["draft_not_loaded"]
    assert found.ideal_speedup == 4
    assert "0 of 2,700 drafted tokens were accepted" in found.causes[0].remedy


def test_logs_with_times_give_a_speedup_and_what_acceptance_explains_of_it(tmp_path: Path) -> None:
    rows = []
    rng = np.random.default_rng(25)
    for question in range(40):
        lengths = (1 + rng.binomial(4, 0.5, 50)).tolist()
        choice = {"index": 0, "new_tokens": [sum(lengths)], "wall_time": [0.06 * 50], "accept_lengths": lengths}
        rows.append(json.dumps({"question_id": question, "category": "qa", "choices": [choice]}))
    (tmp_path / "own.jsonl").write_text("\n".join(rows) + "\n")
    table = run(None, 25)
    steps = table[table["gamma"] == 0]
    write_rounds(steps, tmp_path / "plain.parquet")
    found = diagnose_files(tmp_path / "own.jsonl", tmp_path / "plain.parquet")
    tau = found.block_efficiency
    assert tau is not None
    plain = steps[list(ROUND_SECONDS)].to_numpy().sum() / len(steps)
    assert found.speedup == pytest.approx(plain * tau / 0.06)
    assert found.ideal_speedup == 5
    (cause,) = found.causes
    assert cause.share == pytest.approx(np.log(5 / tau) / np.log(5 / found.speedup))
    assert any("of the loss is time of rounds" in warning for warning in found.warnings)
    with pytest.raises(ValueError, match="leave draft and gamma out"):
        diagnose_files(tmp_path / "own.jsonl", gamma=2)


def test_a_log_is_no_baseline_of_a_round_table(tmp_path: Path) -> None:
    write_rounds(run(None, 26), tmp_path / "rounds.parquet")
    with pytest.raises(ValueError, match="must be a round table too"):
        diagnose_files(tmp_path, SAMPLES / "vllm.log")


def call(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["specdec", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_the_command_prints_json_a_table_and_a_figure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "rounds.parquet"
    write_rounds(run("verify_width", 27), path)
    assert call(monkeypatch, "diagnose", str(path), "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert {"causes", "speedup", "speedup_ci", "ideal_speedup", "split", "warnings", "verdict"} <= set(result)
    assert {"name", "share", "seconds_per_token", "remedy", "evidence"} <= set(result["causes"][0])
    assert result["causes"][0]["name"] == "verify_width"
    assert call(monkeypatch, "diagnose", str(path), "--out", str(tmp_path / "out")) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("speculation ")
    assert "forwards of one token" in printed
    assert sorted(one.name for one in (tmp_path / "out").iterdir()) == [f"waterfall.{s}" for s in ("csv", "pdf", "png")]
    assert call(monkeypatch, "diagnose", str(tmp_path / "nowhere.parquet")) == 2
    assert "no round table at" in capsys.readouterr().err
    assert call(monkeypatch, "diagnose", str(SAMPLES / "vllm.log"), "--out", str(tmp_path / "log")) == 2
    assert "which is not known; give a baseline" in capsys.readouterr().err
    assert not (tmp_path / "log").exists()
