"""The regression gate: how often it cries wolf, what it finds, and `specdec check`."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from analysis.acceptance.sources import MeasuredAcceptance, of_rounds
from analysis.compare import measured
from analysis.regression import LENGTH, SPEEDUP, check_regression, speedup_of
from sim.acceptance import BetaAcceptance
from sim.records import make_rounds, write_rounds
from specdec_lab import main
from tests.analysis.synthetic import make_run

GAMMA, ROUNDS = 5, 60
REQUESTS = BetaAcceptance(8, 3)
"""alphas of requests: standard deviation 0.13, as between prompts of one category"""
MEAN = REQUESTS.expected_block_efficiency(GAMMA)
RUNS = 500
FALSE_ALARMS = 0.05 + 4 * np.sqrt(0.05 * 0.95 / RUNS)
"""a test that holds 5% goes above in 1 of 30,000 seeds"""


def system(
    rng: np.random.Generator, alphas: NDArray[np.float64], drop: float = 0.0, rows: bool = True
) -> MeasuredAcceptance:
    """One system's rounds, ROUNDS of each request. A drop of the mean length is planted exactly: rounds are lost."""
    draws = rng.random((len(alphas), ROUNDS))
    accepted = np.minimum(np.floor(np.log(draws) / np.log(alphas)[:, None]), GAMMA).astype(np.int64)
    accepted[rng.random(accepted.shape) < drop * MEAN / (MEAN - 1)] = 0
    requests = pd.DataFrame({"rounds": ROUNDS, "accepted": accepted.sum(axis=1)})
    return MeasuredAcceptance(
        name="s",
        gamma=GAMMA,
        mean_length=1 + accepted.mean(),
        rounds=accepted.size,
        marginal=tuple((accepted.ravel() > np.arange(GAMMA)[:, None]).mean(axis=1).tolist()),
        requests=requests if rows else None,
    )


def alarms(
    requests: int, paired: bool, allowed: float = 0.0, drop: float = 0.0, rows: bool = True, seed: int = 0
) -> float:
    """How often a new system with `drop` is called a regression where `allowed` is."""
    rng = np.random.default_rng(seed)
    count = 0
    for _ in range(RUNS):
        alphas = rng.beta(REQUESTS.a, REQUESTS.b, size=(2, requests))
        old = system(rng, alphas[0], rows=rows)
        new = system(rng, alphas[0 if paired else 1], drop, rows)
        if rows and not paired:
            new = replace(new, requests=new.requests.set_axis(range(1000, 1000 + requests)))
        count += check_regression(new, old, max_length_drop=allowed).regressed
    return count / RUNS


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("requests", [5, 30])
def test_identical_systems_alarm_in_five_percent_at_most(requests: int, paired: bool) -> None:
    """No drop allowed, which is the hardest case. Over 2000 runs of 4 to 100 requests: 0.033 to 0.059."""
    assert alarms(requests, paired) <= FALSE_ALARMS


def test_a_drop_of_just_what_is_allowed_alarms_in_five_percent_at_most() -> None:
    assert alarms(20, paired=True, allowed=0.05, drop=0.05) <= FALSE_ALARMS


def test_identical_systems_hardly_alarm_where_five_percent_are_allowed() -> None:
    assert alarms(30, paired=True, allowed=0.05) <= 0.005


@pytest.mark.parametrize("paired", [True, False])
def test_the_drop_called_detectable_is_found_in_80_percent(paired: bool) -> None:
    """Power within 4 standard errors and 0.04 of the normal approximation; 0.78 to 0.85 over 1500 runs."""
    rng = np.random.default_rng(1)
    stated = []
    for _ in range(200):
        alphas = rng.beta(REQUESTS.a, REQUESTS.b, size=(2, 40))
        old, new = system(rng, alphas[0]), system(rng, alphas[0 if paired else 1])
        if not paired:
            new = replace(new, requests=new.requests.set_axis(range(1000, 1040)))
        stated.append(check_regression(new, old, max_length_drop=0.0).comparisons[0].detectable_drop)
    found = alarms(40, paired, drop=float(np.mean(np.array(stated, dtype=np.float64))), seed=2)
    assert abs(found - 0.8) <= 4 * np.sqrt(0.8 * 0.2 / RUNS) + 0.04


def test_without_rows_of_requests_noise_is_understated_and_said_to_be() -> None:
    """The same systems from acceptance by position alone: rounds of a request are alike, and 0.3 of runs alarm.

    A gate that treated rounds as independent where it has rows would fail the tests above.
    """
    assert alarms(30, paired=False, rows=False) > 2 * FALSE_ALARMS
    rng = np.random.default_rng(0)
    alike = np.full(30, 0.7)
    result = check_regression(system(rng, alike, rows=False), system(rng, alike, rows=False))
    assert "too small where requests differ" in result.warnings[-1]
    assert "independent rounds" in result.comparisons[0].test


def test_independent_rounds_alarm_in_five_percent_at_most() -> None:
    rng = np.random.default_rng(3)
    alike = np.full(10, 0.7)
    systems = [[system(rng, alike, rows=False) for _ in range(2)] for _ in range(RUNS)]
    assert np.mean([check_regression(*pair, max_length_drop=0.0).regressed for pair in systems]) <= FALSE_ALARMS


def test_pairs_of_requests_find_smaller_drops() -> None:
    rng = np.random.default_rng(4)
    alphas = rng.beta(REQUESTS.a, REQUESTS.b, size=40)
    old, new = system(rng, alphas), system(rng, alphas)
    apart = replace(new, requests=new.requests.set_axis(range(100, 140)))
    in_pairs, not_in_pairs = (check_regression(one, old).comparisons[0] for one in (new, apart))
    assert "in pairs" in in_pairs.test
    assert "in pairs" not in not_in_pairs.test
    assert in_pairs.change == not_in_pairs.change
    assert in_pairs.detectable_drop is not None
    assert not_in_pairs.detectable_drop is not None
    assert in_pairs.detectable_drop < not_in_pairs.detectable_drop


def test_totals_give_the_largest_noise_that_rounds_can_have() -> None:
    rng = np.random.default_rng(5)
    known = system(rng, np.full(10, 0.7), rows=False)
    totals = replace(known, marginal=None)
    errors = []
    for one in (known, totals):
        detectable = check_regression(one, one).comparisons[0].detectable_drop
        assert detectable is not None
        errors.append(detectable)
    assert errors[0] < errors[1]
    assert "largest variance" in check_regression(totals, totals).comparisons[0].test


@pytest.mark.parametrize(("new", "regressed"), [(3.05, False), (2.95, False), (2.84, True)])
def test_a_bare_mean_is_compared_plainly_and_said_to_tell_no_noise(new: float, regressed: bool) -> None:
    result = check_regression(MeasuredAcceptance("new", 4, new), MeasuredAcceptance("old", 4, 3.0))
    (one,) = result.comparisons
    assert result.regressed is regressed
    assert one.p_value is one.detectable_drop is one.change_interval is None
    assert any("cannot tell noise" in warning for warning in result.warnings)


def test_means_are_compared_like_with_like() -> None:
    """A mean over requests is no mean over rounds: 2.547 and 2.473 for one system of a public example."""
    both = MeasuredAcceptance("both", 3, 2.473, 2.547)
    requests_only = MeasuredAcceptance("requests", 3, None, 2.547)
    (one,) = check_regression(requests_only, both, max_length_drop=0.0).comparisons
    assert (one.old, one.new, one.regressed) == (2.547, 2.547, False)
    mixed = check_regression(MeasuredAcceptance("rounds", 3, 2.473), requests_only, max_length_drop=0.0)
    assert any("they differ even for one system" in warning for warning in mixed.warnings)


def test_different_draft_lengths_are_warned_of() -> None:
    result = check_regression(MeasuredAcceptance("new", 3, 2.4), MeasuredAcceptance("old", 5, 3.0))
    assert "draft lengths differ, new 3 and old 5" in result.warnings[0]


def prompts(rng: np.random.Generator, count: int, slower: float = 0.0) -> pd.DataFrame:
    """Times of prompts with and without a draft: prompts differ by 20%, times by 5% more."""
    speedups = 2.0 * np.exp(0.2 * rng.standard_normal(count))
    tokens = rng.integers(20, 200, size=count).astype(np.float64)
    noise = np.exp(0.05 * rng.standard_normal((2, count)))
    columns = {
        "tokens": tokens,
        "seconds": 0.02 * tokens / speedups * noise[0] / (1 - slower),
        "baseline_tokens": tokens,
        "baseline_seconds": 0.02 * tokens * noise[1],
    }
    return pd.DataFrame(columns, index=rng.permutation(10_000)[:count])


def test_the_speedup_s_false_alarms_and_power() -> None:
    """Identical systems, no drop allowed: 5% of runs at most; a speedup 25% lower is found in 90% at least."""
    rng = np.random.default_rng(6)
    found = {0.0: 0, 0.25: 0}
    for slower in found:
        for _ in range(RUNS):
            old = MeasuredAcceptance("old", speedup=prompts(rng, 20))
            new = MeasuredAcceptance("new", speedup=prompts(rng, 20, slower))
            found[slower] += check_regression(new, old, max_speedup_drop=0.0).regressed
    assert found[0.0] / RUNS <= FALSE_ALARMS
    assert found[0.25] / RUNS >= 0.9


def test_two_numbers_share_the_chance_of_a_false_alarm() -> None:
    rng = np.random.default_rng(7)
    one = replace(system(rng, np.full(10, 0.7)), speedup=prompts(rng, 10))
    result = check_regression(one, one, confidence=0.9)
    assert [comparison.quantity for comparison in result.comparisons] == [LENGTH, SPEEDUP]
    assert [comparison.level for comparison in result.comparisons] == pytest.approx([0.05, 0.05])


def test_the_speedup_is_that_of_compare() -> None:
    table, _ = make_run(np.random.default_rng(8))
    part = table[(table["category"] == table["category"].iloc[0]) & (table["phase"] == "evaluation")]
    rows = measured(part).set_index(["draft", "gamma"])["measured"]
    for (draft, gamma), expected in rows.items():
        found = of_rounds(part, "t", draft, gamma).speedup
        assert found is not None
        assert speedup_of(found).value == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"max_length_drop": 5.0}, "must be a share in [0, 1), got 5.0"),
        ({"max_speedup_drop": -0.1}, "must be a share in [0, 1), got -0.1"),
        ({"confidence": 95}, "confidence must be in (0.5, 1), got 95"),
    ],
)
def test_settings_out_of_range_are_one_clear_error(settings: dict[str, Any], says: str) -> None:
    one = MeasuredAcceptance("s", 4, 3.0)
    with pytest.raises(ValueError, match=r".+") as raised:
        check_regression(one, one, **settings)
    assert says in str(raised.value)
    with pytest.raises(ValueError, match="nothing to compare"):
        check_regression(MeasuredAcceptance("a"), MeasuredAcceptance("b"))


class TestCommand:
    """`specdec check`: exit code 0 passed, 1 regressed, 2 bad use."""

    def call(self, monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
        monkeypatch.setattr(sys, "argv", ["specdec", "check", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0)

    def write(self, path: Path, alpha: float, verify_seconds: float = 1.0) -> Path:
        """Twelve requests of fifty rounds, each with as many steps without a draft."""
        rng = np.random.default_rng(9)
        accepted = np.minimum(np.floor(np.log(rng.random((12, 50))) / np.log(alpha)), 4).astype(np.int64).ravel()
        accepted = np.concatenate([accepted, np.zeros(600, dtype=np.int64)])
        drafting = np.arange(1200) < 600
        rounds = make_rounds(
            request_id=np.tile(np.repeat(np.arange(12), 50), 2).astype(str),
            round_index=np.tile(np.arange(50), 24),
            batch=1, context=10, gamma=4 * drafting, drafted=4 * drafting, accepted=accepted, emitted=accepted + 1,
            cut=False, start_seconds=0.0, draft_seconds=0.2 * drafting,
            verify_seconds=np.where(drafting, verify_seconds, 1.0) * np.exp(0.02 * rng.standard_normal(1200)),
            other_seconds=0.0,
        )  # fmt: skip
        write_rounds(rounds, path)
        return path

    def test_the_exit_code_says_what_happened(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        old = self.write(tmp_path / "old.parquet", 0.8)
        assert self.call(monkeypatch, old, "--against", old, "--json") == 0
        assert json.loads(capsys.readouterr().out)["regressed"] is False
        worse = self.write(tmp_path / "worse.parquet", 0.6)
        assert self.call(monkeypatch, worse, "--against", old, "--json") == 1
        length, speedup = json.loads(capsys.readouterr().out)["comparisons"]
        assert length["regressed"]
        assert length["p_value"] < 0.001
        assert "in pairs" in length["test"]
        assert 0.05 < length["detectable_drop"] < 0.3
        assert speedup["quantity"] == SPEEDUP
        assert self.call(monkeypatch, worse, "--against", old, "--max-length-drop", 0.6, "--max-speedup-drop", 0.6) == 0
        assert "passed" in capsys.readouterr().out

    def test_a_slower_verification_is_a_regression_of_the_speedup_only(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        old, slow = self.write(tmp_path / "old.parquet", 0.8), self.write(tmp_path / "slow.parquet", 0.8, 1.3)
        assert self.call(monkeypatch, slow, "--against", old, "--json") == 1
        length, speedup = json.loads(capsys.readouterr().out)["comparisons"]
        assert (length["regressed"], speedup["regressed"]) == (False, True)

    def test_files_of_different_kinds_are_compared(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        """A round table against the log line that vLLM would have written, with its counts."""
        table = self.write(tmp_path / "new.parquet", 0.6)
        log = tmp_path / "vllm.log"
        log.write_text(
            "INFO 09-16 05:26:57 [metrics.py:120] SpecDecoding metrics: Mean acceptance length: 3.36, Accepted "
            "throughput: 14.20 tokens/s, Drafted throughput: 24.00 tokens/s, Accepted: 1417 tokens, Drafted: 2400 "
            "tokens, Per-position acceptance rate: 0.800, 0.640, 0.512, 0.410, Avg Draft acceptance rate: 59.0%\n"
        )
        assert self.call(monkeypatch, table, "--against", log, "--json") == 1
        result = json.loads(capsys.readouterr().out)
        (length,) = result["comparisons"]
        assert length["old"] == pytest.approx(1 + 1417 / 600)
        assert "new: requests left out in turn; old: independent rounds" in length["test"]
        assert any("speedup was not compared" in warning for warning in result["warnings"])

    def test_bad_use_is_exit_code_two(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        old = self.write(tmp_path / "old.parquet", 0.8)
        for words, says in (
            ((old, "--against", tmp_path / "nowhere.parquet"), "no round table at"),
            ((old, "--against", old, "--gamma", 7), "no rounds with gamma 7"),
            ((old, "--against", old, "--confidence", 95), "confidence must be in (0.5, 1)"),
            ((old,), "--against"),
        ):
            assert self.call(monkeypatch, *words) == 2
            assert says in capsys.readouterr().err
