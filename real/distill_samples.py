"""Text for distillation, sampled from the target itself: its own tokens, its hidden states, its normalisers.

A draft head has to guess what the target says, so the target writes the lessons. It also writes the questions: a user
turn begins with one of a few hundred openings, the target completes it, and then answers it, until the row is full.
Rows of a batch are always equally long, so a step is one dense forward over all of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from real.decoder import Decoder
from real.rows import draw
from sim.records import write_atomically

STARTERS = Path(__file__).parent / "prompts" / "starters.jsonl"

TEMPERATURES = (1.0, 1.0, 1.0, 1.0, 1.0, 0.7, 0.7, 0.3, 0.0, 0.0)
"""of a row's answers, drawn with equal chance: most as sampled at temperature 1, some as greedy decoding writes them"""

USER_TOKENS = (8, 96)
"""a user turn that does not end by itself is ended after so many tokens, drawn evenly from this range"""


@dataclass(frozen=True)
class Turns:
    """The token ids between the turns of a dialogue, as the tokenizer's chat template writes them.

    Attributes:
        opening: before the first user turn.
        answer: between the user's words and the answer's.
        next_turn: between the end of an answer (its stop token excluded) and the next user turn.
    """

    opening: tuple[int, ...]
    answer: tuple[int, ...]
    next_turn: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer: Any, stop_ids: frozenset[int]) -> Turns:
        """Read the chat template; a tokenizer without one has no turns, only texts."""
        encode = _encoder(tokenizer)
        if not tokenizer.chat_template:
            start = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else encode("\n")
            start = start or [tokenizer.eos_token_id]  # a tokenizer that splits at whitespace drops a line break
            return cls(tuple(start), (), tuple(start))
        marks = ("\x01user\x01", "\x01answer\x01", "\x01again\x01")
        messages = [
            {"role": role, "content": mark} for role, mark in zip(("user", "assistant", "user"), marks, strict=True)
        ]
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        opening, rest = text.split(marks[0])
        answer, rest = rest.split(marks[1])
        between = encode(rest.split(marks[2])[0])
        while between and between[0] in stop_ids:
            between = between[1:]
        return cls(tuple(encode(opening)), tuple(encode(answer)), tuple(between))


def _encoder(tokenizer: Any) -> Callable[[str], list[int]]:
    return lambda text: list(tokenizer(text, add_special_tokens=False)["input_ids"])


def read_starters(path: Path, tokenizer: Any) -> list[tuple[int, ...]]:
    """Token ids of the openings of user turns, one JSON object {"start": text} a line.

    Raises:
        ValueError: the file is missing, or a line is not such an object; the line is named.
    """
    encode = _encoder(tokenizer)
    starters = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read the openings {path}: {error}") from error
    for number, line in enumerate(lines, start=1):
        try:
            starters.append(tuple(encode(str(json.loads(line)["start"]))))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f'{path.name} line {number} is not {{"start": text}}: {line[:80]}') from error
    if not starters:
        raise ValueError(f"{path} holds no openings")
    return starters


@dataclass(frozen=True)
class Samples:
    """Sampled texts and what the target computed on the way.

    Attributes:
        token_ids: [rows, length] int32.
        features: [rows, length, layers, width] float16, each of unit root mean square (see `KVCache.features`).
        log_normaliser: [rows, length] float32, logsumexp of the target's logits after each token; NaN after those that
            the template gave and that the target was not asked about.
    """

    token_ids: Tensor
    features: Tensor
    log_normaliser: Tensor


@torch.inference_mode()
def sample(
    decoder: Decoder,
    turns: Turns,
    starters: list[tuple[int, ...]],
    stop_ids: frozenset[int],
    *,
    feature_layers: tuple[int, ...],
    rows: int,
    length: int,
    seed: int,
    on_step: Callable[[int], None] = lambda tokens: None,
) -> Samples:
    """Let the target write `rows` dialogues of `length` tokens.

    Args:
        on_step: called with the number of tokens that a forward has added.
    """
    device = decoder.device
    generator = torch.Generator(device).manual_seed(seed)
    rng = np.random.default_rng(seed)
    temperature = torch.tensor(rng.choice(TEMPERATURES, rows), dtype=torch.float32, device=device)
    cache = decoder.new_cache(length, rows, feature_layers)
    opening = torch.tensor(turns.opening, device=device).expand(rows, -1)
    token_ids = torch.zeros(rows, length, dtype=torch.long, device=device)
    normaliser = torch.full((rows, length), float("nan"), device=device)
    given = [list(starters[rng.integers(len(starters))]) for _ in range(rows)]
    asking = [True] * rows if turns.answer else [False] * rows
    left = rng.integers(*USER_TOKENS, size=rows).tolist()
    start = len(turns.opening)
    token_ids[:, :start] = opening
    if start > 1:
        decoder.forward(opening[:, :-1], cache, logits_to_keep=1)
    on_step(rows * start)
    for at in range(start, length):
        logits = decoder.forward(token_ids[:, at - 1 : at], cache)[:, 0].float()
        normaliser[:, at - 1] = logits.logsumexp(-1)
        heat = torch.where(torch.tensor(asking, device=device), 1.0, temperature)
        warm = draw(torch.softmax(logits / heat.clamp_min(0.05)[:, None], -1), generator)
        sampled = torch.where(heat > 0, warm, logits.argmax(-1)).tolist()
        for row in range(rows):
            if given[row]:
                sampled[row] = given[row].pop(0)
            elif asking[row]:
                left[row] -= 1
                if left[row] <= 0 or sampled[row] in stop_ids:
                    asking[row], queue = False, list(turns.answer)
                    sampled[row], given[row] = queue[0], queue[1:]
            elif sampled[row] in stop_ids:
                given[row] = [*turns.next_turn, *starters[rng.integers(len(starters))]]
                asking[row], left[row] = bool(turns.answer), int(rng.integers(*USER_TOKENS))
        token_ids[:, at] = torch.tensor(sampled, device=device)
        on_step(rows)
    decoder.forward(token_ids[:, -1:], cache, logits_to_keep=1)
    assert cache.features is not None
    return Samples(token_ids.int().cpu(), cache.features.half().cpu(), normaliser.cpu())


def write_samples(samples: Samples, path: Path) -> None:
    """Write a shard atomically as safetensors."""
    tensors = {name: value.contiguous() for name, value in vars(samples).items()}
    write_atomically(path, lambda part: save_file(tensors, part))


def read_samples(paths: list[Path]) -> Iterator[Samples]:
    """Read shards, memory-mapped."""
    for path in paths:
        try:
            with safe_open(path, framework="pt") as shard:
                yield Samples(**{name: shard.get_tensor(name) for name in shard.keys()})  # noqa: SIM118
        except Exception as error:  # safetensors raises its own kinds
            raise ValueError(f"{path} is not a readable shard of samples: {error}; delete it and run again") from error
