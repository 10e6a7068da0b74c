"""`specdec figures`, and the contact sheet."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pandas as pd
import pytest

import paper_figs
from paper_figs import catalogue
from specdec_lab import main


def call(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["specdec", "figures", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_every_figure_module_is_in_the_catalogue_with_its_source() -> None:
    folder = Path(paper_figs.__file__).parent
    modules = {path.stem for path in folder.glob("*.py") if re.search(r"^SOURCE = ", path.read_text(), re.MULTILINE)}
    assert modules == set(catalogue.FIGURES)
    for name in catalogue.FIGURES:
        module = catalogue.module_of(name)
        assert name == module.NAME
        assert len(module.CAPTION) > 60
        assert "arXiv" in module.SOURCE or "this lab" in module.SOURCE or "priced" in module.SOURCE


def test_list_names_every_figure(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "--list", "--json") == 0
    assert [row["name"] for row in json.loads(capsys.readouterr().out)] == list(catalogue.FIGURES)


def test_only_writes_three_files_and_a_self_contained_page(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    names = ("leviathan_fig2", "lab_predictions")
    only = [word for name in names for word in ("--only", name)]
    assert call(monkeypatch, *only, "--out", str(tmp_path), "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in found["figures"]] == list(names)
    assert found["failed"] == []
    files = {f"{name}.{suffix}" for name in names for suffix in ("png", "pdf", "csv")}
    assert {path.name for path in tmp_path.iterdir()} == files | {"index.html"}
    page = (tmp_path / "index.html").read_text()
    for link in re.findall(r'(?:href|src)="([^"]+)"', page):
        assert link.startswith("data:image/png;base64,") or (tmp_path / link).exists()
    for name in names:
        assert f'id="{name}"' in page
        assert not pd.read_csv(tmp_path / f"{name}.csv").empty
    # a caption that states results is filled in, and stands in the files too
    assert "{" not in re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    assert b"Mean absolute error" in (tmp_path / "lab_predictions.png").read_bytes()


def test_a_figure_that_cannot_be_made_does_not_stop_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ("--only", "lab_predictions", "--only", "leviathan_table1", "--run", str(tmp_path / "nowhere"))
    assert call(monkeypatch, *words, "--out", str(tmp_path / "out"), "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in found["figures"]] == ["leviathan_table1"]
    assert "holds no comparison.csv" in found["failed"][0]["error"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "give --all, --list, or --only"),
        (("--all", "--only", "leviathan_fig2"), "give --all, --list, or --only"),
        (("--only", "leviathan_fig9"), "did you mean leviathan_fig"),
        (("--only", "zzz"), "no figure named 'zzz'; see --list"),
    ],
)
def test_bad_use_is_one_line_and_exit_code_two(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    words: tuple[str, ...],
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, *words) == 2
    assert says in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
