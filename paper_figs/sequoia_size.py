"""Sequoia, Fig. 1: expected tokens against the size of the tree, for chains, sequences, binary trees and the best."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

from paper_figs.pair_counts import RANK_CSV, rank_resamples, rank_table
from paper_figs.style import COLUMN_INCHES, intervals, kinds, letter, new_figure, style
from sim.theory import FloatArray
from sim.tree_search import solve
from sim.trees import TokenTree, expected_tokens

NAME = "sequoia_size"
SOURCE = "after Chen et al. 2024, Sequoia, arXiv:2402.12374, Fig. 1 and Sec. 3; acceptance measured by this lab"
CAPTION = (
    "Expected tokens of a round against the drafted tokens, by Sequoia's sum over paths with acceptance by rank as "
    "counted on the embedded pair (eight ranks at the first token, four at the second; what was not counted is taken "
    "from other depths): a chain and five sequences level off at once, a binary tree later, the best tree goes on "
    "rising. Bars: 95% intervals of the counts, on which the best tree is chosen too. (a) Sampled without replacement "
    "at temperature 1, (b) greedy."
)
LABELS = {
    "best": "best tree",
    "binary": "binary tree",
    "sequences": "five sequences",
    "chain": "chain",
}
SEQUENCES = 5
PANELS = {"without_replacement": "temperature 1", "greedy": "greedy"}


def data(largest: int = 256, max_depth: int = 24, ranks: Path = RANK_CSV, resamples: int = 200) -> pd.DataFrame:
    """Expected tokens by kind and size of the tree.

    Args:
        largest: most drafted tokens.
        max_depth: longest path; a chain of that length has lost nothing that could be printed.
        ranks: counts by rank, as `paper_figs.measure_pair` writes them.
        resamples: of the counts, for the intervals.

    Returns:
        rule, kind, size, depth (of the tree), tokens with the 95% interval `tokens_lo`, `tokens_hi` of that tree (NaN
        for best trees whose size is no power of two).
    """
    counts = pd.read_csv(ranks)
    parts = []
    for rule in PANELS:
        of_rule = counts[counts["rule"] == rule]
        table = by_depth(rank_table(of_rule).acceptance, max_depth)
        others = [by_depth(one, max_depth) for one in rank_resamples(of_rule, resamples)]
        parts.append(sizes(table, largest, others).assign(rule=rule))
    columns = ["rule", "kind", "size", "depth", "tokens", "tokens_lo", "tokens_hi"]
    return pd.concat(parts, ignore_index=True)[columns]


def by_depth(acceptance: FloatArray, max_depth: int) -> FloatArray:
    """The table continued downwards by its last row [max_depth, k]."""
    return acceptance[np.minimum(np.arange(max_depth), len(acceptance) - 1)]


def sizes(table: FloatArray, largest: int, resampled: Sequence[FloatArray] = ()) -> pd.DataFrame:
    """Every kind of tree at every size it has up to `largest`.

    Args:
        table: acceptance [depth, k], as deep as the deepest tree.
        largest: most drafted tokens.
        resampled: tables like it, for the intervals.

    Returns:
        kind, size, depth, tokens, tokens_lo, tokens_hi.
    """
    deepest = len(table)
    trees = [("chain", TokenTree.chain(n)) for n in range(1, min(largest, deepest) + 1)]
    length = 1
    while length <= deepest and SEQUENCES * length <= largest:
        trees.append(("sequences", TokenTree.branching((SEQUENCES, *[1] * (length - 1)))))
        length += 1
    depth = 1
    while 2 ** (depth + 1) - 2 <= largest:
        trees.append(("binary", TokenTree.branching([2] * depth)))
        depth += 1
    solution = solve(table, largest)
    trees += [("best", solution.tree(size)) for size in range(1, largest + 1)]
    rows = []
    for kind, tree in trees:
        bounded = resampled and (kind != "best" or tree.size & (tree.size - 1) == 0)
        others = [expected_tokens(tree, one) for one in resampled] if bounded else [np.nan]
        rows.append((kind, tree.size, tree.depth, expected_tokens(tree, table), *np.quantile(others, [0.025, 0.975])))
    return pd.DataFrame(rows, columns=["kind", "size", "depth", "tokens", "tokens_lo", "tokens_hi"])


def draw(table: pd.DataFrame) -> Figure:
    """Two panels on a logarithmic axis of sizes."""
    with style():
        figure = new_figure(COLUMN_INCHES, 1.3 * COLUMN_INCHES)
        panels = figure.subplots(2, 1, sharex=True)
        largest = int(table["size"].max())
        marks = 2 ** np.arange(int(np.log2(largest)) + 1)
        for axes, rule in zip(panels, PANELS, strict=True):
            for (kind, label), look in zip(LABELS.items(), kinds(len(LABELS)), strict=True):
                rows = table[(table["rule"] == rule) & (table["kind"] == kind)]
                dense = [
                    int(np.argmin(np.abs(rows["size"].to_numpy() - n))) for n in marks[marks <= rows["size"].max()]
                ]
                marked = rows.iloc[dense]
                intervals(axes, marked["size"], marked["tokens_lo"], marked["tokens_hi"], look["color"])
                axes.plot(rows["size"], rows["tokens"], markevery=sorted(set(dense)), label=label, **look)
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_locator(FixedLocator(marks.tolist()))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter(StrMethodFormatter("{x:.0f}"))
            axes.set(ylabel="Expected tokens per round", ylim=(1, None))
        panels[0].legend(loc="upper left", handlelength=3.2)
        panels[1].set_xlabel("Size of the tree [drafted tokens]")
        letter(panels, list(PANELS.values()))
        return figure
