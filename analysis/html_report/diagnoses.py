"""The page of a diagnosis: what keeps the speedup below the ideal, cause by cause."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from analysis.html_report.document import (
    Page,
    Part,
    Prose,
    Section,
    Table,
    again,
    facts,
    number,
    shown,
    with_interval,
)
from analysis.html_report.plots import Row, Value, plot_rows

PARTS = {
    "draft": "drafting",
    "verify": "verification",
    "other": "the rest",
    "total": "speculative, all",
    "baseline": "plain step",
}


def diagnosis_page(found: Mapping[str, Any], name: str) -> Page:
    """The page of what `specdec diagnose --json` prints."""
    return Page(
        kind="diagnosis",
        title=f"Diagnosis of {found['draft'] or 'a log'}" + _at_gamma(found["gamma"]),
        lead=(_sentence(found["verdict"]),),
        sections=tuple(diagnosis_sections(found)),
        made=(
            facts(
                "What was diagnosed",
                {
                    "file": name,
                    "draft": found["draft"],
                    "gamma": found["gamma"],
                    "rounds": found["rounds"],
                    "requests": found["requests"],
                },
            ),
            *again(found),
        ),
    )


def diagnosis_sections(found: Mapping[str, Any]) -> list[Section]:
    """Causes, the parts of a round, the evidence and the warnings."""
    sections = [Section("What the speedup is lost to", tuple(_causes(found)))]
    split = _split(found["split"])
    if split:
        sections.append(Section("Where the time goes", split))
    evidence = tuple(_evidence(one) for one in (*found["causes"], *found["gains"]) if one["evidence"])
    if evidence:
        sections.append(Section("Evidence", evidence))
    if found["warnings"]:
        sections.append(Section("Warnings", (Prose(tuple(found["warnings"]), listed=True),)))
    return sections


def _causes(found: Mapping[str, Any]) -> list[Part]:
    causes = (*found["causes"], *found["gains"])
    rows = [
        (
            _words(one["name"]),
            "unknown" if one["share"] is None else with_interval(one["share"], one["share_ci"], 100),
            with_interval(one["seconds_per_token"], one["seconds_per_token_ci"], 1e3),
        )
        for one in causes
    ]
    if not rows:
        return [Prose(("No cause is named: what was measured does not tell.",))]
    head = ("cause", "share of the loss, %", "milliseconds per token")
    table = Table("Causes, largest first, with 95% intervals", head, tuple(rows))
    # a list, since sentences in a table's last column lie out of sight on a phone
    remedies = Prose(tuple(f"{_words(one['name'])}: {one['remedy']}" for one in causes), listed=True)
    waterfall = plot_rows(
        "From the ideal speedup to the measured one",
        "speedup (×), log scale",
        _waterfall(found),
        reference=1.0,
        logarithmic=True,
        note="A cause divides the speedup by the same factor wherever it stands; its whiskers are the 95% interval "
        "given the step before.",
    )
    return [*([] if waterfall is None else [waterfall]), table, remedies]


def _waterfall(found: Mapping[str, Any]) -> list[Row]:
    """The ideal, a step for every cause and gain, and the measured speedup; empty where that is not known."""
    if found["speedup"] is None or found["ideal_speedup"] is None:
        return []
    before = float(found["ideal_speedup"])
    rows = [Row("ideal", (Value(before),), 1.0)]
    for one in (*found["causes"], *found["gains"]):
        low, high = one["log_loss_ci"] or (None, None)
        after = Value(
            before * math.exp(-one["log_loss"]),
            None if high is None else before * math.exp(-high),
            None if low is None else before * math.exp(-low),
        )
        rows.append(Row(_words(one["name"]), (after,), before))
        before = after.value
    if not math.isclose(before, found["speedup"], rel_tol=1e-6):
        rows.append(Row("not told apart", (Value(found["speedup"]),), before))
    low, high = found["speedup_ci"] or (None, None)
    return [*rows, Row("measured", (Value(found["speedup"], low, high),), 1.0)]


def _split(split: Mapping[str, Any]) -> tuple[Part, ...]:
    known = {
        label: (split[f"{key}_ms_per_token"], split[f"{key}_ms_per_token_ci"])
        for key, label in PARTS.items()
        if split[f"{key}_ms_per_token"] is not None
    }
    rows = [Row(label, (Value(value, *(bounds or ())),), 0.0) for label, (value, bounds) in known.items()]
    plot = plot_rows("Milliseconds of each emitted token", "milliseconds per token", rows, from_zero=True)
    return () if plot is None else (plot,)


def _evidence(cause: Mapping[str, Any]) -> Table:
    rows = []
    evidence = cause["evidence"]
    for name, value in evidence.items():
        if name.endswith("_ci") and name.removesuffix("_ci") in evidence:
            continue
        bounds = evidence.get(f"{name}_ci")
        cell = with_interval(value, bounds) if bounds and isinstance(value, int | float) else shown(value)
        rows.append((_words(name), cell))
    head = ("number", "value [95% interval]" if any(name.endswith("_ci") for name in evidence) else "value")
    return Table(f"Numbers behind {_words(cause['name'])}", head, tuple(rows))


def _words(name: str) -> str:
    return name.replace("_", " ")


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _at_gamma(gamma: float | Sequence[float] | None) -> str:
    return "" if gamma is None else f" at γ = {number(gamma) if isinstance(gamma, int | float) else shown(gamma)}"
