"""A plan as plain data: what to draft at each batch, what it brings and needs, and the flags that say so to engines."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from analysis.plan import MOST_BATCH, Crossover, choose, choose_tree, crossover, interval
from analysis.plan.costs import ModelCosts
from analysis.plan.emit_flags import Speculate, emit, emit_nothing
from analysis.plan.inputs import LOOKUP, Inputs, Wanted, read_inputs
from analysis.plan.load import under_load
from analysis.plan.memory import price_per_million
from sim.architectures.catalogue import find_architecture
from sim.trees import TokenTree

OWN = re.compile(r"int8|int8-skip:.*|early-exit:.*|distilled|synthetic:.*|.+\+.+")
"""drafts of this project that no engine has"""


def make_plan(wanted: Wanted) -> dict[str, Any]:
    """The plan as JSON has it.

    Returns:
        `batches`: for every context and batch gamma, speedup, speedup_ci, block_efficiency, itl_seconds, tpot_seconds,
        tree, memory, price, emit and more; `crossover_batch` with `_ci`, `emit` (with draft lengths by batch) and
        `schedule` at the first context, and the same by context in `contexts`; `load`; `interval` says what intervals
        hold, and `remarks` what else to know.

    Raises:
        ValueError: as `read_inputs`, or a shape is not priced.
    """
    inputs = read_inputs(wanted)
    longest = inputs.law.max_gamma
    limits = {context: crossover(inputs.law, inputs.costs, context, most_batch(wanted, inputs, context, longest))
              for context in inputs.contexts}  # fmt: skip
    rows = [batch_row(wanted, inputs, batch, context) for context in inputs.contexts for batch in inputs.batches]
    first = limits[inputs.contexts[0]]
    by_context = [
        {"context": context, "crossover_batch": limit.batch, "crossover_batch_ci": list(limit.batch_ci),
         "searched_batches": limit.searched}
        for context, limit in limits.items()
    ]  # fmt: skip
    plan: dict[str, Any] = {
        "target": wanted.target,
        "draft": inputs.draft,
        "device": wanted.device,
        "batches": rows,
        **{name: value for name, value in by_context[0].items() if name != "context"},
        "contexts": by_context,
        "schedule": [list(entry) for entry in first.schedule],
        "emit": flags_of(wanted, inputs, rows[0], first),
        "interval": interval(inputs.law, inputs.costs),
        "remarks": remarks(inputs, rows, first),
    }
    if wanted.load is not None:
        plan["load"] = load_of(wanted, inputs, int(rows[0]["gamma"]), first)
    return plan


def most_batch(wanted: Wanted, inputs: Inputs, context: float, gamma: int) -> int:
    """The largest batch to search: what memory holds and what was asked for.

    Raises:
        ValueError: memory does not hold one request.
    """
    most = wanted.max_batch or MOST_BATCH
    if inputs.room is None:
        return most
    tokens = round(context) + gamma + 1
    held = inputs.room.most_batch(tokens)
    if not held:
        raise ValueError(
            f"memory holds the cache of {inputs.room.cache_tokens():,} tokens beside the weights, but a request of "
            f"context {context:g} and a draft need {tokens:,}; take shorter contexts, more devices or a smaller dtype"
        )
    return min(most, held)


def batch_row(wanted: Wanted, inputs: Inputs, batch: int, context: float) -> dict[str, Any]:
    """The plan of one batch and context."""
    choice = choose(inputs.law, inputs.costs, batch, context)
    row = {name: value for name, value in asdict(choice).items() if name != "by_gamma"}
    row |= {
        "speedup_ci": list(choice.speedup_ci),
        "tokens_per_second": choice.tokens_per_second,
        "by_gamma": [asdict(one) | {"speedup_ci": list(one.speedup_ci)} for one in choice.by_gamma],
        "tree": None,
        "memory": None,
    }
    tree = choose_tree(inputs.law, inputs.costs, batch, context, wanted.max_tree_tokens, inputs.law.max_gamma)
    if tree is not None:
        row["tree"] = {"tree": tree.tree.name(), "tokens": tree.tree.size, "depth": tree.tree.depth,
                       "speedup": tree.speedup, "block_efficiency": tree.block_efficiency}  # fmt: skip
    if inputs.room is not None:
        tokens = round(context) + choice.gamma + 1
        needed = inputs.room.needed_bytes(batch, tokens)
        most = inputs.room.most_batch(tokens)
        row["memory"] = needed | {
            "fits": batch <= most,
            "most_batch": most,
            "baseline_most_batch": inputs.room.most_batch(round(context) + 1, drafts=False),
        }
    if wanted.price_per_hour is not None:
        row["price"] = price_per_million(choice, wanted.price_per_hour)
    row["emit"] = flags_of(wanted, inputs, row)
    return row


def flags_of(wanted: Wanted, inputs: Inputs, row: Mapping[str, Any], limit: Crossover | None = None) -> dict[str, Any]:
    """Engine flags for the batch of a row, with draft lengths by batch where a limit is given."""
    name = inputs.draft or ""
    lookup = LOOKUP.fullmatch(name)
    if wanted.method is None and OWN.fullmatch(name):
        return emit_nothing(f"no engine drafts with {name}, which is this project's own; another's flags need --method")
    asked = Speculate(
        wanted.method or method_of(name),
        row["gamma"],
        None if lookup else repository(name),
        None if row["tree"] is None else TokenTree.parse(row["tree"]["tree"]),
        () if limit is None else limit.schedule,
        None if lookup or wanted.draft_devices == wanted.tensor_parallel else wanted.draft_devices,
        int(lookup[2] or 3) if lookup and lookup[1] == "prompt-lookup" else None,
        row["batch"],
    )
    return emit(asked)


def method_of(name: str) -> str:
    """How an engine calls speculation with such a draft."""
    lookup = LOOKUP.fullmatch(name)
    if lookup:
        return "suffix" if lookup[1] == "suffix" else "ngram"
    found = re.search(r"eagle3|eagle-3|eagle|mtp|nextn", name.lower())
    if found is None:
        return "draft_model"
    return {"eagle-3": "eagle3", "nextn": "mtp"}.get(found[0], found[0])


def repository(name: str) -> str:
    """The repository behind a known shape's name, the folder of a config.json; any other text as it is."""
    if not name:
        return "DRAFT"
    if Path(name).name == "config.json":
        return str(Path(name).parent)
    if "/" in name or Path(name).exists():
        return name
    try:
        source = find_architecture(name).source
    except ValueError:
        return name
    return source.removeprefix("huggingface.co/").removesuffix(" config.json")


def load_of(wanted: Wanted, inputs: Inputs, gamma: int, limit: Crossover) -> dict[str, Any]:
    """The plan under load."""
    if not isinstance(inputs.costs, ModelCosts):
        raise ValueError("a load needs latencies that price prompts too; plan with a device or latency files")
    load, room_here = wanted.load, inputs.room
    assert load is not None
    if room_here is not None:
        load = replace(
            load, kv_tokens=room_here.cache_tokens(), baseline_kv_tokens=room_here.cache_tokens(drafts=False)
        )  # fmt: skip
    off = None if limit.batch is None else limit.last_batch
    asked = {"requests_per_second": load.requests_per_second, "gamma": gamma, "off_above_batch": off}
    return asked | under_load(inputs.law, inputs.costs, gamma, limit, load, wanted.seed)


def remarks(inputs: Inputs, rows: list[dict[str, Any]], limit: Crossover) -> list[str]:
    """What to know of a plan beside its numbers."""
    found = [*inputs.remarks, *inputs.law.remarks]
    known, longest = inputs.law.known_gamma, max(row["gamma"] for row in rows)
    if known is not None and longest > known:
        found.append(f"acceptance was measured at {known} positions; later ones are taken to be like the last")
    for row in rows:
        if row["gamma"] and row["speedup_ci"][0] <= 1:
            found.append(f"batch {row['batch']}: the speedup's interval holds 1, so that it may not pay")
    if longest == inputs.law.max_gamma:
        found.append(f"gamma {longest} is the longest that was considered; a longer draft may be faster still")
    if limit.batch is None:
        found.append(f"speculation pays at every batch up to {limit.searched}, the largest that fits or has a price")
    reached = getattr(getattr(inputs.costs, "target", None), "reached", None)
    if reached is not None and reached.assumed:
        found.append("the roofline's factors were fitted on another device; its error here may be larger")
    return found
