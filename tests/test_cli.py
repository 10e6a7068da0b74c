"""The command line: what scripts rely on."""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sim.records import read_metadata, read_rounds
from specdec_lab import app, main

COMMANDS = [
    *("simulate", "serve-sim", "replay", "latency", "sweep", "plan"),
    *("measure", "lab", "fit", "predict", "compare", "check-sampler", "greedy-diff"),
    *("import", "diagnose", "convert", "check", "report", "figures", "validate-published"),
]


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


def test_json_names_the_command_as_it_was_typed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*SIMULATE, "--out", "two words.jsonl", "--json"]
    monkeypatch.setattr("sim.records.write_rounds", lambda table, path: None)
    typed = "specdec simulate --alpha 0.8 --gamma 5 --cost-ratio 0.05 --rounds 20000 --out 'two words.jsonl' --json"
    assert call(monkeypatch, *words) == 0
    assert json.loads(capsys.readouterr().out)["command"] == typed
    monkeypatch.setattr(sys, "argv", ["another program", "--with", "options"])
    assert json.loads(CliRunner().invoke(app, words).stdout)["command"] == typed


def test_simulate_writes_a_round_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
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
        (("simulate", "--alpha", "much"), "Invalid value for '--alpha'"),
        (("simulate", "--alpha"), "Option '--alpha' requires an argument"),
        (("simulate", "--alfa", "0.8"), "No such option: --alfa"),
        (("simulation",), "No such command 'simulation'"),
        (("theory", "more"), "unexpected extra argument"),
        ((*SIMULATE, "--out", "/dev/null/x.parquet"), "cannot write /dev/null/x.parquet: /dev/null is no folder;"),
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
    *progress, error = capsys.readouterr().err.strip().splitlines()
    assert error.startswith("specdec: ")
    assert says in error
    assert not progress or words[0] == "lab"
    assert list(tmp_path.iterdir()) == []


CATEGORIES = ("red", "blue")


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six prompts in two categories, in the tiny model's words, each with a repetition to look up."""
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    lines = [
        {"id": f"{category}{i}", "category": category, "prompt": f"w{9 + k} w{i} w{i + 1} w{i + 2} w{i} w{i + 1}"}
        for k, category in enumerate(CATEGORIES)
        for i in range(6)
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


@pytest.fixture(scope="module")
def run_folder(model_folder: Path, prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole lab run on the tiny model."""
    folder = tmp_path_factory.mktemp("runs") / "lab"
    with pytest.MonkeyPatch.context() as patch:
        words = ("lab", "--target", str(model_folder), "--prompts", str(prompts), "--out", str(folder), "--json")
        drafts = ("--draft", "prompt-lookup@3:2", "--draft", "early-exit:2@2:1")
        sizes = ("--calibration-prompts", "3", "--evaluation-prompts", "3", "--max-new-tokens", "8")
        assert call(patch, *words, *drafts, *sizes) == 0
    return folder


def test_lab_leaves_everything_it_promises(run_folder: Path) -> None:
    import pandas as pd

    comparison = pd.read_csv(run_folder / "comparison.csv")
    assert list(comparison.columns[:11]) == [
        *("config", "draft", "gamma", "category", "held_out"),
        *("predicted", "predicted_lo", "predicted_hi", "measured", "measured_lo", "measured_hi"),
    ]
    held_out = comparison[comparison["held_out"]]
    assert sorted(zip(held_out["draft"], held_out["gamma"], held_out["category"], strict=True)) == [
        ("early-exit:2", 1, "blue"),
        ("early-exit:2", 1, "red"),
        ("prompt-lookup", 2, "blue"),
        ("prompt-lookup", 2, "red"),
    ]
    names = {path.name for path in run_folder.iterdir()}
    figure = {f"predicted_vs_measured.{suffix}" for suffix in ("png", "pdf", "csv")}
    assert names == {"rounds.parquet", "forwards.parquet", "run.json", "comparison.csv", "report.md"} | figure
    assert "mean absolute percentage error" in (run_folder / "report.md").read_text()


def test_compare_reproduces_the_comparison_of_the_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], run_folder: Path
) -> None:
    before = (run_folder / "comparison.csv").read_bytes()
    assert call(monkeypatch, "compare", str(run_folder), "--json") == 0
    assert (run_folder / "comparison.csv").read_bytes() == before
    result = json.loads(capsys.readouterr().out)
    assert result["configs"] == 4
    assert len(result["configurations"]) == 8


def test_the_committed_run_gives_the_readme_s_numbers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import pandas as pd

    root = Path(__file__).parents[1]
    folder = Path(shutil.copytree(root / "docs" / "lab", tmp_path / "lab"))
    assert call(monkeypatch, "compare", str(folder), "--json") == 0
    committed, again = (pd.read_csv(path / "comparison.csv") for path in (root / "docs" / "lab", folder))
    pd.testing.assert_frame_equal(again, committed, rtol=1e-6)
    headline = (folder / "report.md").read_text().split("\n\n")[1]
    assert headline in (root / "README.md").read_text()


def test_fit_and_predict_read_a_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], run_folder: Path
) -> None:
    assert call(monkeypatch, "fit", str(run_folder), "--json") == 0
    fits = json.loads(capsys.readouterr().out)
    assert set(fits["drafts"]) == {"prompt-lookup", "early-exit:2"}
    assert call(monkeypatch, "fit", str(run_folder)) == 0
    assert "early-exit:2" in capsys.readouterr().out
    assert call(monkeypatch, "predict", str(run_folder), "--draft", "early-exit:2", "--gamma", "1", "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["gamma"], row["category"]) for row in rows] == [(1, "blue"), (1, "red")]
    assert all(row["predicted_lo"] < row["predicted"] < row["predicted_hi"] for row in rows)
    assert call(monkeypatch, "predict", str(run_folder), "--draft", "other") == 2
    assert "drafts ['other'] were not calibrated" in capsys.readouterr().err


def test_measure_prints_what_scripts_rely_on(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    model_folder: Path,
    prompts: Path,
) -> None:
    words = ("measure", "--target", str(model_folder), "--draft", str(model_folder), "--gamma", "2", "--json")
    limits = ("--rule", "block_verification", "--temperature", "0.8", "--prompts", str(prompts))
    limits += ("--max-new-tokens", "9", "--out", str(tmp_path / "m"))
    assert call(monkeypatch, *words, *limits) == 0
    result = json.loads(capsys.readouterr().out)
    for name in ("speedup", "block_efficiency", "alpha", "alpha_ci", "tokens_per_second", "baseline_tokens_per_second"):
        assert result[name]
    assert result["loop_efficiency"] > 0
    assert result["alpha"] == 1  # the draft is the target
    made = read_metadata(tmp_path / "m" / "run.json")
    assert made.command == result["command"] == shlex.join(["specdec", *words, *limits])
    assert made.prompts_file == str(prompts)
    assert made.prompts_sha256 == hashlib.sha256(prompts.read_bytes()).hexdigest()
    assert made.settings["rule"] == "block_verification"
    assert call(monkeypatch, *words, *limits) == 2
    assert "already holds a run" in capsys.readouterr().err


def test_greedy_diff_finds_no_bug(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], model_folder: Path, prompts: Path
) -> None:
    words = ("greedy-diff", "--target", str(model_folder), "--draft", "early-exit:2", "--prompts", str(prompts))
    assert call(monkeypatch, *words, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert {row["prompt"] for row in found} == {"red0", "blue0"}
    assert {row["kind"] for row in found} <= {"identical", "numeric tie"}


class TestCheckSampler:
    """The samplers are those that the harness itself ships."""

    def test_a_correct_sampler_passes_with_code_zero(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        (tmp_path / "sound.py").write_text(
            "from analysis.losslessness.rules import REJECTION_SAMPLING, chain_sampler\n"
            "sampler = chain_sampler(REJECTION_SAMPLING)\n"
        )
        monkeypatch.chdir(tmp_path)
        assert call(monkeypatch, "check-sampler", "sound:sampler", "--max-samples", "20000", "--json") == 0
        result = json.loads(capsys.readouterr().out)
        assert result["lossless"] is True
        assert {"verdict", "p_value", "e_value", "samples", "detectable_tv", "worst_cell"} <= set(result)

    def test_a_sampler_that_always_accepts_is_caught_with_code_one(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        (tmp_path / "hasty.py").write_text(
            "import numpy as np\n"
            "def sampler(p, q, n, rng):\n"
            "    rows = np.broadcast_to(np.concatenate([q, p[..., -1:, :]], axis=-2), (n, *p.shape[-2:]))\n"
            "    return (rng.random((n, p.shape[-2], 1)) > rows.cumsum(-1)).sum(-1).clip(max=p.shape[-1] - 1)\n"
        )
        monkeypatch.chdir(tmp_path)
        assert call(monkeypatch, "check-sampler", "hasty:sampler", "--json", "--out", "found") == 1
        assert json.loads(capsys.readouterr().out)["lossless"] is False
        assert json.loads((tmp_path / "found" / "check.json").read_text())["lossless"] is False
        assert (tmp_path / "found" / "mass_moved.png").exists()

    @pytest.mark.parametrize(
        ("words", "says"),
        [
            ((), "name a sampler as module:callable"),
            (("nowhere",), "a sampler is named module:callable, got 'nowhere'"),
            (("nowhere:sampler",), "cannot import 'nowhere'"),
            (("json:dumps",), "dumps"),
        ],
    )
    def test_bad_use_is_code_two(
        self,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        words: tuple[str, ...],
        says: str,
    ) -> None:
        assert call(monkeypatch, "check-sampler", *words) == 2
        assert says in capsys.readouterr().err


def test_an_error_is_one_line_and_debug_shows_where(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = ("simulate", "--alpha", "1.8", "--gamma", "2", "--cost-ratio", "0.1")
    assert call(monkeypatch, *wrong) == 2
    assert capsys.readouterr().err.count("\n") == 1
    for words in (("--debug", *wrong), (*wrong, "--debug")):
        monkeypatch.setattr(sys, "argv", ["specdec", *words])
        with pytest.raises(ValueError, match=r"alpha must be in \[0, 1\], got 1.8"):
            main()


def test_a_bare_call_prints_the_help(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch) == 2
    out, err = capsys.readouterr()
    assert "Usage: specdec" in out
    assert err == ""


@pytest.mark.parametrize("words", [("simulate", "--out", "half.parquet"), ("report", "docs/lab", "--out", "half.html")])
def test_ctrl_c_is_code_130_and_leaves_no_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: tuple[str, ...]
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    words = (*SIMULATE, *words[1:]) if words[0] == "simulate" else words
    shutil.copytree(Path(__file__).parents[1] / "docs" / "lab", tmp_path / "docs" / "lab")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sim.records.os.replace", interrupt)  # when all of it is written, but not yet in its place
    assert call(monkeypatch, *words) == 130
    assert [path.name for path in tmp_path.iterdir()] == ["docs"]


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_a_shell_completes_commands_and_options(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], shell: str
) -> None:
    for typed, completed in (("val", "validate-published"), ("plan --accept", "--acceptance-ci")):
        monkeypatch.setenv("_SPECDEC_COMPLETE", f"complete_{shell}")
        monkeypatch.setenv("COMP_WORDS", f"specdec {typed}")
        monkeypatch.setenv("COMP_CWORD", str(typed.count(" ") + 1))
        monkeypatch.setenv("_TYPER_COMPLETE_ARGS", f"specdec {typed}")
        assert call(monkeypatch) == 0
        assert completed in capsys.readouterr().out


def test_a_fault_that_no_check_foresaw_is_one_line_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> None:
        raise RuntimeError("out of cheese")

    monkeypatch.setattr("sim.theory.source_table", broken)
    assert call(monkeypatch, "theory") == 3
    assert capsys.readouterr().err == "specdec: RuntimeError: out of cheese; `specdec --debug ...` shows where\n"
