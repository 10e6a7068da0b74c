"""Plans: the draft length, what it brings and where it stops paying."""

from __future__ import annotations

import itertools
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis.engine_logs import read_log
from analysis.fit import ProposalFit
from analysis.fit.costs import BaselineCosts, DraftCosts, PerRound
from analysis.fit.latency import fit_latency
from analysis.plan import Crossover, choose, choose_tree, crossover, speedups
from analysis.plan.acceptance import (
    DraftLaw,
    exactly,
    from_conditional,
    from_counts,
    from_interval,
    from_pooled,
    of_outputs,
)
from analysis.plan.batches import batch_factors
from analysis.plan.costs import CostRatio, MeasuredCosts, ModelCosts, widest
from analysis.plan.load import Load, under_load
from analysis.plan.memory import room
from analysis.plan.sources import acceptance_from, fit_run, of_rounds
from analysis.pooling import PooledRates
from analysis.predict import make_design, predict
from sim.acceptance import IidAcceptance, PartialProposals, PerPositionAcceptance
from sim.engine import simulate
from sim.forwards import make_forwards
from sim.hardware import find_device
from sim.latency import AffineLatency, ConstantLatency, TableLatency
from sim.records import make_rounds
from sim.rounds import plan_rounds
from sim.scenario import Scenario
from sim.theory import best_gamma, expected_tokens
from specdec_lab import main
from tests.analysis.synthetic import LOOKUP, MODEL_DRAFT

GAMMAS = 8


def affine(rng: np.random.Generator, scale: float) -> AffineLatency:
    return AffineLatency(*(scale * rng.uniform(size=3) * [1.0, 0.1, 1e-4]))


class TestAgainstBruteForce:
    @pytest.mark.parametrize("seed", range(30))
    def test_the_planned_gamma_is_the_best_of_those_simulated(self, seed: int) -> None:
        """Every speedup within 4 standard errors of the simulated one: a false alarm in 16,000 per draft length.

        A verification priced one token short, or a bonus token forgotten, is off by more than that.
        """
        rng = np.random.default_rng(seed)
        target, draft = affine(rng, 1.0), affine(rng, float(rng.uniform(0.02, 0.5)))
        conditional = tuple(rng.uniform(0.2, 0.98, size=GAMMAS).tolist())
        overhead, prompt = float(rng.uniform(0, 0.1)), int(rng.integers(0, 500))
        costs = ModelCosts(target, draft, overhead)
        simulated = []
        for gamma in range(1, GAMMAS + 1):
            # one round from the prompt on, many times: the context stays
            scenario = Scenario(
                target, draft, PerPositionAcceptance(conditional), gamma, requests=20_000, rounds=1,
                prompt_tokens=prompt, overhead_seconds=overhead, request_devices="own",
            )  # fmt: skip
            rounds = plan_rounds(scenario, rng)
            seconds = rounds.busy_seconds.mean()
            step = float(target.forward_seconds(1, 1, prompt)) + overhead
            ratio = rounds.emitted * step / seconds
            simulated.append((ratio.mean(), ratio.std() / np.sqrt(len(ratio))))
        choice = choose(from_conditional(conditional, GAMMAS), costs, 1, prompt)
        for planned, (mean, error) in zip(choice.by_gamma, simulated, strict=True):
            assert abs(planned.speedup - mean) < 4 * error + 1e-12
        best, error = max(simulated)
        if choice.gamma == 0:
            assert best < 1 + 4 * error
        else:
            assert simulated[choice.gamma - 1][0] > best - 4 * error

    def test_at_batch_1_and_constant_costs_it_is_leviathan_s_best_gamma(self) -> None:
        for alpha, ratio in [(0.8, 0.05), (0.6, 0.2), (0.9, 0.01), (0.3, 0.5)]:
            choice = choose(
                from_conditional([alpha], 16), ModelCosts(ConstantLatency(1.0), ConstantLatency(ratio)), 1, 0
            )
            assert choice.gamma == best_gamma(alpha, ratio, max_gamma=16)

    def test_a_batch_s_speedup_is_that_of_a_simulated_server(self) -> None:
        """A server that always holds 16 requests; ramp and tail are a few percent of 2,000 tokens each."""
        from sim.controllers import FixedGamma
        from sim.serving import ServingScenario, Speculation, serve
        from sim.workload import ClosedArrivals, ConstantLength, make_workload

        target, draft = AffineLatency(0.02, 4e-4), AffineLatency(0.001, 2e-5)
        workload = make_workload(ClosedArrivals(), ConstantLength(1), ConstantLength(2000), 16, 0)
        seconds = {}
        for gamma in (0, 4):
            speculation = Speculation(FixedGamma(gamma), IidAcceptance(0.7), draft) if gamma else None
            log = serve(ServingScenario(target, workload, speculation), 0)
            seconds[gamma] = float(log.request_table()["tpot_seconds"].mean())
        planned, _ = speedups(from_conditional([0.7], 4), ModelCosts(target, draft), [16], 1000)
        assert seconds[0] / seconds[4] == pytest.approx(planned[0, 0, 4], rel=0.02)


class TestCrossover:
    @pytest.mark.parametrize("alpha", [0.4, 0.6, 0.8])
    @pytest.mark.parametrize("fixed", [1.03, 1.71])
    @pytest.mark.parametrize("per_token", [0.02, 0.005])
    def test_it_is_where_the_closed_form_says(self, alpha: float, fixed: float, per_token: float) -> None:
        """Costs affine in tokens: gamma 1 stops paying at b = (alpha F - f) / (t (1 - alpha) + d), others before.

        A drafted token gains alpha^i of a step and costs the same at every place, so the first is worth the most.
        """
        draft_fixed, draft_token = 0.0973, 0.001
        costs = ModelCosts(AffineLatency(fixed, per_token), AffineLatency(draft_fixed, draft_token))
        exact = (alpha * fixed - draft_fixed) / (per_token * (1 - alpha) + draft_token)
        found = crossover(from_conditional([alpha], 6), costs, 0.0, most=1000)
        assert found.batch == int(np.ceil(exact))
        assert found.batch_ci == (found.batch, found.batch)

    def test_its_interval_is_that_of_the_acceptance_interval(self) -> None:
        target, draft = AffineLatency(1.0, 0.01), AffineLatency(0.1, 0.001)
        exact = {a: int(np.ceil((a - 0.1) / (0.01 * (1 - a) + 0.001))) for a in (0.5, 0.6, 0.7)}
        found = crossover(from_interval(0.6, (0.5, 0.7), 4), ModelCosts(target, draft), 0.0, most=1000)
        assert found.batch == exact[0.6]
        assert found.batch_ci[0] == pytest.approx(exact[0.5], abs=1)
        assert found.batch_ci[1] == pytest.approx(exact[0.7], abs=1)

    def test_what_always_pays_has_none_and_what_never_pays_has_1(self) -> None:
        cheap, dear = (ModelCosts(ConstantLatency(1.0), ConstantLatency(c)) for c in (0.01, 1.0))
        law = from_conditional([0.5], 4)
        assert crossover(law, cheap, 0.0, most=100).batch is None
        assert crossover(law, dear, 0.0, most=100).batch == 1

    def test_the_schedule_is_the_choice_of_every_batch(self) -> None:
        law = from_conditional([0.8], 6)
        costs = ModelCosts(AffineLatency(1.0, 0.01), AffineLatency(0.05, 0.001))
        found = crossover(law, costs, 100.0, most=150)
        lengths = [gamma for first, last, gamma in found.schedule for _ in range(first, last + 1)]
        assert lengths == [choose(law, costs, batch, 100.0).gamma for batch in range(1, 151)]

    def test_a_table_s_largest_batch_ends_the_search(self) -> None:
        rows = [
            {"batch": b, "new_tokens": n, "context": 0, "seconds": 1 + 0.001 * b * n} for b in (1, 32) for n in (1, 5)
        ]
        costs = ModelCosts(TableLatency(rows), ConstantLatency(0.01))
        assert crossover(from_conditional([0.8], 4), costs, 0.0).searched == 32
        with pytest.raises(ValueError, match="batch 64 is outside the measured 1 to 32"):
            choose(from_conditional([0.8], 4), costs, 64, 0.0)


class TestIntervals:
    def test_they_cover_the_true_speedup(self) -> None:
        """400 calibrations of 60 rounds each at other acceptances: at least 95% but for 4 standard errors, 90.6%.

        A false alarm in 30,000; with rounds counted twice 80 to 84% are covered.
        """
        rng = np.random.default_rng(0)
        costs = ModelCosts(ConstantLatency(1.0), ConstantLatency(0.1))
        covered = 0
        for _ in range(400):
            truth = rng.uniform(0.3, 0.95, size=5)
            accepted = np.cumprod(rng.random((60, 5)) < truth, axis=1).sum(axis=1)
            tested = [(accepted >= i).sum() for i in range(5)]
            passed = [(accepted > i).sum() for i in range(5)]
            choice = choose(from_counts(tested, passed, 5, rng, "rounds"), costs, 1, 0.0)
            true = choose(from_conditional(truth.tolist(), 5), costs, 1, 0.0)
            speedup = true.by_gamma[choice.gamma - 1].speedup if choice.gamma else 1.0
            low, high = choice.speedup_ci
            covered += low <= speedup <= high
        assert covered / 400 > 0.95 - 4 * np.sqrt(0.95 * 0.05 / 400)

    def test_an_alpha_s_bounds_become_the_speedup_s(self) -> None:
        costs = ModelCosts(ConstantLatency(1.0), ConstantLatency(0.1))
        choice = choose(from_interval(0.7, (0.6, 0.75), 8), costs, 1, 0.0)
        for bound, alpha in zip(choice.speedup_ci, (0.6, 0.75), strict=True):
            exact = float(expected_tokens(alpha, choice.gamma)) / (1 + 0.1 * choice.gamma)
            assert bound == pytest.approx(exact, rel=0.01)

    def test_one_that_is_all_accepted_still_holds_its_estimate(self) -> None:
        law = from_counts([20], [20], 2, np.random.default_rng(0), "rounds")
        choice = choose(law, ModelCosts(ConstantLatency(1.0), ConstantLatency(0.1)), 1, 0.0)
        assert choice.speedup_ci[0] < choice.speedup <= choice.speedup_ci[1]

    @pytest.mark.parametrize("interval", [(0.75, 0.8), (0.0, 0.8), (0.6, 1.0)])
    def test_bounds_that_do_not_hold_alpha_are_refused(self, interval: tuple[float, float]) -> None:
        with pytest.raises(ValueError, match="0 < lo <= alpha <= hi < 1"):
            from_interval(0.7, interval, 4)


class TestLaws:
    def test_few_proposals_yield_what_the_simulator_s_model_does(self) -> None:
        zero, draws = np.zeros(3), 3
        rates = PooledRates(("all",), np.full((draws, 1), 1.2), np.full(draws, 1.2), zero, zero, np.zeros((draws, 1)))
        first = PooledRates(("all",), np.full((draws, 1), -0.4), np.full(draws, -0.4), zero, zero, np.zeros((draws, 1)))
        law = from_pooled(rates, ProposalFit(first, np.full((draws, 1), 0.75)), ("all",), 5)
        alpha, some = 1 / (1 + np.exp(-1.2)), 1 / (1 + np.exp(0.4))
        at_least = [1.0, *(some * 0.75**k for k in range(5))]
        available = tuple([a - b for a, b in itertools.pairwise(at_least)] + [at_least[-1]])
        model = PartialProposals(IidAcceptance(alpha), available)
        for gamma in range(6):
            assert law.tokens[0, gamma] == pytest.approx(model.expected_block_efficiency(gamma))
            assert law.drafted is not None
            lengths = np.zeros(6)
            np.add.at(lengths, model.lengths(gamma), np.array(available))
            np.testing.assert_allclose(law.drafted[1, gamma], lengths, atol=1e-12)

    def test_prompts_count_by_the_rounds_that_they_take(self) -> None:
        """Prompts of alpha 0.2 and 0.9, equally long: the mean over prompts is that of rounds per token."""
        logits = np.log([0.2 / 0.8, 0.9 / 0.1])
        zero = np.zeros(1)
        rates = PooledRates(("a", "b"), logits[None], zero, zero, zero, np.zeros((1, 1)))
        law = from_pooled(rates, None, ("a", "b"), 4)
        inverse = [1 / float(expected_tokens(alpha, 4)) for alpha in (0.2, 0.9)]
        assert law.tokens[0, 4] == pytest.approx(1 / np.mean(inverse))

    @pytest.mark.parametrize("last_round", ["cut", "shortened"])
    def test_outputs_that_end_take_the_rounds_that_a_simulation_takes(self, last_round: Any) -> None:
        """20,000 outputs of 25 tokens: rounds per output within 4 standard errors, and so the draft lengths."""
        acceptance = PerPositionAcceptance((0.9, 0.8, 0.7))
        law = of_outputs(from_conditional(acceptance.conditional, 6), 25, last_round == "shortened")
        rng = np.random.default_rng(0)
        for gamma in (1, 6):
            scenario = Scenario(
                ConstantLatency(1.0), None, acceptance, gamma, requests=20_000, max_new_tokens=25,
                last_round=last_round, request_devices="own",
            )  # fmt: skip
            rounds = plan_rounds(scenario, rng)
            error = rounds.counts.std() / np.sqrt(20_000)
            assert abs(25 / law.tokens[0, gamma] - rounds.counts.mean()) < 4 * error
            if last_round == "shortened":
                assert law.drafted is not None
                share = np.bincount(rounds.drafted, minlength=7) / len(rounds.drafted)
                np.testing.assert_allclose(law.drafted[0, gamma], share, atol=4 * 0.5 / np.sqrt(20_000))
            else:
                assert law.drafted is None

    def test_the_longest_draft_of_a_batch_is_that_of_sampled_ones(self) -> None:
        """20,000 batches: each chance within 4 standard errors."""
        chance = np.array([0.5, 0.1, 0.2, 0.2])
        at_least = np.cumsum(chance[::-1])[::-1][1:]
        law = DraftLaw(np.ones((1, 4)), exactly(at_least[None, None]))
        rng = np.random.default_rng(0)
        for place, batch in enumerate((1, 4)):
            longest = rng.choice(4, p=chance, size=(20_000, batch)).max(axis=1)
            share = np.bincount(longest, minlength=4) / 20_000
            found = widest(law, np.array([1, 4]))[0, place, 3]
            assert (np.abs(found - share) < 4 * np.sqrt(found * (1 - found) / 20_000) + 1e-12).all()

    def test_a_round_table_gives_the_tokens_that_it_was_simulated_with(self) -> None:
        acceptance = PartialProposals(PerPositionAcceptance((0.5, 0.8)), (0.4, 0.2, 0.1, 0.3))
        table = simulate(Scenario(ConstantLatency(1.0), None, acceptance, 4, rounds=40_000), 0)
        law = of_rounds(table, 4, None, np.random.default_rng(0))
        for gamma in range(5):
            assert law.tokens[0, gamma] == pytest.approx(acceptance.expected_block_efficiency(gamma), rel=0.02)
        assert law.drafted is not None
        assert law.drafted[0, 4, 0] == pytest.approx(0.4, abs=0.02)


class TestSources:
    def test_an_import_says_what_its_log_says(self, tmp_path: Path) -> None:
        log = tmp_path / "llama.log"
        log.write_text("n_draft   = 53\nn_predict = 266\nn_drafted = 245\nn_accept  = 231\naccept    = 94.286%\n")
        (tmp_path / "printed.json").write_text(json.dumps(read_log(log).summary()))
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder" / "import.json").write_text(json.dumps(read_log(log).summary(), indent=2))
        laws = [acceptance_from(str(tmp_path / name), 8) for name in ("llama.log", "printed.json", "folder")]
        for law in laws:
            np.testing.assert_array_equal(law.tokens, laws[0].tokens)

    def test_a_mean_length_is_that_of_the_drafts_as_they_were(self, tmp_path: Path) -> None:
        """Drafts of 7 tokens on average, of 53 asked for; alpha solved at 53 would be 0.87."""
        log = tmp_path / "llama.log"
        log.write_text("n_draft   = 53\nn_predict = 266\nn_drafted = 245\nn_accept  = 231\naccept    = 94.286%\n")
        law = acceptance_from(str(log), 8)
        assert law.tokens[0, 7] == pytest.approx(266 / 35)
        assert any("7.00 of 53 tokens" in remark for remark in law.remarks)

    def test_rates_that_engines_print_as_marginal_are_remarked_on(self) -> None:
        (remark,) = acceptance_from("0.8,0.6,0.5", 3).remarks
        assert "specdec convert --marginal 0.8,0.6,0.5" in remark
        assert not acceptance_from("0.7,0.8", 3).remarks
        assert not acceptance_from("0.8", 3).remarks

    def test_numbers_profiles_and_logs_of_one_draft_agree(self, tmp_path: Path) -> None:
        rates = [0.8, 0.7, 0.5]
        marginal = np.cumprod(rates).tolist()
        profile = {
            "schema_version": "1.0", "measured": True, "num_speculative_tokens": 3, "conditional_accept_rates": rates,
            "marginal_accept_rates": marginal, "mean_accept_length": 1 + sum(marginal),
        }  # fmt: skip
        (tmp_path / "profile.json").write_text(json.dumps(profile))
        shares = ", ".join(f"{share:.3f}" for share in marginal)
        accepted = round(1000 * sum(marginal))
        (tmp_path / "vllm.log").write_text(
            "INFO 09-16 05:26:57 [metrics.py:120] SpecDecoding metrics: Mean acceptance length: "
            f"{1 + accepted / 1000:.2f}, Accepted throughput: 9.00 tokens/s, Drafted throughput: 9.00 tokens/s, "
            f"Accepted: {accepted} tokens, Drafted: 3000 tokens, Per-position acceptance rate: {shares}, "
            "Avg Draft acceptance rate: 54.7%\n"
        )
        laws = [acceptance_from(text, 3) for text in ("0.8,0.7,0.5", *map(str, sorted(tmp_path.iterdir())))]
        for law in laws:
            np.testing.assert_allclose(law.tokens[0], laws[0].tokens[0], atol=0.01)
        assert [law.spread is None for law in laws] == [True, True, False]

    def test_rounds_behind_a_list_give_it_an_interval(self) -> None:
        narrow, wide = (acceptance_from("0.8,0.7", 2, rounds=rounds) for rounds in (5000, 50))
        assert narrow.tokens[1:, 2].std() < wide.tokens[1:, 2].std() / 5
        assert narrow.tokens[0, 2] == pytest.approx(1 + 0.8 + 0.56)

    @pytest.mark.parametrize(
        ("text", "options", "says"),
        [
            ("nowhere.log", {}, "acceptance must be an alpha"),
            ("", {}, "acceptance must be an alpha"),
            ("80%", {}, "an alpha such as 0.8"),
            ("1.2", {}, "must be in [0, 1], got 1.2"),
            ("0.8,0.7", {"interval": (0.7, 0.9)}, "an interval goes with one alpha"),
            ("0.8", {"interval": (0.7, 0.9), "rounds": 5}, "not both"),
            ("0.8", {"rounds": 0}, "must be >= 1, got 0"),
        ],
    )
    def test_what_cannot_be_read_is_refused(self, text: str, options: dict[str, Any], says: str) -> None:
        with pytest.raises(ValueError, match=re.escape(says)):
            acceptance_from(text, 4, **options)

    @pytest.mark.parametrize("draft", [MODEL_DRAFT, LOOKUP])
    def test_a_calibrated_run_s_plan_is_what_its_prediction_simulates(
        self, run: tuple[pd.DataFrame, pd.DataFrame], calibration: Any, draft: str
    ) -> None:
        """The prediction walks through prompts, round by round; of long outputs, so that ends do not count."""
        found = fit_run(*run, 8, draft)
        design = make_design(calibration, [draft], [2, 7], 8, 400, 60)
        predicted = predict(calibration, design, draws=100)
        curve = {one.gamma: one.speedup for one in choose(found.law, found.costs, 1, 260).by_gamma}
        for gamma, part in predicted.groupby("gamma"):
            assert 1 / (1 / part["predicted"]).mean() == pytest.approx(curve[int(str(gamma))], rel=0.04)

    def test_a_run_is_not_planned_for_batches_that_were_not_timed(self, run: tuple[pd.DataFrame, pd.DataFrame]) -> None:
        found = fit_run(*run, 8, MODEL_DRAFT)
        assert crossover(found.law, found.costs, 100.0).searched == 1
        with pytest.raises(ValueError, match="batch=4 lies outside the shapes measured for 'target'"):
            choose(found.law, found.costs, 4, 100.0)


class TestBatches:
    def test_factors_of_a_batch_are_those_that_its_rounds_were_made_with(self) -> None:
        """Rows of a forward share its times; the last forwards, with fewer rows, are twice as dear and do not count."""
        shapes = (
            pd.MultiIndex.from_product([(1, 3), range(1, 6), (50, 150), range(4)]).to_frame(index=False).to_numpy().T
        )
        seconds = AffineLatency(0.03, 1e-3).forward_seconds(*shapes[:3])
        forwards = make_forwards(
            role="target", batch=shapes[0], new_tokens=shapes[1], context=shapes[2], repeat=shapes[3], seconds=seconds
        )
        curve = fit_latency(forwards, np.random.default_rng(0), 5).curves["target"]
        ones, lookup, other = np.ones(6), PerRound(1e-4, 1e-5), PerRound(2e-4, 0.0)
        baseline = BaselineCosts(curve, ones, 2e-4, {})
        draft = DraftCosts(curve, ones, lookup, None, other, np.zeros(1))
        drafted = np.array([[4, 0, 2], [1, 1, 0], [0, 0, 0]])
        rows = []
        for turn in range(24):
            gamma, size = 4 * (turn % 2), 3 if turn < 18 else 2
            length = drafted[turn % 3] if gamma else np.zeros(3, dtype=np.int64)
            widest_draft, dear = int(length.max()), 1.0 if size == 3 else 2.0
            for row in range(size):
                rows.append(
                    {
                        "request_id": f"p{row}", "round_index": turn, "batch": size, "context": 100, "gamma": gamma,
                        "drafted": length[row], "accepted": 0, "emitted": 1, "cut": False, "start_seconds": 0.1 * turn,
                        "draft_seconds": dear * 1.5 * 3 * float(lookup.seconds(widest_draft)) if gamma else 0.0,
                        "verify_seconds": dear * (1.2 if gamma else 1.1) * float(0.03 + 3e-3 * (1 + widest_draft)),
                        "other_seconds": dear * (1.3 if gamma else 1.1) * 2e-4, "draft": "d" if gamma else "none",
                    }
                )  # fmt: skip
        table = make_rounds(**pd.DataFrame(rows).to_dict("list"))
        factors = batch_factors(table, baseline, draft)
        assert list(factors) == [3]
        found = factors[3]
        np.testing.assert_allclose(
            [found.step, found.draft, found.verify, found.other], [1.1, 1.5, 1.2, 1.3], rtol=1e-3
        )
        law = from_conditional([0.5], 4)
        plain, own = (
            MeasuredCosts(baseline, draft, known).price(law, np.array([1, 3]), 100) for known in ({}, factors)
        )
        np.testing.assert_allclose(own.step / plain.step, np.tile([1.0, 1.1], (6, 1)), rtol=1e-3)
        np.testing.assert_allclose(own.verify[:, 1] / plain.verify[:, 1], 1.2, rtol=1e-3)
        with pytest.raises(ValueError, match="batch 3 needs at least 5 forwards"):
            batch_factors(table[table["round_index"] < 8], baseline, draft)


class TestDecisions:
    def test_a_draft_that_does_not_pay_is_refused_with_the_reason(self) -> None:
        choice = choose(from_conditional([0.3], 4), ModelCosts(ConstantLatency(1.0), ConstantLatency(0.5)), 1, 0.0)
        assert (choice.gamma, choice.speedup, choice.speedup_ci) == (0, 1.0, (1.0, 1.0))
        assert "do not use it" in choice.reason
        assert "gamma 1 emits 1.30 tokens a round of 1.50 steps" in choice.reason
        assert choice.tpot_seconds == choice.baseline_tpot_seconds == 1.0

    def test_overhead_counts_on_both_sides_unless_the_baseline_has_its_own(self) -> None:
        law, models = from_conditional([0.8], 4), (ConstantLatency(1.0), ConstantLatency(0.1))
        plain, both, own = (
            choose(law, ModelCosts(*models, *overhead), 1, 0.0).by_gamma[3].speedup
            for overhead in ((0.0,), (0.5,), (0.5, 0.0))
        )
        tokens = float(expected_tokens(0.8, 4))
        assert plain == pytest.approx(tokens / 1.4)
        assert both == pytest.approx(tokens * 1.5 / 1.9)
        assert own == pytest.approx(tokens / 1.9)

    def test_a_head_costs_its_share_of_a_step(self) -> None:
        target = AffineLatency(1.0, 0.01, 1e-4)
        head = CostRatio(target, 0.05)
        assert head.forward_seconds(8, 3, 100) == pytest.approx(0.05 * target.forward_seconds(8, 1, 100))

    def test_a_tree_is_planned_where_ranks_are_known_and_is_no_slower_than_the_chain(self) -> None:
        ranks = np.array([0.5, 0.2, 0.1])
        law = DraftLaw(from_conditional([0.5], 6).tokens, ranks=np.tile(ranks, (6, 1)))
        costs = ModelCosts(ConstantLatency(1.0), ConstantLatency(0.2))
        tree = choose_tree(law, costs, 1, 0.0, 12, 6)
        assert tree is not None
        assert tree.speedup > choose(law, costs, 1, 0.0).speedup
        assert not tree.tree.is_chain
        assert choose_tree(from_conditional([0.5], 6), costs, 1, 0.0, 12, 6) is None

    def test_memory_holds_the_batch_that_it_says(self) -> None:
        held = room("llama-3.1-8b", "llama-3.2-1b", "h100", 1, "bf16", None, "bf16")
        most = held.most_batch(1024)
        assert held.needed_bytes(most, 1024)["needed_bytes"] <= held.usable_bytes
        assert held.needed_bytes(most + 1, 1024)["needed_bytes"] > held.usable_bytes
        assert held.usable_bytes == pytest.approx(0.9 * find_device("h100").memory_bytes)
        assert held.most_batch(1024, drafts=False) > most

    def test_under_a_light_load_a_token_takes_what_the_plan_says(self) -> None:
        law, costs = from_conditional([0.8], 4), ModelCosts(AffineLatency(0.02, 1e-6), AffineLatency(0.001))
        choice = choose(law, costs, 1, 0.0)
        found = under_load(
            law, costs, choice.gamma, Crossover(None, (None, None), 64, ()), Load(0.05, 10, 200, 40, 4, 16), 0
        )
        assert found["tpot_ratio"] == pytest.approx(1 / choice.speedup, rel=0.03)
        low, high = found["tpot_ratio_ci"]  # type: ignore[misc]  # a list
        assert low < found["tpot_ratio"] < high  # type: ignore[operator]


def call(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """Run `specdec plan WORDS` and return its exit code."""
    monkeypatch.setattr(sys, "argv", ["specdec", "plan", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


PAIR = ("--target", "llama-3.1-70b", "--draft", "llama-3.2-1b", "--device", "h100", "--tensor-parallel", "4")


class TestCommand:
    def test_it_prints_what_scripts_rely_on(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        words = (
            "--acceptance",
            "0.75",
            "--batches",
            "1,8,32",
            "--contexts",
            "1024",
            "--price-per-hour",
            "10",
            "--json",
        )
        assert call(monkeypatch, *PAIR, *words) == 0
        found = json.loads(capsys.readouterr().out)
        assert [row["batch"] for row in found["batches"]] == [1, 8, 32]
        for row in found["batches"]:
            low, high = row["speedup_ci"]
            assert low < row["speedup"] < high
            assert row["gamma"] >= 1
            assert row["memory"]["fits"]
            seconds = row["price"]["per_million_tokens"] * 360 / 1e6 * row["batch"]
            assert seconds == pytest.approx(row["tpot_seconds"])
            assert row["tpot_seconds"] * row["block_efficiency"] == pytest.approx(row["itl_seconds"])
            assert f'"num_speculative_tokens": {row["gamma"]}' in row["emit"]["vllm"]
        speeds = [row["speedup"] for row in found["batches"]]
        assert speeds == sorted(speeds, reverse=True)
        assert {"crossover_batch", "crossover_batch_ci", "emit", "schedule", "interval"} <= set(found)
        assert "roofline" in found["interval"]
        assert call(monkeypatch, *PAIR, "--acceptance", "0.75") == 0
        assert "--speculative-config" in capsys.readouterr().out

    def test_it_reads_latency_files_and_says_where_it_stops_paying(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        for name, latency in (("t", (1.0, 0.01)), ("d", (0.1, 0.001))):
            affine = {"kind": "affine", "fixed_seconds": latency[0], "seconds_per_token": latency[1]}
            (tmp_path / f"{name}.json").write_text(json.dumps(affine))
        files = ("--target-latency", str(tmp_path / "t.json"), "--draft-latency", str(tmp_path / "d.json"))
        words = ("--acceptance", "0.6", "--acceptance-ci", "0.5,0.7", "--draft", "some/draft", "--json")
        assert call(monkeypatch, *files, *words) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["crossover_batch"] == int(np.ceil((0.6 - 0.1) / (0.01 * 0.4 + 0.001)))
        low, high = found["crossover_batch_ci"]
        assert low < found["crossover_batch"] < high
        assert "max_concurrency: 99" in found["emit"]["tensorrt_llm"]

    def test_what_a_user_would_trip_over_is_remarked_on(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        words = (
            "--target",
            "llama-3.1-8b",
            "--device",
            "NVIDIA H100 80GB HBM3",
            "--acceptance",
            "0.7",
            "--batches",
            "1",
        )
        assert call(monkeypatch, *words, "--draft", "qwen3-0.6b", "--json") == 0
        assert "vocabulary has 128,256 tokens and the draft's 151,936" in capsys.readouterr().out
        assert (
            call(monkeypatch, *words, "--draft", "meta-llama/Llama-3.2-1B-Instruct", "--dtype", "BF16", "--json") == 0
        )
        assert "vocabulary" not in capsys.readouterr().out
        assert call(monkeypatch, *words, "--draft", "some/EAGLE3-head", "--draft-cost-ratio", "0.05") == 0
        shown = capsys.readouterr().out
        assert "weights and cache are not in the memory" in shown
        assert "- sglang: No option turns" in shown

    def test_a_draft_is_on_the_target_s_devices_unless_it_is_said(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        found = []
        for words in ((), ("--draft-tensor-parallel", "4"), ("--draft-tensor-parallel", "1")):
            assert call(monkeypatch, *PAIR, "--acceptance", "0.75", "--batches", "1", *words, "--json") == 0
            found.append(json.loads(capsys.readouterr().out))
        assert found[0]["batches"] == found[1]["batches"]
        assert found[0]["batches"][0]["draft_seconds"] != found[2]["batches"][0]["draft_seconds"]
        assert ["draft_tensor_parallel_size" in plan["emit"]["vllm"] for plan in found] == [False, False, True]

    def test_it_plans_from_a_run_folder(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        folder = Path(__file__).parents[2] / "docs" / "lab"
        words = ("--from", str(folder), "--draft", "prompt-lookup", "--batches", "1", "--json")
        assert call(monkeypatch, *words) == 0
        found = json.loads(capsys.readouterr().out)
        (row,) = found["batches"]
        assert "calibration rounds" in found["interval"]
        assert len(row["by_gamma"]) == 5
        assert call(monkeypatch, "--from", str(folder), "--draft", "other", "--batches", "1") == 2
        assert "['early-exit:24', 'prompt-lookup']" in capsys.readouterr().err

    def test_a_lookup_and_a_load_go_together(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        lookup = ("--target", "llama-3.1-8b", "--draft", "ngram", "--device", "h100", "--acceptance", "0.5")
        load = ("--rate", "2", "--requests", "60", "--replications", "3", "--output-tokens", "64", "--json")
        assert call(monkeypatch, *lookup, *load) == 0
        found = json.loads(capsys.readouterr().out)["load"]
        assert found["tpot_ratio"] < 1
        assert found["tpot_ratio_ci"][0] < found["tpot_ratio"] < found["tpot_ratio_ci"][1]

    @pytest.mark.parametrize(
        ("words", "says"),
        [
            ((), "a plan needs acceptance"),
            (("--acceptance", "0.7"), "the target's latency needs its architecture and a device"),
            ((*PAIR, "--acceptance", "0.7", "--batches", "1,x"), "--batches must be whole numbers"),
            ((*PAIR, "--acceptance", "0.7", "--batches", "0"), "batches must be whole numbers >= 1"),
            ((*PAIR, "--acceptance", "0.7", "--acceptance-ci", "0.7"), "--acceptance-ci must be two numbers"),
            ((*PAIR, "--acceptance", "0.7", "--method", "magic"), "method must be one of draft_model"),
            ((*PAIR, "--acceptance", "0.7", "--price-per-hour", "-1"), "price per hour must be finite and > 0"),
            (
                ("--target", "llama-3.1-8b", "--draft", "x/eagle", "--device", "h100", "--acceptance", "0.7"),
                "cost ratio",
            ),
            (("--target", "llama-3.1-70b", "--draft", "ngram", "--device", "h100", "--acceptance", "0.7"), "GiB"),
            (
                ("--from", "nowhere", "--acceptance", "0.7", "--overhead-seconds", "1"),
                "leave acceptance, overhead_seconds out",
            ),
            ((*PAIR, "--acceptance", "0.7", "--categories", "code"), "categories are those of a run's prompts"),
            ((*PAIR, "--acceptance", "0.7", "--max-batch", "0"), "max_batch must be >= 1, got 0"),
            ((*PAIR, "--acceptance", "0.7", "--max-gamma", "2000"), "max_gamma must be at most 1024"),
            ((*PAIR, "--acceptance", "0.7", "--contexts", "nan"), "contexts must be finite"),
            ((*PAIR, "--acceptance", "0.7", "--contexts", "1e9"), "a request of context 1e+09 and a draft need"),
            ((*PAIR[:-4], "--device", "T4", "--acceptance", "0.7"), "no device named 'T4'; did you mean tpu-v4 or l4?"),
            (("--from", "nowhere"), "no round table at nowhere"),
        ],
    )
    def test_bad_use_is_one_line_and_exit_code_two(
        self,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        words: tuple[str, ...],
        says: str,
    ) -> None:
        assert call(monkeypatch, *words) == 2
        error = capsys.readouterr().err
        assert says in error
        assert error.count("\n") == 1


def test_help_has_an_example(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "--help") == 0
    assert "specdec plan --target" in capsys.readouterr().out
