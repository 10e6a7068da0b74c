"""The page of a plan: what to draft at each batch, what it brings, where it stops paying, and how to tell an engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from analysis.html_report.document import (
    Listing,
    Page,
    Part,
    Prose,
    Section,
    Table,
    again,
    ends,
    facts,
    interval,
    number,
    with_interval,
)
from analysis.html_report.plots import SERIES, Row, Series, Value, plot_rows, plot_xy

LOAD = {
    "tpot_ratio": "time per token (TPOT)",
    "itl_ratio": "time between emissions (ITL)",
    "ttft_ratio": "time to the first token (TTFT)",
    "throughput_ratio": "tokens per second",
}
SIZES = {
    "weight": "weights",
    "draft_weight": "the draft's",
    "kv": "KV cache",
    "draft_kv": "the draft's KV cache",
    "usable": "usable",
}
ENGINES = {"vllm": "vLLM", "sglang": "SGLang", "tensorrt_llm": "TensorRT-LLM", "llama_cpp": "llama.cpp"}
GIB = 2.0**30


def plan_page(plan: Mapping[str, Any], name: str) -> Page:
    """The page of what `specdec plan --json` prints."""
    rows = plan["batches"]
    sections = [
        Section("What to draft", (_choices(rows), _reasons(rows), *_trees(rows))),
        Section("Speedup by draft length", tuple(_by_length(rows))),
        Section("Where it stops paying", tuple(_crossover(plan))),
        *_load(plan.get("load")),
        *_memory(rows),
        Section("For engines", tuple(_flags(plan["emit"]))),
        Section("What to know", (Prose((f"Intervals: {plan['interval']}", *plan["remarks"]), listed=True),)),
    ]
    made = facts(
        "What was planned",
        {
            "file": name,
            "draft": plan["draft"],
            "batches": ", ".join(dict.fromkeys(str(row["batch"]) for row in rows)),
            "contexts, tokens": ", ".join(dict.fromkeys(number(row["context"]) for row in rows)),
        },
    )
    pair = " with ".join(filter(None, (plan.get("target"), plan["draft"] or "a draft")))
    title = f"Plan: {pair}" + (f" on {plan['device']}" if plan.get("device") else "")
    return Page("plan", title, tuple(_lead(rows)), tuple(sections), (made, *again(plan)))


def _lead(rows: list[Mapping[str, Any]]) -> list[str]:
    """The first batch's choice, and whether others differ."""
    first = rows[0]
    where = f"At batch {first['batch']} and context {number(first['context'])}"
    if first["gamma"] == 0:
        said = [f"{where}: {first['reason']}."]
    else:
        span = interval(first["speedup_ci"])
        said = [f"{where}, draft {first['gamma']} tokens a round: {number(first['speedup'])}× (95% interval {span})."]
    off = [str(row["batch"]) for row in rows[1:] if row["gamma"] == 0]
    return said + ([f"Do not speculate at batch {', '.join(off)}."] if off else [])


def _choices(rows: list[Mapping[str, Any]]) -> Table:
    money = any("price" in row for row in rows)
    head = ["context, tokens", "batch", "γ", "speedup [95% interval]", "tokens per round", "TPOT, ms"]
    head += ["TPOT without, ms", *(("price of a million tokens", "price without") if money else ())]
    body = []
    for row in rows:
        cells = [
            number(row["context"]),
            str(row["batch"]),
            str(row["gamma"]),
            with_interval(row["speedup"], row["speedup_ci"]),
            number(row["block_efficiency"]),
            number(1e3 * row["tpot_seconds"]),
            number(1e3 * row["baseline_tpot_seconds"]),
        ]
        if money:
            cells += [number(row["price"][key]) for key in ("per_million_tokens", "baseline_per_million_tokens")]
        body.append(tuple(cells))
    return Table("The fastest draft length for every context and batch", tuple(head), tuple(body))


def _reasons(rows: list[Mapping[str, Any]]) -> Prose:
    said = [f"Context {number(row['context'])}, batch {row['batch']}: {row['reason']}." for row in rows]
    return Prose(tuple(said), listed=True)


def _trees(rows: list[Mapping[str, Any]]) -> list[Table]:
    body = [
        (
            number(row["context"]),
            str(row["batch"]),
            str(row["tree"]["tree"]),
            number(row["tree"]["speedup"]),
            number(row["tree"]["block_efficiency"]),
        )
        for row in rows
        if row["tree"]
    ]
    head = ("context, tokens", "batch", "tree", "speedup", "tokens per round")
    return [Table("The best tree", head, tuple(body))] if body else []


def _by_length(rows: list[Mapping[str, Any]]) -> list[Part]:
    """A plot for every context, a series for every batch; several plots where there are many batches."""
    parts: list[Part] = []
    for context in dict.fromkeys(row["context"] for row in rows):
        series = [
            Series(f"batch {row['batch']}", tuple(map(_length, row["by_gamma"])))
            for row in rows
            if row["context"] == context
        ]
        for start in range(0, len(series), SERIES):
            plot = plot_xy(
                f"Speedup at a context of {number(context)} tokens",
                ("draft length γ", "speedup (×)"),
                series[start : start + SERIES],
                reference=1.0,
                note="Whiskers are 95% intervals.",
            )
            parts += [] if plot is None else [plot]
    return parts


def _length(one: Mapping[str, Any]) -> tuple[Value, Value]:
    return Value(one["gamma"]), Value(one["speedup"], *ends(one["speedup_ci"]))


def _crossover(plan: Mapping[str, Any]) -> list[Part]:
    rows = []
    for limit in plan["contexts"]:
        beyond = f"beyond {limit['searched_batches']:,}"
        batch, *span = (
            beyond if one is None else f"{one:,}" for one in (limit["crossover_batch"], *limit["crossover_batch_ci"])
        )
        rows.append((number(limit["context"]), batch, " to ".join(dict.fromkeys(span))))
    head = ("context, tokens", "stops paying from batch", "95% interval")
    parts: list[Part] = [Table("The batch from which decoding without a draft is faster", head, tuple(rows))]
    if plan["schedule"]:
        steps = tuple((f"{low:,} to {high:,}", str(gamma)) for low, high, gamma in plan["schedule"])
        context = number(plan["contexts"][0]["context"])
        parts.append(Table(f"Draft length by batch, at a context of {context} tokens", ("batches", "γ"), steps))
    return parts


def _load(load: Mapping[str, Any] | None) -> list[Section]:
    if load is None:
        return []
    ratios = [
        Row(label, (Value(load[name], *ends(load[f"{name}_ci"])),))
        for name, label in LOAD.items()
        if load.get(name) is not None
    ]
    plot = plot_rows("With speculation over without it", "ratio", ratios, reference=1.0)
    known = {name.replace("_", " "): value for name, value in load.items() if "ratio" not in name and "_ci" not in name}
    parts: list[Part] = [] if plot is None else [plot]
    return [Section("Under load", (*parts, facts("The simulated server", known)))]


def _memory(rows: list[Mapping[str, Any]]) -> list[Section]:
    body = []
    for row in rows:
        need = row["memory"]
        if need:
            sizes = [number(need[f"{name}_bytes"] / GIB) for name in SIZES]
            most = [f"{need[name]:,}" for name in ("most_batch", "baseline_most_batch")]
            body.append((number(row["context"]), str(row["batch"]), *sizes, "yes" if need["fits"] else "no", *most))
    head = ("context, tokens", "batch", *SIZES.values(), "fits", "most requests", "most without a draft")
    return [Section("Memory", (Table("GiB of all devices together", head, tuple(body)),))] if body else []


def _flags(emit: Mapping[str, Any]) -> list[Part]:
    parts: list[Part] = [Listing(_engine(name), text) for name, text in emit.items() if name != "notes" and text]
    notes = tuple(f"{_engine(name)}: {text}" for name, text in emit["notes"].items())
    return [*parts, Prose(notes, listed=True)] if notes else parts


def _engine(name: str) -> str:
    """An engine by the name that it calls itself."""
    known = next((one for one in ENGINES if name.startswith(one)), "")
    return ENGINES.get(known, "") + name.removeprefix(known).replace("_", " ")
