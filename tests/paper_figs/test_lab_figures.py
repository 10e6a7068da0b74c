"""The data behind this lab's own figures."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.losslessness import CORRECT, MUTANTS, POWER
from analysis.losslessness.check import plan
from analysis.losslessness.power import detectable_tv
from analysis.published import predict_published, score_published
from analysis.published.rows import read_published
from paper_figs import lab_predictions, lab_waterfall, mutants_by_tests, published_predictions, sampler_power


class TestPredictions:
    table = lab_predictions.data()

    def test_rows_are_the_committed_run_s_held_out_configurations(self) -> None:
        committed = pd.read_csv(lab_predictions.RUN / "comparison.csv")
        held_out = committed[committed["held_out"]]
        assert list(self.table["config"]) == list(held_out["config"])
        np.testing.assert_allclose(self.table["predicted"], held_out["predicted"], atol=1e-9)

    def test_caption_states_the_readme_s_score(self) -> None:
        error = (self.table["predicted"] / self.table["measured"] - 1).abs().mean()
        assert f"Mean absolute error {100 * error:.1f}%" in lab_predictions.caption(self.table)
        readme = (Path(lab_predictions.__file__).parents[1] / "README.md").read_text()
        assert f"{100 * error:.1f}%" in readme

    def test_too_many_categories_are_refused(self) -> None:
        crowd = pd.concat([self.table.assign(category=f"c{n}") for n in range(11)])
        with pytest.raises(ValueError, match="10 categories can be told apart"):
            lab_predictions.draw(crowd)

    def test_a_folder_without_a_comparison_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"holds no comparison\.csv; give --run"):
            lab_predictions.data(tmp_path)

    def test_a_comparison_of_another_making_is_refused(self, tmp_path: Path) -> None:
        shutil.copy(lab_predictions.RUN / "run.json", tmp_path)
        committed = pd.read_csv(lab_predictions.RUN / "comparison.csv")
        for text, says in (
            ("", r"comparison\.csv is not CSV \(No columns to parse from file\)"),
            ("config,draft\na,b\n", "lacks the columns gamma, category, held_out, predicted, predicted_lo"),
            (committed[~committed["held_out"]].to_csv(index=False), "holds no held-out configuration"),
        ):
            (tmp_path / "comparison.csv").write_text(text)
            with pytest.raises(ValueError, match=says):
                lab_predictions.data(tmp_path)


class TestPublished:
    table = published_predictions.data()

    def test_rows_are_those_that_the_command_predicts(self) -> None:
        rows = read_published(published_predictions.PUBLISHED)
        assert len(self.table) == score_published(predict_published(rows))["predicted"].sum()
        by_panel = score_published(self.table.assign(source=self.table["panel"]))
        by_source = score_published(self.table)
        np.testing.assert_allclose(by_panel["mape"], by_source["mape"], atol=1e-9)

    def test_caption_states_the_coverage_counted_by_hand(self) -> None:
        half = 0.005 + 1e-9  # of the last digit that most sources print
        held = self.table["measured"].between(self.table["lo"] - half, self.table["hi"] + half).mean()
        stated = re.search(r"which hold (\d+)% of", published_predictions.caption(self.table))
        assert stated
        assert abs(int(stated[1]) - 100 * held) <= 1.5


class TestWaterfall:
    table = lab_waterfall.data(draft="prompt-lookup", gamma=3)

    def test_steps_lead_from_the_ideal_to_the_measured_speedup(self) -> None:
        """Eq. 1 at alpha = 0.8, which the run's own does not reach, and the plain ratio of its seconds per token."""
        from sim.records import ROUND_SECONDS, read_rounds

        assert self.table["speedup_after"].iloc[0] == pytest.approx((1 - 0.8**4) / (1 - 0.8), abs=1e-9)
        after, before = self.table["speedup_after"].iloc[:-1], self.table["speedup_before"].iloc[1:-1]
        np.testing.assert_allclose(after.iloc[:-1], before, atol=1e-9)
        rounds = read_rounds(lab_waterfall.RUN / "rounds.parquet")
        rounds = rounds[rounds["phase"] == "evaluation"]
        seconds = rounds[list(ROUND_SECONDS)].sum(axis=1)
        drafted, plain = (rounds["gamma"] == 3, rounds["gamma"] == 0)
        per_token = [seconds[part].sum() / rounds.loc[part, "emitted"].sum() for part in (plain, drafted)]
        # the diagnosis caps what something interrupted, and may see calibration's plain steps too
        assert self.table["speedup_after"].iloc[-1] == pytest.approx(per_token[0] / per_token[1], rel=0.05)

    def test_shares_of_the_loss_add_up(self) -> None:
        causes = self.table[self.table["kind"] == "cause"]
        assert causes["share"].sum() == pytest.approx(1, abs=0.02)

    def test_a_configuration_that_is_not_there_is_refused(self) -> None:
        with pytest.raises(ValueError, match="holds no rounds of draft int8"):
            lab_waterfall.data(draft="int8")


class TestPower:
    table = sampler_power.data(counts=(1000, 10_000), points=21, trials=100)

    def test_power_is_what_it_promises_at_the_detectable_deviation(self) -> None:
        hypotheses = plan(4, 8).hypotheses
        for counts in (1000, 10_000, 1_000_000):
            seen = np.array(detectable_tv(counts, 1, 8, hypotheses))
            assert float(sampler_power.power(seen, counts, hypotheses)) == pytest.approx(POWER, abs=1e-6)

    def test_simulated_tables_are_rejected_as_often_as_computed(self) -> None:
        """Ten points of 100 tables, 4.5 standard errors: a false alarm in about 10,000 seeds; powers of half or twice
        the deviation squared would be caught."""
        hypotheses = plan(4, 8).hypotheses
        points = self.table[self.table["panel"] == "simulated"]
        assert len(points) == 10
        for row in points.itertuples():
            exact = float(sampler_power.power(np.array(row.x), int(row.series), hypotheses))
            # the line is a fit to the e-value within a few percent of G, so that steep parts may be off a little more
            near = [
                float(sampler_power.power(np.array(row.x * scale), int(row.series), hypotheses))
                for scale in (0.97, 1.03)
            ]
            slack = 4.5 * np.sqrt(max(exact * (1 - exact), 0.01) / row.trials)
            assert near[0] - slack <= row.y <= near[1] + slack

    def test_no_deviation_is_hardly_ever_rejected(self) -> None:
        curves = self.table[(self.table["panel"] == "power") & (self.table["x"] == 0)]
        assert (curves["y"] < 1e-9).all()

    def test_what_is_seen_halves_with_four_times_the_rounds(self) -> None:
        seen = self.table[(self.table["panel"] == "detectable") & (self.table["series"] == "table")]
        slope = np.polyfit(np.log(seen["x"]), np.log(seen["y"]), 1)[0]
        assert slope == pytest.approx(-0.5, abs=0.03)


class TestMutants:
    table = mutants_by_tests.data()

    def test_the_committed_study_has_every_sampler(self) -> None:
        assert set(self.table["sampler"]) == set(CORRECT) | set(MUTANTS)
        applies = self.table.groupby("sampler")["test"].agg(list)
        assert all(set(mutants_by_tests.FAMILIES) < set(tests) for tests in applies)

    def test_every_mutant_is_caught_and_no_correct_sampler(self) -> None:
        own = self.table[self.table["test"] != mutants_by_tests.USUAL]
        caught = own.groupby("sampler")["rejects"].any()
        correct = self.table.groupby("sampler")["correct"].first()
        assert caught[~correct].all()
        assert not caught[correct].any()

    def test_the_usual_test_misses_what_the_others_catch(self) -> None:
        usual = self.table[(self.table["test"] == mutants_by_tests.USUAL) & ~self.table["correct"]]
        missed = set(usual.loc[~usual["rejects"], "sampler"])
        assert {"bonus from q", "noise shared across rounds", "stale draft cache", "bonus missing"} <= missed

    def test_no_test_makes_another_superfluous(self) -> None:
        """Each of these mutants is seen by one family alone."""
        seen = self.table[self.table["test"].isin(mutants_by_tests.FAMILIES) & self.table["rejects"]]
        only = seen.groupby("sampler")["test"].agg(set)
        assert only["bonus missing"] == {"bonus"}
        assert only["noise recycled after 7 rounds"] == {"rounds"}

    def test_a_sampler_is_tried_against_every_test(self) -> None:
        mutant = MUTANTS["always accept"]
        rows = mutants_by_tests.try_sampler("always accept", mutant.sampler, mutant.rule, False, 2048, 0)
        assert list(rows["test"]) == list(mutants_by_tests.TESTS)
        rejects = dict(zip(rows["test"], rows["value"] > rows["line"], strict=True))
        assert rejects["first token"]
        assert rejects[mutants_by_tests.EXACT]
        assert not rejects["bonus"]  # always emitted, from the right law
