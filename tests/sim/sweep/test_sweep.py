"""Running sweeps: the same table wherever they run, nothing run twice and nothing lost when they are stopped."""

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sim import sweep
from sim.scenario_files import run_scenario
from sim.sweep import RunPoint, SweepResult, chunk_size, run_sweep
from sim.sweep import workers as sweep_workers
from sim.sweep.design import SweepDesign
from sim.sweep.parts import locked, parts_folder
from sim.sweep.reading import make_design, read_design
from tests.sim.sweep.sweep_points import counted, deadly, first_line, mixed, other


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=":0") as it:
        yield it.scheduler_address


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """The folder in which `counted` writes down what ran, and reads what is to fail."""
    log = tmp_path / "log"
    log.mkdir()
    for name in ("runs", "failures"):
        (log / name).write_text("")
    return log


def counting(log: Path, points: int = 40, **change: Any) -> SweepDesign:
    return make_design({"scenario": {"folder": str(log)}, "grid": {"x": {"range": [0, points]}}} | change)


def runs(log: Path) -> Counter[int]:
    return Counter(int(line) for line in (log / "runs").read_text().split())


def stop_at(points: int, stop: Callable[[], object]) -> Callable[[int, int], None]:
    return lambda done, total: stop() if done >= points else None  # type: ignore[func-returns-value]


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


def kept(out: Path) -> list[int]:
    """Values of x with a row in the parts; here x is also the point's place."""
    parts = sorted(parts_folder(out).glob("[0-9]*.parquet"))
    return [x for part in parts for x in pq.read_table(part)["point"].to_pylist()]


def table(out: Path) -> pa.Table:
    """All but the one column that no two runs share."""
    return pq.read_table(out).drop_columns(["wall_seconds"])


def test_the_table_is_the_same_wherever_it_runs_and_however_points_fall_into_chunks(
    tmp_path: Path, cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    design = make_design({"scenario": {"gamma": 1}, "grid": {"x": {"range": [0, 12]}, "gamma": [1, "auto"]}})

    def result(name: str, **how: Any) -> pa.Table:
        swept = run_sweep(design, tmp_path / name, run_point=mixed, **how)
        assert swept == SweepResult(tmp_path / name, 24, 0, 4, "ValueError: x must not be 3")
        assert os.listdir(tmp_path) == [name]
        made = table(tmp_path / name)
        (tmp_path / name).unlink()
        return made

    one = result("one.parquet", jobs=1)
    assert one.equals(result("two.parquet", jobs=2), check_metadata=True)
    assert one.equals(result("dask.parquet", dask=cluster), check_metadata=True)
    monkeypatch.setattr(sweep, "LIMIT_SECONDS", 0)
    monkeypatch.setattr("sim.sweep.merging.BLOCK", 7)
    assert one.equals(result("single.parquet", jobs=1), check_metadata=True)
    assert one.equals(result("single-two.parquet", jobs=2), check_metadata=True)
    monkeypatch.setattr(sweep, "MAX_CHUNK", 3)
    monkeypatch.setattr(sweep, "LIMIT_SECONDS", 60)
    assert one.equals(result("threes.parquet", jobs=1), check_metadata=True)


def test_a_row_has_its_point_its_error_and_its_results(tmp_path: Path) -> None:
    design = make_design({"scenario": {"x": 1}, "grid": {"x": [6, 3, 5]}, "replications": 2, "seed": 5})
    run_sweep(design, tmp_path / "sweep.parquet", run_point=mixed, jobs=1)
    made = pq.read_table(tmp_path / "sweep.parquet")
    assert min(made["wall_seconds"].to_pylist()) >= 0
    assert len(set(made["point_id"].to_pylist())) == 6
    assert made.drop_columns(["point_id", "wall_seconds"]).to_pydict() == {
        "point": [0, 1, 2, 3, 4, 5],
        "seed": [5, 6, 5, 6, 5, 6],
        "replication": [0, 1, 0, 1, 0, 1],
        "x": [6, 6, 3, 3, 5, 5],
        "error": [None, None, *["ValueError: x must not be 3"] * 2, None, None],
        "anything": ["three", "three", None, None, "5", "5"],
        "even": [True, True, None, None, False, False],
        "number": [6.5, 6.5, None, None, 5.0, 5.0],
        "seldom": ["here", "here", None, None, None, None],
        "result.seed": [5, 6, None, None, 5, 6],
        "whole": [60, 60, None, None, 50, 50],
        "result.x": [-6, -6, None, None, -5, -5],
    }
    kinds = {"point": "int64", "number": "double", "whole": "int64", "even": "bool", "error": "string"}
    assert {name: str(made.schema.field(name).type) for name in kinds} == kinds


def test_a_parameter_swept_over_different_kinds_becomes_text(tmp_path: Path) -> None:
    grid = {"x": [1, 0.5], "kind": ["ngram", 2, 2.5, True, None, {"b": [1], "a": 2}]}
    run_sweep(
        make_design({"scenario": {}, "grid": grid}), tmp_path / "out.parquet", run_point=lambda s, seed: {}, jobs=1
    )
    made = pq.read_table(tmp_path / "out.parquet")
    assert made["kind"].to_pylist()[:6] == ["ngram", "2", "2.5", "true", None, '{"a":2,"b":[1]}']
    assert made["x"].to_pylist() == [1.0] * 6 + [0.5] * 6


def test_a_finished_sweep_returns_at_once(tmp_path: Path, log: Path) -> None:
    out = tmp_path / "sweep.parquet"
    assert run_sweep(counting(log), out, run_point=counted, jobs=1).done_before == 0
    written = out.stat().st_mtime_ns
    assert run_sweep(counting(log), out, run_point=counted, jobs=1) == SweepResult(out, 40, 40, 0, None)
    assert run_sweep(counting(log), out, run_point=counted, retry_failed=True).done_before == 40
    assert out.stat().st_mtime_ns == written
    assert runs(log) == Counter(range(40))


@pytest.mark.parametrize("where", ["in process", "two cores", "dask"])
def test_a_sweep_that_ctrl_c_stopped_goes_on_where_it_was(
    where: str, tmp_path: Path, log: Path, cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    how: dict[str, Any] = {"in process": {"jobs": 1}, "two cores": {"jobs": 2}, "dask": {"dask": cluster}}[where]
    monkeypatch.setattr(sweep, "LIMIT_SECONDS", 0)
    out = tmp_path / "sweep.parquet"
    with pytest.raises(KeyboardInterrupt):
        run_sweep(counting(log), out, run_point=counted, progress=stop_at(15, interrupt), **how)
    done = kept(out)
    assert len(done) == len(set(done)) == 15
    assert not out.exists()
    seen: list[tuple[int, int]] = []
    result = run_sweep(counting(log), out, run_point=counted, progress=lambda *now: seen.append(now), **how)
    assert (result.points, result.done_before, result.failed) == (40, 15, 0)
    assert seen == [(n, 40) for n in range(15, 41)]
    check_nothing_ran_twice_or_was_lost(out, log, done)


KILLED = """
import os, signal, sys
from pathlib import Path
from sim import sweep
from sim.sweep.reading import make_design
from tests.sim.sweep.sweep_points import counted
sweep.LIMIT_SECONDS = 0
log, out, jobs = sys.argv[1:]
design = make_design({"scenario": {"folder": log}, "grid": {"x": {"range": [0, 40]}}})
kill = lambda done, points: os.kill(os.getpid(), signal.SIGKILL) if done >= 15 else None
sweep.run_sweep(design, Path(out), run_point=counted, jobs=int(jobs), progress=kill)
"""


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_killed_sweep_goes_on_where_it_was(jobs: int, tmp_path: Path, log: Path) -> None:
    out = tmp_path / "sweep.parquet"
    command = [sys.executable, "-c", KILLED, str(log), str(out), str(jobs)]
    killed = subprocess.Popen(command, cwd=Path(__file__).parents[3], start_new_session=True)
    assert killed.wait() == -signal.SIGKILL
    with suppress(ProcessLookupError):
        os.killpg(killed.pid, signal.SIGTERM)  # its workers would wait for a while for more work
    done = kept(out)
    assert len(done) == len(set(done)) == 15
    (parts_folder(out) / ".99999999-torn.parquet").write_bytes(b"PAR1")  # what a write that was cut short leaves
    assert run_sweep(counting(log), out, run_point=counted, jobs=jobs).done_before == 15
    check_nothing_ran_twice_or_was_lost(out, log, done)


def check_nothing_ran_twice_or_was_lost(out: Path, log: Path, done: list[int]) -> None:
    assert pq.read_table(out)["y"].to_pylist() == [x**2 for x in range(40)]
    assert not parts_folder(out).exists()
    count = runs(log)
    assert set(count) == set(range(40))
    assert all(count[x] == 1 for x in done)  # only points whose chunk was still out when it stopped may run again


def test_a_worker_that_dies_costs_no_finished_chunk(tmp_path: Path, log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "MAX_CHUNK", 1)
    out = tmp_path / "sweep.parquet"
    (log / "deadly").touch()
    with pytest.raises(ValueError, match="a worker or its scheduler died; finished chunks are kept"):
        run_sweep(counting(log), out, run_point=deadly, jobs=2)
    done = kept(out)
    assert len(done) == len(set(done))
    assert 20 not in done
    (log / "deadly").unlink()
    assert run_sweep(counting(log), out, run_point=deadly, jobs=2).done_before == len(done)
    check_nothing_ran_twice_or_was_lost(out, log, done)


def test_a_part_without_contents_is_run_again(tmp_path: Path, log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "MAX_CHUNK", 5)
    out = tmp_path / "sweep.parquet"
    with pytest.raises(KeyboardInterrupt):
        run_sweep(counting(log), out, run_point=counted, jobs=1, progress=stop_at(15, interrupt))
    first = min(parts_folder(out).glob("[0-9]*.parquet"))
    lost = pq.read_table(first)["point"].to_pylist()
    first.write_bytes(b"")
    run_sweep(counting(log), out, run_point=counted, jobs=1)
    assert pq.read_table(out)["y"].to_pylist() == [x**2 for x in range(40)]
    assert runs(log) == Counter(range(40)) + Counter(lost)


def test_failed_points_are_kept_until_they_are_to_be_retried(tmp_path: Path, log: Path) -> None:
    out = tmp_path / "sweep.parquet"
    (log / "failures").write_text("7 30")
    assert run_sweep(counting(log), out, run_point=counted, jobs=1) == SweepResult(out, 40, 0, 2, "KeyError: 7")
    (log / "failures").write_text("30")
    assert run_sweep(counting(log), out, run_point=counted, jobs=1).failed == 2
    assert runs(log) == Counter(range(40))
    retried = run_sweep(counting(log), out, run_point=counted, jobs=1, retry_failed=True)
    assert retried == SweepResult(out, 40, 38, 1, "KeyError: 30")
    assert runs(log) == Counter(range(40)) + Counter([7, 30])
    made = table(out)
    assert made["y"].to_pylist() == [x**2 if x != 30 else None for x in range(40)]
    assert made["error"].to_pylist() == ["KeyError: 30" if x == 30 else None for x in range(40)]


def test_a_stopped_retry_keeps_what_it_mended(tmp_path: Path, log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "LIMIT_SECONDS", 0)
    out = tmp_path / "sweep.parquet"
    (log / "failures").write_text("7 8 9")
    run_sweep(counting(log), out, run_point=counted, jobs=1)
    (log / "failures").write_text("")
    with pytest.raises(KeyboardInterrupt):
        run_sweep(counting(log), out, run_point=counted, jobs=1, retry_failed=True, progress=stop_at(38, interrupt))
    assert run_sweep(counting(log), out, run_point=counted, jobs=1).failed == 2
    assert runs(log) == Counter(range(40)) + Counter([7])


@pytest.mark.parametrize("finished", [True, False])
def test_a_grown_design_runs_only_its_new_points(
    finished: bool, tmp_path: Path, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More values, a new order, more replications, and a parameter that the smaller design left at its base."""
    monkeypatch.setattr(sweep, "LIMIT_SECONDS", 0)
    monkeypatch.setattr("sim.sweep.merging.BLOCK", 4)
    out, fresh = tmp_path / "sweep.parquet", tmp_path / "fresh.parquet"
    base = {"folder": str(log), "z": 1}
    small = counting(log, scenario=base, grid={"x": {"range": [0, 10]}})
    large = counting(log, scenario=base, grid={"z": [2, 1], "x": [11, *range(9, -1, -1), 10]}, replications=2)
    (log / "failures").write_text("3")
    try:
        run_sweep(small, out, run_point=counted, jobs=1, progress=None if finished else stop_at(6, interrupt))
    except KeyboardInterrupt:
        assert not finished
    before = 10 if finished else 6
    assert sum(runs(log).values()) == before
    with pytest.raises(KeyboardInterrupt):  # stopped once more, so that rows of both designs lie side by side
        run_sweep(large, out, run_point=counted, jobs=1, progress=stop_at(30, interrupt))
    result = run_sweep(large, out, run_point=counted, jobs=1)
    assert (result.points, result.done_before, result.failed) == (48, 30, 4)
    assert sum(runs(log).values()) == 48
    run_sweep(large, fresh, run_point=counted, jobs=1)
    assert table(out).equals(table(fresh))


def test_a_result_keeps_its_name_when_a_design_grows_by_a_parameter_of_that_name(tmp_path: Path) -> None:
    def echo(scenario: dict[str, Any], seed: int) -> dict[str, Any]:
        return {"x": scenario["x"] * 100, "y": scenario["y"] * 10}

    def swept(out: Path, **grid: list[int]) -> dict[str, list[Any]]:
        run_sweep(make_design({"scenario": {"x": 1, "y": 2}, "grid": grid}), out, run_point=echo, jobs=1)
        return pq.read_table(out).select(["x", "y", "result.x"]).to_pydict()

    out = tmp_path / "sweep.parquet"
    assert swept(out, x=[1, 2]) == {"x": [1, 2], "y": [20, 20], "result.x": [100, 200]}
    both = swept(out, x=[1, 2], y=[2, 3])
    assert both == {"x": [1, 1, 2, 2], "y": [2, 3, 2, 3], "result.x": [100, 100, 200, 200]}
    assert pq.read_table(out)["result.y"].to_pylist() == [20, 30, 20, 30]


@pytest.mark.parametrize(
    ("change", "run_point", "message"),
    [
        ({"seed": 1}, counted, "seed was 0 and is 1;"),
        ({"grid": {"x": [0, 1, 2, 4]}}, counted, r"grid\.x was \[0,1,2,3\] and is \[0,1,2,4\];"),
        ({"grid": {"x": [0, 1, 2]}}, counted, r"grid\.x was \[0,1,2,3\] and is \[0,1,2\];"),
        ({"z": 3}, counted, r"scenario\.z was \(not there\) and is 3;"),
        (
            {},
            other,
            r"run_point was \"tests.sim.sweep.sweep_points.counted\" and is \"tests.+sweep_points.other\";",
        ),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_another_sweep_in_the_same_place_is_refused(
    finished: bool, change: dict[str, Any], run_point: RunPoint, message: str, tmp_path: Path, log: Path
) -> None:
    out = tmp_path / "sweep.parquet"
    progress = None if finished else stop_at(4, interrupt)
    try:
        run_sweep(counting(log, 4), out, run_point=counted, jobs=1, progress=progress)
    except KeyboardInterrupt:
        assert not finished
    files = {path: path.read_bytes() for path in tmp_path.rglob("*.parquet")}
    change = {"scenario": {"folder": str(log)} | change} if "z" in change else change
    with pytest.raises(ValueError, match=f"{message}.* choose another --out, or delete"):
        run_sweep(counting(log, 4, **change), out, run_point=run_point, jobs=1)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.parquet")} == files
    assert run_sweep(counting(log, 4), out, run_point=counted, jobs=1).done_before == 4


def test_rows_of_other_code_are_refused(tmp_path: Path, log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "sweep.parquet"
    run_sweep(counting(log), out, run_point=counted, jobs=1)
    elsewhere = tmp_path / "sim" / "sweep" / "__init__.py"  # a simulator with other sources
    monkeypatch.setattr(sweep, "__file__", str(elsewhere))
    with pytest.raises(ValueError, match=r"rows of another sweep: code was .* and is "):
        run_sweep(counting(log), out, run_point=counted, jobs=1)


def test_rows_from_a_file_that_has_changed_are_refused(tmp_path: Path) -> None:
    out, trace, more = tmp_path / "sweep.parquet", tmp_path / "trace.txt", tmp_path / "more.txt"
    trace.write_text("one")
    more.write_text("two")

    def swept(*traces: Path) -> list[str]:
        design = make_design({"scenario": {}, "grid": {"trace": list(map(str, traces))}})
        run_sweep(design, out, run_point=first_line, jobs=1)
        return list(pq.read_table(out)["line"].to_pylist())

    assert swept(trace) == ["one"]
    assert swept(trace, more) == ["one", "two"]
    more.write_text("three")
    with pytest.raises(ValueError, match=r"rows of another sweep: files\..*more\.txt was .* and is "):
        swept(trace, more)


def test_without_a_function_a_point_is_a_scenario_with_its_paths(tmp_path: Path) -> None:
    """Sweep, scenario and trace lie in three folders; the rows are those of the scenario run alone."""
    scenarios = tmp_path / "scenarios"
    (scenarios / "traces").mkdir(parents=True)
    (scenarios / "traces" / "t.jsonl").write_text('{"prompt_len": 3, "accept_lengths": [9, 9, 9]}')
    (scenarios / "one.yaml").write_text(
        "kind: single\nacceptance: {kind: trace, path: traces/t.jsonl}\npolicy: {kind: fixed, gamma: 4}\n"
        "latency: {target: {kind: constant, seconds: 0.02}, draft: {kind: constant, seconds: 0.002}}\nrounds: 9\n"
    )
    (tmp_path / "sweep.yaml").write_text("scenario: scenarios/one.yaml\nseed: 3\ngrid: {policy.gamma: [1, 4]}\n")
    design = read_design(tmp_path / "sweep.yaml")
    assert run_sweep(design, tmp_path / "out.parquet", jobs=1).first_error is None
    made = pq.read_table(tmp_path / "out.parquet").to_pylist()
    for row, gamma in zip(made, (1, 4), strict=True):
        alone = run_scenario(design.scenario | {"policy": {"kind": "fixed", "gamma": gamma}}, 3, scenarios)
        assert {name: row[name] for name in alone} == alone
    assert [row["block_efficiency"] for row in made] == [2, 5]


def test_what_is_no_sweep_is_left_alone(tmp_path: Path, log: Path) -> None:
    out = tmp_path / "sweep.parquet"
    for write in (lambda: out.write_text("notes"), lambda: pq.write_table(pa.table({"a": [1]}), out)):
        write()
        before = out.read_bytes()
        with pytest.raises(ValueError, match="is no result of a sweep; choose another --out, or delete it"):
            run_sweep(counting(log), out, run_point=counted, jobs=1)
        assert out.read_bytes() == before


def test_two_runs_do_not_write_to_one_table_at_once(tmp_path: Path, log: Path) -> None:
    out = tmp_path / "sweep.parquet"
    with locked(parts_folder(out)), pytest.raises(ValueError, match=r"another run is writing to .*\.parts"):
        run_sweep(counting(log), out, run_point=counted, jobs=1)
    assert run_sweep(counting(log), out, run_point=counted, jobs=1).points == 40


def test_chunks_take_their_time_and_shrink_near_the_end() -> None:
    assert chunk_size(None, 10_000, 2) == 1
    assert chunk_size(0.005, 10_000, 2) == 200  # a second of work
    assert chunk_size(0.005, 400, 2) == 100  # a quarter of what is left, for two workers
    assert chunk_size(0.005, 12, 2) == 10  # and not much less than what sending it costs
    assert chunk_size(30.0, 10_000, 2) == 1
    assert chunk_size(0.0, 10**6, 2) == sweep.MAX_CHUNK


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"jobs": 0}, "jobs must be >= 1, and not given together with dask, got jobs=0 and dask=None"),
        ({"jobs": 2, "dask": "tcp://here:1"}, "got jobs=2 and dask=tcp://here:1"),
        ({"dask": "here"}, r"no Dask scheduler answers at here \(.*\); `dask scheduler` starts one"),
        ({"dask": "tcp://127.0.0.1:9"}, "no Dask scheduler answers at tcp://127.0.0.1:9"),
    ],
)
def test_what_cannot_run_is_named_and_leaves_nothing(
    how: dict[str, Any], message: str, tmp_path: Path, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "dask" in how:
        pytest.importorskip("distributed")
    monkeypatch.setattr(sweep_workers, "CONNECT_SECONDS", 0.2)
    with pytest.raises(ValueError, match=message):
        run_sweep(counting(log), tmp_path / "deep" / "sweep.parquet", run_point=counted, **how)
    assert runs(log) == Counter()
    assert not list(tmp_path.glob("deep/*.parts"))


def test_a_cluster_without_workers_and_a_missing_dask_are_named(
    tmp_path: Path, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distributed = pytest.importorskip("distributed")
    monkeypatch.setattr(sweep_workers, "CONNECT_SECONDS", 1)
    with (
        distributed.LocalCluster(n_workers=0, processes=False, dashboard_address=":0") as empty,
        pytest.raises(ValueError, match="has no workers; `dask worker "),
    ):
        run_sweep(counting(log), tmp_path / "sweep.parquet", run_point=counted, dask=empty.scheduler_address)
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ValueError, match=r"a Dask cluster needs the extra 'dask': pip install 'specdec-lab\[dask\]'"):
        run_sweep(counting(log), tmp_path / "sweep.parquet", run_point=counted, dask="tcp://127.0.0.1:9")


def test_the_example_runs(tmp_path: Path) -> None:
    """Every value of alpha goes with the same runs, and a higher one gives more tokens a round."""
    out = tmp_path / "sweep.parquet"
    design = read_design(Path(__file__).parents[3] / "sim" / "scenarios" / "sweep.yaml")
    assert run_sweep(design, out, jobs=1) == SweepResult(out, 400, 0, 0, None)
    made = pq.read_table(out).group_by("acceptance.alpha").aggregate([("block_efficiency", "mean"), ([], "count_all")])
    rows = made.sort_by("acceptance.alpha").to_pydict()
    assert rows["count_all"] == [80] * 5
    assert rows["block_efficiency_mean"] == sorted(rows["block_efficiency_mean"])
