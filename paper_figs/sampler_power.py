"""How small a deviation from the target the sampler test sees, by rounds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from scipy.stats import ncx2

from analysis.fit.acceptance import wilson
from analysis.losslessness.check import plan
from analysis.losslessness.evidence import log_e_value
from analysis.losslessness.power import FALSE_ALARM, POWER, detectable_tv, needed_g
from analysis.losslessness.tables import Table
from paper_figs.style import COLUMN_INCHES, GUIDE, intervals, kinds, letter, new_figure, style
from sim.theory import FloatArray

NAME = "sampler_power"
SOURCE = "this lab: analysis.losslessness (specdec check-sampler)"
CAPTION = (
    "Power of the losslessness test at a false-alarm rate of 1e-9. (a) Chance that a sampler is rejected whose tokens "
    "are off the target's law by a total variation, for one table of 8 tokens with N counts: computed (lines) and "
    "simulated (marks, 95% intervals, {trials} tables a point). (b) The total variation that is seen with 99.9% power: "
    "in the best-filled table, where every round counts, and at the worst position and pair of the whole check (γ = 4, "
    "8 tokens), against the rounds drawn."
)
VOCAB, GAMMA = 8, 4


def power(tv: FloatArray, counts: int, hypotheses: int) -> FloatArray:
    """Chance that a table with so many counts rejects; every cell off by the same factor, the hardest case to see."""
    line = needed_g(counts, 1, VOCAB, hypotheses)
    return np.asarray(ncx2.sf(line, VOCAB - 1, 4 * counts * np.square(tv)))


def simulated(tv: float, counts: int, hypotheses: int, trials: int, rng: np.random.Generator) -> tuple[int, int]:
    """How many of so many simulated tables reject; half of the tokens are too likely by one factor, half too rare."""
    law = np.full(VOCAB, 1 / VOCAB)
    shifted = law + tv * np.tile([2.0, -2.0], VOCAB // 2) / VOCAB
    drawn = rng.multinomial(counts, shifted, size=trials)
    line = np.log(hypotheses / FALSE_ALARM)
    return sum(log_e_value(Table("tokens", law[None], row[None])) > line for row in drawn), trials


def data(
    counts: Sequence[int] = (1_000, 10_000, 100_000, 1_000_000), points: int = 61, trials: int = 200, seed: int = 0
) -> pd.DataFrame:
    """Power curves, simulated points on them, then detectable deviations by rounds.

    Args:
        counts: of a table.
        points: of each curve.
        trials: simulated tables of each simulated point.
        seed: of the simulation.

    Returns:
        panel ('power', 'simulated', 'detectable'), series (counts, or 'table' and 'check'), x (total variation, or
        rounds), y (power, or total variation), y_lo, y_hi (95%, of simulated points), trials.
    """
    rng, hypotheses = np.random.default_rng(seed), plan(GAMMA, VOCAB).hypotheses
    rows: list[tuple[str, str, float, float, float, float, int]] = []
    for count in counts:
        seen = detectable_tv(count, 1, VOCAB, hypotheses)
        for tv in np.linspace(0, 1.2 * seen, points):
            rows.append(("power", str(count), tv, float(power(tv, count, hypotheses)), np.nan, np.nan, 0))
        for tv in np.array([0.5, 0.65, 0.75, 0.85, 1.0]) * seen:
            hits, total = simulated(float(tv), count, hypotheses, trials, rng)
            estimate = wilson(total, hits)
            rows.append(("simulated", str(count), tv, hits / total, estimate.lo, estimate.hi, total))
    for rounds in np.unique(np.logspace(3, 8, 26).astype(int)).tolist():
        found = detectable_tv(rounds, 1, VOCAB, hypotheses)
        rows.append(("detectable", "table", rounds, found, np.nan, np.nan, 0))
        rows.append(("detectable", "check", rounds, plan(GAMMA, VOCAB, rounds).detectable_tv, np.nan, np.nan, 0))
    return pd.DataFrame(rows, columns=["panel", "series", "x", "y", "y_lo", "y_hi", "trials"])


def caption(table: pd.DataFrame) -> str:
    """The caption with the run's own trials."""
    return CAPTION.format(trials=int(table["trials"].max()))


def draw(table: pd.DataFrame) -> Figure:
    """Power above, what is seen below."""
    with style():
        figure = new_figure(COLUMN_INCHES, 1.4 * COLUMN_INCHES)
        above, below = figure.subplots(2, 1)
        curves, points, seen = (table[table["panel"] == name] for name in ("power", "simulated", "detectable"))
        names = list(dict.fromkeys(curves["series"]))
        for name, look in zip(names, kinds(len(names)), strict=True):
            line, marks = curves[curves["series"] == name], points[points["series"] == name]
            above.plot(line["x"], line["y"], **(look | {"marker": None}))
            intervals(above, marks["x"], marks["y_lo"], marks["y_hi"], look["color"])
            above.plot(marks["x"], marks["y"], **(look | {"linestyle": "none"}))
            above.plot([], [], label=f"N = {int(name):,}", **look)
        above.set_xscale("log")
        above.xaxis.set_minor_formatter(NullFormatter())
        above.set(xlabel="Total variation from the target", ylabel="Chance of rejection", ylim=(-0.02, 1.05))
        above.set_xlim(0.3 * curves.loc[curves["y"] > 0.5, "x"].min(), curves["x"].max())
        figure.legend(*above.get_legend_handles_labels(), loc="outside upper center", ncols=2, handlelength=3.2)
        labels = {"table": "one table, every round counts", "check": "worst pair of the check"}
        for (name, label), look in zip(labels.items(), kinds(2), strict=True):
            rows = seen[(seen["series"] == name) & (seen["y"] < 1)]
            below.plot(rows["x"], rows["y"], label=label, markevery=5, **look)
        below.axhline(0.005, color=GUIDE, linewidth=0.7)
        below.annotate(
            "default of the check", (1.2e3, 0.005), (0, -2), textcoords="offset points", va="top", fontsize=6.5,
        )  # fmt: skip
        below.set_xscale("log")
        below.set_yscale("log")
        below.set(xlabel="Rounds drawn", ylabel=f"TV seen with {POWER:.1%} power")
        below.legend(loc="upper right", handlelength=3.2)
        letter([above, below], ["Power of one table", "What the whole check sees"])
        return figure
