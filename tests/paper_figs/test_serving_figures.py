"""The data behind the figures of servers and machines: DSI, SmartSpec, MagicDec, mixtures of experts."""

from __future__ import annotations

import numpy as np
import pytest

from paper_figs import dsi_heatmaps, magicdec_context, moe_verify, serving_batch, serving_load
from sim.architectures.catalogue import find_architecture
from sim.hardware import find_device
from sim.roofline import RooflineLatency
from sim.topologies.theory import dsi_expected_seconds, si_expected_seconds


class TestDsi:
    table = dsi_heatmaps.data(points=9, repeats=200)

    def test_si_is_its_closed_form(self) -> None:
        """81 cells from the same random numbers, 5 standard errors: a false alarm in about 20,000 seeds at most."""
        exact = [si_expected_seconds(row.alpha, 50, row.draft_seconds, 1.0, 5) for row in self.table.itertuples()]
        assert ((self.table["si_seconds"] - exact).abs() <= 5 * self.table["si_error"] + 1e-9).all()

    def test_dsi_is_its_closed_form_where_it_has_one(self) -> None:
        rows = self.table[(self.table["lookahead"] * self.table["draft_seconds"] <= 1) & (self.table["alpha"] < 1)]
        assert len(rows) == 72  # at alpha = 1 the last, shorter block may wait for a server, which the form leaves out
        exact = [
            dsi_expected_seconds(row.alpha, 50, row.draft_seconds, 1.0, int(row.lookahead)) for row in rows.itertuples()
        ]
        assert ((rows["dsi_seconds"] - exact).abs() <= 5 * rows["dsi_error"] + 1e-9).all()

    def test_dsi_loses_nowhere_and_si_does(self) -> None:
        """The paper's claim: DSI is faster than SI and non-SI for any draft; SI is slower for poor ones."""
        assert (self.table["dsi_over_non_si"] >= 1 - 1e-9).all()
        slack = 5 * self.table["dsi_error"] / self.table["dsi_seconds"]
        assert (self.table["dsi_over_best"] >= 1 - slack - 1e-9).all()
        poor = (self.table["alpha"] <= 0.25) & (self.table["draft_seconds"] >= 0.25)
        assert (self.table.loc[poor, "si_over_non_si"] < 1).all()
        good = (self.table["alpha"] >= 0.75) & (self.table["draft_seconds"] <= 0.15)
        assert (self.table.loc[good, "si_over_non_si"] > 1.5).all()


class TestServingBatch:
    table = serving_batch.data()

    def test_a_goodput_policy_is_the_best_of_all_lengths(self) -> None:
        speedup = self.table[self.table["panel"] == "priced"].pivot_table(
            index="batch", columns="policy", values="speedup"
        )
        for name in ("fixed 1", "fixed 3", "fixed 5", "off above 32"):
            assert (speedup["goodput"] >= speedup[name] - 1e-9).all()
        assert (speedup["goodput"] >= 1).all()
        np.testing.assert_allclose(speedup.loc[48:, "off above 32"], 1, atol=1e-9)
        np.testing.assert_allclose(speedup.loc[:32, "off above 32"], speedup.loc[:32, "fixed 5"], atol=1e-9)

    def test_speedup_shrinks_with_the_batch_and_longer_drafts_lose_first(self) -> None:
        """The trend of arXiv:2601.11580 and arXiv:2406.14066."""
        priced = self.table[self.table["panel"] == "priced"].pivot_table(
            index="batch", columns="policy", values="speedup"
        )
        for name in ("fixed 1", "fixed 3", "fixed 5"):
            assert priced[name].iloc[-1] < priced[name].iloc[0]
        assert priced["fixed 5"].iloc[-1] < 1 < priced["fixed 1"].iloc[-1]
        measured = self.table[self.table["panel"] == "measured"].pivot_table(
            index="batch", columns="gamma", values="speedup"
        )
        assert (measured.loc[64] < measured.loc[8]).all()
        assert measured.loc[64].is_monotonic_decreasing

    def test_measured_speedups_are_the_published_ones(self) -> None:
        rows = self.table[(self.table["panel"] == "measured") & (self.table["gamma"] == 1)].set_index("batch")
        assert rows.loc[64, "speedup"] == pytest.approx(1.111, abs=5e-4)
        assert (rows["speedup_lo"] <= rows["speedup"]).all()
        assert (rows["speedup"] <= rows["speedup_hi"]).all()


class TestServingLoad:
    table = serving_load.data(rates=(1, 16), policies=("fixed 2", "off above 32"), seconds=30, replications=3)

    def test_at_low_load_time_per_token_shrinks_as_for_one_request(self) -> None:
        """With next to no queue requests decode in batches of one or two: eq. 1 over the seconds of a round, within
        5%; every step has 0.5 ms of the host in it."""
        device = find_device(serving_batch.DEVICE)
        draft, target = (
            RooflineLatency(find_architecture(name), device) for name in (serving_batch.DRAFT, serving_batch.TARGET)
        )
        step = target.forward_seconds(1, 1, 1149) + 0.0005
        low = self.table[self.table["rate"] == 1].set_index("policy")
        assert (low["batch"] < 2).all()
        for policy, gamma in (("fixed 2", 2), ("off above 32", 5)):
            round_seconds = (
                gamma * draft.forward_seconds(1, 1, 1149) + target.forward_seconds(1, gamma + 1, 1149) + 0.0005
            )
            alone = (1 - 0.7 ** (gamma + 1)) / 0.3 * step / round_seconds
            assert low.loc[policy, "tpot"] == pytest.approx(alone, rel=0.05)

    def test_long_drafts_that_stop_above_32_lose_under_load(self) -> None:
        loaded = self.table[self.table["rate"] == 16].set_index("policy")
        assert (loaded["batch"] > 20).all()
        assert loaded.loc["off above 32", "latency"] < 1 < loaded.loc["fixed 2", "latency"] - 0.2

    def test_a_longer_run_says_the_same(self) -> None:
        """At a rate that the server keeps up with; other requests, so within both intervals."""
        longer = serving_load.data(rates=(16,), policies=("fixed 2",), seconds=60, replications=3, seed=7).iloc[0]
        shorter = self.table[(self.table["rate"] == 16) & (self.table["policy"] == "fixed 2")].iloc[0]
        for name in serving_load.MEASURES:
            halves = [(row[f"{name}_hi"] - row[f"{name}_lo"]) / 2 for row in (longer, shorter)]
            assert abs(longer[name] - shorter[name]) <= np.hypot(*halves) < 0.5

    def test_intervals_hold_the_ratios_and_the_seed_repeats_them(self) -> None:
        for name in serving_load.MEASURES:
            assert (self.table[f"{name}_lo"] <= self.table[name]).all()
            assert (self.table[name] <= self.table[f"{name}_hi"]).all()
        again = serving_load.data(rates=(1,), policies=("fixed 2",), seconds=30, replications=3)
        first = self.table[(self.table["rate"] == 1) & (self.table["policy"] == "fixed 2")]
        np.testing.assert_array_equal(first["latency"], again["latency"])


class TestMagicDec:
    table = magicdec_context.data()

    def test_measured_rows_are_table_3c(self) -> None:
        rows = self.table[self.table["panel"] == "measured"]
        assert list(rows["speedup"]) == [0.90, 0.76, 0.95, 0.93, 0.99, 1.10, 1.28, 1.43, 1.64]
        assert list(rows["context"]) == [4000, 4000, 8000, 8000, 16000, 16000, 32000, 64000, 100000]

    def test_prices_predict_the_rows_that_gave_nothing_to_them(self) -> None:
        rows = self.table[self.table["panel"] == "measured"]
        assert rows["calibration"].sum() == 1
        assert magicdec_context.held_out_error(self.table) < 0.2
        # where a batch is the same, the order by context is the measured one
        for _, group in rows.groupby("batch"):
            assert list(group["predicted"].rank()) == list(group["speedup"].rank())

    def test_long_contexts_turn_large_batches_from_loss_into_gain(self) -> None:
        speedup = self.table[self.table["panel"] == "priced"].pivot_table(
            index="batch", columns="context", values="speedup"
        )
        assert speedup.loc[128, 1000] < speedup.loc[1, 1000] < 1
        assert speedup.loc[128, 32000] > speedup.loc[32, 32000] > speedup.loc[1, 32000]
        assert speedup.loc[128].dropna().is_monotonic_increasing
        # 256 requests of 64,000 tokens are 2 TB of cache, more than eight A100 hold
        assert np.isnan(speedup.loc[256].get(64000, np.nan))
        assert not magicdec_context.fits(magicdec_context.latency(), 256, 64000)


class TestExperts:
    table = moe_verify.data()

    def test_experts_that_a_step_reads_are_those_of_one_token_at_batch_one(self) -> None:
        rows = self.table[(self.table["batch"] == 1) & (self.table["experts"] > 0)]
        per_token = rows["model"].map({"qwen3-30b-a3b": 8, "mixtral-8x7b": 2})
        np.testing.assert_allclose(rows["touched"] * rows["experts"], per_token, atol=1e-9)

    def test_every_batch_fits_into_memory(self) -> None:
        """At 16 bits, with a tenth of the devices' memory left."""
        room = 0.9 * moe_verify.DEVICES * find_device(moe_verify.DEVICE).memory_bytes
        for name in moe_verify.MODELS:
            shape = find_architecture(name)
            batch = self.table.loc[self.table["model"] == name, "batch"].max()
            assert shape.weight_bytes(2.0) + batch * moe_verify.CONTEXT * shape.kv_bytes_per_token(2.0) <= room, name

    def test_dense_weights_are_read_once_and_experts_as_often_as_they_are_chosen(self) -> None:
        """The bounds of the ratio: gamma + 1 tokens cost at least as much as one, and no more than so many steps."""
        assert self.table["verify_ratio"].between(1, moe_verify.GAMMA + 1).all()
        batch = self.table[self.table["panel"] == "batch"].pivot_table(
            index="batch", columns="model", values="verify_ratio"
        )
        assert batch["llama-3.1-8b"].is_monotonic_increasing
        for name in (
            "mixtral-8x7b",
            "qwen3-30b-a3b",
        ):  # dearer than dense until a step reads every expert, then arithmetic
            assert batch.loc[1, name] > 1.3 * batch.loc[1, "llama-3.1-8b"]
            lowest = batch[name].idxmin()
            assert batch.loc[lowest:, name].is_monotonic_increasing
            assert self.table.set_index(["panel", "model", "batch"]).loc[("batch", name, lowest), "touched"] > 0.85

    def test_speedup_is_equation_1_over_the_costs(self) -> None:
        tokens = (1 - 0.8**5) / 0.2
        np.testing.assert_allclose(self.table["speedup"], tokens / (0.2 + self.table["verify_ratio"]), atol=1e-9)

    def test_sparse_models_gain_most_at_medium_batches_and_a_dense_one_at_small(self) -> None:
        """The finding of arXiv:2505.19645."""
        best = {
            str(name): int(rows.set_index("batch")["speedup"].idxmax())
            for name, rows in self.table[self.table["panel"] == "batch"].groupby("model")
        }
        assert best["llama-3.1-8b"] == 1
        assert 8 <= best["mixtral-8x7b"] <= 64
        assert 32 <= best["qwen3-30b-a3b"] <= 128

    def test_more_experts_cost_more_at_small_batches_and_less_at_large(self) -> None:
        rows = self.table[self.table["panel"] == "experts"]
        ratio = rows.pivot_table(index="experts", columns="batch", values="verify_ratio")
        assert ratio[1].is_monotonic_increasing
        assert ratio[256].is_monotonic_decreasing
