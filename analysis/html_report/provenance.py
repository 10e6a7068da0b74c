"""How a run was made: what it recorded of itself, and the command that makes it again."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from analysis.html_report.document import AGAIN, Listing, Part, Prose, facts, shown
from sim.records import RunMetadata

POLICIES = ("heuristic", "confidence", "entropy", "rejection", "bandit", "goodput", "off_above")
SAMPLING = ("temperature", "top_k", "top_p", "min_p")


def made_of(path: Path, metadata: RunMetadata | None) -> list[Part]:
    """What a run recorded of itself, and the command that makes it again."""
    if metadata is None:
        return [Prose((f"{path.name} is a round table alone, without the metadata of its run.",))]
    parts: list[Part] = [facts("Machine and run", _recorded(metadata))]
    if metadata.command:
        parts.append(Listing(AGAIN, metadata.command))
    elif command := command_of(metadata):
        caption = "The command that its settings amount to; a file of prompts or another rule is not in them"
        parts.append(Listing(caption, command))
    return parts


def _recorded(metadata: RunMetadata) -> dict[str, Any]:
    """What a run recorded of itself; settings that hold others are told in a few words."""
    settings = {str(name).replace("_", " "): value for name, value in metadata.settings.items() if value is not None}
    match settings.get("prompts"):
        case list() as names:
            settings["prompts"] = len(names)
        case dict() as by_phase:
            settings["prompts"] = ", ".join(f"{len(names)} for {phase}" for phase, names in by_phase.items())
    if isinstance(settings.get("settings"), dict):
        settings["sampling"] = {name: one for name, one in settings.pop("settings").items() if one is not None}
    if isinstance(settings.get("drafts"), list):
        settings["drafts"] = "; ".join(
            f"{one['name']} calibrated at γ {one['calibration_gamma']}, measured at {shown(one['evaluation_gammas'])}"
            for one in settings["drafts"]
        )
    return {
        "rounds from": metadata.source,
        "target": metadata.target,
        "drafts": metadata.drafts,
        "device": metadata.device,
        "dtype": metadata.dtype,
        "threads": metadata.threads,
        "seed": None if metadata.seed is None else str(metadata.seed),
        **settings,
        "prompts file": metadata.prompts_file,
        "its SHA-256": metadata.prompts_sha256,
        "git commit": metadata.git_commit,
        "created": metadata.created,
        "versions": metadata.versions,
    }


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
