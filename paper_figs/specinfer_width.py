"""SpecInfer, Table 2: tokens per verification against the width of the token tree, printed and on the embedded pair."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from paper_figs.pair_counts import RANK_CSV, TREE_CSV, rank_resamples, rank_table, tokens_per_round
from paper_figs.style import COLUMN_INCHES, intervals, kinds, letter, new_figure, style
from sim.trees import TokenTree, expected_tokens

NAME = "specinfer_width"
SOURCE = (
    "(a) Miao et al. 2024, SpecInfer, arXiv:2305.09781, Table 2; (b) this lab, python -m paper_figs.measure_pair "
    "(specdec measure --tree)"
)
CAPTION = (
    "(a) Tokens verified per step against the width of SpecInfer's tree (LLaMA-7B with LLaMA-68M, expansion at the "
    "third of eight tokens): mean of five datasets, bars from the least to the greatest. (b) The embedded pair, "
    "SmolLM2-135M with the distilled head: k continuations of four tokens, greedy (temperature 0) and sampled "
    "(temperature 1) with and without replacement; tokens per round with 95% intervals over prompts. Lines: Sequoia's "
    "sum over paths from acceptance by rank, counted on another tree (8,4); bands: 95% intervals of those counts."
)
PRINTED_CSV = Path(__file__).parent / "data" / "specinfer_table2.csv"
LABELS = {
    "greedy": "greedy",
    "without_replacement": "sampled without replacement",
    "multi_round": "multi-round (with replacement)",
}
DEPTH = 4
RESAMPLES = 400


def printed(path: Path = PRINTED_CSV) -> pd.DataFrame:
    """Table 2 as printed: decoding, dataset, width, tokens."""
    return pd.read_csv(path, comment="#")


def data(trees: Path = TREE_CSV, ranks: Path = RANK_CSV) -> pd.DataFrame:
    """Tokens per step by width, of the paper and of the embedded pair.

    Returns:
        panel ('printed' or 'pair'), decoding (greedy, stochastic, or a rule), width, tokens with `tokens_lo`,
        `tokens_hi` (printed: least and greatest dataset; pair: 95% interval), predicted with its 95% interval
        `predicted_lo`, `predicted_hi` (NaN where printed).
    """
    rows: list[dict[str, Any]] = []
    for (decoding, width), tokens in printed().groupby(["decoding", "width"])["tokens"]:
        row = {"tokens": tokens.mean(), "tokens_lo": tokens.min(), "tokens_hi": tokens.max()}
        rows.append({"panel": "printed", "decoding": decoding, "width": width} | row)
    counts, tested = pd.read_csv(trees), pd.read_csv(ranks)
    for rule in LABELS:
        of_rule = tested[tested["rule"] == rule]
        # below the second token nothing was counted by rank: the second token's acceptance stands there too
        by_depth, *resampled = (
            acceptance[np.minimum(np.arange(DEPTH), len(acceptance) - 1)]
            for acceptance in (rank_table(of_rule).acceptance, *rank_resamples(of_rule, RESAMPLES))
        )
        for width, group in counts[counts["rule"] == rule].groupby("width"):
            value, low, high = tokens_per_round(group)
            tree = TokenTree.branching((int(str(width)), *[1] * (DEPTH - 1)))
            bounds = np.quantile([expected_tokens(tree, one) for one in resampled], [0.025, 0.975])
            rows.append(
                {"panel": "pair", "decoding": rule, "width": width, "tokens": value, "tokens_lo": low}
                | {"tokens_hi": high, "predicted": expected_tokens(tree, by_depth)}
                | {"predicted_lo": bounds[0], "predicted_hi": bounds[1]}
            )
    return pd.DataFrame(rows)


def draw(table: pd.DataFrame) -> Figure:
    """The paper above, the pair below."""
    with style():
        figure = new_figure(COLUMN_INCHES, 1.45 * COLUMN_INCHES)
        above, below = figure.subplots(2, 1, sharex=True)
        names = {"greedy": "greedy decoding", "stochastic": "stochastic decoding"}
        _lines(above, table[table["panel"] == "printed"], names, joined=True)
        _lines(below, table[table["panel"] == "pair"], LABELS, joined=False)
        for axes in (above, below):
            axes.set_ylabel("Tokens per step")
            axes.legend(loc="upper left", handlelength=3.2)
            axes.set_ylim(top=axes.get_ylim()[1] + 0.3 * np.ptp(axes.get_ylim()))
        below.set(xlabel="Width of the tree k", xticks=sorted(table["width"].unique()))
        letter([above, below], ["SpecInfer as printed", "The embedded pair"])
        return figure


def _lines(axes: Axes, table: pd.DataFrame, labels: dict[str, str], joined: bool) -> None:
    """A series a way of decoding; lines join the points, or are predictions."""
    for shift, (name, look) in enumerate(zip(labels, kinds(len(labels)), strict=True)):
        rows = table[table["decoding"] == name]
        place = rows["width"] + 0.05 * (shift - (len(labels) - 1) / 2)
        intervals(axes, place, rows["tokens_lo"], rows["tokens_hi"], look["color"])
        line = {"linestyle": look["linestyle"], "color": look["color"], "linewidth": look["linewidth"]}
        axes.plot(place, rows["tokens"] if joined else rows["predicted"], **line)
        axes.fill_between(
            place, rows["predicted_lo"], rows["predicted_hi"], color=look["color"], alpha=0.12, linewidth=0
        )
        axes.plot(place, rows["tokens"], **(look | {"linestyle": "none"}))
        axes.plot([], [], label=labels[name], **look)
