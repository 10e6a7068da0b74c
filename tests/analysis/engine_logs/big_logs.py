"""Writes large logs to measure the importers with: `python -m tests.analysis.engine_logs.big_logs DIR [MEGABYTES]`."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np


def vllm_line(
    rounds: int, by_position: list[int], clock: str = "09-16 05:26:57", drafted: int | None = None, prefix: str = ""
) -> str:
    """vLLM's line about rounds of which so many accepted each position; full drafts if `drafted` is left out."""
    accepted = sum(by_position)
    drafted = rounds * len(by_position) if drafted is None else drafted
    rates = ", ".join(f"{count / rounds:.3f}" for count in by_position)
    return (
        f"{prefix}INFO {clock} [metrics.py:120] SpecDecoding metrics: "
        f"Mean acceptance length: {1 + accepted / rounds:.2f}, Accepted throughput: {accepted / 10:.2f} tokens/s, "
        f"Drafted throughput: {drafted / 10:.2f} tokens/s, Accepted: {accepted} tokens, Drafted: {drafted} tokens, "
        f"Per-position acceptance rate: {rates}, Avg Draft acceptance rate: {100 * accepted / drafted:.1f}%"
    )


def vllm_lines(rng: np.random.Generator, noise: int = 0) -> Iterator[str]:
    """SpecDecoding lines ten seconds apart, each after an engine line and `noise` lines of requests."""
    second = 0
    while True:
        second += 10
        day, rest = divmod(second, 86_400)
        clock = f"{day // 28 % 12 + 1:02}-{day % 28 + 1:02} {rest // 3600:02}:{rest // 60 % 60:02}:{rest % 60:02}"
        rounds = int(rng.integers(50, 5000))
        passed = np.sort(rng.binomial(rounds, 0.7, size=3))[::-1].tolist()
        for _ in range(noise):
            peer = f"127.0.0.1:{rng.integers(1e4)}"
            yield f'(APIServer pid=1) INFO:     {peer} - "POST /v1/chat/completions HTTP/1.1" 200 OK'
        yield (
            f"(APIServer pid=1) INFO {clock} [loggers.py:257] Engine 000: Avg prompt throughput: 11244.6 tokens/s, "
            f"Avg generation throughput: {(sum(passed) + rounds) / 10:.1f} tokens/s, Running: 33 reqs, Waiting: 0 reqs"
        )
        yield vllm_line(rounds, passed, clock, prefix="(APIServer pid=1) ")


def sglang_lines(rng: np.random.Generator) -> Iterator[str]:
    """Decode lines of one rank."""
    second = 0
    while True:
        second += 1
        day, rest = divmod(second, 86_400)
        clock = f"2026-{day // 28 % 12 + 1:02}-{day % 28 + 1:02} {rest // 3600:02}:{rest // 60 % 60:02}:{rest % 60:02}"
        length = 1 + 3 * rng.beta(8, 4)
        yield (
            f"[{clock} TP0] Decode batch, #running-req: {rng.integers(1, 64)}, #token: 166144, token usage: 0.02, "
            f"accept len: {length:.2f}, accept rate: {(length - 1) / 3:.2f}, cuda graph: True, "
            f"gen throughput (token/s): {length * 100:.2f}, #queue-req: 0"
        )


def llama_lines(rng: np.random.Generator) -> Iterator[str]:
    """What llama-server prints after each request."""
    task = calls = gen = acc = 0
    while True:
        task += 1
        rounds = int(rng.integers(20, 200))
        passed = np.sort(rng.binomial(rounds, 0.6, size=3))[::-1]
        accepted, drafted = int(passed.sum()), 3 * rounds
        calls, gen, acc = calls + rounds, gen + drafted, acc + accepted
        slot = f"slot print_timing: id  {task % 4} | task {task} |"
        yield f"{slot} prompt eval time =     714.79 ms /  1091 tokens (    0.66 ms per token)"
        yield f"{slot}        eval time =    3133.20 ms /   {accepted + rounds} tokens (    8.88 ms per token)"
        yield f"{slot}       total time =    3847.99 ms /  1444 tokens"
        rates = ", ".join(f"{count / rounds:.3f}" for count in passed)
        yield (
            f"{slot} draft acceptance = {accepted / drafted:.5f} ({accepted:5d} accepted / {drafted:5d} generated), "
            f"mean acceptance length = {1 + accepted / rounds:5.2f}, acceptance rate per position = ({rates})"
        )
        yield (
            f"statistics        draft-mtp: #calls(b,g,a) = {task:4d} {calls:6d} {calls:6d}, #gen drafts = {calls:6d}, "
            f"#acc drafts = {calls:5d}, #gen tokens = {gen:6d}, #acc tokens = {acc:5d}, "
            f"dur(b,g,a) = 0.004, {calls}.5, 0.2 ms"
        )


def request_lines(rng: np.random.Generator) -> Iterator[str]:
    """vLLM's responses with per-request statistics, some text with each."""
    text = "speculative decoding " * 40
    number = 0
    while True:
        number += 1
        histogram = rng.multinomial(43, [0.3, 0.3, 0.2, 0.2])
        accepted = int(histogram @ np.arange(4))
        stats = {
            "mean_acceptance_length": 1 + accepted / 43,
            "draft_acceptance_rate": accepted / 129,
            "acceptance_histogram": histogram.tolist(),
            "num_spec_steps": 43,
            "num_accepted_draft_tokens": accepted,
            "num_draft_tokens": 129,
            "num_spec_tokens": 3,
        }
        yield json.dumps(
            {"id": f"cmpl-{number}", "choices": [{"text": text}], "metrics": {"speculative_decoding": stats}}
        )


def write(path: Path, lines: Iterator[str], size: int) -> Path:
    """Write lines until the file has so many bytes, a drawn part of them again and again."""
    part = "\n".join(next(lines) for _ in range(min(20_000, 20 + size // 1000))) + "\n"
    with open(path, "w") as file:
        written = 0
        while written < size:
            written += file.write(part)
    return path


def write_bench_document(path: Path, rng: np.random.Generator, size: int) -> Path:
    """One JSON document as `vllm bench serve --save-detailed` writes it, all in one line."""
    request = ", ".join(f"{value:.18f}" for value in rng.gamma(5, 0.008, size=400))
    requests = max(1, size // len(request))
    with open(path, "w") as file:
        file.write('{"backend": "vllm", "itls": [')
        for index in range(requests):
            file.write(f"{', ' if index else ''}[{request}]")
        lens = json.dumps([1201] * requests)
        file.write(f'], "output_lens": {lens}, "generated_texts": [], "spec_decode_num_drafts": {400 * requests}, ')
        file.write(f'"spec_decode_draft_tokens": {1200 * requests}, "spec_decode_accepted_tokens": {800 * requests}, ')
        file.write('"spec_decode_acceptance_length": 3.0, "spec_decode_acceptance_rate": 66.66666666666667}')
    return path


MEASURE = """
import re, sys, time
from pathlib import Path
from analysis.engine_logs import read_log

def peak_mib():
    "Of this program alone; ru_maxrss would begin at that of the process that started it."
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024

base = peak_mib()
start, cpu = time.perf_counter(), time.process_time()
log = read_log(sys.argv[1])
seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
peak = peak_mib()
size = Path(sys.argv[1]).stat().st_size / 1e6
print(f"{size / cpu:.0f} MB per CPU second, {size / seconds:.0f} MB/s; "
      f"peak {peak:.0f} MiB, of which imports {base:.0f}; {log.format}: rounds {log.rounds}, "
      f"mean {log.mean_acceptance_length:.4f}, skipped {log.skipped_lines}, {len(log.warnings)} warnings")
"""


def main() -> None:
    """Write one log of each kind and import it in a process of its own."""
    folder, megabytes = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 200
    rng = np.random.default_rng(0)
    kinds: dict[str, Callable[[], Iterator[str]]] = {
        "vllm-dense": lambda: vllm_lines(rng),
        "vllm-requests-between": lambda: vllm_lines(rng, 20),
        "sglang": lambda: sglang_lines(rng),
        "llama": lambda: llama_lines(rng),
        "vllm-requests": lambda: request_lines(rng),
    }
    for name in (*kinds, "vllm-bench"):
        path = folder / f"{name}.log"
        if name == "vllm-bench":
            write_bench_document(path, rng, megabytes << 20)
        else:
            write(path, kinds[name](), megabytes << 20)
        done = subprocess.run([sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, check=False)
        print(f"{name}: {done.stdout or done.stderr}", end="")
        path.unlink()


if __name__ == "__main__":
    main()
