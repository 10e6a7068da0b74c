"""Replay of positional traces. Statistical tests are within 4 standard errors: 6.3e-5 false alarms a cell."""

import json
import math
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sim.acceptance import TraceAcceptance
from sim.engine import run_rounds
from sim.latency import AffineLatency, ConstantLatency, LatencyModel, TableLatency
from sim.replay import PositionalTrace, ReplayedRounds, read_positional_trace, replay, replay_summary, walk
from sim.scenario import Scenario
from sim.theory import expected_tokens

TARGET, DRAFT = AffineLatency(0.02, 3e-4, 2e-6), AffineLatency(0.002, 4e-5, 3e-7)


def random_trace(requests: int, seed: int, longest: int = 60) -> PositionalTrace:
    """Prompts of 0 to 39 tokens and entries of 1 to 12, so that drafts of every length here are cut somewhere."""
    rng = np.random.default_rng(seed)
    lengths = tuple(rng.integers(1, 13, rng.integers(1, longest + 1)) for _ in range(requests))
    return PositionalTrace(rng.integers(0, 40, requests), lengths)


def random_table(seed: int, scale: float) -> TableLatency:
    """Forwards that follow no formula, on a grid that covers every forward of `random_trace`."""
    rng = np.random.default_rng(seed)
    grid = product((1, 16), (1, 2, 4, 9, 40), (0, 30, 110))
    names = ("batch", "new_tokens", "context", "seconds")
    return TableLatency([dict(zip(names, (*point, scale * rng.uniform(1, 2)), strict=True)) for point in grid])


MODELS: dict[str, tuple[LatencyModel, LatencyModel | None]] = {
    "affine": (TARGET, DRAFT),
    "table": (random_table(1, 0.02), random_table(2, 0.002)),
    "constant target, table draft": (ConstantLatency(0.03), random_table(3, 0.001)),
    "free draft": (TARGET, None),
}


def one_request_by_hand(
    prompt: int,
    lengths: list[int],
    gamma: int,
    batch: int,
    models: tuple[LatencyModel, LatencyModel | None],
    host: float,
) -> tuple[list[tuple[int, int]], float]:
    """Rounds as (context, emitted), and the seconds of it all, by the story that the replay tells."""
    target, draft = models
    seconds = 0.0
    if prompt:
        seconds += float(target.forward_seconds(batch, prompt, 0))
        if draft is not None and gamma:
            seconds += float(draft.forward_seconds(batch, prompt, 0))
    rounds, output = [], 0
    while output < len(lengths):
        context = prompt + output
        if draft is not None:
            for token in range(gamma):
                seconds += float(draft.forward_seconds(batch, 1, context + token))
        seconds += float(target.forward_seconds(batch, 1 + gamma, context)) + host
        emitted = min(lengths[output], 1 + gamma, len(lengths) - output)
        rounds.append((context, emitted))
        output += emitted
    return rounds, seconds


@pytest.mark.parametrize("batch", [1, 16])
@pytest.mark.parametrize("gamma", range(9))
@pytest.mark.parametrize("models", MODELS.values(), ids=MODELS)
def test_replay_is_what_a_plain_loop_over_tokens_gives(
    models: tuple[LatencyModel, LatencyModel | None], gamma: int, batch: int
) -> None:
    trace = random_trace(12, seed=gamma)
    got = replay(trace, gamma, batch, *models, overhead_seconds=0.0007, baseline_overhead_seconds=0.0003)
    for request, (prompt, lengths) in enumerate(zip(trace.prompt_tokens.tolist(), trace.accept_lengths, strict=True)):
        rounds, seconds = one_request_by_hand(prompt, lengths.tolist(), gamma, batch, models, 0.0007)
        mine = got.request == request
        assert list(zip(got.context[mine].tolist(), got.emitted[mine].tolist(), strict=True)) == rounds
        _, plain = one_request_by_hand(prompt, lengths.tolist(), 0, batch, models, 0.0003)
        assert got.seconds[request] == pytest.approx(seconds, rel=1e-12)
        assert got.baseline_seconds[request] == pytest.approx(plain, rel=1e-12)


@pytest.mark.parametrize("gamma", [1, 4, 8])
def test_the_rounds_are_those_of_trace_acceptance_in_the_engine(gamma: int) -> None:
    trace = random_trace(1, seed=5, longest=400)
    lengths = trace.accept_lengths[0]
    scenario = Scenario(
        ConstantLatency(1.0), None, TraceAcceptance((tuple(lengths.tolist()),)), gamma, max_new_tokens=len(lengths)
    )
    rounds = run_rounds(scenario, 0)
    _, start, emitted = walk(trace, gamma)
    np.testing.assert_array_equal(rounds.context, start)
    np.testing.assert_array_equal(rounds.emitted, emitted)


@pytest.mark.parametrize("batch", [1, 16])
@pytest.mark.parametrize("models", MODELS.values(), ids=MODELS)
def test_a_draft_length_of_zero_gains_and_costs_exactly_nothing(
    models: tuple[LatencyModel, LatencyModel | None], batch: int
) -> None:
    replayed = replay(random_trace(20, seed=1), 0, batch, *models, overhead_seconds=0.001)
    np.testing.assert_array_equal(replayed.seconds, replayed.baseline_seconds)
    summary = replay_summary(replayed, batch)
    assert (summary["speedup"], summary["speedup_ci"]) == (1.0, [1.0, 1.0])
    assert (summary["block_efficiency"], summary["block_efficiency_ci"]) == (1.0, [1.0, 1.0])
    assert summary["rounds"] * batch == summary["tokens"]


def test_a_dearer_draft_gains_less_from_the_same_rounds() -> None:
    trace = random_trace(20, seed=2)
    costs = [0.0, 0.0005, 0.001, 0.004, 0.02, 0.1]
    found = [replay_summary(replay(trace, 4, 1, TARGET, ConstantLatency(cost)), 1) for cost in costs]
    speedups = [one["speedup"] for one in found]
    assert speedups[0] == replay_summary(replay(trace, 4, 1, TARGET, None), 1)["speedup"]
    assert all(cheap > dear for cheap, dear in pairwise(speedups))
    assert speedups[0] > 1 > speedups[-1]
    assert len({one["block_efficiency"] for one in found}) == 1


def test_a_longer_draft_never_needs_more_rounds() -> None:
    """A longer draft may land where less is accepted, but not in runs that count down to where they all end."""
    rng = np.random.default_rng(3)
    runs = [np.arange(length, 0, -1) for length in rng.integers(1, 9, 300)]
    trace = PositionalTrace(np.array([10]), (np.concatenate(runs),))
    rounds = [len(walk(trace, gamma)[0]) for gamma in range(10)]
    assert rounds[0] == len(trace.accept_lengths[0])
    assert rounds == sorted(rounds, reverse=True)
    assert rounds[8] == rounds[9] == 300


@pytest.mark.parametrize("alpha", [0.3, 0.7, 0.9])
def test_block_efficiency_of_an_iid_trace_matches_leviathan_eq_1(alpha: float) -> None:
    """One recording answers for every draft length; an answer for one token more is told apart up to gamma 5.

    Each request's last round is cut, which takes about a tenth of a standard error off the mean at most.
    """
    rng = np.random.default_rng(int(100 * alpha))
    requests, tokens = 12, 5000
    trace = PositionalTrace(np.zeros(requests, dtype=np.int64), tuple(rng.geometric(1 - alpha, (requests, tokens))))
    for gamma in range(1, 9):
        _, _, emitted = walk(trace, gamma)
        error = emitted.std() / math.sqrt(len(emitted))
        expected = expected_tokens(alpha, gamma)
        assert abs(requests * tokens / len(emitted) - expected) < 4 * error
        if alpha == 0.7 and gamma <= 5:
            assert expected_tokens(alpha, gamma + 1) - expected > 8 * error


def test_both_sides_read_the_prompt_and_only_speculation_reads_it_twice() -> None:
    trace = PositionalTrace(np.array([5]), (np.full(8, 4),))
    replayed = replay(trace, 3, 1, ConstantLatency(1.0), ConstantLatency(0.1))
    assert replayed.seconds[0] == pytest.approx(1 + 0.1 + 2 * (1 + 3 * 0.1))
    assert replayed.baseline_seconds[0] == 1 + 8
    without = replay(
        PositionalTrace(np.array([0]), trace.accept_lengths), 3, 1, ConstantLatency(1.0), ConstantLatency(0.1)
    )
    assert without.seconds[0] == pytest.approx(2 * (1 + 3 * 0.1))
    assert without.baseline_seconds[0] == 8


def test_a_long_prompt_pulls_the_speedup_to_that_of_prefill() -> None:
    target, draft = AffineLatency(0.0, 1.0), AffineLatency(0.0, 0.25)
    trace = PositionalTrace(np.array([10**9]), (np.full(8, 4),))
    assert replay_summary(replay(trace, 3, 1, target, draft), 1)["speedup"] == pytest.approx(1 / 1.25, rel=1e-6)


def test_a_batch_multiplies_tokens_and_not_rounds() -> None:
    trace = random_trace(5, seed=3)
    alone, many = (replay_summary(replay(trace, 2, batch, ConstantLatency(0.1)), batch) for batch in (1, 8))
    assert many["tokens"] == 8 * alone["tokens"]
    assert many["tokens_per_second"] == pytest.approx(8 * alone["tokens_per_second"])
    assert many["rounds"] == alone["rounds"]
    assert many["speedup"] == pytest.approx(many["tokens_per_second"] / many["baseline_tokens_per_second"])


def test_the_speedup_is_a_ratio_of_sums_over_requests_with_an_interval_where_there_are_several() -> None:
    summary = replay_summary(replay(random_trace(40, seed=4), 3, 1, TARGET, DRAFT), 1)
    assert summary["speedup"] == pytest.approx(summary["baseline_seconds"] / summary["seconds"])
    for name in ("speedup", "block_efficiency"):
        assert summary[f"{name}_ci"][0] < summary[name] < summary[f"{name}_ci"][1]
    alone = replay_summary(replay(random_trace(1, seed=4), 3, 1, TARGET, DRAFT), 1)
    assert alone["speedup"] == pytest.approx(alone["baseline_seconds"] / alone["seconds"])
    assert alone["speedup_ci"] is None
    assert alone["block_efficiency_ci"] is None


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"batch": 0}, "batch must be a whole number >= 1, got 0"),
        ({"batch": 1.5}, r"batch must be a whole number >= 1, got 1\.5"),
        ({"gamma": -1}, "gamma must be a whole number >= 0, got -1"),
        ({"gamma": 2.5}, r"gamma must be a whole number >= 0, got 2\.5"),
        ({"overhead_seconds": -0.1}, r"overhead_seconds must be finite and >= 0, got -0\.1"),
        ({"baseline_overhead_seconds": math.nan}, "baseline_overhead_seconds must be finite and >= 0, got nan"),
        ({"target": random_table(1, 1.0), "batch": 17}, "batch 17 is outside the measured 1 to 16"),
        ({"target": ConstantLatency(0.0)}, "every request must take time, got 0 seconds"),
    ],
)
def test_what_cannot_be_replayed_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        replay(random_trace(2, seed=0), **{"gamma": 2, "batch": 1, "target": TARGET, **changes})


def test_a_trace_is_read_as_it_was_written(tmp_path: Path) -> None:
    trace = random_trace(6, seed=6)
    rows = [
        {"prompt_len": prompt, "accept_lengths": lengths.tolist(), "model": "left out"}
        for prompt, lengths in zip(trace.prompt_tokens.tolist(), trace.accept_lengths, strict=True)
    ]
    path = tmp_path / "trace.jsonl"
    path.write_text("\n\n".join(map(json.dumps, rows)) + "\n")
    again = read_positional_trace(path)
    assert again.prompt_tokens.tolist() == trace.prompt_tokens.tolist()
    assert [one.tolist() for one in again.accept_lengths] == [one.tolist() for one in trace.accept_lengths]

    def both(one: PositionalTrace) -> ReplayedRounds:
        return replay(one, 3, 2, TARGET, DRAFT)

    np.testing.assert_array_equal(both(again).seconds, both(trace).seconds)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "must read"),
        ("[1, 2]", "must read"),
        ("null", "must read"),
        ('{"prompt_len": 3}', "must read .*: KeyError"),
        ('{"prompt_len": -1, "accept_lengths": [1]}', "prompt_len must be a whole number >= 0, got -1"),
        ('{"prompt_len": 2.5, "accept_lengths": [1]}', r"prompt_len must be a whole number >= 0, got 2\.5"),
        ('{"prompt_len": true, "accept_lengths": [1]}', "prompt_len must be a whole number >= 0, got True"),
        ('{"prompt_len": 3, "accept_lengths": []}', r"accept_lengths must be a list .*, got \[\]"),
        ('{"prompt_len": 3, "accept_lengths": 4}', "accept_lengths must be a list .*, got 4"),
        ('{"prompt_len": 3, "accept_lengths": [2, 0]}', r"accept_lengths\[1\] must be a whole number >= 1, got 0"),
        ('{"prompt_len": 3, "accept_lengths": ["2"]}', r"accept_lengths\[0\] must be a whole number >= 1, got '2'"),
    ],
)
def test_a_broken_line_is_named_by_its_number(tmp_path: Path, line: str, says: str) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(f'{{"prompt_len": 1, "accept_lengths": [1]}}\n\n{line}\n')
    with pytest.raises(ValueError, match=rf"trace\.jsonl line 3:? {says}"):
        read_positional_trace(path)


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_an_empty_trace_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"trace\.jsonl holds no request"):
        read_positional_trace(path)
    with pytest.raises(ValueError, match="nowhere is not a readable trace"):
        read_positional_trace(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="one prompt length per request, at least one, got 2 for 1"):
        PositionalTrace(np.array([1, 2]), (np.array([1]),))
