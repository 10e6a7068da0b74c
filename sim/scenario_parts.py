"""Scenario files: YAML that says what to simulate, read into the objects that do it.

Every mapping has a `kind`, and its other keys are the fields of what it names. An unknown or missing key, or a value
out of range, is one error that names the key.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import cache
from numbers import Real
from pathlib import Path
from typing import Any, TypeVar

import yaml

from sim.acceptance import (
    AcceptanceModel,
    BetaAcceptance,
    IidAcceptance,
    MarkovAcceptance,
    PartialProposals,
    PerPositionAcceptance,
    TraceAcceptance,
)
from sim.confidence import ConfidenceAcceptance
from sim.replay import read_positional_trace
from sim.tree_acceptance import TreeAcceptance
from sim.trees import TokenTree

Built = TypeVar("Built")


class StrictLoader(yaml.SafeLoader):
    """YAML in which a key given twice is an error, and 1e-3 is a number as YAML 1.2 has it."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Read a mapping, before any merge (<<) adds keys to it."""
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise ValueError(f"the key {key.value!r} is given twice, again in line {key.start_mark.line + 1}")
            seen.add(key.value)
        return node


StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"), list("-+.0123456789")
)


def read_scenario(path: Path) -> dict[str, Any]:
    """Read a scenario file.

    Raises:
        ValueError: the file is missing, is not YAML, gives a key twice, or holds no mapping.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a readable scenario: {error}") from error
    value = parse_yaml(text, str(path))
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a mapping of keys, got {type(value).__name__}; see sim/scenarios")
    return value


def parse_yaml(text: str, where: str) -> Any:
    """The plain data of YAML text, in which no two places share an object, whatever anchors it has.

    Raises:
        ValueError: it is not YAML, or gives a key twice; says where.
    """
    try:
        return apart(yaml.load(text, Loader=StrictLoader))  # a SafeLoader: plain data only
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{where} is not YAML: {' '.join(str(error).split())}") from error


def apart(value: Any) -> Any:
    """A copy in which a change to one place changes no other."""
    match value:
        case dict():
            return {key: apart(entry) for key, entry in value.items()}
        case list():
            return [apart(entry) for entry in value]
    return value


def acceptance_from_json(value: Any, tree: TokenTree | None = None, folder: Path | None = None) -> AcceptanceModel:
    """Build an acceptance model.

    Kinds: iid {alpha}, per_position {conditional}, beta {a, b}, markov {after_accept, after_reject}, confidence {a, b,
    calibration, tail}, partial {inner, available}, trace {lengths, available} or {path} of a positional trace, and for
    token trees ranks {acceptance}.

    Args:
        value: the mapping.
        tree: what is drafted; only with `ranks`.
        folder: what a trace's path is relative to; None: the current folder.

    Raises:
        ValueError: the kind is unknown, a field is missing or unknown, or the model refuses its values.
    """
    kind, given = kind_of("acceptance", value)
    if (tree is not None) != (kind == "ranks"):
        drafts = "a chain" if tree is None else f"the tree {tree}"
        raise ValueError(f"acceptance of kind 'ranks' goes with a policy of kind 'tree', got {kind!r} for {drafts}")
    match kind:
        case "iid":
            return build("acceptance", IidAcceptance, given)
        case "per_position":
            return build("acceptance", PerPositionAcceptance, tuples(given))
        case "beta":
            return build("acceptance", BetaAcceptance, given)
        case "markov":
            return build("acceptance", MarkovAcceptance, given)
        case "confidence":
            return build("acceptance", ConfidenceAcceptance, given)
        case "partial":
            inner = {"inner": acceptance_from_json(given["inner"])} if "inner" in given else {}
            return build("acceptance", PartialProposals, tuples(given | inner))
        case "trace" if "path" in given:
            check_keys("acceptance", given, {"path"})
            trace = read_positional_trace((folder or Path()) / str(given["path"]))
            return TraceAcceptance(tuple(tuple(lengths.tolist()) for lengths in trace.accept_lengths))
        case "trace":
            return build("acceptance", TraceAcceptance, tuples(given))
        case "ranks":
            return build("acceptance", TreeAcceptance, given | {"tree": tree})
    known = "iid, per_position, beta, markov, confidence, partial, trace or ranks"
    raise ValueError(f"acceptance kind must be {known}, got {kind!r}")


def kind_of(name: str, value: Any) -> tuple[str, dict[str, Any]]:
    """The `kind` of a mapping, and its other keys.

    Raises:
        ValueError: it is no mapping, or names no kind.
    """
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} must be a mapping with a kind, got {value!r}")
    if "kind" not in value:
        raise ValueError(f"{name} needs a kind, got only {sorted(map(str, value))}")
    return str(value["kind"]), {str(key): entry for key, entry in value.items() if key != "kind"}


def build(name: str, make: Callable[..., Built], given: Any) -> Built:
    """Call `make` with the keys of a mapping.

    Raises:
        ValueError: it is no mapping, a key is unknown or missing, or `make` refuses a value.
    """
    if not isinstance(given, Mapping):
        raise ValueError(f"{name} must be a mapping, got {given!r}")
    parameters = parameters_of(make)
    check_keys(name, given, set(parameters))
    needed = [key for key, one in parameters.items() if one.default is one.empty and key not in given]
    if needed:
        raise ValueError(f"{name} lacks {', '.join(needed)}; it takes {', '.join(parameters)}")
    fitted = {key: fitting(f"{key} of {name}", str(parameters[key].annotation), value) for key, value in given.items()}
    return naming(name, make, **fitted)


@cache
def parameters_of(make: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """What `make` takes, by name; looked up once, for a sweep builds the same things at every point."""
    return inspect.signature(make).parameters


def naming(name: str, make: Callable[..., Built], /, *given: Any, **named: Any) -> Built:
    """Call `make`, and put the name of what it makes before its errors.

    Raises:
        ValueError: `make` refuses a value.
    """
    try:
        return make(*given, **named)
    except (TypeError, ValueError) as error:
        raise ValueError(str(error) if str(error).startswith(name) else f"{name}: {error}") from error


def fitting(name: str, annotation: str, value: Any) -> Any:
    """A value for a field of that annotation; a whole float is an int where the field is one.

    Raises:
        ValueError: the field is a number, a whole number or a tuple, and the value is none.
    """
    if value is None and annotation.endswith("| None"):
        return value
    kind = annotation.removesuffix("| None").strip()
    number = isinstance(value, Real) and not isinstance(value, bool)
    if kind == "float" and not number:
        raise ValueError(f"{name} must be a number, got {value!r}")
    if kind == "int":
        if not number or not float(value).is_integer():
            raise ValueError(f"{name} must be a whole number, got {value!r}")
        return int(value)
    if kind.startswith("tuple[") and not isinstance(value, tuple):
        raise ValueError(f"{name} must be a list, got {value!r}")
    return value


def check_keys(name: str, given: Mapping[str, Any], known: set[str]) -> None:
    """Check that a mapping holds no unknown key."""
    unknown = sorted(set(given) - known)
    if unknown:
        raise ValueError(f"{name} does not know {', '.join(unknown)}; it takes {', '.join(sorted(known))}")


def tuples(value: Any) -> Any:
    """Lists as tuples, all the way down, so that what holds them can be compared and hashed."""
    if isinstance(value, Mapping):
        return {key: tuples(entry) for key, entry in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(tuples(entry) for entry in value)
    return value


def field_names(kind: type) -> set[str]:
    """The fields of a dataclass that its constructor takes."""
    return {one.name for one in fields(kind) if one.init}
