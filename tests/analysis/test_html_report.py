"""The HTML report: one file that stands alone, that anyone can read and that nothing in its source can take over."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from html import unescape
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner

from analysis.html_report import render, visible, write_html_report
from analysis.html_report.document import Page, Prose, Section
from analysis.html_report.provenance import command_of
from analysis.html_report.sources import read_page
from sim.records import RunMetadata, read_rounds, write_metadata, write_rounds
from sim.sweep import run_sweep
from sim.sweep.reading import read_design
from specdec_lab import app
from tests.analysis.html_outline import Outline, attribute, inside
from tests.analysis.synthetic import MODEL_DRAFT

SCENARIOS = Path(__file__).parents[2] / "sim" / "scenarios"
SAMPLES = Path(__file__).parent / "engine_logs" / "samples"
STYLE = Path(__file__).parents[2] / "analysis" / "html_report" / "templates" / "report.css"
HOSTILE = (
    "</title><script>window.taken=1</script><img src=x onerror=window.taken=1>\"'><svg/onload=window.taken=1>{{7*7}}"
)
LEAST_CONTRAST = 4.5
"""WCAG 2.2, 1.4.3"""
SERVER = """
kind: serving
requests: 120
arrivals: {kind: poisson, rate: 20}
lengths: {prompt: {kind: constant, tokens: 100}, output: {kind: constant, tokens: 40}}
latency: {target: {kind: constant, seconds: 0.02}, draft: {kind: constant, seconds: 1e-3}}
acceptance: {kind: iid, alpha: 0.7}
policy: {kind: fixed, gamma: 3}
batch_limit: 8
"""
SWEEP = """
scenario:
  kind: single
  latency: {target: {kind: constant, seconds: 0.02}, draft: {kind: constant, seconds: 0.002}}
  acceptance: {kind: iid, alpha: 0.7}
  policy: {kind: fixed, gamma: 4}
  max_new_tokens: 60
  requests: 6
replications: 3
grid:
  acceptance.alpha: [0.5, 0.8, 1.5]
  policy.gamma: [1, 3]
"""


def printed(*words: str) -> str:
    """What `specdec WORDS` prints on stdout."""
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def sources(
    tmp_path_factory: pytest.TempPathFactory, run: tuple[pd.DataFrame, pd.DataFrame], comparison: pd.DataFrame
) -> dict[str, Path]:
    """One source of every kind, as the commands write them."""
    folder = tmp_path_factory.mktemp("sources")
    rounds, forwards = run
    settings: dict[str, Any] = {
        "drafts": [{"name": MODEL_DRAFT, "calibration_gamma": 5, "evaluation_gammas": [2, 3]}],
        "settings": {"temperature": 1.0, "top_k": None},
        "max_new_tokens": 28,
    }
    metadata = RunMetadata("real", 4, target="synthetic target", drafts=(MODEL_DRAFT,), threads=2, settings=settings)
    lab, measure = folder / "lab", folder / "measure"
    write_rounds(rounds, lab / "rounds.parquet")
    forwards.to_parquet(lab / "forwards.parquet", index=False)
    comparison.to_csv(lab / "comparison.csv", index=False)
    write_metadata(metadata, lab / "run.json")
    later = rounds[rounds["phase"] == "evaluation"]
    one = later[(later["gamma"] == 0) | ((later["draft"] == MODEL_DRAFT) & (later["gamma"] == 3))]
    write_rounds(one.drop(columns="phase").reset_index(drop=True), measure / "rounds.parquet")
    settings = {"gamma": 3, "batch": 1, "max_new_tokens": 28, "settings": {"temperature": 0.0, "top_p": 0.9}}
    write_metadata(RunMetadata("real", 7, target="t", drafts=(MODEL_DRAFT,), settings=settings), measure / "run.json")
    (folder / "server.yaml").write_text(SERVER)
    serve = ("serve-sim", str(folder / "server.yaml"), "--json")
    printed(*serve, "--out", str(folder / "server"))
    printed("simulate", "--alpha", "0.8", "--gamma", "3", "--cost-ratio", "0.1", "--rounds", "500", "--out",
            str(folder / "alone.parquet"))  # fmt: skip
    printed("import", str(SAMPLES / "vllm.log"), "--out", str(folder / "import"))
    plan = ("--target", "llama-3.1-8b", "--draft", "llama-3.2-1b", "--device", "h100", "--acceptance", "0.8,0.7,0.6")
    limits = ("--batches", "1,8", "--max-gamma", "4", "--max-batch", "16", "--contexts", "512,2048")
    pairs = {
        "plan": ("plan", *plan, *limits, "--price-per-hour", "3"),
        "diagnosis": ("diagnose", str(measure)),
        "log_diagnosis": ("diagnose", str(SAMPLES / "vllm.log")),
        "check": ("check", str(measure), "--against", str(measure)),
        "study": (*serve[:-1], "--baseline", "--replications", "2"),
    }
    for name, words in pairs.items():
        (folder / f"{name}.json").write_text(printed(*words, "--json"))
    records = comparison.astype(object).where(comparison.notna(), None).to_dict("records")
    scored = {"configurations": records, "mean_absolute_percentage_error": {}}
    (folder / "compared.json").write_text(json.dumps(scored, default=np.generic.item))
    shutil.copy(lab / "comparison.csv", folder / "comparison.csv")
    logs = {f"log_{path.stem}": path for path in map(SAMPLES.joinpath, ("sglang.log", "llama_server.log", "vllm.log"))}
    (folder / "sweep.yaml").write_text(SWEEP)
    swept = CliRunner().invoke(app, ["sweep", str(folder / "sweep.yaml"), "--out", str(folder / "sweep.parquet")])
    assert swept.exit_code == 1, swept.output  # one of its settings is wrong
    (folder / "dsi.json").write_text(printed("serve-sim", str(SCENARIOS / "dsi.yaml"), "--json"))
    names = ("lab", "measure", "server", "import", "alone.parquet", "compared.json", "comparison.csv", "sweep.parquet")
    names += ("dsi.json",)
    return {name: folder / name for name in (*names, *(f"{name}.json" for name in pairs))} | logs


@pytest.fixture(scope="module")
def pages(sources: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The report of every source."""
    folder = tmp_path_factory.mktemp("pages")
    found = {name: folder / f"{name}.html" for name in sources}
    for name, out in found.items():
        write_html_report(sources[name], out, command=f"specdec report {name}")
    return found


@pytest.fixture(scope="module")
def outlines(pages: dict[str, Path]) -> dict[str, Outline]:
    return {name: Outline(path.read_text()) for name, path in pages.items()}


def test_every_page_is_well_formed_and_its_links_lead_somewhere(outlines: dict[str, Outline]) -> None:
    for name, outline in outlines.items():
        assert outline.faults == [], name
        for element in outline.elements:
            for reference in (attribute(element, "aria-labelledby"), (attribute(element, "href") or "x")[1:]):
                if reference and attribute(element, "href") != "data:,":
                    assert set(reference.split()) <= outline.ids, name


def test_every_page_stands_alone(pages: dict[str, Path], outlines: dict[str, Outline]) -> None:
    for name, outline in outlines.items():
        for element in outline.elements:
            for kind in ("src", "href", "srcset", "data", "action", "poster", "xlink:href"):
                value = attribute(element, kind)
                assert value is None or value.startswith("#") or value == "data:,", (name, element["tag"], value)
        assert "url(" not in pages[name].read_text()
        assert "@import" not in pages[name].read_text()
        (policy,) = [one for one in outline.named("meta") if attribute(one, "http-equiv")]
        assert str(attribute(policy, "content")).startswith("default-src 'none';")
        assert "unsafe" not in str(attribute(policy, "content"))


def test_every_page_can_be_read_aloud(outlines: dict[str, Outline]) -> None:
    for name, outline in outlines.items():
        assert attribute(outline.named("html")[0], "lang") == "en"
        for landmark in ("header", "nav", "main", "footer", "h1", "title"):
            assert sum(not inside(one, "svg") for one in outline.named(landmark)) == 1, (name, landmark)
        levels = [int(str(one["tag"])[1]) for one in outline.named("h1", "h2", "h3", "h4")]
        assert levels[0] == 1, name
        assert all(later - before <= 1 for before, later in pairwise(levels)), name
        for picture in outline.named("svg", "img"):
            labelled = attribute(picture, "aria-labelledby") or attribute(picture, "aria-label")
            assert labelled or attribute(picture, "aria-hidden") == "true", name


def test_every_table_says_what_its_rows_and_columns_are(outlines: dict[str, Outline]) -> None:
    for name, outline in outlines.items():
        tables = outline.named("table")
        assert len(tables) >= 2, name
        for table in tables:
            cells = [one for one in outline.named("th") if inside_of(one, table)]
            assert {attribute(one, "scope") for one in cells} == {"col", "row"}, name
            assert all(str(one["text"]).strip() for one in cells if attribute(one, "scope") == "col"), name
            assert sum(inside_of(one, table) for one in outline.named("caption")) == 1
            columns = sum(attribute(one, "scope") == "col" for one in cells)
            width = {
                sum(cell["parent"] is row for cell in outline.named("th", "td"))
                for row in outline.named("tr")
                if inside_of(row, table)
            }
            assert width == {columns}, name


def inside_of(element: dict[str, object], ancestor: dict[str, object]) -> bool:
    parent = element["parent"]
    return isinstance(parent, dict) and (parent is ancestor or inside_of(parent, ancestor))


def test_every_value_of_a_plot_has_its_words_and_one_is_reached_by_tab(outlines: dict[str, Outline]) -> None:
    drawn = 0
    for name, outline in outlines.items():
        for plot in [one for one in outline.named("svg") if attribute(one, "class") == "plot"]:
            marks = [one for one in outline.named("g") if one["parent"] is plot and attribute(one, "role") == "img"]
            titles = [str(one["text"]) for one in outline.named("title") if inside_of(one, plot)]
            assert titles == [attribute(one, "aria-label") for one in marks], name
            assert [attribute(one, "tabindex") for one in marks] == ["0", *["-1"] * (len(marks) - 1)], name
            assert all(re.search(r"\d", title) for title in titles), name
            assert not any("nan" in title.split() for title in titles), name
            drawn += 1
    assert drawn > 20


def listings(outline: Outline) -> list[str]:
    """Commands, flags and files as they are copied from a page."""
    return [str(one["text"]) for one in outline.named("code")]


def test_a_page_says_what_its_source_says(
    sources: dict[str, Path], pages: dict[str, Path], outlines: dict[str, Outline]
) -> None:
    text = {name: unescape(path.read_text()) for name, path in pages.items()}
    code = {name: "\n".join(listings(outline)) for name, outline in outlines.items()}
    plan = json.loads(sources["plan.json"].read_text())
    for row in plan["batches"]:
        assert f"{row['speedup']:.4g} [" in text["plan.json"]
    assert plan["emit"]["vllm"] in code["plan.json"]
    diagnosis = json.loads(sources["diagnosis.json"].read_text())
    for cause in diagnosis["causes"]:
        assert cause["name"].replace("_", " ") in text["diagnosis.json"]
        assert cause["name"].replace("_", " ") in text["measure"]
    assert f"{diagnosis['speedup']:.4g}" in text["measure"]
    assert "specdec measure --target t --draft early-exit:20 --gamma 3 --batch 1" in code["measure"]
    assert "specdec lab --target 'synthetic target' --draft early-exit:20@5:2,3" in code["lab"]
    assert f"specdec diagnose {sources['lab']} --draft early-exit:20 --gamma 3" in code["lab"]
    assert "mean absolute percentage error" in text["lab"]
    assert "mean absolute percentage error" in text["compared.json"]
    assert text["compared.json"].count("<tr>") == text["comparison.csv"].count("<tr>")
    assert "arrivals:" in text["server"]
    assert "specdec report server" in code["server"]
    assert "Nothing fell by more than allowed" in text["check.json"]
    study = json.loads(sources["study.json"].read_text())
    assert "Beside the same server without speculation" in text["study.json"]
    assert f"{1e3 * study['baseline']['tpot_seconds']['p95']:.4g}" in text["study.json"]
    dsi = json.loads(sources["dsi.json"].read_text())
    assert f"Speedup {dsi['speedup']:.4g}" in text["dsi.json"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("plan.json", ["plan", "--price-per-hour", "3", "--json"]),
        ("diagnosis.json", ["diagnose", "--json"]),
        ("check.json", ["check", "--against"]),
        ("study.json", ["serve-sim", "--baseline", "--replications", "2", "--json"]),
        ("dsi.json", ["serve-sim", "--json"]),
        ("server", ["serve-sim", "--json", "--out"]),
        ("import", ["import", "--out"]),
    ],
)
def test_a_page_names_the_command_that_makes_its_source_again(
    sources: dict[str, Path], outlines: dict[str, Outline], tmp_path: Path, name: str, words: list[str]
) -> None:
    file = {"server": "run.json", "import": "import.json"}.get(name)
    recorded = json.loads((sources[name] / file if file else sources[name]).read_text())
    assert recorded["command"].split()[:2] == ["specdec", words[0]]
    assert set(words) <= set(recorded["command"].split())
    assert recorded["command"] in listings(outlines[name])
    if not file:  # what it printed before commands were recorded is read all the same
        (tmp_path / name).write_text(json.dumps({key: one for key, one in recorded.items() if key != "command"}))
        write_html_report(tmp_path / name, tmp_path / "old.html")
        assert not any(one.startswith("specdec") for one in listings(Outline((tmp_path / "old.html").read_text())))


def test_a_run_s_own_command_goes_before_what_its_settings_amount_to(sources: dict[str, Path], tmp_path: Path) -> None:
    write_rounds(read_rounds(sources["measure"] / "rounds.parquet"), tmp_path / "rounds.parquet")
    settings = {"gamma": 3, "rule": "block_verification", "settings": {"temperature": 1.0}, "prompts": ["a", "b"]}
    command = "specdec measure --draft early-exit:20 --prompts 'my own.jsonl' --rule block_verification --out x"
    known = {"command": command, "prompts_file": "my own.jsonl", "prompts_sha256": "ab12" * 16}
    write_metadata(RunMetadata("real", 7, drafts=(MODEL_DRAFT,), settings=settings, **known), tmp_path / "run.json")
    write_html_report(tmp_path, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert listings(Outline(text)) == [command]
    for said in ("my own.jsonl", "ab12" * 16, "block_verification"):
        assert f"<td>{said}" in text or f'">{said}</td>' in text


def test_the_design_on_a_sweep_s_page_is_the_sweep(
    sources: dict[str, Path], outlines: dict[str, Outline], tmp_path: Path
) -> None:
    outline = outlines["sweep.parquet"]
    text = unescape(str(outline.named("main")[0]["text"]))
    assert "18 points over acceptance.alpha (3 values) and policy.gamma (2 values), 3 replications each; 6 failed." in (
        str(outline.named("header")[0]["text"])
    )
    rows = pd.read_parquet(sources["sweep.parquet"])
    kept = rows[(rows["acceptance.alpha"] == 0.8) & (rows["policy.gamma"] == 3)]
    assert f"{kept['speedup'].mean():.4g} [" in text
    assert "alpha must be in [0, 1], got 1.5" in text
    design, command = listings(outline)[:2]
    assert command == "specdec sweep sweep.yaml --out sweep.parquet"
    (tmp_path / "sweep.yaml").write_text(design)
    shutil.copy(sources["sweep.parquet"], tmp_path / "sweep.parquet")
    again = run_sweep(read_design(tmp_path / "sweep.yaml"), tmp_path / "sweep.parquet", jobs=1)
    assert (again.points, again.done_before) == (18, 18)


def test_a_sweep_of_words_or_of_seeds_alone_has_a_page_too(tmp_path: Path) -> None:
    policies = [{"kind": "fixed", "gamma": gamma} for gamma in (1, 2)]
    for name, grid in (("words", {"policy": policies}), ("seeds", None)):
        (tmp_path / "design.yaml").write_text(json.dumps(yaml.safe_load(SWEEP) | {"grid": grid, "replications": 2}))
        run_sweep(read_design(tmp_path / "design.yaml"), tmp_path / f"{name}.parquet", jobs=1)
        page = read_page(tmp_path / f"{name}.parquet")
        assert [section.title for section in page.sections] == ["What the parameters do", "Every setting"]
    assert "nothing but seeds" in page.lead[0]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("suffix+int8", ["--draft", "suffix+int8", "--gamma", "6"]),
        ("suffix+int8+heuristic", ["--draft", "suffix+int8", "--controller", "heuristic", "--gamma", "6"]),
        ("int8+off_above:8:bandit", ["--draft", "int8", "--controller", "off_above:8:bandit", "--gamma", "6"]),
        ("distilled+tree:3,2,1", ["--draft", "distilled", "--tree", "3,2,1"]),
    ],
)
def test_the_command_of_a_run_names_its_draft_and_its_policy(name: str, words: list[str]) -> None:
    settings = {"gamma": 6, "settings": {"temperature": 0.0}}
    metadata = RunMetadata("real", 0, target="t", drafts=(name,), settings=settings)
    assert command_of(metadata).split()[4:] == [*words, "--temperature", "0.0", "--seed", "0", "--out", "FOLDER"]
    assert command_of(RunMetadata("sim", 0, settings=settings)) == ""


def test_a_folder_of_a_server_gives_the_numbers_of_the_command(sources: dict[str, Path]) -> None:
    out = sources["server"]
    found = json.loads(printed("serve-sim", str(out.parent / "server.yaml"), "--json"))
    from analysis.html_report.servers import measures

    values, intervals = measures(pd.read_parquet(out / "requests.parquet"))
    for metric, statistic in (("ttft_seconds", "mean"), ("tpot_seconds", "p90"), ("latency_seconds", "p99")):
        assert values[f"{metric}.{statistic}"] == found[metric][statistic]
        if f"{metric}.{statistic}" in intervals and found[metric].get(f"{statistic}_ci", [None])[0] is not None:
            assert intervals[f"{metric}.{statistic}"][0] == found[metric][f"{statistic}_ci"][0]
    for name in ("requests", "warm_up_requests", "seconds", "tokens_per_second", "block_efficiency", "accepted_share"):
        assert values[name] == pytest.approx(found[name])


def test_the_same_source_gives_the_same_page(sources: dict[str, Path], pages: dict[str, Path], tmp_path: Path) -> None:
    write_html_report(sources["measure"], tmp_path / "again.html", command="specdec report measure")
    assert (tmp_path / "again.html").read_bytes() == pages["measure"].read_bytes()


def hostile_sources(folder: Path, measure: Path) -> list[Path]:
    """Sources whose names, categories, log lines and metadata are attacks."""
    rounds = read_rounds(measure / "rounds.parquet").assign(category=HOSTILE)
    rounds["draft"] = rounds["draft"].where(rounds["gamma"] == 0, HOSTILE)
    run = folder / f"run {HOSTILE.replace('/', '∕')}"
    write_rounds(rounds, run / "rounds.parquet")
    write_metadata(
        RunMetadata("real", 0, target=HOSTILE, drafts=(HOSTILE,), settings={HOSTILE: HOSTILE}), run / "run.json"
    )
    log = folder / "<img src=x onerror=window.taken=1>.log"
    line = next(one for one in (SAMPLES / "vllm.log").read_text().splitlines() if "SpecDecoding metrics" in one)
    log.write_text(f"{line}\nSpecDecoding metrics: {HOSTILE} Mean acceptance length: 2.x{HOSTILE}\n" + line + "\n")
    return [run, log]


def test_nothing_in_a_source_becomes_markup(sources: dict[str, Path], tmp_path: Path) -> None:
    for number, source in enumerate(hostile_sources(tmp_path, sources["measure"])):
        out = tmp_path / f"{number}.html"
        write_html_report(source, out, command=f"specdec report {HOSTILE}")
        text, outline = out.read_text(), Outline(out.read_text())
        assert outline.faults == []
        assert len(outline.named("script")) == 1
        assert outline.named("img", "iframe", "object", "embed", "form", "base") == []
        for element in outline.elements:
            attributes = element["attrs"]
            assert isinstance(attributes, dict)
            assert not any(name.startswith("on") or name == "style" for name in attributes)
        assert "onerror" in text
        assert "{{7*7}}" in text


def test_a_document_with_attacks_in_every_text_becomes_no_markup(sources: dict[str, Path], tmp_path: Path) -> None:
    def poison(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: poison(one) for key, one in value.items()}
        if isinstance(value, list):
            return [poison(one) for one in value]
        return value + HOSTILE if isinstance(value, str) else value

    for name in ("plan.json", "diagnosis.json", "check.json"):
        path = tmp_path / name
        path.write_text(json.dumps(poison(json.loads(sources[name].read_text()))))
        write_html_report(path, tmp_path / "page.html")
        outline = Outline((tmp_path / "page.html").read_text())
        assert outline.faults == []
        assert outline.named("img") == []
        assert len(outline.named("script")) == 1


def test_characters_that_hide_or_break_are_spelt_out(tmp_path: Path) -> None:
    assert visible("a\x00b\x1b[31m\u202egnp.exe\udcff") == r"a\u0000b\u001b[31m\u202egnp.exe\udcff"
    assert visible("γ ×\n\t…") == "γ ×\n\t…"
    page = Page("run", "\udcff", ("\x00",), (Section("s", (Prose(("\u202e",)),)),), ())
    assert render(page).encode("utf-8")


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("nothing", None, "there is nothing at"),
        ("notes.txt", "hello", "no known format"),
        ("plan.json", '{"batches": [{}], "emit": {}, "crossover_batch": 1}', "is damaged: KeyError"),
        ("comparison.csv", "a,b\n1,2\n", "lacks the columns"),
        ("rows.jsonl", '{"round_index": 0, "gamma": 1, "accepted": 0, "emitted": 1}\n', "lacks the columns"),
    ],
)
def test_what_is_no_source_is_refused(tmp_path: Path, name: str, text: str | None, says: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=says) as refused:
        write_html_report(tmp_path / name, tmp_path / "out.html")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out.html").exists()


def test_an_empty_folder_and_a_page_over_its_source_are_refused(tmp_path: Path, sources: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="holds no run"):
        read_page(tmp_path)
    for out in (sources["plan.json"], tmp_path):
        before = sources["plan.json"].read_text()
        with pytest.raises(ValueError, match="cannot be written over"):
            write_html_report(sources["plan.json"], out)
        assert sources["plan.json"].read_text() == before


def test_the_command_writes_a_page_and_says_what_is_on_it(sources: dict[str, Path], tmp_path: Path) -> None:
    assert "specdec report docs/lab" in " ".join(printed("report", "--help").split())
    found = json.loads(printed("report", str(sources["plan.json"]), "--out", str(tmp_path / "p.html"), "--json"))
    assert found["kind"] == "plan"
    assert "For engines" in found["sections"]
    assert "page: " in printed("report", str(sources["plan.json"]), "--out", str(tmp_path / "p.html"))
    code = listings(Outline((tmp_path / "p.html").read_text()))
    assert code[-1] == f"specdec report {sources['plan.json']} --out {tmp_path / 'p.html'}"


def test_a_log_or_json_is_reported_from_standard_input(sources: dict[str, Path], tmp_path: Path) -> None:
    for name in ("plan.json", "log_vllm"):
        words = ["report", "-", "--out", str(tmp_path / name)]
        result = CliRunner().invoke(app, words, input=sources[name].read_bytes())
        assert result.exit_code == 0, result.output
        assert read_page(sources[name]).lead[0] in unescape((tmp_path / name).read_text())
        assert "/tmp" not in (tmp_path / name).read_text().replace(str(tmp_path), "")
    refused = CliRunner().invoke(app, ["report", "-", "--out", str(tmp_path / "none")])
    assert str(refused.exception) == "standard input is empty"


def luminance(colour: str) -> float:
    """WCAG 2.2's relative luminance of #rrggbb."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


def contrast(one: str, other: str) -> float:
    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def test_the_style_s_colours_contrast_enough_in_light_dark_and_print() -> None:
    assert contrast("#ffffff", "#767676") == pytest.approx(4.54, abs=0.01)  # the well-known darkest-grey example
    blocks = re.findall(r":root \{(.*?)\}", STYLE.read_text(), re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))
        for text in ("ink", "quiet", "link"):
            assert min(contrast(colours[text], colours[under]) for under in ("page", "panel")) >= LEAST_CONTRAST
        for series in (f"s{index}" for index in range(6)):
            assert contrast(colours[series], colours["panel"]) >= LEAST_CONTRAST


NARROW, A4, WIDE = 400, 680, 1200
"""pixels; A4 without margins of 15 mm"""
TEXT_CONTRAST = """() => {
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const under = (node) => {
    for (let one = node; one; one = one.parentElement) {
      const colour = rgb(getComputedStyle(one).backgroundColor);
      if (colour.length === 3 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const node of document.body.querySelectorAll("*")) {
    const own = [...node.childNodes].some((one) => one.nodeType === 3 && one.data.trim());
    if (!own || ["SCRIPT", "STYLE", "title"].includes(node.tagName) || !node.getClientRects().length) continue;
    const style = getComputedStyle(node);
    const colours = [rgb(node.closest("svg") ? style.fill : style.color), under(node)].map(light).sort((a, b) => b - a);
    found.push([(colours[0] + 0.05) / (colours[1] + 0.05), node.tagName]);
  }
  return found;
}"""


class TestInABrowser:
    """In headless Chromium; skipped where it or playwright is not installed."""

    @pytest.fixture(scope="class")
    @classmethod
    def browser(cls) -> Iterator[Any]:
        playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
        found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
        if found is None:
            pytest.skip("no Chromium is installed, so that pages were checked without a browser")
        with playwright.sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
            yield browser
            browser.close()

    def open(self, browser: Any, path: Path, width: int, scheme: str = "light") -> tuple[Any, list[str]]:
        """A page, and what it complains about or asks the network for."""
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        complaints: list[str] = []
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "request", lambda asked: complaints.append(asked.url) if not asked.url.startswith(("file", "data")) else 0
        )
        page.goto(path.as_uri())
        return page, complaints

    def test_every_page_fits_contrasts_and_is_silent(self, browser: Any, pages: dict[str, Path]) -> None:
        heights = "[...document.querySelectorAll('svg.plot text')].map(t => t.getBoundingClientRect().height)"
        kinds = ("lab", "measure", "server", "study.json", "dsi.json", "sweep.parquet", "plan.json", "diagnosis.json")
        for name in (*kinds, "import", "check.json"):
            page, complaints = self.open(browser, pages[name], NARROW)
            for width in (NARROW, WIDE):
                page.set_viewport_size({"width": width, "height": 900})
                assert page.evaluate("document.documentElement.scrollWidth") <= width, name
                assert min(page.evaluate(heights), default=99) >= 11, name  # a line of type of about 10 pixels
                if name == "plan.json":
                    assert page.screenshot(full_page=True)[:4] == b"\x89PNG"
            for scheme in ("light", "dark"):
                page.emulate_media(color_scheme=scheme)
                measured = page.evaluate(TEXT_CONTRAST)
                assert len(measured) > 30, name
                assert min(measured)[0] >= LEAST_CONTRAST, (name, scheme, min(measured))
            assert complaints == [], name
            page.close()

    def test_values_are_reached_by_keyboard_and_pointer(self, browser: Any, pages: dict[str, Path]) -> None:
        page, complaints = self.open(browser, pages["diagnosis.json"], WIDE)
        focused = "document.activeElement.getAttribute('aria-label')"
        labels = page.evaluate(
            "[...document.querySelector('svg.plot').querySelectorAll('.mark')].map(m => m.ariaLabel)"
        )
        for _ in range(40):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.classList.contains('mark')"):
                break
        assert page.evaluate(focused) == labels[0]
        assert page.inner_text("#tip") == labels[0]
        ring = "getComputedStyle(document.activeElement.querySelector('.halo')).stroke"
        assert page.evaluate(ring) != "rgba(0, 0, 0, 0)"
        page.keyboard.press("ArrowDown")
        assert page.evaluate(focused) == page.inner_text("#tip") == labels[1]
        page.keyboard.press("End")
        assert page.evaluate(focused) == labels[-1]
        box = page.evaluate("(() => { const b = document.getElementById('tip').getBoundingClientRect(); "
                            "return [b.left, b.right]; })()")  # fmt: skip
        assert 0 <= box[0] < box[1] <= WIDE
        page.keyboard.press("Tab")
        assert not page.is_visible("#tip")
        page.hover("svg.plot .mark >> nth=2")
        assert page.inner_text("#tip") == labels[2]
        assert complaints == []
        page.close()

    def test_print_shows_all_values_and_no_navigation(self, browser: Any, pages: dict[str, Path]) -> None:
        page, _ = self.open(browser, pages["plan.json"], WIDE, "dark")
        page.emulate_media(media="print", color_scheme="dark")
        page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
        assert not page.is_visible("nav")
        assert page.is_visible("details table")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert page.pdf()[:4] == b"%PDF"
        page.close()

    def test_every_page_fits_on_paper(self, browser: Any, pages: dict[str, Path]) -> None:
        for name in ("lab", "study.json", "sweep.parquet", "plan.json", "diagnosis.json", "import"):
            page, _ = self.open(browser, pages[name], A4)
            page.emulate_media(media="print")
            page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
            assert page.evaluate("document.documentElement.scrollWidth") <= A4, name
            assert not page.is_visible("button"), name
            page.close()

    def test_a_command_is_copied_as_it_is(
        self, browser: Any, pages: dict[str, Path], outlines: dict[str, Outline]
    ) -> None:
        page, complaints = self.open(browser, pages["plan.json"], NARROW)
        page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        buttons = page.locator(".listing button")
        assert buttons.count() == len(listings(outlines["plan.json"]))
        for number, text in enumerate(listings(outlines["plan.json"])):
            buttons.nth(number).focus()
            page.keyboard.press("Enter")
            buttons.nth(number).get_by_text("Copied").wait_for()
            assert page.evaluate("navigator.clipboard.readText()") == text
        assert complaints == []
        page.close()

    def test_hostile_names_and_logs_run_nothing(self, browser: Any, sources: dict[str, Path], tmp_path: Path) -> None:
        for number, source in enumerate(hostile_sources(tmp_path, sources["measure"])):
            out = tmp_path / f"{number}.html"
            write_html_report(source, out)
            page, complaints = self.open(browser, out, WIDE)
            assert page.evaluate("window.taken") is None
            assert complaints == []
            # a script that got in all the same would be stopped by the page's own policy
            page.evaluate("document.body.append(Object.assign(document.createElement('script'), {text: 'taken = 1'}))")
            assert page.evaluate("window.taken") is None
            page.close()
