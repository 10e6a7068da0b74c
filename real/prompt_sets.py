"""Prompts to measure on: the embedded set, or the user's own file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

EMBEDDED_PROMPTS = Path(__file__).parent / "prompts" / "embedded.jsonl"


@dataclass(frozen=True)
class Prompt:
    """One user message.

    Attributes:
        id: unique within its set.
        category: of the text asked for; results are reported by it.
        text: the message.
        split: 'calibration' or 'evaluation'; what is fitted on one is never scored on it.
    """

    id: str
    category: str
    text: str
    split: str


def read_prompts(path: Path | None = None) -> list[Prompt]:
    """Read prompts, one JSON object a line.

    Args:
        path: None for the embedded set; else lines of {"prompt": ...} with optional "id", "category" and "split", or
            Spec-Bench's question.jsonl ("question_id", "category", "turns": the first turn is used). Prompts without a
            split alternate between calibration and evaluation within their category.

    Raises:
        ValueError: the file is missing, or a line is not one of these; the line is named.
    """
    path = path or EMBEDDED_PROMPTS
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read the prompts {path}: {error}") from error
    prompts: list[Prompt] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        prompt = _parse(line, f"{path.name} line {number}", number, seen)
        prompts.append(prompt)
    if not prompts:
        raise ValueError(f"{path} holds no prompts")
    ids = [prompt.id for prompt in prompts]
    repeated = sorted({name for name in ids if ids.count(name) > 1})
    if repeated:
        raise ValueError(f"{path} uses the prompt ids {repeated[:5]} more than once")
    return prompts


def _parse(line: str, where: str, number: int, seen: dict[str, int]) -> Prompt:
    try:
        fields = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where} is not JSON: {error}") from error
    if not isinstance(fields, dict) or not ("prompt" in fields or "turns" in fields):
        raise ValueError(f'{where} has neither "prompt" nor "turns": {line[:80]}')
    text = fields["prompt"] if "prompt" in fields else (fields["turns"] or [None])[0]
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{where} has an empty prompt")
    category = str(fields.get("category", "prompt"))
    count = seen.get(category, 0)
    seen[category] = count + 1
    split = fields.get("split", ("calibration", "evaluation")[count % 2])
    if split not in ("calibration", "evaluation"):
        raise ValueError(f"{where} has split '{split}'; it must be 'calibration' or 'evaluation'")
    return Prompt(str(fields.get("id", fields.get("question_id", number))), category, text, split)


def choose(prompts: list[Prompt], split: str, per_category: int) -> list[Prompt]:
    """The first prompts of every category of a split, category by category in turn, so that time is shared evenly.

    Raises:
        ValueError: a category has too few.
    """
    by_category: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        if prompt.split == split:
            by_category.setdefault(prompt.category, []).append(prompt)
    short = {name: len(found) for name, found in by_category.items() if len(found) < per_category}
    if short or not by_category:
        raise ValueError(
            f"{per_category} {split} prompts per category asked for, found {short or 'none'}; ask for fewer"
        )
    return [found[i] for i in range(per_category) for found in by_category.values()]


def first_of_each(prompts: list[Prompt], per_category: int | None) -> list[Prompt]:
    """The first prompts of every category, whatever their split, category by category in turn; all of them for None."""
    by_category: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        by_category.setdefault(prompt.category, []).append(prompt)
    longest = max(len(found) for found in by_category.values())
    rounds = longest if per_category is None else per_category
    return [found[i] for i in range(rounds) for found in by_category.values() if i < len(found)]
