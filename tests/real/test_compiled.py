"""Compiled forwards against the eager ones on a CPU, and what is refused before a large pair is loaded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from torch import Tensor

from real import baseline_autoregressive, devices, loading, memory, optimized_speculative
from real.compiled import CompiledDecoder, uncompiled
from real.draft_models import make_draft
from real.experiment import describe
from real.llama_decoder import LlamaDecoder
from real.loading import Target, load_draft, load_target
from real.memory import check_fits, kv_numbers_per_token
from real.quantised import quantise
from real.requests import prefill
from real.sampling import SamplingSettings
from real.tree_attention import Tail
from sim.trees import TokenTree
from tests.real.conftest import tiny_model

CPU = torch.device("cpu")
GREEDY = SamplingSettings(temperature=0)


@pytest.fixture(scope="module")
def eager() -> LlamaDecoder:
    return LlamaDecoder.from_transformers(tiny_model(layers=2))


@pytest.fixture(scope="module")
def compiled(eager: LlamaDecoder) -> CompiledDecoder:
    """One for all tests: a graph takes seconds to compile."""
    try:
        return CompiledDecoder(eager)
    except ValueError as error:
        pytest.skip(str(error))


def prompts(*lengths: int) -> list[Tensor]:
    rng = np.random.default_rng(3)
    return [torch.from_numpy(rng.integers(2, 8, size=length)) for length in lengths]


def both(
    eager: LlamaDecoder, compiled: CompiledDecoder, context: Sequence[Tensor], ids: Tensor, tail: Tail | None = None
) -> tuple[Tensor, Tensor]:
    """Logits of the same forward behind prompts; the outputs of the first layer, kept for drafts, must agree."""
    caches = [prefill(decoder, context, 60, (1,)) for decoder in (eager, compiled)]
    left, right = (one.forward(ids, cache, tail=tail) for one, cache in zip((eager, compiled), caches, strict=True))
    assert caches[0].lengths == caches[1].lengths
    for row, length in enumerate(caches[0].lengths):
        features = [cache.features[row, :length] for cache in caches if cache.features is not None]
        torch.testing.assert_close(*features, rtol=1e-4, atol=1e-4)
    return left, right


def test_greedy_output_with_a_lookup_is_the_eager_decoders(eager: LlamaDecoder, compiled: CompiledDecoder) -> None:
    """Proposals of 0 to 3 tokens: forwards of 1 to 4, padded to 1, 2 or 4."""
    prompt = prompts(24)[0]
    plain = baseline_autoregressive.generate(eager, prompt, max_new_tokens=30, settings=GREEDY)
    for _ in range(3):
        fast = optimized_speculative.generate(
            compiled, make_draft("prompt-lookup", compiled, GREEDY), prompt, gamma=3, max_new_tokens=30, settings=GREEDY
        )
        assert fast.token_ids == plain.token_ids
    assert {r.drafted for r in fast.rounds} >= {0, 3}
    assert len(compiled.buffers.pairs) == 1  # each generation took over the buffers of the last


def test_a_tree_is_scored_as_by_the_eager_decoder(eager: LlamaDecoder, compiled: CompiledDecoder) -> None:
    """Three tokens and one of padding, which must not be seen."""
    tree = TokenTree((-1, -1))
    tail = Tail(torch.from_numpy(tree.visible()), torch.tensor([0, *tree.depths]))
    left, right = both(eager, compiled, prompts(11), torch.tensor([[5, 6, 7]]), tail)
    torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-9)


def test_an_early_exit_drafts_into_the_targets_own_buffers(eager: LlamaDecoder, compiled: CompiledDecoder) -> None:
    prompt = prompts(9)[0]
    plain = baseline_autoregressive.generate(eager, prompt, max_new_tokens=6, settings=GREEDY)
    fast = optimized_speculative.generate(
        compiled, make_draft("early-exit:1", compiled, GREEDY), prompt, gamma=1, max_new_tokens=6, settings=GREEDY
    )
    assert fast.token_ids == plain.token_ids
    one_row = [pair for pair in compiled.buffers.pairs if pair[0].shape[1] == 1]
    assert len(one_row) == 1


def test_packed_weights_and_rows_of_different_lengths_are_scored_as_by_the_eager_decoder() -> None:
    """float32 weights are packed for the matrix library; what is compiled reads them unpacked."""
    eager = LlamaDecoder.from_transformers(tiny_model(layers=1).float())
    try:
        compiled = CompiledDecoder(eager)
    except ValueError as error:
        pytest.skip(str(error))
    left, right = both(eager, compiled, prompts(11, 4), torch.tensor([[5], [6]]))
    torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-4)


def test_compiling_without_a_compiler_says_what_to_install(
    eager: LlamaDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._inductor import cpp_builder
    from torch._inductor.exc import InvalidCxxCompiler

    def missing() -> str:
        raise InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", missing)
    with pytest.raises(ValueError, match=r"needs a C\+\+ compiler.*leave --compile out"):
        CompiledDecoder(eager)


def test_a_compiled_target_compiles_its_drafts_and_names_itself_in_the_run(
    model_folder: Path, compiled: CompiledDecoder
) -> None:
    target = load_target(str(model_folder), CPU, compiled=True)
    assert isinstance(target.decoder, CompiledDecoder)
    draft = load_draft(str(model_folder), target, GREEDY)
    assert isinstance(draft.source.decoder, CompiledDecoder)  # type: ignore[attr-defined]  # of this kind of draft
    assert describe(target, (), {"gamma": 4}, 0).settings == {"gamma": 4, "compiled": True}
    plain = Target("tiny", uncompiled(compiled), None, frozenset())
    assert describe(plain, (), {"gamma": 4}, 0).settings == {"gamma": 4}
    assert quantise(compiled).layers == compiled.layers


def test_a_model_of_another_shape_is_not_compiled(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "unsupported", lambda model: "projections with biases")
    with pytest.raises(ValueError, match=r"--compile needs a Llama-shaped model.*biases.*leave --compile out"):
        load_target(str(model_folder), CPU, compiled=True)


def test_an_int8_copy_is_refused_where_its_kernel_is_slow(eager: LlamaDecoder, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not devices.has_int8_kernel(torch.device("cuda"))
    monkeypatch.setattr("real.quantised.has_int8_kernel", lambda device: False)
    with pytest.raises(ValueError, match=r"an int8 copy needs a CPU.*use early-exit:L"):
        quantise(eager)


def test_the_memory_asked_for_counts_every_model_and_the_caches(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tiny Llama: 3 layers of 2 heads of 8, so 96 numbers a token."""
    asked: list[int] = []
    monkeypatch.setattr(memory, "check_memory", lambda needed, device, what: asked.append(needed))
    name = str(model_folder)
    assert kv_numbers_per_token(name) == 3 * 2 * 2 * 8
    check_fits(name, None, CPU, torch.float32)
    weights = memory.weight_parameters(name) * 4
    assert asked[-1] == pytest.approx(1.1 * 1.75 * weights, rel=1e-3)
    check_fits(name, ["prompt-lookup", f"suffix+{name}"], CPU, torch.float32)
    assert asked[-1] == pytest.approx(1.1 * 2.75 * weights, rel=1e-3)
    check_fits(name, ["int8"], CPU, torch.float32)
    assert asked[-1] == pytest.approx(1.1 * 2.0 * weights, rel=1e-3)
    check_fits(name, [], CPU, torch.float32, batch=2, tokens=100, caches=3)
    assert asked[-1] == pytest.approx(1.1 * (1.75 * weights + 96 * 4 * 2 * 100 * 3), rel=1e-3)


def test_the_sizes_of_a_cached_latent_are_read_from_the_configuration(tmp_path: Path) -> None:
    config = {"num_hidden_layers": 5, "num_attention_heads": 16, "kv_lora_rank": 64, "qk_rope_head_dim": 8}
    (tmp_path / "config.json").write_text(json.dumps({"text_config": config}))
    assert kv_numbers_per_token(str(tmp_path)) == 5 * (64 + 8)
    assert kv_numbers_per_token(str(tmp_path / "missing" / "deeper")) == 0


@pytest.mark.parametrize("draft", [None, "someone/a-draft"])
def test_a_hub_that_does_not_answer_is_one_error_at_the_first_try(
    draft: str | None, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = []

    def unreachable(self: object, name: str, timeout: float) -> None:
        tries.append(name)
        raise ConnectionError("Name or service not known\nand much more")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unreachable)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    target = "someone/a-target" if draft is None else str(model_folder)
    with pytest.raises(ValueError, match=r"the hub says 'Name or service not known'; set HF_HUB_OFFLINE=1 if") as found:
        check_fits(target, [draft] if draft else [], CPU, None)
    assert tries == [draft or target]
    assert "\n" not in str(found.value)
