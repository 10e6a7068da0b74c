"""The data behind the figures of chains: the source lab, Leviathan et al., Chen et al."""

from __future__ import annotations

import numpy as np
import pytest

from paper_figs import (
    chen_draft_length,
    leviathan_fig2,
    leviathan_fig3,
    leviathan_fig4,
    leviathan_fig5,
    leviathan_table1,
    leviathan_table2,
    source_table,
)


class TestSourceTable:
    table = source_table.data()

    def test_printed_rows_are_the_source_s_formula_but_for_one(self) -> None:
        """The source prints 2.5 where its formula gives 2.58; the other three round to what it prints."""
        rows = self.table[self.table["printed"].notna()]
        assert list(rows["printed"]) == [2.1, 2.5, 2.5, 3.3]
        off = (rows["formula"].round(1) - rows["printed"]).abs() > 1e-9
        assert rows.loc[off, ["alpha", "gamma"]].to_numpy().tolist() == [[0.7, 8]]

    def test_grid_holds_the_formula_and_the_sum_of_powers(self) -> None:
        grid = self.table[self.table["printed"].isna()]
        alpha, gamma = grid["alpha"].to_numpy(), grid["gamma"].to_numpy()
        exact = [(a ** np.arange(g + 1)).sum() for a, g in zip(alpha, gamma, strict=True)]
        np.testing.assert_allclose(grid["exact"], exact, atol=1e-9)
        np.testing.assert_allclose(grid["formula"] * (1 - alpha + alpha / gamma), 1, atol=1e-9)
        np.testing.assert_allclose(grid["error_percent"], 100 * (grid["formula"] / exact - 1), atol=1e-9)

    def test_formula_is_never_above_the_law_and_blind_at_gamma_one(self) -> None:
        grid = self.table[self.table["printed"].isna()]
        assert (grid["error_percent"] <= 1e-9).all()
        one = grid[grid["gamma"] == 1]
        np.testing.assert_allclose(one["error_percent"], 100 * (1 / (1 + one["alpha"]) - 1), atol=1e-9)


def test_fig2_is_equation_1() -> None:
    table = leviathan_fig2.data()
    for name in (column for column in table if str(column).startswith("gamma_")):
        gamma = int(str(name).removeprefix("gamma_"))
        powers = table["alpha"].to_numpy()[:, None] ** np.arange(gamma + 1)
        np.testing.assert_allclose(table[name], powers.sum(axis=1), atol=1e-9)
        assert (table[name] <= table["limit"].fillna(np.inf) + 1e-9).all()


def test_fig3_is_the_argmax_of_theorem_3_8() -> None:
    """As it is drawn, up to alpha = 0.995, where the best draft is 169 tokens long; 1,000 are tried here."""
    table = leviathan_fig3.data()
    gamma, alpha = np.arange(1000), table["alpha"].to_numpy()[:, None]
    tokens = (1 - alpha ** (gamma + 1)) / (1 - alpha)
    for name in (column for column in table if str(column).startswith("cost_")):
        cost = float(str(name).removeprefix("cost_"))
        np.testing.assert_array_equal(table[name], np.argmax(tokens / (gamma * cost + 1), axis=1))
        assert (np.diff(table[name]) >= 0).all()
        np.testing.assert_array_equal(table[name] > 0, table["alpha"] > cost)  # Corollary 3.9
    with pytest.raises(ValueError, match="may be above 64, the longest tried"):
        leviathan_fig3.data(longest=64)


def test_fig4_passes_through_the_printed_table_1() -> None:
    printed = leviathan_table1.PRINTED
    table = leviathan_fig4.data(gammas=sorted({gamma for _, gamma, _, _ in printed}), points=101)
    for alpha, gamma, operations, speed in printed:
        row = table[np.isclose(table["alpha"], alpha) & (table["gamma"] == gamma)].iloc[0]
        assert row["speedup"] == pytest.approx(speed, abs=0.005)
        assert row["operations"] == pytest.approx(operations, abs=0.005)
    # with a free draft, tokens computed = operations * tokens emitted
    np.testing.assert_allclose(table["speedup"] * table["operations"], table["gamma"] + 1, atol=1e-9)


def test_table_1_is_reproduced_to_its_rounding() -> None:
    table = leviathan_table1.data()
    assert len(table) == 6
    for name in ("operations", "speed"):
        np.testing.assert_array_equal(table[name].round(2), table[f"{name}_printed"])


class TestTable2:
    table = leviathan_table2.data()

    def test_holds_the_twelve_printed_speedups(self) -> None:
        assert list(self.table["measured"]) == [3.4, 2.8, 1.7, 2.6, 2.4, 1.4, 3.1, 3.0, 2.2, 2.3, 2.2, 1.7]

    def test_the_authors_predictions_are_theorem_3_8_within_the_rounding_of_its_inputs(self) -> None:
        rows = self.table
        assert (rows["authors_prediction"] >= rows["predicted_lo"] - 0.05).all()
        assert (rows["authors_prediction"] <= rows["predicted_hi"] + 0.05).all()
        tokens = (1 - rows["alpha"] ** (rows["gamma"] + 1)) / (1 - rows["alpha"])
        np.testing.assert_allclose(rows["predicted"], tokens / (rows["gamma"] * rows["cost_ratio"] + 1), atol=1e-9)


class TestTimeline:
    table = leviathan_fig5.data()

    def test_traces_decode_the_same_tokens_without_a_gap(self) -> None:
        for gamma, rows in self.table.groupby("gamma"):
            assert rows["emitted"].sum() == 16
            ends = (rows["start"] + rows["seconds"]).to_numpy()
            np.testing.assert_allclose(rows["start"].to_numpy()[1:], ends[:-1], atol=1e-9)
            drafts = rows[rows["what"] == "draft"].groupby("round").size()
            assert (drafts == gamma).all()
            assert len(drafts) == (rows["round"].nunique() if gamma else 0)
            targets = rows[rows["what"] == "target"]
            assert targets["emitted"].between(1, int(str(gamma)) + 1).all()

    def test_without_a_draft_every_token_is_one_step(self) -> None:
        plain = self.table[self.table["gamma"] == 0]
        np.testing.assert_allclose(plain["start"], np.arange(16))


class TestChen:
    table = chen_draft_length.data(sequences=1000)

    def test_printed_times_are_met_and_their_speedups_but_for_one(self) -> None:
        """Table 1: 2.46 and 2.01 follow from the times; 1.92 for 7.52 ms against 14.1 ms would be 1.875."""
        rows = self.table[self.table["printed_ms"].notna()].set_index("task")
        np.testing.assert_allclose(rows["ms_per_token"], rows["printed_ms"], atol=1e-9)
        assert rows.loc["HumanEval, nucleus", "speedup"] == pytest.approx(2.46, abs=0.005)
        assert rows.loc["XSum, greedy", "speedup"] == pytest.approx(2.01, abs=0.005)
        assert rows.loc["XSum, nucleus", "speedup"] == pytest.approx(1.875, abs=0.005)

    def test_loop_time_is_linear_in_the_draft_length(self) -> None:
        np.testing.assert_allclose(self.table["loop_ms"], 14.1 + 1.8 * self.table["draft_length"], atol=1e-9)

    def test_law_of_rounds_is_that_of_a_chain_by_hand(self) -> None:
        """Two tokens at K = 1: one round if the draft is accepted, else two."""
        np.testing.assert_allclose(chen_draft_length.rounds_law(0.3, 1, 2), [0, 0.3, 0.7], atol=1e-12)
        law = chen_draft_length.rounds_law(0.71, 4, 128)
        assert law.sum() == pytest.approx(1, abs=1e-9)

    def test_simulation_agrees_with_the_law(self) -> None:
        """27 means and spreads, 4.5 standard errors: a false alarm in about 3,000 seeds."""
        plain = self.table[self.table["draft_length"] == 0]
        assert (plain[[name for name in plain if "sd_ms" in str(name)]] == 0).all(axis=None)
        rows = self.table[self.table["draft_length"] > 0]
        error = rows["sequence_sd_ms"] / np.sqrt(1000)
        assert ((rows["simulated_ms"] - rows["sequence_ms"]).abs() <= 4.5 * error).all()
        half = (rows["simulated_sd_ms_hi"] - rows["simulated_sd_ms"]) / 1.96
        assert ((rows["simulated_sd_ms"] - rows["sequence_sd_ms"]).abs() <= 4.5 * half).all()

    def test_spread_grows_with_the_draft_though_the_mean_hardly_moves(self) -> None:
        for _, rows in self.table.groupby("task"):
            assert (np.diff(rows["sequence_sd_ms"]) > 0).all()
        xsum = self.table[self.table["task"] == "XSum, nucleus"].set_index("draft_length")["ms_per_token"]
        assert xsum.idxmin() == 4
        assert xsum[3] == pytest.approx(xsum[4], rel=0.01)
