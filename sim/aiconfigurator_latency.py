"""Forward times from the kernel timings that NVIDIA's aiconfigurator ships, where it is installed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from sim.theory import FloatArray, check_cost

SDK = "aiconfigurator_core.sdk"


@dataclass(frozen=True, eq=False)
class AiconfiguratorLatency:
    """A LatencyModel that composes measured kernels (Xu et al. 2026, arXiv:2601.06288; version 0.12).

    A forward is its engine's decoding step with batch * new_tokens tokens in every group but attention, which is
    counted once a request, as its one measured query: verification of long drafts at long contexts costs more. Norms
    and activation functions are computed there, not measured.

    Raises:
        ValueError: the package is not installed, or has no data for the model on the system.
    """

    model: str
    """as its repository is named: "Qwen/Qwen3-8B" """
    system: str = "h100_sxm"
    backend: str = "vllm"
    """vllm, sglang or trtllm"""
    tensor_parallel: int = 1
    _engine: Any = field(init=False, repr=False)
    _operators: list[int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        try:
            sdk, builders, models = (import_module(SDK + name) for name in ("", ".config_builders", ".models"))
        except ImportError as error:
            raise ValueError(
                "latency kind 'aiconfigurator' needs a package; install specdec-lab[aiconfigurator], or use 'roofline'"
            ) from error
        count = self.tensor_parallel
        try:
            engine = sdk.EngineHandle.compile(
                self.model, self.system, self.backend, tp_size=count, moe_tp_size=count, moe_ep_size=1
            )
            config = builders.build_model_config(count, 1, 1, count, 1)
            operators = models.get_model(self.model, config, self.backend).generation_ops
        except Exception as error:  # its errors have no common class
            raise ValueError(
                f"aiconfigurator cannot price {self.model} on {count} {self.system} under {self.backend}: {error}"
            ) from error
        object.__setattr__(self, "_engine", engine)
        object.__setattr__(self, "_operators", list(range(len(operators))))

    def forward_seconds(self, batch: ArrayLike, new_tokens: ArrayLike, context: ArrayLike) -> FloatArray:
        """Seconds of one forward; see `sim.latency.LatencyModel`. Shapes are rounded to whole tokens and requests.

        Raises:
            ValueError: an argument is negative or not finite, or the package has no data for the shape.
        """
        groups = self.group_seconds(batch, new_tokens, context)
        return sum(groups.values())  # type: ignore[return-value]  # never empty

    def group_seconds(self, batch: ArrayLike, new_tokens: ArrayLike, context: ArrayLike) -> dict[str, FloatArray]:
        """Seconds by group of operators; they add up to the forward's.

        Returns:
            gemm, moe, logits, attention, other and communication.
        """
        named = {"batch": batch, "new_tokens": new_tokens, "context": context}
        arrays = np.broadcast_arrays(*(check_cost(name, value) for name, value in named.items()))
        points = zip(*(array.ravel().tolist() for array in arrays), strict=True)
        rows = [self._point(*point) for point in points]
        return {name: np.array([row[name] for row in rows]).reshape(arrays[0].shape)[()] for name in GROUPS}

    def _point(self, batch: float, new_tokens: float, context: float) -> Mapping[str, float]:
        """Seconds of one forward by group."""
        # the step's sequence length counts the token being decoded
        shape = {"batch_size": round(batch), "s": round(context) + 1, "x": round(batch * new_tokens)}
        try:
            operators = self._engine.evaluate_generation_ops(self._operators, **shape)
        except Exception as error:  # its errors have no common class
            raise ValueError(f"aiconfigurator cannot price a forward of {shape}: {error}") from error
        seconds = dict.fromkeys(GROUPS, 0.0)
        for name, milliseconds, *_ in operators:
            seconds[_group(name)] += milliseconds / 1e3
        return seconds


GROUPS = ("gemm", "moe", "logits", "attention", "other", "communication")


def _group(operator: str) -> str:
    """The group of an operator by the name that aiconfigurator gives it."""
    words = operator.split("_")
    if {"ar", "p2p", "dispatch"} & set(words):
        return "communication"
    return next((group for group in ("logits", "gemm", "moe", "attention") if group in words), "other")
