"""Does the harness have teeth? Every mutant against every test, and every correct sampler against the verdict.

The table holds what a user should know before trusting a green result: which mutants the usual test, a chi-square of
the first token, lets through; how far each pure rule is from lossless, exactly; and after how many rounds the
statistical check stops.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.losslessness.check import check
from analysis.losslessness.exact import EXACT_TOLERANCE, adversarial_pairs, exact_distance
from analysis.losslessness.mutants import MUTANTS
from analysis.losslessness.rules import CORRECT, RULES, Rule, Sampler

FIRST_TOKEN_TRIALS = 200_000
FIRST_TOKEN_VOCAB = 16


@dataclass(frozen=True)
class Row:
    """One sampler against every test."""

    name: str
    stands_for: str
    correct: bool
    first_token_rejects: bool
    """Chi-square of the first token over df + 10 sqrt(2 df), 200,000 trials, vocab 16, reversed ranks."""
    exact_tv: float | None
    """Largest total variation over the adversarial pairs at vocab 4, gamma 2; None where it is no pure rule."""
    statistical_rejects: bool
    rounds: int
    """Rounds until the evidence was in, or all of them."""
    finding: str
    """The hypothesis with the strongest evidence."""

    @property
    def right(self) -> bool:
        """Whether both our tests say what is true."""
        exact_ok = self.exact_tv is None or (self.exact_tv <= EXACT_TOLERANCE) == self.correct
        return exact_ok and self.statistical_rejects != self.correct


def first_token_chi_square(sampler: Sampler, rng: np.random.Generator) -> tuple[float, float]:
    """The statistic and threshold of the usual test: the first token's marginal alone."""
    p = 1.0 / np.arange(1, FIRST_TOKEN_VOCAB + 1)
    p /= p.sum()
    tokens = sampler(np.tile(p, (3, 1)), np.tile(p[::-1], (2, 1)), FIRST_TOKEN_TRIALS, rng)[:, 0]
    counts = np.bincount(tokens, minlength=FIRST_TOKEN_VOCAB)
    df = FIRST_TOKEN_VOCAB - 1
    return float(((counts - FIRST_TOKEN_TRIALS * p) ** 2 / (FIRST_TOKEN_TRIALS * p)).sum()), df + 10 * (2 * df) ** 0.5


def largest_exact_distance(rule: Rule, vocab: int = 4, gamma: int = 2, seed: int = 0) -> float:
    """The rule's total variation from lossless, the largest over the adversarial pairs."""
    pairs = adversarial_pairs(vocab, gamma, np.random.default_rng(seed))
    return max(exact_distance(rule, target, draft) for _, target, draft in pairs)


def self_test(seed: int = 0, max_samples: int | None = None) -> list[Row]:
    """Try every correct sampler and every mutant; a few minutes at the default budget, most of it on the correct ones.

    Args:
        seed: of all draws.
        max_samples: rounds at most for each sampler; None for the default budget of `check`.
    """
    rows = [_row(name, "", True, sampler, RULES.get(name), seed, max_samples) for name, sampler in CORRECT.items()]
    return rows + [
        _row(name, mutant.stands_for, False, mutant.sampler, mutant.rule, seed, max_samples)
        for name, mutant in MUTANTS.items()
    ]


def _row(
    name: str, stands_for: str, correct: bool, sampler: Sampler, rule: Rule | None, seed: int, max_samples: int | None
) -> Row:
    statistic, threshold = first_token_chi_square(sampler, np.random.default_rng([seed, 1]))
    result = check(sampler, seed=seed, max_samples=max_samples)
    finding = f"{result.worst_cell['test']} ({result.worst_cell['design']})"
    exact = None if rule is None else largest_exact_distance(rule, seed=seed)
    return Row(name, stands_for, correct, statistic > threshold, exact, not result.lossless, result.samples, finding)


def markdown(rows: list[Row]) -> str:
    """The table for a README."""
    lines = [
        "| sampler | stands for | first token, usual test | exact TV | ours | rounds | found by |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        exact = "" if row.exact_tv is None else f"{row.exact_tv:.2g}"
        usual = "rejects" if row.first_token_rejects else ("passes" if row.correct else "**misses**")
        ours = "rejects" if row.statistical_rejects else "passes"
        found = row.finding if row.statistical_rejects else ""
        stands = "correct" if row.correct else row.stands_for
        lines.append(f"| {row.name} | {stands} | {usual} | {exact} | {ours} | {row.rounds:,} | {found} |")
    return "\n".join(lines)
