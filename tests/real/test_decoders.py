from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from real.decoder import Decoder, TransformersDecoder
from real.llama_decoder import LlamaDecoder, unsupported
from real.loading import make_decoder

IDS = torch.randint(2, 64, (20,), generator=torch.Generator().manual_seed(3))


def test_forward_equals_one_transformers_forward(decoder: Decoder, model: LlamaForCausalLM) -> None:
    """To float32's precision: transformers takes norms and rotary angles in float32 whatever the weights are."""
    with torch.inference_mode():
        expected = model(IDS[None]).logits[0]
    torch.testing.assert_close(decoder.forward(IDS, decoder.new_cache(20)), expected, rtol=1e-6, atol=1e-5)


def test_pieces_give_the_logits_of_the_whole(decoder: Decoder) -> None:
    whole = decoder.forward(IDS, decoder.new_cache(20))
    cache = decoder.new_cache(20)
    pieces = torch.cat([decoder.forward(piece, cache) for piece in IDS.split([7, 1, 2, 9, 1])])
    assert cache.length == 20
    torch.testing.assert_close(pieces, whole, rtol=0, atol=1e-9)


def test_rollback_forgets_what_was_rejected(decoder: Decoder) -> None:
    cache = decoder.new_cache(32)
    decoder.forward(IDS[:8], cache)
    decoder.forward(torch.tensor([5, 6, 7]), cache)
    cache.rollback(8)
    torch.testing.assert_close(
        decoder.forward(IDS[8:], cache), decoder.forward(IDS, decoder.new_cache(20))[8:], rtol=0, atol=1e-9
    )


def test_rollback_never_lengthens(decoder: Decoder) -> None:
    cache = decoder.new_cache(8)
    decoder.forward(IDS[:4], cache)
    cache.rollback(100)
    assert cache.length == 4


def test_logits_to_keep_scores_the_last_tokens_only(decoder: Decoder) -> None:
    whole = decoder.forward(IDS, decoder.new_cache(20))
    last = decoder.forward(IDS, decoder.new_cache(20), logits_to_keep=1)
    torch.testing.assert_close(last, whole[-1:], rtol=0, atol=1e-9)


def test_drafting_in_a_view_leaves_the_target_as_it_was(decoder: Decoder) -> None:
    cache = decoder.new_cache(32)
    decoder.forward(IDS[:8], cache)
    shallow = decoder.first_layers(2)
    view = cache.view()
    alone = shallow.new_cache(32)
    shallow.forward(IDS[:8], alone)
    torch.testing.assert_close(shallow.forward(IDS[8:11], view), shallow.forward(IDS[8:11], alone), rtol=0, atol=1e-9)
    assert cache.length == 8
    torch.testing.assert_close(
        decoder.forward(IDS[8:], cache), decoder.forward(IDS, decoder.new_cache(20))[8:], rtol=0, atol=1e-9
    )


def test_a_copy_of_a_cache_goes_its_own_way(decoder: Decoder) -> None:
    cache = decoder.new_cache(32)
    decoder.forward(IDS[:8], cache)
    twin = cache.copy()
    decoder.forward(IDS[:5], twin)
    assert (cache.length, twin.length) == (8, 13)
    torch.testing.assert_close(
        decoder.forward(IDS[8:], cache), decoder.forward(IDS, decoder.new_cache(20))[8:], rtol=0, atol=1e-9
    )


@pytest.mark.parametrize("count", [0, 4, 9])
def test_an_early_exit_outside_the_model_is_refused(decoder: Decoder, count: int) -> None:
    with pytest.raises(ValueError, match=f"must keep 1 to 3 of the target's 4 layers, got {count}"):
        decoder.first_layers(count)


def test_a_full_cache_refuses_more_tokens(model: LlamaForCausalLM) -> None:
    decoder = LlamaDecoder.from_transformers(model)
    with pytest.raises(ValueError, match="KV cache holds 4 tokens, 0 are used and 20 more"):
        decoder.forward(IDS, decoder.new_cache(4))
    with pytest.raises(ValueError, match="300 tokens asked for, the model has positions for 256"):
        decoder.new_cache(300)


def test_packed_float32_weights_give_the_model_s_logits() -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=300, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4)
    ).eval()
    decoder = LlamaDecoder.from_transformers(model)
    with torch.inference_mode():
        expected = model(IDS[None]).logits[0]
    for n in (1, 2, 7, 19):
        cache = decoder.new_cache(20)
        decoder.forward(IDS[: 20 - n], cache)
        torch.testing.assert_close(decoder.forward(IDS[20 - n :], cache), expected[20 - n :], rtol=1e-4, atol=1e-5)


def test_other_architectures_fall_back_to_transformers() -> None:
    config = MistralConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
    )
    model = MistralForCausalLM(config)
    assert unsupported(model) == "model type mistral"
    assert isinstance(make_decoder(model), TransformersDecoder)
    with pytest.raises(ValueError, match="use TransformersDecoder"):
        LlamaDecoder.from_transformers(model)
