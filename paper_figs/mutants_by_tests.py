"""Which test catches which bug: wrong samplers against the usual test, the exact one, and families of hypotheses.

`python -m paper_figs.mutants_by_tests` checks every sampler again (ten minutes on one core) and writes the CSV that the
figure reads.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.losslessness import CORRECT, EXACT_TOLERANCE, FALSE_ALARM, MUTANTS, RULES, Rule, Sampler, check
from analysis.losslessness.selftest import first_token_chi_square, largest_exact_distance
from paper_figs.style import COLUMN_INCHES, GUIDE, INK, new_figure, palette, style
from sim.records import write_atomically

NAME = "mutants_by_tests"
SOURCE = "this lab, python -m paper_figs.mutants_by_tests (as specdec check-sampler --self-test)"
CAPTION = (
    "Correct samplers (top) and samplers that are wrong on purpose against tests. Dot: rejected; small ring: passed; "
    "blank: the test does not apply. 'Usual' is a chi-square of the first token alone with 200,000 rounds; 'exact' "
    "enumerates every path of a pure rule; the others are the check's own families of hypotheses, each alone, with "
    "262,144 rounds and a chance of 1e-9 that all of them together reject a correct sampler."
)
CSV = Path(__file__).parent / "data" / "mutants_by_tests.csv"
ROUNDS = 2**18
USUAL, EXACT = "usual", "exact"
FAMILIES = ("first token", "positions", "bonus", "pairs", "contexts", "rounds")
TESTS = (USUAL, EXACT, *FAMILIES)


def family(hypothesis: str) -> str:
    """The family that a hypothesis of `analysis.losslessness.check` belongs to."""
    match hypothesis:
        case "position 0":
            return "first token"
        case "bonus position" | "bonus token emitted":
            return "bonus"
        case _ if "type" in hypothesis:
            return "contexts"
        case _ if "round" in hypothesis or "lags" in hypothesis:
            return "rounds"
        case _ if "after" in hypothesis:
            return "pairs"
    return "positions"


def try_sampler(name: str, sampler: Sampler, rule: Rule | None, correct: bool, rounds: int, seed: int) -> pd.DataFrame:
    """One sampler against every test.

    Args:
        name: of the sampler.
        sampler: the sampler.
        rule: the same as pure functions, where it is one.
        correct: whether it is lossless.
        rounds: of the check.
        seed: of all draws.

    Returns:
        One row per test: sampler, correct, test, value (chi-square, total variation, or ln E), line (rejected above).
    """
    result = check(sampler, max_samples=rounds, seed=seed, stop_early=False)
    strongest = dict.fromkeys(FAMILIES, -np.inf)
    for test in result.tests:
        strongest[family(test.name)] = max(strongest[family(test.name)], test.log_e)
    rows = [(USUAL, *first_token_chi_square(sampler, np.random.default_rng([seed, 1])))]
    if rule is not None:
        rows.append((EXACT, largest_exact_distance(rule, seed=seed), EXACT_TOLERANCE))
    line = float(np.log(result.hypotheses / FALSE_ALARM))
    rows += [(name, float(min(log_e, 1e6)), line) for name, log_e in strongest.items()]
    table = pd.DataFrame(rows, columns=["test", "value", "line"])
    table.insert(0, "correct", correct)
    table.insert(0, "sampler", name)
    return table


def study(rounds: int = ROUNDS, seed: int = 0) -> pd.DataFrame:
    """Every correct sampler and every mutant; see `try_sampler`."""
    parts = [try_sampler(name, one, RULES.get(name), True, rounds, seed) for name, one in CORRECT.items()]
    parts += [try_sampler(name, one.sampler, one.rule, False, rounds, seed) for name, one in MUTANTS.items()]
    return pd.concat(parts, ignore_index=True)


def data(path: Path = CSV) -> pd.DataFrame:
    """The study's rows, with `rejects`."""
    table = pd.read_csv(path)
    return table.assign(rejects=table["value"] > table["line"])


def draw(table: pd.DataFrame) -> Figure:
    """A grid of dots and rings."""
    samplers = list(dict.fromkeys(table["sampler"]))
    correct = int(table.groupby("sampler", sort=False)["correct"].first().sum())
    gap = 0.6
    place = {name: y + gap * (y >= correct) for y, name in enumerate(samplers)}
    column = {name: x for x, name in enumerate(TESTS)}
    caught, passed = palette(2)
    with style():
        figure = new_figure(COLUMN_INCHES, 0.7 + 0.104 * len(samplers))
        axes = figure.add_subplot()
        looks: tuple[tuple[bool, dict[str, Any]], ...] = (
            (True, {"marker": "o", "markersize": 4.2, "color": caught}),
            (False, {"marker": "o", "markersize": 2.2, "markerfacecolor": "none", "color": passed}),
        )
        for rejects, look in looks:
            rows = table[table["rejects"] == rejects]
            x, y = rows["test"].map(column), rows["sampler"].map(place)
            axes.plot(x, y, linestyle="none", markeredgewidth=0.7, **look)
        axes.axhline(correct - 0.5 + gap / 2, color=GUIDE, linewidth=0.6)
        axes.axvline(1.5, color=GUIDE, linewidth=0.6)
        axes.set_yticks(list(place.values()), samplers, fontsize=6)
        axes.set_xticks(range(len(TESTS)), TESTS, rotation=90, fontsize=6)
        axes.xaxis.tick_top()
        axes.tick_params(length=0)
        axes.set(ylim=(max(place.values()) + 0.7, -0.7), xlim=(-0.6, len(TESTS) - 0.4))
        axes.spines[:].set_visible(False)
        handles = [
            Line2D([], [], linestyle="none", marker="o", markersize=4.2, color=caught, label="rejected"),
            Line2D(
                [],
                [],
                linestyle="none",
                marker="o",
                markersize=2.6,
                markerfacecolor="none",
                color=passed,
                label="passed",
            ),
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=2, labelcolor=INK)
        return figure


if __name__ == "__main__":
    found = study()
    write_atomically(CSV, partial(found.to_csv, index=False))
    print(f"{found['sampler'].nunique()} samplers -> {CSV}")
