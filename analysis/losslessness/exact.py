"""The exact test: enumerate every path of a rule and compare the joint law of its output with the target's.

A rule given as pure functions leaves nothing to sample. For each sequence of drafted tokens we know the chance that
it is drafted, the chance of every accepted length, and the law of the token that follows; what the round leaves open
is continued with the target's own law. The sum over all paths is the joint law of the next gamma+1 tokens, which a
lossless rule makes equal to the target's chain law: total variation 0, up to rounding (1e-12 is the line).

p and q depend on the context: `target[j]` has shape [vocab] * (j+1) and holds p(. | first j tokens).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

import numpy as np

from analysis.losslessness.rows import Floats, Ints, check_rows, total_variation
from analysis.losslessness.rules import Rule

EXACT_TOLERANCE = 1e-12
MAX_OUTCOMES = 300_000

Chain = Sequence[Floats]
"""Conditional laws of a chain: entry j has shape [vocab] * (j+1), its last axis a distribution."""


def chain_law(chain: Chain) -> Floats:
    """Joint law [vocab] * len(chain) of the tokens of a chain."""
    law = np.ones(())
    for conditional in chain:
        law = law[..., None] * conditional
    return law


def output_law(rule: Rule, target: Chain, draft: Chain) -> Floats:
    """Joint law [vocab] * (gamma+1) of the next gamma+1 tokens when one round of `rule` comes first.

    Args:
        rule: the pure functions that the sampler itself draws from.
        target: gamma+1 conditional laws of the target.
        draft: gamma conditional laws of the draft.

    Raises:
        ValueError: a table is misshapen or no distribution, or there are more than 300,000 outcomes.
    """
    gamma, vocab = len(draft), check_rows("target[0]", target[0]).shape[-1]
    if len(target) != gamma + 1:
        raise ValueError(
            f"target needs gamma+1 = {gamma + 1} conditional laws for a draft of {gamma}, got {len(target)}"
        )
    if vocab ** (gamma + 1) > MAX_OUTCOMES:
        raise ValueError(f"{vocab}^{gamma + 1} outcomes exceed {MAX_OUTCOMES}; enumerate vocab <= 6 and gamma <= 4")
    for name, chain in (("target", target), ("draft", draft)):
        for j, conditional in enumerate(chain):
            if check_rows(f"{name}[{j}]", conditional).shape != (vocab,) * (j + 1):
                raise ValueError(f"{name}[{j}] must have shape {(vocab,) * (j + 1)}, got {conditional.shape}")
    paths = np.array(list(product(range(vocab), repeat=gamma)), dtype=np.int64).reshape(vocab**gamma, gamma)
    p = np.stack([_given(target[j], paths) for j in range(gamma + 1)], axis=1)
    q = np.stack([_given(draft[j], paths) for j in range(gamma)], axis=1) if gamma else np.empty((1, 0, vocab))
    drafted = np.take_along_axis(rule.draft(q), paths[..., None], axis=-1)[..., 0].prod(-1)
    reach = np.concatenate([np.ones((len(paths), 1)), rule.marginal_acceptance(p, q, paths)], axis=1)
    length = reach - np.concatenate([reach[:, 1:], np.zeros((len(paths), 1))], axis=1)
    law = np.zeros((vocab,) * (gamma + 1))
    for accepted in range(gamma + 1):
        weights = rule.correction(p, q, paths, np.full(len(paths), accepted))
        total = weights.sum(-1)
        mass = drafted * length[:, accepted]
        if (mass[total <= 0] > 0).any():
            path = paths[np.flatnonzero((total <= 0) & (mass > 0))[0]].tolist()
            raise ValueError(f"the rule leaves no token to follow {accepted} accepted of the drafted {path}")
        following = weights * np.divide(mass, total, out=np.zeros_like(mass), where=total > 0)[:, None]
        kept = following.reshape((vocab,) * accepted + (vocab ** (gamma - accepted), vocab)).sum(-2)
        for conditional in target[accepted + 1 :]:
            kept = kept[..., None] * conditional
        law += kept
    return law


def _given(conditional: Floats, paths: Ints) -> Floats:
    """The rows of a conditional table at the paths' prefixes: [paths, vocab]."""
    return (
        conditional[tuple(paths[:, : conditional.ndim - 1].T)] if conditional.ndim > 1 else _repeat(conditional, paths)
    )


def _repeat(law: Floats, paths: Ints) -> Floats:
    return np.broadcast_to(law, (len(paths), law.shape[-1]))


def exact_distance(rule: Rule, target: Chain, draft: Chain) -> float:
    """Total variation between the rule's output law and the target's chain law; lossless when <= 1e-12."""
    return total_variation(output_law(rule, target, draft), chain_law(target))


def random_chain(vocab: int, length: int, rng: np.random.Generator, concentration: float = 1.0) -> list[Floats]:
    """A chain whose every conditional row is drawn from a symmetric Dirichlet."""
    return [rng.dirichlet(np.full(vocab, concentration), size=(vocab,) * j) for j in range(length)]


def adversarial_pairs(
    vocab: int, gamma: int, rng: np.random.Generator
) -> Iterator[tuple[str, list[Floats], list[Floats]]]:
    """Named (target, draft) chains at the corners where rules break."""
    target, draft = random_chain(vocab, gamma + 1, rng), random_chain(vocab, gamma, rng)
    yield "random", target, draft
    yield "p = q", target, [row.copy() for row in target[:gamma]]
    low = np.arange(vocab) < vocab // 2
    yield "disjoint supports", [_keep(row, low) for row in target], [_keep(row, ~low) for row in draft]
    yield "zeros in q", target, [_keep(row, np.arange(vocab) != 0) for row in draft]
    yield "zeros in p", [_keep(row, np.arange(vocab) != vocab - 1) for row in target], draft
    yield "one-hot draft", target, [_one_hot_of(row) for row in draft]
    yield "one-hot target", [_one_hot_of(row) for row in target], draft
    yield "near-ties", target, [_nudge(row, rng) for row in target[:gamma]]
    flat = random_chain(vocab, gamma + 1, rng, concentration=1e4)
    sharp = random_chain(vocab, gamma, rng, concentration=0.02)
    yield "hot target, cold draft", flat, sharp
    yield "cold target, hot draft", random_chain(vocab, gamma + 1, rng, concentration=0.02), flat[:gamma]


def _keep(rows: Floats, tokens: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> Floats:
    kept = np.where(tokens, rows, 0.0)
    return np.asarray(kept / kept.sum(-1, keepdims=True))


def _one_hot_of(rows: Floats) -> Floats:
    return np.asarray(np.eye(rows.shape[-1])[rows.argmax(-1)])


def _nudge(rows: Floats, rng: np.random.Generator) -> Floats:
    nudged = rows * (1 + 1e-13 * rng.standard_normal(rows.shape))
    return np.asarray(nudged / nudged.sum(-1, keepdims=True))
