"""Draft-length policies: how many tokens to draft next, given how the rounds before went.

A policy is anything with the members of `Controller`; the same objects drive the simulator and the real loop. Here they
are all together, and by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sim.controllers.learning import Bandit, Goodput, Oracle
from sim.controllers.policy import Controller, Costs, RoundCosts, RoundOutcome, check_max_gamma
from sim.controllers.rules import ConfidenceThreshold, FixedGamma, Heuristic, OffAboveLoad, RejectionThreshold

__all__ = [
    "Bandit",
    "ConfidenceThreshold",
    "Controller",
    "Costs",
    "FixedGamma",
    "Goodput",
    "Heuristic",
    "OffAboveLoad",
    "Oracle",
    "RejectionThreshold",
    "RoundCosts",
    "RoundOutcome",
    "controller_from_json",
    "parse_controller",
]


def parse_controller(text: str, gamma: int, costs: RoundCosts | None = None, seed: int = 0) -> Controller:
    """Build a controller from its name on a command line.

    Args:
        text: "fixed", "heuristic" (starts at 5), "confidence:0.4", "entropy:0.3", "rejection:0.7" (thresholds),
            "bandit" (over 0, the powers of 2, and gamma), "goodput", "oracle", or "off_above:32:NAME" with one of these
            for batches of at most 32.
        gamma: the longest draft; every draft of "fixed".
        costs: for "goodput" and "oracle".
        seed: for "bandit".

    Raises:
        ValueError: the text is none of these, costs are needed and missing, or a number is out of range.
    """
    name, _, rest = text.partition(":")
    match name, rest:
        case "fixed", "":
            return FixedGamma(gamma)
        case "heuristic", "":
            return Heuristic(min(5, gamma), gamma)
        case "bandit", "":
            powers = [2**i for i in range(int(check_max_gamma(gamma)).bit_length())]
            return Bandit(sorted({0, *powers, gamma}), seed=seed)
        case "goodput", "":
            return Goodput(needed("goodput", costs), gamma)
        case "oracle", "":
            return Oracle(needed("oracle", costs), gamma)
        case ("confidence" | "entropy") as measure, number if number:
            return ConfidenceThreshold(gamma, threshold(text), measure)
        case "rejection", number if number:
            return RejectionThreshold(gamma, threshold(text))
        case "off_above", rule if rule.partition(":")[0].isdigit():
            most, _, inner = rule.partition(":")
            return OffAboveLoad(parse_controller(inner, gamma, costs, seed), int(most))
    raise ValueError(
        "controller must be 'fixed', 'heuristic', 'confidence:THRESHOLD', 'entropy:THRESHOLD', 'rejection:THRESHOLD', "
        f"'bandit', 'goodput', 'oracle' or 'off_above:BATCH:CONTROLLER', got {text!r}"
    )


def controller_from_json(value: Mapping[str, Any], costs: RoundCosts | None = None) -> Controller:
    """Build a controller from its JSON form.

    `{"kind": "fixed", "gamma": n}`, `{"kind": "heuristic", "initial": n, "maximum": n}`, `{"kind": "confidence",
    "max_gamma": n, "threshold": x}`, "entropy" and "rejection" likewise, `{"kind": "bandit", "gammas": [n, ...]}`,
    `{"kind": "goodput", "max_gamma": n}`, `{"kind": "oracle", "max_gamma": n}` or `{"kind": "off_above", "max_batch":
    n, "inner": {"kind": ...}}`; other keys are the controller's own fields.

    Args:
        value: the JSON object.
        costs: for "goodput" and "oracle".

    Raises:
        ValueError: the kind is unknown, a field is missing or unknown, costs are needed and missing, or the controller
            refuses its values.
    """
    fields = {name: entry for name, entry in value.items() if name != "kind"}
    try:
        match value.get("kind"):
            case "fixed":
                return FixedGamma(**fields)
            case "heuristic":
                return Heuristic(**fields)
            case "confidence" | "entropy" as measure:
                return ConfidenceThreshold(**fields, measure=measure)
            case "rejection":
                return RejectionThreshold(**fields)
            case "bandit":
                return Bandit(**fields)
            case "goodput":
                return Goodput(needed("goodput", costs), **fields)
            case "oracle":
                return Oracle(needed("oracle", costs), **fields)
            case "off_above":
                inner = controller_from_json(fields.pop("inner", {}), costs)
                return OffAboveLoad(inner, **fields)
            case kind:
                raise ValueError(
                    "controller kind must be 'fixed', 'heuristic', 'confidence', 'entropy', 'rejection', 'bandit', "
                    f"'goodput', 'oracle' or 'off_above', got {kind!r}"
                )
    except TypeError as error:
        raise ValueError(f"controller {dict(value)} does not fit its kind: {error}") from error


def needed(name: str, costs: RoundCosts | None) -> RoundCosts:
    """The costs, which must be there.

    Raises:
        ValueError: they are not.
    """
    if costs is None:
        raise ValueError(
            f"controller '{name}' needs the costs of drafting and verifying, got none; measure forwards first, or use "
            "'bandit', which learns them"
        )
    return costs


def threshold(text: str) -> float:
    """The number behind a name and a colon.

    Raises:
        ValueError: it is none.
    """
    name, _, number = text.partition(":")
    try:
        return float(number)
    except ValueError as error:
        raise ValueError(f"controller {text!r} needs a threshold like '{name}:0.4'") from error
