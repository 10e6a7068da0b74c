"""Which points a sweep has, before any of them runs."""

import itertools
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sim.sweep.design import SweepDesign, point_id, point_ids, scenario_at
from sim.sweep.reading import make_design, read_design

SCENARIO: dict[str, Any] = {"kind": "single", "gamma": 4, "acceptance": {"alpha": 0.7}, "drafts": [{"c": 1}, {"c": 2}]}


def scenarios(design: SweepDesign) -> list[dict[str, Any]]:
    base = pickle.dumps(design.scenario)
    points = design.points(np.arange(design.size))
    return [scenario_at(base, design.parameters, point.values) for point in points]


def test_a_grid_is_the_full_product_in_the_order_it_was_written() -> None:
    grid = {"gamma": [1, 2, 4], "acceptance.alpha": [0.5, 0.6], "drafts.1.c": ["x", None]}
    made = [
        (s["gamma"], s["acceptance"]["alpha"], s["drafts"][1]["c"])
        for s in scenarios(make_design({"scenario": SCENARIO, "grid": grid}))
    ]
    assert made == list(itertools.product(*grid.values()))


def test_a_path_sets_its_own_place_and_leaves_the_rest_and_the_base_alone() -> None:
    base = SCENARIO | {"table": {1: 0.1, 2: 0.2}, "link": None}
    frozen = pickle.dumps(base)
    made = scenario_at(frozen, ("drafts.0.c", "table.2", "latency.draft.seconds", "link.bytes", "new"), (9, 8, 7, 6, 5))
    assert made == base | {
        "drafts": [{"c": 9}, {"c": 2}],
        "table": {1: 0.1, 2: 8},
        "latency": {"draft": {"seconds": 7}},
        "link": {"bytes": 6},
        "new": 5,
    }
    assert pickle.loads(frozen) == base


def test_a_run_that_changes_its_scenario_changes_no_other_run() -> None:
    design = make_design({"scenario": {"a": [1]}, "grid": {"b": [{"deep": [1]}]}, "replications": 2})
    for made in scenarios(design):
        assert made == {"a": [1], "b": {"deep": [1]}}
        made["a"].append(2)
        made["b"]["deep"].append(2)


def test_spaced_values_have_both_ends_and_a_range_leaves_its_stop_out() -> None:
    grid = {
        "a": {"linspace": [0, 1, 11]},
        "b": {"logspace": [0.01, 100, 5]},
        "c": {"range": [1, 4]},
        "d": {"range": [9, 0, -3]},
    }
    made = make_design({"scenario": {}, "grid": grid}).grid
    assert made["a"] == [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1]
    assert made["b"] == [0.01, 0.1, 1, 10, 100]
    assert made["c"] == [1, 2, 3]
    assert made["d"] == [9, 6, 3]


def test_a_hypercube_hits_every_stratum_of_every_parameter_once() -> None:
    """Independent uniform draws of 800 points leave a stratum empty with a chance that is 1 to more than 300 digits."""
    parameters = {
        "alpha": {"low": 0.3, "high": 0.9},
        "rate": {"low": 1, "high": 100, "log": True},
        "gamma": {"low": 1, "high": 8, "integer": True},
        "batch": {"low": 1, "high": 255, "integer": True, "log": True},
    }
    sweep = {"scenario": {}, "latin_hypercube": {"points": 800, "seed": 3, "parameters": parameters}}
    samples = make_design(sweep).samples
    shares = ((samples["alpha"] - 0.3) / 0.6, np.log(samples["rate"]) / np.log(100))
    for share in shares:
        np.testing.assert_array_equal(np.sort(np.floor(share * 800)), np.arange(800))
    np.testing.assert_array_equal(np.bincount(samples["gamma"]), [0] + [100] * 8)
    # an integer that is even in its logarithm: each octave 1, 2-3, 4-7, ... of the 8 has as many points
    np.testing.assert_array_equal(np.bincount(np.log2(samples["batch"]).astype(int)), [100] * 8)
    assert abs(np.corrcoef(samples["alpha"], samples["rate"])[0, 1]) < 4 / np.sqrt(800)  # false alarm 6e-5
    np.testing.assert_array_equal(make_design(sweep).samples["alpha"], samples["alpha"])
    sweep["latin_hypercube"] = {"points": 800, "seed": 4, "parameters": parameters}
    assert (make_design(sweep).samples["alpha"] != samples["alpha"]).any()


def test_grid_and_hypercube_together_are_their_product() -> None:
    design = make_design(
        {
            "scenario": SCENARIO,
            "grid": {"gamma": [1, 2]},
            "latin_hypercube": {"points": 5, "parameters": {"acceptance.alpha": {"low": 0, "high": 1}}},
            "replications": 3,
        }
    )
    alphas = design.samples["acceptance.alpha"].tolist()
    made = [(s["gamma"], s["acceptance"]["alpha"]) for s in scenarios(design)]
    assert made == [(gamma, alpha) for gamma in (1, 2) for alpha in alphas for _ in range(3)]


def test_common_random_numbers_give_every_point_the_same_seeds() -> None:
    sweep = {"scenario": {}, "grid": {"a": [1, 2, 3]}, "seed": 7, "replications": 2}
    assert [point.seed for point in make_design(sweep).points(np.arange(6))] == [7, 8] * 3


def test_without_them_seeds_differ_between_points_and_stay_when_a_grid_grows() -> None:
    def seeds(values: list[int], seed: int = 7) -> dict[Any, int]:
        sweep = {"scenario": {}, "grid": {"a": values}, "seed": seed, "replications": 2}
        cube = {"points": 3, "parameters": {"b": {"low": 0, "high": 1}}}
        design = make_design(sweep | {"common_random_numbers": False, "latin_hypercube": cube})
        points = design.points(np.arange(design.size))
        return {(point.values, place % 2): point.seed for place, point in enumerate(points)}

    before, after = seeds([1, 2]), seeds([0, 1, 2])
    assert len(set(after.values())) == 18
    assert before.items() <= after.items()
    assert not set(seeds([1, 2], seed=8).values()) & set(before.values())


def test_a_point_has_one_name_however_it_is_reached() -> None:
    one = make_design({"scenario": {"a": 1, "b": {"c": 2, "d": 3}}, "grid": {"a": [1, 5]}})
    two = make_design({"scenario": {"b": {"d": 0}, "a": 1}, "grid": {"b.c": [2], "b.d": [3, 4]}, "replications": 2})
    three = make_design({"scenario": {"b": {"d": 0}, "a": 1}, "grid": {"b.c": [2], "b.d": [3, 4]}, "seed": 1})
    assert set(point_ids(one).to_pylist()) & set(point_ids(two).to_pylist()) == {point_id(one.scenario, 0)}
    assert len(set(point_ids(two).to_pylist())) == 4
    assert not set(point_ids(one).to_pylist()) & set(point_ids(three).to_pylist())
    assert point_ids(two, block=3) == point_ids(two)


def test_a_sweep_is_read_with_the_scenario_file_it_names(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("gamma: 4\nlow: 1e-3\nacceptance: {alpha: 0.7}\n")
    (tmp_path / "sweep.yaml").write_text("scenario: base.yaml\ngrid:\n  low: [1e-3, 2.5E+2, .5]\n  gamma: [1]\n")
    design = read_design(tmp_path / "sweep.yaml")
    assert design.scenario == {"gamma": 4, "low": 0.001, "acceptance": {"alpha": 0.7}}
    assert design.grid == {"low": [0.001, 250.0, 0.5], "gamma": [1]}


def test_a_key_given_twice_is_an_error_but_one_over_a_merged_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text("scenario: {a: 1}\ngrid:\n  gamma: [1]\n  gamma: [2]\n")
    with pytest.raises(ValueError, match="key 'gamma' is given twice, again in line 4"):
        read_design(path)
    path.write_text("scenario:\n  one: &one {a: 1, b: 2}\n  two: {<<: *one, a: 3}\ngrid: {a: [1]}\n")
    assert read_design(path).scenario["two"] == {"a": 3, "b": 2}


def cube(**limits: Any) -> dict[str, Any]:
    return {"latin_hypercube": {"points": 4, "parameters": {"a": {"low": 1, "high": 2} | limits}}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gird": {"a": [1]}}, "sweep has the unknown key 'gird'; known: scenario, seed"),
        ({"scenario": 3, "grid": {"a": [1]}}, "scenario must be a mapping or the path of a YAML file, got 3"),
        ({"scenario": "none.yaml", "grid": {"a": [1]}}, "none.yaml is not a readable scenario"),
        ({}, "nothing is swept; give grid, latin_hypercube or replications > 1"),
        ({"grid": {}}, "grid must map dotted paths to what they are swept over, got {}"),
        ({"grid": {"a": []}}, r"grid\.a must be a list of at least one value, or linspace, .* got \[\]"),
        ({"grid": {"a": 3}}, r"grid\.a must be a list of at least one value, .* got 3"),
        ({"grid": {"a": [1, 2, 1.0]}}, r"grid\.a has 1\.0 twice"),
        ({"grid": {"a": [{"b": 1}, {"b": 1}]}}, r"grid\.a has {'b': 1} twice"),
        ({"grid": {"a..b": [1]}}, r"grid has the key 'a\.\.b'; give a dotted path"),
        ({"grid": {3: [1]}}, "grid has the key 3; give a dotted path"),
        ({"grid": {"seed": [1]}}, r"grid\.seed cannot be swept: 'seed' names a column"),
        ({"grid": {"a": {"linspace": [1, 2]}}}, r"grid\.a\.linspace must be \[low, high, count\]"),
        ({"grid": {"a": {"linspace": [2, 1, 5]}}}, r"grid\.a\.linspace: low must be < high, got 2 and 1"),
        ({"grid": {"a": {"linspace": [1, 2, 1]}}}, r"grid\.a\.linspace's count must be a whole number from 2"),
        ({"grid": {"a": {"logspace": [0, 2, 5]}}}, r"grid\.a\.logspace: low must be > 0 on a logarithmic scale, got 0"),
        ({"grid": {"a": {"range": [3, 3]}}}, r"grid\.a\.range has no value: \[3, 3\]; stop itself is left out"),
        ({"grid": {"a": {"range": [1, 2, 0]}}}, r"grid\.a\.range has no value"),
        ({"grid": {"a": {"geomspace": [1, 2, 3]}}}, r"grid\.a must be a list, or one of linspace"),
        ({"grid": {"acceptance": [{}], "acceptance.alpha": [1]}}, r"acceptance and acceptance\.alpha overlap"),
        ({"grid": {"a": [1]}} | cube(), "a and a overlap"),
        ({"grid": {"gamma.deep": [1]}}, r"gamma\.deep: 'deep' cannot be set inside 4"),
        ({"grid": {"drafts.2.c": [1]}}, r"drafts\.2\.c: '2' is not an index of a list with 2 entries"),
        ({"grid": {"drafts.x": [1]}}, r"drafts\.x: 'x' is not an index of a list"),
        ({"grid": {"a": [object()]}}, r"grid\.a may hold numbers, text, booleans, lists and mappings"),
        ({"scenario": {"a": {1: 2, "b": 3}}, "grid": {"a": [1]}}, "scenario may hold .* keys of one kind"),
        ({"grid": {f"a{i}": {"range": [0, 1000]} for i in range(3)}}, "the design has 1000000000 points, at most"),
        (cube(low=2), r"latin_hypercube\.parameters\.a: low must be < high, got 2 and 2"),
        (cube(low=True), r"parameters\.a: low and high must be finite numbers, got True"),
        (cube(high=float("inf")), r"parameters\.a: low and high must be finite numbers, got inf"),
        (cube(low=-1, log=True), r"parameters\.a: low must be > 0 on a logarithmic scale, got -1"),
        (cube(low=1.5, integer=True), r"parameters\.a must be a whole number from .* got 1\.5"),
        (cube(integer="yes"), r"parameters\.a\.integer must be true or false, got 'yes'"),
        (cube(step=1), r"parameters\.a has the unknown key 'step'; known: low, high, log, integer"),
        ({"latin_hypercube": {"points": 0, "parameters": {"a": {"low": 1, "high": 2}}}}, r"points must be .* got 0"),
        ({"latin_hypercube": {"points": 4}}, "latin_hypercube lacks the key 'parameters'"),
        ({"latin_hypercube": {"points": 4, "parameters": {}}}, r"latin_hypercube\.parameters must map dotted paths"),
        ({"grid": {"a": [1]}, "seed": -1}, "seed must be a whole number from 0 to .* got -1"),
        ({"grid": {"a": [1]}, "replications": 0}, "replications must be a whole number from 1 to .* got 0"),
        ({"grid": {"a": [1]}, "common_random_numbers": 1}, "common_random_numbers must be true or false, got 1"),
    ],
)
def test_bad_input_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_design({"scenario": SCENARIO} | change)
