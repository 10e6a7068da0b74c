"""Controllers in the simulator, and by name."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import ArrayLike

from sim.acceptance import (
    BetaAcceptance,
    IidAcceptance,
    MarkovAcceptance,
    PartialProposals,
    PerPositionAcceptance,
    TraceAcceptance,
)
from sim.confidence import ConfidenceAcceptance
from sim.controllers import (
    Bandit,
    ConfidenceThreshold,
    Controller,
    Costs,
    FixedGamma,
    Goodput,
    Heuristic,
    OffAboveLoad,
    Oracle,
    RejectionThreshold,
    RoundOutcome,
    controller_from_json,
    parse_controller,
)
from sim.engine import run_rounds, simulate, simulate_speedup
from sim.latency import AffineLatency, ConstantLatency, burst_seconds
from sim.records import ROUND_SECONDS, check_rounds
from sim.scenario import Scenario

FULL = Scenario(
    target=AffineLatency(0.9, 0.1, 1e-4),
    draft=AffineLatency(0.05, 0.01, 1e-5),
    acceptance=IidAcceptance(0.8),
    prompt_tokens=40,
    max_new_tokens=200,
    overhead_seconds=0.01,
    proposal_seconds=0.003,
)
RATIOS = Scenario(AffineLatency(0.9, 0.1), ConstantLatency(0.05), IidAcceptance(0.8), rounds=4000)
"""verification of n new tokens costs 0.9 + 0.1 n: the best draft length is 5"""
VERIFY = [1 + 0.1 * n for n in range(17)]
COSTS = Costs(0.05, VERIFY)
TRACE = TraceAcceptance(((1, 3, 2, 5, 1, 1), (4, 1, 2)), ((9, 2, 1, 9, 0, 3), (9, 9, 9)))


@dataclass
class Cycle:
    """Draft lengths in turn, with a record of what it was told."""

    gammas: tuple[int, ...]
    max_gamma: int
    stops_early: bool = False
    foresees: bool = False

    def __post_init__(self) -> None:
        self.seen: list[RoundOutcome] = []
        self.resets = 0

    def next_gamma(self, batch: int = 1) -> int:
        return self.gammas[len(self.seen) % len(self.gammas)]

    def keep_drafting(self, confidence: ArrayLike, entropy: ArrayLike, all_accepted: ArrayLike) -> bool:
        return True

    def foresee(self, accepted: np.ndarray) -> None:
        assert self.foresees

    def observe(self, outcome: RoundOutcome) -> None:
        self.seen.append(outcome)

    def reset(self) -> None:
        self.resets += 1

    def __deepcopy__(self, memo: Any) -> "Cycle":
        return self  # so that a test can read what the simulator's copy saw


def every_controller() -> list[Controller]:
    return [
        FixedGamma(4),
        Heuristic(5, 16),
        Goodput(COSTS, 16),
        ConfidenceThreshold(6, 0.4),
        RejectionThreshold(6, 0.4),
        OffAboveLoad(Heuristic(5, 16), 8),
        Oracle(COSTS, 16),
        Bandit((0, 1, 4)),
    ]


@pytest.mark.parametrize(
    "scenario",
    [
        FULL,
        replace(FULL, last_round="shortened", max_new_tokens=61),
        replace(FULL, max_new_tokens=None, rounds=37),
        replace(FULL, requests=3, acceptance=BetaAcceptance(2, 1)),
        replace(FULL, requests=3, draft_device="own"),
        replace(FULL, acceptance=PartialProposals(IidAcceptance(0.7), (0.4, 0.2, 0.4)), draft=None),
        replace(FULL, requests=3, acceptance=TRACE, request_devices="own"),
        replace(FULL, requests=2, acceptance=TRACE, rounds=50, max_new_tokens=None),
    ],
)
@pytest.mark.parametrize("gamma", [0, 1, 5])
def test_a_fixed_controller_gives_the_table_of_that_gamma_bit_for_bit(scenario: Scenario, gamma: int) -> None:
    fixed = simulate(replace(scenario, gamma=gamma), 7)
    pd.testing.assert_frame_equal(simulate(replace(scenario, controller=FixedGamma(gamma)), 7), fixed, check_exact=True)


@pytest.mark.parametrize("controller", [c for c in every_controller() if not c.stops_early])
@pytest.mark.parametrize("acceptance", [IidAcceptance(0.8), PerPositionAcceptance((0.9, 0.5)), TRACE])
def test_controlled_runs_keep_every_identity_on_both_engines(controller: Controller, acceptance: Any) -> None:
    scenario = replace(FULL, controller=controller, acceptance=acceptance, requests=2, request_devices="own")
    table = simulate(scenario, 1)
    check_rounds(table)
    pd.testing.assert_frame_equal(table, simulate(scenario, 1, "simpy"), check_exact=True)
    assert (table["gamma"] == controller.max_gamma).all()
    for _, request in table.groupby("request_id"):
        tokens = request["emitted"].to_numpy()
        assert tokens.sum() == 200
        np.testing.assert_array_equal(request["context"], 40 + np.cumsum(tokens) - tokens)


def test_the_controller_given_is_left_as_it_was() -> None:
    """Runs use a copy, so that the same seed gives the same run."""
    scenario = replace(FULL, controller=Goodput(COSTS, 16, prior_alpha=0.1), requests=2)
    pd.testing.assert_frame_equal(simulate(scenario, 1), simulate(scenario, 1), check_exact=True)


def test_a_controller_is_told_each_round_and_what_it_cost() -> None:
    cycle = Cycle((3, 0, 1), 8)
    table = simulate(replace(FULL, controller=cycle, requests=2, request_devices="own"), 3)
    assert cycle.resets == 2
    assert [o.gamma for o in cycle.seen] == [(3, 0, 1)[i % 3] for i in range(len(table))]
    for name in ("drafted", "accepted", "emitted"):
        assert np.concatenate([getattr(o, name) for o in cycle.seen]).tolist() == table[name].tolist()
    assert [o.seconds for o in cycle.seen] == pytest.approx(table[list(ROUND_SECONDS)].sum(axis=1).tolist(), rel=1e-12)
    asked = np.array([o.gamma for o in cycle.seen])
    assert (table["drafted"] == asked).all()
    assert (table["draft_seconds"][asked == 0] == 0).all(), "a round that asks for nothing looks nothing up"


def test_a_plain_step_waits_for_no_lookup_where_requests_contend() -> None:
    scenario = replace(FULL, controller=Cycle((3, 0), 3), requests=2, draft_device="own")
    table = simulate(scenario, 3)
    plain = table["draft_seconds"] == 0
    assert plain.any()
    assert (table["other_seconds"] >= 0.01 - 1e-9).all()
    np.testing.assert_allclose(
        table["verify_seconds"][plain], FULL.target.forward_seconds(1, 1, table["context"][plain]), rtol=1e-12
    )


def test_draft_lengths_share_their_random_numbers() -> None:
    """Round k of a short draft accepts what fits of round k of a long one."""
    long, short = (run_rounds(replace(RATIOS, controller=Cycle((gamma,), 8)), 5) for gamma in (8, 3))
    np.testing.assert_array_equal(short.accepted, np.minimum(long.accepted, 3))


@pytest.mark.parametrize("gammas", [(0,), (2,), (1, 4, 0, 7)])
def test_a_trace_is_replayed_by_output_position_whatever_is_asked(gammas: tuple[int, ...]) -> None:
    """Walked by hand: a round at position i drafts min(asked, available) and emits min(length, drafted + 1)."""
    rounds = run_rounds(replace(FULL, acceptance=TRACE, controller=Cycle(gammas, 9), overhead_seconds=0.0), 0)
    position, expected = 0, []
    for k in range(len(rounds.emitted)):
        available = TRACE.available[0] if TRACE.available else ()
        drafted = min(gammas[k % len(gammas)], available[position % 6])
        accepted = min(TRACE.lengths[0][position % 6] - 1, drafted)
        expected.append((drafted, accepted))
        position += accepted + 1
    assert list(zip(rounds.drafted.tolist(), rounds.accepted.tolist(), strict=True)) == expected


def test_the_baseline_of_a_controlled_run_is_plain_decoding() -> None:
    result = simulate_speedup(replace(FULL, controller=Heuristic(5, 16), requests=3, request_devices="own"), 0)
    steps = simulate(replace(FULL, gamma=0, requests=3, request_devices="own"), 0)
    assert result["baseline_seconds"] == pytest.approx(steps[list(ROUND_SECONDS)].to_numpy().sum(), rel=1e-12)
    assert result["speedup"] > 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"controller": ConfidenceThreshold(5, 0.4)},
            "ConfidenceThreshold stops by the draft's confidence, which IidAcceptance does not draw; give Confidence",
        ),
        ({"controller": FixedGamma(3), "gamma": 5}, r"got both \(gamma 5\); FixedGamma\(5\) is gamma 5"),
        ({"controller": FixedGamma(3), "acceptance": MarkovAcceptance(0.9, 0.2)}, "MarkovAcceptance needs one draft"),
        ({"controller": FixedGamma(3), "acceptance": None}, "gamma 3 needs an acceptance model, got None"),
    ],
)
def test_what_a_controller_cannot_run_on_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(FULL, **changes)


@pytest.mark.parametrize("asked", [-1, 9])
def test_a_controller_that_breaks_its_own_limit_is_named(asked: int) -> None:
    with pytest.raises(ValueError, match=f"asked for {asked} tokens, but its max_gamma is 8"):
        simulate(replace(FULL, controller=Cycle((asked,), 8)), 0)


@pytest.mark.parametrize("batch", [1, 3, 256])
def test_controllers_keep_their_protocol(batch: int) -> None:
    for controller in every_controller():
        for _ in range(3):
            controller.foresee(np.full(batch, 2))
            gamma = controller.next_gamma(batch)
            assert controller.next_gamma(batch) == gamma, "asking twice changes nothing"
            assert 0 <= gamma <= controller.max_gamma
            controller.observe(RoundOutcome(gamma, np.full(batch, gamma), np.zeros(batch, int), np.ones(batch, int), 1))
        controller.reset()
        assert controller.stops_early == isinstance(controller, ConfidenceThreshold | RejectionThreshold)
        assert controller.foresees == isinstance(controller, Oracle)
        confidence = np.linspace(0, 1, batch)
        kept = np.broadcast_to(controller.keep_drafting(confidence, 5 * (1 - confidence), confidence), batch)
        assert controller.stops_early or kept.all()
        alone = [controller.keep_drafting(c, 5 * (1 - c), c) for c in confidence]
        np.testing.assert_array_equal(kept, alone)


def test_gamma_0_is_the_run_without_a_draft_bit_for_bit() -> None:
    for changes in ({}, {"requests": 3}, {"requests": 3, "draft_device": "own"}, {"max_new_tokens": None, "rounds": 9}):
        scenario = replace(FULL, **changes)
        plain = simulate(replace(scenario, draft=None, acceptance=None, proposal_seconds=0.0), 7)
        assert set(plain["draft"]) == {"none"}
        pd.testing.assert_frame_equal(simulate(replace(scenario, gamma=0), 7), plain, check_exact=True)
        pd.testing.assert_frame_equal(simulate(replace(scenario, controller=FixedGamma(0)), 7), plain, check_exact=True)


def test_the_simulator_tells_the_oracle_what_would_be_accepted() -> None:
    """At no cost of drafting and a cost for verifying too much, an oracle drafts exactly what is accepted."""
    scenario = replace(FULL, controller=Oracle(Costs(0.0, [1 + 0.01 * n for n in range(17)]), 16), requests=2)
    table = simulate(scenario, 3)
    assert (table["drafted"] == table["accepted"]).all()
    assert table["drafted"].nunique() > 5
    assert table["emitted"].sum() == 400


@pytest.mark.parametrize("controller", [ConfidenceThreshold(6, 0.5), RejectionThreshold(6, 0.5)])
def test_a_controller_that_stops_early_runs_where_acceptance_has_confidence(controller: Controller) -> None:
    scenario = replace(FULL, controller=controller, acceptance=ConfidenceAcceptance(4, 1), requests=3)
    table = simulate(scenario, 1)
    check_rounds(table)
    assert set(table["drafted"]) == {1, 2, 3, 4, 5, 6}
    assert (table["gamma"] == 6).all()
    bursts = burst_seconds(AffineLatency(0.05, 0.01, 1e-5), table["drafted"], table["context"])
    np.testing.assert_allclose(table["draft_seconds"] - 0.003, bursts, rtol=1e-12)


def test_controllers_are_read_from_the_command_line() -> None:
    assert parse_controller("fixed", 0) == FixedGamma(0)
    assert parse_controller("confidence:0.4", 6) == ConfidenceThreshold(6, 0.4)
    assert parse_controller("entropy:0.3", 6) == ConfidenceThreshold(6, 0.3, "entropy")
    heuristic, bandit = parse_controller("heuristic", 12), parse_controller("bandit", 12, seed=3)
    goodput = parse_controller("goodput", 12, COSTS)
    assert parse_controller("rejection:0.7", 6) == RejectionThreshold(6, 0.7)
    assert parse_controller("off_above:32:confidence:0.4", 6) == OffAboveLoad(ConfidenceThreshold(6, 0.4), 32)
    oracle = parse_controller("oracle", 12, COSTS)
    assert isinstance(oracle, Oracle)
    assert oracle.max_gamma == 12
    assert isinstance(heuristic, Heuristic)
    assert (heuristic.next_gamma(), heuristic.max_gamma) == (5, 12)
    assert isinstance(bandit, Bandit)
    assert (list(bandit.gammas), bandit.seed) == ([0, 1, 2, 4, 8, 12], 3)
    assert isinstance(goodput, Goodput)
    assert goodput.max_gamma == 12


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("clever", "controller must be 'fixed', 'heuristic', 'confidence:THRESHOLD'.* or 'off_above:BATCH:.*'clever'"),
        ("off_above:many:fixed", "controller must be .*, got 'off_above:many:fixed'"),
        ("off_above:0:fixed", "max_batch must be a whole number >= 1, got 0"),
        ("off_above:8:clever", "controller must be .*, got 'clever'"),
        ("rejection:often", "controller 'rejection:often' needs a threshold like 'rejection:0.4'"),
        ("oracle", "'oracle' needs the costs of drafting and verifying, got none; measure forwards first"),
        ("fixed:3", "controller must be .*, got 'fixed:3'"),
        ("confidence", "controller must be .*, got 'confidence'"),
        ("entropy:high", "controller 'entropy:high' needs a threshold like 'entropy:0.4'"),
        ("entropy:40", r"threshold must be in \[0, 1\], got 40"),
        ("goodput", "'goodput' needs the costs of drafting and verifying, got none; measure forwards first"),
    ],
)
def test_a_controller_that_cannot_be_read_is_named(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_controller(text, 4)


def test_controllers_are_read_from_scenario_files() -> None:
    same: list[tuple[dict[str, Any], Controller]] = [
        ({"kind": "fixed", "gamma": 3}, FixedGamma(3)),
        ({"kind": "confidence", "max_gamma": 6, "threshold": 0.4}, ConfidenceThreshold(6, 0.4)),
        ({"kind": "entropy", "max_gamma": 6, "threshold": 0.3}, ConfidenceThreshold(6, 0.3, "entropy")),
        ({"kind": "rejection", "max_gamma": 6, "threshold": 0.7}, RejectionThreshold(6, 0.7)),
        ({"kind": "off_above", "max_batch": 9, "inner": {"kind": "fixed", "gamma": 3}}, OffAboveLoad(FixedGamma(3), 9)),
    ]
    for value, controller in same:
        assert controller_from_json(value) == controller
    goodput = controller_from_json({"kind": "goodput", "max_gamma": 5, "prior_alpha": 0.2}, COSTS)
    assert isinstance(goodput, Goodput)
    assert goodput.costs is COSTS
    assert (goodput.max_gamma, goodput.prior_alpha) == (5, 0.2)
    oracle = controller_from_json({"kind": "oracle", "max_gamma": 5}, COSTS)
    assert isinstance(oracle, Oracle)
    assert oracle.costs is COSTS
    bandit = controller_from_json({"kind": "bandit", "gammas": [0, 2], "seed": 4})
    assert isinstance(bandit, Bandit)
    assert (bandit.gammas, bandit.seed) == ([0, 2], 4)
    heuristic = controller_from_json({"kind": "heuristic", "initial": 2, "maximum": 8, "decrease": 0, "factor": 0.5})
    assert isinstance(heuristic, Heuristic)
    assert (heuristic.next_gamma(), heuristic.max_gamma, heuristic.factor) == (2, 8, 0.5)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({}, "controller kind must be 'fixed', .* or 'off_above', got None"),
        ({"kind": "clever"}, "controller kind must be 'fixed', .* or 'off_above', got 'clever'"),
        ({"kind": "fixed"}, "does not fit its kind: .*missing 1 required positional argument: 'gamma'"),
        ({"kind": "fixed", "gamma": 3, "length": 4}, "does not fit its kind: .*unexpected keyword argument 'length'"),
        ({"kind": "off_above", "max_batch": 3}, "controller kind must be 'fixed', .* got None"),
        ({"kind": "goodput", "max_gamma": 4}, "'goodput' needs the costs of drafting and verifying"),
        ({"kind": "confidence", "max_gamma": 4, "threshold": 2}, r"threshold must be in \[0, 1\], got 2"),
    ],
)
def test_a_scenario_file_s_bad_controller_is_named(value: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        controller_from_json(value)
