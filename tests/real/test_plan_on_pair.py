"""A plan for the embedded pair, from calibration prompts to measured draft lengths; the figures are of the bench."""

from __future__ import annotations

import pytest

from analysis.plan import choose
from real.loading import Target
from real.prompt_sets import choose as choose_prompts
from real.prompt_sets import read_prompts
from tests.bench_plan import Sizes, calibrate_on, evaluation_of, of_batch

SIZES = Sizes(calibration_prompts=1, calibration_tokens=6, sweeps=3, gammas=(1, 2))


@pytest.mark.pair
def test_a_plan_reads_calibration_only_and_answers_for_every_timed_batch(pair: Target) -> None:
    calibrated = calibrate_on(pair, ["prompt-lookup"], (1, 2), SIZES)
    run = calibrated.run("prompt-lookup", SIZES)
    assert run.law.drafted is not None
    assert set(run.costs.factors) == {2}
    assert [choose(run.law, run.costs, batch, 100).batch for batch in (1, 2)] == [1, 2]
    with pytest.raises(ValueError, match="batch=3 lies outside"):
        choose(run.law, run.costs, 3, 100)
    prompts = choose_prompts(read_prompts(), "evaluation", 1)[:2]
    rounds = evaluation_of(pair, "prompt-lookup", [prompts], SIZES, 6)
    assert not set(rounds["request_id"]) & set(calibrated.rounds["request_id"])
    assert rounds["batch"].max() == 2
    case = of_batch(run, rounds, 2)
    assert case.gamma in (0, 1, 2)
    assert case.measured <= case.best
