"""Planted causes: what is wrong with a simulated run is what the diagnosis names first."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis.compare import measured
from analysis.diagnose import Diagnosis, diagnose
from analysis.diagnose.speedup_loss import GOOD_ACCEPTANCE
from sim.acceptance import IidAcceptance
from sim.records import ROUND_SECONDS
from sim.theory import expected_tokens
from tests.analysis.drawn_costs import PARTS, drawn_run
from tests.analysis.planted import CAUSES, falling_rounds
from tests.analysis.planted import planted_run as run


def named(found: Diagnosis) -> dict[str, Any]:
    return {cause.name: cause for cause in found.causes}


def test_the_planted_cause_is_named_first(capsys: pytest.CaptureFixture[str]) -> None:
    """12 runs of each of 5 causes, at least 57 of 60; naming acceptance always would reach 12."""
    confusion: Counter[tuple[str, str]] = Counter()
    for number, cause in enumerate(CAUSES):
        for seed in range(12):
            found = diagnose(run(cause, 1000 * number + seed), resamples=100)
            confusion[cause, found.causes[0].name] += 1
            assert [one.share for one in found.causes] == sorted((one.share for one in found.causes), reverse=True)
    print(confusion)
    assert sum(count for (planted, first), count in confusion.items() if planted == first) >= 57, confusion


def test_the_planted_cause_is_named_first_without_a_baseline_but_for_verification() -> None:
    """12 runs of each of 4 causes; what a wider verification costs is not in a run of one width."""
    firsts: Counter[bool] = Counter()
    for number, cause in enumerate(cause for cause in CAUSES if cause != "verify_width"):
        for seed in range(12):
            table = run(cause, 1000 * number + seed)
            found = diagnose(table[table["gamma"] > 0].reset_index(drop=True), resamples=100)
            firsts[cause == found.causes[0].name] += 1
    assert firsts[True] >= 46, firsts


def test_a_dominant_part_of_rounds_drawn_without_the_simulator_is_named_first() -> None:
    """8 runs of each of 5 causes; at a rate of 99% one run in 130 would have two of 40 wrong."""
    wrong = []
    for number, cause in enumerate(PARTS):
        for seed in range(8):
            rounds, steps = drawn_run(cause, 50_000 + 100 * number + seed)
            found = diagnose(rounds, steps, resamples=100)
            if found.causes[0].name != cause:
                wrong.append((cause, found.causes[0].name, seed))
    assert len(wrong) <= 2, wrong


def test_acceptance_that_is_as_good_as_drafts_get_is_no_cause() -> None:
    """What is beyond a good draft's acceptance could not be brought back, so overhead comes before it."""
    table = run("engine_overhead", 30, acceptance=IidAcceptance(0.8), gamma=8, overhead=0.8, requests=40)
    found = diagnose(table, resamples=100)
    assert found.causes[0].name == "engine_overhead"
    low = named(found).get("low_acceptance")
    assert low is None or low.share < 0.1
    assert found.ideal_speedup == pytest.approx((1 - 0.8**9) / 0.2, rel=0.05)
    better = diagnose(run(None, 30, acceptance=IidAcceptance(0.9), gamma=4), resamples=100)
    assert "low_acceptance" not in named(better)
    assert better.ideal_speedup == better.block_efficiency


def test_a_good_draft_is_the_upper_quartile_of_published_ones() -> None:
    published = pd.read_csv(Path(__file__).parents[2] / "paper_figs" / "data" / "published_speedups.csv")
    assert published["alpha_iid_from_tau"].quantile(0.75) == pytest.approx(GOOD_ACCEPTANCE, abs=0.01)


def test_pauses_are_overhead_wherever_they_fall() -> None:
    """3 of 1,000 rounds take 300 times their time: half of all time. A few that take little are left out."""
    table = run(None, 31, requests=40, acceptance=IidAcceptance(0.8), gamma=4, max_new_tokens=96)
    own = np.flatnonzero(table["gamma"] > 0)
    round_seconds = table.loc[own, list(ROUND_SECONDS)].sum(axis=1).mean()
    hit = own[np.random.default_rng(0).permutation(len(own))[:3]]
    table.loc[hit, "draft_seconds"] += 0.3 * len(own) * round_seconds
    found = diagnose(table, resamples=100)
    assert found.causes[0].name == "engine_overhead"
    seconds = table[list(ROUND_SECONDS)].sum(axis=1)
    plain, mine = (table["gamma"] == 0), (table["gamma"] > 0)
    by_hand = seconds[plain].mean() / (seconds[mine].sum() / table.loc[mine, "emitted"].sum())
    assert found.speedup == pytest.approx(by_hand, rel=0.01)
    assert any("counts as time beside the forwards" in warning for warning in found.warnings)


def test_a_gain_is_given_no_remedy() -> None:
    found = diagnose(run("slow_draft", 2, verify_ratio=0.97), resamples=100)
    assert [gain.remedy for gain in found.gains] == ["costs less than in the ideal: nothing to change"]


def test_one_round_and_one_step_are_compared() -> None:
    table = run("slow_draft", 32)
    own, step = table[table["gamma"] > 0].head(1), table[table["gamma"] == 0]
    for steps in (step, step.head(1)):
        found = diagnose(own.reset_index(drop=True), steps.reset_index(drop=True))
        assert found.speedup is not None
        assert found.speedup_ci is None


def test_where_nothing_is_wrong_speculation_works() -> None:
    for seed in range(10):
        found = diagnose(run(None, seed, acceptance=IidAcceptance(0.85), gamma=4), resamples=100)
        assert found.speedup_ci is not None
        assert found.speedup_ci[0] > 1
        assert found.verdict.startswith("speculation works: ")
        assert found.verdict.endswith("no cause stands out")
        assert not {"draft_not_loaded", "unrepresentative_prompts"} & set(named(found))


def test_a_slowdown_is_called_one() -> None:
    found = diagnose(run("slow_draft", 1, cost_ratio=1.5, acceptance=IidAcceptance(0.5), gamma=4))
    assert found.speedup_ci is not None
    assert found.speedup_ci[1] < 1
    assert found.verdict.startswith("speculation slows decoding down: ")
    assert "no shorter draft pays either; most is lost to slow_draft" in found.verdict


def test_causes_add_up_to_the_loss_in_seconds_and_in_logs() -> None:
    table = run("slow_draft", 2, verify_ratio=0.97)
    found = diagnose(table)
    assert named(found).keys() >= {"slow_draft", "engine_overhead"}
    assert [gain.name for gain in found.gains] == ["verify_width"]
    every = [*found.causes, *found.gains]
    own = table[table["gamma"] > 0]
    lost = found.split["total_ms_per_token"] - found.split["baseline_ms_per_token"] / found.ideal_speedup
    assert 1e3 * sum(one.seconds_per_token for one in every) == pytest.approx(lost)
    assert sum(one.log_loss for one in every) == pytest.approx(np.log(found.ideal_speedup / found.speedup))
    assert sum(one.share for one in found.causes) == pytest.approx(1)
    good = expected_tokens(GOOD_ACCEPTANCE, int(own["gamma"].iloc[0]))
    assert found.ideal_speedup == pytest.approx(max(good, own["emitted"].mean()), rel=1e-2)
    parts = sum(found.split[f"{part}_ms_per_token"] for part in ("draft", "verify", "other"))
    assert parts == pytest.approx(found.split["total_ms_per_token"])


def test_speedup_and_interval_are_those_of_the_comparison() -> None:
    table = run("verify_width", 3).assign(category="all")
    other = measured(table).iloc[0]
    found = diagnose(table.drop(columns="category"), resamples=2000)
    assert found.speedup == pytest.approx(other["measured"])
    assert found.speedup_ci == pytest.approx([other["measured_lo"], other["measured_hi"]], rel=0.01)
    assert named(found)["verify_width"].evidence["verify_ratio"] == pytest.approx(3, abs=1.1)


def test_a_gamma_that_is_too_long_is_named_with_what_a_shorter_one_gives() -> None:
    """Run again at the length it advises, the speedup is the promised one within both intervals."""
    changed: dict[str, Any] = {"acceptance": IidAcceptance(0.7), "cost_ratio": 0.2, "requests": 60}
    found = diagnose(run(None, 4, gamma=10, **changed))
    cause = named(found)["draft_too_long"]
    better = cause.evidence["better_gamma"]
    assert better in (2, 3, 4)
    assert cause.remedy.startswith(f"draft {better} tokens instead of 10: +")
    again = diagnose(run(None, 5, gamma=better, **changed))
    assert found.speedup is not None
    assert again.speedup is not None
    promised = [found.speedup * (1 + gain) for gain in cause.evidence["gain_ci"]]
    assert found.speedup * (1 + cause.evidence["gain"]) == pytest.approx(again.speedup, rel=0.1)
    assert again.speedup_ci is not None
    assert promised[0] < again.speedup_ci[1]
    assert again.speedup_ci[0] < promised[1] * 1.05
    assert "draft_too_long" not in named(again)


@pytest.mark.parametrize(
    ("name", "falls"),
    [("acceptance_falls_with_context", {"by_context": 0.6}), ("acceptance_falls_over_time", {"by_output": 1.5})],
)
def test_falling_acceptance_is_a_cause_of_its_own(name: str, falls: dict[str, float]) -> None:
    found = diagnose(falling_rounds(np.random.default_rng(12), **falls))
    cause = named(found)[name]
    assert cause.share is not None
    assert cause.share > 0.1
    assert "tokens per round fall from" in cause.remedy
    assert cause.evidence["p_value"] < cause.evidence["false_alarm_rate"] == 0.01
    assert found.block_efficiency is not None
    steep = np.log(cause.evidence["block_efficiency_first_quarter"] / found.block_efficiency)
    assert cause.log_loss == pytest.approx(steep, rel=0.1)


def test_prompts_that_differ_are_a_cause_and_the_poor_category_is_named() -> None:
    good, poor = run(None, 6, gamma=4), run("low_acceptance", 6, gamma=4)
    poor["request_id"] = "poor" + poor["request_id"]
    table = pd.concat([good.assign(category="code"), poor.assign(category="chat")], ignore_index=True)
    found = diagnose(table)
    cause = named(found)["unrepresentative_prompts"]
    assert cause.share is not None
    assert cause.share > 0.2
    assert "the poorest in 'chat'" in cause.remedy


class TestBaseline:
    def test_without_one_nothing_that_needs_it_is_said(self) -> None:
        table = run("low_acceptance", 7)
        found = diagnose(table[table["gamma"] > 0].reset_index(drop=True))
        assert found.speedup is found.speedup_ci is found.split["baseline_ms_per_token"] is None
        assert found.causes[0].name == "low_acceptance"
        assert "pays from" not in found.causes[0].remedy
        assert "break_even_alpha" not in found.causes[0].evidence
        assert "plain step" not in "".join(one.remedy for one in found.causes)
        assert found.split["verify_ms_per_token"] > 0
        assert "no plain steps (gamma 0)" in found.warnings[0]
        assert "what verify_width costs is not known" in found.warnings[0]
        broken = run("draft_not_loaded", 7)
        assert diagnose(broken[broken["gamma"] > 0]).causes[0].name == "draft_not_loaded"

    def test_from_a_table_of_its_own_it_gives_the_same(self) -> None:
        table = run("engine_overhead", 8)
        steps = table["gamma"] == 0
        together, apart = diagnose(table), diagnose(table[~steps], table[steps])
        assert together.to_json() == apart.to_json()

    def test_verifications_of_fewer_tokens_stand_in_for_plain_steps(self) -> None:
        """At one width nothing is known of its cost; beside a narrow one, what it costs more than that."""
        wide, narrow = (
            run("verify_width", 9, gamma=gamma, verify_ratio=ratio) for gamma, ratio in ((5, 3.0), (1, 1.0))
        )
        table = pd.concat([wide, narrow], ignore_index=True)
        found = diagnose(table[table["gamma"] > 0].reset_index(drop=True), gamma=5)
        assert found.causes[0].name == "verify_width"
        assert found.causes[0].evidence["verify_ratio_at_least"] == pytest.approx(3, rel=0.1)
        assert found.speedup is None

    def test_of_seconds_per_token_it_gives_the_speedup(self) -> None:
        for number, cause in enumerate(CAUSES):
            table = run(cause, 40 + number)
            own, steps = (table[rows].reset_index(drop=True) for rows in (table["gamma"] > 0, table["gamma"] == 0))
            seconds = float(steps[list(ROUND_SECONDS)].to_numpy().sum() / len(steps))
            found = diagnose(own, seconds)
            assert found.speedup == pytest.approx(diagnose(own, steps).speedup, rel=1e-3)
            assert found.causes[0].name == cause
            assert "does not tell a step's forward from the rest" in found.warnings[0]

    def test_of_several_batches_the_same_one_counts(self) -> None:
        table = run("verify_width", 10)
        own, steps = (table[rows].assign(batch=32) for rows in (table["gamma"] > 0, table["gamma"] == 0))
        alone = steps.assign(batch=1, **{name: steps[name] / 10 for name in ROUND_SECONDS})
        both = pd.concat([steps, alone], ignore_index=True)
        assert diagnose(own, both).to_json() == diagnose(own, steps).to_json()
        assert "plain steps at 1: the speedup is not that of speculation alone" in diagnose(own, alone).warnings[0]

    def test_of_other_requests_it_is_drawn_apart(self) -> None:
        table = run("engine_overhead", 8)
        steps = table[table["gamma"] == 0].assign(request_id="x")
        found = diagnose(table[table["gamma"] > 0], steps)
        assert found.speedup == pytest.approx(diagnose(table).speedup)
        assert "the baseline is of other requests" in found.warnings[0]

    def test_without_times_nothing_is_compared(self) -> None:
        found = diagnose(run("low_acceptance", 9).assign(**dict.fromkeys(ROUND_SECONDS, 0.0)))
        assert found.speedup is None
        assert found.causes[0].name == "low_acceptance"
        assert "have no times" in found.warnings[0]

    def test_without_plain_steps_it_is_refused(self) -> None:
        table = run(None, 9)
        with pytest.raises(ValueError, match="the baseline has no plain steps"):
            diagnose(table, table[table["gamma"] > 0])


class TestChoice:
    def test_of_several_the_one_that_took_most_time_is_diagnosed(self) -> None:
        short, long = run(None, 10, gamma=2), run("slow_draft", 10, gamma=4)
        table = pd.concat([short, long[long["gamma"] > 0].assign(draft="slow")], ignore_index=True)
        found = diagnose(table)
        assert (found.draft, found.gamma) == ("slow", 4)
        assert found.warnings == (
            "diagnosed slow at gamma 4, on which most time was spent; also there: draft at gamma 2",
        )
        assert diagnose(table, gamma=2).gamma == 2
        assert diagnose(table, draft="draft").warnings == ()
        with pytest.raises(ValueError, match=r"no rounds of \{'gamma': 3\}; the table has slow at gamma 4, draft at"):
            diagnose(table, gamma=3)

    def test_a_table_without_speculation_is_refused(self) -> None:
        table = run(None, 9)
        with pytest.raises(ValueError, match="every gamma is 0"):
            diagnose(table[table["gamma"] == 0])


class TestBrokenDraft:
    def test_a_draft_that_is_never_asked_successfully_is_not_loaded(self) -> None:
        table = run("draft_not_loaded", 20).assign(drafted=0, draft_seconds=0.0)
        found = diagnose(table)
        assert found.causes[0].name == "draft_not_loaded"
        assert "nothing was drafted in" in found.causes[0].remedy

    def test_20_rounds_without_an_accepted_token_are_enough(self) -> None:
        for gamma in (1, 4, 10):
            table = run("draft_not_loaded", 24, gamma=gamma, cost_ratio=0.5)
            few = pd.concat([table[table["gamma"] > 0].head(20), table[table["gamma"] == 0]], ignore_index=True)
            found = diagnose(few)
            assert found.causes[0].name == "draft_not_loaded"
            assert "slow_draft" not in named(found)

    def test_a_poor_draft_is_not_called_broken(self) -> None:
        for seed in range(5):
            found = diagnose(run("low_acceptance", seed, acceptance=IidAcceptance(0.1)), resamples=100)
            assert found.causes[0].name == "low_acceptance"

    def test_a_few_rejections_are_no_proof(self) -> None:
        table = run("draft_not_loaded", 21)
        few = pd.concat([table[table["gamma"] > 0].head(6), table[table["gamma"] == 0].head(6)], ignore_index=True)
        found = diagnose(few)
        assert "draft_not_loaded" not in named(found)
        assert any("too few to call it broken" in warning for warning in found.warnings)


def test_a_single_request_is_cut_into_parts() -> None:
    found = diagnose(run("slow_draft", 22, requests=1, max_new_tokens=500))
    assert found.causes[0].name == "slow_draft"
    assert found.speedup_ci is not None
    assert found.speedup_ci[0] < found.speedup < found.speedup_ci[1]
    assert any("leave out how requests differ" in warning for warning in found.warnings)


def test_a_tree_s_ideal_is_that_of_its_depth_and_no_shorter_length_is_advised() -> None:
    table = run(None, 23, gamma=6, acceptance=IidAcceptance(0.3), cost_ratio=0.3)
    depth = np.minimum(table["drafted"], 3)
    accepted = np.minimum(table["accepted"], depth)
    found = diagnose(table.assign(depth=depth, accepted=accepted, emitted=accepted + 1, cut=False))
    assert found.ideal_speedup == pytest.approx(1 + 0.8 + 0.8**2 + 0.8**3)
    assert "draft_too_long" not in named(found)
