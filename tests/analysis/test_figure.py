from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from paper_figs import distillation_curve
from paper_figs.predicted_vs_measured import draw, figure_of
from paper_figs.style import COLUMN_INCHES, palette

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def test_figure_is_written_three_ways_with_its_data(tmp_path: Path, comparison: pd.DataFrame) -> None:
    paths = draw(comparison, tmp_path, "Synthetic run. Source: simulated.")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"predicted_vs_measured.{s}" for s in ("csv", "pdf", "png")
    ]
    png = paths["png"].read_bytes()
    assert png.startswith(PNG_SIGNATURE)
    assert b"Source: simulated." in png
    # 300 dots an inch at a column's width: the header's first number.
    assert int.from_bytes(png[16:20], "big") == int(300 * COLUMN_INCHES)
    assert paths["pdf"].read_bytes().startswith(b"%PDF")
    data = pd.read_csv(paths["csv"])
    np.testing.assert_allclose(data["predicted"], comparison["predicted"])


def test_same_data_gives_the_same_bytes(tmp_path: Path, comparison: pd.DataFrame) -> None:
    first, second = (draw(comparison, tmp_path / name) for name in ("a", "b"))
    for suffix in ("png", "pdf", "csv"):
        assert first[suffix].read_bytes() == second[suffix].read_bytes()


def test_drawing_leaves_global_settings_alone(tmp_path: Path, comparison: pd.DataFrame) -> None:
    before = dict(mpl.rcParams)
    draw(comparison, tmp_path)
    assert dict(mpl.rcParams) == before


def test_one_prompt_without_an_interval_is_drawn(tmp_path: Path, comparison: pd.DataFrame) -> None:
    alone = comparison[comparison["held_out"]].head(1).assign(measured_lo=np.nan, measured_hi=np.nan)
    assert draw(alone, tmp_path)["png"].exists()


def test_what_cannot_be_drawn_is_refused(tmp_path: Path, comparison: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match="needs the columns"):
        draw(comparison.drop(columns="measured"), tmp_path)
    with pytest.raises(ValueError, match="no configurations to draw"):
        draw(comparison.iloc[:0], tmp_path)
    with pytest.raises(ValueError, match="holds 10 colours, got 12"):
        palette(12)
    crowd = pd.concat([comparison.head(1).assign(draft=f"draft-{i}") for i in range(13)])
    with pytest.raises(ValueError, match="12 drafts and 10 categories can be told apart in one figure, got 13 and 1"):
        draw(crowd, tmp_path)
    assert not list(tmp_path.iterdir())


def test_drafts_and_categories_are_told_apart_without_colour(comparison: pd.DataFrame) -> None:
    one = comparison.head(1)
    crowd = pd.concat([one.assign(draft=f"d{i}", category=f"c{j}") for i in range(12) for j in range(10)])
    marks = [line for line in figure_of(crowd).axes[0].get_lines() if line.get_linestyle() == "None"]
    looks = {(line.get_marker(), line.get_fillstyle(), line.get_markersize()) for line in marks}
    assert len(looks) == len(marks) == 120


def test_text_can_be_read_at_a_column_s_width(comparison: pd.DataFrame, tmp_path: Path) -> None:
    sizes = []

    def note(figure: Figure, *rest: object) -> dict[str, Path]:
        sizes.extend(text.get_fontsize() for text in figure.findobj(Text) if text.get_text().strip())
        return {}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("paper_figs.style.save", note)
        draw(comparison, tmp_path, "A caption of the length that a run has, with its device and threads. " * 3)
    assert min(sizes) >= 6


def test_a_distillation_curve_is_written_with_its_data(tmp_path: Path) -> None:
    curve = pd.DataFrame({"positions": [1000, 2000], "alpha_1": [0.2, 0.3], "alpha_2": [0.1, 0.2]})
    paths = distillation_curve.draw(curve, 1500, tmp_path, "Synthetic run.")
    assert paths["png"].read_bytes().startswith(PNG_SIGNATURE)
    pd.testing.assert_frame_equal(pd.read_csv(paths["csv"]), curve)
