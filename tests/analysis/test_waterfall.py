from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.diagnose import Diagnosis, diagnose
from paper_figs.style import COLUMN_INCHES, style
from paper_figs.waterfall import draw, plot, steps_of
from tests.analysis.planted import make_rounds, plant

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def diagnosis() -> Diagnosis:
    """A slow draft, and a verification that costs less than a plain step's forward."""
    rng = np.random.default_rng(0)
    return diagnose(make_rounds(replace(plant("slow_draft", rng), verify_ratio=0.97), rng), resamples=200)


def test_steps_lead_from_the_ideal_to_the_measured_speedup(diagnosis: Diagnosis) -> None:
    steps = steps_of(diagnosis)
    assert steps["kind"].tolist() == ["ideal", *["cause"] * len(diagnosis.causes), "gain", "measured"]
    inner = steps.iloc[1:-1]
    np.testing.assert_allclose(inner["speedup_before"].iloc[1:], inner["speedup_after"].iloc[:-1])
    assert inner["speedup_before"].iloc[0] == steps["speedup_after"].iloc[0] == diagnosis.ideal_speedup
    assert inner["speedup_after"].iloc[-1] == pytest.approx(steps["speedup_after"].iloc[-1])
    assert (inner["speedup_after_lo"] < inner["speedup_after"]).all()
    assert (inner["speedup_after"] < inner["speedup_after_hi"]).all()
    lost = diagnosis.split["total_ms_per_token"] - diagnosis.split["baseline_ms_per_token"] / diagnosis.ideal_speedup
    assert inner["ms_per_token"].sum() == pytest.approx(lost)
    assert inner["share"].sum() == pytest.approx(1)


def test_figure_is_written_three_ways_with_its_data(tmp_path: Path, diagnosis: Diagnosis) -> None:
    paths = draw(diagnosis, tmp_path, "Synthetic run. Source: simulated.")
    png = paths["png"].read_bytes()
    assert png.startswith(PNG_SIGNATURE)
    assert b"Source: simulated." in png
    assert int.from_bytes(png[16:20], "big") == int(300 * COLUMN_INCHES)
    assert paths["pdf"].read_bytes().startswith(b"%PDF")
    pd.testing.assert_frame_equal(pd.read_csv(paths["csv"]), steps_of(diagnosis), check_dtype=False)


def test_same_data_gives_the_same_bytes(tmp_path: Path, diagnosis: Diagnosis) -> None:
    first, second = (draw(diagnosis, tmp_path / name) for name in ("a", "b"))
    for suffix in ("png", "pdf", "csv"):
        assert first[suffix].read_bytes() == second[suffix].read_bytes()


def test_labels_give_shares_and_milliseconds_and_fit_the_column(diagnosis: Diagnosis) -> None:
    steps = steps_of(diagnosis)
    with style():
        figure = plot(steps)
        figure.canvas.draw()
        (axes,) = figure.axes
        texts = {text.get_text(): text.get_window_extent() for text in axes.texts}
        right = figure.bbox.x1
    first = diagnosis.causes[0]
    assert first.share is not None
    assert first.seconds_per_token is not None
    assert f"{first.share:.0%}, {1e3 * first.seconds_per_token:.3g} ms" in texts
    assert f"{diagnosis.speedup:.2f}×" in texts
    assert all(box.x1 <= right for box in texts.values())


def test_a_run_without_a_loss_has_two_bars(tmp_path: Path, diagnosis: Diagnosis) -> None:
    perfect = replace(diagnosis, causes=(), gains=(), speedup=5.0, ideal_speedup=5.0, speedup_ci=None)
    assert steps_of(perfect)["step"].tolist() == ["ideal", "measured"]
    assert draw(perfect, tmp_path)["png"].exists()


def test_without_a_speedup_there_is_no_waterfall(tmp_path: Path, diagnosis: Diagnosis) -> None:
    with pytest.raises(ValueError, match="which is not known; give a baseline"):
        draw(replace(diagnosis, speedup=None), tmp_path)
    assert not list(tmp_path.iterdir())
