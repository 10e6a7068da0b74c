"""The data behind the figures of trees and of block verification, and how the embedded pair's counts are made."""

from __future__ import annotations

import heapq
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.losslessness import RULES
from paper_figs import block_verification, measure_pair, sequoia_size, specinfer_width
from paper_figs.pair_counts import BLOCK_CSV, RANK_CSV, TREE_CSV, rank_resamples, rank_table, tokens_per_round
from sim.records import make_rounds, write_rounds


class TestSpecInfer:
    table = specinfer_width.data()

    def test_printed_table_gives_the_gains_that_its_text_states(self) -> None:
        """Steps shrink by 1.2 to 1.5 times for greedy and 1.3 to 1.4 times for stochastic decoding (Sec. 6.4)."""
        wide = specinfer_width.printed().pivot_table(index=["decoding", "dataset"], columns="width", values="tokens")
        assert wide.shape == (10, 5)
        gain = (wide[5] / wide[1]).round(1)
        assert (gain["greedy"].min(), gain["greedy"].max()) == (1.2, 1.5)
        assert gain["stochastic"].between(1.3, 1.4).all()
        assert wide.loc[("greedy", "CIP"), 5] == 3.91
        assert wide.loc[("stochastic", "Alpaca"), 1] == 1.79

    def test_measured_widths_are_what_acceptance_by_rank_predicts(self) -> None:
        """15 points within 4 standard errors of both; predictions of one token less or more would not be."""
        pair = self.table[self.table["panel"] == "pair"]
        assert len(pair) == len(specinfer_width.LABELS) * len(measure_pair.WIDTHS)
        errors = [(pair[f"{name}_hi"] - pair[f"{name}_lo"]) / (2 * 1.96) for name in ("tokens", "predicted")]
        assert ((pair["tokens"] - pair["predicted"]).abs() <= 4 * np.hypot(*errors)).all()
        assert (np.hypot(*errors) < 0.12).all()
        assert pair["predicted"].between(pair["predicted_lo"], pair["predicted_hi"]).all()

    def test_a_wider_tree_yields_more_by_the_counts(self) -> None:
        for rule, rows in self.table[self.table["panel"] == "pair"].groupby("decoding"):
            assert (np.diff(rows.sort_values("width")["predicted"]) > 0).all(), rule
            assert rows["tokens"].iloc[-1] > rows["tokens"].iloc[0], rule


class TestSequoia:
    counts = pd.read_csv(RANK_CSV)

    def best_by_likelihood(self, table: np.ndarray, size: int) -> float:
        """Take the likeliest node left, `size` times: the best tree where acceptance never rises with rank."""
        left = [(-table[0, 0], 0, 0)]
        total = 1.0
        for _ in range(size):
            chance, depth, rank = heapq.heappop(left)
            total -= chance
            parent = chance / table[depth, rank]
            if rank + 1 < table.shape[1]:
                heapq.heappush(left, (parent * table[depth, rank + 1], depth, rank + 1))
            if depth + 1 < len(table):
                heapq.heappush(left, (chance * table[depth + 1, 0], depth + 1, 0))
        return total

    def test_best_tree_is_the_likeliest_nodes(self) -> None:
        acceptance = 0.5 * np.arange(1, 6) ** -1.5
        table = np.tile(acceptance, (12, 1))
        found = sequoia_size.sizes(table, 40)
        best = found[found["kind"] == "best"].set_index("size")["tokens"]
        for size in (1, 2, 5, 13, 40):
            assert best[size] == pytest.approx(self.best_by_likelihood(table, size), abs=1e-9)

    def test_no_other_tree_of_its_size_yields_more(self) -> None:
        found = sequoia_size.data(largest=64, max_depth=12)
        for _, rows in found.groupby("rule"):
            best = rows[rows["kind"] == "best"].set_index("size")["tokens"]
            assert (np.diff(best) >= -1e-12).all()
            others = rows[rows["kind"] != "best"]
            assert (others["tokens"].to_numpy() <= best[others["size"]].to_numpy() + 1e-9).all()

    def test_chains_and_sequences_level_off_and_the_best_tree_does_not(self) -> None:
        """Sequoia's claim: bounded whatever the budget, against unbounded growth."""
        acceptance = 0.45 * np.arange(1, 33) ** -1.3
        table = np.tile(acceptance[:8], (24, 1))
        found = sequoia_size.sizes(table, 256)
        last = found.groupby("kind").tail(1).set_index("kind")["tokens"]
        a = float(acceptance[0])
        assert last["chain"] == pytest.approx((1 - a**25) / (1 - a), abs=1e-9)
        sequences = 1 + a * (1 - a**24) / (1 - a) + acceptance[1:5].sum() * (1 - a**24) / (1 - a)
        assert last["sequences"] == pytest.approx(sequences, abs=1e-9)
        best = found[found["kind"] == "best"].set_index("size")["tokens"]
        assert best[256] - best[128] > 0.5 * (best[128] - best[64]) > 0

    def test_counts_become_the_acceptance_that_made_them(self) -> None:
        """First rank 400 of 1000, second 120 of the 600 left: 0.4 and 0.12, up to a prior of one position."""
        counts = pd.DataFrame(
            {"depth": [1, 1], "rank": [1, 2], "tested": [1000, 600], "accepted": [400, 120]},
        )
        found = rank_table(counts)
        np.testing.assert_allclose(found.acceptance, [[0.4, 0.12]], atol=1e-3)
        assert found.tested.tolist() == [[1000, 600]]

    def test_resampled_counts_spread_as_a_share_does(self) -> None:
        """Standard error of 0.4 of 1000 by hand: 0.0155; 1,000 resamples know it to 2.2%, and 10% are allowed."""
        counts = pd.DataFrame({"depth": [1, 1], "rank": [1, 2], "tested": [1000, 600], "accepted": [400, 120]})
        found = rank_resamples(counts, 1000)
        assert found.shape == (1000, 1, 2)
        for rank, share in enumerate((0.4, 0.12)):
            assert found[:, 0, rank].std() == pytest.approx(np.sqrt(share * (1 - share) / 1000), rel=0.1)
            assert found[:, 0, rank].mean() == pytest.approx(share, abs=0.003)

    def test_marked_sizes_have_intervals_that_hold_them(self) -> None:
        found = sequoia_size.data(largest=64, max_depth=12, resamples=100)
        bounded = found[found["tokens_lo"].notna()]
        assert set(bounded[bounded["kind"] == "best"]["size"]) == {1, 2, 4, 8, 16, 32, 64}
        assert bounded["tokens"].between(bounded["tokens_lo"], bounded["tokens_hi"]).all()
        # a chain of one: the share of first ranks accepted, by hand
        first = self.counts[(self.counts["rule"] == "greedy") & (self.counts["depth"] == 1)].iloc[0]
        share = first["accepted"] / first["tested"]
        row = bounded[(bounded["rule"] == "greedy") & (bounded["kind"] == "chain") & (bounded["size"] == 1)].iloc[0]
        half = 1.96 * np.sqrt(share * (1 - share) / first["tested"])
        assert (row["tokens_hi"] - row["tokens_lo"]) / 2 == pytest.approx(half, rel=0.35)

    def test_committed_counts_hold_together(self) -> None:
        """Rank r + 1 is tested where rank r was tested and failed."""
        for _, rows in self.counts.groupby(["rule", "depth"]):
            rows = rows.sort_values("rank")
            left = (rows["tested"] - rows["accepted"]).to_numpy()[:-1]
            np.testing.assert_array_equal(rows["tested"].to_numpy()[1:], left)


class TestBlockVerification:
    table = block_verification.data()

    def test_the_paper_s_example_is_exact(self) -> None:
        """10/9 token by token, 11/9 by block, 12/9 at best: its motivating example."""
        rows = self.table[(self.table["panel"] == "example") & (self.table["gamma"] == 2)].set_index("name")["value"]
        for name, value in (("token", Fraction(10, 9)), ("block", Fraction(11, 9)), ("ideal", Fraction(12, 9))):
            assert rows[name] == pytest.approx(float(value), abs=1e-12)

    def test_block_is_between_token_and_what_any_coupling_reaches(self) -> None:
        rng = np.random.default_rng(0)
        for _ in range(5):
            p, q = rng.dirichlet(np.ones(3), 2)
            for gamma in (1, 2, 4):
                token, block = (
                    block_verification.accepted_tokens(RULES[name], p, q, gamma)
                    for name in ("rejection_sampling", "block_verification")
                )
                alpha = np.minimum(p, q).sum()
                assert token == pytest.approx((alpha ** np.arange(1, gamma + 1)).sum(), abs=1e-9)
                assert token <= block + 1e-12 <= block_verification.ideal_tokens(p, q, gamma) + 2e-12

    def test_printed_gains_are_those_the_paper_sums_up(self) -> None:
        """Eight datasets, 7% to 10% more tokens per round."""
        printed = self.table[self.table["panel"] == "printed"]
        assert len(printed) == 8
        assert (100 * (printed["value"] - 1)).round().between(7, 10).all()

    def test_measured_gain_is_never_surely_a_loss(self) -> None:
        pair = self.table[self.table["panel"] == "pair"]
        assert set(zip(pair["name"], pair["gamma"], strict=True)) == {("int8", 8), ("int8", 4), ("distilled", 4)}
        assert (pair["value_hi"] >= 1).all()
        assert ((pair["value_lo"] <= pair["value"]) & (pair["value"] <= pair["value_hi"])).all()


class TestMeasuring:
    def test_runs_have_folders_of_their_own_and_full_words(self) -> None:
        names = [run.name for run in measure_pair.RUNS]
        assert len(set(names)) == len(names)
        run = measure_pair.RUNS[0]
        assert run.words[:6] == ["--draft", "distilled", "--tree", "8,4", "--temperature", "1"]
        greedy = next(run for run in measure_pair.RUNS if run.rule is None)
        assert "--rule" not in greedy.words

    def test_committed_tables_cover_every_run(self) -> None:
        block, tree, ranks = map(pd.read_csv, (BLOCK_CSV, TREE_CSV, RANK_CSV))
        found = {
            "block": {tuple(row) for row in block[["draft", "rule", "gamma", "seed"]].drop_duplicates().to_numpy()},
            "tree": {tuple(row) for row in tree[["rule", "width"]].drop_duplicates().to_numpy()},
        }
        for run in measure_pair.RUNS:
            rule = run.rule or "greedy"
            match run.kind:
                case "block":
                    assert (run.draft, rule, run.gamma, run.seed) in found["block"]
                case "tree":
                    assert (rule, int(run.tree.split(",")[0])) in found["tree"]
                case _:
                    assert rule in set(ranks["rule"])

    def test_only_full_rounds_are_counted_and_folders_are_read_again(self, tmp_path: Path) -> None:
        """A shortened last round, a plain step and a cut round: the first two are left out, the last is not."""
        run = replace(measure_pair.RUNS[-1], gamma=3)
        chain = make_rounds(
            request_id=["a", "a", "a", "b", "b"], round_index=[0, 1, 2, 0, 0], batch=1, context=10,
            gamma=[3, 3, 3, 3, 0], drafted=[3, 3, 1, 3, 0], accepted=[2, 3, 1, 0, 0], emitted=[3, 2, 2, 1, 1],
            cut=[False, True, False, False, False], start_seconds=0.0, draft_seconds=0.0, verify_seconds=0.0,
            other_seconds=0.0,
        )  # fmt: skip
        ranks = replace(measure_pair.RUNS[0], tree="2,1")
        tree = make_rounds(
            request_id="a", round_index=[0, 1, 2], batch=1, context=10, gamma=4, drafted=4, accepted=[2, 1, 0],
            emitted=[3, 2, 1], cut=False, start_seconds=0.0, draft_seconds=0.0, verify_seconds=0.0, other_seconds=0.0,
            depth=2, accepted_ranks=[[1, 0], [0, -1], [-1]],
        )  # fmt: skip
        for one, rounds in ((run, chain), (ranks, tree)):
            (tmp_path / one.name).mkdir()
            write_rounds(rounds, tmp_path / one.name / "rounds.parquet")
        made = measure_pair.tables([run, ranks], tmp_path)
        assert made[BLOCK_CSV][["prompt", "rounds", "accepted"]].to_numpy().tolist() == [["a", 2, 5], ["b", 1, 0]]
        counts = made[RANK_CSV][["depth", "rank", "tested", "accepted"]].to_numpy().tolist()
        assert counts == [[1, 1, 3, 1], [1, 2, 2, 1], [2, 1, 2, 1]]

    def test_tokens_per_round_pair_the_prompts_of_two_rules(self) -> None:
        base = pd.DataFrame({"prompt": ["a", "b", "c"], "rounds": [10, 10, 10], "accepted": [5, 10, 30]})
        value, low, high = tokens_per_round(base)
        assert value == pytest.approx(75 / 30)
        assert low < value < high
        more = base.assign(accepted=lambda rows: 1.1 * (rows["accepted"] + 10) - 10)
        assert tokens_per_round(more, base) == pytest.approx((1.1, 1.1, 1.1))
