"""Chen et al. 2023, Fig. 1: what a longer draft does to the mean time of a token and to its spread."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.acceptance.laws import solve_alpha
from paper_figs.style import COLUMN_INCHES, GUIDE, INK, intervals, kinds, letter, new_figure, style
from sim.acceptance import IidAcceptance
from sim.engine import Scenario, run_rounds
from sim.latency import ConstantLatency
from sim.theory import FloatArray, expected_tokens

NAME = "chen_draft_length"
SOURCE = (
    "after Chen et al. 2023, arXiv:2302.01318, Fig. 1 and Table 1 (Chinchilla 70B, 14.1 ms a token; draft 4B, 1.8 ms)"
)
CAPTION = (
    "(a) Mean time of a token and speedup against the draft length K; diamonds: Table 1, all at K = 4. The paper "
    "prints no acceptance rates: α is what its time of a token implies by eq. 1 of Leviathan et al. if verifying takes "
    "one target step. (Its 1.92× for 7.52 ms would be 1.88×.) With one α for all positions XSum, nucleus, is best at K "
    "= 4 and within 1% of that at 3, where the paper measured the best. (b) Time of one loop, which K alone sets here, "
    "and how far the time of a 128-token sequence spreads (standard deviation), for the number of its loops varies: it "
    "grows with K even where the mean hardly moves. Marks with 95% intervals: 2,000 simulated sequences."
)
TARGET_MS, DRAFT_MS, PRINTED_K = 14.1, 1.8, 4
PRINTED_MS = {"HumanEval, nucleus": 5.73, "XSum, greedy": 7.00, "XSum, nucleus": 7.52}
"""mean token time, Table 1"""
SEQUENCE_TOKENS = 128
"""longest sequence of the paper's XSum runs"""


def loop_ms(draft_length: int) -> float:
    """One loop: so many draft steps and one target step."""
    return draft_length * DRAFT_MS + TARGET_MS


def implied_alpha(ms_per_token: float, draft_length: int = PRINTED_K) -> float:
    """The acceptance rate at which eq. 1 gives this mean time of a token."""
    return solve_alpha(loop_ms(draft_length) / ms_per_token, draft_length)


def rounds_law(alpha: float, draft_length: int, tokens: int) -> FloatArray:
    """P(a sequence takes n rounds), n = 0, 1, ... [tokens + 1]: rounds emit independent truncated geometric counts."""
    emitted = alpha ** np.arange(draft_length + 1) * np.where(np.arange(draft_length + 1) < draft_length, 1 - alpha, 1)
    unfinished = np.zeros(tokens)  # chance of each number of tokens so far
    unfinished[0] = 1.0
    law = np.zeros(tokens + 1)
    for n in range(1, tokens + 1):
        step = np.convolve(unfinished, np.concatenate([[0.0], emitted]))
        law[n] = step[tokens:].sum()
        unfinished = step[:tokens]
    return law


def data(
    lengths: Sequence[int] = tuple(range(9)), tokens: int = SEQUENCE_TOKENS, sequences: int = 2000, seed: int = 0
) -> pd.DataFrame:
    """Times by task and draft length, in milliseconds.

    Args:
        lengths: draft lengths K; 0 is decoding without a draft.
        tokens: of a sequence.
        sequences: simulated for each row; 0 leaves the simulation out.
        seed: of the simulation, the same for every row.

    Returns:
        task, alpha, draft_length, loop_ms, tokens_per_loop, ms_per_token (long run), speedup, sequence_ms and
        sequence_sd_ms (exact, of `tokens` tokens), printed_ms (NaN but at K = 4), simulated_ms, simulated_sd_ms and its
        95% interval `_lo`, `_hi` (from the fourth moment).
    """
    rows = []
    for task, printed in PRINTED_MS.items():
        alpha = implied_alpha(printed)
        for length in lengths:
            loop, mean = loop_ms(length), float(expected_tokens(alpha, length))
            law, n = rounds_law(alpha, length, tokens), np.arange(tokens + 1)
            rounds = float(law @ n)
            spread = max(float(law @ n**2) - rounds**2, 0.0) ** 0.5
            row = {
                "task": task,
                "alpha": alpha,
                "draft_length": length,
                "loop_ms": loop,
                "tokens_per_loop": mean,
                "ms_per_token": loop / mean,
                "speedup": TARGET_MS * mean / loop,
                "sequence_ms": rounds * loop,
                "sequence_sd_ms": spread * loop,
                "printed_ms": printed if length == PRINTED_K else np.nan,
            }
            rows.append(row | (simulated(alpha, length, tokens, sequences, seed) if sequences else {}))
    return pd.DataFrame(rows)


def simulated(alpha: float, length: int, tokens: int, sequences: int, seed: int) -> dict[str, float]:
    """Mean and standard deviation of the time of sequences, by the simulator."""
    target, draft = ConstantLatency(TARGET_MS / 1e3), ConstantLatency(DRAFT_MS / 1e3)
    scenario = Scenario(
        target, draft if length else None, IidAcceptance(alpha) if length else None, length,
        requests=sequences, max_new_tokens=tokens, request_devices="own",
    )  # fmt: skip
    rounds = run_rounds(scenario, seed)
    times = 1e3 * np.add.reduceat(rounds.busy_seconds, rounds.offsets)
    spread = float(times.std(ddof=1))
    if np.ptp(times) < 1e-9 * times.mean():  # every sequence took as long, up to rounding
        spread, half = 0.0, 0.0
    else:
        error = np.sqrt(max(float(((times - times.mean()) ** 4).mean()) - spread**4, 0.0) / sequences)
        half = float(1.96 * error / (2 * spread))
    return {
        "simulated_ms": float(times.mean()),
        "simulated_sd_ms": spread,
        "simulated_sd_ms_lo": spread - half,
        "simulated_sd_ms_hi": spread + half,
    }


def draw(table: pd.DataFrame) -> Figure:
    """Mean times above, the loop and the spread below."""
    with style():
        figure = new_figure(COLUMN_INCHES, 1.45 * COLUMN_INCHES)
        above, below = figure.subplots(2, 1, sharex=True)
        groups = list(table.groupby("task"))
        ring: dict[str, Any] = {"linestyle": "none", "marker": "D", "markersize": 6.5}
        ring |= {"markerfacecolor": "none", "color": INK}
        for (task, rows), look in zip(groups, kinds(len(groups)), strict=True):
            label = f"{task}, α = {rows['alpha'].iloc[0]:.2f}"
            above.plot(rows["draft_length"], rows["ms_per_token"], label=label, **look)
            above.plot(rows["draft_length"], rows["printed_ms"], label="_printed", **ring)
            below.plot(rows["draft_length"], rows["sequence_sd_ms"], **(look | {"marker": None}))
            if "simulated_sd_ms" in rows:
                bounds = rows["simulated_sd_ms_lo"], rows["simulated_sd_ms_hi"]
                intervals(below, rows["draft_length"], *bounds, look["color"])
                below.plot(rows["draft_length"], rows["simulated_sd_ms"], **(look | {"linestyle": "none"}))
        above.plot([], [], label="Table 1, K = 4", **ring)
        above.axhline(TARGET_MS, color=GUIDE, linewidth=0.7)
        above.annotate(
            "no draft", (8, TARGET_MS), (0, -2), textcoords="offset points", ha="right", va="top", fontsize=6.5
        )
        above.set(ylabel="Time of a token [ms]", ylim=(4, 15))
        speed = above.secondary_yaxis("right", functions=(_inverse, _inverse))
        speed.set_ylabel("Speedup (×)")
        speed.set_yticks([1, 1.25, 1.5, 2, 2.5, 3])
        figure.legend(
            *above.get_legend_handles_labels(), loc="outside upper center", ncols=2, columnspacing=0.8, handlelength=2.4
        )
        _loop(below, groups[0][1])
        letter([above, below], ["Mean", "Spread"])
        return figure


def _inverse(value: FloatArray) -> FloatArray:
    """Speedup of a time, or time of a speedup; an axis also asks for that of 0."""
    return TARGET_MS / np.maximum(value, 1e-9)


def _loop(axes: Axes, rows: pd.DataFrame) -> None:
    """The time of a loop on the right axis."""
    right = axes.twinx()
    right.spines["right"].set_visible(True)
    right.plot(rows["draft_length"], rows["loop_ms"], color=GUIDE, linewidth=0.9)
    third = rows.iloc[len(rows) // 3]
    right.annotate(
        "one loop", (third["draft_length"], third["loop_ms"]), (-2, 4), textcoords="offset points", ha="right",
        color="#555555", fontsize=6.5,
    )  # fmt: skip
    right.set(ylabel="Time of a loop [ms]", ylim=(0, 1.12 * rows["loop_ms"].max()))
    axes.set(xlabel="Draft length K [tokens]", ylabel="SD of 128 tokens' time [ms]")
    axes.set_ylim(bottom=0)
