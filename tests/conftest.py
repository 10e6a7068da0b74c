"""One thread per test process: a second one would only wait for cores that other processes hold."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

torch.set_num_threads(1)


def save_model(folder: Path, vocab: int = 40, words: str = "w") -> Path:
    """Save a tiny random Llama and a tokenizer of the words w0, w1, ... into a folder."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        eos_token_id=vocab - 1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    vocabulary = {f"{words}{i}": i for i in range(vocab - 1)} | {"</s>": vocab - 1}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="</s>"))
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>").save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that loads as a target."""
    return save_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def other_vocabularies(tmp_path: Path) -> tuple[Path, Path]:
    """Folders of models with one token more, and with other tokens."""
    return save_model(tmp_path / "more", vocab=41), save_model(tmp_path / "other", words="v")
