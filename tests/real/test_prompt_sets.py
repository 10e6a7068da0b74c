from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from real.prompt_sets import Prompt, choose, first_of_each, read_prompts


def write(folder: Path, *lines: str) -> Path:
    path = folder / "prompts.jsonl"
    path.write_text("\n".join(lines))
    return path


def test_the_embedded_set_has_six_categories_split_in_halves() -> None:
    prompts = read_prompts()
    counts = Counter((prompt.category, prompt.split) for prompt in prompts)
    categories = {"chat", "code", "summarise", "extract", "translate", "story"}
    assert counts == {(name, split): 10 for name in categories for split in ("calibration", "evaluation")}


def test_plain_prompts_alternate_between_the_splits(tmp_path: Path) -> None:
    path = write(tmp_path, '{"prompt": "a"}', '{"prompt": "b"}', "", '{"prompt": "c", "id": "third"}')
    assert read_prompts(path) == [
        Prompt("1", "prompt", "a", "calibration"),
        Prompt("2", "prompt", "b", "evaluation"),
        Prompt("third", "prompt", "c", "calibration"),
    ]


def test_spec_bench_questions_are_read_by_their_first_turn(tmp_path: Path) -> None:
    path = write(tmp_path, '{"question_id": 81, "category": "writing", "turns": ["First.", "Second."]}')
    assert read_prompts(path) == [Prompt("81", "writing", "First.", "calibration")]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "line 1 is not JSON"),
        ('{"text": "a"}', 'line 1 has neither "prompt" nor "turns"'),
        ('{"prompt": " "}', "line 1 has an empty prompt"),
        ('{"turns": []}', "line 1 has an empty prompt"),
        ('{"prompt": "a", "split": "test"}', "split 'test'; it must be 'calibration' or 'evaluation'"),
        ("", "holds no prompts"),
    ],
)
def test_a_line_that_is_no_prompt_is_named(tmp_path: Path, line: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        read_prompts(write(tmp_path, line))


def test_repeated_ids_and_missing_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"uses the prompt ids \['x'\] more than once"):
        read_prompts(write(tmp_path, '{"prompt": "a", "id": "x"}', '{"prompt": "b", "id": "x"}'))
    with pytest.raises(ValueError, match="cannot read the prompts"):
        read_prompts(tmp_path / "absent.jsonl")


def test_chosen_prompts_go_round_the_categories() -> None:
    chosen = choose(read_prompts(), "evaluation", 2)
    assert len(chosen) == 12
    assert len({prompt.category for prompt in chosen[:6]}) == 6
    assert all(prompt.split == "evaluation" for prompt in chosen)
    with pytest.raises(ValueError, match=r"11 evaluation prompts per category asked for, found .*'chat': 10"):
        choose(read_prompts(), "evaluation", 11)
    assert len(first_of_each(read_prompts(), 1)) == 6
    assert len(first_of_each(read_prompts(), None)) == 120
