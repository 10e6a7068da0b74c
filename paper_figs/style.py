"""One style for every figure: readable at a journal column, safe for colour-blind readers, the same in PDF and PNG."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from textwrap import wrap
from typing import Any

import pandas as pd
import seaborn
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from sim.records import write_atomically

COLUMN_INCHES = 85 / 25.4
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)), (0, (8, 1.5, 2, 1.5)), (0, (2, 2.5)))
GUIDE = "#8a8a8a"
INK = "#222222"
SETTINGS: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 7.0,
    "axes.labelsize": 7.5,
    "axes.titlesize": 7.5,
    "legend.fontsize": 6.5,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "axes.linewidth": 0.6,
    "axes.edgecolor": "#444444",
    "axes.labelcolor": "#222222",
    "text.color": "#222222",
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "pdf.fonttype": 42,
    "savefig.dpi": 300,
    "svg.hashsalt": "specdec-lab",
}


def palette(count: int) -> list[tuple[float, float, float]]:
    """Colours that colour-blind readers can tell apart.

    Raises:
        ValueError: more are asked for than the palette holds.
    """
    colours: list[tuple[float, float, float]] = seaborn.color_palette("colorblind")
    if count > len(colours):
        raise ValueError(f"the palette holds {len(colours)} colours, got {count}; draw fewer groups in one figure")
    # The seventh colour is a pale pink that thin intervals would lose, the eighth a grey kept for guides.
    order = [0, 1, 2, 3, 4, 9, 5, 8, 6, 7]
    return [colours[i] for i in order[:count]]


def kinds(count: int, marked: bool = True) -> list[dict[str, Any]]:
    """How to plot each of several series: no two share a colour, a line or (marked) a marker, so grey tells them apart.

    Raises:
        ValueError: there are more than lines.
    """
    if count > len(LINES):
        raise ValueError(f"{len(LINES)} lines can be told apart without colour, got {count}; draw fewer in one figure")
    found: list[dict[str, Any]] = []
    for colour, line, marker in zip(palette(count), LINES, MARKERS, strict=False):
        look = {"color": colour, "linestyle": line, "linewidth": 1.1}
        found.append(look | ({"marker": marker, "markersize": 3.2, "markeredgewidth": 0} if marked else {}))
    return found


def intervals(axes: Axes, x: ArrayLike, low: ArrayLike, high: ArrayLike, colour: Any) -> None:
    """Draw intervals as thin upright bars."""
    axes.vlines(x, low, high, color=colour, linewidth=0.7, alpha=0.85, zorder=1.5)


def letter(axes: Sequence[Axes], titles: Sequence[str]) -> None:
    """Title the panels of a figure (a), (b), ..., from the left edge."""
    for place, (one, title) in enumerate(zip(axes, titles, strict=True)):
        one.set_title(f"({chr(ord('a') + place)}) {title}", loc="left")


def save_alone(figure: Figure, data: pd.DataFrame, folder: Path, name: str, caption: str) -> dict[str, Path]:
    """Write a figure that no page captions, as `save` does, with its caption printed under it if there is one."""
    if caption:
        caption_below(figure, caption)
    return save(figure, data, folder, name, caption)


def caption_below(figure: Figure, caption: str) -> None:
    """Print a caption under a figure that stands alone, at the least size that can be read in a column."""
    figure.supxlabel("\n".join(wrap(caption, 72)), fontsize=6, color="#555555", x=0.5, linespacing=1.3)


@contextmanager
def style() -> Iterator[None]:
    """Draw inside this context; global settings are left as they were."""
    with rc_context(SETTINGS):
        yield


def new_figure(width_inches: float = COLUMN_INCHES, height_inches: float = COLUMN_INCHES) -> Figure:
    """A figure on the Agg canvas, made without pyplot and so without a window or global state."""
    figure = Figure(figsize=(width_inches, height_inches), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, data: pd.DataFrame, folder: Path, name: str, caption: str) -> dict[str, Path]:
    """Write the figure as PNG and PDF and its data as CSV, each atomically; the caption goes into the files' metadata.

    Returns:
        The paths by suffix: 'png', 'pdf', 'csv'.
    """
    paths = {suffix: folder / f"{name}.{suffix}" for suffix in ("png", "pdf", "csv")}
    # No creation date: the same data gives the same bytes.
    metadata: dict[str, Any] = {"png": {"Description": caption}, "pdf": {"Subject": caption, "CreationDate": None}}
    for suffix, fields in metadata.items():
        write_atomically(paths[suffix], partial(figure.savefig, format=suffix, metadata=fields))
    write_atomically(paths["csv"], lambda part: data.to_csv(part, index=False))
    return paths
