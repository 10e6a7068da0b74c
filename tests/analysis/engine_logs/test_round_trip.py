"""A round table printed as an engine prints it reads back to the same acceptance, within the printed digits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.engine_logs import ENGINES, read_log, write_as
from sim.records import make_rounds, summarise, write_rounds

PRINTED_RATE = {"vllm": 5e-4, "llama.cpp": 5e-4, "speculation-profile": 5e-7}
"""half a unit of the last digit of a printed rate; the other engines print counts, or rates in full"""
HAS_DRAFTED = set(ENGINES) - {"spec-bench", "speculation-profile"}


def table(
    seed: int, ragged: bool = False, cut: bool = False, gammas: tuple[int, ...] = (4,), adaptive: bool = False
) -> pd.DataFrame:
    """Rounds of nine requests with acceptance rates of their own, and a few steps without a draft."""
    rng = np.random.default_rng(seed)
    parts = []
    for request in range(9):
        rounds, gamma = int(rng.integers(1, 60)), int(rng.choice(gammas))
        asked = rng.choice(gammas, size=rounds) if adaptive else np.full(rounds, gamma)
        drafted = rng.integers(1, gamma + 1, size=rounds) if ragged else asked
        accepted = np.minimum(rng.geometric(1 - rng.beta(6, 3), size=rounds) - 1, drafted)
        emitted = accepted + 1
        ends = np.zeros(rounds, dtype=bool)
        if cut:
            ends[-1], emitted[-1] = True, rng.integers(1, emitted[-1] + 1)
        parts.append(
            make_rounds(
                request_id=[f"r{request}"] * rounds, round_index=np.arange(rounds), batch=1, context=10,
                gamma=asked, drafted=drafted, accepted=accepted, emitted=emitted, cut=ends,
                start_seconds=0.0, draft_seconds=0.01, verify_seconds=0.02, other_seconds=0.001,
                draft="d", category=["red", "blue"][request % 2],
            )
        )  # fmt: skip
    steps = parts[0].assign(gamma=0, drafted=0, accepted=0, emitted=1, cut=False, draft="none")
    return pd.concat([*parts, steps], ignore_index=True)


CASES = {
    "full": lambda seed: table(seed),
    "ragged": lambda seed: table(seed, ragged=True),
    "cut": lambda seed: table(seed, cut=True),
    "mixed": lambda seed: table(seed, gammas=(2, 5)),
    "adaptive": lambda seed: table(seed, gammas=(1, 3, 6), adaptive=True, cut=True),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("engine", ENGINES)
def test_written_rounds_read_back_to_the_same_acceptance(tmp_path: Path, engine: str, case: str) -> None:
    for seed in range(5):
        rounds = CASES[case](seed)
        drafting = rounds[rounds["gamma"] > 0]
        truth = summarise(drafting)
        path = tmp_path / ("log.jsonl" if engine == "specdec" else "log")
        path.write_text(write_as(engine, rounds))
        for asked in ("auto", engine):
            log = read_log(path, asked)
            assert (log.engine, log.skipped_lines) == (engine, 0)
            assert log.accepted == truth["accepted"]
            if engine in HAS_DRAFTED:
                assert log.drafted == truth["drafted"]
            assert log.marginal_acceptance is not None
            marginal = np.zeros(int(drafting["gamma"].max()))
            marginal[: len(log.marginal_acceptance)] = log.marginal_acceptance
            expected = np.zeros_like(marginal)
            expected[: len(truth["marginal_acceptance"])] = truth["marginal_acceptance"]
            exact = PRINTED_RATE.get(engine, 1e-12)
            counted = engine != "vllm" or case in ("full", "cut")
            if counted:  # else the rounds themselves are known to the printed digits only
                assert log.rounds == truth["rounds"]
            assert marginal == pytest.approx(expected, abs=exact + (0 if counted else 5e-3))
            mean = 1 + truth["accepted"] / truth["rounds"]
            if engine != "specdec":  # which counts what cut rounds emitted
                assert log.mean_acceptance_length == pytest.approx(mean, abs=exact if counted else 5e-3)
            failed = [check.name for check in log.checks if check.failed]
            assert failed == []


@pytest.mark.parametrize("engine", ENGINES)
def test_short_drafts_that_were_all_refused_read_back_to_a_mean_of_one(tmp_path: Path, engine: str) -> None:
    rounds = table(0, ragged=True)
    path = tmp_path / ("log.jsonl" if engine == "specdec" else "log")
    path.write_text(write_as(engine, rounds.assign(accepted=0, emitted=1)))
    log = read_log(path)
    assert log.mean_acceptance_length == 1
    assert not any(log.marginal_acceptance or ())
    assert log.warnings == ()


def test_the_round_table_reads_back_as_it_is(tmp_path: Path) -> None:
    rounds = table(0, cut=True)
    write_rounds(rounds, tmp_path / "run" / "rounds.parquet")
    write_rounds(rounds, tmp_path / "rounds.jsonl")
    truth = summarise(rounds[rounds["gamma"] > 0])
    for path in (tmp_path / "run", tmp_path / "run" / "rounds.parquet", tmp_path / "rounds.jsonl"):
        log = read_log(path)
        assert (log.engine, log.level, log.rounds, log.emitted) == (
            "specdec",
            "steps",
            truth["rounds"],
            truth["emitted"],
        )
        assert log.mean_acceptance_length == truth["block_efficiency"]
        assert log.mean_acceptance_length_per_request == truth["block_efficiency_per_request"]
        assert log.conditional_acceptance == tuple(truth["conditional_acceptance"])
        assert log.round_table is not None
        pd.testing.assert_frame_equal(log.round_table, rounds)
        assert log.requests is not None
        assert log.requests["rounds"].sum() == truth["rounds"]
        assert "autoregressive steps were left out" in log.notes[0]


def test_ragged_rounds_of_llama_are_weighted_by_request(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text(write_as("llama.cpp", table(3, ragged=True)))
    log = read_log(path)
    assert log.requests is not None
    assert len(log.requests) == 9
    assert log.draft_seconds == pytest.approx(0.01 * (log.rounds or 0), rel=0.01)


def test_writers_refuse_what_they_cannot_print(tmp_path: Path) -> None:
    rounds = table(0)
    with pytest.raises(ValueError, match="unknown engine 'tgi'"):
        write_as("tgi", rounds)
    with pytest.raises(ValueError, match="no round with a draft"):
        write_as("vllm", rounds[rounds["gamma"] == 0])
    with pytest.raises(ValueError, match="accepted <= drafted"):
        write_as("vllm", rounds.assign(accepted=99, emitted=100, depth=rounds["drafted"]))
    write_rounds(rounds[rounds["gamma"] == 0], tmp_path / "rounds.parquet")
    with pytest.raises(ValueError, match="no round with a draft"):
        read_log(tmp_path)
    with pytest.raises(ValueError, match="imported alone, got 2 files"):
        read_log([tmp_path / "rounds.parquet", tmp_path / "rounds.parquet"])
