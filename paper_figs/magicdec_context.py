"""MagicDec: with long contexts speculation pays in large batches too, if the draft reads little of the KV cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from paper_figs import PUBLISHED
from paper_figs.style import COLUMN_INCHES, GUIDE, kinds, letter, new_figure, style
from sim.architectures.catalogue import find_architecture
from sim.hardware import find_device
from sim.roofline import RooflineLatency

NAME = "magicdec_context"
SOURCE = (
    "Sadhukhan et al. 2025, MagicDec, arXiv:2408.11049, Table 3c (measured, with its tokens per round); priced by "
    "sim.roofline"
)
CAPTION = (
    "Llama 3.1 8B on eight A100, drafting two tokens with itself over a sparse KV cache of 512 tokens. (a) Speedup "
    "against the context: measured (marks) and priced by the roofline (lines). The time of the host per layer is taken "
    "from one draft forward of the table (batch 32, 4,000 tokens); everything else is computed: mean error of the "
    "other speedups {error:.0%}. (b) Priced against the batch, up to what the KV memory holds. Beyond a context of "
    "some thousand tokens a larger batch gains more."
)
TARGET, DEVICE, DEVICES = "llama-3.1-8b", "a100", 8
GAMMA, SPARSE_TOKENS = 2, 512
CALIBRATION = (32, 4000)
"""(batch, context) of the row whose draft forward gives the host's time"""
MEMORY_SHARE = 0.9
"""of the devices' memory that weights and cache may take"""


def measured(path: Path = PUBLISHED) -> pd.DataFrame:
    """Table 3c: batch, context, tau, draft_seconds (one forward), speedup."""
    rows = pd.read_csv(path)
    rows = rows[rows["source"].str.contains("2408.11049", regex=False) & (rows["table"] == "Table 3c")]
    return pd.DataFrame(
        {
            "batch": rows["batch"].astype(int),
            "context": rows["context_len"].astype(int),
            "tau": rows["tau"],
            "draft_seconds": rows["draft_latency_ms"] / 1e3,
            "speedup": rows["speedup_measured"],
        }
    ).reset_index(drop=True)


def latency() -> RooflineLatency:
    """The target on its devices, with the host's time of `CALIBRATION`."""
    bare = RooflineLatency(find_architecture(TARGET), find_device(DEVICE), tensor_parallel=DEVICES)
    rows = measured()
    row = rows[(rows["batch"] == CALIBRATION[0]) & (rows["context"] == CALIBRATION[1])].iloc[0]
    lacking = float(row["draft_seconds"] - bare.forward_seconds(CALIBRATION[0], 1, SPARSE_TOKENS))
    return replace(bare, host_seconds_per_layer=max(lacking, 0.0) / bare.architecture.layers)


def speedup(model: RooflineLatency, batch: int, context: float, tokens: float) -> float:
    """Priced speedup of rounds that emit so many tokens.

    Args:
        model: prices draft and target, which are one model.
        batch: requests.
        context: tokens of each; the draft reads `SPARSE_TOKENS` of them at most.
        tokens: of a round.
    """
    plain = model.forward_seconds(batch, 1, context)
    drafting = GAMMA * model.forward_seconds(batch, 1, min(context, SPARSE_TOKENS))
    return float(tokens * plain / (drafting + model.forward_seconds(batch, GAMMA + 1, context)))


def fits(model: RooflineLatency, batch: int, context: float) -> bool:
    """Whether weights and KV cache of all requests fit into memory."""
    weights = model.architecture.weight_bytes(2.0) / DEVICES
    cache = batch * context * model.kv_bytes_per_token
    return bool(weights + cache <= MEMORY_SHARE * model.device.memory_bytes)


def data(
    contexts: Sequence[int] = (1000, 2000, 4000, 8000, 16000, 32000, 64000, 128_000),
    batches: Sequence[int] = (1, 2, 4, 8, 16, 32, 64, 128, 256),
) -> pd.DataFrame:
    """Speedups over contexts and batches, priced, then those measured beside their prices.

    Returns:
        panel ('priced', 'measured'), batch, context, tau (measured; the mean of the table where priced), speedup (NaN
        where memory is too small), predicted (of measured rows), calibration (the row that gave the host's time).
    """
    model, table = latency(), measured()
    tau = float(table["tau"].mean())
    rows = [
        {
            "panel": "priced",
            "batch": batch,
            "context": context,
            "tau": tau,
            "speedup": speedup(model, batch, context, tau) if fits(model, batch, context) else np.nan,
        }
        for batch in batches
        for context in contexts
    ]
    settings = zip(table["batch"], table["context"], table["tau"], strict=True)
    table["predicted"] = [speedup(model, batch, context, tokens) for batch, context, tokens in settings]
    table["calibration"] = (table["batch"] == CALIBRATION[0]) & (table["context"] == CALIBRATION[1])
    found = pd.concat([pd.DataFrame(rows), table.assign(panel="measured").drop(columns="draft_seconds")])
    return found.reset_index(drop=True)


def held_out_error(table: pd.DataFrame) -> float:
    """Mean absolute relative error of the measured rows that gave nothing to the prices."""
    rows = table[(table["panel"] == "measured") & (table["calibration"] == 0)]
    return float((rows["predicted"] / rows["speedup"] - 1).abs().mean())


def caption(table: pd.DataFrame) -> str:
    """The caption with the error of the prices."""
    return CAPTION.format(error=held_out_error(table))


def draw(table: pd.DataFrame) -> Figure:
    """Against context above, against batch below."""
    priced, points = (table[table["panel"] == name] for name in ("priced", "measured"))
    with style():
        figure = new_figure(COLUMN_INCHES, 1.5 * COLUMN_INCHES)
        above, below = figure.subplots(2, 1)
        for batch, look in zip((32, 64, 128), kinds(3), strict=True):
            rows, seen = (part[part["batch"] == batch] for part in (priced, points))
            above.plot(rows["context"], rows["speedup"], **(look | {"marker": None}))
            above.plot(seen["context"], seen["speedup"], **(look | {"linestyle": "none", "markersize": 4.2}))
            above.plot([], [], label=f"batch {batch}", **look)
        contexts = [1000, 4000, 8000, 16000, 32000, 64000]
        for context, look in zip(contexts, kinds(len(contexts)), strict=True):
            rows = priced[priced["context"] == context]
            below.plot(rows["batch"], rows["speedup"], label=f"{context:,} tokens", **look)
        _axis(above, [1000, 4000, 16000, 64000], lambda value, _: f"{value / 1000:g}k")
        _axis(below, [1, 4, 16, 64, 256], lambda value, _: f"{value:g}")
        above.set(xlabel="Context [tokens]", ylabel="Speedup (×)")
        below.set(xlabel="Batch [requests]", ylabel="Speedup (×)")
        letter([above, below], ["Against the context", "Against the batch"])
        return figure


def _axis(axes: Axes, ticks: list[int], text: object) -> None:
    """A logarithmic axis in plain numbers, the line of breaking even, and a legend."""
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(text))  # type: ignore[arg-type]  # a function of value and place
    axes.axhline(1, color=GUIDE, linewidth=0.7)
    axes.legend(loc="upper left", handlelength=3.2)
