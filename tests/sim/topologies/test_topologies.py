import math
from typing import Any

import pytest

from sim.acceptance import IidAcceptance, PerPositionAcceptance
from sim.hardware import Link
from sim.latency import AffineLatency, ConstantLatency
from sim.scenario import Scenario
from sim.topologies import Dsi, EdgeCloud, Pearl, RemoteDraft, run_topology, simulate_topology, topology_from_json
from sim.topologies.dsi import dsi
from sim.topologies.edge_cloud import EdgeClient, edge_cloud
from sim.topologies.pearl import pearl
from sim.topologies.remote_draft import DraftMessage, remote_draft

MODELS: dict[str, Any] = {
    "target": {"kind": "affine", "fixed_seconds": 0.3, "seconds_per_token": 0.01},
    "draft": {"kind": "constant", "seconds": 0.05},
    "acceptance": {"kind": "iid", "alpha": 0.8},
    "max_new_tokens": 120,
}
SCENARIO = Scenario(
    AffineLatency(0.3, 0.01), ConstantLatency(0.05), IidAcceptance(0.8), 4, max_new_tokens=120, draft_device="own"
)
LINK = {"bandwidth": 1e6, "latency": 0.02}
REMOTE = MODELS | {"kind": "remote_draft", "gamma": 4, "link": LINK, "message": {"vocab": 1000, "top_k": 8}}
PEARL = MODELS | {"kind": "pearl", "gamma": 4}
DSI = MODELS | {"kind": "dsi", "lookahead": 4, "target_servers": 3}
EDGE = MODELS | {
    "kind": "edge_cloud",
    "gamma": 4,
    "batch_limit": 2,
    "link": LINK,
    "clients": [
        {"count": 2},
        {
            "draft": {"kind": "constant", "seconds": 0.1},
            "acceptance": {"kind": "per_position", "conditional": [0.9, 0.5]},
            "gamma": 2,
            "link": {"bandwidth": math.inf, "latency": 0.0},
            "message": {"vocab": 1000},
        },
    ],
}


def test_json_forms_run_what_the_functions_run() -> None:
    link = Link(1e6, 0.02)
    assert run_topology(REMOTE, 1) == remote_draft(SCENARIO, link, 1, DraftMessage(1000, top_k=8)).summary
    assert run_topology(PEARL, 1) == pearl(SCENARIO, 1).summary
    assert run_topology(DSI, 1) == dsi(SCENARIO, 3, 1).summary
    other = Scenario(
        AffineLatency(0.3, 0.01),
        ConstantLatency(0.1),
        PerPositionAcceptance((0.9, 0.5)),
        2,
        max_new_tokens=120,
        draft_device="own",
    )
    clients = [EdgeClient(SCENARIO, link)] * 2 + [EdgeClient(other, Link(math.inf, 0.0), DraftMessage(1000))]
    assert run_topology(EDGE, 1) == edge_cloud(clients, 2, 1).summary


@pytest.mark.parametrize("value", [REMOTE, PEARL, DSI, EDGE])
def test_every_figure_is_a_number_that_names_speed_and_waste(value: dict[str, Any]) -> None:
    figures = run_topology(value, 0)
    assert all(isinstance(figure, float) and math.isfinite(figure) for figure in figures.values())
    names = "seconds tokens rounds draft_forwards wasted_draft_forwards target_forwards wasted_target_forwards speedup"
    assert set(names.split()) <= set(figures)
    assert figures["speedup_lo"] < figures["speedup"] < figures["speedup_hi"]
    assert 0 <= figures["wasted_draft_forwards"] <= figures["draft_forwards"]
    assert 0 <= figures["wasted_target_forwards"] <= figures["target_forwards"]


def test_models_may_be_given_ready_made() -> None:
    ready = {"target": SCENARIO.target, "draft": SCENARIO.draft, "acceptance": SCENARIO.acceptance}
    assert topology_from_json(REMOTE | ready) == topology_from_json(REMOTE)
    assert [type(topology_from_json(value)) for value in (REMOTE, PEARL, DSI, EDGE)] == [
        RemoteDraft,
        Pearl,
        Dsi,
        EdgeCloud,
    ]
    run = simulate_topology(topology_from_json(PEARL), 1)
    assert run.table["emitted"].sum() == 120


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (MODELS | {"kind": "ring"}, "topology kind must be .* got 'ring'"),
        (PEARL | {"link": LINK}, "a topology does not know link"),
        (DSI | {"gamma": 3}, "dsi has lookahead instead of gamma"),
        ({key: entry for key, entry in DSI.items() if key != "target_servers"}, "needs target_servers"),
        ({key: entry for key, entry in REMOTE.items() if key != "link"}, "needs link"),
        ({key: entry for key, entry in PEARL.items() if key != "acceptance"}, "needs acceptance"),
        (REMOTE | {"link": {"bandwidth": 1e6}}, "link lacks latency"),
        (REMOTE | {"message": {"words": 3}}, "message does not know words"),
        (PEARL | {"acceptance": {"kind": "iid", "alpha": 2}}, r"alpha must be in \[0, 1\]"),
        (PEARL | {"target": {"kind": "free"}}, "latency kind must be"),
        (PEARL | {"gamma": 0}, "pearl needs a draft model and gamma >= 1"),
        (EDGE | {"clients": [{"count": 0}]}, "count must be a whole number >= 1, got 0"),
        (EDGE | {"clients": []}, "at least one client"),
    ],
)
def test_bad_input_is_named(value: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run_topology(value, 0)
