"""Replay of positional acceptance traces: what any draft length would have gained on output that was recorded once.

A trace says for every output position how many tokens a round that starts there emits if its draft is long enough. So
one recording answers for every shorter draft, on any hardware that a model of latency describes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.acceptance import IntArray
from sim.engine import ratio_interval
from sim.latency import LatencyModel, burst_seconds
from sim.theory import FloatArray, check_cost, check_gamma


@dataclass(frozen=True, eq=False)
class PositionalTrace:
    """Requests as they were recorded."""

    prompt_tokens: IntArray
    """[requests]"""
    accept_lengths: tuple[IntArray, ...]
    """tokens that a round emits if its draft is long enough, by output position; as many entries as output tokens"""

    def __post_init__(self) -> None:
        if len(self.prompt_tokens) != len(self.accept_lengths) or not len(self.accept_lengths):
            raise ValueError(
                f"a trace needs one prompt length per request, at least one, got {len(self.prompt_tokens)} for "
                f"{len(self.accept_lengths)} requests"
            )


@dataclass(frozen=True, eq=False)
class ReplayedRounds:
    """Every round of every request, and each request's seconds."""

    request: IntArray
    """[rounds], as the next two"""
    context: IntArray
    """tokens known before the round"""
    emitted: IntArray
    seconds: FloatArray
    """prefill and rounds of the whole batch [requests]"""
    baseline_seconds: FloatArray
    """the same without speculation [requests]"""


def read_positional_trace(path: Path) -> PositionalTrace:
    """Read JSONL, one request a line: `{"prompt_len": int, "accept_lengths": [int, ...]}`.

    Raises:
        ValueError: the file is missing or empty, or a line is broken; the line, the field and its value are named.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a readable trace: {error}") from error
    prompts, lengths = [], []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path} line {number}"
        try:
            row = json.loads(line)
            prompt, accepts = row["prompt_len"], row["accept_lengths"]
        except (ValueError, KeyError, TypeError) as error:
            form = '{"prompt_len": int, "accept_lengths": [int, ...]}'
            raise ValueError(f"{where} must read {form}: {error!r}") from error
        prompts.append(_whole(where, "prompt_len", prompt, 0))
        if not isinstance(accepts, list) or not accepts:
            raise ValueError(f"{where}: accept_lengths must be a list with an entry per output token, got {accepts!r}")
        entries = [_whole(where, f"accept_lengths[{place}]", entry, 1) for place, entry in enumerate(accepts)]
        lengths.append(np.array(entries))
    if not prompts:
        raise ValueError(f"{path} holds no request; write one a line")
    return PositionalTrace(np.array(prompts), tuple(lengths))


def _whole(where: str, name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{where}: {name} must be a whole number >= {least}, got {value!r}")
    return value


def walk(trace: PositionalTrace, gamma: int) -> tuple[IntArray, IntArray, IntArray]:
    """The rounds of every request at a draft length: request, output position where it starts, tokens emitted [rounds].

    A round at position i emits min(accept_lengths[i], gamma + 1) tokens, cut at the end of the output.
    """
    longest = max(map(len, trace.accept_lengths))
    size = np.array([len(lengths) for lengths in trace.accept_lengths])
    emits = np.ones((len(size), longest), dtype=np.int64)
    for row, lengths in enumerate(trace.accept_lengths):
        emits[row, : len(lengths)] = np.minimum(lengths, int(check_gamma(gamma)) + 1)
    going: IntArray = np.arange(len(size))
    position: IntArray = np.zeros(len(size), dtype=np.int64)
    rounds: list[tuple[IntArray, IntArray, IntArray]] = []
    while len(going):
        emitted = np.minimum(emits[going, position], size[going] - position)
        rounds.append((going, position, emitted))
        position = position + emitted
        unfinished: NDArray[np.bool_] = position < size[going]
        going, position = going[unfinished], position[unfinished]
    request, start, tokens = (np.concatenate(column) for column in zip(*rounds, strict=True))
    order = np.argsort(request, kind="stable")
    return request[order], start[order], tokens[order]


def replay(
    trace: PositionalTrace,
    gamma: int,
    batch: int,
    target: LatencyModel,
    draft: LatencyModel | None = None,
    overhead_seconds: float = 0.0,
    baseline_overhead_seconds: float | None = None,
) -> ReplayedRounds:
    """Run every request once, as a closed batch of copies of itself that move in step.

    Both models read the prompt first, which yields no token; then rounds draft gamma tokens each and verify them. The
    baseline reads the prompt with the target alone and takes one step a token.

    Args:
        trace: what was recorded.
        gamma: draft length; 0 decodes without a draft.
        batch: copies.
        target: prices prefill and verification.
        draft: prices each drafted token; None: drafting is free, as a lookup's forwards are.
        overhead_seconds: host time of every round.
        baseline_overhead_seconds: host time of a step without speculation; None: the same.

    Raises:
        ValueError: gamma or batch is out of range, a model refuses a forward, or a request takes no time.
    """
    if batch < 1 or batch != int(batch):
        raise ValueError(f"batch must be a whole number >= 1, got {batch}")
    overhead = check_cost("overhead_seconds", overhead_seconds)
    plain = overhead
    if baseline_overhead_seconds is not None:
        plain = check_cost("baseline_overhead_seconds", baseline_overhead_seconds)
    request, position, emitted = walk(trace, gamma)
    context = trace.prompt_tokens[request] + position
    drafting = 0.0 if draft is None or gamma == 0 else burst_seconds(draft, gamma, context, batch)
    rounds = target.forward_seconds(batch, gamma + 1, context) + drafting + overhead
    requests = len(trace.prompt_tokens)
    size = np.array([len(lengths) for lengths in trace.accept_lengths])
    steps = np.repeat(np.arange(requests), size)
    step_context = trace.prompt_tokens[steps] + np.arange(size.sum()) - np.repeat(np.cumsum(size) - size, size)
    step_seconds = np.broadcast_to(target.forward_seconds(batch, 1, step_context) + plain, steps.shape)
    reading = prefill_seconds(target, batch, trace.prompt_tokens)
    draft_reading = 0.0 if draft is None or gamma == 0 else prefill_seconds(draft, batch, trace.prompt_tokens)
    seconds = np.bincount(request, np.broadcast_to(rounds, request.shape), requests) + reading + draft_reading
    baseline_seconds = np.bincount(steps, step_seconds, requests) + reading
    if not (seconds.all() and baseline_seconds.all()):
        raise ValueError("every request must take time, got 0 seconds; give a target's latency > 0")
    return ReplayedRounds(request, context, emitted, seconds, baseline_seconds)


def prefill_seconds(latency: LatencyModel, batch: int, prompt_tokens: IntArray) -> FloatArray:
    """Seconds of reading prompts, 0 for an empty one [requests]."""
    seconds = latency.forward_seconds(batch, np.maximum(prompt_tokens, 1), 0)
    return np.where(prompt_tokens > 0, seconds, 0.0)


def replay_summary(replayed: ReplayedRounds, batch: int) -> dict[str, Any]:
    """Speedup and block efficiency of a replay, with 95% intervals over requests (None for a single one).

    Returns:
        speedup (output throughput against the same without speculation, prefill included in both), block_efficiency
        (tokens per round, a per-round mean), each with `_ci`; tokens, rounds and seconds of all copies' batches.
    """
    requests = len(replayed.seconds)
    tokens = np.bincount(replayed.request, replayed.emitted, requests)
    rounds = np.bincount(replayed.request, minlength=requests)
    result: dict[str, Any] = {}
    for name, over, under in (
        ("speedup", replayed.baseline_seconds, replayed.seconds),
        ("block_efficiency", tokens, rounds.astype(np.float64)),
    ):
        if requests > 1:
            result[name], result[f"{name}_ci"] = ratio_interval(over, under)
        else:
            result[name], result[f"{name}_ci"] = float(over.sum() / under.sum()), None
    seconds, baseline = float(replayed.seconds.sum()), float(replayed.baseline_seconds.sum())
    return result | {
        "requests": requests,
        "batch": batch,
        "tokens": int(tokens.sum()) * batch,
        "rounds": int(rounds.sum()),
        "seconds": seconds,
        "baseline_seconds": baseline,
        "tokens_per_second": float(tokens.sum()) * batch / seconds,
        "baseline_tokens_per_second": float(tokens.sum()) * batch / baseline,
    }
