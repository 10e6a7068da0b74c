"""Where a sampler moved probability: observed minus target, token by token, for the strongest hypothesis of a check."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from analysis.losslessness import CheckResult
from analysis.losslessness.result import HypothesisResult
from paper_figs.style import COLUMN_INCHES, new_figure, palette, save_alone, style

NAME = "mass_moved"
MAX_TOKENS = 64
INTERVAL = 1.96


def moved(test: HypothesisResult) -> pd.DataFrame:
    """Per token: target and observed probability, their difference, and half the width of its 95% interval."""
    law, counts = np.array(test.law), np.array(test.counts)
    total = max(int(counts.sum()), 1)
    observed = counts / total
    return pd.DataFrame(
        {
            "token": np.arange(len(law)),
            "target": law,
            "observed": observed,
            "moved": observed - law,
            "half_width_95": INTERVAL * np.sqrt(law * (1 - law) / total),
            "count": counts,
        }
    )


def draw(result: CheckResult, out_dir: Path, caption: str = "") -> dict[str, Path]:
    """Draw the strongest hypothesis that counts tokens; bars beyond the interval are mass that moved.

    Args:
        result: of `analysis.losslessness.check`.
        out_dir: gets mass_moved.png, .pdf and .csv.
        caption: printed under the figure; by default the verdict.

    Returns:
        The paths by suffix: 'png', 'pdf', 'csv'.

    Raises:
        ValueError: no hypothesis of the result counted tokens.
    """
    test = next((test for test in result.tests if test.counts), None)
    if test is None:
        raise ValueError("the result has no hypothesis that counts tokens, so there is no mass to draw")
    table = moved(test)
    shown = table.loc[table["moved"].abs().sort_values(ascending=False, kind="stable").index[:MAX_TOKENS]].sort_index()
    gain, loss, band = palette(3)
    with style():
        figure = new_figure(COLUMN_INCHES, 0.8 * COLUMN_INCHES)
        axes = figure.add_subplot()
        place = np.arange(len(shown))
        change, half = shown["moved"].to_numpy(), shown["half_width_95"].to_numpy()
        axes.bar(place, 2 * half, bottom=-half, width=0.9, color=band, alpha=0.35, label="95% of a lossless sampler")
        axes.bar(place, change, width=0.5, color=[gain if value > 0 else loss for value in change])
        axes.axhline(0.0, color="#444444", linewidth=0.6)
        axes.set_xticks(place[:: max(1, len(place) // 16)], shown["token"].astype(str)[:: max(1, len(place) // 16)])
        axes.set(xlabel="Token", ylabel="Observed − target probability")
        axes.set_title(f"{test.name}, {test.design} design")
        axes.legend(loc="best")
        return save_alone(figure, table, out_dir, NAME, caption or result.verdict)
