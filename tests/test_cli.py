"""The command line: what scripts rely on."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from specdec_lab import main

COMMANDS = ["lab", "simulate", "measure", "fit", "predict", "compare"]


def call(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """Run `specdec WORDS` and return its exit code."""
    monkeypatch.setattr(sys, "argv", ["specdec", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


SIMULATE = ("simulate", "--alpha", "0.8", "--gamma", "5", "--cost-ratio", "0.05", "--rounds", "20000")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_s_help_has_an_example(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    assert call(monkeypatch, command, "--help") == 0
    assert f"specdec {command}" in capsys.readouterr().out
    assert call(monkeypatch, "--help") == 0
    assert command in capsys.readouterr().out


@pytest.mark.parametrize("engine", ["numpy", "simpy"])
def test_simulate_prints_one_json_object(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], engine: str
) -> None:
    assert call(monkeypatch, *SIMULATE, "--seed", "0", "--engine", engine, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    low, high = result["block_efficiency_ci"]
    assert low < result["block_efficiency"] < high
    low, high = result["speedup_ci"]
    assert low < result["speedup"] < high
    assert result["rounds_per_second"] > 0
    assert abs(result["block_efficiency"] - 3.689) < 0.05


def test_the_same_seed_prints_the_same_numbers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    outputs = []
    for _ in range(2):
        call(monkeypatch, *SIMULATE, "--seed", "4", "--json")
        outputs.append({k: v for k, v in json.loads(capsys.readouterr().out).items() if k != "rounds_per_second"})
    assert outputs[0] == outputs[1]


def test_simulate_writes_a_round_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from sim.records import read_rounds

    assert call(monkeypatch, *SIMULATE, "--out", str(tmp_path / "rounds.parquet")) == 0
    assert len(read_rounds(tmp_path / "rounds.parquet")) == 20000


def test_theory_prints_the_source_table_beside_formula_and_exact_values(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "theory") == 0
    lines = capsys.readouterr().out.split("\n")
    assert lines[2].split() == ["0.7", "8", "2.5", "2.581", "3.199"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("simulate", "--alpha", "1.8", "--gamma", "5", "--cost-ratio", "0.1"), "alpha must be in [0, 1], got 1.8"),
        (("simulate", "--alpha", "0.8"), "Missing option '--gamma'"),
        ((*SIMULATE, "--engine", "fast"), "engine must be 'auto', 'numpy' or 'simpy', got 'fast'"),
        (("fit", "nowhere"), "no round table at nowhere"),
        (("compare", "nowhere"), "nowhere/run.json is not readable run metadata"),
        (("measure", "--draft", "prompt-lookup", "--out", "x", "--temperature", "-1"), "temperature must be >= 0"),
        (("measure", "--draft", "prompt-lookup", "--out", "x", "--prompts", "nowhere"), "cannot read the prompts"),
        (("lab", "--out", "x", "--draft", "prompt-lookup"), "is not NAME@CALIBRATED:MEASURED"),
        (("lab", "--out", "x", "--device", "gpu"), "unknown device 'gpu'"),
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
    assert call(monkeypatch, *words) == 2
    error = capsys.readouterr().err
    assert says in error
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []
