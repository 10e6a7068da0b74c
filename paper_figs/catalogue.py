"""Every figure that `specdec figures` draws: a module each, with NAME, SOURCE, CAPTION, `data` and `draw`.

The first line of a module says what its figure shows.

`data()` gives the DataFrame behind the figure, `data(run)` that of a lab run, and `draw(table)` the Figure. A module
whose caption states results has `caption(table)` too.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any

from paper_figs.style import save, style

FIGURES: tuple[str, ...] = (
    "source_table",
    "leviathan_fig2",
    "leviathan_fig3",
    "leviathan_fig4",
    "leviathan_fig5",
    "leviathan_table1",
    "leviathan_table2",
    "chen_draft_length",
    "specinfer_width",
    "sequoia_size",
    "block_verification",
    "dsi_heatmaps",
    "serving_batch",
    "serving_load",
    "magicdec_context",
    "moe_verify",
    "published_predictions",
    "lab_predictions",
    "lab_waterfall",
    "sampler_power",
    "mutants_by_tests",
)
OF_A_RUN = ("lab_predictions", "lab_waterfall")
"""whose data are a lab run's"""


@dataclass(frozen=True)
class Made:
    """A figure in its files."""

    name: str
    source: str
    caption: str
    paths: dict[str, Path]
    """by suffix: 'png', 'pdf', 'csv'"""
    seconds: float


def module_of(name: str) -> Any:
    """The module of a figure.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in FIGURES:
        near = get_close_matches(name, FIGURES, n=3, cutoff=0.4)
        way_out = f"did you mean {', '.join(near)}?" if near else f"give one of {', '.join(FIGURES)}"
        raise ValueError(f"no figure named {name!r}; {way_out}")
    return import_module(f"paper_figs.{name}")


def title_of(name: str) -> str:
    """What a figure shows, in one line."""
    return str(module_of(name).__doc__).partition("\n")[0].rstrip(".")


def make(name: str, out_dir: Path, run: Path | None = None) -> Made:
    """Compute one figure's data, draw it, and write it three ways.

    Args:
        name: of `FIGURES`.
        out_dir: gets NAME.png, NAME.pdf and NAME.csv.
        run: a lab run's folder, for the figures in `OF_A_RUN`; None: the committed run.
    """
    began = time.perf_counter()
    module = module_of(name)
    table = module.data(run) if run is not None and name in OF_A_RUN else module.data()
    caption = module.caption(table) if hasattr(module, "caption") else module.CAPTION
    with style():
        paths = save(module.draw(table), table, out_dir, name, f"{caption} Source: {module.SOURCE}.")
    return Made(name, module.SOURCE, caption, paths, time.perf_counter() - began)


def make_all(names: Sequence[str], out_dir: Path, run: Path | None = None) -> Iterator[Made | tuple[str, str]]:
    """Make figures one by one; one that cannot be made is its name and what is wrong, and the others go on."""
    for name in names:
        try:
            yield make(name, out_dir, run)
        except (OSError, ValueError) as error:
            yield name, str(error)
