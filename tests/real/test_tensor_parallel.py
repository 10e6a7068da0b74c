"""Two processes with half of a tiny Llama each must speak with one voice; as a script, this file is one of them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    GPT2Config,
    LlamaConfig,
    LlamaForCausalLM,
)

from real import baseline_autoregressive, optimized_speculative
from real.decoder import TransformersDecoder
from real.draft_models import make_draft
from real.sampling import SamplingSettings
from real.tensor_parallel import (
    check_shardable,
    is_sharded,
    load_sharded,
    same_number_on_all_ranks,
    same_on_all_ranks,
    start,
    world,
)
from sim.trees import TokenTree

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
NEW = 12
GREEDY, SAMPLED = SamplingSettings(temperature=0), SamplingSettings(temperature=1.0)
DRAFTS = ("prompt-lookup", "early-exit:2", "synthetic:0.7")
PROMPTS = [torch.tensor([3, 5, 7, 9, 3, 5]), torch.tensor([8, 2, 8, 2])]


def decode_all(decoder: TransformersDecoder) -> dict[str, list[list[int]]]:
    """Tokens of both prompts, by every way to decode."""
    found = {}
    for law, settings in (("greedy", GREEDY), ("sampled", SAMPLED)):
        plain = baseline_autoregressive.generate_batch(decoder, PROMPTS, max_new_tokens=NEW, settings=settings)
        found[f"{law}, none"] = [output.token_ids for output in plain]
        for draft in DRAFTS:
            for shape, gamma in (("chain", 3), ("tree", TokenTree.branching([2, 1]))):
                fast = optimized_speculative.generate_batch(
                    decoder,
                    make_draft(draft, decoder, settings),
                    PROMPTS,
                    gamma=gamma,
                    max_new_tokens=NEW,
                    settings=settings,
                )
                found[f"{law}, {draft}, {shape}"] = [output.token_ids for output in fast]
    return found


def disturb(module: Any, args: Any, output: Any) -> Any:
    """Other logits than the model's, as if this process had rounded otherwise, but far more."""
    output.logits = output.logits + torch.randn(output.logits.shape, dtype=output.logits.dtype)
    return output


def one_process(folder: str) -> None:
    """What each of the two processes does; its findings go to standard output."""
    torch.set_num_threads(1)
    rank, _ = world()
    model = load_sharded(folder, torch.float64, CPU)
    decoder = TransformersDecoder(model)
    cache = decoder.new_cache(8)
    decoder.forward(PROMPTS[0][None], cache)
    assert cache.keys is not None
    found: dict[str, Any] = {
        "world": world(),
        "sharded": is_sharded(model),
        "heads cached": cache.keys.shape[2],
        "bytes per token": cache.bytes_per_token,
        "vocab": decoder.vocab_size,
        "broadcast": same_on_all_ranks(torch.full((2, 3), float(rank + 1)).T).tolist(),
        "number": same_number_on_all_ranks(rank + 0.25, CPU),
        "tokens": decode_all(decoder),
    }
    if rank == 1:
        model.register_forward_hook(disturb)
    found["disturbed"] = decode_all(decoder)
    print(json.dumps(found))


@dataclass(frozen=True)
class Ranks:
    """What both processes found."""

    first: dict[str, Any]
    second: dict[str, Any]


@pytest.fixture(scope="module")
def ranks(model_folder: Path) -> Ranks:
    """Two processes with the environment that torchrun gives them; killed after two minutes if they wait for ever."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = os.environ | {
        "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(model_folder)],
            env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors for _, errors in outputs)
    return Ranks(*(json.loads(output.splitlines()[-1]) for output, _ in outputs))


@pytest.fixture(scope="module")
def alone(model_folder: Path) -> TransformersDecoder:
    """The whole model in this process."""
    return TransformersDecoder(AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float64).eval())


def test_each_process_holds_its_own_heads(ranks: Ranks) -> None:
    for rank, found in enumerate((ranks.first, ranks.second)):
        assert found["world"] == [rank, 2]
        assert found["sharded"]
        assert found["vocab"] == 40
        assert found["heads cached"] == 1  # of 2
        assert found["bytes per token"] == 3 * 1 * 2 * 8 * 8


def test_greedy_tokens_are_those_of_one_process(ranks: Ranks, alone: TransformersDecoder) -> None:
    expected = decode_all(alone)
    for name, tokens in ranks.first["tokens"].items():
        if name.startswith("greedy"):
            assert tokens == expected[name] == expected["greedy, none"], name


def test_both_processes_emit_the_same_tokens(ranks: Ranks) -> None:
    assert ranks.first["tokens"] == ranks.second["tokens"]
    assert ranks.first["tokens"]["sampled, none"] != ranks.first["tokens"]["greedy, none"]


def test_logits_that_differ_between_processes_do_not_part_them(ranks: Ranks) -> None:
    """The second process adds noise to its logits; the first one's count in both."""
    assert ranks.first["disturbed"] == ranks.second["disturbed"] == ranks.first["tokens"]


def test_the_first_process_s_values_count_everywhere(ranks: Ranks) -> None:
    for found in (ranks.first, ranks.second):
        assert found["broadcast"] == [[1.0, 1.0]] * 3
        assert found["number"] == 0.25


class TestWithoutAGroup:
    def test_values_stay_as_they_are(self) -> None:
        tensor = torch.arange(3)
        assert same_on_all_ranks(tensor) is tensor
        assert same_number_on_all_ranks(0.1, CPU) == 0.1

    def test_a_whole_model_is_not_sharded(self, model: LlamaForCausalLM) -> None:
        assert not is_sharded(model)

    def test_there_is_one_process(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("RANK", raising=False)
        monkeypatch.delenv("WORLD_SIZE", raising=False)
        assert world() == (0, 1)
        with pytest.raises(ValueError, match="start them with torchrun --nproc-per-node N"):
            load_sharded("anything", torch.float32, CPU)

    @pytest.mark.parametrize(("rank", "size"), [("0", None), (None, "2"), ("x", "2")])
    def test_half_an_environment_is_refused(
        self, monkeypatch: pytest.MonkeyPatch, rank: str | None, size: str | None
    ) -> None:
        for name, value in (("RANK", rank), ("WORLD_SIZE", size)):
            monkeypatch.delenv(name, raising=False)
            if value is not None:
                monkeypatch.setenv(name, value)
        with pytest.raises(ValueError, match=f"RANK={rank} and WORLD_SIZE={size} .* must both be numbers"):
            world()

    def test_a_rank_outside_the_world_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RANK", "2")
        monkeypatch.setenv("WORLD_SIZE", "2")
        with pytest.raises(ValueError, match="RANK must be in 0 to WORLD_SIZE - 1, got RANK=2"):
            world()

    def test_another_device_than_the_machine_s_own_is_refused(self) -> None:
        here, other = ("cuda", "cpu") if torch.cuda.is_available() else ("cpu", "cuda")
        with pytest.raises(ValueError, match=f"got --device {other}; use --device {here}"):
            start(torch.device(other))
        with pytest.raises(ValueError, match=f"got --device {here}:0; use --device {here}"):
            start(torch.device(here, 0))


class TestWhatCanBeSplit:
    def test_a_model_without_a_plan_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"no tensor-parallel plan for 'some/gpt' \(model type gpt2\)"):
            check_shardable("some/gpt", GPT2Config(), 2)

    def test_heads_that_do_not_divide_are_refused(self) -> None:
        config = LlamaConfig(hidden_size=96, num_attention_heads=12, num_key_value_heads=6)
        for size in (1, 2, 3, 6):
            check_shardable("a llama", config, size)
        for size in (4, 5, 12):
            with pytest.raises(ValueError, match=rf"12 heads and 6 key-value heads, which {size} .* \[1, 2, 3, 6\]"):
                check_shardable("a llama", config, size)

    def test_attention_that_stays_whole_sets_no_limit(self) -> None:
        check_shardable("a latent one", DeepseekV3Config(num_attention_heads=4), 3)

    def test_a_missing_model_is_refused(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("RANK", "0")
        monkeypatch.setenv("WORLD_SIZE", "2")
        with pytest.raises(ValueError, match="cannot load the model"):
            load_sharded(str(tmp_path), torch.float32, CPU)


if __name__ == "__main__":
    one_process(sys.argv[1])
