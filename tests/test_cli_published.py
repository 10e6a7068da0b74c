"""The command line's `specdec validate-published`: what scripts rely on."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pandas as pd
import pytest

from specdec_lab import main

COMMITTED = Path(__file__).parents[1] / "paper_figs" / "data" / "published_speedups.csv"


def call(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """Run `specdec validate-published WORDS` and return its exit code."""
    monkeypatch.setattr(sys, "argv", ["specdec", "validate-published", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_json_holds_the_errors_of_every_source(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert call(monkeypatch, "--json", "--out", str(tmp_path / "rows.csv")) == 0
    result = json.loads(capsys.readouterr().out)
    sources = {source["source"]: source for source in result["sources"]}
    magicdec = sources["arXiv:2408.11049 MagicDec ICLR 2025"]
    assert {"rows", "mape", "bias", "max_error", "formula_mape"} <= set(magicdec)
    assert magicdec["rows"] == magicdec["predicted"] == 45
    assert magicdec["mape"] < 3 < magicdec["formula_mape"]
    assert sources["arXiv:2302.01318 Chen et al. 2023"]["mape"] is None
    rows = pd.read_csv(tmp_path / "rows.csv")
    assert len(rows) == result["rows"] == sum(source["rows"] for source in result["sources"])
    assert rows["predicted"].notna().sum() == result["predicted"]
    assert rows[["predicted", "reason"]].notna().sum(axis=1).eq(1).all()
    assert rows["lo"].le(rows["hi"]).sum() == result["predicted"]


def test_a_table_for_people_names_the_reasons(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    table = pd.read_csv(COMMITTED, dtype=str).iloc[[0, 57]]
    table.to_csv(tmp_path / "mine.csv", index=False)
    assert call(monkeypatch, str(tmp_path / "mine.csv")) == 0
    shown = capsys.readouterr().out
    assert "1 of 2 rows predicted" in shown
    assert "alpha, tau: neither is given" in shown
    assert "2.5%" in shown  # the first row's error
    assert [path.name for path in tmp_path.iterdir()] == ["mine.csv"]


def test_a_broken_row_is_one_line_and_exit_code_two(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    table = pd.read_csv(COMMITTED, dtype=str)
    table.loc[4, "c"] = "cheap"
    table.to_csv(tmp_path / "mine.csv", index=False)
    assert call(monkeypatch, str(tmp_path / "mine.csv"), "--out", str(tmp_path / "rows.csv")) == 2
    error = capsys.readouterr().err
    assert "row 5, column c: must be a number or blank, got 'cheap'" in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "rows.csv").exists()
    assert call(monkeypatch, str(tmp_path / "nowhere.csv")) == 2
    assert "nowhere.csv is not a readable CSV" in capsys.readouterr().err
