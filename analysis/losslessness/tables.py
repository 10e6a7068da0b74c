"""What the harness counts: for each hypothesis, tokens against a label that was known before the token was drawn.

The promise of a lossless sampler is that an emitted token, given all that was emitted before it, has the target's
law. So take any label known beforehand (the position, the token before it, the last token of the round before, the
previous round's length, the type of another row) and count tokens within it: all these tables have known rows, and one
test serves for marginals, for joint tuples and for dependence between rounds. The label must never look ahead: how
many tokens the round still emits depends on the token itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from analysis.losslessness.designs import Design
from analysis.losslessness.rows import Floats, Ints

MAX_CLASSES = 16
"""Larger vocabularies are pooled into this many classes where tokens meet tokens; marginals keep every token."""


@dataclass(frozen=True)
class Table:
    """Counts of tokens by label, and the target's law of each label's row."""

    name: str
    law: Floats
    """[labels, tokens]"""
    counts: Ints
    """[labels, tokens]"""

    def plus(self, other: Table) -> Table:
        """The same hypothesis after more rounds."""
        return Table(self.name, self.law, self.counts + other.counts)


def check_emission(tokens: object, n: int, gamma: int, vocab: int) -> Ints:
    """Return the sampler's output as int64 [n, gamma+1] if it keeps the contract.

    Raises:
        ValueError: wrong type or shape, a token outside the vocabulary, an empty round, or a token after a -1.
    """
    emitted = np.asarray(tokens)
    contract = f"sampler(p, q, n, rng) must return int [{n}, {gamma + 1}], emitted tokens first, -1 after the last"
    if emitted.dtype.kind not in "iu":
        raise ValueError(f"{contract}; got dtype {emitted.dtype}")
    if emitted.shape != (n, gamma + 1):
        raise ValueError(f"{contract}; got shape {emitted.shape}")
    emitted = emitted.astype(np.int64)
    faults = {
        f"a token outside 0..{vocab - 1}": ((emitted < -1) | (emitted >= vocab)).any(1),
        "no token at all": emitted[:, 0] < 0,
        "a token after a -1": ((emitted[:, 1:] >= 0) & (emitted[:, :-1] < 0)).any(1),
    }
    for fault, rows in faults.items():
        if rows.any():
            first = int(np.flatnonzero(rows)[0])
            raise ValueError(f"{contract}; row {first} has {fault}: {emitted[first].tolist()}")
    return emitted


def tabulate(design: Design, types: Ints, tokens: Ints) -> Iterator[Table]:
    """Every table of one stream of rounds; `types` [n] and `tokens` [n, gamma+1] as the sampler emitted them."""
    n_types, width, vocab = design.p.shape
    classes = token_classes(vocab)
    n_classes = int(classes.max()) + 1
    pooled = pool(design.p, classes)
    small = np.append(classes, -1)[tokens]  # a token of -1 picks the last entry and stays -1
    length = (tokens >= 0).sum(1)
    last, first = small[np.arange(len(small)), length - 1], small[:, 0]

    def by_type(labels: Ints, n_labels: int, j: int, rows: Ints, law: Floats) -> tuple[Floats, Ints]:
        """Law and counts of column j in the given rounds, by (type, label)."""
        values = small[:, j] if law is pooled else tokens[:, j]
        size = law.shape[-1]
        cell = (types[rows] * n_labels + labels) * size + values[rows]
        counts = np.bincount(cell[values[rows] >= 0], minlength=n_types * n_labels * size)
        return np.repeat(law[:, j], n_labels, axis=0), counts.reshape(-1, size)

    everything, later = np.arange(len(tokens)), np.arange(1, len(tokens))
    for j in range(width):
        name = f"position {j}" if j < width - 1 else "bonus position"
        yield Table(name, *by_type(np.zeros_like(everything), 1, j, everything, design.p))
        if j >= 1:
            reached = np.flatnonzero(tokens[:, j] >= 0)
            yield Table(f"{name} after a token", *by_type(small[reached, j - 1], n_classes, j, reached, pooled))
        if j >= 2:
            two = small[reached, j - 2] * n_classes + small[reached, j - 1]
            yield Table(f"{name} after two tokens", *by_type(two, n_classes**2, j, reached, pooled))
        if n_types > 1:
            yield Table(f"{name} by previous round's type", *by_type(types[later - 1], n_types, j, later, design.p))
            partner = types[(np.arange(len(types)) ^ 1).clip(max=len(types) - 1)]
            yield Table(f"{name} by neighbour's type", *by_type(partner, n_types, j, everything, design.p))
    yield Table("first token after the last round's last", *by_type(last[:-1], n_classes, 0, later, pooled))
    yield Table("first token after the last round's first", *by_type(first[:-1], n_classes, 0, later, pooled))
    yield Table("first token after the last round's length", *by_type(length[:-1] - 1, width, 0, later, pooled))
    if width >= 3:
        again = later[tokens[later, 1] >= 0]
        yield Table("second token after the last round's last", *by_type(last[again - 1], n_classes, 1, again, pooled))
    if design.stationary:
        stream = tokens[tokens >= 0]
        yield Table("whole stream", design.p[0, :1], np.bincount(stream, minlength=vocab)[None])


def token_classes(vocab: int) -> Ints:
    """[vocab] class of each token: itself, or for a large vocabulary one of 16, dealt out so that none is rare."""
    return np.arange(vocab) % MAX_CLASSES if vocab > MAX_CLASSES else np.arange(vocab)


def pool(p: Floats, classes: Ints) -> Floats:
    """Sum p [..., vocab] over the tokens of each class -> [..., classes]."""
    if len(classes) == classes.max() + 1:
        return p
    return p @ np.eye(int(classes.max()) + 1)[classes]
