"""Speculation profiles, and what files say about acceptance."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.acceptance.conversion import convert
from analysis.acceptance.profile import SpeculationProfile, parse_profile, profile_of, read_profile, write_profile
from analysis.acceptance.sources import acceptance_of, check_enough, of_profile, of_rounds, read_acceptance
from sim.acceptance import IidAcceptance
from sim.records import make_rounds, summarise, write_rounds
from specdec_lab import main

PUBLIC: dict[str, Any] = {
    # Model-Optimizer's first public example (NVIDIA/Model-Optimizer#2247): per-step 2.4733, per-request 2.5467.
    "schema_version": "1.0",
    "measured": True,
    "method": "dflash",
    "draft_checkpoint": {"name": "nvidia/MiniMax-M2.7-DFlash"},
    "num_speculative_tokens": 3,
    "max_supported_k": 3,
    "verification_method": "longest_prefix",
    "conditional_accept_rates": [0.719081, 0.645494, 0.624895],
    "marginal_accept_rates": [0.719081, 0.464163, 0.290053],
    "mean_accept_length": 2.473297,
    "mean_accept_length_per_request": 2.54671,
    "accept_length_model": "measured_per_k",
    "acceptance_length_histogram": {"1": 8611, "2": 7814, "3": 5337, "4": 8891},
    "validation": {"mean_consistency": {"passed": True}, "marginal_monotonicity": {"passed": True, "violations": []}},
}


def table(
    rng: np.random.Generator, drafted: Any = 4, alpha: float = 0.7, rounds: int = 60, **more: Any
) -> pd.DataFrame:
    """Rounds of five requests, of different numbers, without times."""
    request = np.repeat(np.arange(5), [rounds, 2 * rounds, rounds, rounds // 2, rounds])
    accepted = np.minimum(IidAcceptance(alpha).sample(rng, 4, len(request)).accepted[0], drafted)
    columns: dict[str, Any] = {
        "request_id": request.astype(str),
        "round_index": np.concatenate([np.arange(n) for n in np.bincount(request)]),
        **{"batch": 1, "context": 10, "gamma": 4, "drafted": drafted, "accepted": accepted, "emitted": accepted + 1},
        **{"cut": False, "start_seconds": 0.0, "draft_seconds": 0.1, "verify_seconds": 1.0, "other_seconds": 0.0},
    }
    return make_rounds(**columns | more)


def test_the_public_example_reads_and_comes_back_whole(tmp_path: Path) -> None:
    path = tmp_path / "speculation_profile.json"
    path.write_text(json.dumps(PUBLIC))
    profile = read_profile(path)
    assert profile.warnings() == []
    assert profile.acceptance_length_histogram == {1: 8611, 2: 7814, 3: 5337, 4: 8891}
    write_profile(profile, path)
    again = json.loads(path.read_text())
    checks = again.pop("validation")
    assert again == {name: value for name, value in PUBLIC.items() if name != "validation"}
    assert checks["marginal_monotonicity"] == PUBLIC["validation"]["marginal_monotonicity"]
    assert checks["mean_consistency"]["passed"] is True
    assert checks["mean_consistency"]["abs_delta"] < 1e-5
    assert replace(read_profile(path), other=profile.other) == profile


def test_the_histogram_counts_the_bonus_token_and_the_rates_do_not() -> None:
    """Length 1 is no accepted token; a gap in the lengths does not end the rates."""
    counts = {"1": 50, "3": 50}
    measured = of_profile(parse_profile({"schema_version": "1.0", "acceptance_length_histogram": counts}), "p")
    assert measured.histogram == (50, 0, 50)
    assert measured.marginal == (0.5, 0.5)
    assert measured.mean_length == 2.0


def test_a_round_table_becomes_a_profile_of_the_same_rounds(tmp_path: Path) -> None:
    rounds = table(np.random.default_rng(0))
    total = summarise(rounds)
    write_rounds(rounds, tmp_path / "rounds.parquet")
    profile = profile_of(read_acceptance([tmp_path / "rounds.parquet"]), method="eagle3")
    write_profile(profile, tmp_path / "speculation_profile.json")
    back = read_acceptance([tmp_path / "speculation_profile.json"])
    assert back.mean_length == pytest.approx(total["block_efficiency"], rel=1e-12)
    assert back.mean_length_per_request == pytest.approx(total["block_efficiency_per_request"], rel=1e-12)
    assert abs(total["block_efficiency"] - total["block_efficiency_per_request"]) > 0.01  # else they could be mixed up
    assert back.histogram == tuple(total["histogram"])
    assert back.marginal == pytest.approx(total["marginal_acceptance"], rel=1e-12)
    assert back.accept_length_model == "chain_analytic"
    assert acceptance_of(back).law.mean_length == pytest.approx(back.mean_length, rel=1e-12)


def test_what_is_not_known_is_null_and_never_zero(tmp_path: Path) -> None:
    document = profile_of(of_rounds(table(np.random.default_rng(0), drafted=1), "t")).document()
    for name in ("method", "accept_length_model", "verification_method"):
        assert document[name] is None
    assert document["conditional_accept_rates"][2:] == (None, None)  # no round got that far
    short = acceptance_of(of_rounds(table(np.random.default_rng(0), drafted=1), "t"))
    assert any("no round drafted position 1" in warning for warning in short.warnings)
    mean_only = profile_of(of_profile(SpeculationProfile(mean_accept_length=2.5), "p")).document()
    assert [name for name, value in mean_only.items() if value is not None] == [
        "schema_version", "measured", "mean_accept_length",
    ]  # fmt: skip


def test_placeholders_of_what_was_not_measured_are_not_taken_for_rates() -> None:
    stub = {
        "schema_version": "1.0",
        "measured": False,
        "conditional_accept_rates": [0.0],
        "marginal_accept_rates": [0.0],
    }
    profile = parse_profile(stub)
    assert profile.conditional_accept_rates is profile.marginal_accept_rates is None
    with pytest.raises(ValueError, match="says that it was not measured"):
        of_profile(profile, "p")


def test_shorter_drafts_lower_the_measured_mean_but_not_the_law() -> None:
    """The law is of rounds that draft all gamma tokens; the profile's rates are of all rounds, as the format has it."""
    rng = np.random.default_rng(1)
    measured = of_rounds(table(rng, drafted=rng.integers(0, 5, size=3300), rounds=600), "t")
    assert measured.mean_length is not None
    law = acceptance_of(measured)
    assert law.law.mean_length == pytest.approx(2.7731, abs=0.15)  # iid alpha 0.7 at gamma 4: eq. 1; 4 standard errors
    assert measured.mean_length < law.law.mean_length - 0.5
    assert any("some rounds drafted fewer" in warning for warning in law.warnings)
    profile = profile_of(measured)
    check = profile.mean_consistency()
    assert check is not None
    assert check["abs_delta"] < 1e-9


def test_a_profile_that_holds_for_one_draft_length_is_not_converted_to_another() -> None:
    given = acceptance_of(of_profile(parse_profile(PUBLIC), "p"))
    assert convert(given, gamma=3).law.gamma == 3
    with pytest.raises(ValueError, match="measure it at gamma 2"):
        convert(given, gamma=2)


BROKEN = [
    ({"schema_version": None}, "it lacks schema_version"),
    ({"schema_version": "2.0"}, "its schema version is '2.0'"),
    ({"validation": []}, "validation must be an object"),
    ({"measured": "yes"}, "measured must be true or false"),
    ({"method": 3}, "method must be a text"),
    ({"num_speculative_tokens": 2.5}, "must be a whole number"),
    ({"num_speculative_tokens": 4}, "has 3 rates, but num_speculative_tokens is 4"),
    ({"marginal_accept_rates": [0.7, 0.8, 0.1]}, "must not rise, got 0.7 then 0.8"),
    ({"marginal_accept_rates": [71.9, 46.4, 29.0]}, "rates in [0, 1], got 71.9 at position 0"),
    ({"marginal_accept_rates": [0.7, None, 0.1]}, "got None at position 1"),
    (
        {"conditional_accept_rates": [0.719081, 0.464163, 0.290053], "marginal_accept_rates": [0.72, 0.65, 0.62]},
        "were the two swapped",
    ),
    ({"mean_accept_length": 4.5}, "mean_accept_length must be a number in [1, 4]"),
    ({"mean_accept_length_per_request": 0.9}, "must be a number in [1, 4]"),
    ({"acceptance_length_histogram": {"0": 5}}, "keyed by tokens emitted, from 1 on, got the key '0'"),
    ({"acceptance_length_histogram": {"1": -5}}, "counts of rounds, got -5"),
    ({"acceptance_length_histogram": {"1": 0}}, "counts no round"),
]


@pytest.mark.parametrize(("change", "says"), BROKEN)
def test_a_broken_profile_is_one_clear_error(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    path = tmp_path / "p.json"
    path.write_text(json.dumps(PUBLIC | change))
    with pytest.raises(ValueError, match=r"is a broken speculation profile") as raised:
        read_acceptance([path])
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("text", ["", "[1]", json.dumps(PUBLIC)[:-20]])
def test_a_profile_that_is_no_json_object_is_one_clear_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "speculation_profile.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"speculation profile: .+"):
        read_acceptance([path])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"mean_accept_length": 3.0}, "was num_speculative_tokens smaller than the run's"),
        ({"conditional_accept_rates": [0.9, 0.9, 0.9]}, "the marginal rates are used"),
        ({"mean_accept_length": 2.54671, "marginal_accept_rates": None}, "is it the mean over requests"),
        ({"acceptance_length_histogram": {"6": 10}, "mean_accept_length": None}, "more than num_speculative_tokens"),
        ({"verification_method": "block"}, "rates by position may not describe it"),
    ],
)
def test_numbers_that_do_not_fit_together_are_warned_of(change: dict[str, Any], says: str) -> None:
    assert any(says in warning for warning in parse_profile(PUBLIC | change).warnings())


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=2), inner, max_size=4),
)


@given(st.dictionaries(st.sampled_from(list(PUBLIC)), VALUES, min_size=1))
def test_any_other_value_reads_and_writes_or_is_one_clear_error(change: dict[str, Any]) -> None:
    message = ""
    try:
        json.dumps(parse_profile(PUBLIC | change).document())
    except ValueError as error:
        message = str(error)
    assert "\n" not in message


class TestRoundTables:
    """One configuration of a table."""

    def several(self) -> pd.DataFrame:
        rng = np.random.default_rng(2)
        parts = [table(rng, draft=draft, gamma=gamma) for draft, gamma in (("a", 4), ("a", 6), ("b", 4))]
        return pd.concat(parts)

    def test_several_configurations_need_a_choice(self) -> None:
        rounds = self.several()
        with pytest.raises(ValueError, match=r"several configurations .*\('a', 4\), \('a', 6\), \('b', 4\)"):
            of_rounds(rounds, "t")
        chosen = of_rounds(rounds, "t", "a", 6)
        assert (chosen.gamma, chosen.rounds, chosen.method) == (6, 330, "a")
        assert chosen.marginal is not None
        assert chosen.marginal[4:] == (0.0, 0.0)
        with pytest.raises(ValueError, match="no draft 'c'"):
            of_rounds(rounds, "t", "c")
        with pytest.raises(ValueError, match="no rounds with gamma 5"):
            of_rounds(rounds, "t", gamma=5)

    def test_a_draft_length_that_changes_within_requests_is_one_configuration(self) -> None:
        rng = np.random.default_rng(3)
        lengths = rng.integers(1, 5, size=330)
        measured = of_rounds(table(rng, drafted=lengths, gamma=lengths), "t")
        assert (measured.gamma, measured.rounds) == (4, 330)
        assert "changed from round to round" in measured.warnings[0]

    def test_without_a_draft_there_is_no_acceptance(self) -> None:
        rounds = table(np.random.default_rng(0), drafted=0).assign(gamma=0)
        with pytest.raises(ValueError, match="every gamma is 0"):
            of_rounds(rounds, "t")


def test_an_engine_s_log_becomes_a_profile(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """vLLM's per-request statistics, as posted by users; the histogram there is 0-based."""
    statistics = {
        "mean_acceptance_length": 1.2325581395348837,
        "draft_acceptance_rate": 0.07751937984496124,
        "acceptance_histogram": [39, 1, 0, 3],
        "num_spec_steps": 43,
        "num_accepted_draft_tokens": 10,
        "num_draft_tokens": 129,
        "num_spec_tokens": 3,
    }
    log, out = tmp_path / "vllm.json", tmp_path / "out" / "speculation_profile.json"
    log.write_text(json.dumps({"metrics": {"speculative_decoding": statistics}}))
    monkeypatch.setattr(sys, "argv", ["specdec", "convert", "--from", str(log), "--out", str(out), "--json"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    result = json.loads(capsys.readouterr().out)
    assert result["mean_acceptance_length"] == pytest.approx(53 / 43)
    profile = read_profile(out)
    assert profile.acceptance_length_histogram == {1: 39, 2: 1, 4: 3}
    assert profile.marginal_accept_rates == pytest.approx([4 / 43, 3 / 43, 3 / 43])
    assert profile.num_speculative_tokens == 3
    assert profile.mean_accept_length == pytest.approx(53 / 43)


class TestImports:
    """What `specdec import` printed or wrote, read back."""

    CONTRACT: ClassVar[dict[str, Any]] = {
        "engine": "vllm", "rounds": 100, "drafted": 300, "accepted": 190, "mean_acceptance_length": 2.9,
        "marginal_acceptance": [0.8, 0.6, 0.5], "conditional_acceptance": [0.8, 0.75, 5 / 6], "warnings": [],
        "skipped_lines": 0,
    }  # fmt: skip

    def test_its_contract_alone_is_enough(self, tmp_path: Path) -> None:
        path = tmp_path / "printed.json"
        path.write_text(json.dumps(self.CONTRACT))
        measured = read_acceptance([path])
        assert (measured.gamma, measured.rounds, measured.mean_length) == (3, 100, 2.9)
        assert acceptance_of(measured).law.marginal == pytest.approx((0.8, 0.6, 0.5))

    def test_a_folder_keeps_the_scatter_of_requests(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        log, folder = tmp_path / "requests.jsonl", tmp_path / "imported"
        log.write_text("".join(vllm_request([40 - n, 1, n, 3]) for n in range(6)))
        monkeypatch.setattr(sys, "argv", ["specdec", "import", str(log), "--out", str(folder)])
        with pytest.raises(SystemExit):
            main()
        for path in (log, folder):
            requests = read_acceptance([path]).requests
            assert requests is not None
            assert requests["accepted"].tolist() == [10 + 2 * n for n in range(6)]

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            ({"marginal_acceptance": [80, 60]}, "marginal_acceptance must be a list of rates in [0, 1]"),
            ({"marginal_acceptance": [0.8, None]}, "got null for one"),
            ({"rounds": -1}, "rounds must be a whole number >= 0 or null, got -1"),
            ({"histogram": [1, 2.5]}, "histogram must be a list of counts"),
            ({"mean_acceptance_length": "2.9"}, "mean_acceptance_length must be a number"),
        ],
    )
    def test_a_damaged_one_is_one_clear_error(self, tmp_path: Path, change: dict[str, Any], says: str) -> None:
        path = tmp_path / "printed.json"
        path.write_text(json.dumps(self.CONTRACT | change))
        with pytest.raises(ValueError, match=re.escape(says)) as caught:
            read_acceptance([path])
        assert "\n" not in str(caught.value)

    def test_a_draft_length_that_it_is_not_of_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "speculation_profile.json"
        path.write_text(json.dumps(PUBLIC))
        assert read_acceptance([path], gamma=3).gamma == 3
        with pytest.raises(ValueError, match="is of gamma 3, not 7"):
            read_acceptance([path], gamma=7)


def test_a_gate_does_not_judge_on_a_handful_of_rounds() -> None:
    """With 2 rounds, an unchanged draft would fail a gate at 5% in a quarter of cases: both rounds alike, no noise."""
    few = SpeculationProfile(num_speculative_tokens=2, acceptance_length_histogram={1: 2})
    with pytest.raises(ValueError, match="p has too few rounds to tell noise from a fall: 2;"):
        check_enough(of_profile(few, "p"))
    check_enough(of_profile(replace(few, acceptance_length_histogram={1: 9, 2: 1}), "p"))
    two = of_rounds(table(np.random.default_rng(0), rounds=1).head(3), "t")
    check_enough(two)


def vllm_request(histogram: list[int]) -> str:
    """A line of vLLM's statistics of one request that drafted 3 tokens a round."""
    accepted, rounds = sum(n * count for n, count in enumerate(histogram)), sum(histogram)
    statistics = {
        "mean_acceptance_length": 1 + accepted / rounds, "draft_acceptance_rate": accepted / rounds / 3,
        "acceptance_histogram": histogram, "num_spec_steps": rounds, "num_accepted_draft_tokens": accepted,
        "num_draft_tokens": 3 * rounds, "num_spec_tokens": 3,
    }  # fmt: skip
    return json.dumps({"metrics": {"speculative_decoding": statistics}}) + "\n"
