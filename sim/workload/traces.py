"""Public traces of LLM requests: read, written, and synthesised for tests.

- azure: Azure LLM inference traces of 2023 (github.com/Azure/AzurePublicDataset, AzureLLMInferenceDataset2023.md; Patel
  et al., Splitwise, ISCA 2024, arXiv:2311.18677) and of 2024 (AzureLLMInferenceDataset2024.md; Stojkovic et al.,
  DynamoLLM, arXiv:2408.00741). CSV; timestamps such as `2023-11-16 18:15:46.6805900` or
  `2024-05-10 00:00:00.009930+00:00`, the fraction left out where it is 0.
- burstgpt: BurstGPT (github.com/HPMLL/BurstGPT; Wang et al., arXiv:2401.17644), with or without the columns Session ID
  and Elapsed time of its third file. CSV; seconds from the first day. A request with 0 response tokens failed.
- mooncake: Mooncake's open traces (github.com/kvcache-ai/Mooncake, FAST25-release; Qin et al., arXiv:2407.00079). One
  JSON object a line; milliseconds. hash_ids may be there and are left out.

Columns are found by their names. None of these files quotes its fields, so a quote is part of a value.
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from sim.records import write_atomically
from sim.workload import Workload, make_workload
from sim.workload.laws import GeometricLength, PoissonArrivals
from sim.workload.trace_rows import (
    FORMATS,
    NANOSECONDS,
    SHOWN,
    Broken,
    Requests,
    TraceFormat,
    blocks,
    check_rows,
    no_time,
    parse_times,
    split_csv,
    split_jsonl,
)

LAST_SECOND = 4.1e9
"""the latest time that is written, on the clock of any format: the end of 2099 for timestamps"""


@dataclass(frozen=True, eq=False)
class Trace:
    """A trace that was read."""

    workload: Workload
    """the unbroken requests; the first arrives at 0"""
    format: str
    rows: int
    """requests in the file, the broken ones included"""
    broken: pd.DataFrame
    """one row for each request that was left out: line, field, value, reason"""
    start: str
    """the first arrival on the file's own clock; `write_trace` takes it"""


def read_trace(path: Path | str, format: str = "auto", skip_broken: bool = False, sort: bool = False) -> Trace:
    """Read a trace, plain or gzip, block by block.

    Blank lines are not rows. A broken row lacks a field, or has one that is no number or timestamp, or tokens that are
    not whole or below 1.

    Args:
        path: the file.
        format: a key of `FORMATS`, or "auto" to find it from the first line.
        skip_broken: leave broken rows out and list them in the result, instead of refusing the file.
        sort: sort requests by arrival, instead of refusing a file that is not sorted; equal arrivals keep their order.

    Raises:
        ValueError: the file cannot be read, is empty or in no known format, has a broken row (without `skip_broken`) or
            only such, or is not sorted (without `sort`).
    """
    path = Path(path)
    header: list[str] = []
    good: list[Requests] = []
    bad: list[Broken] = []
    for numbers, lines in blocks(path):
        if not good:
            format, header = find_format(path, lines[0], format)
            if FORMATS[format].layout == "csv":
                numbers, lines = numbers[1:], lines[1:]
        split = split_csv if FORMATS[format].layout == "csv" else split_jsonl
        checked, refused = check_rows(FORMATS[format], split(FORMATS[format], header, numbers, lines))
        good.append(checked)
        bad += refused
    if not good:
        raise ValueError(f"{path} is empty; a trace has at least one request")
    requests = Requests(*(np.concatenate(column) for column in zip(*good, strict=True)))
    rows = len(requests.line) + len(bad)
    if bad and not skip_broken:
        line, field, value, reason = bad[0]
        raise ValueError(
            f"{path}, line {line}: {field} {value!r} is {reason}; {len(bad)} of {rows} rows are broken; pass "
            "skip_broken=True to leave them out"
        )
    if not len(requests.line):
        raise ValueError(f"{path} has no requests: {rows} rows, all broken; a trace has at least one")
    requests = in_order(path, FORMATS[format], requests, sort)
    seconds = (requests.time - requests.time[0]) / FORMATS[format].units
    workload = Workload(seconds, requests.prompt.astype(np.int64), requests.output.astype(np.int64))
    broken = pd.DataFrame(bad, columns=list(Broken._fields)).astype({"line": np.int64})
    return Trace(workload, format, rows, broken, show_time(FORMATS[format], requests.time[0]))


def in_order(path: Path, layout: TraceFormat, requests: Requests, sort: bool) -> Requests:
    """The requests by arrival.

    Raises:
        ValueError: they are not so in the file, and sorting was not asked for.
    """
    early = requests.time[1:] < requests.time[:-1]
    if not early.any():
        return requests
    if not sort:
        k = int(np.argmax(early)) + 1
        now, before = (show_time(layout, time) for time in (requests.time[k], requests.time[k - 1]))
        raise ValueError(
            f"{path}: arrivals not sorted: {layout.time} {now} on line {requests.line[k]} comes after {before} on line "
            f"{requests.line[k - 1]}; pass sort=True to sort them"
        )
    order = np.argsort(requests.time, kind="stable")
    return Requests(requests.line[order], requests.time[order], requests.output[order], requests.prompt[order])


def find_format(path: Path, line: str, format: str) -> tuple[str, list[str]]:
    """The format of a file, and its header's names (those of its fields where it has no header).

    Args:
        path: the file, for messages.
        line: its first line.
        format: the format to expect, or "auto".

    Raises:
        ValueError: the first line is that of no known format, or not that of the expected one.
    """
    candidates = FORMATS if format == "auto" else {format: known_format(format)}
    for name, layout in candidates.items():
        if layout.layout == "csv":
            names = [column.strip() for column in line.split(",")]
        else:
            names = [field for field in layout.fields if format != "auto" or f'"{field}"' in line]
        if all(names.count(field) == 1 for field in layout.fields):
            return name, names
    known = "; ".join(f"{name} ({entry.layout} with {', '.join(entry.fields)})" for name, entry in candidates.items())
    raise ValueError(f"{path} is no trace that is known: it starts with {line.strip()[:SHOWN]!r}; known: {known}")


def show_time(layout: TraceFormat, time: Any) -> str:
    """A time in the format's own notation."""
    return str(pd.Timestamp(int(time))) if layout.units == NANOSECONDS else repr(float(time))


def known_format(format: str) -> TraceFormat:
    """The format of that name.

    Raises:
        ValueError: there is none.
    """
    if format not in FORMATS:
        raise ValueError(f"trace format must be one of {list(FORMATS)}, got {format!r}")
    return FORMATS[format]


def write_trace(workload: Workload, path: Path | str, format: str, start: str | None = None) -> None:
    """Write a workload as a public trace, atomically; gzip where the name ends in .gz.

    Arrivals are rounded to what the format holds: azure to 100 nanoseconds, mooncake to milliseconds; burstgpt, whose
    published files have whole seconds, to microseconds. A workload has no models, logs or prefix hashes: these columns
    are empty or left out. Reading the file gives the workload back at that resolution, with its first arrival at 0.

    Args:
        workload: the requests.
        path: the file to write.
        format: a key of `FORMATS`.
        start: the file's clock at the workload's time 0, in the format's notation, such as `Trace.start`.

    Raises:
        ValueError: the format is unknown, start is no time of it, or the times end beyond what it can hold.
    """
    path, layout = Path(path), known_format(format)
    start = layout.start if start is None else start
    origin = parse_times(layout, pa.array([start], pa.string()))[0]
    if no_time(origin):
        raise ValueError(f"start must be a time as in a {format} trace, such as {layout.start!r}, got {start!r}")
    first, last = (float(origin) / layout.units + seconds for seconds in (0.0, workload.arrival_seconds[-1]))
    if first < -LAST_SECOND or last > LAST_SECOND:
        raise ValueError(f"times must be within {LAST_SECOND:g} seconds of the clock's zero, got {first:g} to {last:g}")
    # whole steps, and a fraction for their origin: floats would lose steps of timestamps
    steps = np.rint(workload.arrival_seconds * layout.resolution).astype(np.int64)
    steps += round(Fraction(origin.item()) * layout.resolution / layout.units)
    tokens = {layout.prompt: workload.prompt_tokens, layout.output: workload.output_tokens}
    match format:
        case "azure":
            stamps = np.datetime_as_string((steps * (NANOSECONDS // layout.resolution)).view("datetime64[ns]"))
            table = pd.DataFrame({layout.time: [f"{stamp[:10]} {stamp[11:27]}" for stamp in stamps], **tokens})
        case "burstgpt":
            total = workload.prompt_tokens + workload.output_tokens
            table = pd.DataFrame(
                {layout.time: steps / layout.resolution, "Model": "", **tokens, "Total tokens": total, "Log Type": ""}
            )
        case _:
            table = pd.DataFrame({layout.time: steps, **tokens})
    text = (
        table.to_csv(index=False, lineterminator="\n")
        if layout.layout == "csv"
        else table.to_json(orient="records", lines=True)
    )
    # neither a name nor a time of writing in a gzip file: the same workload gives the same bytes
    data = gzip.compress(text.encode(), mtime=0) if path.suffix == ".gz" else text.encode()
    write_atomically(path, lambda part: Path(part).write_bytes(data))


def with_median(median: float) -> GeometricLength:
    """The geometric law with a median: half of the lengths are at most that."""
    return GeometricLength(float(-1 / np.expm1(-np.log(2) / median)))


PUBLISHED_LENGTHS = {
    # medians: Splitwise (arXiv:2311.18677v2), Sec. III-A
    "azure-code": (with_median(1500), with_median(13)),
    "azure-conversation": (with_median(1020), with_median(129)),
    # means without failures: github.com/mlcommons/storage, kv_cache_benchmark/docs/MLperf v3 KV cache proposal.md
    "burstgpt": (GeometricLength(621), GeometricLength(126)),
    # means: Mooncake (arXiv:2407.00079), Sec. 4.2
    "mooncake": (GeometricLength(7590), GeometricLength(182)),
}
"""laws of prompts and outputs by kind of trace"""


def synthesise_trace(kind: str, requests: int, rate: float, seed: int) -> Workload:
    """Requests about as long as those of a public trace, for tests and first looks; not the trace.

    The publications print one number for each length (see `PUBLISHED_LENGTHS`), so lengths are geometric with that
    median or mean: one number fixes the law, and no spread is made up. Arrivals are Poisson, prompts and outputs
    independent. Read a real trace where bursts or correlated lengths matter.

    Args:
        kind: a key of `PUBLISHED_LENGTHS`.
        requests: how many.
        rate: requests a second.
        seed: of the draws.

    Raises:
        ValueError: the kind is unknown, or a number is out of its range.
    """
    if kind not in PUBLISHED_LENGTHS:
        raise ValueError(f"kind must be one of {list(PUBLISHED_LENGTHS)}, got {kind!r}")
    return make_workload(PoissonArrivals(rate), *PUBLISHED_LENGTHS[kind], requests, seed)
