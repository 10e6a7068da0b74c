from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.interruptions import cap_interruptions
from sim.records import ROUND_SECONDS, make_rounds


def noisy_rounds(count: int = 400) -> pd.DataFrame:
    """Rounds of two kinds whose times spread by 5%."""
    rng = np.random.default_rng(0)
    drafted = np.arange(count) % 2 * 3
    return make_rounds(
        request_id=[f"r{i % 8}" for i in range(count)],
        round_index=np.arange(count) // 8,
        batch=1,
        context=100,
        gamma=3,
        drafted=drafted,
        accepted=0,
        emitted=1,
        cut=False,
        start_seconds=np.arange(count, dtype=float),
        draft_seconds=0.01 * drafted * np.exp(0.05 * rng.standard_normal(count)),
        verify_seconds=(0.03 + 0.01 * drafted) * np.exp(0.05 * rng.standard_normal(count)),
        other_seconds=0.001 * np.exp(0.05 * rng.standard_normal(count)),
        draft="d",
        phase="evaluation",
    )


def test_undisturbed_rounds_stay_as_they_are() -> None:
    rounds = noisy_rounds()
    pd.testing.assert_frame_equal(cap_interruptions(rounds), rounds)


def test_an_interrupted_round_costs_about_as_much_as_its_kind() -> None:
    rounds = noisy_rounds()
    disturbed = rounds.copy()
    disturbed.loc[41, "verify_seconds"] = 5.0
    capped = cap_interruptions(disturbed)
    kind = rounds[rounds["drafted"] == rounds.loc[41, "drafted"]]["verify_seconds"]
    assert kind.median() < capped.loc[41, "verify_seconds"] < 1.5 * kind.median()
    untouched = [name for name in disturbed if name not in ROUND_SECONDS]
    pd.testing.assert_frame_equal(capped[untouched], disturbed[untouched])
    assert disturbed.loc[41, "verify_seconds"] == 5.0


def test_a_slow_spell_that_lasts_remains() -> None:
    rounds = noisy_rounds()
    rounds.loc[:250, "verify_seconds"] *= 2
    capped = cap_interruptions(rounds)
    assert capped["verify_seconds"].sum() > 0.99 * rounds["verify_seconds"].sum()


def test_rare_kinds_are_judged_with_all_rounds_of_their_draft() -> None:
    rounds = noisy_rounds()
    rounds.loc[7, ["drafted", "verify_seconds"]] = [1, 4.0]
    capped = cap_interruptions(rounds)
    assert capped.loc[7, "verify_seconds"] < 0.3
