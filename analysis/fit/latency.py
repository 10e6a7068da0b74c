"""Fit the latency of forwards: a free level for every measured number of new tokens, and one slope in context.

A forward is a step function of the new tokens (kernels switch with the shape), so no line is forced through it; its
cost in context is the reading of the KV cache, which cannot be negative. With free levels and one slope, non-negative
least squares has a closed form, and so every bootstrap draw is fitted at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm, t

from sim.forwards import check_forwards

Array = NDArray[np.float64]
Index = NDArray[np.int64]

WINSOR_DEVIATIONS = 2.5
MIN_REPEATS = 3


@dataclass(frozen=True)
class FittedLatency:
    """A LatencyModel: level(batch, new_tokens), linear between measured shapes, plus batch * context * slope.

    It holds a fit (row 0) and its bootstrap draws (rows 1, 2, ...), so that draws are priced side by side.
    """

    role: str
    batch: Index
    new_tokens: Index
    level_seconds: Array
    """at the context `origin` [rows, batch, new_tokens]"""
    seconds_per_kv_token: Array
    """[rows]"""
    origin: float
    row: Index = field(default_factory=lambda: np.zeros((), dtype=np.int64))
    """the row that answers; broadcasts with the arguments of `forward_seconds`"""

    def at(self, row: ArrayLike) -> FittedLatency:
        """The same curves, with another row or an array of rows answering."""
        return replace(self, row=np.asarray(row, dtype=np.int64))

    def scaled(self, factor: Array) -> FittedLatency:
        """Every row's seconds times its own factor [rows]."""
        level, slope = self.level_seconds * factor[:, None, None], self.seconds_per_kv_token * factor
        return replace(self, level_seconds=level, seconds_per_kv_token=slope)

    def forward_seconds(self, batch: ArrayLike, new_tokens: ArrayLike, context: ArrayLike) -> Array:
        """Seconds of a forward; the arguments broadcast.

        Raises:
            ValueError: a batch or a number of new tokens lies outside the measured range.
        """
        low_batch, high_batch, in_batch = self._bracket("batch", self.batch, batch)
        low, high, in_tokens = self._bracket("new_tokens", self.new_tokens, new_tokens)
        row, level = self.row, self.level_seconds
        few = level[row, low_batch, low] * (1 - in_tokens) + level[row, low_batch, high] * in_tokens
        many = level[row, high_batch, low] * (1 - in_tokens) + level[row, high_batch, high] * in_tokens
        kv_tokens = np.asarray(batch) * (np.asarray(context) - self.origin)
        return np.asarray(few * (1 - in_batch) + many * in_batch + self.seconds_per_kv_token[row] * kv_tokens)

    def _bracket(self, name: str, measured: Index, value: ArrayLike) -> tuple[Index, Index, Array]:
        value = np.asarray(value)
        if value.size and (value.min() < measured[0] or value.max() > measured[-1]):
            worst = int(value.min() if value.min() < measured[0] else value.max())
            raise ValueError(
                f"{name}={worst} lies outside the shapes measured for '{self.role}' "
                f"({int(measured[0])}..{int(measured[-1])}); time forwards of that shape in calibration"
            )
        high = np.minimum(np.searchsorted(measured, value), len(measured) - 1)
        low = np.maximum(high - 1, 0)
        width = np.maximum(measured[high] - measured[low], 1)
        return low, high, np.where(high > low, (value - measured[low]) / width, 0.0)


@dataclass(frozen=True)
class LatencyFit:
    """What the forward table says: a model for every role, its bootstrap draws, and what it leaves unexplained."""

    curves: Mapping[str, FittedLatency]
    """By role: row 0 is the fit, rows 1, 2, ... its bootstrap draws; row i of every role resamples the same repeats."""
    coefficients: pd.DataFrame
    """role, coefficient, batch, new_tokens, seconds, seconds_lo, seconds_hi (95%, bootstrap over repeats)."""
    residuals: pd.DataFrame
    """role, batch, new_tokens, context, seconds (measured), fitted, residual_percent."""
    repeats: int
    drift_percent: float
    """Standard deviation of the machine's speed between repeats, percent."""


def winsorise(values: Array) -> Array:
    """Pull values further than 2.5 robust standard deviations from their column's median back to that distance.

    The mean of the result is Huber's one-step location: a mean for clean data, bounded where a core was stolen.
    NaN stay.
    """
    centre = np.nanmedian(values, axis=0)
    reach = WINSOR_DEVIATIONS * 1.4826 * np.nanmedian(np.abs(values - centre), axis=0)
    return np.clip(values, centre - reach, centre + reach)


def fit_latency(forwards: pd.DataFrame, rng: np.random.Generator, draws: int = 400) -> LatencyFit:
    """Fit every role of a forward table.

    Each cell (role and shape) gets a Huber location over repeats of log seconds, after the drift that all cells of one
    repeat share is taken out; intervals resample whole repeats. R repeats know their own spread with R - 1 degrees of
    freedom, so the draws are widened by sqrt(R / (R - 1)) and by Student's over the normal 97.5% quantile.

    Raises:
        ValueError: the table breaks its schema, has fewer than 3 repeats, or a role lacks some of its batch-by-tokens
            grid.
    """
    check_forwards(forwards)
    cube = forwards.pivot_table(
        index="repeat", columns=["role", "batch", "new_tokens", "context"], values="seconds", aggfunc="median"
    )
    repeats = len(cube)
    if repeats < MIN_REPEATS:
        raise ValueError(f"latency intervals need at least {MIN_REPEATS} repeats, got {repeats}; time more sweeps")
    log_seconds = np.log(cube.to_numpy(dtype=np.float64))
    drift = np.nanmedian(log_seconds - np.nanmedian(log_seconds, axis=0), axis=1)
    settled = winsorise(log_seconds - drift[:, None])
    present = np.isfinite(settled)
    located = np.nanmean(settled, axis=0)
    weights = rng.multinomial(repeats, np.full(repeats, 1 / repeats), size=draws).astype(np.float64)
    # A cell that no resampled repeat holds keeps its own location.
    counted = weights @ present
    resampled = np.where(counted > 0, weights @ np.where(present, settled, 0.0) / np.maximum(counted, 1.0), located)
    widening = np.sqrt(repeats / (repeats - 1)) * t.ppf(0.975, repeats - 1) / norm.ppf(0.975)
    cells = np.exp(np.vstack([located, located + widening * (resampled - located)]))

    shapes = cube.columns.to_frame(index=False)
    curves = {
        str(role): _fit_role(str(role), part, cells[:, part.index.to_numpy()])
        for role, part in shapes.groupby("role", sort=False)
    }
    residuals = shapes.assign(seconds=cells[0], fitted=0.0)
    for role, part in shapes.groupby("role", sort=False):
        fitted = curves[str(role)].forward_seconds(part["batch"], part["new_tokens"], part["context"])
        residuals.loc[part.index, "fitted"] = fitted
    residuals["residual_percent"] = 100 * (residuals["seconds"] / residuals["fitted"] - 1)
    drift_percent = 100 * float(np.std(drift, ddof=1))
    return LatencyFit(curves, _coefficients(curves), residuals, repeats, drift_percent)


def _fit_role(role: str, shapes: pd.DataFrame, cells: Array) -> FittedLatency:
    """Non-negative least squares for one role, all draws at once: `cells` is [draws, cells].

    Once every shape has its own level, the slope that minimises the squares regresses seconds on context within shapes.
    Where that is negative the constrained slope is 0; nor may it exceed what leaves a forward with an empty cache free.
    """
    batch, new_tokens = (np.unique(shapes[name].to_numpy()) for name in ("batch", "new_tokens"))
    of_shape = np.searchsorted(batch, shapes["batch"]) * len(new_tokens) + np.searchsorted(
        new_tokens, shapes["new_tokens"]
    )
    member = (of_shape == np.arange(len(batch) * len(new_tokens))[:, None]).astype(np.float64)
    if not member.any(axis=1).all():
        raise ValueError(
            f"role '{role}' was timed at batches {batch.tolist()} and new_tokens {new_tokens.tolist()}, "
            "but not at every pair of them; time the missing shapes"
        )
    mean = member / member.sum(axis=1, keepdims=True)
    origin = float(shapes["context"].mean())
    kv_tokens = shapes["batch"].to_numpy() * (shapes["context"].to_numpy() - origin)
    within = kv_tokens - (mean @ kv_tokens)[of_shape]
    spread = within @ within
    slope = np.maximum(cells @ within / spread, 0.0) if spread > 0 else np.zeros(len(cells))
    shape_mean, read = cells @ mean.T, mean @ (shapes["batch"] * shapes["context"]).to_numpy(np.float64)
    slope = np.minimum(slope, (shape_mean / np.maximum(read, 1.0)).min(axis=1))
    level = shape_mean - slope[:, None] * (mean @ kv_tokens)
    return FittedLatency(role, batch, new_tokens, level.reshape(-1, len(batch), len(new_tokens)), slope, origin)


def _coefficients(curves: Mapping[str, FittedLatency]) -> pd.DataFrame:
    """The coefficients of every role with their bootstrap intervals."""
    parts = []
    for role, curve in curves.items():
        level = curve.level_seconds.reshape(len(curve.level_seconds), -1)
        values = np.column_stack([level, curve.seconds_per_kv_token])
        low, high = np.quantile(values[1:], [0.025, 0.975], axis=0)
        batch, new_tokens = (
            grid.ravel().tolist() for grid in np.meshgrid(curve.batch, curve.new_tokens, indexing="ij")
        )
        names = [f"level at context {curve.origin:.0f}"] * len(batch) + ["per token of context"]
        columns = {"coefficient": names, "batch": [*batch, None], "new_tokens": [*new_tokens, None]}
        columns |= {"seconds": values[0], "seconds_lo": low, "seconds_hi": high}
        parts.append(pd.DataFrame({"role": role, **columns}).astype({"batch": "Int64", "new_tokens": "Int64"}))
    return pd.concat(parts, ignore_index=True)
