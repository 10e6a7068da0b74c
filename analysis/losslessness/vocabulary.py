"""Tests for a real model, whose vocabulary of tens of thousands no table of tokens can hold.

Each emitted token comes with the target's own law p at that step, a different one every time. Put the tokens of the
vocabulary in some order that does not depend on what was drawn, and take the place of the emitted token in it:

    u = P(tokens before it) + U P(the token and its ties),  U uniform

Under the target u is exactly uniform on [0, 1), whatever p is, and independent of everything before. So all steps pool
into one histogram of a few bins, and the exact e-values of small tables apply. The order decides what can be seen: a
random order (a random projection into buckets) sees mass that moved between heavy tokens; the order by p sees
truncation; the order by q/p is the direction in which rejected tokens leak. Mass that moves among thousands of light
tokens at random is invisible to any test of this size, and `detectable_tv` is about the histogram.

Two bugs have a law that is known beforehand, so their likelihood ratio is the strongest test there is: accepting a
share e of the rejects turns p into p + e (q - p), and a wrong temperature turns it into p^b, normalised.

The last handle is the coupling: rejection sampling accepts a reached position with chance sum min(p, q), so the
accepted count is a sum of independent coin flips with known chances.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp
from scipy.stats import norm

from analysis.losslessness.evidence import effect, g_test, log_e_value, worst_cell
from analysis.losslessness.power import FALSE_ALARM, detectable_tv
from analysis.losslessness.result import CheckResult, HypothesisResult
from analysis.losslessness.rows import Floats, Ints, check_rows
from analysis.losslessness.tables import Table
from analysis.losslessness.verdict import conclude

BINS = 32
PAIR_BINS = 8
PROJECTIONS = 4
ROW_TOLERANCE = 1e-3
"""Sums of float32 probabilities over 49,152 tokens may miss one by this much; they are renormalised."""
TILTS = np.array([sign * size for size in (0.003, 0.01, 0.03, 0.1, 0.3, 1.0) for sign in (1.0, -1.0)])

LEAKS = np.array([0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 0.9])
POWERS = np.array([0.8, 0.95, 1.05, 1.25])

Step = tuple[Floats, Floats | None, Ints]
"""p [m, vocab], q [m, vocab] or None, and the emitted tokens [m] of m successive steps."""


def place(p: Floats, tokens: Ints, score: Floats, rng: np.random.Generator) -> Floats:
    """[m] place in [0, 1) of each token, the vocabulary ordered by `score`, [vocab] or [m, vocab], ties at random."""
    scores = np.broadcast_to(score, p.shape)
    own = np.take_along_axis(scores, tokens[:, None], axis=-1)
    before = np.where(scores < own, p, 0.0).sum(-1)
    tied = np.where(scores == own, p, 0.0).sum(-1)
    return np.asarray(np.minimum(before + rng.random(len(p)) * tied, np.nextafter(1.0, 0.0)))


def check_tokens(steps: Iterable[Step], seed: int = 0, false_alarm: float = FALSE_ALARM) -> CheckResult:
    """Say whether emitted tokens follow the target's law, at any vocabulary.

    Args:
        steps: chunks of successive steps of one stream, (p, q or None, tokens); keep a chunk's p within memory.
        seed: of the random orders and of ties.
        false_alarm: chance that tokens of the target are rejected.

    Raises:
        ValueError: a row is no distribution, shapes disagree, or there are no steps.
    """
    rng = np.random.default_rng(seed)
    orders: NDArray[np.float64] | None = None
    places: dict[str, list[Floats]] = {}
    leak, power = np.zeros(len(LEAKS)), np.zeros(len(POWERS))
    impossible = 0
    for p, q, tokens in steps:
        target = _rows("p", p, tokens)
        if orders is None:
            orders = np.stack([rng.permutation(target.shape[1]).astype(float) for _ in range(PROJECTIONS)])
        scores = {f"random order {i}": order for i, order in enumerate(orders)} | {"order by p": -target}
        own = np.maximum(np.take_along_axis(target, tokens[:, None], axis=-1), 1e-300)
        power += ((POWERS - 1) * np.log(own)).sum(0) - _log_power_sums(target).sum(0)
        if q is not None:
            draft = _rows("q", q, tokens)
            scores["order by q/p"] = draft / np.maximum(target, 1e-300)
            leak += np.log1p(LEAKS * (np.take_along_axis(draft, tokens[:, None], axis=-1) / own - 1)).sum(0)
        for name, score in scores.items():
            places.setdefault(name, []).append(place(target, tokens, score, rng))
        impossible += int((own == 1e-300).sum())
    if orders is None:
        raise ValueError("there are no steps to check; generate some tokens and keep the target's p of each")
    tables = [table for name, parts in places.items() for table in _histograms(name, np.concatenate(parts))]
    counts = np.array([[sum(len(u) for u in places["order by p"]) - impossible, impossible]])
    tables.append(Table("token of probability zero", np.array([[1.0, 0.0]]), counts))
    hypotheses, drawn = len(tables) + 2, int(counts.sum())
    results = [_result(table, hypotheses) for table in tables]
    sees = max(result.detectable_tv for result in results[:-1])
    for name, logs in (("leak of rejected tokens", leak), ("temperature", power)):
        log_e = float(logsumexp(logs) - np.log(len(logs)))
        strongest = float((LEAKS if logs is leak else POWERS)[logs.argmax()])
        results.append(HypothesisResult("vocabulary", name, drawn, log_e, worst_cell={"strongest at": strongest}))
    return conclude(results, hypotheses, drawn, false_alarm, sees)


def check_acceptance(chances: Floats, accepted: NDArray[np.bool_]) -> HypothesisResult:
    """Do positions get accepted as often as rejection sampling would: chances [n] = sum min(p, q), accepted [n] bool?

    Every reached position counts once, in order; chances must be known before the draw. A rule that couples less well
    may accept less often and be lossless (exact match does), so read the sign: `tv` is the excess of accepted tokens
    per position, and more than sum min(p, q) is impossible without changing the distribution.
    """
    a, hit = np.asarray(chances, dtype=np.float64), np.asarray(accepted, dtype=bool)
    if a.shape != hit.shape or a.ndim != 1 or len(a) == 0 or not ((a >= 0) & (a <= 1 + 1e-9)).all():
        raise ValueError(f"chances must be [n] in [0, 1] beside accepted [n], n >= 1, got {a.shape} and {hit.shape}")
    a = np.minimum(a, 1.0)
    logs = TILTS * hit.sum() - np.log1p(a[:, None] * np.expm1(TILTS)).sum(0)
    log_e = float("inf") if (hit & (a == 0)).any() else float(logsumexp(logs) - np.log(len(TILTS)))
    excess, variance = float(hit.sum() - a.sum()), float((a * (1 - a)).sum())
    z = excess / variance**0.5 if variance > 0 else 0.0
    cell: dict[str, float | int] = {"accepted": int(hit.sum()), "expected": float(a.sum()), "standard_errors": z}
    return HypothesisResult(
        "coupling", "accepted count against sum min(p, q)", len(a), log_e, z**2, 1, float(2 * norm.sf(abs(z))),
        excess / len(a), detectable_tv(len(a), 1, 2, 1), cell,
    )  # fmt: skip


def _rows(name: str, rows: Floats, tokens: Ints) -> Floats:
    checked = check_rows(name, rows, ROW_TOLERANCE)
    if checked.ndim != 2 or len(checked) != len(tokens):
        raise ValueError(f"{name} must be [steps, vocab] for {len(tokens)} tokens, got shape {checked.shape}")
    if ((tokens < 0) | (tokens >= checked.shape[1])).any():
        raise ValueError(f"tokens must be in 0..{checked.shape[1] - 1}, got {tokens.min()}..{tokens.max()}")
    return np.asarray(checked / checked.sum(-1, keepdims=True))


def _log_power_sums(p: Floats) -> Floats:
    """[m, powers] ln sum p^b."""
    return np.stack([np.log(np.power(p, b).sum(-1)) for b in POWERS], axis=-1)


def _histograms(name: str, u: Floats) -> list[Table]:
    """The places by themselves, and each after the one before it."""
    bins, coarse = (u * BINS).astype(int), (u * PAIR_BINS).astype(int)
    alone = np.bincount(bins, minlength=BINS)[None]
    pairs = np.bincount(coarse[:-1] * PAIR_BINS + coarse[1:], minlength=PAIR_BINS**2).reshape(PAIR_BINS, PAIR_BINS)
    uniform = np.full((PAIR_BINS, PAIR_BINS), 1 / PAIR_BINS)
    return [Table(name, np.full((1, BINS), 1 / BINS), alone), Table(f"{name}, after the token before", uniform, pairs)]


def _result(table: Table, hypotheses: int) -> HypothesisResult:
    samples = int(table.counts.sum())
    g, df, p_value = g_test(table)
    sees = detectable_tv(samples, len(table.law), table.law.shape[1], hypotheses)
    return HypothesisResult(
        "vocabulary", table.name, samples, log_e_value(table), g, df, p_value, effect(table), sees, worst_cell(table)
    )
