"""A lab run: speedups predicted from calibration beside those measured on held-out configurations."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from analysis.compare import COMPARISON_COLUMNS, score
from paper_figs.predicted_vs_measured import figure_of
from sim.records import read_metadata

NAME = "lab_predictions"
SOURCE = "this lab, specdec lab (docs/lab unless another run folder is given)"
CAPTION = (
    "Predicted against measured speedup of {configs} held-out configurations of {target} on {device}: draft lengths "
    "and prompts that calibration never saw. Bars: 95% intervals, predictive ones upright. Mean absolute error "
    "{error:.1f}% [{low:.1f}, {high:.1f}]; {coverage:.0%} of the measured values lie in the predicted intervals."
)
PACKAGED = Path(__file__).parent / "data" / "lab"
RUN = PACKAGED if PACKAGED.is_dir() else Path(__file__).parents[1] / "docs" / "lab"
"""the committed run: an installed wheel carries it beside the other data"""


def data(run: Path = RUN) -> pd.DataFrame:
    """The held-out rows of a run's comparison, with the run's target and device.

    Args:
        run: a folder that `specdec lab` wrote.

    Raises:
        ValueError: the folder holds no comparison, or none of held-out configurations.
    """
    path = run / "comparison.csv"
    if not path.is_file():
        raise ValueError(
            f"{run} holds no comparison.csv; give --run a folder of `specdec lab`, or `specdec compare` it"
        )
    metadata = read_metadata(run / "run.json")
    again = f"`specdec compare {run}` writes it again"
    try:
        table = pd.read_csv(path)
    except ValueError as error:
        raise ValueError(f"{path} is not CSV ({error}); {again}") from error
    missing = [name for name in (*COMPARISON_COLUMNS, "error_percent", "covered") if name not in table]
    if missing:
        raise ValueError(f"{path} lacks the columns {', '.join(missing)}; {again}")
    held_out = table[table["held_out"].astype(bool)]
    if held_out.empty:
        raise ValueError(f"{path} holds no held-out configuration; measure draft lengths that calibration leaves out")
    return held_out.reset_index(drop=True).assign(target=metadata.target, device=metadata.device)


def caption(table: pd.DataFrame) -> str:
    """The caption with the run's own score."""
    found = score(table)
    error = found.mean_absolute_percentage_error
    return CAPTION.format(
        configs=found.configs, target=table["target"].iloc[0], device=table["device"].iloc[0], error=error.value,
        low=error.lo, high=error.hi, coverage=found.coverage.value,
    )  # fmt: skip


def draw(table: pd.DataFrame) -> Figure:
    """A mark a configuration, as `specdec lab` draws them."""
    return figure_of(table)
