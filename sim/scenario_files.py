"""Scenario files, whole: one request (kind `single`) or a server under load (kind `serving`); see sim/scenarios."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sim.controllers import Controller, FixedGamma, controller_from_json
from sim.engine import simulate_speedup
from sim.hardware import Link
from sim.latency import LatencyModel, latency_from_json
from sim.latency_costs import LatencyCosts
from sim.memory import kv_tokens_from_json
from sim.scenario import Scenario
from sim.scenario_parts import acceptance_from_json, build, check_keys, field_names, kind_of, read_scenario
from sim.serving import Objective, Prefill, ServingScenario, Speculation, serve
from sim.serving.results import measure
from sim.trees import TokenTree
from sim.workload import workload_from_json

__all__ = ["acceptance_from_json", "read_scenario", "run_scenario", "serving_from_json", "single_from_json"]

LATENCY_KEYS = {"target", "draft", "overhead_seconds", "proposal_seconds", "baseline_overhead_seconds", "link"}
SINGLE_KEYS = {"latency", "acceptance", "policy", "rounds", "max_new_tokens", "prompt_tokens", "requests"}
SERVING_KEYS = {"arrivals", "lengths", "requests", "trace", "latency", "acceptance", "policy", "batch_limit", "memory"}
SERVING_KEYS |= {"prefill", "objective", "replicas", "route", "warm_up"}


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
            serving = serving_from_json(value, seed, folder)
            return dict(measure(serving, serve(serving, seed), value.get("warm_up", "auto")).values)
        case "remote_draft" | "pearl" | "dsi" | "edge_cloud":
            from sim.topologies import run_topology

            latency = mapping_of(value, "latency", {"target", "draft", "overhead_seconds"})
            rest = {key: entry for key, entry in value.items() if key != "latency"}
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
    latency = mapping_of(given, "latency", LATENCY_KEYS - {"link"})
    target, draft = latency_models(latency)
    context = float(given.get("prompt_tokens", 0))
    policy = policy_from_json(given.get("policy"), target, draft, latency, context)
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
    host = {key: latency[key] for key in ("overhead_seconds", "proposal_seconds") if key in latency}
    scenario = Scenario(target, draft, **drafts, **counts, **host, request_devices="own")
    return scenario, latency.get("baseline_overhead_seconds")


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
    latency = mapping_of(given, "latency", LATENCY_KEYS - {"baseline_overhead_seconds"})
    target, draft = latency_models(latency)
    workload = workload_from_json(workload_keys(given), folder).sample(seed)
    context = float((workload.prompt_tokens + workload.output_tokens / 2).mean())
    policy = policy_from_json(given.get("policy"), target, draft, latency, context)
    speculation = None
    if policy is not None:
        tree = policy if isinstance(policy, TokenTree) else None
        model = acceptance_from_json(given.get("acceptance"), tree, folder)
        link = build("latency link", Link, latency["link"]) if "link" in latency else None
        speculation = Speculation(policy, model, draft, float(latency.get("proposal_seconds", 0.0)), link)
    drafts = speculation is not None and speculation.max_gamma > 0
    kv_tokens, block_tokens = kv_tokens_from_json(given.get("memory"), latency, drafts)
    return ServingScenario(
        target=target,
        workload=workload,
        speculation=speculation,
        batch_limit=given.get("batch_limit", 256),
        kv_tokens=kv_tokens,
        block_tokens=block_tokens,
        prefill=prefill_from_json(given.get("prefill", {})),
        overhead_seconds=float(latency.get("overhead_seconds", 0.0)),
        replicas=given.get("replicas", 1),
        route=given.get("route", "round_robin"),
        objective=build("objective", Objective, given.get("objective", {})),
    )


def latency_models(latency: Mapping[str, Any]) -> tuple[LatencyModel, LatencyModel | None]:
    """Target and draft; no draft where the key is missing or null."""
    if "target" not in latency:
        raise ValueError("latency lacks target, such as {kind: affine, fixed_seconds: 0.02}")
    draft = latency.get("draft")
    return latency_from_json(latency["target"]), None if draft is None else latency_from_json(draft)


def policy_from_json(
    value: Any, target: LatencyModel, draft: LatencyModel | None, latency: Mapping[str, Any], context: float
) -> Controller | TokenTree | None:
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
        return TokenTree.parse(str(given.get("tree")))
    longest = longest_draft(value)
    costs = None
    if longest >= 1:
        host = {key: float(latency.get(key, 0.0)) for key in ("overhead_seconds", "proposal_seconds")}
        costs = LatencyCosts(draft, target, longest, context, **host)
    return controller_from_json(value, costs)


def longest_draft(policy: Mapping[str, Any]) -> int:
    """`max_gamma` of a controller that weighs costs, however deep inside; 0 for all others."""
    inner = policy.get("inner")
    return longest_draft(inner) if isinstance(inner, Mapping) else int(policy.get("max_gamma", 0))


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
