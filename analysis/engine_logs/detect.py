"""Which engine wrote a log: the formats of every engine, and the marks that give them away."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from analysis.engine_logs import (
    bench,
    bench_saved,
    llama_cpp,
    llama_cpp_statistics,
    mlc_llm,
    sglang,
    spec_bench,
    speculation_profile,
    tensorrt_llm,
    vllm,
    vllm_v0,
)
from analysis.engine_logs.evidence import Evidence
from analysis.engine_logs.prometheus import CounterPage, SglangPage
from analysis.engine_logs.stream import lines_with

AUTO = "auto"
ENGINES: dict[str, str] = {
    "vllm": "log lines (V1 and V0), /metrics pages, per-request JSON, `vllm bench serve` text and JSON",
    "sglang": "decode log lines, /metrics pages, per-request JSON, server info, benchmark text and JSON lines",
    "llama.cpp": "example summaries, server lines, statistics, /metrics pages, response timings",
    "tensorrt-llm": "iteration statistics and per-request JSON",
    "spec-bench": "answer JSON lines",
    "mlc-llm": "engine metrics JSON",
    "speculation-profile": "speculation_profile.json",
    "specdec": "round tables (.parquet, .jsonl) and folders of `specdec measure`",
}
ALIASES = {
    "tensorrt": "tensorrt-llm",
    "trtllm": "tensorrt-llm",
    "mlc": "mlc-llm",
    "llama": "llama.cpp",
    "specbench": "spec-bench",
}

SPECULATION_OFF = (
    (b"vllm:", "a vLLM metrics page without spec_decode counters: speculation was off"),
    (b"Avg generation throughput:", "a vLLM log without SpecDecoding lines: speculation or its statistics were off"),
    (b"sglang:", "an SGLang metrics page without spec_accept_length: speculation was off"),
    (b"Decode batch", "an SGLang log without 'accept len': speculation was off"),
    (b"llamacpp:", "a llama.cpp metrics page without spec_decode counters: speculation was off"),
    (b"slot print_timing", "a llama.cpp log without 'draft acceptance': speculation was off"),
    (b"mean_itl_ms", "a benchmark result without an acceptance length: speculation or its statistics were off"),
    (b"Mean ITL (ms):", "a benchmark report without an acceptance length: speculation or its statistics were off"),
    (b"iterLatencyMS", "TensorRT-LLM statistics without specDecodingStats: speculation was off"),
)


class Format(Protocol):
    """One format of an engine's logs: fed with lines and objects, asked at the end what they say."""

    @property
    def signs(self) -> tuple[bytes, ...]:
        """What gives the format away in a text line."""
        ...

    @property
    def markers(self) -> tuple[bytes, ...]:
        """What text lines to read hold."""
        ...

    @property
    def keys(self) -> frozenset[str]:
        """What JSON objects to read hold, one of them."""
        ...

    def line(self, text: bytes) -> None:
        """Read a text line; Malformed if it cannot be read."""
        ...

    def record(self, record: Mapping[str, Any], around: Sequence[Mapping[str, Any]]) -> None:
        """Read a JSON object, given the objects around it, outermost first; Malformed if it cannot be read."""
        ...

    def end_file(self) -> None:
        """A file has ended; Malformed if what it ended with cannot be read."""
        ...

    def evidence(self) -> Evidence | None:
        """What was read, summed up; None if nothing was."""
        ...


def formats_of(engine: str) -> list[Format]:
    """Fresh readers of an engine's formats, the most telling first."""
    match engine:
        case "vllm":
            return [
                vllm.Requests(),
                bench_saved.vllm_saved(),
                bench.vllm_printed(),
                vllm.LogLines(),
                CounterPage("vLLM", (b"vllm:", b"vllm_")),
                vllm_v0.LogLines(),
            ]
        case "sglang":
            return [
                sglang.Requests(),
                sglang.LogLines(),
                SglangPage(),
                sglang.ServerInfo(),
                bench_saved.sglang_saved(),
                bench.sglang_printed(),
            ]
        case "llama.cpp":
            return [
                llama_cpp.ServerLines(),
                llama_cpp_statistics.Statistics(),
                llama_cpp.Summary(),
                CounterPage("llama.cpp", (b"llamacpp:", b"llamacpp_")),
                llama_cpp.Timings(),
            ]
        case "tensorrt-llm":
            return [tensorrt_llm.Requests(), tensorrt_llm.Iterations()]
        case "spec-bench":
            return [spec_bench.Answers()]
        case "mlc-llm":
            return [mlc_llm.Metrics()]
        case "speculation-profile":
            return [speculation_profile.Profile()]
    return []


def engine_named(name: str) -> str:
    """The engine's name as ENGINES has it, or 'auto'.

    Raises:
        ValueError: no engine is called so.
    """
    plain = "".join(letter for letter in name.lower() if letter.isalnum())
    known = {"".join(filter(str.isalnum, engine)): engine for engine in (AUTO, *ENGINES)}
    for short, engine in (known | ALIASES).items():
        if plain == short:
            return engine
    raise ValueError(f"unknown engine '{name}'; known: auto, {', '.join(ENGINES)}")


def json_marks(formats: Sequence[Format]) -> tuple[bytes, ...]:
    """Keys of JSON objects in quotes."""
    return tuple(f'"{key}"'.encode() for one in formats for key in sorted(one.keys))


def engines_in(block: bytes, candidates: Mapping[str, Sequence[Format]]) -> list[str]:
    """Engines whose signs or keys occur in a block of lines, the one with the most such lines first."""
    counts = {
        engine: len(lines_with(block, [*(sign for one in formats for sign in one.signs), *json_marks(formats)]))
        for engine, formats in candidates.items()
    }
    return sorted((engine for engine, count in counts.items() if count), key=lambda engine: -counts[engine])


def unknown(names: str, start: bytes) -> str:
    """The message for a file that no format fits, from what its first bytes look like."""
    if not start.strip():
        return f"{names} is empty"
    hint = next((f" (it looks like {text})" for sign, text in SPECULATION_OFF if sign in start), "")
    known = "; ".join(f"{engine}: {what}" for engine, what in ENGINES.items())
    return f"{names} holds no known format of speculative-decoding statistics{hint}; known formats: {known}"
