"""Statistical tests compare a mean with its closed form within 4 standard errors: 6.3e-5 false alarms a cell."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from sim.acceptance import IidAcceptance, MarkovAcceptance, PartialProposals, PerPositionAcceptance, TraceAcceptance
from sim.controllers import FixedGamma
from sim.engine import simulate, simulate_speedup
from sim.hardware import Link
from sim.latency import AffineLatency, ConstantLatency
from sim.records import ROUND_SECONDS, check_rounds, summarise
from sim.scenario import Scenario
from sim.theory import expected_tokens
from sim.topologies.remote_draft import DraftMessage, remote_draft
from sim.topologies.theory import remote_round_seconds

NO_LINK = Link(math.inf, 0.0)
CONSTANT = Scenario(
    ConstantLatency(1.0), ConstantLatency(0.1), IidAcceptance(0.8), 4, rounds=20_000, draft_device="own"
)
FULL = replace(
    CONSTANT,
    target=AffineLatency(0.3, 0.01, 1e-4),
    draft=AffineLatency(0.05, 0.01, 1e-5),
    prompt_tokens=40,
    rounds=None,
    max_new_tokens=300,
    overhead_seconds=0.013,
)
VARIANTS = [
    CONSTANT,
    FULL,
    replace(FULL, last_round="shortened"),
    replace(FULL, acceptance=PerPositionAcceptance((0.9, 0.4))),
    replace(FULL, acceptance=MarkovAcceptance(0.9, 0.3), max_new_tokens=1),
    replace(FULL, acceptance=TraceAcceptance(((1, 3, 2, 4),))),
    replace(FULL, acceptance=PartialProposals(IidAcceptance(0.7), (0.4, 0.2, 0.4))),
]


def test_a_round_lasts_what_the_closed_form_says_to_the_last_bit() -> None:
    link, message = Link(3e6, 0.013), DraftMessage(vocab=32_000, top_k=64)
    run = remote_draft(CONSTANT, link, 1, message)
    seconds = run.table["draft_seconds"] + run.table["verify_seconds"] + run.table["other_seconds"]
    assert set(seconds) == {float(remote_round_seconds(4, 0.1, 1.0, link, message))}
    assert run.summary["draft_bytes"] == 4 * 20_000 * (4 + 64 * 6)


def test_speed_and_tokens_match_their_expectation_and_a_round_without_bonus_does_not() -> None:
    """Tokens of eq. 1 per round of known length; the mutant forgets the bonus token after four accepted ones."""
    for alpha in (0.0, 0.3, 0.8, 0.95, 1.0):
        run = remote_draft(replace(CONSTANT, acceptance=IidAcceptance(alpha)), Link(1e6, 0.2), 5)
        emitted = run.table["emitted"].to_numpy()
        error = emitted.std(ddof=1) / math.sqrt(len(emitted))
        expected = float(expected_tokens(alpha, 4))
        assert abs(emitted.mean() - expected) <= 4 * error + 1e-12
        speedup = expected / float(remote_round_seconds(4, 0.1, 1.0, Link(1e6, 0.2), DraftMessage()))
        assert abs(run.summary["speedup"] - speedup) <= 4 * error * speedup / expected + 1e-9
        if alpha > 0.5:
            mutant = emitted - (run.table["accepted"] == 4)
            assert abs(mutant.mean() - expected) > 4 * error


@pytest.mark.parametrize("scenario", VARIANTS)
def test_without_a_link_it_is_the_engine_to_the_last_bit(scenario: Scenario) -> None:
    run = remote_draft(scenario, NO_LINK, 7)
    pd.testing.assert_frame_equal(run.table, simulate(scenario, 7), check_exact=True)
    if len(run.table) > 1:
        whole = simulate_speedup(scenario, 7)
        assert run.summary["speedup"] == pytest.approx(whole["speedup"], rel=1e-14)
        assert [run.summary["speedup_lo"], run.summary["speedup_hi"]] == pytest.approx(whole["speedup_ci"], rel=1e-12)
    else:
        assert math.isnan(run.summary["speedup_lo"])


@pytest.mark.parametrize("scenario", VARIANTS)
def test_every_round_starts_when_the_last_one_ends_and_counts_its_forwards(scenario: Scenario) -> None:
    run = remote_draft(scenario, Link(1e5, 0.01), 3)
    check_rounds(run.table)
    summarise(run.table)
    wall = run.table[list(ROUND_SECONDS)].sum(axis=1).to_numpy()
    np.testing.assert_allclose(run.table["start_seconds"], np.cumsum(wall) - wall, rtol=1e-12, atol=1e-12)
    assert run.summary["draft_forwards"] == run.table["drafted"].sum()
    kept = np.minimum(run.table["accepted"], run.table["emitted"]).sum()
    assert run.summary["wasted_draft_forwards"] == run.summary["draft_forwards"] - kept
    assert run.summary["seconds"] == pytest.approx(wall.sum(), rel=1e-12)


def test_a_message_has_the_bytes_it_names() -> None:
    assert DraftMessage().size_bytes(5) == 20
    assert DraftMessage(vocab=1000).size_bytes([0, 1, 2]).tolist() == [0, 2004, 4008]
    assert DraftMessage(vocab=1000, bytes_per_probability=4, top_k=10).size_bytes(3) == 3 * (4 + 10 * 8)


def test_bad_input_is_named() -> None:
    for change, message in (
        ({"draft_device": "shared"}, "draft_device 'shared'"),
        ({"draft": None}, "needs a draft model and gamma >= 1, got draft None and gamma 4"),
        ({"gamma": 0}, "needs a draft model and gamma >= 1.*gamma 0"),
        ({"requests": 2}, "simulates one request, got requests 2"),
        ({"proposal_seconds": 0.1}, r"got proposal_seconds 0\.1"),
    ):
        with pytest.raises(ValueError, match=f"remote_draft.*{message}"):
            remote_draft(replace(CONSTANT, **change), NO_LINK, 0)
    with pytest.raises(ValueError, match=r"remote_draft.*FixedGamma"):
        remote_draft(replace(CONSTANT, gamma=0, controller=FixedGamma(3)), NO_LINK, 0)
    with pytest.raises(ValueError, match="top_k must be at most vocab 8, got 9"):
        DraftMessage(vocab=8, top_k=9)
    with pytest.raises(ValueError, match="vocab must be >= 1, got 0"):
        DraftMessage(vocab=0)
