"""What a round of a published row costs, in target forwards: from the row's own latencies, or from physical models.

A source often leaves out what verifying several tokens costs, and sometimes what drafting does. Both are then modelled
by rules that are the same for every row and know no speedup: forwards of the same model on the same device that were
published elsewhere, `sim.roofline`, and the host's time per layer where kernels are launched one by one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import pandas as pd
from scipy.optimize import isotonic_regression

from analysis.fit.host_overhead import EAGER_FORWARDS, eager_overhead
from analysis.published.rows import PublishedRow, Range
from sim.architectures import Architecture
from sim.architectures.catalogue import find_architecture
from sim.hardware import DEVICES, Device
from sim.latency import TableLatency
from sim.roofline import RooflineLatency

CONTEXT_TOKENS = 128.0
"""where a row names no context, as in `analysis.fit.host_overhead`; at one request it matters below 1%"""

EAGLE_3_VOCABULARY = 32_000
"""of an EAGLE-3 head: draft_vocab_size in the config.json of huggingface.co/yuhuili/EAGLE3-LLaMA3.1-Instruct-8B"""

ERROR_OF_RATIO = 0.04
"""how far the time with many new tokens over that with one may be off: the held-out error of `sim.roofline` on its own
device (`sim/data/README.md`), and the most by which a point of Sequoia's Figure 8 falls below one with fewer tokens"""
ERROR_OF_FORWARD, ERROR_ELSEWHERE = 0.04, 0.15
"""how far a forward of `sim.roofline` may be off, on the device that it was fitted on and on others (the same)"""

ALIASES: Mapping[str, str] = {"deepseek-r1-distill-llama-8b": "llama-3.1-8b"}
"""models of a known shape whose names do not say so"""
QWEN_2_5_7B = Architecture(
    "qwen2.5-7b",
    "huggingface.co/Qwen/Qwen2.5-7B config.json",
    *(3584, 28, 28, 4, 128, 18_944, 152_064),
    qkv_bias=True,
)

SERVED = re.compile(r"vllm|sglang|tensorrt|trt-llm|lmdeploy", re.IGNORECASE)
EAGER = re.compile(r"\beager\b", re.IGNORECASE)


class NotGivenError(Exception):
    """A row leaves out an input that nothing else tells; the message is the reason."""


class Cost(NamedTuple):
    """A part of a round, in target forwards with one new token."""

    share: Range
    basis: str
    """where it is from"""


def draft_cost(row: PublishedRow) -> Cost:
    """All draft forwards of a round: measured latencies first, then c, then a model.

    Raises:
        NotGivenError: none of them is there.
    """
    passes = 1 if drafts_at_once(row) else row.depth
    if passes is None:
        raise NotGivenError("gamma: neither it nor the depth of a tree is given")
    draft, target, ratio = (row.given(name) for name in ("draft_latency_ms", "target_latency_ms", "c"))
    if draft and target:
        once, basis = over(draft, target), "draft latency given"
    elif ratio:
        once, basis = ratio, "c given"
    else:
        once, basis = modelled_draft(row)
    return Cost(Range(passes * once.value, passes * once.lo, passes * once.hi), basis)


def verify_cost(row: PublishedRow) -> Cost:
    """The verification: the measured latency, or one forward and what a model says that more new tokens add to it.

    Only the increment is modelled, since the host's time and all else that a target forward takes is in the row's own
    latency. Where nothing models it, it is taken as none.
    """
    verify, target = row.given("verify_latency_ms"), row.given("target_latency_ms")
    if verify and target:
        return Cost(over(verify, target), "verification given")
    drafted = row.tree.tokens if row.tree else row.gamma
    latency = target_latency(row)
    if drafted is None or latency is None:
        return Cost(Range(1.0, 1.0, 1.0), "verification taken as one forward")
    batch, context = batch_of(row), row.context_tokens or CONTEXT_TOKENS
    one, many = (float(latency.forward_seconds(batch, tokens, context)) for tokens in (1, drafted + 1))
    basis = "roofline"
    table = eager_table(latency.architecture.name, latency.device.name)
    if table and batch == 1 and not SERVED.search(row.text["hardware"]) and drafted < table.axes[1][-1]:
        one, many = (float(table.forward_seconds(1, tokens, 0)) for tokens in (1, drafted + 1))
        basis = "published forwards"
    base = target.value / 1e3 if target else one
    if basis == "roofline" and EAGER.search(row.text["hardware"]):
        one, many = max(one, base), max(many, base)  # the device waits for the host unless it has more to do
    ratio = 1 + (many - one) / base
    share = Range(ratio, max(1.0, ratio * (1 - ERROR_OF_RATIO)), ratio * (1 + ERROR_OF_RATIO))
    return Cost(share, f"verification by {basis}")


def modelled_draft(row: PublishedRow) -> Cost:
    """One draft forward where the row gives neither its latency nor c.

    Raises:
        NotGivenError: nothing says what it would cost.
    """
    if (batch := batch_of(row)) > 1:
        raise NotGivenError(
            f"c: not given; at batch {batch:g} a ratio of throughputs also holds queueing, prefills and ragged ends"
        )
    target = target_latency(row)
    if target is None:
        raise NotGivenError(
            f"c: not given, and {row.text['target']!r} on {row.text['hardware']!r} is no known model on a known device"
        )
    shape = draft_shape(row.text["draft"], target.architecture)
    if shape is None:
        raise NotGivenError(f"c: not given, and the shape of {row.text['draft']} is not known")
    context = row.context_tokens or CONTEXT_TOKENS
    draft = float(replace(target, architecture=shape).forward_seconds(1, 1, context))
    one, measured = float(target.forward_seconds(1, 1, context)), row.given("target_latency_ms")
    if EAGER.search(row.text["hardware"]):
        return eager_draft(one, draft, target.architecture.layers, shape.layers, measured)
    if not SERVED.search(row.text["hardware"]):
        raise NotGivenError("c: not given, and the hardware column names no engine that would tell what a draft costs")
    if not is_head(row.text["draft"]):
        # vllm-project/vllm#47460: unlike heads, they ran outside CUDA graphs until July 2026
        raise NotGivenError("c: not given; serving engines may launch a draft model kernel by kernel, at no known cost")
    error, base = roofline_error(target.device), measured.value / 1e3 if measured else one
    # vllm-project/vllm#45258: the attention between a head's graph pieces is launched by the host
    slowest = draft + shape.layers * most_host_seconds_per_layer()
    share = Range(draft / base, draft * (1 - error) / base, slowest * (1 + error) / base)
    return Cost(share, "draft by roofline")


def eager_draft(one: float, draft: float, target_layers: int, draft_layers: int, measured: Range | None) -> Cost:
    """A draft forward in eager mode, by what the row's own target forward says of the host's time per layer.

    The host runs ahead of the device, so a forward takes the longer of the two; at least, the host's time is what the
    device's leaves of the target's.

    Raises:
        NotGivenError: the row gives no target latency.
    """
    if measured is None:
        raise NotGivenError("target_latency_ms: without it the host's time per layer in eager mode is not known")
    base = measured.value / 1e3
    host = base / target_layers if base > one else 0.0
    least = max(0.0, base - one) / target_layers
    slowest, fastest = max(draft, draft_layers * host), draft + draft_layers * least
    return Cost(Range(slowest / base, min(fastest, slowest) / base, slowest / base), "draft by the host's time a layer")


def over(part: Range, whole: Range) -> Range:
    """A ratio of two printed numbers."""
    return Range(part.value / whole.value, part.lo / whole.hi, part.hi / whole.lo)


def batch_of(row: PublishedRow) -> float:
    """Requests in a forward; a row that does not say is of one."""
    batch = row.given("batch")
    return batch.value if batch else 1.0


def drafts_at_once(row: PublishedRow) -> bool:
    """Whether one pass drafts all tokens of a round."""
    return "parallel draft" in row.text["draft"].lower() or "in one pass" in row.text["note"].lower()


def roofline_error(device: Device) -> float:
    """How far the roofline may be off on a device, as a share."""
    return ERROR_OF_FORWARD if device.name == "h100" else ERROR_ELSEWHERE


def target_latency(row: PublishedRow) -> RooflineLatency | None:
    """The target on the row's devices; None where one of them is not known, or memory can't hold the model."""
    hardware = row.text["hardware"]
    shape, device = find_shape(row.text["target"]), find_device(hardware)
    count = re.match(r"(\d+)\s*x", hardware)
    if shape is None or device is None:
        return None
    dtype = "bf16" if "bf16" in device.flops else "fp16"
    try:
        return RooflineLatency(shape, device, dtype, tensor_parallel=int(count[1]) if count else 1)
    except ValueError:
        return None


def find_device(hardware: str) -> Device | None:
    """The device that a text such as "8xA100 TP8" or "1x H100 (Modal), vLLM" names, if it is known."""
    text = re.sub(r"[\s_]+", "-", hardware.strip().lower())
    for name in sorted(DEVICES, key=len, reverse=True):
        if re.search(rf"(?<![a-z0-9])(\d+x-?)?{re.escape(name)}(?![a-z0-9])", text):
            return DEVICES[name]
    return None


def find_shape(model: str) -> Architecture | None:
    """The shape that a text such as "Llama2-7B" or "T5-XXL 11B" names, if it is known."""
    words = model.lower().split()
    name = re.sub(r"^(llama)-?(\d)", r"\1-\2", words[0]) if words else ""
    name = re.sub(r"-\d+k$", "", name)  # "-32K" is a context
    if re.fullmatch(r"qwen-?2\.5-7b(-instruct)?", name):
        return QWEN_2_5_7B
    try:
        return find_architecture(ALIASES.get(name, name))
    except ValueError:
        return None


def is_head(draft: str) -> bool:
    """Whether a draft is an EAGLE-3 head."""
    return re.search(r"eagle-?3", draft, re.IGNORECASE) is not None


def draft_shape(draft: str, target: Architecture) -> Architecture | None:
    """The shape of a draft model or head, if it is known.

    An EAGLE-3 head is one decoder layer as wide as the target's, whose queries, keys and values are made of two hidden
    vectors side by side, and a smaller vocabulary (Li et al. 2025, arXiv:2503.01840, section 3). The second half of
    these products stands here as so much more MLP; the product that mixes three layers of the target is left out.
    """
    if not is_head(draft):
        return find_shape(draft)
    if target.moe or target.mla or target.encoder_layers:
        return None
    wider = (target.heads + 2 * target.kv_heads) * target.head_dim // 3
    return replace(
        target,
        name=f"eagle-3 of {target.name}",
        layers=1,
        window_layers=0,
        intermediate=target.intermediate + wider,
        vocab=EAGLE_3_VOCABULARY,
        tied_embeddings=False,
    )


@lru_cache(maxsize=1)
def most_host_seconds_per_layer() -> float:
    """The most that launching a layer's kernels one by one adds to it in published forwards."""
    return float(eager_overhead()["host_us_per_layer"].max()) / 1e6


@lru_cache(maxsize=64)
def eager_table(model: str, device: str) -> TableLatency | None:
    """Published forwards of a model on a device, one request in eager mode (Sequoia, Figure 8), if there are any."""
    for series, points in pd.read_csv(EAGER_FORWARDS).groupby("series", sort=False):
        name, where = str(series).rstrip(")").split(" (")
        shape, found = find_shape(name), find_device(where)
        if shape and found and (shape.name, found.name) == (model, device):
            # what was read off falls in places, which a forward with more tokens can't
            seconds = isotonic_regression(points["forward_ms"].to_numpy()).x / 1e3
            rows = pd.DataFrame({"batch": 1, "new_tokens": points["n_tokens"], "context": 0, "seconds": seconds})
            return TableLatency(rows)
    return None
