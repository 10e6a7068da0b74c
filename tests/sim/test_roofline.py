import json
import pickle
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from sim.architectures import Work
from sim.architectures.catalogue import find_architecture
from sim.hardware import find_device
from sim.latency import latency_from_json
from sim.roofline import (
    COMMITTED,
    Efficiency,
    GroupEfficiency,
    RooflineLatency,
    all_reduce_seconds,
    fitted_efficiency,
    roof_seconds,
)

LLAMA, EXPERTS = find_architecture("llama-3.1-8b"), find_architecture("qwen3-30b-a3b")
H100 = find_device("h100")
PEAK = GroupEfficiency(memory=1.0, compute=1.0, overlap=20.0, kernel_seconds=0.0)
PEAKS = Efficiency(PEAK, PEAK, PEAK, PEAK, link=1.0, all_reduce_seconds=0.0, routing=0.0, fitted_on="h100")
SHAPES = np.meshgrid([1, 3, 32], [1, 5, 64], [0, 700, 16384], indexing="ij")


def work(flops: float, moved: float) -> Work:
    return Work(np.asarray(flops), np.asarray(moved), np.asarray(0.0), np.asarray(0.0), 0.0)


def test_one_token_reads_the_weights_and_many_tokens_compute() -> None:
    at_peak = RooflineLatency(LLAMA, H100, efficiency=PEAKS)
    weights = 2 * (LLAMA.active_parameters() - LLAMA.vocab * LLAMA.hidden)
    assert at_peak.group_seconds(1, 1, 0)["gemm"] == pytest.approx(weights / 3350e9, rel=1e-3)
    # arithmetic hides all else, but for the rounding of the maximum: bytes^20 is nothing beside operations^20
    assert at_peak.group_seconds(64, 256, 0)["gemm"] == pytest.approx(weights * 64 * 256 / 989.4e12, rel=1e-3)


def test_attention_reads_the_cache_once_however_many_tokens_are_verified() -> None:
    at_peak = RooflineLatency(LLAMA, H100, efficiency=PEAKS)
    read = 64 * 8192 * LLAMA.kv_bytes_per_token() / 3350e9
    few, many = (at_peak.group_seconds(64, n, 8192)["attention"] for n in (1, 8))
    assert few == pytest.approx(read, rel=1e-3)
    assert many == pytest.approx(read, rel=0.01)
    assert at_peak.group_seconds(64, 512, 8192)["attention"] > 4 * read


def test_the_rounded_maximum_lies_between_the_maximum_and_the_sum() -> None:
    for flops in (0.0, 10.0, 100.0, 1000.0):
        both = roof_seconds(work(flops, 100), 1.0, 1.0, PEAK)
        assert max(100, flops) <= both <= 1.04 * max(100, flops)
        assert roof_seconds(work(flops, 100), 1.0, 1.0, replace(PEAK, overlap=1.0)) == pytest.approx(100 + flops)


def test_kernels_take_their_own_time() -> None:
    slow = replace(PEAK, kernel_seconds=1e-3)
    seconds = [RooflineLatency(LLAMA, H100, efficiency=replace(PEAKS, gemm=gemm)) for gemm in (PEAK, slow)]
    fast_groups, slow_groups = (latency.group_seconds(2, 3, 100) for latency in seconds)
    assert slow_groups["gemm"] - fast_groups["gemm"] == pytest.approx(4 * 32 * 1e-3)
    assert slow_groups["logits"] - fast_groups["logits"] == pytest.approx(1e-3)
    assert slow_groups["attention"] == fast_groups["attention"]


@pytest.mark.parametrize("architecture", [LLAMA, EXPERTS])
def test_arrays_price_as_numbers_do_and_groups_add_up(architecture: Any) -> None:
    latency = RooflineLatency(architecture, H100)
    together = latency.forward_seconds(*SHAPES)
    one_by_one = [
        latency.forward_seconds(*shape) for shape in zip(*(axis.ravel().tolist() for axis in SHAPES), strict=True)
    ]
    np.testing.assert_allclose(together.ravel(), one_by_one, rtol=1e-12)
    np.testing.assert_allclose(sum(latency.group_seconds(*SHAPES).values()), together, rtol=1e-12)
    assert isinstance(latency.forward_seconds(1, 2, 3), float)
    assert ("moe" in latency.group_seconds(1, 1, 1)) == (architecture is EXPERTS)


@pytest.mark.parametrize("architecture", [LLAMA, EXPERTS])
def test_no_forward_gets_faster_with_more_to_do(architecture: Any) -> None:
    seconds = RooflineLatency(architecture, H100).forward_seconds(*SHAPES)
    for axis in range(3):
        assert (np.diff(seconds, axis=axis) >= 0).all()


def test_verifying_a_few_tokens_is_nearly_free_until_the_ridge() -> None:
    seconds = RooflineLatency(LLAMA, H100).forward_seconds([1, 1, 64], [8, 64, 64], 512)
    one = RooflineLatency(LLAMA, H100).forward_seconds([1, 1, 64], 1, 512)
    assert (seconds / one)[0] < 1.05
    assert (seconds / one)[1] < 1.3
    assert (seconds / one)[2] > 6


def test_devices_share_the_weights_and_pay_the_link() -> None:
    alone, shared = (RooflineLatency(LLAMA, H100, tensor_parallel=n, efficiency=PEAKS) for n in (1, 4))
    assert alone.group_seconds(1, 1, 0)["communication"] == 0
    assert shared.group_seconds(1, 1, 0)["gemm"] == pytest.approx(alone.group_seconds(1, 1, 0)["gemm"] / 4, rel=1e-3)
    carried = 2 * 3 / 4 * (16 * 8 * LLAMA.hidden * 2) / 450e9
    expected = 2 * LLAMA.layers * (carried + 2 * 0.6e-6)
    assert shared.group_seconds(16, 8, 0)["communication"] == pytest.approx(expected, rel=1e-12)
    assert shared.group_seconds([16, 16], 8, [[0], [1], [2]])["communication"].shape == (3, 2)


def test_an_all_reduce_is_as_measured() -> None:
    """Bound by the mean error of the two fitted factors, 14%; a ring's 2(n - 1) hops instead of two would be 31%."""
    table = pd.read_csv(COMMITTED.with_name("all_reduce_h100.csv"))
    seconds = all_reduce_seconds(table["size_bytes"], table["devices"], H100, fitted_efficiency(H100))
    assert np.abs(seconds / table["all_reduce_ms"] * 1e3 - 1).mean() < 0.15


def test_dtypes_set_bytes_and_peaks() -> None:
    def gemm(batch: int, **fields: Any) -> float:
        return float(RooflineLatency(LLAMA, H100, efficiency=PEAKS, **fields).group_seconds(batch, 1, 0)["gemm"])

    assert gemm(1, dtype="fp8") == pytest.approx(gemm(1) / 2, rel=2e-3)
    assert gemm(1, dtype="int4") == pytest.approx(gemm(1) / 4, rel=4e-3)
    assert gemm(16384, dtype="fp8") == pytest.approx(gemm(16384) / 2, rel=2e-3)
    assert gemm(16384, dtype="int4") == pytest.approx(gemm(16384), rel=2e-3)
    assert gemm(16384, dtype="fp8", compute_dtype="bf16") == pytest.approx(gemm(16384), rel=2e-3)
    half, full = (RooflineLatency(LLAMA, H100, cache_dtype=dtype) for dtype in ("fp8", None))
    assert half.kv_bytes_per_token == full.kv_bytes_per_token / 2
    assert half.group_seconds(64, 1, 16384)["attention"] < 0.6 * full.group_seconds(64, 1, 16384)["attention"]


def test_popular_experts_spare_reading() -> None:
    even, skewed = (RooflineLatency(EXPERTS, H100, routing=routing) for routing in (0.0, 1.5))
    ratio = skewed.group_seconds([1, 16, 4096], 1, 0)["moe"] / even.group_seconds([1, 16, 4096], 1, 0)["moe"]
    assert ratio[0] == pytest.approx(1, rel=1e-6)  # one token's experts are distinct in any case
    assert ratio[1] < 0.75
    assert ratio[2] == pytest.approx(1, abs=0.02)  # with many tokens all are read


def test_an_eager_host_adds_its_time_to_every_layer() -> None:
    graph, eager = (RooflineLatency(LLAMA, H100, host_seconds_per_layer=host) for host in (0.0, 4e-4))
    added = eager.forward_seconds([1, 8], 5, 100) - graph.forward_seconds([1, 8], 5, 100)
    np.testing.assert_allclose(added, 32 * 4e-4, rtol=1e-10)


def test_factors_on_another_device_are_flagged_as_assumed() -> None:
    assert not RooflineLatency(LLAMA, H100).reached.assumed
    assumed = RooflineLatency(LLAMA, find_device("a100")).reached
    assert assumed == replace(fitted_efficiency(H100), assumed=True)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"device": "l4", "architecture": "llama-3.1-70b"}, "l4 holds 24.0 GiB, but each of 1 needs 131.4 GiB"),
        ({"cached_tokens": 10**6}, "KV cache 122.1"),
        ({"device": "v100"}, "v100 computes in fp32, fp16, not in 'bf16'"),
        ({"device": "a100", "dtype": "fp8"}, "a100 computes in .* compute_dtype"),
        ({"device": "xeon-8480", "tensor_parallel": 2}, "xeon-8480 has no link"),
        ({"tensor_parallel": 3}, "must divide the 32 heads"),
        ({"dtype": "bf17"}, "dtype must be one of fp32"),
        ({"cache_dtype": "bf17"}, "cache_dtype must be one of"),
        ({"host_seconds_per_layer": -1}, "host_seconds_per_layer must be finite and >= 0"),
        ({"device": "h1000"}, "did you mean h100"),
        ({"device": None}, "needs an architecture and a device"),
        ({"efficiency": {}}, "needs the groups"),
        ({"speed": 1}, "does not fit its kind"),
    ],
)
def test_what_cannot_be_priced_is_refused_at_construction(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        latency_from_json({"kind": "roofline", "architecture": "llama-3.1-8b", "device": "h100", **fields})


@pytest.mark.parametrize("name", ["memory", "compute", "overlap"])
def test_a_share_of_nothing_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be finite and > 0, got 0"):
        replace(PEAK, **{name: 0.0})


def test_json_builds_the_same_model() -> None:
    plain = {"kind": "roofline", "architecture": "llama-3.1-8b", "device": "h100", "dtype": "fp8", "tensor_parallel": 2}
    expected = RooflineLatency(LLAMA, H100, "fp8", tensor_parallel=2).forward_seconds(*SHAPES)
    np.testing.assert_array_equal(latency_from_json(json.loads(json.dumps(plain))).forward_seconds(*SHAPES), expected)
    spelled = plain | {"device": asdict(H100), "efficiency": asdict(fitted_efficiency(H100))}
    np.testing.assert_array_equal(latency_from_json(json.loads(json.dumps(spelled))).forward_seconds(*SHAPES), expected)


def test_it_travels_to_other_processes() -> None:
    latency = RooflineLatency(EXPERTS, H100, tensor_parallel=2)
    np.testing.assert_array_equal(
        pickle.loads(pickle.dumps(latency)).forward_seconds(*SHAPES), latency.forward_seconds(*SHAPES)
    )
