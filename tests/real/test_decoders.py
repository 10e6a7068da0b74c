from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from real.cache import KVCache
from real.decoder import Decoder, TransformersDecoder
from real.llama_decoder import LlamaDecoder, unsupported
from real.loading import make_decoder
from real.tree_attention import Tail
from sim.trees import TokenTree

IDS = torch.randint(2, 64, (1, 20), generator=torch.Generator().manual_seed(3))


def test_forward_equals_one_transformers_forward(decoder: Decoder, model: LlamaForCausalLM) -> None:
    """To float32's precision: transformers takes norms and rotary angles in float32 whatever the weights are."""
    with torch.inference_mode():
        expected = model(IDS).logits
    torch.testing.assert_close(decoder.forward(IDS, decoder.new_cache(20)), expected, rtol=1e-6, atol=1e-5)


def test_pieces_give_the_logits_of_the_whole(decoder: Decoder) -> None:
    whole = decoder.forward(IDS, decoder.new_cache(20))
    cache = decoder.new_cache(20)
    pieces = torch.cat([decoder.forward(piece, cache) for piece in IDS.split([7, 1, 2, 9, 1], dim=1)], dim=1)
    assert cache.lengths == [20]
    torch.testing.assert_close(pieces, whole, rtol=0, atol=1e-9)


def test_rollback_forgets_what_was_rejected(decoder: Decoder) -> None:
    cache = decoder.new_cache(32)
    decoder.forward(IDS[:, :8], cache)
    decoder.forward(torch.tensor([[5, 6, 7]]), cache)
    cache.rollback(8)
    torch.testing.assert_close(
        decoder.forward(IDS[:, 8:], cache), decoder.forward(IDS, decoder.new_cache(20))[:, 8:], rtol=0, atol=1e-9
    )


def test_rollback_never_lengthens(decoder: Decoder) -> None:
    cache = decoder.new_cache(8)
    decoder.forward(IDS[:, :4], cache)
    cache.rollback(100)
    assert cache.lengths == [4]


def test_logits_to_keep_scores_the_last_tokens_only(decoder: Decoder) -> None:
    whole = decoder.forward(IDS, decoder.new_cache(20))
    last = decoder.forward(IDS, decoder.new_cache(20), logits_to_keep=1)
    torch.testing.assert_close(last, whole[:, -1:], rtol=0, atol=1e-9)


def test_drafting_in_a_view_leaves_the_target_as_it_was(decoder: Decoder) -> None:
    cache = decoder.new_cache(32)
    decoder.forward(IDS[:, :8], cache)
    shallow = decoder.first_layers(2)
    view = cache.view()
    alone = shallow.new_cache(32)
    shallow.forward(IDS[:, :8], alone)
    inside, outside = shallow.forward(IDS[:, 8:11], view), shallow.forward(IDS[:, 8:11], alone)
    torch.testing.assert_close(inside, outside, rtol=0, atol=1e-9)
    assert cache.lengths == [8]
    torch.testing.assert_close(
        decoder.forward(IDS[:, 8:], cache), decoder.forward(IDS, decoder.new_cache(20))[:, 8:], rtol=0, atol=1e-9
    )


def test_a_copy_of_a_cache_goes_its_own_way(decoder: Decoder) -> None:
    cache = decoder.new_cache(32)
    decoder.forward(IDS[:, :8], cache)
    twin = cache.copy()
    decoder.forward(IDS[:, :5], twin)
    assert (cache.lengths, twin.lengths) == ([8], [13])
    torch.testing.assert_close(
        decoder.forward(IDS[:, 8:], cache), decoder.forward(IDS, decoder.new_cache(20))[:, 8:], rtol=0, atol=1e-9
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
        expected = model(IDS).logits
    for n in (1, 2, 7, 19):
        cache = decoder.new_cache(20)
        decoder.forward(IDS[:, : 20 - n], cache)
        torch.testing.assert_close(
            decoder.forward(IDS[:, 20 - n :], cache), expected[:, 20 - n :], rtol=1e-4, atol=1e-5
        )


def test_other_architectures_fall_back_to_transformers() -> None:
    config = MistralConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
    )
    model = MistralForCausalLM(config)
    assert unsupported(model) == "model type mistral"
    assert isinstance(make_decoder(model), TransformersDecoder)
    with pytest.raises(ValueError, match="use TransformersDecoder"):
        LlamaDecoder.from_transformers(model)


ROWS = torch.randint(2, 64, (3, 20), generator=torch.Generator().manual_seed(4))
HELD = [10, 6, 8]


def ragged(decoder: Decoder, feature_layers: tuple[int, ...] = ()) -> KVCache:
    """A cache whose rows hold the first tokens of ROWS, a different number each."""
    cache = decoder.new_cache(32, 3, feature_layers)
    decoder.forward(ROWS[:, :10], cache)
    cache.rollback(HELD)
    return cache


def test_rows_of_different_lengths_do_not_see_each_other(decoder: Decoder) -> None:
    whole = decoder.forward(ROWS, decoder.new_cache(20, 3))
    following = torch.stack([ROWS[row, n : n + 4] for row, n in enumerate(HELD)])
    logits = decoder.forward(following, ragged(decoder))
    for row, n in enumerate(HELD):
        torch.testing.assert_close(logits[row], whole[row, n : n + 4], rtol=0, atol=1e-9)


def test_a_tree_is_scored_as_each_of_its_paths_alone(decoder: Decoder) -> None:
    """Two branches, one true and two tokens long, one false; the accepted path is then all that the cache holds."""
    whole = decoder.forward(ROWS, decoder.new_cache(20, 3))
    tree = TokenTree.parse("parents:-1,-1,1")
    cache = ragged(decoder)
    fed = torch.stack(
        [torch.tensor([ROWS[row, n], 5, ROWS[row, n + 1], ROWS[row, n + 2]]) for row, n in enumerate(HELD)]
    )
    logits = decoder.forward(fed, cache, tail=Tail(torch.from_numpy(tree.visible()), torch.tensor([0, *tree.depths])))
    for row, n in enumerate(HELD):
        torch.testing.assert_close(logits[row, [0, 2, 3]], whole[row, n : n + 3], rtol=0, atol=1e-9)
        cache.keep_slots(row, n, [n, n + 2, n + 3])
    cache.keep_rows([0, 2])
    assert cache.lengths == [13, 11]
    after = decoder.forward(torch.stack([ROWS[0, 13:15], ROWS[2, 11:13]]), cache)
    torch.testing.assert_close(after[0], whole[0, 13:15], rtol=0, atol=1e-9)
    torch.testing.assert_close(after[1], whole[2, 11:13], rtol=0, atol=1e-9)


def test_features_are_the_layers_outputs_and_follow_the_accepted_path(
    decoder: Decoder, model: LlamaForCausalLM
) -> None:
    """The last layer's is taken before the final norm, which transformers' own hidden states are not."""
    with torch.inference_mode():
        expected = model(ROWS, output_hidden_states=True).hidden_states
    cache = ragged(decoder, (2, 4))
    decoder.forward(torch.stack([ROWS[row, [n, 0, n + 1]] for row, n in enumerate(HELD)]), cache)
    for row, n in enumerate(HELD):
        cache.keep_slots(row, n, [n, n + 1])
    assert cache.features is not None
    for row, n in enumerate(HELD):
        held = cache.features[row, : n + 1]
        direction = torch.nn.functional.normalize(expected[2][row, : n + 1], dim=-1) * 32**0.5
        torch.testing.assert_close(held[:, 0], direction, rtol=1e-4, atol=1e-4)
        normed = held[:, 1] * model.model.norm.weight.detach()
        torch.testing.assert_close(normed, expected[4][row, : n + 1], rtol=1e-4, atol=1e-4)


def test_layers_left_out_keep_their_places_in_the_cache(model: LlamaForCausalLM) -> None:
    decoder = LlamaDecoder.from_transformers(model)
    thinned = decoder.without_layers([1, 2])
    assert (thinned.indices, thinned.layers) == ((0, 3), 4)
    with pytest.raises(ValueError, match=r"must leave at least one of 0 to 3, got \[0, 1, 2, 3\]"):
        decoder.without_layers(range(4))


def test_a_model_that_forgets_old_tokens_is_refused() -> None:
    config = MistralConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
    )
    config.layer_types = ["full_attention", "sliding_attention"]
    with pytest.raises(ValueError, match=r"sliding_attention.*cannot be rolled back"):
        TransformersDecoder(MistralForCausalLM(config))
