"""The torch rules: enumerated exactly, drawn as enumerated, and accepting as often as theory says."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

from analysis.losslessness import Rule, adversarial_pairs, exact_distance
from analysis.losslessness.acceptance_rates import (
    block_expected_accepted,
    exact_match_alpha,
    greedy_alpha,
    lenient_alpha,
    multi_round_alpha,
    rejection_alpha,
    typical_alpha,
    without_replacement_alpha,
)
from analysis.losslessness.rules import RULES as NUMPY_RULES
from real.candidate_verification import CANDIDATE_RULES, candidate_law, draw_candidates
from real.rows import draw
from real.verification import (
    RULES,
    ChainRule,
    block_verification,
    exact_match,
    greedy,
    lenient,
    rejection_sampling,
    typical_acceptance,
)

LOSSLESS = {name: rule for name, rule in RULES.items() if isinstance(rule, ChainRule) and rule.lossless}
LOSSY = {name: rule for name, rule in RULES.items() if isinstance(rule, ChainRule) and not rule.lossless}
STANDARD_ERRORS = 6.0  # false-alarm rate 2e-9 for each figure compared


def as_pure_rule(rule: ChainRule) -> Rule:
    """The production functions themselves, for the enumerator."""

    def tensor(array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array))

    return Rule(
        lambda p, q, ids: rule.marginal_acceptance(tensor(p), tensor(q), tensor(ids)).numpy(),
        lambda p, q, ids, a: rule.correction(tensor(p), tensor(q), tensor(ids), tensor(a)).numpy(),
    )


def random_rows(*shape: int, seed: int = 0, concentration: float = 1.0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).dirichlet(np.full(shape[-1], concentration), size=shape[:-1]))


@pytest.mark.parametrize("name", LOSSLESS)
@pytest.mark.parametrize(("vocab", "gamma"), [(3, 4), (6, 3), (4, 2), (5, 1), (3, 0)])
def test_every_path_of_a_lossless_rule_sums_to_the_targets_chain_law(name: str, vocab: int, gamma: int) -> None:
    rule = as_pure_rule(LOSSLESS[name])
    for case, target, draft in adversarial_pairs(vocab, gamma, np.random.default_rng(vocab * 10 + gamma)):
        assert exact_distance(rule, target, draft) <= 1e-12, case


@pytest.mark.parametrize("name", LOSSY)
def test_the_enumeration_measures_how_far_a_lossy_rule_is(name: str) -> None:
    pairs = adversarial_pairs(4, 2, np.random.default_rng(1))
    assert max(exact_distance(as_pure_rule(LOSSY[name]), target, draft) for _, target, draft in pairs) > 0.01


@pytest.mark.parametrize("name", NUMPY_RULES)
def test_the_torch_rules_are_the_independent_numpy_ones(name: str) -> None:
    p, q = random_rows(200, 5, 6, seed=1, concentration=0.4), random_rows(200, 4, 6, seed=2, concentration=0.4)
    ids = torch.from_numpy(np.random.default_rng(3).integers(6, size=(200, 4)))
    ours, theirs = as_pure_rule(LOSSLESS[name]), NUMPY_RULES[name]
    arrays = (p.numpy(), q.numpy(), ids.numpy())
    np.testing.assert_allclose(ours.marginal_acceptance(*arrays), theirs.marginal_acceptance(*arrays), atol=1e-14)


@pytest.mark.parametrize("name", LOSSLESS)
def test_the_draw_follows_the_enumerated_functions(name: str) -> None:
    """Accepted lengths and next tokens of 200,000 draws for fixed drafted tokens, each cell within 6 errors."""
    p, q, ids = random_rows(3, 4, seed=5), random_rows(2, 4, seed=6), torch.tensor([1, 2])
    rule, n = LOSSLESS[name], 200_000
    verdict = rule(p.expand(n, 3, 4), q.expand(n, 2, 4), ids.expand(n, 2), torch.Generator().manual_seed(7))
    reach = torch.cat([torch.ones(1), rule.marginal_acceptance(p, q, ids), torch.zeros(1)])
    for accepted in range(3):
        weights = rule.correction(p, q, ids, torch.tensor(accepted))
        law = (reach[accepted] - reach[accepted + 1]) * weights / weights.sum()
        seen = torch.bincount(verdict.next_token[verdict.accepted == accepted], minlength=4) / n
        assert (seen - law).abs().le(STANDARD_ERRORS * (law * (1 - law) / n).sqrt()).all()


def test_block_verification_accepts_more_than_rejection_sampling() -> None:
    p, q = random_rows(5, 5, seed=1), random_rows(4, 5, seed=2)
    token_by_token = rejection_alpha(p[:-1].numpy(), q.numpy()).cumprod().sum()
    n = 100_000
    ids = torch.stack([draw(q[j].expand(n, 5), torch.Generator().manual_seed(j)) for j in range(4)], dim=1)
    block = block_verification(p.expand(n, 5, 5), q.expand(n, 4, 5), ids, torch.Generator().manual_seed(9))
    expected = block_expected_accepted(p.numpy(), q.numpy())
    assert expected > token_by_token + 0.01
    accepted = block.accepted.double()
    assert abs(accepted.mean() - expected) < STANDARD_ERRORS * accepted.std() / n**0.5


@pytest.mark.parametrize(
    ("rule", "alpha"),
    [
        (rejection_sampling, rejection_alpha),
        (block_verification, rejection_alpha),  # one drafted token: the same
        (exact_match, exact_match_alpha),
        (typical_acceptance, typical_alpha),
        (lenient(0.6), lambda p, q: lenient_alpha(p, q, 0.6)),
        (greedy, greedy_alpha),
    ],
)
def test_alpha_in_closed_form_is_the_simulated_share_of_accepted_tokens(rule, alpha) -> None:  # type: ignore[no-untyped-def]  # rules and formulas of two kinds
    p, q, n = random_rows(2, 6, seed=11), random_rows(1, 6, seed=12), 200_000
    ids = draw(q.expand(n, 6), torch.Generator().manual_seed(1))[:, None]
    verdict = rule(p.expand(n, 2, 6), q.expand(n, 1, 6), ids, torch.Generator().manual_seed(2))
    expected = float(alpha(p[0].numpy(), q[0].numpy()))
    error = max(expected * (1 - expected) / n, 1e-12) ** 0.5
    assert abs(float(verdict.accepted.double().mean()) - expected) < STANDARD_ERRORS * error


def test_the_mean_accept_probability_is_alpha() -> None:
    p, q, n = random_rows(2, 6, seed=11), random_rows(1, 6, seed=12), 100_000
    ids = draw(q.expand(n, 6), torch.Generator().manual_seed(1))[:, None]
    seen = rejection_sampling(p.expand(n, 2, 6), q.expand(n, 1, 6), ids, torch.Generator()).accept_probability[:, 0]
    expected = float(rejection_alpha(p[0].numpy(), q[0].numpy()))
    assert abs(seen.mean() - expected) < STANDARD_ERRORS * seen.std() / n**0.5


@pytest.mark.parametrize("name", CANDIDATE_RULES)
@pytest.mark.parametrize("k", [0, 1, 2, 3, 4])
def test_every_sequence_of_candidates_sums_to_the_target(name: str, k: int) -> None:
    rule, vocab = CANDIDATE_RULES[name], 4
    zeros = torch.tensor([0.0, 0.0, 0.3, 0.7], dtype=torch.float64)
    for p, q in [
        (random_rows(vocab, seed=1), random_rows(vocab, seed=2)),
        (zeros.flip(0), zeros),
        (random_rows(vocab, seed=3), zeros),
        (zeros, random_rows(vocab, seed=4)),
        (random_rows(vocab, seed=5), random_rows(vocab, seed=5)),
    ]:
        law = torch.zeros(vocab, dtype=torch.float64)
        for candidates in product(range(vocab), repeat=k):
            ids = torch.tensor(candidates, dtype=torch.int64)
            chance = torch.ones((), dtype=torch.float64)
            for s in range(k):
                if chance > 0:
                    chance = chance * candidate_law(q, ids[:s], rule.replacement)[ids[s]]
            if chance > 0:
                choice, left = rule.choice(p, q, ids)
                law.index_add_(0, ids, chance * choice[:-1])
                law += chance * choice[-1] * left
        assert float((law - p).abs().sum()) / 2 <= 1e-12


@pytest.mark.parametrize(
    ("name", "alpha"), [("multi_round", multi_round_alpha), ("without_replacement", without_replacement_alpha)]
)
def test_alpha_of_several_candidates_in_closed_form(name: str, alpha) -> None:  # type: ignore[no-untyped-def]  # two formulas
    p, q, n, k = random_rows(6, seed=21), random_rows(6, seed=22), 200_000, 3
    rule, generator = CANDIDATE_RULES[name], torch.Generator().manual_seed(3)
    candidates = draw_candidates(q.expand(n, 6), k, rule.replacement, generator)
    verdict = rule(p.expand(n, 6), q.expand(n, 6), candidates, generator)
    expected = alpha(p.numpy(), q.numpy(), k)
    seen = float((verdict.chosen < k).double().mean())
    assert abs(seen - expected) < STANDARD_ERRORS * (expected * (1 - expected) / n) ** 0.5
    counts = torch.bincount(verdict.token, minlength=6) / n
    assert (counts - p).abs().le(STANDARD_ERRORS * (p * (1 - p) / n).sqrt()).all()


def test_candidates_without_replacement_are_distinct_even_when_q_runs_empty() -> None:
    q = torch.tensor([0.6, 0.4, 0.0, 0.0, 0.0], dtype=torch.float64).expand(1000, 5)
    candidates = draw_candidates(q, 4, replacement=False, generator=torch.Generator().manual_seed(1))
    assert all(len(set(row)) == 4 for row in candidates.tolist())


def test_a_tree_of_deterministic_candidates_is_lossless() -> None:
    p, ids = random_rows(5, seed=31), torch.tensor([3, 1, 0])
    choice, left = CANDIDATE_RULES["multi_round"].choice(p, torch.eye(5, dtype=torch.float64)[ids], ids)
    law = choice[-1] * left
    law[ids] += choice[:-1]
    torch.testing.assert_close(law, p, atol=1e-14, rtol=0)


def test_greedy_keeps_the_matching_prefix_and_corrects_after_it() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0], [3.0, 0.0, 0.0], [0.0, 0.0, 5.0], [1.0, 1.0, 0.0]])
    verdict = greedy(logits, None, torch.tensor([1, 0, 0]))
    assert (int(verdict.accepted), int(verdict.next_token)) == (2, 2)
    assert verdict.accept_probability.tolist() == [1.0, 1.0, 0.0]
    verdict = greedy(logits, None, torch.tensor([1, 0, 2]))
    assert (int(verdict.accepted), int(verdict.next_token)) == (3, 0)  # a tie goes to the first index


@pytest.mark.parametrize("name", RULES)
def test_a_rule_without_drafted_tokens_samples_the_target(name: str) -> None:
    p = torch.tensor([[0.0, 1.0, 0.0]])
    verdict = RULES[name](p, None, torch.empty(0, dtype=torch.int64), torch.Generator().manual_seed(0))
    assert (int(verdict.accepted), int(verdict.next_token)) == (0, 1)
    assert verdict.accept_probability.shape == (0,)


@pytest.mark.parametrize("name", RULES)
def test_a_one_hot_draft_may_be_left_out(name: str) -> None:
    p, ids = (
        random_rows(50, 3, 4, seed=1).float(),
        torch.randint(4, (50, 2), generator=torch.Generator().manual_seed(1)),
    )
    one_hot = torch.nn.functional.one_hot(ids, 4).to(p.dtype)
    without = RULES[name](p, None, ids, torch.Generator().manual_seed(5))
    spelled_out = RULES[name](p, one_hot, ids, torch.Generator().manual_seed(5))
    assert torch.equal(without.accepted, spelled_out.accepted)
    assert torch.equal(without.next_token, spelled_out.next_token)


def test_no_rule_reads_a_value_back_from_a_device() -> None:
    """On the meta device there is no value to read, so a host sync would raise."""
    p, q = torch.empty(3, 5, 8, device="meta"), torch.empty(3, 4, 8, device="meta")
    ids = torch.empty(3, 4, dtype=torch.int64, device="meta")
    for rule in RULES.values():
        assert rule(p, q, ids, None).next_token.shape == rule(p, None, ids, None).accepted.shape == (3,)
    for candidate_rule in CANDIDATE_RULES.values():
        candidates = draw_candidates(q[:, 0], 3, candidate_rule.replacement)
        assert candidate_rule(p[:, 0], q[:, 0], candidates).token.shape == (3,)


def test_a_token_of_probability_zero_is_never_drawn() -> None:
    weights = torch.tensor([0.0, 1e-30, 0.0, 1e-30, 0.0]).expand(100_000, 5)
    assert set(draw(weights, torch.Generator().manual_seed(0)).tolist()) == {1, 3}


@pytest.mark.parametrize(
    ("p", "q", "message"),
    [
        ([[0.5, 0.6], [0.5, 0.5]], [[0.5, 0.5]], r"p row \(0,\) is not a distribution: it sums to 1.1"),
        ([[0.5, 0.5], [1.5, -0.5]], [[0.5, 0.5]], r"p row \(1,\).*least entry is -0.5"),
        ([[0.5, 0.5], [0.5, 0.5]], [[float("nan"), 0.5]], r"q row \(0,\).*sums to nan"),
        ([[0.5, 0.5]], [[0.5, 0.5]], r"p must be \[..., gamma\+1, vocab\]"),
        ([[0.5, 0.5], [0.5, 0.5]], [[0.5, 0.25, 0.25]], r"q must be \[1, 2\]"),
    ],
)
def test_bad_probabilities_are_refused_by_row(p: list[list[float]], q: list[list[float]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rejection_sampling(torch.tensor(p), torch.tensor(q), torch.tensor([0]), torch.Generator())


def test_greedy_refuses_nan() -> None:
    with pytest.raises(ValueError, match=r"NaN in row \(1,\)"):
        greedy(torch.tensor([[0.0, 1.0], [0.0, float("nan")]]), None, torch.tensor([0]))


@pytest.mark.parametrize(("value", "make"), [(0.0, lenient), (1.5, lenient)])
def test_lenience_outside_its_range_is_refused(value: float, make) -> None:  # type: ignore[no-untyped-def]  # a factory
    with pytest.raises(ValueError, match="lenience must be in"):
        make(value)
