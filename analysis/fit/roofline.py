"""Fit how much of a device's peaks serving kernels reach, and score the fit on forwards that it did not see.

Run `python -m analysis.fit.roofline` to fit the committed factors again and print the errors of every split.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import least_squares

from analysis.fit.acceptance import Estimate
from sim.architectures import Architecture
from sim.architectures.catalogue import find_architecture
from sim.hardware import Device, find_device
from sim.records import write_json
from sim.roofline import COMMITTED, Efficiency, GroupEfficiency, RooflineLatency, all_reduce_seconds

Array = NDArray[np.float64]
Rows = NDArray[np.bool_]

FORWARDS = COMMITTED.with_name("forward_latency_h100.csv")
ALL_REDUCES = COMMITTED.with_name("all_reduce_h100.csv")

H100 = find_device("h100")

SHAPE = ["batch", "new_tokens", "context"]
GROUPS = {"gemm": "gemm_ms", "moe": "moe_ms", "logits": "logits_ms", "attention": "attn_once_ms", "other": "other_ms"}

ATTENTION_COMPUTE = 0.75
"""share of the peak that FlashAttention-3 reaches on an H100 (Shah et al. 2024, arXiv:2407.08608, abstract). Not
fitted: the table times attention with one query a request, whose operations are too few to show."""

DENSE_START = {
    "memory": 0.8,
    "gemm_compute": 0.8,
    "gemm_overlap": 3.0,
    "gemm_kernel_us": 4.0,
    "attention_kernel_us": 5.0,
    "other_kernel_us": 2.0,
}
"""Where the search starts for the factors that every model shows."""
EXPERTS_START = {"moe_compute": 0.5, "moe_overlap": 2.0, "moe_kernel_us": 10.0, "routing": 0.5}
"""Where it starts for those that only a model with experts shows."""
MOST = {"memory": 1.0, "gemm_compute": 1.0, "moe_compute": 1.0, "gemm_overlap": 20.0, "moe_overlap": 20.0}
"""No share exceeds the peak; above an overlap of 20 the rounded maximum is within 4% of the plain one everywhere."""


@dataclass(frozen=True)
class HeldOutError:
    """Mean absolute errors on forwards that the fit did not see, in percent of the measured times.

    Intervals are 95%, by bootstrap over held-out cells of (context, batch), each with all its models and new tokens.
    """

    fitted_rows: int
    held_out_rows: int
    forward: Estimate
    """of `RooflineLatency.forward_seconds` against `verify_ms`"""
    attention_once: Estimate
    """the same with attention priced for one new token, which is how the table counts it"""
    verify_ratio: Estimate
    """of the time with n > 1 new tokens over that with one, same model, batch and context"""
    groups: Mapping[str, float]
    """by group, attention for one new token; `moe+other` for models with experts, see `group_errors`"""
    models: Mapping[str, float]
    """of the forward, by model"""
    worst: float
    """forward"""


def read_forwards(path: Path = FORWARDS) -> pd.DataFrame:
    """Read a table of measured forwards: model, tp, batch, context, new_tokens, and milliseconds by group.

    Raises:
        ValueError: a column is missing.
    """
    table = pd.read_csv(path)
    missing = [name for name in ("model", "tp", *SHAPE, *GROUPS.values(), "verify_ms") if name not in table]
    if missing:
        raise ValueError(f"{path} lacks the columns {missing}; sim/data/README.md says what each holds")
    return table


def checkerboard(table: pd.DataFrame) -> Rows:
    """Half of the cells: those of (context, batch) whose places in the sorted contexts and batches add up to even."""
    places = [np.unique(table[name], return_inverse=True)[1] for name in ("context", "batch")]
    return np.asarray((places[0] + places[1]) % 2 == 0)


def splits(table: pd.DataFrame) -> dict[str, Rows]:
    """The rows that each reported split fits; the others are held out.

    `small shapes` are contexts up to 1024 at batches up to 8, so that all that is longer or wider is extrapolation.
    """
    small = np.asarray((table["context"] <= 1024) & (table["batch"] <= 8))
    models = {f"without {model}": np.asarray(table["model"] != model) for model in table["model"].unique()}
    return {"checkerboard": checkerboard(table), "small shapes": small, **models}


def predict_groups(table: pd.DataFrame, device: Device, efficiency: Efficiency) -> pd.DataFrame:
    """Predicted seconds of every row by group, and `attention_once` beside them: attention for one new token."""
    return pd.DataFrame(_predict(_by_model(table), device, efficiency), index=table.index)


class _ModelRows(NamedTuple):
    """The rows of one model on so many devices."""

    architecture: Architecture
    devices: int
    places: NDArray[np.intp]
    shape: tuple[Array, Array, Array]
    """batch, new tokens and context"""


def _by_model(table: pd.DataFrame) -> list[_ModelRows]:
    model, devices = table["model"].to_numpy(), table["tp"].to_numpy()
    batch, new_tokens, context = (table[name].to_numpy(dtype=np.float64) for name in SHAPE)
    found = []
    for name, count in sorted(set(zip(model.tolist(), devices.tolist(), strict=True))):
        rows = np.flatnonzero((model == name) & (devices == count))
        shape = (batch[rows], new_tokens[rows], context[rows])
        found.append(_ModelRows(find_architecture(name), int(count), rows, shape))
    return found


def _predict(models: Sequence[_ModelRows], device: Device, efficiency: Efficiency) -> dict[str, Array]:
    """Seconds of every row by group, `attention_once` beside them."""
    names = (*GROUPS, "communication", "attention_once")
    seconds = {name: np.zeros(sum(len(rows.places) for rows in models)) for name in names}
    for architecture, devices, places, (batch, new_tokens, context) in models:
        latency = RooflineLatency(architecture, device, tensor_parallel=devices, efficiency=efficiency)
        once = latency.group_seconds(batch, 1, context)["attention"]
        for name, values in (latency.group_seconds(batch, new_tokens, context) | {"attention_once": once}).items():
            seconds[name][places] = values
    return seconds


def measured_groups(table: pd.DataFrame) -> dict[str, Array]:
    """Measured seconds of every row by group."""
    return {name: table[column].to_numpy(dtype=np.float64) / 1e3 for name, column in GROUPS.items()}


def group_errors(measured: Mapping[str, Array], predicted: Mapping[str, Array]) -> dict[str, Array]:
    """Log of predicted over measured seconds by group, attention for one new token.

    Where a model has experts, the table counts its router's product in `gemm_ms`, again in `moe_ms`, and takes it off
    `other_ms`: of the last two only the sum is right, and is compared as `moe+other`.
    """
    errors = {name: np.log(predicted[name] / measured[name]) for name in ("gemm", "logits")}
    errors["attention"] = np.log(predicted["attention_once"] / measured["attention"])
    rest = np.log((predicted["moe"] + predicted["other"]) / (measured["moe"] + measured["other"]))
    has_experts = measured["moe"] > 0
    errors |= {"other": rest[~has_experts], "moe+other": rest[has_experts]}
    return {name: error for name, error in errors.items() if len(error)}


def fit_efficiency(table: pd.DataFrame, device: Device) -> Efficiency:
    """Least squares on log seconds of every group: one set of factors for all models of the table.

    One share of the bandwidth stands for all groups, and attention overlaps as the products do. Without a model that
    has experts, experts are taken to reach what the other products do, and routing is uniform. All-reduces have a table
    of their own.
    """
    start = DENSE_START | (EXPERTS_START if (table["moe_ms"] > 0).any() else {})
    models, measured = _by_model(table), measured_groups(table)

    def residuals(logs: Array) -> Array:
        efficiency = _efficiency(dict(zip(start, np.exp(logs), strict=True)), device)
        return np.concatenate(list(group_errors(measured, _predict(models, device, efficiency)).values()))

    most = np.log([MOST.get(name, np.inf) for name in start])
    tight = 1e-13  # so that any machine stops at the same digits
    found = least_squares(
        residuals, np.log(list(start.values())), "3-point", (-np.inf, most), xtol=tight, ftol=tight, gtol=tight
    )
    efficiency = _efficiency(dict(zip(start, np.exp(found.x), strict=True)), device)
    return fit_all_reduces(pd.read_csv(ALL_REDUCES), device, efficiency)


def _efficiency(factors: Mapping[str, float], device: Device) -> Efficiency:
    """The factors by name as an `Efficiency`."""

    def group(name: str, compute: float, overlap: float) -> GroupEfficiency:
        return GroupEfficiency(float(factors["memory"]), compute, overlap, float(factors[f"{name}_kernel_us"]) * 1e-6)

    gemm = group("gemm", float(factors["gemm_compute"]), float(factors["gemm_overlap"]))
    moe = gemm
    if "routing" in factors:
        moe = group("moe", float(factors["moe_compute"]), float(factors["moe_overlap"]))
    attention = group("attention", ATTENTION_COMPUTE, gemm.overlap)
    other = group("other", 1.0, 1.0)  # without products, neither matters
    routing = float(factors.get("routing", 0.0))
    return Efficiency(gemm, moe, attention, other, 1.0, 0.0, routing, fitted_on=device.name)


def fit_all_reduces(table: pd.DataFrame, device: Device, efficiency: Efficiency) -> Efficiency:
    """Least squares on log seconds of all-reduces: the share of the link, and the time beside it.

    Args:
        table: devices, size_bytes, all_reduce_ms.
        device: whose link it is.
        efficiency: the other factors.
    """

    def filled(logs: Array) -> Efficiency:
        share, beside_us = np.exp(logs).tolist()
        return replace(efficiency, link=share, all_reduce_seconds=beside_us * 1e-6)

    def residuals(logs: Array) -> Array:
        seconds = all_reduce_seconds(table["size_bytes"], table["devices"], device, filled(logs))
        return np.asarray(np.log(seconds / table["all_reduce_ms"] * 1e3))

    return filled(least_squares(residuals, np.log([0.7, 3.0]), "3-point", xtol=1e-13, ftol=1e-13, gtol=1e-13).x)


def held_out_error(
    table: pd.DataFrame, split: Rows, device: Device = H100, seed: int = 0, resamples: int = 2000
) -> HeldOutError:
    """Fit some rows and score the others.

    Args:
        table: see `read_forwards`.
        split: which rows are fitted [rows]; cells of (context, batch) should be whole.
        device: that the table was measured on.
        seed: of the bootstrap.
        resamples: of the held-out cells.
    """
    held_out = table[~split]
    predicted = _predict(_by_model(held_out), device, fit_efficiency(table[split], device))
    once = sum(predicted[name] for name in ("gemm", "moe", "logits", "attention_once", "other", "communication"))
    scored = held_out.assign(seconds=once - predicted["attention_once"] + predicted["attention"], once=once)
    first = scored["new_tokens"] == 1
    scored = scored.merge(scored[first][["model", "tp", "batch", "context", "seconds", "verify_ms"]],
                          on=["model", "tp", "batch", "context"], suffixes=("", "_one"))  # fmt: skip
    measured_ratio = scored["verify_ms"] / scored["verify_ms_one"]
    errors = {
        "forward": scored["seconds"] / scored["verify_ms"] * 1e3,
        "attention_once": scored["once"] / scored["verify_ms"] * 1e3,
        "verify_ratio": (scored["seconds"] / scored["seconds_one"] / measured_ratio).where(scored["new_tokens"] > 1),
    }
    percent = scored[["model", "context", "batch"]].assign(**{k: 100 * (v - 1).abs() for k, v in errors.items()})
    groups = {
        name: 100 * float(np.abs(np.expm1(log)).mean())
        for name, log in group_errors(measured_groups(held_out), predicted).items()
    }
    rng = np.random.default_rng(seed)
    return HeldOutError(
        int(split.sum()),
        len(held_out),
        **{name: _cell_bootstrap(percent, name, rng, resamples) for name in errors},
        groups=groups,
        models={str(k): float(v) for k, v in percent.groupby("model")["forward"].mean().items()},
        worst=float(percent["forward"].max()),
    )


def _cell_bootstrap(percent: pd.DataFrame, name: str, rng: np.random.Generator, resamples: int) -> Estimate:
    """The mean of a column and its interval, whole cells of (context, batch) resampled."""
    cells = percent.groupby(["context", "batch"])[name].agg(["sum", "count"]).to_numpy()
    weights = rng.multinomial(len(cells), np.full(len(cells), 1 / len(cells)), size=resamples)
    sums, counts = (weights @ cells).T
    low, high = np.quantile(sums / counts, [0.025, 0.975])
    return Estimate(float(percent[name].mean()), float(low), float(high))


def main() -> None:
    """Write the factors of the whole table, and print the held-out errors."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=COMMITTED, help="where the fitted factors go")
    out = parser.parse_args().out
    table = read_forwards()
    write_json({"efficiency": asdict(fit_efficiency(table, H100))}, out)
    for name, split in splits(table).items():
        error = held_out_error(table, split)
        print(f"{name}: forward {error.forward}%, ratio {error.verify_ratio}%, once {error.attention_once}%")
        print("  ", {k: round(v, 1) for k, v in {**error.groups, **error.models}.items()}, f"worst {error.worst:.1f}")


if __name__ == "__main__":
    main()
