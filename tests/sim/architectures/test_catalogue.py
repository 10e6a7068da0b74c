from pathlib import Path

import pytest

from sim.architectures.catalogue import ALIASES, ARCHITECTURES, find_architecture

WEIGHTS = {  # of the modules that transformers 5.23 builds for these sizes, and T5 v1.1's own output projection
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "llama-68m": 68_030_208,
    "vicuna-33b": 32_528_943_616,
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
    "qwen3-30b-a3b": 30_532_122_624,
    "mixtral-8x7b": 46_702_792_704,
    "deepseek-v3": 671_026_404_352,
    "t5-small": 76_961_152,
    "t5-base": 247_577_856,
    "t5-large": 783_150_080,
    "t5-xxl": 11_135_332_352,
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_parameters_are_those_of_the_modules(name: str) -> None:
    assert ARCHITECTURES[name].parameters() == WEIGHTS[name]
    assert ARCHITECTURES[name].weight_bytes(0.5) == WEIGHTS[name] / 2


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("llama-3.2-1b", "1.24"),  # their pages on huggingface.co
        ("llama-3.2-3b", "3.21"),
        ("llama-3.1-8b", "8.03"),
        ("llama-3.1-70b", "70.6"),
        ("smollm2-135m", "0.135"),
        ("smollm2-1.7b", "1.7"),
        ("qwen3-0.6b", "0.6"),  # Qwen's model cards
        ("qwen3-1.7b", "1.7"),
        ("qwen3-4b", "4.0"),
        ("qwen3-8b", "8.2"),
        ("qwen3-14b", "14.8"),
        ("qwen3-32b", "32.8"),
        ("qwen3-30b-a3b", "30.5"),
        ("mixtral-8x7b", "46.7"),  # Mistral's announcement
        ("deepseek-v3", "671"),  # its README_WEIGHTS.md
        ("t5-small", "0.077"),  # Leviathan et al., section 4.1
        ("t5-base", "0.25"),
        ("t5-large", "0.8"),
        ("t5-xxl", "11"),
    ],
)
def test_parameters_round_to_the_published_number(name: str, billions: str) -> None:
    digits = len(billions.partition(".")[2])
    assert f"{ARCHITECTURES[name].parameters() / 1e9:.{digits}f}" == billions


@pytest.mark.parametrize(
    ("name", "billions", "table_counts"),
    [
        ("deepseek-v3", 36.6, False),  # "36.6B (including 0.9B for the output Head)", its README_WEIGHTS.md
        ("mixtral-8x7b", 12.9, True),  # "12.9B parameters per token", Mistral's announcement
        ("qwen3-30b-a3b", 3.3, True),  # "3.3B activated", its model card
    ],
)
def test_active_parameters_are_the_published_number(name: str, billions: float, table_counts: bool) -> None:
    model = ARCHITECTURES[name]
    active = model.active_parameters() + table_counts * model.vocab * model.hidden
    assert active / 1e9 == pytest.approx(billions, rel=0.02)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("deepseek-v3", 70_272),  # 61 layers of a latent of 512 and a rotary key of 64
        ("llama-3.1-8b", 131_072),
        ("llama-2-7b", 524_288),
        ("qwen3-30b-a3b", 98_304),
    ],
)
def test_kv_bytes_per_token_in_bf16(name: str, expected: int) -> None:
    model = ARCHITECTURES[name]
    assert model.kv_bytes_per_token() == expected
    assert model.kv_bytes_per_token(1.0) == expected / 2


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ("Llama-3.1-8B", "llama-3.1-8b"),
        ("llama-3-8b", "llama-3.1-8b"),
        ("meta-llama/Meta-Llama-3-70B-Instruct", "llama-3.1-70b"),
        ("meta-llama/Llama-2-7b-chat-hf", "llama-2-7b"),
        ("Qwen/Qwen3-0.6B-Base", "qwen3-0.6b"),
        ("mistralai/Mixtral-8x7B-Instruct-v0.1", "mixtral-8x7b"),
        ("lmsys/vicuna-33b-v1.3", "vicuna-33b"),
        ("google/t5-v1_1-xxl", "t5-xxl"),
        ("deepseek-ai/DeepSeek-V3", "deepseek-v3"),
    ],
)
def test_a_model_is_found_by_the_names_it_goes_by(asked: str, name: str) -> None:
    assert find_architecture(asked) is ARCHITECTURES[name]


def test_every_alias_and_source_leads_somewhere() -> None:
    assert set(ALIASES.values()) <= set(ARCHITECTURES)
    assert not set(ALIASES) & set(ARCHITECTURES)
    for name, model in ARCHITECTURES.items():
        assert model.name == name == name.lower()
        assert model.source.startswith("huggingface.co/")
        assert model.source.endswith(" config.json")


def test_an_unknown_model_is_refused_with_its_neighbours_and_the_way_out() -> None:
    with pytest.raises(ValueError, match=r"path of a config.json, got 'qwen-3-8b'; did you mean qwen3-8b"):
        find_architecture("qwen-3-8b")
    with pytest.raises(ValueError, match=r"got 'zzzz'; known are llama-3.2-1b, "):
        find_architecture("zzzz")
    with pytest.raises(ValueError, match=r"nowhere/config\.json: not a readable config.json"):
        find_architecture("nowhere/config.json")


def test_a_folder_with_a_config_is_a_model(tmp_path: Path) -> None:
    folder = tmp_path / "qwen3-8b-base"
    folder.mkdir()
    (folder / "config.json").write_text(
        '{"model_type": "llama", "hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 4, "head_dim": 5,'
        ' "num_key_value_heads": 2, "intermediate_size": 11, "vocab_size": 20}'
    )
    found = find_architecture(str(folder))
    assert (found.name, found.hidden, found.heads, found.kv_heads) == ("qwen3-8b-base", 8, 4, 2)
