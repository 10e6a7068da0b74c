"""Coverage is compared within 4 binomial standard errors: 6.3e-5 false alarms a cell."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import ttest_rel

from sim.output_analysis import mean_interval
from sim.queueing import waiting_times
from sim.replication import ReplicationResult, compare_paired, replicate, replication_seed


def within(share: float, known: float, runs: int) -> bool:
    return abs(share - known) <= 4 * math.sqrt(known * (1 - known) / runs)


def normal(spread: float) -> Callable[[int], dict[str, float]]:
    """A system whose one metric is normal around 1."""
    return lambda seed: {"x": 1 + spread * float(np.random.default_rng(seed).standard_normal())}


def queue(service_seconds: float) -> Callable[[int], dict[str, float]]:
    """A toy server: the mean wait of 500 requests whose arrivals and service draws depend on the seed alone."""

    def run(seed: int) -> dict[str, float]:
        rng = np.random.default_rng(seed)
        arrivals, services = np.cumsum(rng.exponential(1, 500)), rng.exponential(1, 500)
        return {"wait_seconds": float(waiting_times(arrivals, service_seconds * services).mean())}

    return run


def result(values: Any, base_seed: int = 0) -> ReplicationResult:
    return ReplicationResult(base_seed, {"x": np.asarray(values, dtype=np.float64)}, ("x",))


def test_a_replications_seed_depends_on_its_number_and_the_base_seed_alone() -> None:
    seen: list[int] = []

    def run(seed: int) -> dict[str, float]:
        seen.append(seed)
        return {"x": float(seed)}

    few, many = replicate(run, 3, base_seed=7), replicate(run, 5, base_seed=7)
    assert seen == [*few.seeds, *many.seeds]
    assert many.seeds[:3] == few.seeds
    assert few.seeds == tuple(replication_seed(7, r) for r in range(3))
    every = {replication_seed(base, r) for base in range(50) for r in range(50)}
    assert len(every) == 2500
    assert all(0 <= seed < 2**63 for seed in every)


def test_estimates_are_student_t_intervals_over_replications() -> None:
    got = replicate(normal(0.3), 12, base_seed=1)
    assert got.estimates == {"x": mean_interval(got.values["x"])}
    assert got.count == 12
    assert got.precise


@pytest.mark.parametrize(("least", "known"), [(10, 0.930), (5, 0.920)])
def test_the_sequential_rule_covers_as_known_where_it_is_worst(least: int, known: float) -> None:
    """Spread 2.5 times the width asked: the rule stops after about 27 replications, or early by chance.

    `known` was measured over 20,000 studies.
    """
    studies = [
        replicate(normal(0.025), base_seed=s, relative_half_width=0.01, least=least, most=500) for s in range(400)
    ]
    assert all(study.precise and study.count >= least for study in studies)
    estimates = [study.estimates["x"] for study in studies]
    assert all(e.relative_half_width <= 0.01 / 1.01 for e in estimates)
    assert within(float(np.mean([e.lo <= 1 <= e.hi for e in estimates])), known, 400)


def test_that_check_catches_a_rule_with_the_normal_quantile(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mutant takes 1.96 for Student's t, and stops as soon as the first few happen to agree."""
    monkeypatch.setattr("sim.output_analysis.student", lambda count: 1.96)
    studies = [replicate(normal(0.025), base_seed=s, relative_half_width=0.01, least=3) for s in range(400)]
    estimates = [study.estimates["x"] for study in studies]
    assert not within(float(np.mean([e.lo <= 1 <= e.hi for e in estimates])), 0.920, 400)


def test_every_named_metric_must_be_narrow_and_a_study_that_gives_up_says_so() -> None:
    def run(seed: int) -> dict[str, float]:
        easy, hard, useless = np.random.default_rng(seed).standard_normal(3)
        return {"easy": 1 + 0.001 * easy, "hard": 1 + 0.05 * hard, "useless": useless}

    easy = replicate(run, base_seed=3, metrics=["easy"], relative_half_width=0.02)
    both = replicate(run, base_seed=3, metrics=["easy", "hard"], relative_half_width=0.02)
    every = replicate(run, base_seed=3, relative_half_width=0.02, most=30)
    assert (easy.count, easy.precise) == (10, True)
    assert (both.count > 15, both.precise) == (True, True)
    assert (every.count, every.precise) == (30, False)
    assert set(both.estimates) == {"easy", "hard"}
    assert both.estimate("useless").relative_half_width > 0.02


def test_common_random_numbers_narrow_the_difference_of_two_queues() -> None:
    """A server 2% faster: the variance falls to less than a twentieth, and the interval leaves 0 out."""
    slow, fast, apart = (replicate(queue(s), 20, base_seed=b) for s, b in [(0.8, 1), (0.784, 1), (0.784, 2)])
    paired = compare_paired(slow, fast)["wait_seconds"]
    assert paired.variance_ratio < 0.05
    assert paired.difference.lo > 0
    assert paired.ratio is not None
    assert paired.ratio.lo > 1
    unpaired = mean_interval(slow.values["wait_seconds"] - apart.values["wait_seconds"])
    assert unpaired.half_width > 5 * paired.difference.half_width


def test_a_paired_difference_is_scipys_paired_t() -> None:
    rng = np.random.default_rng(4)
    x = rng.normal(5, 1, 15)
    y = x + rng.normal(1, 0.2, 15)
    got = compare_paired(result(x), result(y))["x"]
    want = ttest_rel(x, y).confidence_interval(0.95)
    assert [got.difference.lo, got.difference.hi] == pytest.approx([want.low, want.high])
    assert got.variance_ratio == pytest.approx((x - y).var() / (x.var() + y.var()))


@pytest.mark.parametrize("correlation", [-0.5, 0.0, 0.9])
def test_fiellers_ratio_covers_95_percent(correlation: float) -> None:
    """Exact for normal values, here with so much spread in the denominator that a first-order interval would not be."""
    draws = np.random.default_rng(5).multivariate_normal([3, 2], [[1, correlation], [correlation, 1]], (2000, 8))
    ratios = [compare_paired(result(x), result(y))["x"].ratio for x, y in draws.transpose(0, 2, 1)]
    # without a bounded interval nothing is left out
    covers = [r is None or r.lo <= 1.5 <= r.hi for r in ratios]
    assert within(float(np.mean(covers)), 0.95, 2000)
    assert sum(r is None for r in ratios) < 100


def test_a_ratio_to_nothing_has_no_interval() -> None:
    got = compare_paired(result([1.0, 2.0, 3.0]), result([-1.0, 0.0, 1.0]))["x"]
    assert got.ratio is None
    same = compare_paired(result([2.0, 2.0]), result([4.0, 4.0]))["x"]
    assert same.ratio is not None
    assert (same.ratio.lo, same.ratio.value, same.ratio.hi) == (0.5, 0.5, 0.5)
    assert math.isnan(same.variance_ratio)


def test_a_metric_that_some_replications_lack_never_vanishes() -> None:
    def run(seed: int) -> dict[str, float]:
        return {"tokens": 5.0, "latency_seconds": math.nan if seed in lacking else 1.0}

    lacking = {replication_seed(0, r) for r in (3, 4)}
    message = rf"'latency_seconds' is nan in replication 3 \(seed {replication_seed(0, 3)}\); lengthen the run"
    with pytest.raises(ValueError, match=message):
        replicate(run, 6, base_seed=0)
    kept = replicate(run, 6, base_seed=0, metrics=["tokens"])
    assert kept.estimates["tokens"].value == 5
    assert np.isnan(kept.values["latency_seconds"]).sum() == 2
    with pytest.raises(
        ValueError, match=r"'latency_seconds' is not finite in 2 of 6 replications, first in replication 3"
    ):
        kept.estimate("latency_seconds")
    with pytest.raises(ValueError, match=r"'latency_seconds' is not finite in 2 of 6"):
        compare_paired(kept, kept, ["latency_seconds"])


def test_an_interrupted_study_goes_on_to_the_same_result(tmp_path: Path) -> None:
    """Only what is missing runs again, and the first replication, which tells whose file it is."""
    calls: list[int] = []
    told: list[tuple[str, int, int, int]] = []

    def run(seed: int) -> dict[str, float]:
        calls.append(seed)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return {**normal(0.05)(seed), "noise": math.nan}

    def progress(stage: str, done: int, most: int, _: str) -> None:
        told.append((stage, done, most, len(json.loads(path.read_text())["replications"])))

    study: dict[str, Any] = {"base_seed": 9, "metrics": ["x"], "relative_half_width": 0.02}
    path = tmp_path / "kept.json"
    with pytest.raises(KeyboardInterrupt):
        replicate(run, resume=path, **study)
    got = replicate(run, resume=path, progress=progress, **study)
    whole = replicate(run, **study)
    np.testing.assert_array_equal(got.values["x"], whole.values["x"])
    np.testing.assert_array_equal(got.values["noise"], whole.values["noise"])
    assert calls[8 : -whole.count] == [replication_seed(9, r) for r in (0, *range(7, whole.count))]
    assert told == [("replications", r + 1, 100, max(r + 1, 7)) for r in range(whole.count)]
    shorter = replicate(run, 5, base_seed=9, metrics=["x"], resume=path)
    assert shorter.count == 5
    assert len(json.loads(path.read_text())["replications"]) == whole.count


def test_a_file_of_another_study_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "kept.json"
    replicate(normal(0.1), 4, base_seed=1, resume=path)
    before = path.read_text()
    with pytest.raises(ValueError, match="holds replications of base_seed 1, not 2; give another file"):
        replicate(normal(0.1), 4, base_seed=2, resume=path)
    with pytest.raises(ValueError, match=r"holds x=.* for the first replication, the run gives .*it is of another run"):
        replicate(normal(0.2), 8, base_seed=1, resume=path)
    assert path.read_text() == before
    path.write_text(before[:-9])
    with pytest.raises(ValueError, match=r"kept\.json is not a readable file of replications"):
        replicate(normal(0.1), 4, base_seed=1, resume=path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"replications": None}, "exactly one of replications and relative_half_width, got None and None"),
        ({"relative_half_width": 0.1}, r"exactly one of replications and relative_half_width, got 4 and 0\.1"),
        ({"replications": 1}, "replications must be >= 2, got 1"),
        ({"replications": None, "relative_half_width": 1.0}, r"relative_half_width must be in \(0, 1\), got 1\.0"),
        ({"replications": None, "relative_half_width": 0.1, "least": 1}, r"least must be in \[2, most\], got least=1"),
        ({"replications": None, "relative_half_width": 0.1, "most": 9}, r"got least=10 and most=9"),
        ({"metrics": ["y"]}, r"a run must return the metrics \['y'\], at least one, got \['x'\] in replication 0"),
        ({"metrics": []}, r"a run must return the metrics \[\], at least one"),
    ],
)
def test_a_bad_study_is_named(changes: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"replications": 4, "base_seed": 0} | changes
    with pytest.raises(ValueError, match=message):
        replicate(normal(0.1), **arguments)


def test_a_run_whose_metrics_change_is_named() -> None:
    first = replication_seed(0, 0)
    with pytest.raises(ValueError, match=r"same metrics each time, \['x', 'y'\], got \['x'\] in replication 1"):
        replicate(lambda seed: {"x": 1.0, **({"y": 1.0} if seed == first else {})}, 3, base_seed=0, metrics=["x"])


def test_results_that_do_not_pair_are_refused() -> None:
    with pytest.raises(
        ValueError, match="needs the same seeds, got 3 replications of base_seed 0 and 3 of 1; run both"
    ):
        compare_paired(result([1, 2, 3]), result([1, 2, 3], base_seed=1))
    with pytest.raises(ValueError, match=r"got 3 replications of base_seed 0 and 2 of 0; .* replications=3"):
        compare_paired(result([1, 2, 3]), result([1, 2]))
    other = ReplicationResult(0, {"y": np.ones(3)}, ("y",))
    with pytest.raises(ValueError, match="the results share no metric"):
        compare_paired(result([1, 2, 3]), other)
    with pytest.raises(ValueError, match=r"no metric 'y'; the replications have \['x'\]"):
        compare_paired(result([1, 2, 3]), other, ["y"])
