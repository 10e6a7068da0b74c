import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.architectures import Architecture, LatentAttention, MixtureOfExperts
from sim.architectures.catalogue import ARCHITECTURES
from sim.architectures.routing import distinct_experts

TINY = Architecture("tiny", "", hidden=8, layers=3, heads=4, kv_heads=2, head_dim=5, intermediate=11, vocab=20)
EXPERTS = dataclasses.replace(TINY, moe=MixtureOfExperts(6, 2, 7, shared_experts=1, shared_intermediate=9))
LATENT = dataclasses.replace(
    TINY, kv_heads=4, mla=LatentAttention(kv_rank=6, q_rank=None, rope_dim=2, nope_dim=3, v_dim=4)
)
COUNTS = st.integers(1, 40)


@pytest.mark.parametrize("model", [*ARCHITECTURES.values(), TINY, EXPERTS, LATENT], ids=lambda model: model.name)
def test_one_token_reads_each_active_weight_once_and_multiplies_by_it(model: Architecture) -> None:
    work = model.work(1, 1, 0, weight_bytes=1.0)
    read = sum(float(group.weight_bytes) for group in work.values())
    assert read == pytest.approx(model.active_parameters() + model.hidden, rel=1e-12), "and a row of the table"
    products = sum(float(group.flops) for name, group in work.items() if name != "attention")
    norms = float(work["other"].weight_bytes) - model.hidden
    assert products == pytest.approx(2 * (model.active_parameters() - norms), rel=1e-12)


def ranked(model: Architecture) -> Architecture:
    """The same with queries by way of 10 values."""
    assert model.mla is not None
    return dataclasses.replace(model, mla=dataclasses.replace(model.mla, q_rank=10))


def counted(model: Architecture, requests: list[tuple[int, int]]) -> dict[str, float]:
    """Operations and bytes of requests of (new tokens, context), product by product and pair by pair."""
    hidden, wide, narrow = model.hidden, model.heads * model.head_dim, 2 * model.kv_heads * model.head_dim
    products = [(hidden, wide + narrow), (wide, hidden), (hidden, 2 * model.intermediate), (model.intermediate, hidden)]
    total = dict.fromkeys(("gemm", "gemm acts", "attention", "cache", "logits"), 0.0)
    for new, context in requests:
        for i in range(new):
            for layer in range(model.layers):
                total["gemm"] += sum(2 * a * b for a, b in products)
                total["gemm acts"] += sum(2 * (a + b) for a, b in products)
                window = model.window_tokens if layer < model.window_layers else None
                seen = range(context + i + 1)[-window:] if window else range(context + i + 1)
                total["attention"] += 4 * wide * len(seen)
            total["logits"] += 2 * hidden * model.vocab
        for layer in range(model.layers):
            window = model.window_tokens if layer < model.window_layers else None
            kept = min(context, window - 1) if window else context  # what the first new token sees
            total["cache"] += 2 * narrow * (kept + 2 * new)
    return total


def assert_counts(
    model: Architecture, requests: list[tuple[int, int]], batch: float, new: float, context: float
) -> None:
    work, expected = model.work(batch, new, context), counted(model, requests)
    assert work["gemm"].flops == pytest.approx(expected["gemm"], rel=1e-12)
    assert work["gemm"].activation_bytes == pytest.approx(expected["gemm acts"], rel=1e-12)
    assert work["logits"].flops == pytest.approx(expected["logits"], rel=1e-12)
    assert work["attention"].flops == pytest.approx(expected["attention"], rel=1e-12)
    assert work["attention"].cache_bytes == pytest.approx(expected["cache"], rel=1e-12)


@given(COUNTS, COUNTS, st.integers(0, 40))
def test_work_is_that_of_each_product_and_each_pair(batch: int, new: int, context: int) -> None:
    assert_counts(TINY, [(new, context)] * batch, batch, new, context)


@given(COUNTS, st.integers(0, 40), st.integers(1, 40), st.integers(0, 3))
def test_a_sliding_window_is_never_looked_out_of(new: int, context: int, window: int, layers: int) -> None:
    model = dataclasses.replace(TINY, window_tokens=window, window_layers=layers)
    assert_counts(model, [(new, context)], 1, new, context)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=6), COUNTS)
def test_the_mean_context_stands_for_a_ragged_batch(contexts: list[int], new: int) -> None:
    assert_counts(TINY, [(new, c) for c in contexts], len(contexts), new, sum(contexts) / len(contexts))


def test_verification_reads_weights_and_cache_once() -> None:
    """One forward of 8 tokens against 8 forwards of one: the same operations, an eighth of the bytes."""
    model, context = ARCHITECTURES["llama-3.1-8b"], 4000
    together = model.work(1, 8, context)
    apart = model.work(1, 1, context + np.arange(8))
    for name, group in apart.items():
        assert together[name].flops == pytest.approx(group.flops.sum(), rel=1e-12)
    assert together["gemm"].weight_bytes == apart["gemm"].weight_bytes[0]
    assert together["attention"].cache_bytes == model.kv_bytes_per_token() * (context + 16)
    assert apart["attention"].cache_bytes.sum() == model.kv_bytes_per_token() * (8 * (context + 2) + 28)
    assert together["gemm"].operations == apart["gemm"].operations


def test_biases_are_read_and_multiply_nothing() -> None:
    biased = dataclasses.replace(TINY, qkv_bias=True, output_bias=True, mlp_bias=True)
    more = biased.work(1, 1, 9)["gemm"].weight_bytes - TINY.work(1, 1, 9)["gemm"].weight_bytes
    assert more == 2 * 3 * ((4 + 2 * 2) * 5 + 8 + 2 * 11 + 8)
    assert biased.parameters() - TINY.parameters() == more / 2
    assert biased.work(1, 1, 9)["gemm"].flops == TINY.work(1, 1, 9)["gemm"].flops


def test_experts_read_what_is_touched_and_compute_what_is_chosen() -> None:
    expert, shared, router = 3 * 8 * 7, 3 * 8 * 9, 8 * 6
    for tokens in (1, 3, 500):
        for routing in (0.0, 1.5):
            moe = EXPERTS.work(tokens, 1, 10, weight_bytes=1.0, routing=routing)["moe"]
            touched = distinct_experts(6, 2, tokens, routing)
            assert moe.weight_bytes == pytest.approx(3 * (touched * expert + shared), rel=1e-12)
            assert moe.flops == pytest.approx(2 * 3 * tokens * (2 * expert + shared), rel=1e-12)
    assert list(EXPERTS.work(1, 1, 1)) == ["gemm", "moe", "logits", "attention", "other"]
    without_mlp = TINY.work(1, 1, 0)["gemm"].flops - 3 * 2 * 3 * 8 * 11 + 3 * 2 * router
    assert EXPERTS.work(1, 1, 0)["gemm"].flops == without_mlp


def test_a_verification_of_experts_costs_more_than_of_dense_layers() -> None:
    """A verification of 8 tokens touches 6.5 times the experts of one token, and no more dense weights."""
    dense, sparse = ARCHITECTURES["qwen3-32b"].work(1, np.array([1, 8]), 500), ARCHITECTURES["qwen3-30b-a3b"]
    assert dense["gemm"].weight_bytes[1] == dense["gemm"].weight_bytes[0]
    touched = sparse.work(1, np.array([1, 8]), 500)["moe"].weight_bytes
    assert touched[1] / touched[0] == pytest.approx(128 * (1 - (120 / 128) ** 8) / 8, rel=1e-12)


def test_latent_attention_is_absorbed() -> None:
    """Scores over latent and rotary key, values over the latent: 3.4 times the operations of expanded heads."""
    model = ARCHITECTURES["deepseek-v3"]
    per_token = np.diff(model.work(1, 1, np.array([1000, 1001]))["attention"].flops)
    assert per_token == 61 * 128 * 2 * ((512 + 64) + 512)
    assert per_token / (61 * 128 * 2 * (128 + 64 + 128)) == pytest.approx(3.4)
    # queries, latent and rotary key, keys absorbed into queries, values into outputs, output
    projections = 8 * 4 * (3 + 2) + 8 * (6 + 2) + 4 * 3 * 6 + 4 * 6 * 4 + 4 * 4 * 8
    assert LATENT.work(1, 1, 0)["gemm"].flops == 2 * 3 * (projections + 3 * 8 * 11)
    assert LATENT.work(2, 3, 10)["attention"].cache_bytes == 2 * 3 * (6 + 2) * 2 * (10 + 6)


def test_tensor_parallelism_divides_what_can_be_divided() -> None:
    model = ARCHITECTURES["llama-3.1-8b"]
    whole, shares = model.work(2, 3, 100), {t: model.work(2, 3, 100, tensor_parallel=t) for t in (2, 8, 32)}
    for t in (2, 8):
        for name in ("gemm", "logits", "attention"):
            for have, want in zip(shares[t][name][:3], whole[name][:3], strict=True):
                assert have == pytest.approx(want / t, rel=1e-12)
    assert shares[32]["attention"].flops == pytest.approx(whole["attention"].flops / 32, rel=1e-12)
    assert shares[32]["attention"].cache_bytes == whole["attention"].cache_bytes / 8, "no less than one KV head each"
    assert model.kv_bytes_per_token(tensor_parallel=32) == model.kv_bytes_per_token() / 8
    copies = 32 * 2 * 4096 * 128 * (32 - 8)  # keys and values of 8 heads on 32 devices
    total = 32 * shares[32]["gemm"].weight_bytes
    assert total == pytest.approx(whole["gemm"].weight_bytes + 2 * copies, rel=1e-12)
    uneven = dataclasses.replace(TINY, heads=12, kv_heads=4)
    with pytest.raises(ValueError, match="divide its 4 KV heads or be a multiple of them, got 6"):
        uneven.work(1, 1, 1, tensor_parallel=6)
    norms = whole["other"].weight_bytes - 6 * 4096 * 2
    assert shares[8]["other"].weight_bytes == pytest.approx(norms + 6 * 4096 * 2 / 8, rel=1e-12)


def test_the_latent_and_the_router_are_on_every_device() -> None:
    model = ARCHITECTURES["deepseek-v3"]
    whole, share = model.work(4, 1, 900), model.work(4, 1, 900, tensor_parallel=8)
    assert share["attention"].cache_bytes == whole["attention"].cache_bytes
    assert share["moe"].weight_bytes == pytest.approx(whole["moe"].weight_bytes / 8, rel=1e-12)
    copied = 61 * 7168 * (1536 + 512 + 64) + 58 * 7168 * 256
    assert share["gemm"].weight_bytes / 2 == pytest.approx(
        copied + (whole["gemm"].weight_bytes / 2 - copied) / 8, rel=1e-12
    )


def test_cross_attention_reads_the_source_and_nothing_else_of_the_encoder() -> None:
    model, source = ARCHITECTURES["t5-xxl"], 300
    alone, crossed = model.work(2, 3, 50), model.work(2, 3, 50, source_tokens=source)
    assert crossed["attention"].flops - alone["attention"].flops == 24 * 2 * 3 * source * 4 * 4096
    assert crossed["attention"].cache_bytes - alone["attention"].cache_bytes == 2 * source * model.kv_bytes_per_token()
    assert crossed["gemm"] == alone["gemm"]
    assert crossed["attention"].activation_bytes == 2 * 2 * 3 * 24 * (2 * 2 * 4096), "queries and outputs of both"
    assert alone["gemm"].weight_bytes == 2 * 24 * (6 * 4096 * 4096 + 3 * 4096 * 10_240)


def test_prefill_may_ask_for_one_row_of_logits() -> None:
    every, last = TINY.work(2, 100, 0), TINY.work(2, 100, 0, logit_tokens=1)
    assert last["logits"].flops == every["logits"].flops / 100
    assert last["logits"].weight_bytes == every["logits"].weight_bytes
    assert last["gemm"] == every["gemm"]


def test_sizes_of_values_scale_their_bytes_alone() -> None:
    plain = EXPERTS.work(2, 3, 10)
    scaled = EXPERTS.work(2, 3, 10, weight_bytes=0.5, cache_bytes=1.0, activation_bytes=4.0)
    for name, group in plain.items():
        expected = (group.flops, group.weight_bytes / 4, group.cache_bytes / 2, group.activation_bytes * 2)
        assert scaled[name] == (*map(pytest.approx, expected), group.operations)


@pytest.mark.parametrize("model", [TINY, EXPERTS, LATENT, ARCHITECTURES["t5-small"]], ids=lambda model: model.name)
def test_arrays_broadcast_to_what_numbers_give(model: Architecture) -> None:
    batch, new, context = np.array([[1], [5]]), np.array([1, 2, 9]), 77.5
    arrays = model.work(batch, new, context, routing=0.7)
    for name, group in arrays.items():
        for field, values in zip(group._fields[:4], group[:4], strict=True):
            assert values.shape == (2, 3)
            for i, j in np.ndindex(2, 3):
                single = model.work(batch[i, 0], new[j], context, routing=0.7)[name]
                assert isinstance(getattr(single, field), float)
                assert values[i, j] == pytest.approx(getattr(single, field), rel=1e-12)


def test_activations_are_counted_by_hand() -> None:
    """Per token and layer of 3: 2 norms of 4 hidden, rotated queries and keys, gate, up and their product."""

    def values(model: Architecture) -> dict[str, float]:
        return {name: group.activation_bytes / 2 for name, group in model.work(1, 1, 50).items()}

    ends = 8 + 4 * 8  # embedding and last norm
    norms, rotary, gate = 2 * 4 * 8, 2 * (4 + 2) * 5, 3 * 11
    tiny, experts, latent = values(TINY), values(EXPERTS), values(LATENT)
    assert tiny["attention"] == 3 * 2 * 4 * 5
    assert tiny["logits"] == 8 + 20
    assert tiny["other"] == ends + 3 * (norms + rotary + gate)
    assert values(dataclasses.replace(TINY, qk_norm=True))["other"] == tiny["other"] + 3 * rotary
    routed, shared = (8 + 2 * 7) + (7 + 8), (8 + 2 * 9) + (9 + 8)
    assert experts["moe"] == 3 * (2 * routed + shared)
    assert experts["other"] == ends + 3 * (norms + rotary + 3 * (2 * 7 + 9) + 6 + (2 + 1) * 8)
    assert latent["attention"] == 3 * 4 * ((6 + 2) + 6)
    assert latent["other"] == ends + 3 * (norms + 2 * 6 + 2 * (4 + 1) * 2 + gate)


def test_kernels_are_counted_per_layer() -> None:
    """3 layers: q k v, output, gate with up, down; cache and attention; 2 norms, rotary, activation; 2 for the ends."""
    operations = {name: group.operations for name, group in TINY.work(4, 4, 4).items()}
    assert operations == {"gemm": 12, "logits": 1, "attention": 6, "other": 14}
    experts = {name: group.operations for name, group in EXPERTS.work(4, 4, 4).items()}
    # dense MLPs give way to routers; routed and shared experts are two products each; choice, sort, sum, activation
    assert experts == {"gemm": 9, "moe": 12, "logits": 1, "attention": 6, "other": 3 * 8 + 2}
    assert dataclasses.replace(TINY, qk_norm=True).work(1, 1, 1)["other"].operations == 14 + 3 * 2
    latent = {name: group.operations for name, group in LATENT.work(4, 4, 4).items()}
    assert latent == {"gemm": 21, "logits": 1, "attention": 6, "other": 17}, "down, up, 2 absorbed, output, MLP; a norm"
    assert ranked(LATENT).work(1, 1, 1)["other"].operations == 17 + 3
    crossed = {name: group.operations for name, group in ARCHITECTURES["t5-small"].work(1, 1, 1).items()}
    assert crossed == {"gemm": 8 * 6, "logits": 1, "attention": 8 * 3, "other": 8 * 4 + 2}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch": 0}, "batch must be finite and > 0, got 0"),
        ({"new_tokens": [3, -1]}, "new_tokens must be finite and > 0, got -1"),
        ({"new_tokens": math.nan}, "new_tokens must be finite"),
        ({"context": -1}, "context must be finite and >= 0, got -1"),
        ({"context": math.inf}, "context must be finite"),
        ({"weight_bytes": 0}, "weight_bytes must be finite and > 0, got 0; bf16 takes 2 bytes"),
        ({"cache_bytes": -1}, "cache_bytes must be"),
        ({"activation_bytes": math.nan}, "activation_bytes must be"),
        ({"tensor_parallel": 0}, "tensor_parallel must be a whole number >= 1, got 0"),
        ({"tensor_parallel": 3}, "must divide the 4 heads of tiny"),
        ({"source_tokens": 5}, "source_tokens must be 0 for tiny, which has no encoder, got 5"),
        ({"logit_tokens": 0}, "logit_tokens must be finite and > 0"),
    ],
)
def test_impossible_forwards_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TINY.work(**{"batch": 1, "new_tokens": 1, "context": 1} | arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": 0}, "layers must be a whole number >= 1, got 0"),
        ({"hidden": 8.0}, "hidden must be a whole number >= 1, got 8.0"),
        ({"kv_heads": 3}, "heads must be a multiple of kv_heads, got 4 and 3"),
        ({"window_layers": 1}, "window_layers must be <= 0, got 1"),
        ({"window_layers": 4, "window_tokens": 9}, "window_layers must be <= 3, got 4"),
        ({"moe": MixtureOfExperts(4, 2, 3, dense_layers=4)}, "dense_layers must be <= 3, got 4"),
    ],
)
def test_impossible_shapes_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **change)


def test_impossible_experts_and_latents_are_refused() -> None:
    with pytest.raises(ValueError, match="experts_per_token must be <= experts, got 5 of 4"):
        MixtureOfExperts(4, 5, 3)
    with pytest.raises(ValueError, match="shared_intermediate must be a whole number >= 1, got 0"):
        MixtureOfExperts(4, 2, 3, shared_experts=1)
    with pytest.raises(ValueError, match="q_rank must be a whole number >= 1, got 0"):
        LatentAttention(4, 0, 2, 2, 2)
