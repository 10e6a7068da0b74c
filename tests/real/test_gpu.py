"""What only a GPU can show; skipped where there is none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from real import baseline_autoregressive, optimized_speculative
from real.compiled import CompiledDecoder
from real.devices import check_memory
from real.draft_models import ModelDraft, make_draft
from real.draft_sources import OwnCache
from real.llama_decoder import LlamaDecoder
from real.loading import load_draft, load_target
from real.optimized_speculative import DraftLength
from real.quantised import quantise
from real.requests import Batch, prefill
from real.sampling import SamplingSettings
from real.timing import Stopwatch
from sim.trees import TokenTree
from tests.real.conftest import tiny_model

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda")
GREEDY = SamplingSettings(temperature=0)


@pytest.fixture(scope="module")
def decoder() -> LlamaDecoder:
    """The tiny model on the GPU, in float32, where greedy ties are still no excuse."""
    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device here")
    return LlamaDecoder.from_transformers(tiny_model().float().to(CUDA))


@pytest.fixture
def no_waiting() -> Iterator[None]:
    """Whatever makes the host wait for the device raises."""
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


def prompts(*lengths: int) -> list[Tensor]:
    rng = np.random.default_rng(3)
    return [torch.from_numpy(rng.integers(2, 8, size=length)).to(CUDA) for length in lengths]


def test_logits_are_the_cpus(decoder: LlamaDecoder) -> None:
    on_cpu = LlamaDecoder.from_transformers(tiny_model().float())
    ids = prompts(20, 13)
    caches = [prefill(decoder, ids, 40), prefill(on_cpu, [row.cpu() for row in ids], 40)]
    new = torch.tensor([[3, 4, 5], [6, 7, 2]])
    left, right = decoder.forward(new.to(CUDA), caches[0]).cpu(), on_cpu.forward(new, caches[1])
    torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("gamma", [3, TokenTree.parse("2,1")], ids=["chain", "tree"])
@pytest.mark.parametrize("lengths", [(20,), (20, 7, 13)], ids=["alone", "batch"])
@pytest.mark.parametrize("draft", ["prompt-lookup", "early-exit:3"])
def test_greedy_output_is_the_baselines(
    decoder: LlamaDecoder, draft: str, lengths: tuple[int, ...], gamma: DraftLength
) -> None:
    ids = prompts(*lengths)
    source = make_draft(draft, decoder, GREEDY)
    fast = optimized_speculative.generate_batch(decoder, source, ids, gamma=gamma, max_new_tokens=24, settings=GREEDY)
    for prompt, output in zip(ids, fast, strict=True):
        plain = baseline_autoregressive.generate(decoder, prompt, max_new_tokens=24, settings=GREEDY)
        assert output.token_ids == plain.token_ids


def test_sampled_output_is_the_same_for_the_same_seed(decoder: LlamaDecoder) -> None:
    settings = SamplingSettings(top_k=20, top_p=0.9)
    source = make_draft("early-exit:3", decoder, settings)
    outputs = [
        optimized_speculative.generate(
            decoder, source, prompts(9)[0], gamma=3, max_new_tokens=20, settings=settings, seed=5
        ).token_ids
        for _ in range(2)
    ]
    assert outputs[0] == outputs[1]


@pytest.mark.parametrize("settings", [GREEDY, SamplingSettings()], ids=["greedy", "sampled"])
def test_drafting_a_chain_never_waits_for_the_device(
    decoder: LlamaDecoder, settings: SamplingSettings, request: pytest.FixtureRequest
) -> None:
    prompt = prompts(12)
    draft = ModelDraft(OwnCache(decoder), settings, "itself")
    batch = Batch(prompt, 8, 40, frozenset(), [0], CUDA)
    draft.start(batch, prefill(decoder, prompt, 40), [1])
    draft.propose(batch, [4])  # loads kernels, which waits
    request.getfixturevalue("no_waiting")
    assert draft.propose(batch, [4]).token_ids.shape == (1, 4)


def test_a_stopwatch_counts_the_devices_time_not_the_hosts(decoder: LlamaDecoder) -> None:
    matrix = torch.randn(4096, 4096, device=CUDA)
    clock = Stopwatch(CUDA)
    assert isinstance(clock.origin, torch.cuda.Event)
    once = twenty = clock.mark()
    for count in range(20):
        matrix = matrix @ matrix.clamp(-1e-3, 1e-3)
        if count == 0:
            once = clock.mark()
    twenty = clock.mark()
    assert 0 < clock.seconds(clock.origin, once) < clock.seconds(clock.origin, twenty)


def test_a_folder_loads_in_bfloat16_and_decodes(decoder: LlamaDecoder, model_folder: Path) -> None:
    target = load_target(str(model_folder), CUDA)
    assert target.decoder.dtype == torch.bfloat16
    settings = SamplingSettings()
    draft = load_draft(str(model_folder), target, settings)
    output = optimized_speculative.generate(
        target.decoder, draft, target.encode("w1 w2 w3"), gamma=3, max_new_tokens=16, settings=settings
    )
    assert len(output.token_ids) == 16
    assert all(r.draft_seconds > 0 and r.verify_seconds > 0 for r in output.rounds if r.drafted)


def test_compiled_logits_and_greedy_output_are_the_eager_decoders(decoder: LlamaDecoder) -> None:
    """Each width runs several times: torch records a CUDA graph at the second run and replays it from the third."""
    try:
        compiled = CompiledDecoder(decoder)
    except ValueError as error:
        pytest.skip(str(error))
    prompt = prompts(24)
    caches = [prefill(one, prompt, 80) for one in (decoder, compiled)]
    for width in (1, 3, 1, 3, 1, 3, 1, 3):
        new = torch.arange(2, 2 + width, device=CUDA)[None]
        left, right = decoder.forward(new, caches[0]), compiled.forward(new, caches[1])
        torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-3)
    plain = baseline_autoregressive.generate(decoder, prompt[0], max_new_tokens=30, settings=GREEDY)
    for name in ("prompt-lookup", "early-exit:3"):
        fast = optimized_speculative.generate(
            compiled, make_draft(name, compiled, GREEDY), prompt[0], gamma=3, max_new_tokens=30, settings=GREEDY
        )
        assert fast.token_ids == plain.token_ids


def test_what_does_not_fit_is_refused(decoder: LlamaDecoder) -> None:
    with pytest.raises(ValueError, match=r"needs about .* GiB on cuda, .* GiB are free"):
        check_memory(2**60, CUDA, "a model")


def test_an_int8_copy_is_refused(decoder: LlamaDecoder) -> None:
    with pytest.raises(ValueError, match="an int8 copy needs a CPU"):
        quantise(decoder)
