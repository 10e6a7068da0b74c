"""Drafts that copy what stood in the text before: no model, no cost but a search on the host.

Proposals are deterministic, so their law is one-hot. As a tree they offer several continuations at once.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import numpy as np
import torch

from real.cache import KVCache
from real.proposals import KeepDrafting, Proposal
from real.requests import Batch
from sim.trees import TokenTree


class PromptLookupDraft:
    """Copies what followed the last occurrence of the latest n tokens (Saxena 2023, prompt lookup decoding).

    Tries n = max_ngram first and shorter n-grams after; proposes nothing where even a single token never occurred. As
    a tree it offers what followed earlier occurrences too, the latest first.
    """

    feature_layers: tuple[int, ...] = ()

    def __init__(self, max_ngram: int = 3) -> None:
        if max_ngram < 1:
            raise ValueError(f"max_ngram must be >= 1, got {max_ngram}")
        self.max_ngram = max_ngram
        self.name = "prompt-lookup" if max_ngram == 3 else f"prompt-lookup:{max_ngram}"

    def start(self, batch: Batch, target_cache: KVCache, seeds: Sequence[int]) -> None:
        """Nothing to prepare."""

    def keep_rows(self, rows: Sequence[int]) -> None:
        """Nothing to forget."""

    def fork(self) -> PromptLookupDraft:
        """Itself: it keeps nothing."""
        return self

    def continuations(self, tokens: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """The tokens as an array, and where the text went on after each match of the longest n-gram, latest first."""
        known = np.asarray(tokens)
        for n in range(min(self.max_ngram, len(known) - 1), 0, -1):
            windows = np.lib.stride_tricks.sliding_window_view(known[:-1], n)
            matches = np.flatnonzero((windows == known[-n:]).all(axis=1))
            if len(matches):
                return known, matches[::-1] + n
        return known, np.empty(0, dtype=np.intp)

    def propose(self, batch: Batch, limits: Sequence[int], keep_drafting: KeepDrafting | None = None) -> Proposal:
        """See `Draft.propose`; a lookup has no confidence to ask about."""
        chains = []
        for tokens, limit in zip(batch.tokens, limits, strict=True):
            known, places = self.continuations(tokens)
            chains.append(known[places[0] : places[0] + limit].tolist() if len(places) else [])
        return chain_proposal(chains, batch)

    def propose_tree(self, batch: Batch, tree: TokenTree, replacement: bool) -> Proposal:
        """See `Draft.propose_tree`: copies of `tree.depth` tokens, the latest first, until `tree.size` are drafted."""
        found = []
        for tokens in batch.tokens:
            known, places = self.continuations(tokens)
            copies = [known[place : place + tree.depth].tolist() for place in places[:32]]
            found.append(merge(copies, tree.size))
        return tree_proposal(found, batch)


class SuffixDraft:
    """Follows the commonest continuation of the longest suffix that stood in prompt or output before.

    Every n-gram of the text up to `depth` tokens is counted as it is emitted (SuffixDecoding: Oliaro et al. 2024,
    arXiv:2411.04975, over one request). A drafted token's score is the product of the empirical chances along its path;
    drafting stops where it falls below `least_score`, so little is drafted where little is known.
    """

    feature_layers: tuple[int, ...] = ()

    def __init__(self, depth: int = 16, least_score: float = 0.1) -> None:
        if depth < 2:
            raise ValueError(f"depth must be >= 2 tokens, got {depth}")
        self.depth = depth
        self.least_score = least_score
        self.name = "suffix" if depth == 16 else f"suffix:{depth}"

    def start(self, batch: Batch, target_cache: KVCache, seeds: Sequence[int]) -> None:
        """Count the prompts."""
        self.counts: list[dict[tuple[int, ...], dict[int, int]]] = [{} for _ in range(batch.rows)]
        self.counted = [0] * batch.rows

    def keep_rows(self, rows: Sequence[int]) -> None:
        """See `Draft.keep_rows`."""
        self.counts = [self.counts[row] for row in rows]
        self.counted = [self.counted[row] for row in rows]

    def fork(self) -> SuffixDraft:
        """See `Draft.fork`."""
        return copy.copy(self)

    def _count(self, row: int, tokens: Sequence[int]) -> None:
        """Count what followed each n-gram among the tokens that are new."""
        counts = self.counts[row]
        for place in range(max(1, self.counted[row]), len(tokens)):
            token = tokens[place]
            for n in range(1, min(self.depth, place + 1)):
                following = counts.setdefault(tuple(tokens[place - n : place]), {})
                following[token] = following.pop(token, 0) + 1  # the latest comes last
        self.counted[row] = len(tokens)

    def _next(self, row: int, text: Sequence[int]) -> list[tuple[float, int]]:
        """Tokens that followed the longest known suffix of a text, with empirical chances, the commonest first.

        Among equally common ones the latest is first. One occurrence is taken for certain with chance n / (n + 1),
        n the length of the suffix: a longer match is the better reason.
        """
        counts = self.counts[row]
        for n in range(min(self.depth - 1, len(text)), 0, -1):
            following = counts.get(tuple(text[-n:]))
            if following:
                total = sum(following.values())
                ranked = sorted(reversed(following.items()), key=lambda item: -item[1])
                return [(count / total * n / (n + 1), token) for token, count in ranked]
        return []

    def propose(self, batch: Batch, limits: Sequence[int], keep_drafting: KeepDrafting | None = None) -> Proposal:
        """See `Draft.propose`; `keep_drafting` is asked with the score of the chain so far, for want of a law."""
        chains = []
        for row, (tokens, limit) in enumerate(zip(batch.tokens, limits, strict=True)):
            self._count(row, tokens)
            text, score = tokens[-self.depth :], 1.0
            chain: list[int] = []
            while len(chain) < limit:
                following = self._next(row, text)
                score *= following[0][0] if following else 0.0
                if score < self.least_score:
                    break
                chain.append(following[0][1])
                if keep_drafting is not None and not keep_drafting(score, 0.0, score):
                    break
                text = [*text[1 - self.depth :], following[0][1]]
            chains.append(chain)
        return chain_proposal(chains, batch)

    def propose_tree(self, batch: Batch, tree: TokenTree, replacement: bool) -> Proposal:
        """See `Draft.propose_tree`: the most probable tokens first, at most `tree.size` of them, `tree.depth` deep."""
        found = []
        for row, tokens in enumerate(batch.tokens):
            self._count(row, tokens)
            found.append(
                best_first(lambda text, row=row: self._next(row, text), tokens[-self.depth :], tree, self.least_score)  # type: ignore[misc]  # mypy cannot type a lambda's default
            )
        return tree_proposal(found, batch)


Found = tuple[list[int], list[int]]
"""A tree that a draft has found: the parent of each node (-1 for the root), and its token."""


def best_first(
    following: Callable[[Sequence[int]], list[tuple[float, int]]],
    text: Sequence[int],
    shape: TokenTree,
    least_score: float,
) -> Found:
    """Grow a tree by its most probable token until it has `shape.size`, none deeper than `shape.depth`."""
    open_nodes = [(-score, 1, -1, token) for score, token in following(text)[: shape.size]]
    parents: list[int] = []
    tokens: list[int] = []
    paths: list[list[int]] = []
    while open_nodes and len(parents) < shape.size:
        best = min(open_nodes, key=lambda node: (node[0], node[1]))
        open_nodes.remove(best)
        score, depth, parent, token = best
        if -score < least_score:
            break
        path = [*(paths[parent] if parent >= 0 else []), token]
        parents.append(parent)
        tokens.append(token)
        paths.append(path)
        if depth < shape.depth:
            nexts = following([*text, *path])[: shape.size]
            open_nodes += [(score * chance, depth + 1, len(parents) - 1, token) for chance, token in nexts]
    return parents, tokens


def merge(chains: Sequence[Sequence[int]], size: int) -> Found:
    """The tree of several chains, shared beginnings merged, earlier chains first, of at most `size` tokens."""
    children: dict[tuple[int, int], int] = {}
    parents: list[int] = []
    tokens: list[int] = []
    for chain in chains:
        node = -1
        for token in chain:
            known = children.get((node, token))
            if known is None:
                if len(parents) == size:
                    break
                known = children[node, token] = len(parents)
                parents.append(node)
                tokens.append(token)
            node = known
    return parents, tokens


def tree_proposal(found: Sequence[Found], batch: Batch) -> Proposal:
    """Put each row's tree into breadth-first order, siblings together, and pad the tokens."""
    trees, rows = [], []
    for parents, tokens in found:
        children: dict[int, list[int]] = {}
        for node, parent in enumerate(parents):
            children.setdefault(parent, []).append(node)
        order = list(children.get(-1, []))
        for node in order:
            order += children.get(node, [])
        place = {node: index for index, node in enumerate(order)} | {-1: -1}
        trees.append(TokenTree(tuple(place[parents[node]] for node in order)))
        rows.append([tokens[node] for node in order])
    return Proposal(padded(rows, batch), None, tuple(trees))


def chain_proposal(chains: Sequence[Sequence[int]], batch: Batch) -> Proposal:
    """Pad each row's chain."""
    return Proposal(padded(chains, batch), None)


def padded(rows: Sequence[Sequence[int]], batch: Batch) -> torch.Tensor:
    """[rows, longest] token ids, -1 where a row has fewer."""
    width = max(map(len, rows))
    filled = [[*row, *[-1] * (width - len(row))] for row in rows]
    return torch.tensor(filled, dtype=torch.long, device=batch.token_ids.device)
