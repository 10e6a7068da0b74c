"""The report of a run, import, plan, diagnosis or comparison, as one HTML file that needs nothing beside it."""

from __future__ import annotations

import base64
import hashlib
import platform
import unicodedata
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from analysis.html_report.document import Listing, Page, facts
from analysis.html_report.sources import read_page
from sim.records import write_atomically

PACKAGES = ("specdec-lab", "numpy", "scipy", "pandas")
HIDDEN = ("Cc", "Cf", "Cs")
"""categories of characters that a browser would not show, reorder text by, or could not encode"""


def write_html_report(source: Path, out: Path, seed: int = 0, command: str = "") -> Page:
    """Write the report of whatever is at a path, atomically.

    Args:
        source: a run folder, round table, import, engine's log, or JSON or CSV that one of the commands wrote.
        out: the HTML file.
        seed: of the bootstraps behind intervals that the source does not hold itself.
        command: what made the page, to be named on it.

    Returns:
        What the page holds.

    Raises:
        ValueError: the source is not one of these, or the page would overwrite it.
    """
    if out.is_dir() or (out.exists() and out.samefile(source)):
        raise ValueError(f"the page cannot be written over {out}; name another file with --out")
    page = read_page(source, seed)
    text = render(page, command)
    write_atomically(out, lambda part: Path(part).write_text(text, encoding="utf-8"))
    return page


def render(page: Page, command: str = "") -> str:
    """The page as HTML. All text is escaped; only the style and the script that ship with the project can take effect.

    Args:
        page: what to show.
        command: what made the page.
    """
    environment = _environment()
    style, script = (_asset(environment, f"report.{suffix}") for suffix in ("css", "js"))
    values = {"seed of its bootstraps": page.seed, "versions": ", ".join(versions())}
    own = [Listing("The command that makes this page", command)] if command else []
    return environment.get_template("report.html.j2").render(
        page=page,
        made=(*page.made, *own, facts("This page", values)),
        style=Markup(style),  # our own file
        script=Markup(script),  # our own file
        style_hash=_hash(style),
        script_hash=_hash(script),
        version=version_of("specdec-lab"),
    )


def versions() -> list[str]:
    """What computes a page, with versions."""
    return [f"Python {platform.python_version()}", *(f"{name} {version_of(name)}" for name in PACKAGES)]


def version_of(package: str) -> str:
    """An installed package's version; 'not installed' from a bare checkout."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def visible(value: Any) -> Any:
    """Text in which characters that hide, reorder or cannot be written are spelt out; everything else as it is."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return "".join(
        one if one in "\n\t" or unicodedata.category(one) not in HIDDEN else f"\\u{ord(one):04x}" for one in value
    )


@lru_cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("analysis.html_report"),
        autoescape=True,
        finalize=visible,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _asset(environment: Environment, name: str) -> str:
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]


def _hash(text: str) -> str:
    """What a content security policy names inline text by."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
