"""The page of an engine's log: what it says about acceptance, over time and by position, and whether it agrees."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.engine_logs import read_log
from analysis.fit.acceptance import wilson
from analysis.html_report.document import Listing, Page, Part, Plot, Prose, Section, Table, again, facts, number
from analysis.html_report.plots import Row, Series, Value, plot_rows, plot_xy

MOST_POINTS = 120
"""of a plot over time; more lines of a log are added up in so many stretches"""
PER_REQUEST = {
    "mean_acceptance_length": "tokens per round",
    "output_tokens": "output tokens",
    "rounds": "rounds",
    "drafted": "drafted tokens",
    "accepted": "accepted tokens",
    "seconds": "seconds",
    "eval_seconds": "seconds of decoding",
    "first_token_seconds": "seconds to the first token",
    "seconds_per_round": "seconds per round",
}
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


def log_page(path: Path) -> Page:
    """The page of a log.

    Raises:
        ValueError: no known engine wrote it.
    """
    log = read_log(path)
    tables = {name: getattr(log, name) for name in ("series", "requests")}
    return import_page(
        log.summary() | {"files": [path.name]},
        {name: one for name, one in tables.items() if one is not None},
        path.name,
    )


def imported_page(folder: Path) -> Page:
    """The page of a folder that `specdec import --out` wrote.

    Raises:
        ValueError: import.json is damaged.
    """
    try:
        summary = json.loads((folder / "import.json").read_text(encoding="utf-8"))
        paths = {name: folder / f"{name}.parquet" for name in ("series", "requests")}
        tables = {name: pd.read_parquet(path) for name, path in paths.items() if path.exists()}
        return import_page(summary, tables, folder.name)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder} is no readable import: {error}; `specdec import LOG --out` writes one") from error


def import_page(summary: Mapping[str, Any], tables: Mapping[str, pd.DataFrame], name: str) -> Page:
    """The page of an import.

    Args:
        summary: as `ImportedLog.summary` gives it.
        tables: the log's series and requests, where it has them.
        name: of the file or folder.
    """
    mean, rounds = summary["mean_acceptance_length"], summary["rounds"]
    lead = f"{number(mean)} tokens a round" if mean is not None else "Its mean acceptance length is not known"
    lead += "" if rounds is None else f", over {rounds:,} rounds"
    failed = sum(one["failed"] > 0 for one in summary["checks"])
    agree = "all of its numbers that can be checked agree" if not failed else f"{failed} identities fail"
    agree = agree if summary["checks"] else "none of its numbers can be checked against another"
    sections = [
        Section("Acceptance", tuple(_acceptance(summary))),
        *_over_time(tables.get("series")),
        *_requests(tables.get("requests")),
        Section("Do its numbers agree?", tuple(_checks(summary))),
    ]
    made = facts(
        "What was imported",
        {
            "name": name,
            "files": ", ".join(summary["files"]),
            "engine": summary["engine"],
            "format": summary["format"],
            "detail": summary["level"],
        },
    )
    return Page(
        kind="import",
        title=f"{summary['engine']}: {name}",
        lead=(f"{lead}; {agree}.",),
        sections=tuple(sections),
        made=(made, *([Prose(tuple(summary["notes"]), listed=True)] if summary["notes"] else []), *again(summary)),
    )


def _acceptance(summary: Mapping[str, Any]) -> list[Part]:
    values = {
        "rounds": summary["rounds"],
        "drafted tokens": summary["drafted"],
        "accepted tokens": summary["accepted"],
        "emitted tokens": summary["emitted"],
        "tokens per round (a mean over rounds)": summary["mean_acceptance_length"],
        "its mean over requests": summary["mean_acceptance_length_per_request"],
        "draft length": summary["gamma"],
        "seconds spent drafting": summary["draft_seconds"],
    }
    parts: list[Part | None] = [facts("Sums and means", values), acceptance_plot(summary), _histogram(summary)]
    return [one for one in parts if one is not None]


def acceptance_plot(summary: Mapping[str, Any], tested: Sequence[float] | None = None, of: str = "") -> Plot | None:
    """Acceptance by position, with Wilson's intervals where the rounds are known; None where there is none.

    Args:
        summary: marginal_acceptance, conditional_acceptance and rounds.
        tested: rounds that got to each position; left out, all that accepted the position before it.
        of: what it is the acceptance of, for the title.
    """
    marginal, conditional, rounds = (
        summary[name] for name in ("marginal_acceptance", "conditional_acceptance", "rounds")
    )
    if not marginal:
        return None
    if tested is None:
        tested = [rounds * rate for rate in (1.0, *marginal)] if rounds else [0.0] * len(marginal)
    before = [(i, rate) for i, rate in enumerate(conditional or ()) if rate is not None]
    lines = [
        Series("all up to it", tuple((Value(i + 1), _rate(rate, rounds)) for i, rate in enumerate(marginal))),
        Series("given the one before", tuple((Value(i + 1), _rate(rate, tested[i])) for i, rate in before)),
    ]
    note = "Whiskers are Wilson's 95% intervals, as if rounds were independent." if rounds else ""
    title = f"Acceptance by position: {of}" if of else "Acceptance by position"
    return plot_xy(title, ("position in the draft", "chance"), lines, note=note, from_zero=True)


def _rate(rate: float, tested: float | None) -> Value:
    """A rate and Wilson's interval; NaN, which no engine knows, stays NaN."""
    if not tested or rate != rate:
        return Value(rate)
    found = wilson(tested, min(rate, 1.0) * tested)
    return Value(rate, found.lo, found.hi)


def _histogram(summary: Mapping[str, Any]) -> Plot | None:
    counts = summary["histogram"]
    if not counts or not sum(counts):
        return None
    rows = [Row(f"{j} accepted", (_rate(count / sum(counts), sum(counts)),), 0.0) for j, count in enumerate(counts)]
    return plot_rows("Accepted tokens of a round", "share of rounds", rows, from_zero=True)


def _over_time(series: pd.DataFrame | None) -> list[Section]:
    """Tokens per round over the log, by stretches of lines."""
    if series is None or "rounds" not in series or not {"emitted", "accepted"} & set(series):
        return []
    rounds = pd.to_numeric(series["rounds"])
    emitted = pd.to_numeric(series["emitted"] if "emitted" in series else series["rounds"] + series["accepted"])
    known = (rounds > 0) & emitted.notna()
    timed = "elapsed_seconds" in series and series.loc[known, "elapsed_seconds"].notna().all()
    at = series["elapsed_seconds"] if timed else pd.Series(np.arange(1, len(series) + 1), index=series.index)
    lines = pd.DataFrame({"at": at, "rounds": rounds, "emitted": emitted})[known].astype(np.float64)
    if len(lines) < 2:
        return []
    found = lines.groupby(np.arange(len(lines)) * min(MOST_POINTS, len(lines)) // len(lines))
    total, where = found.sum(), found["at"].last()
    points = zip(where, total["emitted"] / total["rounds"], strict=True)
    plot = plot_xy(
        "Tokens per round over the log",
        ("seconds" if timed else "line", "tokens per round"),
        [Series("", tuple((Value(float(x)), Value(float(y))) for x, y in points))],
        note=f"{len(lines):,} lines in {len(total)} stretches." if len(lines) > len(total) else "",
    )
    return [] if plot is None else [Section("Over time", (plot,))]


def _requests(requests: pd.DataFrame | None) -> list[Section]:
    """How requests differ."""
    if requests is None or not len(requests):
        return []
    rows = []
    for name, label in PER_REQUEST.items():
        if name in requests and requests[name].notna().any():
            values = pd.to_numeric(requests[name], errors="coerce").dropna()
            rows.append((label, str(len(values)), *(number(float(values.quantile(q))) for q in QUANTILES)))
    head = ("of a request", "requests", "least", "5%", "25%", "median", "75%", "95%", "most")
    return [Section("Requests", (Table("How requests differ", head, tuple(rows)),))] if rows else []


def _checks(summary: Mapping[str, Any]) -> list[Part]:
    rows = tuple(
        (one["name"], f"{one['compared']:,}", f"{one['failed']:,}", one["example"]) for one in summary["checks"]
    )
    parts: list[Part] = [Prose(("No two of its numbers say the same.",))]
    if rows:
        parts = [Table("Identities between its numbers", ("identity", "compared", "failed", "example"), rows)]
    if summary["warnings"]:
        parts.append(Prose(tuple(summary["warnings"]), listed=True))
    if summary["skipped_lines"]:
        caption = f"Lines that could not be read: {summary['skipped_lines']:,}, such as"
        parts.append(Listing(caption, "\n".join(summary["skipped_examples"])))
    return parts
