"""Draft and target in different places, by name: what a scenario file or a sweep asks for.

Draft and target on one device, or on two without a link, is `sim.engine`. Here are a draft a link away
(`remote_draft`), a draft that works ahead while the target verifies (`pearl`), one draft and several target servers
(`dsi`), and clients that draft at the edge of one cloud (`edge_cloud`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sim.hardware import Link
from sim.latency import LatencyModel, latency_from_json
from sim.scenario import Scenario
from sim.scenario_parts import acceptance_from_json, build, check_keys
from sim.topologies.dsi import dsi
from sim.topologies.edge_cloud import EdgeClient, EdgeRun, edge_cloud
from sim.topologies.pearl import pearl
from sim.topologies.remote_draft import TOKENS_ALONE, DraftMessage, remote_draft
from sim.topologies.run import TopologyRun


@dataclass(frozen=True)
class RemoteDraft:
    """Arguments of `remote_draft`."""

    scenario: Scenario
    link: Link
    message: DraftMessage = TOKENS_ALONE


@dataclass(frozen=True)
class Pearl:
    """Arguments of `pearl`."""

    scenario: Scenario


@dataclass(frozen=True)
class Dsi:
    """Arguments of `dsi`."""

    scenario: Scenario
    target_servers: int


@dataclass(frozen=True)
class EdgeCloud:
    """Arguments of `edge_cloud`."""

    clients: tuple[EdgeClient, ...]
    batch_limit: int


Topology = RemoteDraft | Pearl | Dsi | EdgeCloud

SCENARIO_KEYS = ("gamma", "rounds", "max_new_tokens", "prompt_tokens", "last_round", "overhead_seconds", "draft_name")
"""fields of `Scenario` that are taken as they are"""
OWN = {"draft_device": "own"}


def simulate_topology(topology: Topology, seed: int | np.random.Generator) -> TopologyRun | EdgeRun:
    """Simulate any of the topologies."""
    match topology:
        case RemoteDraft(scenario, link, message):
            return remote_draft(scenario, link, seed, message)
        case Pearl(scenario):
            return pearl(scenario, seed)
        case Dsi(scenario, target_servers):
            return dsi(scenario, target_servers, seed)
        case EdgeCloud(clients, batch_limit):
            return edge_cloud(clients, batch_limit, seed)


def run_topology(value: Mapping[str, Any], seed: int | np.random.Generator) -> dict[str, float]:
    """Simulate a topology given in its JSON form (see `topology_from_json`), and give its figures."""
    return simulate_topology(topology_from_json(value), seed).summary


def topology_from_json(value: Mapping[str, Any]) -> Topology:
    """Build a topology from its JSON form.

    All kinds have `target` and `draft` (see `sim.latency.latency_from_json`), `acceptance` (see
    `sim.scenario_parts.acceptance_from_json`) and fields of `sim.scenario.Scenario`: gamma, max_new_tokens or rounds,
    prompt_tokens, last_round, overhead_seconds, draft_name. Besides:

    - `{"kind": "remote_draft", "link": {"bandwidth": bytes/s, "latency": s}, "message": {"vocab": n,
      "bytes_per_probability": n, "top_k": n}}`; without a message, token ids alone.
    - `{"kind": "pearl"}`.
    - `{"kind": "dsi", "target_servers": n, "lookahead": n}`, the lookahead instead of gamma.
    - `{"kind": "edge_cloud", "batch_limit": n, "clients": [{"count": n, ...}, ...]}`: a client has all that
      remote_draft has but the target, or takes it from the topology; `count` like clients, 1 where it is left out.

    Latencies and acceptance may be given as models instead.

    Raises:
        ValueError: the kind is unknown, a key is missing or unknown, or a model refuses its values.
    """
    fields = {name: entry for name, entry in value.items() if name != "kind"}
    match value.get("kind"):
        case "remote_draft":
            own = _take(fields, "link", "message")
            return RemoteDraft(_scenario(fields), *_connection(own))
        case "pearl":
            return Pearl(_scenario(fields))
        case "dsi":
            own = _take(fields, "target_servers", "lookahead")
            if "gamma" in fields:
                raise ValueError(f"dsi has lookahead instead of gamma, got gamma {fields['gamma']!r}")
            return Dsi(_scenario(fields | {"gamma": _need(own, "lookahead")}), _need(own, "target_servers"))
        case "edge_cloud":
            own = _take(fields, "batch_limit", "clients")
            clients = [client for each in _need(own, "clients") for client in _clients(fields, each)]
            return EdgeCloud(tuple(clients), _need(own, "batch_limit"))
        case kind:
            raise ValueError(
                f"topology kind must be 'remote_draft', 'pearl', 'dsi' or 'edge_cloud', got {kind!r}; "
                "sim.engine simulates draft and target in one place"
            )


def _clients(shared: Mapping[str, Any], each: Mapping[str, Any]) -> list[EdgeClient]:
    """Like clients: what they say, and what they leave to the topology."""
    fields = {**shared, **each}
    own = _take(fields, "link", "message", "count")
    count = own.pop("count", 1)
    if not isinstance(count, int) or count < 1:
        raise ValueError(f"a client's count must be a whole number >= 1, got {count!r}")
    return [EdgeClient(_scenario(fields), *_connection(own))] * count


def _scenario(fields: Mapping[str, Any]) -> Scenario:
    """The scenario of a topology's keys; its draft has a device of its own."""
    check_keys("a topology", fields, {"target", "draft", "acceptance", *SCENARIO_KEYS})
    target, draft = (_latency(_need(fields, name)) for name in ("target", "draft"))
    acceptance = _need(fields, "acceptance")
    if isinstance(acceptance, Mapping):
        acceptance = acceptance_from_json(acceptance)
    settings = {name: fields[name] for name in SCENARIO_KEYS if name in fields}
    return build("a topology", Scenario, settings | {"target": target, "draft": draft, "acceptance": acceptance} | OWN)


def _latency(value: Mapping[str, Any] | LatencyModel) -> LatencyModel:
    return latency_from_json(value) if isinstance(value, Mapping) else value


def _connection(own: Mapping[str, Any]) -> tuple[Link, DraftMessage]:
    """The link, and what the draft sends over it."""
    return build("link", Link, _need(own, "link")), build("message", DraftMessage, own.get("message", {}))


def _take(fields: dict[str, Any], *names: str) -> dict[str, Any]:
    """Take the named keys out of `fields`, those that are there."""
    return {name: fields.pop(name) for name in names if name in fields}


def _need(fields: Mapping[str, Any], name: str) -> Any:
    if name not in fields:
        raise ValueError(f"a topology needs {name}, got only {sorted(fields)}")
    return fields[name]
