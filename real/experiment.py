"""The lab's measuring half: calibrate on some prompts and one draft length, measure others on other prompts.

A run lives in a folder and can be interrupted at any time: what is finished is kept, prompt by prompt, and the same
call with `resume` goes on from there.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from real.architecture_costs import architecture_report
from real.compiled import CompiledDecoder, uncompiled
from real.devices import warms_up
from real.loading import Target, load_draft
from real.measure import Configuration, measure_prompts, time_forwards
from real.prompt_sets import EMBEDDED_PROMPTS, Prompt, choose
from real.sampling import SamplingSettings
from sim.forwards import read_forwards, write_forwards
from sim.records import RunMetadata, read_metadata, read_rounds, write_json, write_metadata, write_rounds

ROUNDS, FORWARDS, METADATA = "rounds.parquet", "forwards.parquet", "run.json"
ARCHITECTURE = "architecture.json"


@dataclass(frozen=True)
class DraftPlan:
    """One draft source: the draft length it is calibrated at, and those it is then measured at."""

    name: str
    calibration_gamma: int
    evaluation_gammas: tuple[int, ...]

    @classmethod
    def parse(cls, text: str) -> DraftPlan:
        """Read 'NAME@CALIBRATED:MEASURED,...', such as 'early-exit:24@3:1,2'.

        Raises:
            ValueError: the text has another form, or the draft lengths are unusable.
        """
        form = re.fullmatch(r"(.+)@(\d+):(\d+(?:,\d+)*)", text)
        if form is None:
            raise ValueError(f"'{text}' is not NAME@CALIBRATED:MEASURED,..., e.g. prompt-lookup@8:2,5")
        name, calibrated, measured = form.groups()
        return cls(name, int(calibrated), tuple(int(gamma) for gamma in measured.split(",")))

    def __post_init__(self) -> None:
        gammas = (self.calibration_gamma, *self.evaluation_gammas)
        if min(gammas) < 1 or not self.evaluation_gammas:
            raise ValueError(f"draft '{self.name}' needs draft lengths >= 1, got {gammas}")
        if self.calibration_gamma in self.evaluation_gammas:
            raise ValueError(
                f"draft '{self.name}' is calibrated at gamma {self.calibration_gamma} and measured there too; "
                "a prediction is only tested on draft lengths that calibration never saw"
            )


@dataclass(frozen=True)
class Plan:
    """What a lab run measures; together with the seed it fixes every token.

    Attributes:
        drafts: the draft sources.
        calibration_prompts, evaluation_prompts: per category.
        max_new_tokens: per prompt and configuration.
        contexts: context lengths at which forwards are timed.
        repeats: sweeps over all timed shapes.
    """

    drafts: tuple[DraftPlan, ...]
    settings: SamplingSettings
    calibration_prompts: int
    evaluation_prompts: int
    max_new_tokens: int
    contexts: tuple[int, ...]
    repeats: int
    seed: int

    @property
    def new_tokens(self) -> tuple[int, ...]:
        """Tokens per verification that any configuration needs, plain steps included."""
        return tuple(range(1, 2 + max(max(d.calibration_gamma, *d.evaluation_gammas) for d in self.drafts)))


DEFAULT_DRAFTS = ("prompt-lookup@5:2,3", "early-exit:24@2:1")
"""What the lab measures on the embedded target."""

SWEEP = "forwards"

Progress = Callable[[str, int, int, str], None]
"""Called as progress(stage, done, total, detail)."""


def run(
    target: Target,
    prompts: list[Prompt],
    plan: Plan,
    folder: Path,
    resume: bool,
    progress: Progress,
    *,
    command: str | None = None,
    prompts_file: Path | None = None,
) -> None:
    """Time forwards and run the calibration and evaluation prompts, in turns, into a run folder.

    All three are spread over the whole run: a machine that others use changes its speed, and differently for a draft
    and its target, so what was calibrated in another quarter of an hour predicts another machine. Writes
    `forwards.parquet` (after every sweep), `rounds.parquet` (after every prompt) and `run.json`. On a GPU, or where
    forwards are compiled, one sweep and one prompt come first, unrecorded.

    Args:
        command: what asks for the run, and
        prompts_file: where its prompts are from; both are recorded, and change nothing else.

    Raises:
        ValueError: the folder already holds a run and `resume` is not set, or holds a run made with other settings.
    """
    names = tuple(draft.name for draft in plan.drafts)
    phases = {
        phase: choose(prompts, phase, count)
        for phase, count in (("calibration", plan.calibration_prompts), ("evaluation", plan.evaluation_prompts))
    }
    used = {phase: [prompt.id for prompt in chosen] for phase, chosen in phases.items()}
    settings = asdict(plan) | {"prompts": used}
    _open_folder(folder, describe(target, names, settings, plan.seed, command, prompts_file), resume)
    drafts = {draft.name: load_draft(draft.name, target, plan.settings) for draft in plan.drafts}
    sweep = partial(
        time_forwards, target, list(drafts.values()), new_tokens=plan.new_tokens, contexts=plan.contexts, seed=plan.seed
    )
    configurations = {
        "calibration": [Configuration(drafts[d.name], d.calibration_gamma) for d in plan.drafts],
        "evaluation": [Configuration(drafts[d.name], gamma) for d in plan.drafts for gamma in d.evaluation_gammas],
    }
    if warms_up(target.decoder.device) or isinstance(target.decoder, CompiledDecoder):
        progress("warm up", 0, 1, "")
        longest = max((prompt for chosen in phases.values() for prompt in chosen), key=lambda prompt: len(prompt.text))
        list(sweep(repeats=1))
        measure_prompts(
            target,
            [longest],
            [Configuration(None, 0), *configurations["calibration"], *configurations["evaluation"]],
            max_new_tokens=plan.max_new_tokens,
            settings=plan.settings,
            seed=plan.seed,
        )
    measured = read_rounds(folder / ROUNDS) if (folder / ROUNDS).exists() else pd.DataFrame()
    timed = read_forwards(folder / FORWARDS) if (folder / FORWARDS).exists() else pd.DataFrame()
    swept = 0 if timed.empty else int(timed["repeat"].max()) + 1
    sweeps = sweep(repeats=plan.repeats, first=swept)
    turns = in_turns({SWEEP: range(plan.repeats), **phases})
    for done, (kind, item) in enumerate(turns, start=1):
        if isinstance(item, Prompt):
            if measured.empty or not ((measured.phase == kind) & (measured.request_id == item.id)).any():
                rounds = measure_prompts(
                    target,
                    [item],
                    [Configuration(None, 0), *configurations[kind]],
                    max_new_tokens=plan.max_new_tokens,
                    settings=plan.settings,
                    seed=plan.seed,
                    phase=kind,
                )
                measured = pd.concat([measured, rounds], ignore_index=True)
                write_rounds(measured, folder / ROUNDS)
        elif item >= swept:
            timed = pd.concat([timed, next(sweeps)], ignore_index=True)
            write_forwards(timed, folder / FORWARDS)
        progress("measure", done, len(turns), f"{kind} {item.id if isinstance(item, Prompt) else item + 1}")


def in_turns(kinds: Mapping[str, Sequence[Any]]) -> list[tuple[str, Any]]:
    """The items of several kinds, each kind in its order and spread evenly over the whole."""
    places = [((i + 0.5) / len(items), kind, item) for kind, items in kinds.items() for i, item in enumerate(items)]
    return [(kind, item) for _, kind, item in sorted(places, key=lambda place: place[0])]


def measure(
    target: Target,
    prompts: list[Prompt],
    configuration: Configuration,
    folder: Path,
    *,
    max_new_tokens: int,
    settings: SamplingSettings,
    seed: int,
    progress: Progress,
    batch: int = 1,
    command: str | None = None,
    prompts_file: Path | None = None,
) -> pd.DataFrame:
    """Measure one configuration beside the baseline; write `rounds.parquet`, `architecture.json` and `run.json`.

    The first prompts are decoded once before, unrecorded, so that no configuration pays for warming up.

    Args:
        batch: prompts decoded together; the baseline decodes as many.
        command, prompts_file: recorded, as in `run`.

    Returns:
        The round table.

    Raises:
        ValueError: the folder already holds a run, or batch is below 1.
    """
    if batch < 1:
        raise ValueError(f"batch must be >= 1, got {batch}")
    plan = {"gamma": configuration.longest, "max_new_tokens": max_new_tokens, "settings": asdict(settings)}
    plan |= {"batch": batch, "rule": configuration.rule_name, "prompts": [p.id for p in prompts]}
    _open_folder(folder, describe(target, (configuration.name,), plan, seed, command, prompts_file), resume=False)
    both = [Configuration(None, 0), configuration]
    decode = partial(
        measure_prompts, target, configurations=both, max_new_tokens=max_new_tokens, settings=settings, seed=seed
    )
    decode(prompts[:batch])
    progress("time forwards", 0, 1, "")
    widths = sorted({1, 2, 4, 8, 1 + configuration.longest})
    report = architecture_report(uncompiled(target.decoder), widths, context=128, repeats=3, seed=seed)
    write_json(report, folder / ARCHITECTURE)
    tables: list[pd.DataFrame] = []
    for first in range(0, len(prompts), batch):
        progress("measure", first, len(prompts), prompts[first].id)
        tables.append(decode(prompts[first : first + batch]))
        write_rounds(pd.concat(tables, ignore_index=True), folder / ROUNDS)
    progress("measure", len(prompts), len(prompts), "")
    return pd.concat(tables, ignore_index=True)


def describe(
    target: Target,
    drafts: tuple[str, ...],
    settings: dict[str, Any],
    seed: int,
    command: str | None = None,
    prompts_file: Path | None = None,
) -> RunMetadata:
    """Everything needed to make a run again."""
    if isinstance(target.decoder, CompiledDecoder):
        settings = settings | {"compiled": True}
    return RunMetadata(
        source="real",
        seed=seed,
        target=target.name,
        drafts=drafts,
        device=device_name(target.decoder.device),
        dtype=str(target.decoder.dtype).removeprefix("torch."),
        threads=torch.get_num_threads(),
        versions={"python": platform.python_version()}
        | {name: version(name) for name in ("specdec-lab", "torch", "transformers", "numpy")},
        git_commit=_git_commit(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        settings=json.loads(json.dumps(settings)),
        command=command,
        **({} if prompts_file is None else _origin(prompts_file)),
    )


def _origin(prompts: Path) -> dict[str, Any]:
    """Name and hash of a file of prompts; of a pipe, which can be read but once, the name."""
    name = "embedded" if prompts == EMBEDDED_PROMPTS else str(prompts)
    digest = {"prompts_sha256": hashlib.sha256(prompts.read_bytes()).hexdigest()} if prompts.is_file() else {}
    return {"prompts_file": name, **digest}


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{models[0]}, {len(models)} cores" if models else platform.processor() or platform.machine()


def _open_folder(folder: Path, metadata: RunMetadata, resume: bool) -> None:
    if not (folder / METADATA).exists() or not any((folder / name).exists() for name in (ROUNDS, FORWARDS)):
        write_metadata(metadata, folder / METADATA)
        return
    if not resume:
        raise ValueError(
            f"{folder} already holds a run; name another folder with --out, or continue a run of `lab` with --resume"
        )
    before = read_metadata(folder / METADATA)
    for name in ("target", "device", "dtype", "threads", "settings"):
        old, new = getattr(before, name), getattr(metadata, name)
        if old != new:
            raise ValueError(f"{folder} holds a run with {name} {old}, not {new}; name another folder with --out")
    if (folder / FORWARDS).exists():
        read_forwards(folder / FORWARDS)


def _git_commit() -> str | None:
    """The commit of the source tree this module was imported from, '-dirty' if it has changes; None outside git."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changes = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("-dirty" if changes.strip() else "")
