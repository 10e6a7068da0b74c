"""Fit what the host adds to each layer of a forward in eager mode, where it launches kernels one by one."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import least_squares

from sim.architectures.catalogue import find_architecture
from sim.hardware import find_device
from sim.roofline import COMMITTED, RooflineLatency

Array = NDArray[np.float64]

EAGER_FORWARDS = COMMITTED.with_name("forward_latency_sequoia_fig8.csv")


def eager_overhead() -> pd.DataFrame:
    """Sequoia's forwards (one request, HuggingFace eager): fit the host's time per layer on half of them.

    Per series the host's seconds per layer are fitted to every other point, from the first on, and nothing else; the
    H100's factors stand for the rest. The figure names no context; 128 tokens are taken, which matter below 1%.

    Returns:
        By series: host_us_per_layer, the mean absolute error in percent on the other points, and on those of them with
        at most 128 new tokens.
    """
    rows = []
    for series, points in pd.read_csv(EAGER_FORWARDS).groupby("series", sort=False):
        model, device = str(series).rstrip(")").split(" (")
        latency = RooflineLatency(find_architecture(model.replace("Llama2", "llama-2")), find_device(device), "fp16")
        tokens, measured = points["n_tokens"].to_numpy(), points["forward_ms"].to_numpy() / 1e3
        on_device, layers = latency.forward_seconds(1, tokens, 128), latency.architecture.layers
        fitted, short = np.arange(len(points)) % 2 == 0, tokens <= 128
        host_us = host_us_per_layer(on_device[fitted] / layers, measured[fitted] / layers)
        error = 100 * np.abs((on_device + layers * host_us * 1e-6) / measured - 1)
        errors = {"held_out": error[~fitted].mean(), "held_out_to_128": error[~fitted & short].mean()}
        rows.append({"series": series, "host_us_per_layer": host_us, **errors})
    return pd.DataFrame(rows)


def host_us_per_layer(on_device: Array, measured: Array) -> float:
    """The microseconds that, added to the device's seconds of a layer, come closest to the measured ones in log."""

    def residuals(host_us: Array) -> Array:
        return np.asarray(np.log((on_device + host_us * 1e-6) / measured))

    return float(least_squares(residuals, [400.0]).x[0])
