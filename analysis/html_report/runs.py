"""The page of a run: speedup, acceptance, where the time went, and, of a lab run, how good its predictions were."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
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
    Prose,
    Section,
    Table,
    from_report,
    number,
    with_interval,
)
from analysis.html_report.imports import acceptance_plot
from analysis.html_report.plots import Row, Value, plot_rows
from analysis.measurement import summarise_measurement
from analysis.report_tables import acceptance_table, costs_table, latency_table, machine_table
from sim.forwards import read_forwards
from sim.records import ROUND_SECONDS, RunMetadata, chain_depth, read_metadata, read_rounds, summarise

ALL = "all"
POLICIES = ("heuristic", "confidence", "entropy", "rejection", "bandit", "goodput", "off_above")
SAMPLING = ("temperature", "top_k", "top_p", "min_p")


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
    sections += _speedup(rounds, own, seed)
    sections += [Section("Rounds", (_kinds(rounds), *_acceptance(own)))]
    sections += _fits(folder, rounds, seed)
    sections += _why(rounds, own, seed)
    name = path.name or str(path)
    return Page(
        kind="run",
        title=f"Run: {name}" if metadata is None or not metadata.target else f"{metadata.target}: {name}",
        lead=lead or (_lead(rounds, own, seed),),
        sections=tuple(sections),
        made=tuple(_made(path, metadata)),
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


def _speedup(rounds: pd.DataFrame, own: pd.DataFrame, seed: int) -> list[Section]:
    """Speedup over plain steps of the same prompts, by configuration and category."""
    if not _has_speedup(rounds, own):
        return []
    together = measured(rounds.assign(category=ALL), seed)
    parts = [together] if rounds["category"].nunique() == 1 else [together, measured(rounds, seed)]
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
    head = ("configuration", "speedup", "tokens per round", "draft, ms", "verify, ms", "other, ms", "plain step, ms")
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


def _why(rounds: pd.DataFrame, own: pd.DataFrame, seed: int) -> list[Section]:
    """The diagnosis of a single configuration; of several, the command that gives it for one."""
    keys = [name for name in ("draft", "gamma") if name in own]
    kinds = own[keys].drop_duplicates()
    if len(kinds) > 1:
        words = "specdec diagnose explains one configuration, named with --draft and --gamma."
        return [Section("Why not faster?", (Prose((words,)),))]
    if not len(kinds) or len(own) == len(rounds):
        return []
    return diagnosis_sections(diagnose(rounds, seed=seed).to_json())


def _made(path: Path, metadata: RunMetadata | None) -> list[Part]:
    """The run's metadata and the command that its settings amount to."""
    if metadata is None:
        return [Prose((f"{path.name} is a round table alone, without the metadata of its run.",))]
    parts: list[Part] = [from_report("Machine and run", machine_table(metadata))]
    command = command_of(metadata)
    if command:
        caption = "The command that its settings amount to; a file of prompts or another rule is not in them"
        parts.append(Listing(caption, command))
    return parts


def command_of(metadata: RunMetadata) -> str:
    """`specdec lab` or `measure` with the settings of a run; empty where they do not say."""
    settings = metadata.settings
    if metadata.source != "real" or not isinstance(settings.get("settings"), Mapping):
        return ""
    words = ["specdec"]
    names: tuple[str, ...]
    if isinstance(settings.get("drafts"), list):
        words += ["lab", "--target", metadata.target]
        for draft in settings["drafts"]:
            lengths = ",".join(map(str, draft["evaluation_gammas"]))
            words += ["--draft", f"{draft['name']}@{draft['calibration_gamma']}:{lengths}"]
        names = ("calibration_prompts", "evaluation_prompts", "max_new_tokens")
    elif len(metadata.drafts) == 1 and "gamma" in settings:
        draft, policy = draft_and_policy(metadata.drafts[0])
        words += ["measure", "--target", metadata.target, "--draft", draft, *policy]
        names = ("batch", "max_new_tokens") if "--tree" in policy else ("gamma", "batch", "max_new_tokens")
    else:
        return ""
    options = {name: settings.get(name) for name in names} | {name: settings["settings"].get(name) for name in SAMPLING}
    options |= {"seed": metadata.seed, "threads": metadata.threads, "dtype": metadata.dtype}
    for name, value in options.items():
        if value is not None and value != "":
            words += [f"--{name.replace('_', '-')}", str(value)]
    return shlex.join([*words, "--out", "FOLDER"])


def draft_and_policy(name: str) -> tuple[str, list[str]]:
    """A configuration's name taken apart: the draft, and the options that chose its tree or its draft lengths."""
    draft, _, policy = name.rpartition("+")
    if draft and policy.startswith("tree:"):
        return draft, ["--tree", policy.removeprefix("tree:")]
    if draft and policy.partition(":")[0] in POLICIES:
        return draft, ["--controller", policy]
    return name, []
