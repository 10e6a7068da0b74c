"""The commands that simulate servers, replay traces, price forwards and sweep: what scripts rely on."""

import json
import pickle
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from sim.latency import latency_from_json
from sim.replay import read_positional_trace, replay, replay_summary
from sim.scenario_files import run_scenario
from sim.scenario_parts import read_scenario
from sim.sweep.design import scenario_at
from sim.sweep.reading import read_design
from tests.test_cli import call

SHIPPED = {path.stem: path for path in (Path(__file__).parents[1] / "sim" / "scenarios").glob("*.yaml")}
SWEEPS = {name: path for name, path in SHIPPED.items() if "scenario" in read_scenario(path)}
SCENARIOS = {name: path for name, path in SHIPPED.items() if name not in SWEEPS}
KINDS = {name: read_scenario(path).get("kind", "serving") for name, path in SCENARIOS.items()}
SERVERS = sorted(name for name, kind in KINDS.items() if kind == "serving")
UNDER_LOAD = str(SHIPPED["policies_under_load"])
LLAMA = str(SHIPPED["llama_8b_h100"])
MEASURES = {"waiting_seconds", "ttft_seconds", "tpot_seconds", "latency_seconds", "itl_seconds"}
STATISTICS = {"mean", "p50", "p90", "p95", "p99"}

Monkey = pytest.MonkeyPatch
Captured = pytest.CaptureFixture[str]


def printed(monkeypatch: Monkey, capsys: Captured, *words: str) -> Any:
    """What `specdec WORDS --json` prints, beside that command itself."""
    assert call(monkeypatch, *words, "--json") == 0
    out, err = capsys.readouterr()
    assert err == ""
    found = json.loads(out)
    assert found.pop("command") == shlex.join(["specdec", *words, "--json"])
    return found


def refused(monkeypatch: Monkey, capsys: Captured, *words: str) -> str:
    """The one line that bad use prints, with exit code 2 and nothing on stdout."""
    assert call(monkeypatch, *words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.strip().splitlines()
    assert line.startswith("specdec: ")
    return line


class TestServeSim:
    @pytest.mark.parametrize("name", sorted(SCENARIOS))
    def test_every_shipped_scenario_runs(self, monkeypatch: Monkey, capsys: Captured, name: str) -> None:
        fewer = ("--set", "requests=60") if "requests" in read_scenario(SCENARIOS[name]) else ()
        found = printed(monkeypatch, capsys, "serve-sim", str(SCENARIOS[name]), *fewer, "--seed", "3")
        assert (found["seed"], found["replications"]) == (3, 1)
        assert found["tokens_per_second" if KINDS[name] == "serving" else "speedup"] > 0

    @pytest.mark.parametrize("name", SERVERS)
    def test_a_server_s_measures_are_all_there(self, monkeypatch: Monkey, capsys: Captured, name: str) -> None:
        found = printed(monkeypatch, capsys, "serve-sim", str(SCENARIOS[name]), "--set", "requests=60")
        for measure in MEASURES:
            assert set(found[measure]) >= STATISTICS
            assert found[measure]["p50"] <= found[measure]["p90"] <= found[measure]["p99"]
        for measure in ("tokens_per_second", "requests_per_second", "goodput_requests_per_second"):
            low, high = found[f"{measure}_ci"]
            assert low < found[measure] < high
        assert found["block_efficiency"] > 1
        assert set(found["queue"]) == {"mean", "max"}
        assert set(found["kv_tokens"]) == {"mean", "max"}
        assert set(found["over_time"]) == {"seconds", "queue", "batch", "kv_tokens", "tokens_per_second"}

    def test_a_measure_has_its_interval_where_the_run_is_long_enough(
        self, monkeypatch: Monkey, capsys: Captured
    ) -> None:
        found = printed(monkeypatch, capsys, "serve-sim", UNDER_LOAD, "--set", "requests=200", "--set", "warm_up=0")
        for measure in MEASURES:
            low, high = found[measure]["mean_ci"]
            assert low < found[measure]["mean"] < high

    def test_the_same_seed_prints_the_same_bytes(self, monkeypatch: Monkey, capsys: Captured) -> None:
        words = ("serve-sim", UNDER_LOAD, "--set", "requests=80", "--json", "--seed")
        outputs = []
        for seed in ("1", "1", "2"):
            assert call(monkeypatch, *words, seed) == 0
            outputs.append(capsys.readouterr().out)
        assert outputs[0] == outputs[1]
        assert outputs[1] != outputs[2].replace('"seed": 2', '"seed": 1')

    @pytest.mark.parametrize("name", SERVERS)
    def test_gamma_zero_is_the_server_without_a_policy_to_the_last_bit(
        self, monkeypatch: Monkey, capsys: Captured, name: str
    ) -> None:
        words = ("serve-sim", str(SCENARIOS[name]), "--set", "requests=80")
        nothing_drafted = printed(monkeypatch, capsys, *words, "--set", "policy={kind: fixed, gamma: 0}")
        without = printed(monkeypatch, capsys, *words, "--set", "policy=")
        assert nothing_drafted == without
        assert printed(monkeypatch, capsys, *words)["latency_seconds"] != without["latency_seconds"]

    def test_a_baseline_is_compared_with(self, monkeypatch: Monkey, capsys: Captured) -> None:
        found = printed(monkeypatch, capsys, "serve-sim", UNDER_LOAD, "--set", "requests=80", "--baseline")
        assert found["tpot_ratio"] == found["tpot_seconds"]["mean"] / found["baseline"]["tpot_seconds"]["mean"]
        assert found["throughput_ratio"] > 1 > found["latency_ratio"]
        assert "ask for replications" in found["remarks"][0]
        assert found["baseline"]["block_efficiency"] == 1

    def test_replications_give_the_ratios_intervals(self, monkeypatch: Monkey, capsys: Captured) -> None:
        words = ("serve-sim", UNDER_LOAD, "--set", "requests=60", "--baseline", "--replications", "3")
        found = printed(monkeypatch, capsys, *words)
        assert found["replications"] == 3
        for name in ("throughput_ratio", "ttft_ratio", "tpot_ratio", "latency_ratio"):
            low, high = found[f"{name}_ci"]
            assert low < found[name] < high
        assert found["tpot_seconds"]["p99_ci"][0] < found["tpot_seconds"]["p99"]
        assert found["remarks"] == []
        assert "over_time" not in found
        same = printed(monkeypatch, capsys, *words, "--set", "policy={kind: fixed, gamma: 0}")
        assert same["throughput_ratio"] == same["latency_ratio"] == 1

    @pytest.mark.parametrize("name", sorted(name for name, kind in KINDS.items() if kind != "serving"))
    def test_what_is_no_server_is_replicated_too(self, monkeypatch: Monkey, capsys: Captured, name: str) -> None:
        found = printed(monkeypatch, capsys, "serve-sim", str(SCENARIOS[name]), "--replications", "3")
        low, high = found["speedup_ci"]
        assert low < found["speedup"] < high
        assert "speedup_lo" not in found

    def test_replicating_goes_on_until_intervals_are_narrow(self, monkeypatch: Monkey, capsys: Captured) -> None:
        words = ("serve-sim", str(SHIPPED["tree_single"]), "--set", "requests=5", "--relative-half-width", "0.2")
        found = printed(monkeypatch, capsys, *words)
        assert found["replications"] == 10
        low, high = found["speedup_ci"]
        assert (high - low) / 2 < 0.2 * found["speedup"]

    def test_out_holds_the_tables(self, monkeypatch: Monkey, capsys: Captured, tmp_path: Path) -> None:
        words = ("serve-sim", UNDER_LOAD, "--set", "requests=59", "--set", "warm_up=0", "--out", str(tmp_path / "t"))
        found = printed(monkeypatch, capsys, *words)
        requests, steps = (pd.read_parquet(tmp_path / "t" / f"{name}.parquet") for name in ("requests", "steps"))
        assert len(requests) == found["requests"] == 59
        for measure in MEASURES - {"itl_seconds"}:  # of all requests, though 59 make no whole number of batches
            assert requests[measure].mean() == pytest.approx(found[measure]["mean"])
        assert steps["batch"].max() == found["batch"]["max"]
        assert json.loads((tmp_path / "t" / "run.json").read_text())["scenario"]["requests"] == 59

    def test_people_get_a_table_and_a_progress_bar(self, monkeypatch: Monkey, capsys: Captured) -> None:
        words = ("serve-sim", UNDER_LOAD, "--set", "requests=50", "--baseline", "--replications", "2")
        assert call(monkeypatch, *words) == 0
        out, err = capsys.readouterr()
        assert out.splitlines()[0].split() == ["estimate", "95%", "interval", "without", "speculation"]
        rows = {line.split("  ")[0]: line.split() for line in out.splitlines()}
        assert "to" in rows["ttft_seconds mean"]
        assert "to" in rows["throughput ratio"]
        assert "replications" in err

    @pytest.mark.parametrize(
        ("words", "says"),
        [
            (("nowhere.yaml",), "nowhere.yaml is not a readable scenario"),
            ((UNDER_LOAD, "--set", "policy"), "a change must read key.key=value, got 'policy'"),
            ((UNDER_LOAD, "--set", "speed=1"), "a serving scenario does not know speed"),
            ((UNDER_LOAD, "--set", "acceptance.alpha=1.2"), "acceptance: alpha must be in [0, 1], got 1.2"),
            ((UNDER_LOAD, "--set", "requests=0"), "workload requests must be a whole number from 1"),
            ((UNDER_LOAD, "--set", "policy={"), "the value of policy is not YAML"),
            ((UNDER_LOAD, "--replications", "0"), "replications must be >= 2, got 0"),
            (
                (UNDER_LOAD, "--replications", "3", "--relative-half-width", "0.1"),
                "give exactly one of replications and relative_half_width, got 3 and 0.1",
            ),
            ((LLAMA, "--set", "latency.target.device=h1000"), "no device named 'h1000'; did you mean h100"),
            ((LLAMA, "--set", "latency.target.architecture=llama-9"), "got 'llama-9'"),
            ((LLAMA, "--set", "latency.target.architecture=llama-3.1-70b"), "h100 holds 80.0 GiB, but each of 1 needs"),
            ((LLAMA, "--set", "memory.gib=16"), "memory cannot hold llama-3.1-8b and llama-3.2-1b"),
            ((LLAMA, "--set", "memory.kv_tokens=100"), "memory has kv_tokens, so leave out"),
            ((str(SHIPPED["tree_single"]), "--baseline"), "only a serving scenario has tables and a baseline"),
        ],
    )
    def test_bad_use_is_one_line_that_names_the_key(
        self, monkeypatch: Monkey, capsys: Captured, tmp_path: Path, words: tuple[str, ...], says: str
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert says in refused(monkeypatch, capsys, "serve-sim", *words, "--out", "tables")
        assert list(tmp_path.iterdir()) == []


TRACE = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    "2023-11-16 18:15:46.6805900,374,44\n"
    "2023-11-16 18:15:47.0000000,{second}\n"
    "2023-11-16 18:15:{third},120,6\n"
)


class TestTracesOfRequests:
    """A serving scenario whose requests are those of a public trace."""

    def scenario(self, folder: Path, second: str = "396,109", third: str = "48.5", **settings: Any) -> str:
        (folder / "trace.csv").write_text(TRACE.format(second=second, third=third))
        latency = {"target": {"kind": "constant", "seconds": 0.02}}
        value = {"trace": {"trace": "trace.csv", **settings}, "latency": latency}
        path = folder / "scenario.yaml"
        path.write_text(json.dumps(value))  # JSON is YAML
        return str(path)

    def test_a_trace_is_served(self, monkeypatch: Monkey, capsys: Captured, tmp_path: Path) -> None:
        found = printed(monkeypatch, capsys, "serve-sim", self.scenario(tmp_path))
        assert found["requests"] == 3
        assert found["kv_tokens"]["max"] > 396

    def test_broken_rows_are_named_or_left_out(self, monkeypatch: Monkey, capsys: Captured, tmp_path: Path) -> None:
        error = refused(monkeypatch, capsys, "serve-sim", self.scenario(tmp_path, second="396,no"))
        assert "trace.csv, line 3: GeneratedTokens 'no' is not a finite number; 1 of 3 rows are broken" in error
        path = self.scenario(tmp_path, second="396,no", skip_broken=True)
        assert printed(monkeypatch, capsys, "serve-sim", path)["requests"] == 2

    def test_unsorted_arrivals_are_named_or_sorted(self, monkeypatch: Monkey, capsys: Captured, tmp_path: Path) -> None:
        error = refused(monkeypatch, capsys, "serve-sim", self.scenario(tmp_path, third="30"))
        assert "arrivals not sorted" in error
        assert "on line 4 comes after" in error
        path = self.scenario(tmp_path, third="30", sort=True)
        assert printed(monkeypatch, capsys, "serve-sim", path)["requests"] == 3


AFFINE = {"kind": "affine", "fixed_seconds": 0.02, "seconds_per_token": 1e-4, "seconds_per_kv_token": 1e-7}


@pytest.fixture
def recorded(tmp_path: Path) -> dict[str, str]:
    """Paths of a positional trace and of latencies."""
    rows = [{"prompt_len": 30 + k, "accept_lengths": [1 + (i * (k + 3)) % 5 for i in range(40)]} for k in range(4)]
    files = {
        "trace": "\n".join(map(json.dumps, rows)),
        "target": json.dumps(AFFINE),
        "draft": json.dumps({"kind": "constant", "seconds": 0.002}),
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    return {name: str(tmp_path / name) for name in files}


class TestReplay:
    def words(self, recorded: dict[str, str], gamma: int, *more: str) -> tuple[str, ...]:
        latencies = ("--target-latency", recorded["target"], "--draft-latency", recorded["draft"])
        return ("replay", recorded["trace"], "--gamma", str(gamma), *latencies, *more)

    def test_it_prints_what_the_replay_found(
        self, monkeypatch: Monkey, capsys: Captured, recorded: dict[str, str]
    ) -> None:
        more = ("--batch", "8", "--overhead-seconds", "0.001", "--baseline-overhead-seconds", "0.0005")
        found = printed(monkeypatch, capsys, *self.words(recorded, 3, *more))
        target, draft = (
            latency_from_json(json.loads(Path(recorded[name]).read_text())) for name in ("target", "draft")
        )
        replayed = replay(read_positional_trace(Path(recorded["trace"])), 3, 8, target, draft, 0.001, 0.0005)
        assert found == replay_summary(replayed, 8)
        assert set(found) >= {"speedup", "speedup_ci", "block_efficiency", "block_efficiency_ci", "tokens_per_second"}
        assert found["speedup"] > 1

    def test_gamma_zero_is_no_speedup(self, monkeypatch: Monkey, capsys: Captured, recorded: dict[str, str]) -> None:
        found = printed(monkeypatch, capsys, *self.words(recorded, 0))
        assert (found["speedup"], found["block_efficiency"]) == (1.0, 1.0)

    def test_people_get_a_table(self, monkeypatch: Monkey, capsys: Captured, recorded: dict[str, str]) -> None:
        assert call(monkeypatch, *self.words(recorded, 2)) == 0
        out = capsys.readouterr().out
        assert "95% interval over requests" in out
        assert "output tokens/s" in out
        assert "4 requests, batch 1" in out

    def test_a_latency_may_be_a_roofline(self, monkeypatch: Monkey, capsys: Captured, recorded: dict[str, str]) -> None:
        roofline = {"kind": "roofline", "architecture": "llama-3.1-8b", "device": "h100"}
        Path(recorded["target"]).write_text(json.dumps(roofline))
        assert printed(monkeypatch, capsys, *self.words(recorded, 2))["speedup"] > 1

    @pytest.mark.parametrize(
        ("name", "text", "says"),
        [
            ("trace", '{"prompt_len": 1, "accept_lengths": [1]}\n{"prompt_len": 1}', "trace line 2 must read"),
            ("trace", '{"prompt_len": 1, "accept_lengths": [2, 0]}', "trace line 1: accept_lengths[1] must be"),
            ("trace", "", "trace holds no request"),
            ("target", "{", "target is not a readable latency"),
            ("target", "[]", "target must hold an object with a kind, got list"),
            ("target", '{"kind": "linear"}', "latency kind must be"),
            ("draft", '{"kind": "roofline", "architecture": "llama-3.2-1b", "device": "h1000"}', "no device named"),
        ],
    )
    def test_a_broken_file_is_named(
        self, monkeypatch: Monkey, capsys: Captured, recorded: dict[str, str], name: str, text: str, says: str
    ) -> None:
        Path(recorded[name]).write_text(text)
        assert says in refused(monkeypatch, capsys, *self.words(recorded, 2))

    @pytest.mark.parametrize(
        ("more", "says"),
        [
            (("--batch", "0"), "batch must be a whole number >= 1, got 0"),
            (("--gamma", "-1"), "gamma must be a whole number >= 0, got -1"),
            (("--overhead-seconds", "-1"), "overhead_seconds must be finite and >= 0"),
        ],
    )
    def test_a_wrong_option_is_named(
        self, monkeypatch: Monkey, capsys: Captured, recorded: dict[str, str], more: tuple[str, ...], says: str
    ) -> None:
        assert says in refused(monkeypatch, capsys, *self.words(recorded, 2, *more))


class TestLatency:
    WORDS = ("latency", "--architecture", "llama-3.1-8b", "--batch", "8", "--context", "4096")

    def test_groups_add_up_and_verification_is_against_one_token(self, monkeypatch: Monkey, capsys: Captured) -> None:
        found = printed(monkeypatch, capsys, *self.WORDS, "--device", "h100", "--new-tokens", "1,4,64")
        assert (found["architecture"], found["batch"], found["assumed"]) == ("llama-3.1-8b", 8, False)
        assert [row["new_tokens"] for row in found["forwards"]] == [1, 4, 64]
        one = found["forwards"][0]["seconds"]
        for row in found["forwards"]:
            assert sum(row["groups"].values()) == pytest.approx(row["seconds"])
            assert row["verify_ratio"] == pytest.approx(row["seconds"] / one)
        ratios = [row["verify_ratio"] for row in found["forwards"]]
        assert ratios == sorted(ratios)
        assert ratios[0] == 1

    def test_borrowed_efficiencies_are_said_to_be(self, monkeypatch: Monkey, capsys: Captured) -> None:
        assert printed(monkeypatch, capsys, *self.WORDS, "--device", "a100")["assumed"] is True
        assert call(monkeypatch, *self.WORDS, "--device", "a100") == 0
        out = capsys.readouterr().out
        assert out.splitlines()[0].startswith("new tokens")
        assert "verify ratio" in out
        assert "the efficiency of a100 is assumed" in out
        assert call(monkeypatch, *self.WORDS, "--device", "h100") == 0
        assert "assumed" not in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("more", "says"),
        [
            (("--device", "h1000"), "no device named 'h1000'; did you mean h100"),
            (("--device", "l4", "--dtype", "fp32"), "l4 holds 24.0 GiB, but each of 1 needs"),
            (("--device", "h100", "--dtype", "bf8"), "dtype must be one of"),
            (("--device", "h100", "--architecture", "llama-9"), "got 'llama-9'; did you mean"),
            (("--device", "h100", "--new-tokens", "1,x"), "--new-tokens must be whole numbers with commas between"),
            (("--device", "h100", "--new-tokens", "0"), "new_tokens must be finite and > 0, got 0"),
            (("--device", "h100", "--batch", "0"), "batch must be finite and > 0, got 0"),
            (("--device", "h100", "--context", "-1"), "context must be finite and >= 0, got -1"),
            (("--device", "h100", "--tensor-parallel", "3"), "tensor_parallel must divide the 32 heads"),
        ],
    )
    def test_bad_use_is_one_line(self, monkeypatch: Monkey, capsys: Captured, more: tuple[str, ...], says: str) -> None:
        assert says in refused(monkeypatch, capsys, *self.WORDS, *more)


SWEEP = """
scenario:
  kind: single
  latency: {target: {kind: constant, seconds: 0.02}, draft: {kind: constant, seconds: 1e-3}}
  acceptance: {kind: iid, alpha: 0.7}
  policy: {kind: fixed, gamma: 4}
  max_new_tokens: 50
  requests: 5
grid:
  policy.gamma: [0, 2, 4]
  acceptance.alpha: [0.5, 0.8]
"""


class TestSweep:
    def test_a_row_is_the_run_of_its_scenario(self, monkeypatch: Monkey, capsys: Captured, tmp_path: Path) -> None:
        design, out = tmp_path / "sweep.yaml", tmp_path / "rows.parquet"
        design.write_text(SWEEP)
        words = ("sweep", str(design), "--out", str(out), "--jobs", "1")
        found = printed(monkeypatch, capsys, *words)
        assert found == {"path": str(out), "points": 6, "done_before": 0, "failed": 0, "first_error": None}
        rows = pd.read_parquet(out)
        assert rows["speedup"][rows["policy.gamma"] == 0].tolist() == [1, 1]
        last = read_scenario(design)["scenario"] | {"acceptance": {"kind": "iid", "alpha": 0.8}}
        assert rows["speedup"].iloc[-1] == run_scenario(last, 0)["speedup"]
        assert printed(monkeypatch, capsys, *words)["done_before"] == 6
        design.write_text(SWEEP.replace("[0, 2, 4]", "[0, 2, 4, 6]"))
        assert printed(monkeypatch, capsys, *words)["done_before"] == 6
        assert len(pd.read_parquet(out)) == 8

    def test_a_failed_point_is_a_row_and_exit_code_one(
        self, monkeypatch: Monkey, capsys: Captured, tmp_path: Path
    ) -> None:
        design, out = tmp_path / "sweep.yaml", tmp_path / "rows.parquet"
        design.write_text(SWEEP.replace("[0.5, 0.8]", "[0.5, 1.8]"))
        words = ("sweep", str(design), "--out", str(out), "--jobs", "1")
        assert call(monkeypatch, *words, "--json") == 1
        found = json.loads(capsys.readouterr().out)
        assert found["failed"] == 3
        assert found["first_error"].startswith("ValueError: acceptance: alpha must be in [0, 1], got 1.8")
        assert pd.read_parquet(out)["error"].isna().sum() == 3
        assert call(monkeypatch, *words) == 1
        out_text, err = capsys.readouterr()
        assert "6 points in" in out_text
        assert "3 failed, the first with: ValueError: acceptance: alpha must be" in err

    @pytest.mark.parametrize("name", sorted(SWEEPS))
    def test_the_last_point_of_a_shipped_sweep_runs(self, name: str) -> None:
        design = read_design(SWEEPS[name])
        (point,) = design.points(np.array([design.size - 1]))
        scenario = scenario_at(pickle.dumps(design.scenario), design.parameters, point.values)
        fewer = {"requests": 40} if "requests" in scenario else {}
        measures = run_scenario(scenario | fewer, point.seed, SWEEPS[name].parent)
        assert measures["speedup" if "speedup" in measures else "tokens_per_second"] > 0

    @pytest.mark.parametrize(
        ("text", "more", "says"),
        [
            ("scenario: nowhere.yaml\ngrid: {a: [1]}", (), "nowhere.yaml is not"),
            ("scenario: {}\n", (), "nothing is swept"),
            ("scenario: {}\ngrids: {a: [1]}", (), "grids"),
            (SWEEP, ("--jobs", "0"), "jobs"),
        ],
    )
    def test_bad_use_is_one_line(
        self, monkeypatch: Monkey, capsys: Captured, tmp_path: Path, text: str, more: tuple[str, ...], says: str
    ) -> None:
        design = tmp_path / "sweep.yaml"
        design.write_text(text)
        assert says in refused(
            monkeypatch, capsys, "sweep", str(design), "--out", str(tmp_path / "rows"), *more, "--json"
        )
        assert not (tmp_path / "rows").exists()


@pytest.mark.parametrize("command", ["serve-sim", "replay", "latency", "sweep"])
def test_every_command_s_help_has_an_example(monkeypatch: Monkey, capsys: Captured, command: str) -> None:
    assert call(monkeypatch, command, "--help") == 0
    assert f"specdec {command}" in capsys.readouterr().out
