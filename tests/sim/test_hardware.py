import numpy as np
import pytest

from sim.hardware import DEVICES, DTYPE_BYTES, GIB, Link, check_fits, find_device

# (device, dtype): the figure with structured sparsity that the datasheet prints, in tera-operations/s
PRINTED_SPARSE = {
    ("a100", "bf16"): 624,
    ("a100", "int8"): 1248,
    ("l4", "fp16"): 242,
    ("l4", "fp8"): 485,
    ("l40", "fp8"): 724,
    ("l40s", "fp8"): 1466,
    ("h100", "fp16"): 1978.9,
    ("h100", "fp8"): 3957.8,
    ("h200", "int8"): 3958,
    ("b200", "bf16"): 4500,
    ("b200", "fp4"): 18000,
    ("mi300x", "bf16"): 2614.9,
    ("mi300x", "fp8"): 5229.8,
    ("rtx-4090", "fp16"): 330.4,
}

# device: units, operations per clock of each in 16-bit products, GHz at boost (whitepapers)
UNITS = {
    "v100": (80, 1024, 1.53),
    "a100": (108, 2048, 1.41),
    "l4": (58, 1024, 2.04),
    "l40": (142, 512, 2.49),
    "l40s": (142, 1024, 2.52),
    "h100": (132, 4096, 1.83),
    "mi300x": (304, 2048, 2.1),
    "rtx-4090": (128, 512, 2.52),
    "tpu-v4": (8, 2 * 128 * 128, 1.05),
}

# device: bits of the memory bus, Gbit/s of each pin
BUSES = {
    "v100": (4096, 1.75),
    "a100-40gb": (5120, 2.43),
    "l4": (192, 12.5),
    "l40s": (384, 18),
    "rtx-4090": (384, 21),
    "mi300x": (8192, 5.2),
    "xeon-8480": (8 * 64, 4.8),
}


@pytest.mark.parametrize(("key", "printed"), PRINTED_SPARSE.items())
def test_peaks_are_dense_half_of_what_datasheets_print_with_sparsity(key: tuple[str, str], printed: float) -> None:
    device, dtype = key
    assert find_device(device).peak_flops(dtype) == pytest.approx(printed / 2 * 1e12, rel=1e-3)


@pytest.mark.parametrize("name", UNITS)
def test_peaks_are_units_times_operations_times_clock(name: str) -> None:
    units, per_clock, gigahertz = UNITS[name]
    device = find_device(name)
    peak = device.flops.get("bf16", device.flops.get("fp16"))
    assert peak == pytest.approx(units * per_clock * gigahertz * 1e9, rel=0.015)


@pytest.mark.parametrize("name", BUSES)
def test_bandwidths_are_bus_width_times_pin_rate(name: str) -> None:
    bits, gigabits = BUSES[name]
    assert find_device(name).memory_bandwidth == pytest.approx(bits / 8 * gigabits * 1e9, rel=0.01)


def test_half_the_bits_are_never_slower() -> None:
    for device in DEVICES.values():
        order = [device.flops[dtype] for dtype in ("fp32", "bf16", "fp8", "fp4") if dtype in device.flops]
        assert order == sorted(order), device.name
        assert set(device.flops) <= set(DTYPE_BYTES)


class TestNames:
    """The names that drivers and clouds give to cards."""

    @pytest.mark.parametrize(
        ("text", "name"),
        [
            ("NVIDIA H100 80GB HBM3", "h100"),
            ("H100 SXM", "h100"),
            ("h100-sxm5-80gb", "h100"),
            ("NVIDIA A100-SXM4-80GB", "a100"),
            ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
            ("a100-40gb", "a100-40gb"),
            ("Tesla V100-SXM2-32GB", "v100"),
            ("NVIDIA GeForce RTX 4090", "rtx-4090"),
            ("RTX4090", "rtx-4090"),
            ("NVIDIA L40S", "l40s"),
            ("AMD Instinct MI300X", "mi300x"),
            ("Intel Xeon Platinum 8480+", "xeon-8480"),
            ("TPU v4", "tpu-v4"),
        ],
    )
    def test_a_card_is_found_by_its_driver_s_name(self, text: str, name: str) -> None:
        assert find_device(text).name == name

    @pytest.mark.parametrize(
        "text", ["NVIDIA H100 PCIe", "NVIDIA H100 NVL", "Tesla V100-SXM2-16GB", "T4", "nvidia", ""]
    )
    def test_another_card_of_the_chip_is_not_taken_for_it(self, text: str) -> None:
        with pytest.raises(ValueError, match=r"no device named .*nown are v100, a100"):
            find_device(text)

    def test_every_known_device_is_found_by_its_own_name(self) -> None:
        assert [find_device(name.upper()).name for name in DEVICES] == list(DEVICES)


def test_a_device_is_found_in_any_spelling_and_near_misses_are_named() -> None:
    assert find_device("H100").name == "h100"
    assert find_device(" RTX 4090 ").name == "rtx-4090"
    assert find_device("tpu_v4").name == "tpu-v4"
    with pytest.raises(ValueError, match=r"no device named 'h10'; did you mean .*h100"):
        find_device("h10")
    with pytest.raises(ValueError, match="known are v100, a100"):
        find_device("abacus")


def test_a_missing_dtype_names_those_there_are() -> None:
    with pytest.raises(ValueError, match="v100 computes in fp32, fp16, not in 'bf16'"):
        find_device("v100").peak_flops("bf16")


def test_a_hop_takes_its_latency_and_its_bytes() -> None:
    link = Link(bandwidth=100e9, latency=2e-6)
    assert link.seconds(0) == 2e-6
    np.testing.assert_allclose(link.seconds([100e9, 50e9]), [1 + 2e-6, 0.5 + 2e-6], rtol=1e-15)
    with pytest.raises(ValueError, match="size_bytes must be finite and >= 0"):
        link.seconds(-1)


def test_memory_that_cannot_hold_the_model_says_what_is_needed_and_there() -> None:
    h100 = find_device("h100")
    check_fits(h100, 1, 80 * GIB)
    check_fits(h100, 2, 140 * GIB, 20 * GIB)
    message = (
        r"h100 holds 80.0 GiB, but each of 2 needs 80.5 GiB \(weights 70.0, KV cache 10.5\); raise tensor_parallel"
    )
    with pytest.raises(ValueError, match=message):
        check_fits(h100, 2, 140 * GIB, 21 * GIB)
    with pytest.raises(ValueError, match="needs nan GiB"):
        check_fits(h100, 1, float("nan"))
    with pytest.raises(ValueError, match="tensor_parallel must be >= 1, got 0"):
        check_fits(h100, 0, 1.0)
