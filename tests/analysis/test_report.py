from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from analysis.compare import score
from analysis.fit import Calibration
from analysis.report import write_report
from sim.records import RunMetadata
from sim.theory import source_table

METADATA = RunMetadata(
    "sim",
    0,
    target="synthetic target",
    drafts=("early-exit:20",),
    settings={"max_new_tokens": 28, "prompts": {"calibration": list(range(99))}},
)


def test_report_holds_every_section_and_the_score(
    tmp_path: Path, calibration: Calibration, comparison: pd.DataFrame
) -> None:
    path = write_report(tmp_path, METADATA, calibration, comparison, tmp_path / "figure.png")
    text = path.read_text()
    assert path == tmp_path / "report.md"
    assert [line for line in text.splitlines() if line.startswith("#")] == [
        "# Predicted and measured speedup",
        "## Held-out configurations",
        "## Where it misses",
        "## Calibrated configurations",
        "## Acceptance",
        "## Latency",
        "## The rest of a round",
        "## The source's speedup table",
        "## Machine and run",
    ]
    result = score(comparison)
    assert f"**{result.mean_absolute_percentage_error.value:.1f}%**" in text
    assert result.worst_config in text
    assert "(figure.png)" in text
    assert "synthetic target" in text
    assert "| prompts | see run.json |" in text
    for exact in source_table()["exact"]:
        assert f"{exact:.2f}" in text


def test_report_tables_are_rectangular(tmp_path: Path, calibration: Calibration, comparison: pd.DataFrame) -> None:
    lines = write_report(tmp_path, METADATA, calibration, comparison).read_text().splitlines()
    tables: list[list[str]] = [[]]
    for line in lines:
        if line.startswith("|"):
            tables[-1].append(line)
        elif tables[-1]:
            tables.append([])
    widths = [{row.replace("\\|", "").count("|") for row in table} for table in tables if table]
    assert len(widths) == 7
    assert all(len(width) == 1 for width in widths)
    assert not any("nan" in line.split("| ") for line in lines)


def test_a_miss_is_told_in_words_with_its_part(
    tmp_path: Path, calibration: Calibration, comparison: pd.DataFrame
) -> None:
    missed = comparison.copy()
    row = missed.index[missed["held_out"]][0]
    missed.loc[row, ["predicted_lo", "predicted_hi", "covered"]] = [9.0, 9.5, False]
    missed.loc[row, ["log_error", "log_error_verify_seconds"]] = [0.4, 0.39]
    text = write_report(tmp_path, METADATA, calibration, missed).read_text()
    assert f"`{missed.loc[row, 'config']}`: predicted" in text
    assert "too high, of which +39.0 of +40.0 log-percent is verify time" in text


def test_a_report_that_fails_leaves_the_old_one(
    tmp_path: Path, calibration: Calibration, comparison: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_report(tmp_path, METADATA, calibration, comparison)
    before = path.read_text()

    def fail(self: Path, text: str) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(OSError, match="disk full"):
        write_report(tmp_path, METADATA, calibration, comparison)
    assert path.read_text() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.md"]


def test_a_report_without_held_out_configurations_is_refused(
    tmp_path: Path, calibration: Calibration, comparison: pd.DataFrame
) -> None:
    with pytest.raises(ValueError, match="no configurations with held_out=True"):
        write_report(tmp_path, METADATA, calibration, comparison[~comparison["held_out"]])
    assert not list(tmp_path.iterdir())
