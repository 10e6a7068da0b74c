import json
from pathlib import Path

import pytest

from sim.architectures.catalogue import ARCHITECTURES
from sim.architectures.config import read_config

LLAMA = """{"model_type": "llama", "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 2,
    "num_attention_heads": 12, "vocab_size": 32000, "tie_word_embeddings": false}"""
DEEPSEEK_V2_LITE = """{"model_type": "deepseek_v2", "hidden_size": 2048, "intermediate_size": 10944,
    "num_hidden_layers": 27, "num_attention_heads": 16, "vocab_size": 102400, "moe_intermediate_size": 1408,
    "n_routed_experts": 64, "num_experts_per_tok": 6, "n_shared_experts": 2, "first_k_dense_replace": 1,
    "kv_lora_rank": 512, "q_lora_rank": null, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128,
    "tie_word_embeddings": false}"""
QWEN3_MOE = """{"model_type": "qwen3_moe", "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 48,
    "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128, "vocab_size": 151936,
    "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768, "decoder_sparse_step": 1,
    "mlp_only_layers": [], "sliding_window": null, "use_sliding_window": false, "tie_word_embeddings": false}"""
GEMMA3_1B = """{"model_type": "gemma3_text", "hidden_size": 1152, "intermediate_size": 6912,
    "num_hidden_layers": 26, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256,
    "vocab_size": 262144, "sliding_window": 512, "sliding_window_pattern": 6}"""

PUBLIC = {  # configs cut down to what a shape needs, and the weights of the modules that transformers 5.23 builds
    "JackFram/llama-68m": (LLAMA, 68_030_208),
    "deepseek-ai/DeepSeek-V2-Lite": (DEEPSEEK_V2_LITE, 15_706_484_224),
    "Qwen/Qwen3-30B-A3B": (QWEN3_MOE, 30_532_122_624),
    "google/gemma-3-1b-pt": (GEMMA3_1B, 999_885_952),
    "Qwen/Qwen2.5-0.5B": (
        """{"model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
        "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151936, "max_window_layers": 24,
        "sliding_window": 32768, "use_sliding_window": false, "tie_word_embeddings": true}""",
        494_032_768,
    ),
    "mistralai/Mistral-7B-v0.1": (
        """{"model_type": "mistral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000, "sliding_window": 4096,
        "tie_word_embeddings": false}""",
        7_241_732_096,
    ),
    "mistralai/Mixtral-8x7B-v0.1": (
        """{"model_type": "mixtral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000, "sliding_window": null,
        "num_local_experts": 8, "num_experts_per_tok": 2, "tie_word_embeddings": false}""",
        46_702_792_704,
    ),
    "google/gemma-2b": (
        """{"model_type": "gemma", "hidden_size": 2048, "intermediate_size": 16384, "num_hidden_layers": 18,
        "num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 256, "vocab_size": 256000}""",
        2_506_172_416,
    ),
    "google/gemma-2-2b": (
        """{"model_type": "gemma2", "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 256000,
        "sliding_window": 4096}""",
        2_614_341_888,
    ),
    "EleutherAI/pythia-70m": (
        """{"model_type": "gpt_neox", "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 6,
        "num_attention_heads": 8, "vocab_size": 50304, "tie_word_embeddings": false}""",
        70_426_624,
    ),
    "google-t5/t5-small": (
        """{"model_type": "t5", "d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "num_heads": 8,
        "vocab_size": 32128, "relative_attention_num_buckets": 32}""",
        60_506_624,
    ),
    "google/t5-v1_1-small": (
        """{"model_type": "t5", "d_model": 512, "d_kv": 64, "d_ff": 1024, "num_layers": 8, "num_decoder_layers": 8,
        "num_heads": 6, "vocab_size": 32128, "relative_attention_num_buckets": 32, "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": false}""",
        76_961_152,
    ),
}


@pytest.mark.parametrize("model", PUBLIC)
def test_a_config_has_the_weights_of_its_modules(model: str) -> None:
    text, weights = PUBLIC[model]
    assert read_config(json.loads(text)).parameters() == weights


def test_a_catalogue_shape_is_what_its_config_says() -> None:
    for model, name in (
        ("Qwen/Qwen3-30B-A3B", "qwen3-30b-a3b"),
        ("mistralai/Mixtral-8x7B-v0.1", "mixtral-8x7b"),
        ("google/t5-v1_1-small", "t5-small"),
        ("JackFram/llama-68m", "llama-68m"),
    ):
        read, known = read_config(json.loads(PUBLIC[model][0])), ARCHITECTURES[name]
        assert read.work(3, 5, 700) == known.work(3, 5, 700)
        assert read.parameters() == known.parameters()


def test_latent_attention_is_read_with_and_without_a_rank_for_queries() -> None:
    lite = read_config(json.loads(DEEPSEEK_V2_LITE))
    assert lite.mla is not None
    assert lite.mla.q_rank is None
    assert lite.kv_bytes_per_token() == 27 * (512 + 64) * 2
    ranked = read_config(json.loads(DEEPSEEK_V2_LITE) | {"q_lora_rank": 100})
    # the projection of 16 heads of 192, down to a rank and up again, with a norm between
    saved = 27 * (2048 * 16 * 192 - 100 * (2048 + 16 * 192 + 1))
    assert ranked.parameters() == lite.parameters() - saved


def test_a_file_and_its_folder_and_its_content_give_the_same_shape(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(LLAMA)
    shape = read_config(tmp_path)
    assert shape == read_config(tmp_path / "config.json") == read_config(str(tmp_path))
    assert (shape.name, shape.source) == (tmp_path.name, str(tmp_path / "config.json"))
    assert shape.work(1, 1, 9) == read_config(json.loads(LLAMA)).work(1, 1, 9)


def test_the_text_part_of_a_multimodal_config_is_read() -> None:
    """As in google/gemma-3-4b-it: the text part leaves heads and vocabulary to what transformers assumes."""
    outer = """{"model_type": "gemma3", "vision_config": {"hidden_size": 1152}, "text_config": {"hidden_size": 2560,
        "intermediate_size": 10240, "model_type": "gemma3_text", "num_hidden_layers": 34, "sliding_window": 1024}}"""
    shape = read_config(json.loads(outer))
    assert (shape.heads, shape.kv_heads, shape.head_dim, shape.vocab) == (8, 4, 256, 262_208)
    assert shape.tied_embeddings
    untied = read_config(json.loads(outer) | {"tie_word_embeddings": False})
    assert untied.parameters() == shape.parameters() + 262_208 * 2560


@pytest.mark.parametrize(
    ("model", "changes", "windows"),
    [
        ("mistralai/Mistral-7B-v0.1", {}, (4096, 32)),
        ("mistralai/Mistral-7B-v0.1", {"sliding_window": None}, (None, 0)),
        ("mistralai/Mixtral-8x7B-v0.1", {}, (None, 0)),
        ("Qwen/Qwen2.5-0.5B", {}, (None, 0)),
        ("Qwen/Qwen2.5-0.5B", {"use_sliding_window": True, "max_window_layers": 20}, (32_768, 4)),
        ("Qwen/Qwen3-30B-A3B", {"use_sliding_window": True, "sliding_window": 100, "max_window_layers": 48}, (100, 48)),
        ("google/gemma-2-2b", {}, (4096, 13)),
        ("google/gemma-3-1b-pt", {}, (512, 22)),
        ("google/gemma-3-1b-pt", {"layer_types": ["full_attention"] * 25 + ["sliding_attention"]}, (512, 1)),
        ("JackFram/llama-68m", {"sliding_window": 512}, (None, 0)),
    ],
)
def test_sliding_windows_are_on_the_layers_that_transformers_puts_them(
    model: str, changes: dict, windows: tuple[int | None, int]
) -> None:
    shape = read_config(json.loads(PUBLIC[model][0]) | changes)
    assert (shape.window_tokens, shape.window_layers) == windows


def test_dense_layers_among_experts_are_counted_wherever_they_stand() -> None:
    def dense(changes: dict) -> int:
        return read_config(json.loads(QWEN3_MOE) | changes).dense_layers

    assert dense({}) == 0
    assert dense({"decoder_sparse_step": 2}) == 24, "layers 1, 3, 5, ... have experts"
    assert dense({"decoder_sparse_step": 2, "mlp_only_layers": [3, 4, 5]}) == 26
    lite = json.loads(DEEPSEEK_V2_LITE)
    assert read_config(lite).dense_layers == 1
    assert read_config(lite | {"moe_layer_freq": 2}).dense_layers == 1 + 13
    assert read_config(lite | {"n_shared_experts": None}).parameters() == 15_706_484_224 - 26 * 2 * 3 * 2048 * 1408


def test_an_encoder_may_be_deeper_than_its_decoder() -> None:
    same = json.loads(PUBLIC["google-t5/t5-small"][0])
    shape = read_config(same | {"num_decoder_layers": 2})
    assert (shape.layers, shape.encoder_layers, shape.gated_mlp) == (2, 6, False)
    layer = 8 * 512 * 512 + 2 * 512 * 2048 + 3 * 512
    assert shape.parameters() == read_config(same).parameters() - 4 * layer


def test_biases_are_counted() -> None:
    plain = json.loads(LLAMA)
    biased = read_config(plain | {"attention_bias": True, "mlp_bias": True})
    assert biased.parameters() == 68_030_208 + 2 * (4 * 768) + 2 * (2 * 3072 + 768)
    weights = sum(float(work.weight_bytes) for work in biased.work(1, 1, 0, weight_bytes=1).values())
    assert weights == biased.active_parameters() + 768, "all but the table, of which a row is read"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": None}, "hidden_size must be a whole number >= 1, got None"),
        ({"hidden_size": "768"}, "hidden_size must be a whole number >= 1, got '768'"),
        ({"num_hidden_layers": 2.0}, "num_hidden_layers must be a whole number >= 1, got 2.0"),
        ({"vocab_size": True}, "vocab_size must be a whole number >= 1, got True"),
        ({"num_attention_heads": 7}, "hidden_size must be a multiple of num_attention_heads, got 768 and 7"),
        ({"num_key_value_heads": 5}, "heads must be a multiple of kv_heads, got 12 and 5"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings must be true or false, got 'yes'"),
        ({"model_type": "mamba"}, "model_type must be one of llama, .*got 'mamba'"),
        ({"model_type": ["llama"]}, "model_type must be one of"),
        ({"model_type": "mistral"}, "the key num_key_value_heads is missing"),
        ({"model_type": "mixtral", "num_key_value_heads": 4}, "the key num_local_experts or num_experts is missing"),
        ({"model_type": "t5"}, "the key num_layers is missing"),
    ],
)
def test_a_wrong_entry_is_refused_by_key_and_file(changes: dict, message: str, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(LLAMA) | changes))
    with pytest.raises(ValueError, match=message) as refusal:
        read_config(file)
    assert str(refusal.value).startswith(f"{file}: ")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("key", ["model_type", "hidden_size", "num_hidden_layers", "intermediate_size", "vocab_size"])
def test_a_missing_key_is_named(key: str) -> None:
    values = json.loads(LLAMA)
    del values[key]
    with pytest.raises(ValueError, match=f"config: the key {key} is missing"):
        read_config(values)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer_types": ["linear_attention"] * 26}, "sliding_attention or full_attention for each of 26 layers"),
        ({"layer_types": ["full_attention"] * 25}, "for each of 26 layers"),
        ({"layer_types": "full_attention"}, "for each of 26 layers"),
        ({"sliding_window": -1}, "sliding_window must be a whole number >= 1, got -1"),
    ],
)
def test_windows_that_nobody_can_read_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_config(json.loads(GEMMA3_1B) | changes)


@pytest.mark.parametrize(("text", "message"), [("{", "not a readable config"), ("[1]", "must hold a JSON object")])
def test_a_file_that_is_no_config_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_config(tmp_path)
    with pytest.raises(ValueError, match="not a readable config"):
        read_config(tmp_path / "elsewhere.json")
