"""How long a token took, from what any engine logs or a benchmark saves, with speculation or without.

Importers want acceptance and refuse a log without; a baseline has none. So this reads the times alone: time per output
token of serving benchmarks (text and JSON), decoding time and tokens of llama.cpp, wall time and new tokens of
Spec-Bench, and the throughput and running requests that vLLM and SGLang print. Prefill is excluded where the source
excludes it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from analysis.engine_logs.documents import Documents, StepTimes
from analysis.engine_logs.llama_cpp import EVAL
from analysis.engine_logs.stream import LogFile, lines_with, plain, whole_lines
from analysis.engine_logs.values import Malformed, printed_number

TPOT = re.compile(rb"Mean TPOT \(ms\):\s*(\d[\d.]*)")
VLLM = re.compile(rb"Avg generation throughput: (?P<speed>\d[\d.]*) tokens/s.*?Running: (?P<running>\d+) reqs")
SGLANG = re.compile(rb"#running-req: (?P<running>\d+).*?gen throughput \(token/s\): (?P<speed>\d[\d.]*)")
MARKS = (b"eval time =", b"Mean TPOT (ms):", b"Avg generation throughput:", b"gen throughput (token/s):")
KEYS = frozenset({"mean_tpot_ms", "itls", "predicted_ms", "wall_time"})


class _Sums:
    """Seconds and tokens of one source each, and seconds per token of the lines that print throughput."""

    def __init__(self) -> None:
        self.timed: dict[str, np.ndarray[Any, np.dtype[np.float64]]] = {}
        self.throughput: list[float] = []

    def add(self, source: str, seconds: float, tokens: float) -> None:
        if tokens > 0 and seconds > 0 and np.isfinite([seconds, tokens]).all():
            self.timed[source] = self.timed.get(source, np.zeros(2)) + np.array([seconds, tokens])

    def per_token(self) -> float | None:
        """Of the first source there is; of throughput the median, for a line is of a window in which requests end."""
        for source in ("tpot", "eval", "wall"):
            if source in self.timed:
                seconds, tokens = self.timed[source]
                return float(seconds / tokens)
        return float(np.median(self.throughput)) if self.throughput else None


def token_seconds(path: Path) -> float | None:
    """Seconds per output token of a request; None where the file does not say.

    Raises:
        ValueError: the file cannot be read.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder without a round table; name a log or a run folder")
    blocks = LogFile(path).blocks()
    start = next(blocks, b"")
    blocks = chain([start], blocks)
    sums = _Sums()
    if re.match(rb"\s*(\{|\[\s*\{)", start):
        for document in Documents(blocks):
            for record in _records(document):
                _from_json(record, sums)
    else:
        for line in _marked_lines(blocks):
            with suppress(Malformed):  # the importer counts what cannot be read
                _from_text(line, sums)
    return sums.per_token()


def _marked_lines(blocks: Iterable[bytes]) -> Iterator[bytes]:
    for block in whole_lines(iter(blocks)):
        for begin, end in lines_with(block, MARKS):
            yield plain(block[begin:end])


def _from_text(line: bytes, sums: _Sums) -> None:
    """Read one line of a log."""
    if found := EVAL.search(line):
        sums.add("eval", _number(found[1]) / 1e3, _number(found[2]))
    elif found := TPOT.search(line):
        sums.add("tpot", _number(found[1]) / 1e3, 1)
    elif found := VLLM.search(line) or SGLANG.search(line):
        running, tokens_per_second = _number(found["running"]), _number(found["speed"])
        if tokens_per_second > 0 and running > 0:
            sums.throughput.append(running / tokens_per_second)


def _number(text: bytes) -> float:
    """A printed number; 0 for one that is not finite."""
    return printed_number(text, "a time") or 0.0


def _records(value: Any) -> Iterator[Mapping[str, Any]]:
    """The objects within a JSON value that hold times."""
    if isinstance(value, Mapping):
        if KEYS & value.keys():
            yield value
        for inner in value.values():
            if isinstance(inner, Mapping | list):
                yield from _records(inner)
    elif isinstance(value, list):
        for inner in value:
            if not isinstance(inner, Mapping | list):
                return  # a list of numbers or texts
            yield from _records(inner)


def _from_json(record: Mapping[str, Any], sums: _Sums) -> None:
    """Read one object; requests weigh as many as a benchmark's run completed."""
    number = {name: value for name, value in record.items() if isinstance(value, int | float)}
    if number.get("mean_tpot_ms", 0) > 0:
        completed = number.get("completed", 1)
        sums.add("tpot", number["mean_tpot_ms"] / 1e3 * completed, completed)
    elif isinstance(record.get("itls"), list | StepTimes):
        itls, outputs = record["itls"], record.get("output_lens")
        lists = itls.sums if isinstance(itls, StepTimes) else [_total(one) for one in itls if isinstance(one, list)]
        if isinstance(outputs, Sequence) and len(outputs) == len(lists):
            sums.add("tpot", float(sum(lists)), _total(list(outputs)) - len(outputs))
    elif "predicted_ms" in number:
        sums.add("eval", number["predicted_ms"] / 1e3, number.get("predicted_n", 0))
    elif "wall_time" in record:
        sums.add("wall", _total(record["wall_time"]), _total(record.get("new_tokens")))


def _total(value: Any) -> float:
    """The sum of a number or a list of numbers; 0 of anything else."""
    parts = value if isinstance(value, list) else [value]
    return float(sum(part for part in parts if isinstance(part, int | float)))
