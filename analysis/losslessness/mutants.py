"""Samplers that are wrong on purpose, each for a bug that a real engine had or could have.

A mutant that is a pure rule is given as one, so that the exact test can enumerate it and the statistical one can draw
from it; a bug that lives in the state between rounds, or in the order of the output, is a sampler. They are part of the
package because `specdec check-sampler --self-test` must show on any machine that the harness still has its teeth.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from analysis.losslessness.rows import Floats, Ints, at, row
from analysis.losslessness.rules import (
    Rule,
    Sampler,
    block_marginals,
    chain_sampler,
    positive_part,
    ratio,
    rejection_marginals,
    residual,
    tree_sampler,
    without_drafted,
)
from analysis.losslessness.stateful_mutants import (
    bonus_missing,
    correction_first,
    draft_replayed,
    eos_swallowed,
    noise_every,
    noise_shared_with_draft,
    rejected_token_kept,
    rows_mixed_up,
    seed_reused,
    stale_draft_cache,
    uniform_shared_with_correction,
)


@dataclass(frozen=True)
class Mutant:
    """A wrong sampler, and the real bug it stands for."""

    stands_for: str
    sampler: Sampler
    rule: Rule | None = None
    """The same mutant as pure functions, where it is one."""


Marginals = Callable[[Floats, Floats, Ints], Floats]
Correction = Callable[[Floats, Floats, Ints, Ints], Floats]


def _rule(
    stands_for: str,
    marginals: Marginals = rejection_marginals,
    correction: Correction = residual,
    draft: Callable[[Floats], Floats] = lambda q: q,
) -> Mutant:
    rule = Rule(marginals, correction, draft)
    return Mutant(stands_for, chain_sampler(rule), rule)


def _accept(chance: Callable[[Floats, Floats, Ints], Floats]) -> Marginals:
    def marginals(p: Floats, q: Floats, ids: Ints) -> Floats:
        return np.asarray(np.cumprod(np.clip(chance(p, q, ids), 0.0, 1.0), axis=-1), dtype=np.float64)

    return marginals


# ---- pieces of the wrong rules


def _leak(share: float) -> Marginals:
    return _accept(lambda p, q, ids: (a := np.minimum(1.0, ratio(p, q, ids))) + share * (1 - a))


def _leftover_to_last(p: Floats, q: Floats, ids: Ints, accepted: Ints) -> Floats:
    weights = np.maximum(row(p, accepted) - row(q, accepted), 0.0)
    weights[:, -1] += np.maximum(1.0 - weights.sum(-1), 0.0)
    return weights


def _last_row_of(source: str) -> Correction:
    """A correction that takes the bonus token from row gamma-1 of p or q instead of row gamma of p."""

    def correction(p: Floats, q: Floats, ids: Ints, accepted: Ints) -> Floats:
        weights = residual(p, q, ids, accepted)
        full = accepted == ids.shape[1]
        weights[full] = row(p if source == "p" else q, accepted - 1)[full]
        return weights

    return correction


def _argmax(weights: Floats) -> Floats:
    return np.asarray(np.eye(weights.shape[-1])[weights.argmax(-1)])


def _tempered(p: Floats, temperature: float) -> Floats:
    powered = p ** (1.0 / temperature)
    return np.asarray(powered / powered.sum(-1, keepdims=True))


def _top_k(p: Floats) -> Floats:
    """p without its least likely quarter, the top-k of half-finished sampling code."""
    k = max(1, p.shape[-1] - max(1, p.shape[-1] // 4))
    line = np.sort(p, axis=-1)[..., -k, None]
    kept = np.where(p >= line, p, 0.0)
    return np.asarray(kept / kept.sum(-1, keepdims=True))


def _top_p(p: Floats, mass: float = 0.9) -> Floats:
    order = np.argsort(-p, axis=-1)
    before = np.cumsum(np.take_along_axis(p, order, -1), axis=-1) - np.take_along_axis(p, order, -1)
    kept = np.zeros_like(p)
    np.put_along_axis(kept, order, np.where(before < mass, np.take_along_axis(p, order, -1), 0.0), -1)
    return np.asarray(kept / kept.sum(-1, keepdims=True))


def _half(p: Floats, offset: float = -100.0) -> Floats:
    """Softmax in float16 of logits as large as GPT-2's, about -100, where float16 steps by 1/16."""
    logits = (np.log(np.maximum(p, 1e-30)) + offset).astype(np.float16).astype(np.float64)
    weights = np.exp(logits - logits.max(-1, keepdims=True)).astype(np.float16).astype(np.float64)
    return np.asarray(weights / weights.sum(-1, keepdims=True))


def _with_target(change: Callable[[Floats], Floats]) -> tuple[Marginals, Correction]:
    """Rejection sampling of a changed target: the algorithm is right, its p is not."""
    return (
        lambda p, q, ids: rejection_marginals(change(p), q, ids),
        lambda p, q, ids, accepted: residual(change(p), q, ids, accepted),
    )


def _shifted(p: Floats) -> Floats:
    """Every row but the first replaced by the one before it: logits offset by one too few."""
    return np.concatenate([p[..., :1, :], p[..., :-1, :]], axis=-2)


def _typical(p: Floats, q: Floats, ids: Ints) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = -np.where(p > 0, p * np.log(p), 0.0).sum(-1)[..., :-1]
    return np.cumprod(at(p, ids) > np.minimum(0.09, 0.3 * np.exp(-entropy)), axis=-1).astype(float)


MUTANTS: dict[str, Mutant] = {
    "always accept": _rule("verification skipped", _accept(lambda p, q, ids: np.ones(ids.shape))),
    "accept 1% of the rejects": _rule("a tolerance in the comparison", _leak(0.01)),
    "accept 5% of the rejects": _rule("a tolerance in the comparison, larger", _leak(0.05)),
    "accept with q/p": _rule("ratio upside down", _accept(lambda p, q, ids: 1 / np.maximum(ratio(p, q, ids), 1e-300))),
    "accept with p, q taken as 1": _rule(
        "a sampled draft treated as deterministic", _accept(lambda p, q, ids: at(p, ids))
    ),
    "accept iff p >= q": _rule(
        "the uniform draw left out", _accept(lambda p, q, ids: (ratio(p, q, ids) >= 1).astype(float))
    ),
    "one uniform for the whole block": _rule(
        "one random number for all positions of a round",
        lambda p, q, ids: np.minimum.accumulate(np.minimum(1.0, ratio(p, q, ids)), axis=-1),
    ),
    "residual not renormalised": _rule("(p - q)+ used as if it summed to one", correction=_leftover_to_last),
    "residual from q - p": _rule(
        "operands swapped",
        correction=lambda p, q, ids, a: np.where(
            (a == ids.shape[1])[:, None], row(p, a), positive_part(row(q, a), row(p, a))
        ),
    ),
    "resample from p": _rule("residual left out", correction=lambda p, q, ids, a: row(p, a)),
    "resample from p without the rejected token": _rule(
        "the one-hot rule used for a sampled draft", correction=lambda p, q, ids, a: without_drafted(p, ids, a)
    ),
    "residual sharpened": _rule(
        "temperature applied twice", correction=lambda p, q, ids, a: residual(p, q, ids, a) ** 2
    ),
    "argmax of the residual": _rule(
        "correction taken greedily", correction=lambda p, q, ids, a: _argmax(residual(p, q, ids, a))
    ),
    "residual of the row before": _rule(
        "correction indexed from the wrong end",
        correction=lambda p, q, ids, a: residual(p, q, ids, np.maximum(a - 1, 0)),
    ),
    "bonus from q": _rule("bonus token drawn by the draft", correction=_last_row_of("q")),
    "bonus from the wrong row": _rule("bonus drawn from the last drafted row of p", correction=_last_row_of("p")),
    "off-by-one target row": _rule(
        "logits offset by one",
        lambda p, q, ids: rejection_marginals(_shifted(p), q, ids),
        lambda p, q, ids, a: residual(_shifted(p), q, ids, a),
    ),
    "top-k on the target only": _rule("top-k in the verifier, not in the reference", *_with_target(_top_k)),
    "top-p on the target only": _rule("top-p in the verifier, not in the reference", *_with_target(_top_p)),
    "top-k drafts, raw q": _rule("q of the raw logits while sampling truncated ones", draft=_top_k),
    "top-p drafts, raw q": _rule("q saved before top-p, tokens drawn after it", draft=_top_p),
    "temperature on the draft only": _rule("drafts at 0.7, q saved at 1", draft=lambda q: _tempered(q, 0.7)),
    "temperature on the target only": _rule(
        "temperature twice in the verifier", *_with_target(lambda p: _tempered(p, 0.9))
    ),
    "argmax drafts, soft q": _rule("greedy draft verified with its probabilities", draft=_argmax),
    "float16 softmax": _rule("half-precision softmax of logits near -100", *_with_target(_half)),
    "block acceptance, token residual": _rule("block verification with the wrong residual", block_marginals),
    "typical acceptance": _rule("Medusa's lossy rule", _typical, lambda p, q, ids, a: row(p, a)),
    "lenience 0.5": _rule("Leviathan App. A.5's lossy threshold", _accept(lambda p, q, ids: 2 * ratio(p, q, ids))),
    "bonus missing": Mutant("the free token after a full acceptance is forgotten", bonus_missing),
    "correction before the accepted tokens": Mutant("the source algorithm's order, copied", correction_first),
    "rejected token kept": Mutant("the output is not rolled back before the correction", rejected_token_kept),
    "EOS swallowed": Mutant("the stop token dropped with the padding", eos_swallowed),
    "stale draft cache": Mutant("drafts continue the context of the round before", stale_draft_cache),
    "batch rows mixed up": Mutant("one request verified with another's rows", rows_mixed_up),
    "seed reused every round": Mutant("the generator is seeded anew in each round", seed_reused),
    "noise shared by draft and residual": Mutant(
        "Gumbel noise of the draft reused on rejection", noise_shared_with_draft
    ),
    "noise shared across rounds": Mutant(
        "one noise vector for a round's residual and the next's bonus", noise_every(1)
    ),
    "noise recycled after 7 rounds": Mutant("a ring buffer of random numbers", noise_every(7)),
    "uniform shared by test and correction": Mutant(
        "one random number for acceptance and resampling", uniform_shared_with_correction
    ),
    "draft noise replayed": Mutant("the draft's generator advances every second round", draft_replayed),
    "tree: residual not updated": Mutant(
        "every candidate verified against the whole p", tree_sampler(3, True, True, update_residual=False)
    ),
    "tree: drawn without, verified with": Mutant(
        "distinct candidates verified as independent", tree_sampler(2, False, True)
    ),
    "tree: drawn with, verified without": Mutant(
        "independent candidates verified as distinct", tree_sampler(2, True, False)
    ),
}
"""Every mutant by name."""
