"""Studies of a scenario file: seeds, baselines, replications, and what is written."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from sim.output_analysis import mean_interval
from sim.replication import PairedComparison, ReplicationResult, compare_paired, replication_seed
from sim.scenario_files import run_scenario, serving_from_json
from sim.scenario_parts import read_scenario
from sim.serving import serve
from sim.serving import study as serving_study
from sim.serving.study import RATIOS, changed, run_study

SERVER = """
requests: 150
arrivals: {kind: poisson, rate: 20}
lengths: {prompt: {kind: geometric, mean: 40}, output: {kind: geometric, mean: 30}}
latency:
  target: {kind: affine, fixed_seconds: 0.02, seconds_per_token: 2.0e-4}
  draft: {kind: constant, seconds: 0.002}
acceptance: {kind: iid, alpha: 0.7}
policy: {kind: fixed, gamma: 3}
batch_limit: 16
warm_up: 0
"""
SINGLE = """
kind: single
latency: {target: {kind: constant, seconds: 0.02}, draft: {kind: constant, seconds: 0.002}}
acceptance: {kind: iid, alpha: 0.7}
policy: {kind: fixed, gamma: 3}
max_new_tokens: 100
requests: 4
"""


@pytest.fixture
def server(tmp_path: Path) -> Path:
    path = tmp_path / "server.yaml"
    path.write_text(SERVER)
    return path


@pytest.fixture
def single(tmp_path: Path) -> Path:
    path = tmp_path / "single.yaml"
    path.write_text(SINGLE)
    return path


def test_the_same_seed_gives_the_same_study_and_another_another(server: Path) -> None:
    first, again, other = (run_study(server, seed=seed, baseline=True).to_json() for seed in (1, 1, 2))
    assert first == again
    assert first["seed"] == 1
    differing = [
        name for name in ("ttft_seconds", "tokens_per_second", "throughput_ratio") if first[name] != other[name]
    ]
    assert len(differing) == 3


def test_a_single_run_is_that_of_the_scenario(server: Path) -> None:
    study = run_study(server, seed=4)
    np.testing.assert_equal(study.values, run_scenario(read_scenario(server), 4))
    assert study.baseline is None
    assert study.over_time is not None
    found = study.to_json()
    assert found["ttft_seconds"]["mean"] == study.values["ttft_seconds.mean"]
    assert found["ttft_seconds"]["mean_ci"] == list(study.intervals["ttft_seconds.mean"])
    assert len(found["over_time"]["queue"]) == 50


def test_the_baseline_is_the_same_server_and_requests_without_a_policy(server: Path) -> None:
    study = run_study(server, seed=3, baseline=True)
    np.testing.assert_equal(study.baseline, run_study(server, ["policy="], seed=3).values)
    assert study.baseline is not None
    assert study.ratios == {name: study.values[key] / study.baseline[key] for key, name in RATIOS.items()}
    assert study.ratios["latency_ratio"] < 1
    assert study.ratio_intervals == {}
    assert "ask for replications" in study.remarks[0]


def test_a_draft_length_of_zero_is_its_baseline_to_the_last_bit(server: Path) -> None:
    study = run_study(server, ["policy.gamma=0"], baseline=True)
    np.testing.assert_equal(study.values, study.baseline)
    assert set(study.ratios.values()) == {1.0}
    replicated = run_study(server, ["policy.gamma=0"], baseline=True, replications=3)
    assert set(replicated.ratios) == set(RATIOS.values())
    assert set(replicated.ratios.values()) == {1.0}
    for low, high in replicated.ratio_intervals.values():
        assert low == pytest.approx(1, abs=1e-7)
        assert high == pytest.approx(1, abs=1e-7)


def test_replications_are_runs_of_their_own_seeds_with_student_t_intervals(server: Path) -> None:
    study = run_study(server, seed=9, replications=4)
    scenario = read_scenario(server)
    runs = [run_scenario(scenario, replication_seed(9, index)) for index in range(4)]
    for name in ("ttft_seconds.mean", "tokens_per_second", "itl_seconds.p90"):
        expected = mean_interval([run[name] for run in runs])
        assert study.values[name] == pytest.approx(expected.value)
        assert study.intervals[name] == pytest.approx((expected.lo, expected.hi))
    assert study.replications == 4
    assert study.over_time is None


def test_replications_share_their_random_numbers_with_the_baseline(
    server: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Most of what the arrivals do cancels; beside baselines of other seeds nothing does."""
    seen: list[tuple[ReplicationResult, ReplicationResult, dict[str, PairedComparison]]] = []

    def watched(a: ReplicationResult, b: ReplicationResult) -> dict[str, PairedComparison]:
        seen.append((a, b, compare_paired(a, b)))
        return seen[-1][2]

    monkeypatch.setattr(serving_study, "compare_paired", watched)
    study = run_study(server, baseline=True, replications=10)
    ((found, baseline, comparisons),) = seen
    assert found.seeds == baseline.seeds
    assert set(comparisons) == set(RATIOS)
    apart = {name: np.roll(column, 3) for name, column in baseline.values.items()}
    unpaired = compare_paired(found, ReplicationResult(0, apart, baseline.metrics))
    for name in ("tokens_per_second", "ttft_seconds.mean", "latency_seconds.mean"):
        assert comparisons[name].variance_ratio < 0.4
        assert unpaired[name].variance_ratio > 0.9
    for name, (low, high) in study.ratio_intervals.items():
        assert low < study.ratios[name] < high


def test_replicating_stops_when_every_interval_is_narrow(single: Path) -> None:
    wide = run_study(single, relative_half_width=0.5)
    assert wide.replications == 10
    assert wide.remarks == []
    study = run_study(single, relative_half_width=0.02)
    assert 10 < study.replications < 100
    for name in ("speedup", "block_efficiency", "rounds", "seconds"):
        low, high = study.intervals[name]
        assert (high - low) / 2 <= 0.02 / 1.02 * study.values[name]
    assert study.remarks == []
    hopeless = run_study(single, relative_half_width=0.0001)
    assert hopeless.replications == 100
    assert "100 replications did not make every interval as narrow as asked" in hopeless.remarks[0]


def test_a_baseline_has_as_many_replications_as_narrow_intervals_took(server: Path) -> None:
    study = run_study(server, ["requests=40", "policy.gamma=2"], baseline=True, relative_half_width=0.9)
    assert study.replications == 10
    assert set(study.ratio_intervals) == set(RATIOS.values())


def test_a_single_scenario_has_its_own_intervals_or_those_over_replications(single: Path) -> None:
    alone = run_study(single)
    low, high = alone.intervals["speedup"]
    assert low < alone.values["speedup"] < high
    many = run_study(single, replications=5)
    assert set(many.values) == set(alone.values) == {
        "block_efficiency", "speedup", "rounds", "tokens", "seconds", "baseline_seconds",
    }  # fmt: skip
    assert set(many.intervals) == set(many.values)
    assert many.to_json()["speedup_ci"] == list(many.intervals["speedup"])


def test_a_measure_that_only_some_replications_have_is_null_and_stops_nothing(server: Path) -> None:
    """Two requests of two tokens: where they decode together nothing is drafted, so that no share is accepted."""
    changes = [
        "requests=2",
        "arrivals.rate=40",
        "lengths={prompt: {kind: constant, tokens: 10}, output: {kind: constant, tokens: 2}}",
        "policy={kind: off_above, max_batch: 1, inner: {kind: fixed, gamma: 2}}",
    ]
    shares = [run_study(server, changes, replication_seed(0, r)).values["accepted_share"] for r in range(8)]
    assert 0 < np.isnan(shares).sum() < 8
    found = run_study(server, changes, replications=8, baseline=True).to_json()
    assert found["accepted_share"] is None
    assert "accepted_share_ci" not in found
    assert found["ttft_seconds"]["mean_ci"][0] < found["ttft_seconds"]["mean"]
    assert found["baseline"]["accepted_share"] is None


def test_requests_of_one_token_have_no_tpot_and_are_replicated_all_the_same(server: Path) -> None:
    changes = ["lengths.output={kind: constant, tokens: 1}", "requests=30"]
    found = run_study(server, changes, replications=3, baseline=True)
    assert np.isnan(found.values["tpot_seconds.mean"])
    assert set(found.ratios) == {"throughput_ratio", "ttft_ratio", "latency_ratio"}
    assert found.to_json()["tpot_seconds"]["mean"] is None


@pytest.mark.parametrize("replications", [1, 2])
def test_tables_of_the_first_run_are_written_with_what_makes_them_again(
    server: Path, tmp_path: Path, replications: int
) -> None:
    out = tmp_path / "tables"
    run_study(server, ["requests=40", "policy.gamma=2"], seed=6, replications=replications, out=out)
    assert {path.name for path in out.iterdir()} == {"requests.parquet", "steps.parquet", "run.json"}
    made = json.loads((out / "run.json").read_text())
    assert made["scenario"]["policy"]["gamma"] == 2
    assert made["seed"] == (6 if replications == 1 else replication_seed(6, 0))
    log = serve(serving_from_json(made["scenario"], made["seed"]), made["seed"])
    pd.testing.assert_frame_equal(pd.read_parquet(out / "requests.parquet"), log.request_table())
    pd.testing.assert_frame_equal(pd.read_parquet(out / "steps.parquet"), log.step_table())


def test_changes_set_keys_however_deep_and_leave_the_scenario_alone() -> None:
    scenario: dict[str, Any] = {"policy": {"kind": "fixed", "gamma": 4}, "memory": None, "clients": [{"count": 1}]}
    before = json.dumps(scenario)
    changes = ["policy.gamma=2", "memory.kv_tokens=500", "latency.target.seconds=1e-3", "clients.0.count=3", "a=b=c"]
    assert changed(scenario, changes) == {
        "policy": {"kind": "fixed", "gamma": 2},
        "memory": {"kv_tokens": 500},
        "latency": {"target": {"seconds": 0.001}},
        "clients": [{"count": 3}],
        "a": "b=c",
    }
    assert changed(scenario, ["policy={kind: none}", "policy.gamma=1"])["policy"] == {"kind": "none", "gamma": 1}
    assert changed(scenario, ["policy="])["policy"] is None
    assert json.dumps(scenario) == before


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("policy.gamma", "a change must read key.key=value, got 'policy.gamma'"),
        ("=3", "a change must read key.key=value, got '=3'"),
        ("policy..gamma=3", r"a change must read key.key=value, got 'policy\.\.gamma=3'"),
        ("policy.gamma.x=3", "policy.gamma.x: 'x' cannot be set inside 3, which is no mapping or list"),
        ("policy={", "the value of policy is not YAML"),
        ("policy.gamma=-1", "gamma must be a whole number >= 0, got -1"),
        ("gamma=1", "a serving scenario does not know gamma"),
    ],
)
def test_a_wrong_change_is_named(server: Path, change: str, says: str) -> None:
    with pytest.raises(ValueError, match=says) as raised:
        run_study(server, [change])
    assert "\n" not in str(raised.value)


def test_what_cannot_be_studied_is_refused_before_anything_runs(
    server: Path, single: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving_study, "single_run", None)
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="replications must be >= 2, got 0"):
        run_study(server, replications=0, out=out)
    with pytest.raises(ValueError, match=r"exactly one of replications and relative_half_width, got 5 and 0\.1"):
        run_study(server, replications=5, relative_half_width=0.1, out=out)
    with pytest.raises(ValueError, match=r"relative_half_width must be in \(0, 1\), got 2"):
        run_study(server, relative_half_width=2, out=out)
    for asked in ({"out": out}, {"baseline": True}):
        with pytest.raises(ValueError, match="only a serving scenario has tables and a baseline, got kind 'single'"):
            run_study(single, **asked)
    assert not out.exists()
