"""The page of a run: speedup, acceptance, where the time went, and, of a lab run, how good its predictions were."""

from __future__ import annotations

import shlex
from pathlib import Path

import pandas as pd

from analysis.compare import measured
from analysis.diagnose import diagnose
from analysis.fit import calibrate
from analysis.html_report.comparisons import comparison_lead, comparison_sections, read_comparison
from analysis.html_report.diagnoses import diagnosis_sections
from analysis.html_report.document import (
    Listing,
    Page,
    Part,
    Section,
    Table,
    from_report,
    number,
    with_interval,
)
from analysis.html_report.imports import acceptance_plot
from analysis.html_report.plots import Row, Value, plot_rows
from analysis.html_report.provenance import made_of
from analysis.measurement import summarise_measurement
from analysis.report_tables import acceptance_table, costs_table, latency_table
from sim.forwards import read_forwards
from sim.records import ROUND_SECONDS, chain_depth, read_metadata, read_rounds, summarise

ALL = "all"


def run_page(path: Path, seed: int = 0) -> Page:
    """The page of a run folder or a round table.

    Raises:
        ValueError: a file is damaged, or the table has no rows.
    """
    folder = path if path.is_dir() else None
    rounds = read_rounds(path / "rounds.parquet" if folder else path)
    metadata = None
    if folder and (folder / "run.json").exists():
        metadata = read_metadata(folder / "run.json")
    own = rounds[rounds["gamma"] > 0]
    sections: list[Section] = []
    lead: tuple[str, ...] = ()
    if folder and (folder / "comparison.csv").exists():
        comparison = read_comparison(folder / "comparison.csv")
        lead, sections = comparison_lead(comparison, seed), comparison_sections(comparison)
    sections += _speedup(rounds, own, seed, by_category=not sections)
    sections += [Section("Rounds", (_kinds(rounds), *_acceptance(own)))]
    sections += _fits(folder, rounds, seed)
    sections += _why(path, rounds, own, seed)
    name = path.name or str(path)
    return Page(
        kind="run",
        title=f"Run: {name}" if metadata is None or not metadata.target else f"{metadata.target}: {name}",
        lead=lead or (_lead(rounds, own, seed),),
        sections=tuple(sections),
        made=tuple(made_of(path, metadata)),
        seed=seed,
    )


def _lead(rounds: pd.DataFrame, own: pd.DataFrame, seed: int) -> str:
    """The speedup of the run's only configuration, or what the table holds."""
    if _has_speedup(rounds, own) and len(own[["draft", "gamma"]].drop_duplicates()) == 1:
        found = summarise_measurement(rounds, seed)
        alpha = with_interval(found["alpha"], found["alpha_ci"])
        return (
            f"Speedup {with_interval(found['speedup'], found['speedup_ci'])}, "
            f"{with_interval(found['block_efficiency'], found['block_efficiency_ci'])} tokens per round, "
            f"acceptance rate α {alpha}; 95% intervals resample prompts."
        )
    kinds = own[[name for name in ("draft", "gamma") if name in own]].drop_duplicates()
    kinds_of = "configuration" if len(kinds) == 1 else "configurations"
    return f"{len(own):,} rounds of {len(kinds)} {kinds_of} with a draft, {len(rounds) - len(own):,} plain steps."


def _has_speedup(rounds: pd.DataFrame, own: pd.DataFrame) -> bool:
    return {"draft", "category"} <= set(rounds) and 0 < len(own) < len(rounds)


def _speedup(rounds: pd.DataFrame, own: pd.DataFrame, seed: int, by_category: bool) -> list[Section]:
    """Speedup over plain steps of the same prompts, by configuration, and by category where no comparison has that."""
    if not _has_speedup(rounds, own):
        return []
    together = measured(rounds.assign(category=ALL), seed)
    parts = [together, measured(rounds, seed)] if by_category and rounds["category"].nunique() > 1 else [together]
    found = pd.concat(parts, ignore_index=True)
    phases = found["held_out"].nunique() > 1
    rows, body = [], []
    for row in found.to_dict("records"):
        name = f"{row['draft']}, γ {row['gamma']}, {row['category']}"
        name += "" if not phases else ", held out" if row["held_out"] else ", calibration"
        low, high = row["measured_lo"], row["measured_hi"]
        rows.append(Row(name, (Value(row["measured"], low, high),)))
        body.append(
            (
                name,
                with_interval(row["measured"], (low, high)),
                number(row["block_efficiency"]),
                *(number(1e3 * row[part]) for part in (*ROUND_SECONDS, "baseline_seconds")),
                f"{row['prompts']:,}",
                f"{row['tokens']:,}",
            )
        )
    head = (
        "configuration",
        "speedup [95% interval]",
        "tokens per round",
        "draft, ms",
        "verify, ms",
        "other, ms",
        "plain step, ms",
    )
    note = "Milliseconds are of a round; a plain step emits one token. Prefill is excluded; prompts are resampled."
    table = Table("Speedup over decoding without a draft", (*head, "prompts", "tokens"), tuple(body), note)
    plot = plot_rows("Measured speedup", "speedup (×)", rows, reference=1.0)
    return [Section("Measured speedup", (*([] if plot is None else [plot]), table))]


def _kinds(rounds: pd.DataFrame) -> Table:
    """What the table holds: a row for each draft and draft length."""
    keys = [name for name in ("draft", "gamma") if name in rounds]
    body = []
    for key, part in rounds.groupby(keys, sort=False):
        sums = summarise(part)
        cells = [f"{sums[name]:,}" for name in ("rounds", "drafted", "accepted", "emitted")]
        means = [number(sums[name]) for name in ("block_efficiency", "block_efficiency_per_request", "seconds")]
        body.append((", γ ".join(map(str, key)) if len(keys) > 1 else f"γ {key[0]}", *cells, *means))
    head = ("draft and length", "rounds", "drafted", "accepted", "emitted", "tokens per round", "mean over requests")
    return Table("Rounds by draft and draft length", (*head, "seconds"), tuple(body))


def _acceptance(own: pd.DataFrame) -> list[Part]:
    """Acceptance by position of every draft and draft length."""
    plots: list[Part] = []
    keys = [name for name in ("draft", "gamma") if name in own]
    for key, part in own.groupby(keys, sort=False):
        sums = summarise(part)
        known = {name: sums[name] for name in ("marginal_acceptance", "conditional_acceptance", "rounds")}
        accepted, deepest = part["accepted"].to_numpy(), chain_depth(part).to_numpy()
        tested = [int(((accepted >= i) & (deepest > i)).sum()) for i in range(len(sums["marginal_acceptance"]))]
        plot = acceptance_plot(known, tested, " at γ ".join(map(str, key)) if len(keys) > 1 else f"γ {key[0]}")
        plots += [] if plot is None else [plot]
    return plots


def _fits(folder: Path | None, rounds: pd.DataFrame, seed: int) -> list[Section]:
    """What a lab run's predictions were made from."""
    if folder is None or not (folder / "forwards.parquet").exists() or "phase" not in rounds:
        return []
    calibration = calibrate(rounds, read_forwards(folder / "forwards.parquet"), seed)
    tables = (
        from_report("Acceptance by draft and category", acceptance_table(calibration)),
        from_report("Seconds of a forward", latency_table(calibration)),
        from_report("The rest of a round", costs_table(calibration)),
    )
    return [Section("What calibration found", tables)]


def _why(path: Path, rounds: pd.DataFrame, own: pd.DataFrame, seed: int) -> list[Section]:
    """The diagnosis of a single configuration; of several, the command that gives it for each."""
    keys = [name for name in ("draft", "gamma") if name in own]
    kinds = own[keys].drop_duplicates()
    if len(kinds) > 1:
        options = [
            [word for key, one in row.items() for word in (f"--{key}", str(one))] for row in kinds.to_dict("records")
        ]
        text = "\n".join(shlex.join(["specdec", "diagnose", str(path), *words]) for words in options)
        return [Section("Why not faster?", (Listing("The commands that tell, one for each configuration", text),))]
    if not len(kinds) or len(own) == len(rounds):
        return []
    return diagnosis_sections(diagnose(rounds, seed=seed).to_json())
