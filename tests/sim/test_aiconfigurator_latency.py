import sys

import numpy as np
import pandas as pd
import pytest

from sim.latency import latency_from_json
from sim.roofline import COMMITTED


def test_without_the_package_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aiconfigurator_core", None)
    monkeypatch.setitem(sys.modules, "aiconfigurator_core.sdk", None)
    with pytest.raises(ValueError, match=r"specdec-lab\[aiconfigurator\]"):
        latency_from_json({"kind": "aiconfigurator", "model": "Qwen/Qwen3-8B"})


def test_it_gives_the_committed_table() -> None:
    """Every group of every row; a router is in `gemm` here, and only here (see sim/data/README.md)."""
    pytest.importorskip("aiconfigurator_core")
    for model, rows in pd.read_csv(COMMITTED.with_name("forward_latency_h100.csv")).groupby("model"):
        latency = latency_from_json({"kind": "aiconfigurator", "model": model})
        groups = latency.group_seconds(rows["batch"], rows["new_tokens"], rows["context"])  # type: ignore[attr-defined]
        for group, column in {"gemm": "gemm_ms", "logits": "logits_ms", "attention": "attn_once_ms"}.items():
            np.testing.assert_allclose(groups[group] * 1e3, rows[column], rtol=5e-5)
        np.testing.assert_allclose(
            (groups["moe"] + groups["other"]) * 1e3, rows["moe_ms"] + rows["other_ms"], rtol=5e-5
        )
        seconds = latency.forward_seconds(rows["batch"], rows["new_tokens"], rows["context"])
        np.testing.assert_allclose(seconds * 1e3, rows["verify_ms"], rtol=5e-6)


def test_what_it_cannot_price_is_refused() -> None:
    pytest.importorskip("aiconfigurator_core")
    with pytest.raises(ValueError, match="cannot price Qwen/Qwen3-8B on 1 abacus"):
        latency_from_json({"kind": "aiconfigurator", "model": "Qwen/Qwen3-8B", "system": "abacus"})
    latency = latency_from_json({"kind": "aiconfigurator", "model": "Qwen/Qwen3-8B"})
    with pytest.raises(ValueError, match="cannot price a forward of"):
        latency.forward_seconds(0, 1, 100)
    with pytest.raises(ValueError, match="context must be finite and >= 0"):
        latency.forward_seconds(1, 1, -1)
