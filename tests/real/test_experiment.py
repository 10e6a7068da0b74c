from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from transformers import LlamaForCausalLM

from real import experiment
from real.draft_models import make_draft
from real.experiment import DraftPlan, Plan, in_turns, run
from real.loading import Target
from real.measure import Configuration, measure_prompts, time_forwards
from real.prompt_sets import Prompt
from real.sampling import SamplingSettings
from sim.forwards import read_forwards
from sim.records import ROUND_SECONDS, read_metadata, read_rounds

PROMPTS = [
    Prompt(f"{category}{i}", category, f"t{5 + i} t9 t{20 + i} t9", split)
    for category in ("a", "b")
    for i, split in enumerate(["calibration", "evaluation"] * 2)
]
PLAN = Plan(
    drafts=(DraftPlan("prompt-lookup", 4, (2,)), DraftPlan("early-exit:3", 2, (1, 3))),
    settings=SamplingSettings(),
    calibration_prompts=2,
    evaluation_prompts=2,
    max_new_tokens=10,
    contexts=(4, 8),
    repeats=2,
    seed=3,
)
TIMES = ["start_seconds", *ROUND_SECONDS]


def silent(stage: str, done: int, total: int, detail: str) -> None:
    """No progress bar."""


@pytest.fixture
def target(tiny_target: Target) -> Target:
    return tiny_target


def test_a_run_holds_every_configuration_of_every_prompt(target: Target, tmp_path: Path) -> None:
    run(target, PROMPTS, PLAN, tmp_path, resume=False, progress=silent)
    rounds = read_rounds(tmp_path / "rounds.parquet")
    found = rounds.groupby(["phase", "draft", "gamma"])["request_id"].nunique().to_dict()
    assert found == {
        ("calibration", "none", 0): 4,
        ("calibration", "prompt-lookup", 4): 4,
        ("calibration", "early-exit:3", 2): 4,
        ("evaluation", "none", 0): 4,
        ("evaluation", "prompt-lookup", 2): 4,
        ("evaluation", "early-exit:3", 1): 4,
        ("evaluation", "early-exit:3", 3): 4,
    }
    assert rounds.groupby(["phase", "draft", "gamma", "request_id"])["emitted"].sum().max() <= 10
    forwards = read_forwards(tmp_path / "forwards.parquet")
    shapes = forwards.groupby("role")["new_tokens"].unique().map(sorted).to_dict()
    assert shapes == {"target": [1, 2, 3, 4, 5], "early-exit:3": [1]}
    assert forwards.groupby(["role", "new_tokens", "context"]).size().eq(2).all()
    metadata = read_metadata(tmp_path / "run.json")
    assert metadata.seed == 3
    assert metadata.dtype == "float64"
    assert metadata.settings["max_new_tokens"] == 10
    assert metadata.drafts == ("prompt-lookup", "early-exit:3")


def test_calibration_and_evaluation_share_no_prompt(target: Target, tmp_path: Path) -> None:
    run(target, PROMPTS, PLAN, tmp_path, resume=False, progress=silent)
    rounds = read_rounds(tmp_path / "rounds.parquet")
    prompts = rounds.groupby("phase")["request_id"].unique().map(set)
    assert not prompts["calibration"] & prompts["evaluation"]


def test_an_interrupted_run_resumes_with_nothing_lost_and_nothing_run_twice(target: Target, tmp_path: Path) -> None:
    def interrupt(stage: str, done: int, total: int, detail: str) -> None:
        if detail.startswith("evaluation") and done >= 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(target, PROMPTS, PLAN, tmp_path / "cut", resume=False, progress=interrupt)
    kept = read_rounds(tmp_path / "cut" / "rounds.parquet")
    run(target, PROMPTS, PLAN, tmp_path / "cut", resume=True, progress=silent)
    resumed = read_rounds(tmp_path / "cut" / "rounds.parquet")
    pd.testing.assert_frame_equal(resumed.iloc[: len(kept)], kept)
    run(target, PROMPTS, PLAN, tmp_path / "whole", resume=False, progress=silent)
    whole = read_rounds(tmp_path / "whole" / "rounds.parquet")
    pd.testing.assert_frame_equal(resumed.drop(columns=TIMES), whole.drop(columns=TIMES))
    shapes = ["role", "new_tokens", "context", "repeat"]
    found, once = (read_forwards(tmp_path / name / "forwards.parquet")[shapes] for name in ("cut", "whole"))
    pd.testing.assert_frame_equal(found, once)


def test_calibration_evaluation_and_forwards_take_turns(target: Target, tmp_path: Path) -> None:
    told = []
    plan = replace(PLAN, repeats=4)
    run(target, PROMPTS, plan, tmp_path, resume=False, progress=lambda *words: told.append(words[3].split()[0]))
    assert len(told) == 12
    for third in (told[:3], told[3:6], told[6:9], told[9:]):
        assert sorted(third) == ["calibration", "evaluation", "forwards"]


def test_kinds_of_unlike_size_are_spread_over_the_whole() -> None:
    order = in_turns({"few": "ab", "many": range(8), "none": []})
    assert [item for kind, item in order if kind == "many"] == list(range(8))
    assert [place for place, (kind, _) in enumerate(order) if kind == "few"] == [2, 7]


def test_a_folder_with_a_run_is_not_overwritten(target: Target, tmp_path: Path) -> None:
    run(target, PROMPTS, PLAN, tmp_path, resume=False, progress=silent)
    with pytest.raises(ValueError, match=r"already holds a run; name another folder with --out, or .* with --resume"):
        run(target, PROMPTS, PLAN, tmp_path, resume=False, progress=silent)
    with pytest.raises(ValueError, match="holds a run with settings"):
        run(target, PROMPTS, replace(PLAN, seed=4), tmp_path, resume=True, progress=silent)


def test_a_run_stopped_before_its_first_number_can_be_started_again(target: Target, tmp_path: Path) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    draft = Configuration(make_draft("synthetic:0.7", target.decoder, PLAN.settings), 3)
    limits = {"max_new_tokens": 9, "settings": PLAN.settings, "seed": 0}
    with pytest.raises(KeyboardInterrupt):
        experiment.measure(target, PROMPTS[:1], draft, tmp_path, progress=interrupt, **limits)
    assert {path.name for path in tmp_path.iterdir()} == {"run.json"}
    experiment.measure(target, PROMPTS[:1], draft, tmp_path, progress=silent, **limits)
    assert len(read_rounds(tmp_path / "rounds.parquet"))


def test_a_measurement_is_written_as_it_goes(target: Target, tmp_path: Path) -> None:
    draft = make_draft("synthetic:0.7", target.decoder, PLAN.settings)
    rounds = experiment.measure(
        target,
        PROMPTS[:3],
        Configuration(draft, 3),
        tmp_path,
        max_new_tokens=9,
        settings=PLAN.settings,
        seed=0,
        progress=silent,
    )
    pd.testing.assert_frame_equal(read_rounds(tmp_path / "rounds.parquet"), rounds)
    assert set(rounds["draft"]) == {"none", "synthetic:0.7"}
    assert read_metadata(tmp_path / "run.json").settings["gamma"] == 3


def test_tokens_do_not_depend_on_what_else_is_measured(target: Target) -> None:
    lookup = Configuration(make_draft("prompt-lookup", target.decoder, PLAN.settings), 2)
    exit_early = Configuration(make_draft("early-exit:2", target.decoder, PLAN.settings), 3)
    limits = {"max_new_tokens": 12, "settings": PLAN.settings, "seed": 1}
    alone = measure_prompts(target, [PROMPTS[0]], [lookup], **limits).drop(columns=TIMES)
    both = measure_prompts(target, [PROMPTS[0]], [exit_early, lookup], **limits).drop(columns=TIMES)
    beside = both[both["draft"] == "prompt-lookup"].reset_index(drop=True)
    pd.testing.assert_frame_equal(alone, beside)


def test_every_sweep_times_every_shape_once(target: Target, model: LlamaForCausalLM) -> None:
    lookup = make_draft("prompt-lookup", target.decoder, PLAN.settings)
    sweeps = list(time_forwards(target, [lookup], new_tokens=(1, 3), contexts=(2, 9), repeats=3, seed=0))
    assert [sweep["repeat"].unique().tolist() for sweep in sweeps] == [[0], [1], [2]]
    for sweep in sweeps:
        assert sorted(zip(sweep["new_tokens"], sweep["context"], strict=True)) == [(1, 2), (1, 9), (3, 2), (3, 9)]


class TestDraftPlan:
    def test_reads_name_and_draft_lengths(self) -> None:
        assert DraftPlan.parse("early-exit:24@3:1,2") == DraftPlan("early-exit:24", 3, (1, 2))

    @pytest.mark.parametrize("text", ["prompt-lookup", "@3:1", "x@3", "x@a:b", "x@3:"])
    def test_refuses_another_form(self, text: str) -> None:
        with pytest.raises(ValueError, match="is not NAME@CALIBRATED:MEASURED"):
            DraftPlan.parse(text)

    def test_refuses_to_score_what_it_calibrated(self) -> None:
        with pytest.raises(ValueError, match="calibrated at gamma 3 and measured there too"):
            DraftPlan.parse("x@3:2,3")
        with pytest.raises(ValueError, match="needs draft lengths >= 1"):
            DraftPlan.parse("x@3:0")
