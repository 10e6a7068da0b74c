"""What one forward costs: seconds as a function of batch, new tokens and context.

A model of latency is anything with `forward_seconds`. Arguments broadcast; numbers give a float.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from sim.aiconfigurator_latency import AiconfiguratorLatency
from sim.roofline import roofline_from_json
from sim.theory import FloatArray, check_cost

AXES = ("batch", "new_tokens", "context")


class LatencyModel(Protocol):
    """Anything that prices a forward."""

    def forward_seconds(self, batch: ArrayLike, new_tokens: ArrayLike, context: ArrayLike) -> FloatArray:
        """Seconds of one forward.

        Args:
            batch: requests in the forward.
            new_tokens: tokens that each request feeds in.
            context: tokens that each request had before the forward.
        """
        ...


@dataclass(frozen=True)
class ConstantLatency:
    """Every forward takes the same time."""

    seconds: float

    def __post_init__(self) -> None:
        check_cost("seconds", self.seconds)

    def forward_seconds(self, batch: ArrayLike, new_tokens: ArrayLike, context: ArrayLike) -> FloatArray:
        """Seconds of one forward; see `LatencyModel`. Arrays come back as read-only views of one number."""
        shape = np.broadcast_shapes(np.shape(batch), np.shape(new_tokens), np.shape(context))
        return np.broadcast_to(np.float64(self.seconds), shape)[()]


@dataclass(frozen=True)
class AffineLatency:
    """A fixed part (weights are read once), a part per new token (arithmetic), a part per token of KV cache read."""

    fixed_seconds: float
    seconds_per_token: float = 0.0
    """for each of batch * new_tokens"""
    seconds_per_kv_token: float = 0.0
    """for each of batch * context"""

    def __post_init__(self) -> None:
        for name in ("fixed_seconds", "seconds_per_token", "seconds_per_kv_token"):
            check_cost(name, getattr(self, name))

    def forward_seconds(self, batch: ArrayLike, new_tokens: ArrayLike, context: ArrayLike) -> FloatArray:
        """Seconds of one forward; see `LatencyModel`."""
        per_token = self.seconds_per_token * np.asarray(new_tokens, dtype=np.float64)
        per_kv_token = self.seconds_per_kv_token * np.asarray(context, dtype=np.float64)
        return self.fixed_seconds + np.asarray(batch, dtype=np.float64) * (per_token + per_kv_token)


@dataclass(frozen=True, eq=False)
class TableLatency:
    """Measured forwards on a full grid, interpolated linearly in batch, new tokens and context.

    An axis with a single value is constant in it. Outside the grid a forward is refused, or, with `extrapolate`,
    continues the outermost cell's line.
    """

    rows: pd.DataFrame | Sequence[Mapping[str, float]]
    """one row per grid point: batch, new_tokens, context, seconds"""
    extrapolate: bool = False
    axes: tuple[FloatArray, ...] = field(init=False, repr=False)
    """sorted distinct values of batch, new_tokens and context"""
    grid: FloatArray = field(init=False, repr=False)
    """seconds [batch, new_tokens, context]"""

    def __post_init__(self) -> None:
        table = pd.DataFrame(self.rows)
        missing = [name for name in (*AXES, "seconds") if name not in table]
        if missing or table.empty:
            raise ValueError(f"a latency table needs rows of batch, new_tokens, context and seconds; missing {missing}")
        table = table[[*AXES, "seconds"]].astype(np.float64)
        for name in table.columns:
            check_cost(name, table[name])
        twice = table.duplicated(list(AXES))
        if twice.any():
            point = dict(table.loc[twice, list(AXES)].iloc[0].map("{:g}".format))
            raise ValueError(f"latency table measures {point} more than once; give one (the median) per grid point")
        axes = tuple(np.unique(table[name]) for name in AXES)
        full = pd.MultiIndex.from_product(axes, names=AXES)
        seconds = table.set_index(list(AXES))["seconds"].reindex(full)
        if seconds.isna().any():
            point = dict(zip(AXES, map("{:g}".format, seconds.index[seconds.isna()][0]), strict=True))
            raise ValueError(f"latency table is not a full grid: {point} is missing; measure it, or drop its line")
        object.__setattr__(self, "axes", axes)
        object.__setattr__(self, "grid", seconds.to_numpy().reshape([len(axis) for axis in axes]))

    def forward_seconds(self, batch: ArrayLike, new_tokens: ArrayLike, context: ArrayLike) -> FloatArray:
        """Seconds of one forward; see `LatencyModel`.

        Raises:
            ValueError: a point lies outside the grid (without `extrapolate`), or extrapolates to a negative time.
        """
        located = [
            self._locate(name, axis, np.asarray(values, dtype=np.float64))
            for name, axis, values in zip(AXES, self.axes, (batch, new_tokens, context), strict=True)
        ]
        seconds: FloatArray = np.float64(0.0)  # type: ignore[assignment]  # grows to the broadcast shape below
        for corner in itertools.product((0, 1), repeat=len(AXES)):
            if any(high and len(axis) == 1 for high, axis in zip(corner, self.axes, strict=True)):
                continue
            index = tuple(low + high for (low, _), high in zip(located, corner, strict=True))
            weights = [weight if high else 1 - weight for (_, weight), high in zip(located, corner, strict=True)]
            seconds = seconds + weights[0] * weights[1] * weights[2] * self.grid[index]
        if self.extrapolate and np.any(seconds < 0):
            raise ValueError(f"latency table extrapolates to {np.min(seconds):g} seconds; measure nearer to the point")
        return seconds

    def _locate(self, name: str, axis: FloatArray, values: FloatArray) -> tuple[NDArray[np.intp], FloatArray]:
        """The cell that holds each value, and how far into it the value lies (0 to 1 inside the grid)."""
        if len(axis) == 1:
            return np.zeros(values.shape, dtype=np.intp), np.zeros(values.shape)
        outside = ~((values >= axis[0]) & (values <= axis[-1]))
        if outside.any() and not (self.extrapolate and np.isfinite(values).all()):
            raise ValueError(
                f"{name} {values[outside][0]:g} is outside the measured {axis[0]:g} to {axis[-1]:g}; "
                "measure there, or pass extrapolate=True to continue the last line"
            )
        cell = np.clip(np.searchsorted(axis, values, side="right") - 1, 0, len(axis) - 2)
        return cell, (values - axis[cell]) / (axis[cell + 1] - axis[cell])


def burst_seconds(latency: LatencyModel, drafted: ArrayLike, context: ArrayLike, batch: ArrayLike = 1) -> FloatArray:
    """Seconds of drafting token by token: forwards with one new token each, the i-th with i more tokens of context.

    Constant and affine models have a closed form; any other is asked once per position. Arguments broadcast.

    Args:
        latency: the draft's latency.
        drafted: forwards in the burst.
        context: tokens known before the burst.
        batch: requests that draft together, each so many tokens.
    """
    drafted, context, batch = np.asarray(drafted), np.asarray(context), np.asarray(batch)
    match latency:
        case ConstantLatency(seconds) | AffineLatency(seconds, 0.0, 0.0):
            return (drafted * seconds)[()]
        case AffineLatency(fixed, per_token, 0.0):
            return (drafted * (fixed + batch * per_token))[()]
        case AffineLatency(fixed, per_token, per_kv_token):
            mean_context = context + (drafted - 1) / 2
            return (drafted * (fixed + batch * per_token + batch * per_kv_token * mean_context))[()]
    total = np.zeros(np.broadcast_shapes(drafted.shape, context.shape, batch.shape))
    for i in range(int(drafted.max(initial=0))):
        reached = drafted > i
        # rounds that stopped drafting are priced at their start, which the model surely covers, and not counted
        total += np.where(reached, latency.forward_seconds(batch, 1, np.where(reached, context + i, context)), 0.0)
    return total[()]


def latency_from_json(value: Mapping[str, Any]) -> LatencyModel:
    """Build a latency model from its JSON form.

    `{"kind": "constant", "seconds": s}`, `{"kind": "affine", "fixed_seconds": s, "seconds_per_token": s,
    "seconds_per_kv_token": s}`, `{"kind": "table", "rows": [{"batch": n, "new_tokens": n, "context": n,
    "seconds": s}, ...]}`, `{"kind": "roofline", "architecture": name, "device": name}` (`sim.roofline`) or
    `{"kind": "aiconfigurator", "model": name, "system": name}` (`sim.aiconfigurator_latency`); other keys are the
    model's own fields.

    Raises:
        ValueError: the kind is unknown, a field is missing or unknown, or the model refuses its values.
    """
    fields = {name: entry for name, entry in value.items() if name != "kind"}
    quoted = [name for name, entry in fields.items() if "seconds" in name and not isinstance(entry, int | float)]
    if quoted:
        raise ValueError(f"latency {quoted[0]} must be a number, got {fields[quoted[0]]!r}")
    try:
        match value.get("kind"):
            case "constant":
                return ConstantLatency(**fields)
            case "affine":
                return AffineLatency(**fields)
            case "table":
                return TableLatency(**fields)
            case "roofline":
                return roofline_from_json(fields)
            case "aiconfigurator":
                return AiconfiguratorLatency(**fields)
            case kind:
                known = "'constant', 'affine', 'table', 'roofline' or 'aiconfigurator'"
                raise ValueError(f"latency kind must be {known}, got {kind!r}")
    except TypeError as error:
        raise ValueError(f"latency {dict(value)} does not fit its kind: {error}") from error
