"""Mixtures of experts: a verification touches more experts than a step, so its cost depends on batch and sparsity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

from paper_figs.style import COLUMN_INCHES, GUIDE, kinds, letter, new_figure, style
from sim.architectures import Architecture, MixtureOfExperts
from sim.architectures.catalogue import find_architecture
from sim.architectures.routing import distinct_experts
from sim.hardware import find_device
from sim.roofline import RooflineLatency
from sim.theory import expected_tokens

NAME = "moe_verify"
SOURCE = (
    "priced by sim.roofline from public shapes; after MoESD, arXiv:2505.19645 (2025), which found sparse models to "
    "gain most at medium batches"
)
CAPTION = (
    "Verifying five tokens a request (γ = 4) against one step, on two H100, 1024 tokens of context: (a) ratio of the "
    "forwards and (b) speedup at α = 0.8 with a draft of 5% of a step, against the batch, for a dense model and two "
    "mixtures of experts. At batch 1 more experts are read for a verification than for a step; at medium batches a "
    "step reads them all already and verification is nearly free; at large ones arithmetic decides. (c) The same ratio "
    "for Qwen3-30B-A3B with other numbers of experts, eight of them per token; how many of them one step reads is in "
    "the CSV."
)
MODELS = {"llama-3.1-8b": "Llama 3.1 8B (dense)", "qwen3-30b-a3b": "Qwen3-30B-A3B", "mixtral-8x7b": "Mixtral 8x7B"}
DEVICE, DEVICES, GAMMA, CONTEXT = "h100", 2, 4, 1024
SPARSE = "qwen3-30b-a3b"


def verify_ratio(shape: Architecture, batch: int) -> float:
    """One forward with gamma + 1 new tokens a request over one with a single one."""
    model = RooflineLatency(shape, find_device(DEVICE), tensor_parallel=DEVICES)
    return float(model.forward_seconds(batch, GAMMA + 1, CONTEXT) / model.forward_seconds(batch, 1, CONTEXT))


def data(
    batches: Sequence[int] = (1, 2, 4, 8, 16, 32, 64, 128, 256),
    experts: Sequence[int] = (8, 16, 32, 64, 128, 256),
    expert_batches: Sequence[int] = (1, 16, 256),
    alpha: float = 0.8,
    draft_share: float = 0.05,
) -> pd.DataFrame:
    """Verify ratios and speedups.

    Args:
        batches: requests, for the three models.
        experts: of a layer, for the sparse model; 8 of them per token.
        expert_batches: requests, for those.
        alpha: acceptance rate, iid.
        draft_share: one draft forward / one step.

    Returns:
        panel ('batch', 'experts'), model, batch, experts (0: dense), verify_ratio, speedup, touched (share of a layer's
        experts that one step reads; NaN where dense).
    """
    rows = []
    for name in MODELS:
        shape = find_architecture(name)
        rows += [_row("batch", shape, batch, alpha, draft_share) for batch in batches]
    sparse = find_architecture(SPARSE)
    if sparse.moe is None:
        raise ValueError(f"{SPARSE} must be a mixture of experts")
    for count in experts:
        shape = replace(
            sparse, moe=MixtureOfExperts(count, sparse.moe.experts_per_token, sparse.moe.expert_intermediate)
        )
        rows += [_row("experts", shape, batch, alpha, draft_share) for batch in expert_batches]
    return pd.DataFrame(rows)


def _row(panel: str, shape: Architecture, batch: int, alpha: float, draft_share: float) -> dict[str, object]:
    ratio = verify_ratio(shape, batch)
    moe = shape.moe
    routing = RooflineLatency(shape, find_device(DEVICE), tensor_parallel=DEVICES).reached.routing
    touched = (
        np.nan if moe is None else distinct_experts(moe.experts, moe.experts_per_token, batch, routing) / moe.experts
    )
    return {
        "panel": panel,
        "model": shape.name,
        "batch": batch,
        "experts": 0 if moe is None else moe.experts,
        "verify_ratio": ratio,
        "speedup": float(expected_tokens(alpha, GAMMA)) / (GAMMA * draft_share + ratio),
        "touched": float(touched),
    }


def draw(table: pd.DataFrame) -> Figure:
    """Three panels."""
    by_batch, by_experts = (table[table["panel"] == name] for name in ("batch", "experts"))
    with style():
        figure = new_figure(COLUMN_INCHES, 1.95 * COLUMN_INCHES)
        first, second, third = figure.subplots(3, 1)
        for (name, label), look in zip(MODELS.items(), kinds(len(MODELS)), strict=True):
            rows = by_batch[by_batch["model"] == name]
            first.plot(rows["batch"], rows["verify_ratio"], label=label, **look)
            second.plot(rows["batch"], rows["speedup"], **look)
        second.axhline(1, color=GUIDE, linewidth=0.7)
        groups = list(by_experts.groupby("batch"))
        for (batch, rows), look in zip(groups, kinds(len(groups)), strict=True):
            third.plot(rows["experts"], rows["verify_ratio"], label=f"batch {batch}", **look)
        _log(first, [1, 4, 16, 64, 256], "Batch [requests]")
        _log(second, [1, 4, 16, 64, 256], "Batch [requests]")
        _log(third, sorted(by_experts["experts"].unique()), "Experts of a layer")
        first.set_ylabel("Verify over step (×)")
        second.set_ylabel("Speedup (×)")
        third.set_ylabel("Verify over step (×)")
        first.legend(loc="best", handlelength=3.2)
        third.legend(loc="best", handlelength=3.2)
        titles = ["Cost of verifying", "Speedup", "Cost of verifying by number of experts"]
        letter([first, second, third], titles)
        return figure


def _log(axes: Axes, ticks: list[int], label: str) -> None:
    """A logarithmic axis in plain numbers."""
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:.0f}"))
    axes.set_xlabel(label)
