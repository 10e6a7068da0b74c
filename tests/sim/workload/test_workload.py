"""Statistical tests compare a mean with its closed form within 4 standard errors: 6.3e-5 false alarms a cell."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from sim.workload import (
    MOST_TOKENS,
    ClosedArrivals,
    ConstantLength,
    DeterministicArrivals,
    EmpiricalLength,
    GammaArrivals,
    GeometricLength,
    LognormalLength,
    PoissonArrivals,
    ReplayArrivals,
    UniformLength,
    Workload,
    make_workload,
    workload_from_json,
)
from sim.workload.traces import write_trace

DRAWS = 200_000
ARRIVALS: dict[str, Any] = {
    "poisson": PoissonArrivals(4.0),
    "bursts": GammaArrivals(4.0, 2.0),
    "steady": GammaArrivals(4.0, 0.25),
    "metronome": DeterministicArrivals(4.0),
}
LENGTHS: dict[str, Any] = {
    "constant": ConstantLength(7),
    "uniform": UniformLength(3, 9),
    "one": UniformLength(5, 5),
    "geometric": GeometricLength(20.0),
    "geometric, always one": GeometricLength(1.0),
    "empirical": EmpiricalLength([1, 1, 4, 90]),
    "lognormal": LognormalLength(512.0, 1.0),
    "lognormal, long tail": LognormalLength(30.0, 3.0),
    "lognormal, cut": LognormalLength(100.0, 1.5, maximum=150),
}


def lognormal_chances(law: LognormalLength, most: int) -> Any:
    """P(1), P(2), ..., P(most) tokens: the law's mass around each whole number, given that it is one of these."""
    sigma = math.sqrt(math.log(1 + law.cv**2))
    whole = stats.lognorm(s=sigma, scale=law.mean * math.exp(-(sigma**2) / 2))
    chances = np.diff(whole.cdf(np.arange(most + 1) + 0.5))
    return chances / chances.sum()


def expected_length(law: Any) -> float:
    if not isinstance(law, LognormalLength):
        return float(law.mean)
    most = law.maximum or 10**6
    return float(lognormal_chances(law, most) @ np.arange(1, most + 1))


def within(values: Any, expected: float) -> bool:
    error = np.std(values, ddof=1) / math.sqrt(len(values))
    return bool(abs(np.mean(values) - expected) <= 4 * error + 1e-12)


@pytest.mark.parametrize("name", ARRIVALS)
def test_gaps_have_the_rate_and_spread_of_their_law(name: str) -> None:
    """Mean gap, and mean squared deviation from it; 8 cells: false alarms 0.05%."""
    law = ARRIVALS[name]
    gaps = np.diff(law.sample(np.random.default_rng(1), DRAWS), prepend=0.0)
    cv = {PoissonArrivals: 1.0, DeterministicArrivals: 0.0}.get(type(law), getattr(law, "cv", None))
    assert within(gaps, 1 / law.rate)
    assert cv is not None
    assert within((gaps * law.rate - 1) ** 2, cv**2)


def test_that_check_catches_a_shape_of_one_over_cv() -> None:
    """The mutant forgets the square in the gamma's shape: at cv 2 its squared cv is 2, not 4."""
    gaps = np.diff(GammaArrivals(4.0, math.sqrt(2)).sample(np.random.default_rng(1), DRAWS), prepend=0.0)
    assert not within((gaps * 4.0 - 1) ** 2, 2.0**2)


def test_gaps_of_bursts_follow_the_gamma_distribution() -> None:
    """Kolmogorov-Smirnov at 1e-4 false alarms; vLLM's burstiness 0.25 is the shape, theta = 1/(rate * burstiness)."""
    gaps = np.diff(GammaArrivals(4.0, 2.0).sample(np.random.default_rng(2), 20_000), prepend=0.0)
    assert stats.kstest(gaps, stats.gamma(a=0.25, scale=1 / (4.0 * 0.25)).cdf).pvalue > 1e-4
    assert stats.kstest(gaps, stats.gamma(a=0.3, scale=1 / (4.0 * 0.3)).cdf).pvalue < 1e-4


def test_gamma_gaps_of_cv_one_are_those_of_poisson() -> None:
    gamma, poisson = (law.sample(np.random.default_rng(3), 1000) for law in (GammaArrivals(3, 1), PoissonArrivals(3)))
    np.testing.assert_allclose(gamma, poisson, rtol=1e-9)


@pytest.mark.parametrize(
    "law", [PoissonArrivals, DeterministicArrivals, lambda rate: GammaArrivals(rate, 3.0)], ids=["poisson", "even", "γ"]
)
def test_two_rates_on_one_seed_have_the_same_gaps_scaled(law: Any) -> None:
    slow, fast = (law(rate).sample(np.random.default_rng(4), 5000) for rate in (0.7, 8.1))
    np.testing.assert_allclose(slow * 0.7, fast * 8.1, rtol=1e-12)


@pytest.mark.parametrize("name", LENGTHS)
def test_mean_lengths_are_those_of_the_law(name: str) -> None:
    """9 cells: false alarms 0.06%. The lognormal's expectation is that of whole tokens within its bounds."""
    law = LENGTHS[name]
    lengths = law.sample(np.random.default_rng(5), DRAWS)
    assert lengths.dtype == np.int64
    assert lengths.min() >= 1
    assert within(lengths, expected_length(law))


def test_rounding_hardly_moves_the_mean_of_a_long_lognormal_and_a_maximum_does() -> None:
    """Between its bounds a lognormal has the mean m Phi(b - sigma) / Phi(b): 0.911 m for 4 m at cv 1."""
    assert expected_length(LENGTHS["lognormal"]) == pytest.approx(512, rel=1e-3)
    assert expected_length(LognormalLength(512, 1.0, maximum=2048)) == pytest.approx(0.911 * 512, rel=2e-3)


def test_a_maximum_is_drawn_again_and_not_clipped_to() -> None:
    """Counts of 1 to 150 tokens against the law between its bounds; chi-squared at 1e-4 false alarms.

    The mutant clips, and so piles a fifth of all draws up on 150.
    """
    law = LENGTHS["lognormal, cut"]
    expected = DRAWS * lognormal_chances(law, 150)

    def disagreement(lengths: Any) -> float:
        counts = np.bincount(lengths, minlength=151)[1:]
        frequent = expected >= 5
        return float((((counts - expected) ** 2 / expected)[frequent]).sum())

    limit = stats.chi2.isf(1e-4, (expected >= 5).sum())
    lengths = law.sample(np.random.default_rng(6), DRAWS)
    assert lengths.max() <= 150
    assert disagreement(lengths) < limit
    clipped = np.minimum(LognormalLength(law.mean, law.cv).sample(np.random.default_rng(6), DRAWS), 150)
    assert (clipped == 150).mean() > 0.15
    assert disagreement(clipped) > limit


@pytest.mark.parametrize("cv", [0.001, 0.5, 1000.0])
@pytest.mark.parametrize("mean", [1.0, 1.5, 700.0, float(MOST_TOKENS)])
def test_extreme_lognormals_stay_within_their_bounds(mean: float, cv: float) -> None:
    for law in (LognormalLength(mean, cv), LognormalLength(mean, cv, maximum=math.ceil(mean))):
        lengths = law.sample(np.random.default_rng(7), 2000)
        assert lengths.min() >= 1
        assert lengths.max() <= (law.maximum or MOST_TOKENS)


def test_geometric_chances_fall_by_the_same_factor() -> None:
    """P(k) = (1 - 1/20)^(k-1) / 20 for k = 1 to 10; 10 cells: false alarms 0.06%."""
    lengths = GeometricLength(20).sample(np.random.default_rng(8), DRAWS)
    for k in range(1, 11):
        assert within(lengths == k, 0.95 ** (k - 1) / 20)


def test_a_longer_law_on_the_same_seed_makes_no_request_shorter() -> None:
    for short, long in (
        (GeometricLength(100), GeometricLength(150)),
        (LognormalLength(100, 1), LognormalLength(150, 1)),
        (UniformLength(1, 9), UniformLength(1, 12)),
        (EmpiricalLength([5, 1, 3]), EmpiricalLength([3, 2, 6])),
    ):
        a, b = (law.sample(np.random.default_rng(9), 5000) for law in (short, long))
        assert (a <= b).all()
        assert (a < b).any()


def test_changing_one_law_leaves_the_draws_of_the_others_alone() -> None:
    laws: dict[str, Any] = {
        "arrivals": PoissonArrivals(2),
        "prompt": GeometricLength(50),
        "output": UniformLength(1, 9),
    }
    others: dict[str, Any] = {"arrivals": ClosedArrivals(), "prompt": ConstantLength(3), "output": GeometricLength(4)}
    names = {"arrivals": "arrival_seconds", "prompt": "prompt_tokens", "output": "output_tokens"}
    before = make_workload(**laws, requests=500, seed=1)
    for changed in laws:
        after = make_workload(**(laws | {changed: others[changed]}), requests=500, seed=1)
        for law, column in names.items():
            same = np.array_equal(getattr(before, column), getattr(after, column))
            assert same == (law != changed)


def test_prompts_and_outputs_of_one_law_are_not_the_same_draws() -> None:
    workload = make_workload(ClosedArrivals(), GeometricLength(50), GeometricLength(50), requests=5000, seed=1)
    correlation = np.corrcoef(workload.prompt_tokens, workload.output_tokens)[0, 1]
    assert abs(correlation) < 4 / math.sqrt(5000)  # 6.3e-5 false alarms; equal draws correlate by 1


def test_seeds_give_identical_workloads_and_a_longer_one_starts_with_a_shorter_one() -> None:
    laws = (GammaArrivals(2, 3), LognormalLength(50, 1), GeometricLength(9))
    one, two, longer = (make_workload(*laws, requests=n, seed=5) for n in (100, 100, 150))
    other = make_workload(*laws, requests=100, seed=6)
    for column in ("arrival_seconds", "prompt_tokens", "output_tokens"):
        np.testing.assert_array_equal(getattr(one, column), getattr(two, column))
        np.testing.assert_array_equal(getattr(one, column), getattr(longer.head(100), column))
        assert not np.array_equal(getattr(one, column), getattr(other, column))


def test_a_workload_at_another_rate_keeps_its_pattern() -> None:
    workload = make_workload(GammaArrivals(2, 3), ConstantLength(5), GeometricLength(9), requests=300, seed=1)
    faster = workload.at_rate(10.0)
    assert faster.requests_per_second == pytest.approx(10.0, rel=1e-12)
    scale = workload.requests_per_second / 10.0
    np.testing.assert_allclose(faster.arrival_seconds, workload.arrival_seconds * scale, rtol=1e-12)
    np.testing.assert_array_equal(faster.output_tokens, workload.output_tokens)


def test_the_mean_rate_counts_gaps_and_not_requests() -> None:
    assert Workload([3.0, 4.0, 7.0], [1, 1, 1], [1, 1, 1]).requests_per_second == 0.5
    assert len(Workload([3.0, 4.0, 7.0], [1, 1, 1], [1, 1, 1])) == 3


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Workload([0, 2, 1.5], [1] * 3, [1] * 3), r"index 2 is at 1\.5 seconds and index 1 .* at 2\.0; sort"),
        (lambda: Workload([-0.5, 1], [1] * 2, [1] * 2), r"arrival_seconds must be .*>= 0, got -0\.5 at index 0"),
        (lambda: Workload([0, math.nan], [1] * 2, [1] * 2), "got nan at index 1"),
        (lambda: Workload([], [], []), "arrival_seconds must be a list of at least one"),
        (lambda: Workload([0, 1], [1], [1] * 2), "prompt_tokens must have one entry for each of 2 arrivals, got 1"),
        (lambda: Workload([0, 1], [1] * 2, [1, 0]), "output_tokens must be whole tokens .*, got 0 at index 1"),
        (lambda: Workload([0, 1], [1, 2.5], [1, 1]), r"prompt_tokens must be whole tokens .*, got 2\.5 at index 1"),
        (lambda: Workload([0, 1], [1, "2"], [1, 1]), "prompt_tokens must be a list of at least one number"),
        (lambda: Workload([0, 1], [[1], [2, 3]], [1, 1]), "prompt_tokens must be a list of numbers, got a ragged one"),
        (lambda: Workload([0, 1], [1] * 2, [1] * 2).head(3), "requests must be 1 to 2, .*got 3"),
        (lambda: Workload([4, 4], [1] * 2, [1] * 2).at_rate(2), "all arrive at 4 seconds have no rate"),
        (lambda: Workload([0, 1], [1] * 2, [1] * 2).at_rate(0), "requests_per_second must be .* > 0, got 0"),
        (lambda: PoissonArrivals(math.inf), "rate must be a finite number > 0, got inf"),
        (lambda: PoissonArrivals(10**400), "rate must be a finite number > 0"),
        (lambda: DeterministicArrivals(True), "rate must be a finite number > 0, got True"),
        (lambda: GammaArrivals(-1, 1), "rate must be a finite number > 0, got -1"),
        (lambda: GammaArrivals(1, 0), r"cv must be a number from 0\.001 to 1000, got 0; DeterministicArrivals"),
        (lambda: ReplayArrivals([1, 0]), "times must be sorted, but index 1"),
        (lambda: ReplayArrivals([1, 2]).sample(np.random.default_rng(0), 3), "requests must be at most 2, .*got 3"),
        (lambda: ConstantLength(0), "tokens must be a whole number from 1 to 2147483647, got 0"),
        (lambda: UniformLength(5, 4), "high must be >= low 5, got 4"),
        (lambda: LognormalLength(0.5, 1), r"mean must be from 1 to 2147483647 tokens, got 0\.5"),
        (lambda: LognormalLength(10, math.nan), "cv must be a number .*, got nan; ConstantLength has none"),
        (lambda: LognormalLength(10, 1, maximum=9), "maximum must be >= the mean 10, got 9; lower the mean"),
        (lambda: GeometricLength(0), "mean must be from 1"),
        (lambda: EmpiricalLength([3, -1]), "values must be whole tokens .*, got -1 at index 1"),
        (
            lambda: make_workload(ClosedArrivals(), ConstantLength(1), ConstantLength(1), 0, 0),
            "requests must be .*got 0",
        ),
    ],
)
def test_bad_input_is_named(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


FORM: dict[str, Any] = {
    "requests": 40,
    "arrivals": {"kind": "poisson", "rate": 4.0},
    "prompt": {"kind": "constant", "tokens": 12},
    "output": {"kind": "geometric", "mean": 8},
}
KINDS: dict[str, list[tuple[dict[str, Any], Any]]] = {
    "arrivals": [
        ({"kind": "poisson", "rate": 4.0}, PoissonArrivals(4.0)),
        ({"kind": "gamma", "rate": 4.0, "cv": 2}, GammaArrivals(4.0, 2)),
        ({"kind": "deterministic", "rate": 3}, DeterministicArrivals(3)),
        ({"kind": "closed"}, ClosedArrivals()),
    ],
    "prompt": [
        ({"kind": "constant", "tokens": 12}, ConstantLength(12)),
        ({"kind": "uniform", "low": 1, "high": 5}, UniformLength(1, 5)),
        ({"kind": "lognormal", "mean": 512, "cv": 1.0}, LognormalLength(512, 1.0)),
        ({"kind": "lognormal", "mean": 512, "cv": 1.0, "maximum": 4096}, LognormalLength(512, 1.0, 4096)),
        ({"kind": "geometric", "mean": 8.5}, GeometricLength(8.5)),
    ],
}


@pytest.mark.parametrize(("key", "form", "law"), [(key, *case) for key, cases in KINDS.items() for case in cases])
def test_the_json_form_builds_every_kind(key: str, form: dict[str, Any], law: Any) -> None:
    spec = workload_from_json(json.loads(json.dumps(FORM | {key: form})))
    assert getattr(spec, key) == law
    assert len(spec.sample(0)) == 40


def test_the_json_form_draws_measured_lengths() -> None:
    spec = workload_from_json(FORM | {"output": {"kind": "empirical", "values": [3, 70]}})
    assert set(spec.sample(1).output_tokens.tolist()) == {3, 70}


def test_the_json_form_replays_a_trace_beside_it(tmp_path: Path) -> None:
    measured = make_workload(PoissonArrivals(5), GeometricLength(40), GeometricLength(9), requests=60, seed=3)
    write_trace(measured, tmp_path / "trace.jsonl", "mooncake")
    whole = workload_from_json({"trace": "trace.jsonl"}, tmp_path).sample(0)
    np.testing.assert_array_equal(whole.prompt_tokens, measured.prompt_tokens)
    part = workload_from_json({"trace": "trace.jsonl", "requests": 20, "rate": 2.0}, tmp_path).sample(7)
    np.testing.assert_array_equal(part.output_tokens, measured.output_tokens[:20])
    assert part.requests_per_second == pytest.approx(2.0, rel=1e-12)
    arrivals = {"kind": "replay", "trace": str(tmp_path / "trace.jsonl"), "format": "mooncake"}
    replayed = workload_from_json(FORM | {"arrivals": arrivals}).sample(0)
    np.testing.assert_array_equal(replayed.arrival_seconds, whole.arrival_seconds[:40])
    np.testing.assert_array_equal(replayed.prompt_tokens, 12)


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ([], r"workload must be an object .*, got \[\]"),
        ({key: FORM[key] for key in ("requests", "arrivals", "prompt")}, "workload lacks the key 'output'"),
        (FORM | {"batch": 3}, r"workload has the unknown key 'batch' \(value 3\)"),
        (FORM | {"requests": 2.5}, r"workload requests must be a whole number .*, got 2\.5"),
        (FORM | {"requests": None}, "workload requests must be a whole number .*, got None"),
        (FORM | {"prompt": 512}, "workload prompt must be an object whose kind is one of .*, got 512"),
        (FORM | {"prompt": {"kind": "zipf"}}, "workload prompt must be .*'lognormal'.*, got {'kind': 'zipf'}"),
        (FORM | {"arrivals": {"kind": ["poisson"]}}, "workload arrivals must be .*'replay'"),
        (FORM | {"arrivals": {"kind": "poisson", "rate": "4"}}, "workload arrivals: rate must be .*, got '4'"),
        (FORM | {"arrivals": {"kind": "gamma", "rate": 4}}, "workload arrivals of kind 'gamma' lacks the key 'cv'"),
        (
            FORM | {"output": {"kind": "constant", "tokens": 4, "cv": 1}},
            r"workload output of kind 'constant' has the unknown key 'cv' \(value 1\); known: \['tokens'\]",
        ),
        (FORM | {"arrivals": {"kind": "replay"}}, "workload arrivals lacks the key 'trace'"),
        ({"trace": "nowhere.csv"}, r"nowhere\.csv cannot be read"),
        ({"trace": 3}, "workload trace must be a str, got 3"),
        ({"trace": "t.csv", "skip_broken": "yes"}, "workload skip_broken must be a bool, got 'yes'"),
        ({"trace": "t.csv", "speed": 2}, r"workload has the unknown key 'speed' \(value 2\)"),
        ({"trace": "t.csv", "requests": 4}, r"workload from .*t\.csv: requests must be 1 to 3, .*got 4"),
        ({"trace": "t.csv", "requests": True}, r"t\.csv: requests must be a whole number .*got True"),
        ({"trace": "t.csv", "rate": -1}, r"workload from .*t\.csv: requests_per_second must be .*, got -1"),
        ({"trace": "t.csv", "format": "parquet"}, "trace format must be one of .*, got 'parquet'"),
    ],
)
def test_the_json_form_names_the_key_and_its_value(tmp_path: Path, form: Any, message: str) -> None:
    write_trace(Workload([0, 1, 2], [5] * 3, [6] * 3), tmp_path / "t.csv", "azure")
    with pytest.raises(ValueError, match=message):
        workload_from_json(form, tmp_path)
