"""The harness's parts: exact enumeration, evidence, power, contracts, and what it says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from analysis.losslessness import (
    CORRECT,
    MUTANTS,
    RULES,
    adversarial_pairs,
    chain_law,
    check,
    check_pair,
    check_rows,
    default_designs,
    detectable_tv,
    exact_distance,
    load_callable,
    output_law,
    plan,
    random_chain,
    samples_for,
)
from analysis.losslessness.evidence import effect, g_test, log_e_value
from analysis.losslessness.lags import log_e_all_lags
from analysis.losslessness.tables import Table, check_emission, tabulate
from paper_figs import mass_moved

LAW = np.array([[0.5, 0.3, 0.15, 0.05], [0.1, 0.2, 0.3, 0.4]])


# ---- exact


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize(("vocab", "gamma"), [(6, 4), (3, 4), (5, 2), (4, 1), (3, 0)])
def test_correct_rules_are_lossless_to_1e_12_on_every_adversarial_pair(name: str, vocab: int, gamma: int) -> None:
    for case, target, draft in adversarial_pairs(vocab, gamma, np.random.default_rng(gamma)):
        assert exact_distance(RULES[name], target, draft) <= 1e-12, case


def test_the_enumerated_law_is_a_distribution_over_sequences() -> None:
    rng = np.random.default_rng(0)
    target, draft = random_chain(4, 3, rng), random_chain(4, 2, rng)
    law = output_law(RULES["rejection_sampling"], target, draft)
    assert law.shape == (4, 4, 4)
    assert law.sum() == pytest.approx(1.0, abs=1e-12)
    np.testing.assert_allclose(chain_law(target).sum((1, 2)), target[0], atol=1e-15)


def test_a_wrong_bonus_row_is_joint_and_not_marginal() -> None:
    """The first token is perfect; only the joint law shows the mutant."""
    rng = np.random.default_rng(1)
    target, draft = random_chain(4, 3, rng), random_chain(4, 2, rng)
    rule = MUTANTS["bonus from the wrong row"].rule
    assert rule is not None
    law = output_law(rule, target, draft)
    np.testing.assert_allclose(law.sum((1, 2)), target[0], atol=1e-14)
    assert exact_distance(rule, target, draft) > 0.01


@pytest.mark.parametrize(
    ("target", "draft", "message"),
    [
        ([np.array([0.5, 0.6])], [], r"target\[0\] row \(\) is not a distribution: it sums to 1.1"),
        ([np.array([0.5, 0.5])], [np.array([0.5, 0.5])], "gamma\\+1 = 2 conditional laws"),
        ([np.array([0.5, 0.5]), np.full((2, 2), 0.5)], [np.full(3, 1 / 3)], r"draft\[0\] must have shape \(2,\)"),
        ([np.full((6,) * (j + 1), 1 / 6) for j in range(8)], [np.full(6, 1 / 6)] * 7, "6\\^8 outcomes exceed"),
    ],
)
def test_tables_that_are_no_chain_are_refused(target: list, draft: list, message: str) -> None:  # type: ignore[type-arg]  # arrays of several ranks
    with pytest.raises(ValueError, match=message):
        output_law(RULES["rejection_sampling"], target, draft)


# ---- evidence


def test_the_e_value_of_a_small_table_has_mean_one_exactly() -> None:
    """Summed over every outcome of four draws, the probability times E is 1: no asymptotics anywhere."""
    p, total = np.array([[0.6, 0.3, 0.1]]), 0.0
    for outcome in np.ndindex(3, 3, 3, 3):
        counts = np.bincount(outcome, minlength=3)[None]
        total += float(np.prod(p[0][list(outcome)])) * float(np.exp(log_e_value(Table("", p, counts))))
    assert total == pytest.approx(1.0, abs=1e-8)  # gammaln of a million keeps ten digits


def test_the_e_value_keeps_its_promise_when_one_stops_at_the_worst_moment() -> None:
    """500 streams looked at 30 times each: E is ever above 20 in at most 5%; 11% would be 6 standard errors off."""
    rng = np.random.default_rng(2)
    steps = rng.multinomial(20, LAW[0], size=(500, 30)).cumsum(axis=1)
    ever = [
        max(log_e_value(Table("", LAW[:1], steps[i, j][None])) for j in range(30)) >= np.log(20) for i in range(500)
    ]
    assert np.mean(ever) < 0.08


def test_an_impossible_token_is_infinite_evidence() -> None:
    table = Table("", np.array([[0.5, 0.5, 0.0]]), np.array([[10, 10, 1]]))
    assert log_e_value(table) == np.inf
    assert log_e_value(Table("", table.law, np.array([[10, 11, 0]]))) < 1


def test_g_pools_rare_cells() -> None:
    counts = np.array([[500, 290, 160, 50], [1, 2, 3, 4]])
    g, df, p_value = g_test(Table("", LAW, counts))
    expected = 1000 * LAW[0]
    assert df == 3  # the second row has 10 counts, too few for two cells expected five times each
    assert g == pytest.approx(2 * (counts[0] * np.log(counts[0] / expected)).sum())
    assert 0 < p_value < 1


def test_the_effect_is_the_total_variation_and_not_the_noise() -> None:
    rng = np.random.default_rng(3)
    moved = LAW[0] + [0.05, -0.05, 0.0, 0.0]
    assert effect(Table("", LAW[:1], rng.multinomial(200_000, moved)[None])) == pytest.approx(0.05, abs=0.005)
    assert effect(Table("", LAW[:1], rng.multinomial(200_000, LAW[0])[None])) < 0.002


@pytest.mark.parametrize("labels", [1, 8])
def test_the_promised_power_is_delivered(labels: int) -> None:
    """Every cell off by the same factor, the hardest case: 2,000 trials at the computed size, 99.9% promised.

    At most 10 misses; 2 are expected, and more than 10 have a chance of 8e-6.
    """
    tv, hypotheses, vocab = 0.02, 128, 8
    n = samples_for(tv, labels, vocab, hypotheses)
    assert detectable_tv(n, labels, vocab, hypotheses) <= tv
    law = np.full((labels, vocab), 1 / vocab)
    moved = law * (1 + 2 * tv * np.where(np.arange(vocab) % 2 == 0, 1, -1))
    rng = np.random.default_rng(4)
    counts = np.stack([rng.multinomial(n // labels + 1, row, size=2000) for row in moved], axis=1)
    line = np.log(hypotheses / 1e-9)
    assert sum(log_e_value(Table("", law, one)) < line for one in counts) <= 10


def test_the_default_plan_sees_a_total_variation_of_five_in_a_thousand() -> None:
    default = plan()
    assert default.detectable_tv <= 0.005
    assert plan(max_samples=default.rounds // 100).detectable_tv > 0.03


def test_noise_that_returns_after_many_rounds_shows_at_its_own_lag() -> None:
    rng, p = np.random.default_rng(5), np.full(4, 0.25)
    later = rng.integers(4, size=20_000)
    earlier = rng.integers(4, size=20_000)
    log_e, _ = log_e_all_lags(later, earlier, p, np.random.default_rng(6))
    assert log_e < np.log(1e4)
    later[137:] = np.where(rng.random(19_863) < 0.3, earlier[:-137], later[137:])
    log_e, lag = log_e_all_lags(later, earlier, p, np.random.default_rng(6))
    assert lag == 137
    assert log_e > np.log(1e12)


# ---- designs, tables, contract


@pytest.mark.parametrize("gamma", [1, 4])
@pytest.mark.parametrize("vocab", [3, 8, 100])
def test_every_design_is_made_of_distributions(gamma: int, vocab: int) -> None:
    designs = default_designs(gamma, vocab)
    for design in designs:
        check_pair(design.p, design.q)
    assert sum(design.share for design in designs) == pytest.approx(1.0)


def test_tables_count_every_emitted_token_once_by_position() -> None:
    design = default_designs(2, 4)[0]
    tokens = np.array([[0, 1, 2], [3, -1, -1], [1, 1, -1], [2, 0, 3]])
    tables = {table.name: table for table in tabulate(design, np.zeros(4, dtype=int), tokens)}
    assert tables["position 0"].counts.tolist() == [[1, 1, 1, 1]]
    assert tables["bonus position"].counts.tolist() == [[0, 0, 1, 1]]
    assert tables["position 1 after a token"].counts[0, 1] == 1
    assert tables["first token after the last round's last"].counts[[2, 3, 1], [3, 1, 2]].tolist() == [1, 1, 1]
    assert tables["whole stream"].counts.sum() == 9


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (np.zeros((2, 3)), "got dtype float64"),
        (np.zeros((3, 3), dtype=int), r"got shape \(3, 3\)"),
        (np.array([[0, 1, -1], [0, 9, -1]]), r"row 1 has a token outside 0..3: \[0, 9, -1\]"),
        (np.array([[-1, -1, -1], [0, 1, -1]]), "row 0 has no token at all"),
        (np.array([[0, 1, 2], [0, -1, 2]]), "row 1 has a token after a -1"),
        (None, "got dtype object"),
    ],
)
def test_a_sampler_that_breaks_the_contract_is_told_where(tokens: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_emission(tokens, n=2, gamma=2, vocab=4)


@pytest.mark.parametrize(
    ("p", "message"),
    [
        ([[0.5, 0.5], [0.7, 0.2]], r"p row \(1,\).*sums to 0.9"),
        ([[0.5, 0.5], [1.2, -0.2]], r"p row \(1,\).*least entry is -0.2"),
        ([[np.nan, 0.5], [0.5, 0.5]], r"p row \(0,\)"),
    ],
)
def test_bad_probabilities_are_refused_by_row(p: list[list[float]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_rows("p", p)


def test_mismatched_p_and_q_are_refused() -> None:
    with pytest.raises(ValueError, match="one row more, for the bonus token"):
        check_pair(np.full((3, 4), 0.25), np.full((3, 4), 0.25))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gamma": 0}, "gamma must be >= 1"),
        ({"vocab": 2}, "vocab must be >= 3"),
        ({"max_samples": 10}, "max_samples must be >= 512"),
        ({"false_alarm": 0.0}, "false_alarm must be in"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check(CORRECT["rejection_sampling"], **arguments)  # type: ignore[arg-type]  # wrong on purpose


# ---- what it says


def test_the_same_seed_gives_the_same_result() -> None:
    results = [check(CORRECT["rejection_sampling"], max_samples=5000, seed=9).to_json() for _ in range(2)]
    assert results[0] == results[1]


def test_a_verdict_is_json_with_its_evidence_and_its_power() -> None:
    found = json.loads(check(MUTANTS["residual from q - p"].sampler).to_json())
    assert not found["lossless"]
    assert found["e_value"] > 1e9
    assert found["worst_cell"]["expected"] == 0
    assert "probability is zero" in found["verdict"]
    passed = json.loads(check(CORRECT["exact_match"], max_samples=5000).to_json())
    assert passed["lossless"]
    assert 0 < passed["detectable_tv"] <= 1
    assert passed["p_value"] > 1e-9
    assert len(passed["tests"]) == passed["hypotheses"]


def test_the_moved_mass_is_drawn_with_its_data(tmp_path: Path) -> None:
    result = check(MUTANTS["resample from p"].sampler)
    paths = mass_moved.draw(result, tmp_path)
    assert paths["png"].stat().st_size > 10_000
    table = mass_moved.moved(next(test for test in result.tests if test.counts))
    assert table["moved"].sum() == pytest.approx(0.0, abs=1e-9)
    assert table["moved"].abs().max() > table["half_width_95"].max()


def test_a_sampler_is_loaded_from_the_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_sampler_for_test.py").write_text("def verify(p, q, n, rng):\n    return None\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [])
    assert load_callable("my_sampler_for_test:verify")(None, None, 1, None) is None  # type: ignore[arg-type]  # a stub


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("no_colon", "module:callable"),
        ("no_such_module_at_all:f", "cannot import"),
        ("math:no_such_function", "has no callable"),
        ("math:pi", "has no callable"),
    ],
)
def test_a_sampler_that_cannot_be_loaded_is_explained(reference: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_callable(reference)
