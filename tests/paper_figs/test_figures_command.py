"""`specdec figures`, and the contact sheet."""

from __future__ import annotations

import json
import re
import shutil
import sys
from html import escape
from pathlib import Path

import pandas as pd
import pytest

import paper_figs
from paper_figs import catalogue, lab_predictions
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
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == list(catalogue.FIGURES)
    assert all(len(row["title"]) > 30 and row["source"] for row in rows)
    assert call(monkeypatch, "--list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(catalogue.FIGURES)  # one line each


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
    for row, name in zip(found["figures"], names, strict=True):
        assert f'id="{name}"' in page
        assert escape(row["caption"]) in page
        assert f'alt="{escape(catalogue.title_of(name))}"' in page
        assert not pd.read_csv(tmp_path / f"{name}.csv").empty
    # a caption that states results is filled in, and stands in the files too
    assert "{" not in re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    assert b"Mean absolute error" in (tmp_path / "lab_predictions.png").read_bytes()


def test_the_page_keeps_what_an_earlier_call_drew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("leviathan_table1", "leviathan_fig2"):
        assert call(monkeypatch, "--only", name, "--out", str(tmp_path), "--json") == 0
    page = (tmp_path / "index.html").read_text()
    assert re.findall(r'<figure id="(\w+)">', page) == ["leviathan_fig2", "leviathan_table1"]
    assert "2 figures" in page
    assert "as printed (diamonds)" in page


def test_without_out_the_page_is_where_the_figures_scripts_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, "--only", "leviathan_table1", "--json") == 0
    assert (tmp_path / "paper_figs" / "out" / "index.html").is_file()


def test_a_run_from_another_machine_is_drawn_with_its_device(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = tmp_path / "gpu run"
    shutil.copytree(lab_predictions.RUN, run)
    metadata = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(metadata | {"device": "NVIDIA H100 80GB HBM3"}))
    table = pd.read_csv(run / "comparison.csv")
    table.assign(error_percent=-10.0).to_csv(run / "comparison.csv", index=False)
    words = ("--only", "lab_predictions", "--only", "lab_waterfall", "--run", str(run), "--out", str(tmp_path / "out"))
    assert call(monkeypatch, *words, "--json") == 0
    caption = json.loads(capsys.readouterr().out)["figures"][0]["caption"]
    assert "on NVIDIA H100 80GB HBM3" in caption
    assert "Mean absolute error 10.0%" in caption


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
        (("--only", "zzz"), "no figure named 'zzz'; give one of source_table, leviathan_fig2, "),
        (("--list", "--all"), "give --all, --list, or --only"),
        (("--only", "leviathan_fig2", "--run", "docs/lab"), "--run is read by lab_predictions and lab_waterfall alone"),
        (("--all", "--out", __file__), f"--out must be a folder, but {__file__} is or lies below a file"),
        (("--all", "--out", f"{__file__}/below"), "--out must be a folder"),
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
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
