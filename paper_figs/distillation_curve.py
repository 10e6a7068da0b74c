"""What more training brings a draft head: acceptance on a held-out shard against the positions it has learnt from."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from paper_figs.style import COLUMN_INCHES, kinds, new_figure, save_alone, style

NAME = "distillation_curve"


def draw(curve: pd.DataFrame, unique_positions: int, out_dir: Path, caption: str = "") -> dict[str, Path]:
    """Draw the overlap of each drafted token over the positions seen; a line marks where samples begin to repeat.

    Args:
        curve: columns positions and alpha_1, alpha_2, ...: mean sum min(p, q) of the k-th drafted token at
            temperature 1, the k - 1 before it drafted by the head itself.
        unique_positions: sampled positions; beyond them the same ones are seen again.
        out_dir: gets distillation_curve.png, .pdf and .csv.

    Returns:
        The paths by suffix: 'png', 'pdf', 'csv'.
    """
    names = sorted(str(name) for name in curve.columns if str(name).startswith("alpha_"))
    with style():
        figure = new_figure(COLUMN_INCHES, 0.8 * COLUMN_INCHES)
        axes = figure.add_subplot()
        for name, look in zip(names, kinds(len(names)), strict=True):
            place = name.removeprefix("alpha_")
            axes.plot(curve["positions"] / 1e6, curve[name], label=f"drafted token {place}", **look)
        axes.axvline(unique_positions / 1e6, color="#444444", linewidth=0.6, linestyle="--")
        axes.annotate(
            "every sample\nseen once",
            (unique_positions / 1e6, axes.get_ylim()[0]),
            xytext=(-3, 3),
            textcoords="offset points",
            fontsize=6,
            ha="right",
        )
        axes.set(xlabel="Training positions seen [millions of tokens]", ylabel="Acceptance rate α, held out")
        axes.set_xlim(left=0)
        axes.legend(loc="best")
        return save_alone(figure, curve, out_dir, NAME, caption)
