"""What a run of any topology gives back, and what all of them share: checks, drafts that agree, the baseline."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from sim.acceptance import AcceptanceModel, IidAcceptance, IntArray, PerPositionAcceptance
from sim.engine import batch_edges, ratio_interval
from sim.latency import LatencyModel
from sim.rounds import plan_baseline
from sim.scenario import Scenario
from sim.theory import FloatArray

WINDOW = 64
"""tokens searched at a time for the first that disagrees"""


@dataclass(frozen=True)
class TopologyRun:
    """One simulated run."""

    table: pd.DataFrame
    """a round table (see `sim.records`)"""
    summary: dict[str, float]
    """the run in figures; each topology says which"""


@dataclass(frozen=True)
class Forwards:
    """How many forwards a run started, and how many of them left nothing in the output."""

    draft: int
    wasted_draft: int
    target: int
    wasted_target: int


def check_apart(topology: str, scenario: Scenario, counted_in_tokens: bool = False) -> LatencyModel:
    """Check that a scenario is one request whose draft model has a device of its own, and give the draft's latency.

    Args:
        topology: name for the errors.
        scenario: what to simulate.
        counted_in_tokens: whether the topology needs max_new_tokens.

    Raises:
        ValueError: the scenario has something that the topology does not simulate.
    """
    if scenario.controller is not None:
        raise ValueError(f"{topology} needs one gamma, got {type(scenario.controller).__name__}; give gamma instead")
    if scenario.draft is None or scenario.gamma < 1:
        raise ValueError(
            f"{topology} needs a draft model and gamma >= 1, got draft {scenario.draft} and gamma {scenario.gamma}; "
            "sim.engine.simulate takes lookups and autoregressive decoding"
        )
    if scenario.draft_device != "own":
        raise ValueError(
            f"{topology} has the draft on a device of its own, got draft_device {scenario.draft_device!r}; "
            "give 'own', or use sim.engine.simulate"
        )
    if scenario.requests != 1:
        raise ValueError(f"{topology} simulates one request, got requests {scenario.requests}; give one seed to each")
    if scenario.proposal_seconds:
        raise ValueError(f"{topology} has no lookup, got proposal_seconds {scenario.proposal_seconds}; give 0")
    if counted_in_tokens and scenario.max_new_tokens is None:
        raise ValueError(f"{topology} ends at max_new_tokens, got rounds {scenario.rounds}; give max_new_tokens")
    return scenario.draft


def agreement_chances(topology: str, acceptance: AcceptanceModel | None, tokens: int) -> FloatArray:
    """Chance that each drafted token since the last correction agrees with the target, given that the ones before did.

    Args:
        topology: name for the error.
        acceptance: iid or per-position; a position is counted from the last correction, however many forwards ago.
        tokens: how many chances.

    Raises:
        ValueError: acceptance is of another kind.
    """
    match acceptance:
        case IidAcceptance(alpha):
            return PerPositionAcceptance((alpha,)).at(tokens)
        case PerPositionAcceptance():
            return acceptance.at(tokens)
    raise ValueError(
        f"{topology} drafts on across verifications, so acceptance must be iid or per-position, got "
        f"{type(acceptance).__name__}; fit one of these first"
    )


def agreeing_tokens(uniform: FloatArray, chances: FloatArray, first: int) -> int:
    """How many drafted tokens from output position `first` on agree with the target before one does not.

    Args:
        uniform: one random number per output position [tokens].
        chances: chance of agreement by position since the last correction [tokens].
        first: where the draft starts.

    Returns:
        0 to len(uniform) - first.
    """
    for start in range(first, len(uniform), WINDOW):
        piece = uniform[start : start + WINDOW]
        differs = np.flatnonzero(piece >= chances[start - first : start - first + len(piece)])
        if differs.size:
            return int(start + differs[0] - first)
    return len(uniform) - first


def labels(scenario: Scenario) -> dict[str, str]:
    """The round table's labels of a scenario: its draft, category and phase."""
    named = {"draft": scenario.draft_name, "category": scenario.category, "phase": scenario.phase}
    return {name: label for name, label in named.items() if label is not None}


def successive_starts(wall_seconds: FloatArray) -> FloatArray:
    """When each round starts if it follows the one before at once [rounds]."""
    start: FloatArray = np.zeros(len(wall_seconds))
    np.cumsum(wall_seconds[:-1], out=start[1:])
    return start


def step_seconds(scenario: Scenario, tokens: int) -> FloatArray:
    """Autoregressive decoding on the target's device, at the same contexts: seconds of each token [tokens]."""
    return plan_baseline(scenario, np.array([tokens])).wall_seconds


def speedup_figures(
    counts: IntArray, emitted: IntArray, seconds: FloatArray, baseline_seconds: FloatArray
) -> dict[str, float]:
    """The speedup with its 95% interval of a ratio of batch means, as `sim.engine.simulate_speedup` forms it.

    Args:
        counts: rounds of each request [requests].
        emitted: tokens of each round, request after request [rounds].
        seconds: wall time of each round [rounds].
        baseline_seconds: wall time of each token without speculation [tokens].

    Returns:
        speedup, speedup_lo and speedup_hi; the last two are NaN where there is only one round.
    """
    edges = batch_edges(counts)
    tokens = np.add.reduceat(emitted, edges)
    slow = np.add.reduceat(baseline_seconds, np.concatenate([[0], np.cumsum(tokens)[:-1]]))
    fast = np.add.reduceat(seconds, edges)
    if len(edges) < 2:
        return {"speedup": float(slow.sum() / fast.sum()), "speedup_lo": math.nan, "speedup_hi": math.nan}
    ratio, (low, high) = ratio_interval(slow, fast)
    return {"speedup": ratio, "speedup_lo": low, "speedup_hi": high}


def summarise_request(
    scenario: Scenario, emitted: IntArray, wall_seconds: FloatArray, forwards: Forwards
) -> dict[str, float]:
    """One request in figures.

    Args:
        scenario: what was simulated.
        emitted: tokens of each round [rounds].
        wall_seconds: wall time of each round [rounds].
        forwards: what the run started.

    Returns:
        rounds, tokens, seconds, block_efficiency (tokens per round), autoregressive_seconds, speedup with speedup_lo
        and speedup_hi (95%; NaN for a single round), draft_forwards, wasted_draft_forwards, target_forwards and
        wasted_target_forwards (started, but without a token in the output).
    """
    baseline = step_seconds(scenario, int(emitted.sum()))
    figures = {
        "rounds": len(emitted),
        "tokens": emitted.sum(),
        "seconds": wall_seconds.sum(),
        "block_efficiency": emitted.mean(),
        "autoregressive_seconds": baseline.sum(),
        "draft_forwards": forwards.draft,
        "wasted_draft_forwards": forwards.wasted_draft,
        "target_forwards": forwards.target,
        "wasted_target_forwards": forwards.wasted_target,
    }
    counts = np.array([len(emitted)])
    return {name: float(value) for name, value in figures.items()} | speedup_figures(
        counts, emitted, wall_seconds, baseline
    )
