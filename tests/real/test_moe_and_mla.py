"""A mixture of experts (Mixtral) and latent attention with experts (DeepSeek-V3), tiny, random, in float64."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from real import baseline_autoregressive, optimized_speculative
from real.architecture_costs import architecture_report, count_experts, expanded_cache, kv_bytes, verify_costs
from real.decoder import TransformersDecoder
from real.draft_models import make_draft
from real.llama_decoder import LlamaDecoder
from real.sampling import SamplingSettings
from sim.trees import TokenTree

GREEDY = SamplingSettings(temperature=0)
NEW = 16
COMMON: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "eos_token_id": None,
    "pad_token_id": 0,
    "experts_implementation": "grouped_mm",  # what transformers takes where torch has a kernel for the dtype
}


def mixtral(**changed: Any) -> Any:
    """Six experts a layer, two a token, in float64."""
    shape = {"num_key_value_heads": 2, "num_local_experts": 6, "num_experts_per_tok": 2}
    return spread(MixtralForCausalLM(MixtralConfig(**(COMMON | shape | changed))))


def deepseek(**changed: Any) -> Any:
    """Latent attention; one dense layer, then eight experts in two groups, two a token and one for all, in float64."""
    experts = {"moe_intermediate_size": 24, "n_routed_experts": 8, "num_experts_per_tok": 2, "n_group": 2}
    experts |= {"topk_group": 2, "first_k_dense_replace": 1}
    latent = {"kv_lora_rank": 12, "q_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 6}
    shape = experts | latent | {"num_key_value_heads": 4}
    return spread(DeepseekV3ForCausalLM(DeepseekV3Config(**(COMMON | shape | changed))))


def spread(model: Any) -> Any:
    """Random weights in float64, spread wide enough that no two logits are close."""
    generator = torch.Generator().manual_seed(0)
    model = model.to(torch.float64).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" not in name:
                weight.copy_(torch.randn(weight.shape, generator=generator, dtype=torch.float64) * 0.3)
    return model


BUILD: dict[str, Callable[..., Any]] = {"mixtral": mixtral, "deepseek": deepseek}


@pytest.fixture(scope="module", params=list(BUILD))
def decoder(request: pytest.FixtureRequest) -> TransformersDecoder:
    return TransformersDecoder(BUILD[request.param]())


@pytest.fixture(scope="module")
def latent() -> TransformersDecoder:
    return TransformersDecoder(deepseek())


def prompts() -> list[Tensor]:
    """Three of different lengths, each repeating its beginning so that a lookup finds something."""
    ids = torch.randint(3, 64, (3, 12), generator=torch.Generator().manual_seed(4))
    return [torch.cat([row[:length], row[:4]]) for row, length in zip(ids, (12, 7, 9), strict=True)]


@pytest.fixture(scope="module")
def expected(decoder: TransformersDecoder) -> list[list[int]]:
    """What transformers itself generates, prompt by prompt."""
    return [
        decoder.model.generate(prompt[None], max_new_tokens=NEW, do_sample=False)[0, len(prompt) :].tolist()
        for prompt in prompts()
    ]


@pytest.mark.parametrize("rows", [1, 3])
def test_the_baseline_s_greedy_output_is_transformers_own(
    decoder: TransformersDecoder, expected: list[list[int]], rows: int
) -> None:
    plain = baseline_autoregressive.generate_batch(decoder, prompts()[:rows], max_new_tokens=NEW, settings=GREEDY)
    assert [output.token_ids for output in plain] == expected[:rows]


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("gamma", [4, TokenTree.branching([2, 2, 1])], ids=["chain", "tree"])
@pytest.mark.parametrize("draft", ["early-exit:2", "prompt-lookup", "synthetic:0.7"])
def test_speculative_greedy_output_is_transformers_own(
    decoder: TransformersDecoder, expected: list[list[int]], draft: str, gamma: int | TokenTree, rows: int
) -> None:
    fast = optimized_speculative.generate_batch(
        decoder,
        make_draft(draft, decoder, GREEDY),
        prompts()[:rows],
        gamma=gamma,
        max_new_tokens=NEW,
        settings=GREEDY,
    )
    assert [output.token_ids for output in fast] == expected[:rows]
    if draft.startswith("synthetic"):
        assert max(measured.accepted for output in fast for measured in output.rounds) > 0


def test_float64_runs_where_grouped_products_have_no_kernel() -> None:
    model = mixtral()
    assert model.config._experts_implementation == "grouped_mm"
    decoder = TransformersDecoder(model)
    assert decoder.forward(prompts()[0][None], decoder.new_cache(32)).dtype == torch.float64


def test_a_cache_beyond_the_sliding_window_is_refused() -> None:
    decoder = TransformersDecoder(mixtral(sliding_window=20))
    decoder.new_cache(20)
    with pytest.raises(ValueError, match="21 tokens asked for, beyond the sliding window of 20"):
        decoder.new_cache(21)


class TestExperts:
    def test_every_layer_of_every_forward_is_recorded(self, decoder: TransformersDecoder) -> None:
        layers = {"MixtralForCausalLM": [0, 1, 2], "DeepseekV3ForCausalLM": [1, 2]}[type(decoder.model).__name__]
        experts = {"MixtralForCausalLM": 6, "DeepseekV3ForCausalLM": 8}[type(decoder.model).__name__]
        with count_experts(decoder.model) as seen:
            cache = decoder.new_cache(32)
            decoder.forward(prompts()[0][None], cache)
            decoder.forward(torch.tensor([[5]]), cache)
        assert [routing.layer for routing in seen] == [f"model.layers.{i}.mlp.experts" for i in layers] * 2
        assert {routing.experts for routing in seen} == {experts}
        assert [routing.tokens for routing in seen] == [16] * len(layers) + [1] * len(layers)
        assert [routing.touched for routing in seen[len(layers) :]] == [2] * len(layers)
        for routing in seen:
            assert routing.touched == len({expert for row in routing.chosen.tolist() for expert in row})
        decoder.forward(torch.tensor([[5]]), cache)
        assert len(seen) == 2 * len(layers)  # the hooks are gone

    def test_a_router_that_sends_all_tokens_to_the_same_experts_touches_no_more(self) -> None:
        model = mixtral(num_hidden_layers=1)
        with torch.no_grad():
            model.model.layers[0].mlp.gate.weight.zero_()
        table = verify_costs(TransformersDecoder(model), (1, 7), context=3, repeats=2, seed=0)
        assert table.experts_touched.tolist() == [2.0] * 4

    @pytest.mark.parametrize("name", list(BUILD))
    def test_a_random_router_touches_as_many_experts_as_uniform_routing(self, name: str) -> None:
        """E[distinct of N] = N (1 - (1 - k/N)^t) if each of t tokens picks k of N with equal marginals, independently.

        Hidden states of equal law in every direction and orthogonal router rows make it so; attention is switched off,
        which would make tokens depend on each other. Within 4.5 standard errors: a false alarm in 147,000 seeds per
        model. The mutant, k picks with replacement (1 - 1/N)^(tk), is 0.22 experts lower for N = 8, k = 2, t = 4, 6.2
        standard errors of 600 repeats, so it is caught with a power of 0.95.
        """
        experts = {"mixtral": "num_local_experts", "deepseek": "n_routed_experts"}[name]
        dense = {} if name == "mixtral" else {"first_k_dense_replace": 0}
        model = BUILD[name](num_hidden_layers=1, vocab_size=4096, **{experts: 8}, **dense)
        with torch.no_grad():
            model.model.layers[0].self_attn.o_proj.weight.zero_()
            torch.nn.init.orthogonal_(model.model.layers[0].mlp.gate.weight, generator=torch.Generator().manual_seed(1))
        table = verify_costs(TransformersDecoder(model), (1, 4), context=1, repeats=600, seed=2)
        one, four = (table.experts_touched[table.new_tokens == n] for n in (1, 4))
        assert set(one) == {2.0}
        error = four.std() / len(four) ** 0.5
        assert abs(four.mean() - 8 * (1 - (1 - 2 / 8) ** 4)) < 4.5 * error
        assert abs(four.mean() - 8 * (1 - (1 - 1 / 8) ** 8)) > 4.5 * error


class TestVerifyCosts:
    def test_one_row_per_repeat_and_count_with_the_shapes_asked_for(self, decoder: TransformersDecoder) -> None:
        table = verify_costs(decoder, (1, 3, 5), context=6, repeats=4, seed=1, batch=2)
        assert sorted(zip(table.repeat, table.new_tokens, strict=True)) == [(r, n) for r in range(4) for n in (1, 3, 5)]
        assert (table.seconds > 0).all()
        assert set(table.batch) == {2}
        assert set(table.context) == {6}
        assert set(table.experts_per_token) == {2}
        assert (table.experts_touched >= 2).all()
        assert (table.experts_touched <= table.experts).all()
        orders = {tuple(sweep.new_tokens) for _, sweep in table.groupby("repeat")}
        assert len(orders) > 1

    def test_the_same_seed_touches_the_same_experts(self, decoder: TransformersDecoder) -> None:
        first, again = (verify_costs(decoder, (2, 4), 3, 2, seed=5).drop(columns="seconds") for _ in range(2))
        assert first.equals(again)

    def test_a_dense_model_touches_none(self, model: LlamaForCausalLM) -> None:
        for dense in (TransformersDecoder(model), LlamaDecoder.from_transformers(model)):
            table = verify_costs(dense, (1, 2), context=3, repeats=1, seed=0)
            assert table.experts_touched.isna().all()
            assert set(table.experts) == set(table.experts_per_token) == {0}

    def test_counts_below_one_are_refused(self, decoder: TransformersDecoder) -> None:
        with pytest.raises(ValueError, match=r"must be >= 1, got \[0, 2\], 3, 1 and 1"):
            verify_costs(decoder, (0, 2), context=3, repeats=1, seed=0)
        with pytest.raises(ValueError, match=r"must be >= 1, got \[\], 3, 1 and 1"):
            verify_costs(decoder, (), context=3, repeats=1, seed=0)


class TestKVBytes:
    def test_a_grouped_query_cache_holds_the_kv_heads(self, model: LlamaForCausalLM) -> None:
        for dense in (TransformersDecoder(model), LlamaDecoder.from_transformers(model)):
            found = kv_bytes(dense)
            assert (found.cached, found.latent, found.expanded) == (4 * 2 * 2 * 8 * 8, None, 4 * 2 * 2 * 8 * 8)

    def test_a_latent_cache_holds_the_latent_and_one_rotary_key(self, latent: TransformersDecoder) -> None:
        found = kv_bytes(latent)
        assert found.latent == found.cached == 3 * (12 + 4) * 8
        assert found.expanded == 3 * 4 * (8 + 4 + 6) * 8

    def test_an_expanded_cache_holds_keys_and_values_of_every_head(self, latent: TransformersDecoder) -> None:
        with expanded_cache(latent.model):
            assert kv_bytes(latent).cached == kv_bytes(latent).expanded
        assert kv_bytes(latent).cached == kv_bytes(latent).latent

    def test_logits_do_not_depend_on_what_is_cached(self, latent: TransformersDecoder) -> None:
        """To float32's precision: transformers norms and routes in float32 whatever the weights are."""

        def logits() -> Tensor:
            cache = latent.new_cache(32)
            return torch.cat([latent.forward(piece[None], cache) for piece in prompts()[0].split([9, 1, 6])], dim=1)

        compressed = logits()
        with expanded_cache(latent.model):
            torch.testing.assert_close(logits(), compressed, rtol=1e-6, atol=1e-5)

    def test_speculation_gives_the_same_tokens_over_an_expanded_cache(self, latent: TransformersDecoder) -> None:
        def tokens() -> list[list[int]]:
            fast = optimized_speculative.generate_batch(
                latent, make_draft("early-exit:2", latent, GREEDY), prompts(), gamma=TokenTree.branching([2, 2]),
                max_new_tokens=NEW, settings=GREEDY,
            )  # fmt: skip
            return [output.token_ids for output in fast]

        compressed = tokens()
        with expanded_cache(latent.model):
            assert tokens() == compressed

    def test_a_model_without_a_latent_has_none_to_expand(self) -> None:
        with (
            pytest.raises(ValueError, match="MixtralForCausalLM has no attention that caches a latent"),
            expanded_cache(mixtral()),
        ):
            pass


def test_the_report_is_json_and_says_what_mla_saves(latent: TransformersDecoder, model: LlamaForCausalLM) -> None:
    report = json.loads(json.dumps(architecture_report(latent, (1, 2), 3, 2, seed=0), allow_nan=False))
    assert report["kv_bytes_per_token"] == {"cached": 384, "latent": 384, "expanded": 1728}
    assert report["expanded_cache"]["kv_bytes_per_token"]["cached"] == 1728
    assert len(report["forwards"]) == len(report["expanded_cache"]["forwards"]) == 4
    assert {row["experts"] for row in report["forwards"]} == {8}
    dense = json.loads(json.dumps(architecture_report(TransformersDecoder(model), (1,), 3, 1, 0), allow_nan=False))
    assert dense["expanded_cache"] is None
    assert dense["forwards"][0]["experts_touched"] is None
