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
    assert found.causes[0].log_loss == pytest.approx(np.log(2.952 / 1.2325581))
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
    assert found.ideal_speedup == pytest.approx(1 + 0.8 + 0.8**2 + 0.8**3)
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
    ideal = (1 - 0.8**5) / 0.2
    assert found.ideal_speedup == pytest.approx(ideal)
    acceptance, rounds = sorted(found.causes, key=lambda one: one.name, reverse=True)
    assert (acceptance.name, rounds.name) == ("low_acceptance", "draft_verify_or_overhead")
    assert acceptance.share == pytest.approx(np.log(ideal / tau) / np.log(ideal / found.speedup))
    assert rounds.share == pytest.approx(1 - acceptance.share)
    assert acceptance.seconds_per_token + rounds.seconds_per_token == pytest.approx(0.06 / tau - plain / ideal)
    assert f"a round takes {0.06 / plain:.2f} plain steps" in rounds.remedy
    with pytest.raises(ValueError, match="leave draft and gamma out"):
        diagnose_files(tmp_path / "own.jsonl", gamma=2)


def test_a_log_with_times_is_a_baseline_of_a_round_table(tmp_path: Path) -> None:
    table = run("engine_overhead", 26)
    write_rounds(table[table["gamma"] > 0], tmp_path / "rounds.parquet")
    seconds = float(table.loc[table["gamma"] == 0, list(ROUND_SECONDS)].sum(axis=1).mean())
    (tmp_path / "without.json").write_text(json.dumps({"mean_tpot_ms": 1e3 * seconds, "completed": 5}))
    found = diagnose_files(tmp_path, tmp_path / "without.json")
    assert found.speedup == pytest.approx(diagnose(table).speedup, rel=1e-3)
    assert found.causes[0].name == "engine_overhead"
    with pytest.raises(ValueError, match=r"speculates too \(mean acceptance length 3.00\); give a run without"):
        diagnose_files(tmp_path, SAMPLES / "vllm.log")
    with pytest.raises(ValueError, match="does not say how long its tokens took"):
        diagnose_files(tmp_path, SAMPLES / "sglang_request.json")


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def bench(step_seconds: float, length: float, speculative: bool, gamma: int = 4) -> str:
    """What `vllm bench serve --save-result` saves of 20 requests of 121 tokens."""
    chunks = round(120 / length)
    saved: dict[str, object] = {"completed": 20, "mean_tpot_ms": 1e3 * step_seconds * chunks / 120}
    if speculative:
        accepted = 20 * (120 - chunks)
        saved |= {
            "spec_decode_acceptance_length": 1 + accepted / (20 * chunks),
            "spec_decode_acceptance_rate": 100 * accepted / (20 * chunks * gamma),
            "spec_decode_num_drafts": 20 * chunks,
            "spec_decode_draft_tokens": 20 * chunks * gamma,
            "spec_decode_accepted_tokens": accepted,
        }
    return json.dumps(saved)


@pytest.mark.parametrize(
    ("name", "step_seconds", "length"),
    [
        ("low_acceptance", 0.033, 1.2),
        ("draft_verify_or_overhead", 0.09, 3.0),
        ("draft_not_loaded", 0.033, 1.0),
    ],
)
def test_a_saved_benchmark_is_compared_with_one_without(
    tmp_path: Path, name: str, step_seconds: float, length: float
) -> None:
    own = write(tmp_path / "own.json", bench(step_seconds, length, speculative=True))
    plain = write(tmp_path / "plain.json", bench(0.03, 1.0, speculative=False))
    found = diagnose_files(own, plain)
    assert found.causes[0].name == name
    assert found.speedup == pytest.approx(0.03 * length / step_seconds)
    assert sum(one.share or 0 for one in found.causes) == pytest.approx(1)


def llama(draft_ms: float | None, step_ms: float = 30.0, times: bool = True) -> str:
    """A llama.cpp server's lines of 10 requests: 100 rounds of 3 drafted tokens, 200 accepted; None: no speculation."""
    lines = []
    for task in range(10):
        milliseconds = 300 * step_ms if draft_ms is None else 100 * (step_ms + draft_ms)
        head = f"slot print_timing: id  0 | task {task} |"
        if times:
            lines.append(f"{head}        eval time = {milliseconds:10.2f} ms /   300 tokens (  1.00 ms per token)")
        if draft_ms is not None:
            done = 100 * (task + 1)
            lines.append(
                f"statistics draft-eagle3: #calls(b,g,a) = {task + 1} {done} {done}, #gen drafts = {done}, #acc drafts "
                f"= {done * 4 // 5}, #gen tokens = {3 * done}, #acc tokens = {2 * done}, #mean acc len = 3.00, "
                f"#acc rate/pos = (0.800, 0.650, 0.550), dur(b,g,a) = 0.005, {done * draft_ms:.3f}, 0.114 ms"
            )
    return "\n".join(lines) + "\n"


def test_a_slow_draft_of_llama_cpp_is_named_first_from_its_statistics(tmp_path: Path) -> None:
    plain = write(tmp_path / "plain.log", llama(None))
    for timed, baseline in ((True, None), (True, plain), (False, plain), (False, None)):
        found = diagnose_files(write(tmp_path / "own.log", llama(60.0, times=timed)), baseline)
        first = found.causes[0]
        assert first.name == "slow_draft"
        assert found.split["draft_ms_per_token"] == pytest.approx(20)
        weighed = timed or baseline is not None
        assert (first.share is not None) == weighed
        assert ("costs 2.00" in first.remedy) == weighed
        assert (found.speedup is not None) == (timed and baseline is not None)
    assert first.seconds_per_token == pytest.approx(0.02)
    assert "whether that is much depends on the target's forward" in first.remedy
    cheap = diagnose_files(write(tmp_path / "own.log", llama(1.0)), plain)
    assert cheap.speedup == pytest.approx(30 * 3 / 31)
    assert cheap.verdict.endswith("no cause stands out")


def test_times_of_a_log_that_do_not_agree_are_not_used_together(tmp_path: Path) -> None:
    text = llama(60.0).replace(" 9000.00 ms", " 3000.00 ms")
    found = diagnose_files(write(tmp_path / "own.log", text), write(tmp_path / "plain.log", llama(None)))
    assert "slow_draft" not in {one.name for one in found.causes}
    assert any("times do not agree" in warning for warning in found.warnings)


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


def test_what_a_round_takes_is_weighed_where_the_draft_length_is_not_known(tmp_path: Path) -> None:
    own = SAMPLES / "sglang_older.log"
    fast, slow = (write(tmp_path / name, bench(seconds, 1.0, False)) for name, seconds in (("a", 0.01), ("b", 0.05)))
    found = diagnose_files(own, fast)
    assert [one.name for one in found.causes] == ["draft_verify_or_overhead"]
    assert found.ideal_speedup is None
    assert found.speedup == pytest.approx(0.01 * 98.11, rel=0.01)
    assert [one.name for one in diagnose_files(own, slow).gains] == ["draft_verify_or_overhead"]
    assert diagnose_files(SAMPLES / "sglang_bench.txt").verdict.endswith("what is known names no cause")
