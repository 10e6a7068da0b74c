"""The data of every figure at a size that takes a moment."""

from __future__ import annotations

from typing import Any

import pandas as pd

from paper_figs import catalogue

SMALL: dict[str, dict[str, Any]] = {
    "chen_draft_length": {"sequences": 200},
    "sequoia_size": {"largest": 64, "max_depth": 12, "resamples": 20},
    "dsi_heatmaps": {"points": 9, "repeats": 20},
    "serving_load": {"rates": (8, 20), "policies": ("fixed 2", "off above 32"), "seconds": 4, "replications": 2},
    "sampler_power": {"counts": (1000, 10_000), "points": 21, "trials": 40},
}


def cheap_data(name: str) -> pd.DataFrame:
    """What the figure would draw, from fewer or smaller simulations."""
    table: pd.DataFrame = catalogue.module_of(name).data(**SMALL.get(name, {}))
    return table
