"""Sun et al. 2025, block verification: what it gains over verifying token by token."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.losslessness import RULES, Rule
from paper_figs import PUBLISHED
from paper_figs.pair_counts import BLOCK_CSV, tokens_per_round
from paper_figs.style import COLUMN_INCHES, GUIDE, kinds, letter, new_figure, palette, style
from sim.theory import FloatArray

NAME = "block_verification"
SOURCE = (
    "Sun et al. 2025, arXiv:2403.10444, motivating example and Table 1; the embedded pair: this lab, python -m "
    "paper_figs.measure_pair (specdec measure --rule)"
)
CAPTION = (
    "(a) The paper's example, p = (1/3, 2/3) drafted from q = (2/3, 1/3): expected accepted tokens by enumeration, "
    "token by token, by block, and as a rule could reach that knew the block's law (10/9, 11/9 and 12/9 at γ = 2). (b) "
    "Tokens per round by block over token verification: the paper's eight datasets (PaLM-2-S with XXS, γ = 8), and the "
    "embedded pair at temperature 1 with its 8-bit draft and its distilled head, with 95% intervals over prompts."
)
P, Q = np.array([1 / 3, 2 / 3]), np.array([2 / 3, 1 / 3])
LABELS = {"ideal": "knowing the block's law", "block": "block", "token": "token by token"}
CHAIN_RULES = {"token": "rejection_sampling", "block": "block_verification"}


def accepted_tokens(rule: Rule, p: FloatArray, q: FloatArray, gamma: int) -> float:
    """Expected accepted tokens of a rule when every row is p and q, over all drafts.

    Args:
        rule: of a chain.
        p: the target's law [vocab].
        q: the draft's law [vocab].
        gamma: draft length; vocab^gamma drafts are enumerated.
    """
    ids = np.array(np.meshgrid(*[np.arange(len(p))] * gamma, indexing="ij")).reshape(gamma, -1).T
    chance = q[ids].prod(axis=1)
    marginals = rule.marginal_acceptance(np.tile(p, (gamma + 1, 1)), np.tile(q, (gamma, 1)), ids)
    return float(chance @ marginals.sum(axis=1))


def ideal_tokens(p: FloatArray, q: FloatArray, gamma: int) -> float:
    """The most that any coupling accepts: the sum over lengths of the overlap of the laws of whole blocks."""
    total, block_p, block_q = 0.0, np.ones(1), np.ones(1)
    for _ in range(gamma):
        block_p, block_q = np.multiply.outer(block_p, p).ravel(), np.multiply.outer(block_q, q).ravel()
        total += float(np.minimum(block_p, block_q).sum())
    return total


def data(gammas: Sequence[int] = (1, 2, 3, 4, 6, 8), counts: Path = BLOCK_CSV) -> pd.DataFrame:
    """The example by draft length, then the gains, printed and measured.

    Returns:
        panel ('example', 'printed', 'pair'), name (the rule, the dataset, or the draft), gamma, value (accepted tokens,
        or the ratio of tokens per round), value_lo, value_hi (95%; NaN where exact or printed).
    """
    rows: list[tuple[str, str, int, float, float, float]] = []
    for gamma in gammas:
        found = {name: accepted_tokens(RULES[rule], P, Q, gamma) for name, rule in CHAIN_RULES.items()}
        found["ideal"] = ideal_tokens(P, Q, gamma)
        rows += [("example", name, gamma, value, np.nan, np.nan) for name, value in found.items()]
    for task, token, block in printed().itertuples(index=False):
        rows.append(("printed", task, 8, block / token, np.nan, np.nan))
    measured = pd.read_csv(counts)
    for (draft, length), group in measured.groupby(["draft", "gamma"]):
        token, block = (group[group["rule"] == CHAIN_RULES[name]] for name in ("token", "block"))
        rows.append(("pair", str(draft), int(str(length)), *tokens_per_round(block, token)))
    return pd.DataFrame(rows, columns=["panel", "name", "gamma", "value", "value_lo", "value_hi"])


def printed(path: Path = PUBLISHED) -> pd.DataFrame:
    """Table 1 as printed: task, token and block (tokens per round)."""
    rows = pd.read_csv(path)
    rows = rows[rows["source"].str.contains("2403.10444", regex=False)]
    kind = np.where(rows["note"].str.startswith("block"), "block", "token")
    wide = rows.assign(kind=kind).pivot_table(index="task", columns="kind", values="tau", sort=False)
    return wide.reset_index()[["task", "token", "block"]]


def draw(table: pd.DataFrame) -> Figure:
    """The example above, the gains below."""
    with style():
        figure = new_figure(COLUMN_INCHES, 1.45 * COLUMN_INCHES)
        above, below = figure.subplots(2, 1, height_ratios=[1, 1.15])
        example = table[table["panel"] == "example"]
        for (name, label), look in zip(LABELS.items(), kinds(len(LABELS)), strict=True):
            rows = example[example["name"] == name]
            above.plot(rows["gamma"], rows["value"], label=label, **look)
        above.set(xlabel="Draft length γ [tokens]", ylabel="Expected accepted tokens", ylim=(0, None))
        above.legend(loc="lower right", handlelength=3.2)
        _gains(below, table[table["panel"] != "example"])
        figure.legend(*below.get_legend_handles_labels(), loc="outside lower right", ncols=2, handletextpad=0.2)
        letter([above, below], ["The paper's example", "Gain in tokens per round"])
        return figure


def _gains(axes: Axes, table: pd.DataFrame) -> None:
    """A row a dataset or draft."""
    place = np.arange(len(table)) + 0.6 * (table["panel"] == "pair").to_numpy()
    gain = 100 * (table[["value", "value_lo", "value_hi"]] - 1)
    here = (table["panel"] == "pair").to_numpy()
    paper, pair = palette(2)
    axes.axvline(0, color=GUIDE, linewidth=0.6)
    axes.hlines(place[here], gain["value_lo"][here], gain["value_hi"][here], color=pair, linewidth=0.9)
    axes.plot(gain["value"][~here], place[~here], "D", color=paper, markersize=4, label="as printed")
    axes.plot(gain["value"][here], place[here], "o", color=pair, markersize=4, label="the embedded pair, measured")
    columns = zip(table["panel"], table["name"], table["gamma"], strict=True)
    names = [f"{name}, γ = {gamma}" if panel == "pair" else str(name) for panel, name, gamma in columns]
    axes.set_yticks(place, names)
    axes.tick_params(axis="y", length=0)
    axes.set(xlabel="Block over token verification, less 1 [%]", ylim=(place.max() + 0.6, -0.6))
