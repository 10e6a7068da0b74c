"""Train a draft head for a target from the target's own samples: `specdec distill`.

A folder holds everything and can be interrupted at any time: shards of samples, then a checkpoint every few minutes;
the same call goes on from there. How much is sampled and how long is trained is fixed in steps when the folder is
opened, and recorded in `plan.json`: wall time never decides what the weights become.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from real.distill_samples import STARTERS, Samples, Turns, read_samples, read_starters, sample, write_samples
from real.distilled_head import DistilledHead, HeadShape, save_head
from real.llama_decoder import LlamaDecoder
from real.loading import Target
from sim.records import write_atomically, write_json

PLAN, CHECKPOINT, CURVE = "plan.json", "checkpoint.pt", "curve.csv"

Progress = Callable[[str, int, int, str], None]
"""Called as progress(stage, done, total, detail)."""

SAMPLING_SHARE = 1 / 3
"""of the minutes asked for; the rest goes into training"""


@dataclass(frozen=True)
class DistillPlan:
    """What a training run does; with the seed it fixes the weights, up to the order of sums on another machine.

    Attributes:
        shards, rows, length: samples are shards of rows of so many tokens; one more shard is held out for validation.
        vocabulary: tokens that the head can propose.
        steps: optimiser steps.
        batch_rows: rows in a step.
        unroll: tokens that the head drafts on its own in training, the first included.
        peak_rate: of AdamW, reached after `warmup` steps, falling as a cosine to zero.
        overlap_share: weight that the loss gives at the end to 1 - sum min(p, q) beside the cross-entropy.
    """

    seed: int
    shards: int
    steps: int
    rows: int = 192
    length: int = 256
    vocabulary: int = 8192
    batch_rows: int = 16
    unroll: int = 4
    warmup: int = 100
    peak_rate: float = 2e-3
    overlap_share: float = 0.7

    def __post_init__(self) -> None:
        for name in ("shards", "steps", "rows", "batch_rows", "unroll", "vocabulary"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if self.length < 64:
            raise ValueError(f"length must be >= 64 tokens, got {self.length}; a row holds an opening and its answer")

    @property
    def positions(self) -> int:
        """Sampled positions to learn from, the held-out shard not counted."""
        return self.shards * self.rows * self.length


def shard_seed(seed: int, shard: int) -> int:
    """The seed of one shard's sampling."""
    return int(np.random.default_rng([seed, shard]).integers(2**62))


@dataclass
class Lessons:
    """All samples of a run as tensors, ready to be batched.

    Attributes:
        samples: token ids, features and normalisers of all rows together.
    """

    samples: Samples
    target: LlamaDecoder

    def batch(self, rows: Tensor, head: DistilledHead) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Inputs and lessons of some rows.

        Returns:
            features [rows, places, layers, width] and embeddings [rows, places, width] at every place, the target's
            probabilities [rows, places, cut] of the token after next, over the head's vocabulary only, and whether
            they are known [rows, places].
        """
        token_ids = self.samples.token_ids[rows].long()
        features = self.samples.features[rows].float()
        embedded = self.target.embedding[token_ids[:, 1:-1]]
        assert self.target.norm is not None
        final = features[:, 1:-1, -1] * self.target.norm
        logits = final @ self.target.output_head[head.vocabulary].T
        normaliser = self.samples.log_normaliser[rows, 1:-1]
        known = ~normaliser.isnan()
        p = (logits - normaliser.nan_to_num(math.inf)[..., None]).exp_()
        return features[:, :-2], embedded, p, known


class OverlapLoss(torch.autograd.Function):
    """Score hidden states, compare with the target's probabilities and differentiate, a cache-sized piece at a time.

    The loss is (1 - w) times the cross-entropy -sum p log q plus 4 w times the total variation 1 - sum min(p, q), w the
    overlap's weight; the factor brings both to about the same size near the end of training.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, rows: Tensor, p: Tensor, weight: float) -> tuple[Tensor, Tensor]:
        """Hidden states [n, width], head rows [cut, width], target probabilities p [n, cut].

        Returns:
            The mean loss, and [3] means: cross-entropy [nats], overlap sum min(p, q), share of equal argmaxes.
        """
        gradient = torch.empty_like(hidden)
        totals = torch.zeros(3, dtype=torch.float64)
        for low in range(0, len(hidden), 128):
            piece = slice(low, low + 128)
            lesson = p[piece]
            log_q = torch.log_softmax((hidden[piece] @ rows.T).float(), dim=-1)
            q = log_q.exp()
            below = q < lesson
            entropy = -(lesson * log_q).sum()
            overlap = torch.where(below, q, lesson).sum()
            agree = (lesson.argmax(-1) == log_q.argmax(-1)).sum()
            totals += torch.stack([entropy, overlap, agree]).double()
            lower = q * below
            slope = (1 - weight) * (lesson.sum(-1, keepdim=True) * q - lesson)
            slope -= 4 * weight * (lower - lower.sum(-1, keepdim=True) * q)
            gradient[piece] = slope.to(rows.dtype) @ rows
        ctx.save_for_backward(gradient / len(hidden))
        entropy, overlap, agree = totals / len(hidden)
        return (1 - weight) * entropy + 4 * weight * (1 - overlap), torch.stack([entropy, overlap, agree])

    @staticmethod
    def backward(ctx: Any, slope: Tensor, _: Tensor) -> tuple[Tensor, None, None, None]:
        """The gradient was computed on the way."""
        (gradient,) = ctx.saved_tensors
        return gradient * slope.to(gradient.dtype), None, None, None


def losses(
    head: DistilledHead,
    target: LlamaDecoder,
    batch: tuple[Tensor, Tensor, Tensor, Tensor],
    steps: int,
    weight: float = 0.0,
) -> list[tuple[Tensor, Tensor]]:
    """For each unrolled step the loss, and [3] cross-entropy, overlap and share of equal argmaxes."""
    features, embedded, p, known = batch
    places = embedded.shape[1]
    rows = target.output_head[head.vocabulary].to(torch.bfloat16)
    with torch.autocast(p.device.type, torch.bfloat16):
        outputs = head.unrolled(features, embedded, target.cosine[:places], target.sine[:places], steps)
    results = []
    for step, hidden in enumerate(outputs):
        normed = F.rms_norm(hidden[:, step:].float(), hidden.shape[-1:], head.norm, head.shape.epsilon)
        seen = known[:, step:]
        results.append(OverlapLoss.apply(normed[seen].to(rows.dtype), rows, p[:, step:][seen], weight))  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return results


def most_used(token_ids: Tensor, size: int, vocab: int) -> Tensor:
    """[size] int64 the tokens that occur most often, most used first; ties go to the lower id."""
    counts = torch.bincount(token_ids.flatten().long(), minlength=vocab)
    return torch.argsort(counts, descending=True, stable=True)[: min(size, vocab)]


def collect(target: Target, plan: DistillPlan, folder: Path, progress: Progress) -> list[Path]:
    """Sample every shard that is missing; the last is the held-out one."""
    decoder = llama_of(target)
    turns = Turns.of(target.tokenizer, target.stop_ids)
    starters = read_starters(STARTERS, target.tokenizer)
    paths = [folder / "samples" / f"{shard:04d}.safetensors" for shard in range(plan.shards + 1)]
    per_shard = plan.rows * plan.length
    for shard, path in enumerate(paths):
        done = shard * per_shard
        if not path.exists():

            def step(tokens: int) -> None:
                nonlocal done
                done += tokens
                progress("sample", done, per_shard * len(paths), "positions")

            samples = sample(
                decoder, turns, starters, target.stop_ids,
                feature_layers=HeadShape.of(decoder).feature_layers, rows=plan.rows, length=plan.length,
                seed=shard_seed(plan.seed, shard), on_step=step,
            )  # fmt: skip
            write_samples(samples, path)
    return paths


def load_lessons(paths: list[Path], target: LlamaDecoder) -> Lessons:
    """All shards in memory, about 3.5 kB a position for a width of 576."""
    shards = list(read_samples(paths))
    names = ("token_ids", "features", "log_normaliser")
    return Lessons(Samples(*(torch.cat([getattr(shard, name) for shard in shards]) for name in names)), target)


def learning_rate(plan: DistillPlan, step: int) -> float:
    """Linear warm-up, then a cosine to zero."""
    if step < plan.warmup:
        return plan.peak_rate * (step + 1) / plan.warmup
    return plan.peak_rate * 0.5 * (1 + math.cos(math.pi * (step - plan.warmup) / max(1, plan.steps - plan.warmup)))


def train(target: Target, plan: DistillPlan, folder: Path, progress: Progress, validate_every: int = 50) -> Path:
    """Sample, train, and write `head.safetensors` and the validation curve `curve.csv` into the folder.

    Returns:
        The folder, which `--draft` takes.

    Raises:
        ValueError: the target is not Llama-shaped, or the folder holds a run with another plan.
    """
    decoder = llama_of(target)
    open_folder(folder, target, plan)
    paths = collect(target, plan, folder, progress)
    lessons, held_out = load_lessons(paths[:-1], decoder), load_lessons(paths[-1:], decoder)
    vocabulary = most_used(lessons.samples.token_ids, plan.vocabulary, decoder.vocab_size)
    head = DistilledHead(HeadShape.of(decoder), vocabulary, seed=plan.seed)
    optimiser = torch.optim.AdamW(head.parameters(), lr=plan.peak_rate, betas=(0.9, 0.95), weight_decay=0.01)
    done, curve = 0, []
    if (folder / CHECKPOINT).exists():
        state = torch.load(folder / CHECKPOINT, weights_only=True)
        head.load_state_dict(state["head"])
        optimiser.load_state_dict(state["optimiser"])
        done, curve = state["done"], state["curve"]
    rows = len(lessons.samples.token_ids)
    rng = np.random.default_rng([plan.seed, 1])
    order = np.concatenate([rng.permutation(rows) for _ in range(1 + plan.steps * plan.batch_rows // rows)])
    saved = time.monotonic()
    for step in range(done, plan.steps):
        picked = torch.from_numpy(order[step * plan.batch_rows : (step + 1) * plan.batch_rows])
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(plan, step)
        weight = plan.overlap_share * step / plan.steps
        results = losses(head, decoder, lessons.batch(picked, head), plan.unroll, weight)
        scales = torch.tensor([0.8**k for k in range(plan.unroll)])
        loss = (scales * torch.stack([one for one, _ in results])).sum() / scales.sum()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)
        optimiser.step()
        done = step + 1
        if done % validate_every == 0 or done == plan.steps:
            curve.append({"step": done, "positions": done * plan.batch_rows * plan.length}
                         | validate(head, decoder, held_out, plan))  # fmt: skip
            write_atomically(folder / CURVE, lambda part: pd.DataFrame(curve).to_csv(part, index=False))
        if time.monotonic() - saved > 120 or done == plan.steps:
            write_checkpoint(folder, head, optimiser, done, curve)
            saved = time.monotonic()
        progress("train", done, plan.steps, f"alpha {curve[-1]['alpha_1']:.3f}" if curve else "")
    save_head(head, folder, {"target": target.name, "plan": asdict(plan), "validation": curve[-1]})
    return folder


def write_checkpoint(
    folder: Path, head: DistilledHead, optimiser: torch.optim.Optimizer, done: int, curve: list[dict[str, float]]
) -> None:
    """Write what `train` needs to go on from step `done`."""
    state = {"head": head.state_dict(), "optimiser": optimiser.state_dict(), "done": done, "curve": curve}
    write_atomically(folder / CHECKPOINT, lambda part: torch.save(state, part))


@torch.no_grad()
def validate(head: DistilledHead, target: LlamaDecoder, held_out: Lessons, plan: DistillPlan) -> dict[str, float]:
    """alpha_k and agreement_k (greedy) of the k-th drafted token on the held-out shard, all its rows."""
    rows = torch.arange(len(held_out.samples.token_ids))
    parts = [
        losses(head, target, held_out.batch(part, head), plan.unroll) for part in torch.split(rows, plan.batch_rows)[:4]
    ]
    result: dict[str, float] = {}
    for step in range(plan.unroll):
        _, overlap, agreement = torch.stack([part[step][1] for part in parts]).mean(0).tolist()
        result |= {f"alpha_{step + 1}": overlap, f"agreement_{step + 1}": agreement}
    return result


def make_plan(
    target: Target, folder: Path, *, minutes: float | None, shards: int | None, steps: int | None, seed: int
) -> DistillPlan:
    """The plan that a folder already holds, or a new one, from numbers of shards and steps or from minutes.

    Minutes are turned into numbers by timing this machine: a few sampled tokens, and two optimiser steps.

    Raises:
        ValueError: neither minutes nor both numbers are given, or they are too small.
    """
    if (folder / PLAN).exists():
        known = json.loads((folder / PLAN).read_text())
        fields = {name: known[name] for name in DistillPlan.__dataclass_fields__ if name in known}
        fields |= {name: value for name, value in (("shards", shards), ("steps", steps)) if value is not None}
        return DistillPlan(**fields | {"seed": seed})
    if shards is not None and steps is not None and minutes is None:
        return DistillPlan(seed=seed, shards=shards, steps=steps)
    if minutes is None or shards is not None or steps is not None:
        raise ValueError("give either --minutes, or both --shards and --steps")
    if not minutes > 0:
        raise ValueError(f"minutes must be > 0, got {minutes}")
    shard_seconds, step_seconds = time_plan(target, DistillPlan(seed=seed, shards=1, steps=2))
    sampling, training = minutes * 60 * SAMPLING_SHARE, minutes * 60 * (1 - SAMPLING_SHARE)
    planned = int(sampling / shard_seconds) - 1, int(training / step_seconds)
    if min(planned) < 1:
        least = (2 * shard_seconds / SAMPLING_SHARE) / 60
        raise ValueError(f"minutes must be at least {least:.0f} on this machine, got {minutes:g}")
    return DistillPlan(seed=seed, shards=planned[0], steps=planned[1])


def time_plan(target: Target, plan: DistillPlan) -> tuple[float, float]:
    """Seconds of one shard of samples and of one optimiser step, from a small piece of each."""
    decoder = llama_of(target)
    turns, starters = Turns.of(target.tokenizer, target.stop_ids), read_starters(STARTERS, target.tokenizer)
    layers = HeadShape.of(decoder).feature_layers
    length = len(turns.opening) + 24
    begin = time.monotonic()
    samples = sample(
        decoder, turns, starters, target.stop_ids, feature_layers=layers, rows=plan.rows, length=length, seed=0
    )
    shard_seconds = (time.monotonic() - begin) / 24 * plan.length
    head = DistilledHead(HeadShape.of(decoder), torch.arange(min(plan.vocabulary, decoder.vocab_size)))
    lessons = Lessons(samples, decoder)
    begin = time.monotonic()
    for _ in range(plan.steps):
        losses(head, decoder, lessons.batch(torch.arange(plan.batch_rows), head), plan.unroll)[0][0].backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return shard_seconds, (time.monotonic() - begin) / plan.steps / length * plan.length


def llama_of(target: Target) -> LlamaDecoder:
    """The target's decoder.

    Raises:
        ValueError: it is not Llama-shaped.
    """
    if not isinstance(target.decoder, LlamaDecoder):
        raise ValueError(f"target '{target.name}' is not Llama-shaped; a draft head is one of its layers")
    return target.decoder


def read_curve(folder: Path) -> list[dict[str, float]]:
    """The validation curve of a run, one entry a validation."""
    table = pd.read_csv(folder / CURVE)
    return [{str(name): float(value) for name, value in row.items()} for row in table.to_dict(orient="records")]


def open_folder(folder: Path, target: Target, plan: DistillPlan) -> None:
    """Record the plan, or check that the folder's run has the same one.

    Raises:
        ValueError: the folder holds a run with another plan.
    """
    described: dict[str, Any] = {"target": target.name, **asdict(plan)}
    if not (folder / PLAN).exists():
        write_json(described, folder / PLAN)
        return
    before = json.loads((folder / PLAN).read_text())
    changed = {name: (before.get(name), value) for name, value in described.items() if before.get(name) != value}
    if changed:
        raise ValueError(f"{folder} holds a training run with another plan {changed}; name another folder with --out")
