"""Scenario files, whole: one request (kind `single`) or a server under load (kind `serving`); see sim/scenarios."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sim.controllers import Controller, FixedGamma, controller_from_json
from sim.controllers.latency_costs import LatencyCosts
from sim.engine import simulate_speedup
from sim.hardware import Link
from sim.latency import LatencyModel, latency_from_json
from sim.scenario import Scenario
from sim.scenario_parts import (
    acceptance_from_json,
    build,
    check_keys,
    field_names,
    fitting,
    kind_of,
    naming,
    read_scenario,
)
from sim.serving import Objective, Prefill, ServingScenario, Speculation, serve
from sim.serving.memory import kv_tokens_from_json
from sim.serving.results import measure
from sim.theory import check_cost
from sim.trees import TokenTree
from sim.workload import workload_from_json

__all__ = ["acceptance_from_json", "read_scenario", "run_scenario", "serving_from_json", "single_from_json"]

SINGLE_KEYS = {"latency", "acceptance", "policy", "rounds", "max_new_tokens", "prompt_tokens", "requests"}
SERVING_KEYS = {"arrivals", "lengths", "requests", "trace", "latency", "acceptance", "policy", "batch_limit", "memory"}
SERVING_KEYS |= {"prefill", "objective", "replicas", "route", "warm_up"}


@dataclass(frozen=True)
class Latencies:
    """What takes how long: a scenario's key `latency`."""

    target: LatencyModel
    draft: LatencyModel | None = None
    """None: no draft forwards"""
    overhead_seconds: float = 0.0
    """host time of every round or step"""
    proposal_seconds: float = 0.0
    """host time of every drafting round's lookup"""
    baseline_overhead_seconds: float | None = None
    """host time of a step without speculation; None: overhead_seconds"""
    link: Link | None = None
    """between the devices of draft and target; None: they are the same devices"""

    def __post_init__(self) -> None:
        for name in ("overhead_seconds", "proposal_seconds", "baseline_overhead_seconds"):
            if getattr(self, name) is not None:
                check_cost(name, getattr(self, name))


LATENCY_KEYS = field_names(Latencies)


def run_scenario(value: Mapping[str, Any], seed: int, folder: Path | None = None) -> dict[str, Any]:
    """Run one scenario of any kind, and give its measures flat: one point of a sweep.

    Kinds: single, serving, and the topologies of `sim.topologies` (remote_draft, pearl, dsi, edge_cloud).

    Args:
        value: the scenario.
        seed: of arrivals, lengths and acceptance.
        folder: what paths in it are relative to; None: the current folder.

    Raises:
        ValueError: the scenario is not right; the key is named.
    """
    kind = str(value.get("kind", "serving"))
    match kind:
        case "single":
            scenario, baseline_overhead = single_from_json(value, folder)
            result = simulate_speedup(scenario, seed, baseline_overhead_seconds=baseline_overhead)
            del result["rounds_per_second"]  # a time on this machine, which no seed repeats
            return flat(result)
        case "serving":
            serving, warm_up = serving_from_json(value, seed, folder), warm_up_from_json(value)
            return dict(measure(serving, serve(serving, seed), warm_up).values)
        case "remote_draft" | "pearl" | "dsi" | "edge_cloud":
            from sim.topologies import run_topology

            latency = mapping_of(value, "latency", {"target", "draft", "overhead_seconds"})
            rest = {key: entry for key, entry in value.items() if key != "latency"}
            if isinstance(rest.get("acceptance"), Mapping):
                rest["acceptance"] = acceptance_from_json(rest["acceptance"], folder=folder)
            return dict(run_topology(rest | dict(latency), seed))
    known = "single, serving, remote_draft, pearl, dsi or edge_cloud"
    raise ValueError(f"scenario kind must be {known}, got {kind!r}")


def flat(result: Mapping[str, Any]) -> dict[str, Any]:
    """Intervals as two values, `_lo` and `_hi`."""
    values: dict[str, Any] = {}
    for name, value in result.items():
        if name.endswith("_ci"):
            values |= {f"{name[:-3]}_lo": value[0], f"{name[:-3]}_hi": value[1]}
        else:
            values[name] = value
    return values


def single_from_json(value: Mapping[str, Any], folder: Path | None = None) -> tuple[Scenario, float | None]:
    """One request, or several that do not contend: latency, acceptance, policy, and rounds or max_new_tokens.

    Returns:
        The scenario, and the host time of a step without speculation (None: the scenario's own overhead).

    Raises:
        ValueError: a key is unknown or missing, or a value out of range.
    """
    given = {key: entry for key, entry in value.items() if key != "kind"}
    check_keys("a single scenario", given, SINGLE_KEYS)
    latency = latencies_from_json(given, LATENCY_KEYS - {"link"})
    prompt_tokens = given.get("prompt_tokens", 0)
    policy = policy_from_json(given.get("policy"), latency, fitting("prompt_tokens", "int", prompt_tokens))
    drafts: dict[str, Any] = {"gamma": 0}
    match policy:
        case TokenTree():
            drafts = {"tree": policy}
        case FixedGamma():
            drafts = {"gamma": policy.gamma}
        case None:
            pass
        case _:
            drafts = {"controller": policy}
    if policy is not None:
        tree = policy if isinstance(policy, TokenTree) else None
        drafts["acceptance"] = acceptance_from_json(given.get("acceptance"), tree, folder)
    counts = {key: given[key] for key in ("rounds", "max_new_tokens", "prompt_tokens", "requests") if key in given}
    host = {"overhead_seconds": latency.overhead_seconds, "proposal_seconds": latency.proposal_seconds}
    models = {"target": latency.target, "draft": latency.draft, "request_devices": "own"}
    scenario = build("a single scenario", Scenario, {**models, **drafts, **counts, **host})
    return scenario, latency.baseline_overhead_seconds


def serving_from_json(value: Mapping[str, Any], seed: int, folder: Path | None = None) -> ServingScenario:
    """A server and its requests: arrivals, lengths, latency, acceptance, policy, batch_limit, memory, and more.

    Args:
        value: the scenario.
        seed: of arrivals and lengths.
        folder: what paths are relative to.

    Raises:
        ValueError: a key is unknown or missing, or a value out of range.
    """
    given = {key: entry for key, entry in value.items() if key != "kind"}
    check_keys("a serving scenario", given, SERVING_KEYS)
    latency = latencies_from_json(given, LATENCY_KEYS - {"baseline_overhead_seconds"})
    workload = workload_from_json(workload_keys(given), folder).sample(seed)
    context = float((workload.prompt_tokens + workload.output_tokens / 2).mean())
    policy = policy_from_json(given.get("policy"), latency, context)
    speculation = None
    if policy is not None:
        tree = policy if isinstance(policy, TokenTree) else None
        model = acceptance_from_json(given.get("acceptance"), tree, folder)
        speculation = Speculation(policy, model, latency.draft, latency.proposal_seconds, latency.link)
    drafts = speculation is not None and speculation.max_gamma > 0
    kv_tokens, block_tokens = kv_tokens_from_json(given.get("memory"), given["latency"], drafts)
    settings = {key: given[key] for key in ("batch_limit", "replicas", "route") if key in given} | {
        "target": latency.target,
        "workload": workload,
        "speculation": speculation,
        "kv_tokens": kv_tokens,
        "block_tokens": block_tokens,
        "prefill": prefill_from_json(given.get("prefill", {})),
        "overhead_seconds": latency.overhead_seconds,
        "objective": build("objective", Objective, given.get("objective", {})),
    }
    return build("a serving scenario", ServingScenario, settings)


def warm_up_from_json(value: Mapping[str, Any]) -> int | Literal["auto"]:
    """How many requests at its start a serving scenario does not measure (see `sim.serving.results.measure`)."""
    given = value.get("warm_up", "auto")
    return "auto" if given == "auto" else int(fitting("warm_up, unless it is auto,", "int", given))


def latencies_from_json(given: Mapping[str, Any], known: set[str]) -> Latencies:
    """Build what a scenario's key `latency` says; a draft or a link that is missing or null is none.

    Args:
        given: the scenario.
        known: keys that `latency` may have.
    """
    value = dict(mapping_of(given, "latency", known))
    if value.get("target") is None:
        raise ValueError("latency lacks target, such as {kind: affine, fixed_seconds: 0.02}")
    for name in ("target", "draft"):
        if value.get(name) is not None:
            kind_of(f"latency {name}", value[name])
            value[name] = naming(f"latency {name}", latency_from_json, value[name])
    if value.get("link") is not None:
        value["link"] = build("latency link", Link, value["link"])
    return build("latency", Latencies, value)


def policy_from_json(value: Any, latency: Latencies, context: float) -> Controller | TokenTree | None:
    """Build a policy: a controller's mapping, `{kind: tree, tree: "3,2,1"}`, or None for no speculation.

    Controllers that weigh costs are told those of the scenario, at its mean context.
    """
    if value is None:
        return None
    kind, given = kind_of("policy", value)
    if kind == "none":
        check_keys("policy", given, set())
        return None
    if kind == "tree":
        check_keys("policy", given, {"tree"})
        if "tree" not in given:
            raise ValueError("policy of kind 'tree' lacks tree, such as '3,2,1'")
        return naming("policy", TokenTree.parse, str(given["tree"]))
    longest = longest_draft(value)
    costs = None
    if longest is not None:
        host = latency.overhead_seconds, latency.proposal_seconds
        costs = naming("policy", LatencyCosts, latency.draft, latency.target, longest, context, *host)
    return naming("policy", controller_from_json, value, costs)


def longest_draft(policy: Mapping[str, Any]) -> int | None:
    """`max_gamma` of a controller that weighs costs, however deep inside; None for all others."""
    inner = policy.get("inner")
    if isinstance(inner, Mapping):
        return longest_draft(inner)
    if policy.get("kind") not in ("goodput", "oracle"):
        return None
    if "max_gamma" not in policy:
        raise ValueError(f"policy of kind {policy['kind']!r} lacks max_gamma, the longest draft")
    return int(fitting("max_gamma of policy", "int", policy["max_gamma"]))


def workload_keys(given: Mapping[str, Any]) -> dict[str, Any]:
    """What `sim.workload.workload_from_json` takes: a trace, or arrivals and both lengths."""
    if "trace" in given:
        if "arrivals" in given or "lengths" in given:
            raise ValueError("give a trace, or arrivals and lengths, not both")
        trace = given["trace"] if isinstance(given["trace"], Mapping) else {"trace": given["trace"]}
        return {**trace, **({"requests": given["requests"]} if "requests" in given else {})}
    lengths = mapping_of(given, "lengths", {"prompt", "output"})
    missing = [key for key in ("requests", "arrivals") if key not in given]
    missing += [f"lengths.{key}" for key in ("prompt", "output") if key not in lengths]
    if missing:
        raise ValueError(f"a serving scenario lacks {', '.join(missing)}; or give a trace")
    return {"requests": given["requests"], "arrivals": given["arrivals"], **lengths}


def prefill_from_json(value: Any) -> Prefill:
    """Build how prompts are read: mode, tokens, devices, link, kv_bytes_per_token."""
    given = dict(mapping_of({"prefill": value}, "prefill", field_names(Prefill)))
    if given.get("link") is not None:
        given["link"] = build("prefill link", Link, given["link"])
    return build("prefill", Prefill, given)


def mapping_of(given: Mapping[str, Any], key: str, known: set[str]) -> Mapping[str, Any]:
    """A key's mapping, empty where the key is missing, with no unknown keys."""
    value = given.get(key, {})
    if not isinstance(value, Mapping):
        raise ValueError(f"{key} must be a mapping, got {value!r}")
    check_keys(key, value, known)
    return value
