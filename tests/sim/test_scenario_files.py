"""Scenario files: what each key builds, and the one error that names a wrong one."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sim.acceptance import (
    AcceptanceModel,
    BetaAcceptance,
    IidAcceptance,
    MarkovAcceptance,
    PartialProposals,
    PerPositionAcceptance,
    TraceAcceptance,
)
from sim.confidence import ConfidenceAcceptance
from sim.controllers import Bandit, ConfidenceThreshold, FixedGamma, Goodput, Heuristic, OffAboveLoad, Oracle
from sim.controllers import RejectionThreshold as Rejection
from sim.engine import simulate_speedup
from sim.hardware import Link
from sim.latency import AffineLatency, ConstantLatency
from sim.scenario import Scenario
from sim.scenario_files import run_scenario, serving_from_json, single_from_json, warm_up_from_json
from sim.scenario_parts import acceptance_from_json, parse_yaml, read_scenario
from sim.serving import Objective, Prefill, serve
from sim.serving.memory import kv_tokens_from_json
from sim.trees import TokenTree, expected_tokens

TARGET: dict[str, Any] = {"kind": "affine", "fixed_seconds": 0.02, "seconds_per_token": 1e-4}
DRAFT: dict[str, Any] = {"kind": "constant", "seconds": 0.002}
SERVING: dict[str, Any] = {
    "requests": 40,
    "arrivals": {"kind": "poisson", "rate": 20},
    "lengths": {"prompt": {"kind": "uniform", "low": 5, "high": 50}, "output": {"kind": "constant", "tokens": 20}},
    "latency": {"target": TARGET, "draft": DRAFT, "overhead_seconds": 0.001},
    "acceptance": {"kind": "iid", "alpha": 0.7},
    "policy": {"kind": "fixed", "gamma": 3},
}
SINGLE: dict[str, Any] = {
    "kind": "single",
    "latency": {"target": TARGET, "draft": DRAFT},
    "acceptance": {"kind": "iid", "alpha": 0.7},
    "policy": {"kind": "fixed", "gamma": 3},
    "max_new_tokens": 60,
    "requests": 3,
}


def without(mapping: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: entry for name, entry in mapping.items() if name != key}


class TestYaml:
    def test_numbers_are_numbers_as_in_yaml_1_2(self) -> None:
        assert parse_yaml("[1e-3, 2E+4, .5e1, 1.0e-3, 7, 1e]", "here") == [1e-3, 2e4, 5.0, 1e-3, 7, "1e"]

    def test_a_change_to_one_place_changes_no_other_that_shares_its_anchor(self) -> None:
        value = parse_yaml("target: &one {axis: [1, {a: 2}]}\ndraft: *one\n", "here")
        assert value["target"] == value["draft"]
        value["target"]["axis"][1]["a"] = 3
        assert value["draft"] == {"axis": [1, {"a": 2}]}

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("a: [1", "is not YAML: .*line 1"),
            ("a: 1\nb: {c: 1, c: 2}", "the key 'c' is given twice, again in line 2"),
            ("- 1\n- 2", "must hold a mapping of keys, got list"),
            ("", "must hold a mapping of keys, got NoneType"),
            ("a: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ],
    )
    def test_a_file_that_is_no_scenario_is_refused_in_one_line(self, tmp_path: Path, text: str, says: str) -> None:
        path = tmp_path / "scenario.yaml"
        path.write_text(text)
        with pytest.raises(ValueError, match=rf"scenario\.yaml .*{says}") as raised:
            read_scenario(path)
        assert "\n" not in str(raised.value)

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="nowhere is not a readable scenario"):
            read_scenario(tmp_path / "nowhere")


ACCEPTANCES: dict[str, tuple[dict[str, Any], AcceptanceModel]] = {
    "iid": ({"alpha": 0.6}, IidAcceptance(0.6)),
    "per_position": ({"conditional": [0.8, 0.6]}, PerPositionAcceptance((0.8, 0.6))),
    "beta": ({"a": 7, "b": 3}, BetaAcceptance(7, 3)),
    "markov": ({"after_accept": 0.8, "after_reject": 0.4}, MarkovAcceptance(0.8, 0.4)),
    "confidence": ({"a": 4, "b": 1, "calibration": 1.5, "tail": 50}, ConfidenceAcceptance(4, 1, 1.5, 50)),
    "partial": (
        {"inner": {"kind": "per_position", "conditional": [0.9]}, "available": [0.2, 0.3, 0.5]},
        PartialProposals(PerPositionAcceptance((0.9,)), (0.2, 0.3, 0.5)),
    ),
    "trace": ({"lengths": [[1, 3], [2]], "available": [[0, 4], [9]]}, TraceAcceptance(((1, 3), (2,)), ((0, 4), (9,)))),
}


@pytest.mark.parametrize("kind", ACCEPTANCES)
def test_every_kind_of_acceptance_builds_its_model(kind: str) -> None:
    given, model = ACCEPTANCES[kind]
    assert acceptance_from_json({"kind": kind} | given) == model


def test_acceptance_of_a_tree_is_by_rank() -> None:
    tree = TokenTree.parse("3,2")
    model = acceptance_from_json({"kind": "ranks", "acceptance": [0.6, 0.2, 0.1]}, tree)
    assert model.expected_block_efficiency(tree.size) == expected_tokens(tree, [0.6, 0.2, 0.1])


def test_a_recorded_trace_is_found_beside_the_scenario(tmp_path: Path) -> None:
    (tmp_path / "trace.jsonl").write_text('{"prompt_len": 5, "accept_lengths": [1, 4, 2]}\n')
    value = {"kind": "trace", "path": "trace.jsonl"}
    assert acceptance_from_json(value, folder=tmp_path) == TraceAcceptance(((1, 4, 2),))
    with pytest.raises(ValueError, match=r"trace\.jsonl is not a readable trace"):
        acceptance_from_json(value)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (0.7, "acceptance must be a mapping with a kind, got 0.7"),
        ({"alpha": 0.7}, r"acceptance needs a kind, got only \['alpha'\]"),
        ({"kind": "coin"}, "acceptance kind must be iid, per_position, .*, got 'coin'"),
        ({"kind": "iid"}, "acceptance lacks alpha; it takes alpha"),
        ({"kind": "iid", "alpha": 0.7, "beta": 1}, "acceptance does not know beta; it takes alpha"),
        ({"kind": "iid", "alpha": 1.7}, r"acceptance: alpha must be in \[0, 1\], got 1.7"),
        ({"kind": "iid", "alpha": "0.7"}, "alpha of acceptance must be a number, got '0.7'"),
        ({"kind": "iid", "alpha": True}, "alpha of acceptance must be a number, got True"),
        ({"kind": "per_position", "conditional": 0.7}, "conditional of acceptance must be a list, got 0.7"),
        ({"kind": "beta", "a": 0, "b": 1}, "Beta's a must be finite and > 0, got 0"),
        ({"kind": "partial", "available": [1.0]}, "acceptance lacks inner"),
        (
            {"kind": "partial", "inner": {"kind": "markov", "after_accept": 1, "after_reject": 1}, "available": [1]},
            "acceptance: inner must be iid, per-position or beta acceptance, got MarkovAcceptance",
        ),
        ({"kind": "trace", "lengths": [[0]]}, "a round emits at least 1 token, got a trace entry 0"),
        ({"kind": "trace", "path": "x", "available": []}, "acceptance does not know available; it takes path"),
        ({"kind": "ranks", "acceptance": [0.5]}, "goes with a policy of kind 'tree', got 'ranks' for a chain"),
    ],
)
def test_wrong_acceptance_is_named(value: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        acceptance_from_json(value)


# Llama 3.1 8B by its config.json: 32 layers, hidden 4096, 32 heads and 8 KV heads of 128, MLP 14336, vocabulary 128256,
# untied; Llama 3.2 1B: 16 layers, hidden 2048, 32 heads and 8 KV heads of 64, MLP 8192, tied
LLAMA_8B = 2 * 128256 * 4096 + 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336 + 2 * 4096) + 4096
LLAMA_1B = 128256 * 2048 + 16 * (2 * 2048 * 2048 + 2 * 2048 * 512 + 3 * 2048 * 8192 + 2 * 2048) + 2048
H100 = 80 * 2**30
ON_H100: dict[str, Any] = {
    "target": {"kind": "roofline", "architecture": "llama-3.1-8b", "device": "h100"},
    "draft": {"kind": "roofline", "architecture": "llama-3.2-1b", "device": "h100"},
}
PLAIN: dict[str, Any] = {"target": TARGET, "draft": DRAFT}


class TestMemory:
    def test_room_is_memory_less_weights_by_hand(self) -> None:
        room = 0.9 * H100 - 2 * LLAMA_8B
        assert kv_tokens_from_json({}, ON_H100, drafts=False) == (int(room // 131072), 16)
        assert int(room // 131072) == 467291

    def test_the_draft_takes_its_weights_and_cache_where_it_drafts(self) -> None:
        room = 0.9 * H100 - 2 * LLAMA_8B - 2 * LLAMA_1B
        assert kv_tokens_from_json({}, ON_H100, drafts=True) == (int(room // (131072 + 32768)), 16)
        behind_a_link = ON_H100 | {"link": {"bandwidth": 1e9, "latency": 0}}
        none_in_memory = kv_tokens_from_json({}, ON_H100, drafts=False)
        assert kv_tokens_from_json({}, behind_a_link, drafts=True) == none_in_memory
        assert kv_tokens_from_json({"draft": None}, ON_H100, drafts=True) == none_in_memory

    @pytest.mark.parametrize(
        ("value", "tokens"),
        [
            ({"utilisation": 0.5}, (0.5 * H100 - 2 * LLAMA_8B) / 131072),
            ({"gib": 24}, (0.9 * 24 * 2**30 - 2 * LLAMA_8B) / 131072),
            ({"devices": 4}, (0.9 * 4 * H100 - 2 * LLAMA_8B) / 131072),
            ({"devices": 16}, (0.9 * 16 * H100 - 2 * LLAMA_8B) / (2 * 131072)),  # 8 KV heads, each on two devices
            ({"dtype": "fp8"}, (0.9 * H100 - LLAMA_8B) / 131072),
            ({"kv_dtype": "fp8"}, (0.9 * H100 - 2 * LLAMA_8B) / 65536),
            ({"device": "a100-40gb"}, (0.9 * 40 * 2**30 - 2 * LLAMA_8B) / 131072),
        ],
    )
    def test_every_key_counts(self, value: dict[str, Any], tokens: float) -> None:
        assert kv_tokens_from_json(value, ON_H100, drafts=False)[0] == int(tokens)
        named = {"target": "llama-3.1-8b", **({} if "gib" in value else {"device": "h100"}), **value}
        assert kv_tokens_from_json(named, PLAIN, drafts=False)[0] == int(tokens)

    def test_what_a_roofline_says_holds_for_each_model(self) -> None:
        latency = {
            "target": ON_H100["target"] | {"dtype": "fp8", "cache_dtype": "fp8", "tensor_parallel": 2},
            "draft": ON_H100["draft"],
        }
        tokens = (0.9 * 2 * H100 - LLAMA_8B - 2 * LLAMA_1B) / (65536 + 16384)
        assert kv_tokens_from_json({}, latency, drafts=True)[0] == int(tokens)
        own = {"name": "half an h100", "flops": {"bf16": 1e15}, "memory_bandwidth": 3e12, "memory_bytes": H100 / 2}
        latency = {"target": ON_H100["target"] | {"device": own | {"link": None, "source": "none"}}}
        assert kv_tokens_from_json({}, latency, drafts=False)[0] == int((0.45 * H100 - 2 * LLAMA_8B) / 131072)
        assert kv_tokens_from_json({"device": "h100"}, latency, drafts=False)[0] == 467291

    def test_tokens_and_blocks_may_be_given(self) -> None:
        assert kv_tokens_from_json(None, ON_H100, drafts=True) == (None, 16)
        assert kv_tokens_from_json({"kv_tokens": 5000, "block_tokens": 32}, ON_H100, drafts=True) == (5000, 32)

    def test_a_server_that_never_drafts_has_more_room(self) -> None:
        value = SERVING | {"latency": ON_H100, "memory": {}}
        rooms = {
            str(policy): serving_from_json(value | {"policy": policy}, 0).kv_tokens or 0
            for policy in ({"kind": "fixed", "gamma": 3}, {"kind": "fixed", "gamma": 0}, {"kind": "none"}, None)
        }
        drafting, *others = rooms.values()
        assert others == [467291] * 3
        assert drafting < 467291
        tree = {"policy": {"kind": "tree", "tree": "2,1"}, "acceptance": {"kind": "ranks", "acceptance": [0.5, 0.2]}}
        assert serving_from_json(value | tree, 0).kv_tokens == drafting

    @pytest.mark.parametrize(
        ("value", "says"),
        [
            (5, "memory must be a mapping, got 5"),
            ({"gb": 80}, "memory does not know gb; it takes block_tokens, .*, utilisation"),
            ({"utilisation": 1.1}, "0 < utilisation <= 1, got 1 and 1.1"),
            ({"utilisation": "most"}, "utilisation of memory must be a number, got 'most'"),
            ({"kv_tokens": 10.5}, "kv_tokens of memory must be a whole number, got 10.5"),
            ({"kv_tokens": 100, "device": "h100"}, "memory has kv_tokens, so leave out .*: device"),
            ({"device": "h100", "gib": 80}, "target and either device or gib"),
            ({"devices": 0}, "devices >= 1 .*, got 0"),
            ({"devices": 3}, "must divide the 32 heads of llama-3.1-8b"),
            ({"dtype": "bf8"}, "memory dtype must be one of .*, got 'bf8'"),
            ({"kv_dtype": "bf8"}, "memory kv_dtype must be one of .*, got 'bf8'"),
            ({"device": "h1000"}, "no device named 'h1000'"),
            ({"target": "llama-9"}, "got 'llama-9'"),
            ({"gib": 16}, r"memory cannot hold llama-3\.1-8b and llama-3\.2-1b: 17\.3 GiB .* 90% of 1 x 16 GiB"),
        ],
    )
    def test_wrong_memory_is_named(self, value: Any, says: str) -> None:
        with pytest.raises(ValueError, match=says):
            kv_tokens_from_json(value, ON_H100, drafts=True)

    @pytest.mark.parametrize("value", [{}, {"target": "llama-3.1-8b"}, {"device": "h100"}])
    def test_without_a_roofline_memory_must_say_it_all(self, value: Any) -> None:
        with pytest.raises(ValueError, match="memory needs kv_tokens, or target and either device or gib"):
            kv_tokens_from_json(value, PLAIN, drafts=True)


CONFIDENT = {"kind": "confidence", "a": 4, "b": 1}
POLICIES: list[tuple[dict[str, Any], type, dict[str, Any] | None]] = [
    ({"kind": "fixed", "gamma": 2}, FixedGamma, None),
    ({"kind": "heuristic", "initial": 2, "maximum": 6}, Heuristic, None),
    ({"kind": "confidence", "max_gamma": 4, "threshold": 0.5}, ConfidenceThreshold, CONFIDENT),
    ({"kind": "entropy", "max_gamma": 4, "threshold": 0.3}, ConfidenceThreshold, CONFIDENT),
    ({"kind": "rejection", "max_gamma": 4, "threshold": 0.6}, Rejection, CONFIDENT),
    ({"kind": "bandit", "gammas": [0, 2, 4]}, Bandit, None),
    ({"kind": "goodput", "max_gamma": 4}, Goodput, None),
    ({"kind": "oracle", "max_gamma": 4}, Oracle, None),
    ({"kind": "off_above", "max_batch": 4, "inner": {"kind": "goodput", "max_gamma": 4}}, OffAboveLoad, None),
    ({"kind": "tree", "tree": "3,2"}, TokenTree, {"kind": "ranks", "acceptance": [0.6, 0.2, 0.1]}),
]


@pytest.mark.parametrize(("policy", "kind", "acceptance"), POLICIES, ids=[policy["kind"] for policy, *_ in POLICIES])
def test_a_policy_of_every_kind_builds_and_runs(
    policy: dict[str, Any], kind: type, acceptance: dict[str, Any] | None
) -> None:
    changes = {"policy": policy, "acceptance": acceptance or {"kind": "iid", "alpha": 0.7}}
    speculation = serving_from_json(SERVING | changes, 0).speculation
    assert speculation is not None
    assert type(speculation.policy) is kind
    served = run_scenario(SERVING | changes, 0)
    assert served["requests"] == 40
    assert 0 < served["accepted_share"] <= 1
    single = run_scenario(SINGLE | changes, 0)
    assert single["tokens"] == 180
    assert single["speedup_lo"] < single["speedup"] < single["speedup_hi"]


def test_policies_that_weigh_costs_are_told_those_of_the_scenario() -> None:
    given = SERVING | {"policy": {"kind": "goodput", "max_gamma": 5}}
    given |= {"latency": {**SERVING["latency"], "proposal_seconds": 0.0005}}
    speculation = serving_from_json(given, 0).speculation
    assert speculation is not None
    assert isinstance(speculation.policy, Goodput)
    seconds = [0.001 + 0.02 + 8 * (n + 1) * 1e-4 + (0.0005 + 0.002 * n if n else 0) for n in range(6)]
    np.testing.assert_allclose(speculation.policy.costs.seconds(8), seconds, rtol=1e-12)


def test_a_serving_scenario_is_what_its_keys_say() -> None:
    link = {"bandwidth": 5e9, "latency": 1e-5}
    scenario = serving_from_json(
        SERVING
        | {
            "latency": {**SERVING["latency"], "proposal_seconds": 0.0003, "link": link},
            "batch_limit": 8.0,
            "memory": {"kv_tokens": 4096, "block_tokens": 32},
            "prefill": {"mode": "disaggregated", "devices": 2, "link": link, "kv_bytes_per_token": 1000},
            "replicas": 2,
            "route": "least_busy",
            "objective": {"ttft_seconds": 0.5, "tpot_seconds": None},
        },
        seed=3,
    )
    speculation = scenario.speculation
    assert speculation is not None
    assert (scenario.target, speculation.draft) == (AffineLatency(0.02, 1e-4), ConstantLatency(0.002))
    assert (speculation.policy, speculation.acceptance) == (FixedGamma(3), IidAcceptance(0.7))
    assert (speculation.proposal_seconds, speculation.link) == (0.0003, Link(5e9, 1e-5))
    assert (scenario.batch_limit, scenario.kv_tokens, scenario.block_tokens) == (8, 4096, 32)
    assert isinstance(scenario.batch_limit, int)
    assert scenario.prefill == Prefill("disaggregated", devices=2, link=Link(5e9, 1e-5), kv_bytes_per_token=1000)
    assert (scenario.replicas, scenario.route, scenario.overhead_seconds) == (2, "least_busy", 0.001)
    assert scenario.objective == Objective(ttft_seconds=0.5)
    assert len(scenario.workload) == 40
    other = serving_from_json(SERVING, seed=4).workload
    assert (scenario.workload.arrival_seconds != other.arrival_seconds).all()


def test_requests_may_come_from_a_recorded_trace(tmp_path: Path) -> None:
    lines = [f'{{"timestamp": {500 * k}, "input_length": {k + 10}, "output_length": {k + 2}}}' for k in range(6)]
    (tmp_path / "trace.jsonl").write_text("\n".join([*lines[:3], '{"timestamp": 1400}', *lines[3:]]))
    given = {key: entry for key, entry in SERVING.items() if key not in ("arrivals", "lengths", "requests")}
    trace: dict[str, Any] = {"trace": "trace.jsonl", "skip_broken": True, "rate": 4.0}
    workload = serving_from_json(given | {"trace": trace, "requests": 5}, 0, tmp_path).workload
    assert workload.prompt_tokens.tolist() == [10, 11, 12, 13, 14]
    np.testing.assert_allclose(workload.arrival_seconds, 0.25 * np.arange(5))
    with pytest.raises(ValueError, match=r"trace\.jsonl, line 4: output_length '' is missing; 1 of 7 rows are broken"):
        serving_from_json(given | {"trace": "trace.jsonl"}, 0, tmp_path)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"speed": 1}, "a serving scenario does not know speed; it takes acceptance, arrivals"),
        ({"trace": "x"}, "give a trace, or arrivals and lengths, not both"),
        ({"lengths": {"prompt": {}}}, "a serving scenario lacks lengths.output; or give a trace"),
        ({"lengths": {"prompts": {}}}, "lengths does not know prompts; it takes output, prompt"),
        ({"lengths": 5}, "lengths must be a mapping, got 5"),
        ({"arrivals": {"kind": "poisson"}}, "workload arrivals of kind 'poisson' lacks the key 'rate'"),
        ({"requests": "x"}, "workload requests must be a whole number"),
        ({"latency": None}, "latency must be a mapping, got None"),
        ({"latency": {"draft": DRAFT}}, "latency lacks target, such as"),
        ({"latency": {"target": 0.02}}, "latency target must be a mapping with a kind, got 0.02"),
        ({"latency": {"target": {"kind": "linear"}}}, "latency target: latency kind must be .*, got 'linear'"),
        ({"latency": {"target": TARGET, "draft": {"kind": "constant"}}}, "latency draft: .*seconds"),
        ({"latency": {"target": TARGET, "overhead_seconds": "1"}}, "overhead_seconds of latency must be a number"),
        ({"latency": {"target": TARGET, "proposal_seconds": -1}}, "latency: proposal_seconds must be .*, got -1"),
        ({"latency": {"target": TARGET, "baseline_overhead_seconds": 0}}, "does not know baseline_overhead_seconds"),
        ({"latency": {"target": TARGET, "link": 5}}, "latency link must be a mapping, got 5"),
        ({"latency": {"target": TARGET, "link": {"latency": 0}}}, "latency link lacks bandwidth"),
        ({"acceptance": None}, "acceptance must be a mapping with a kind, got None"),
        ({"policy": "fixed"}, "policy must be a mapping with a kind, got 'fixed'"),
        ({"policy": {"kind": "fast"}}, "policy: controller kind must be .*, got 'fast'"),
        ({"policy": {"kind": "fixed", "gamma": -1}}, "policy: gamma must be a whole number >= 0, got -1"),
        ({"policy": {"kind": "fixed", "gama": 1}}, "policy: controller .*'gama'"),
        ({"policy": {"kind": "none", "gamma": 1}}, "policy does not know gamma"),
        ({"policy": {"kind": "goodput"}}, "policy of kind 'goodput' lacks max_gamma"),
        ({"policy": {"kind": "goodput", "max_gamma": 0}}, "policy: the longest draft must be .* >= 1, got 0"),
        ({"policy": {"kind": "oracle", "max_gamma": "x"}}, "max_gamma of policy must be a whole number, got 'x'"),
        ({"policy": {"kind": "tree"}}, "policy of kind 'tree' lacks tree"),
        ({"policy": {"kind": "tree", "tree": "3;2"}}, "policy: .*3;2"),
        ({"policy": {"kind": "tree", "tree": "3,2"}}, "policy of kind 'tree', got 'iid' for the tree"),
        ({"policy": {"kind": "confidence", "max_gamma": 4, "threshold": 0.5}}, "which IidAcceptance does not draw"),
        ({"batch_limit": "x"}, "batch_limit of a serving scenario must be a whole number, got 'x'"),
        ({"batch_limit": 0}, "batch_limit must be a whole number >= 1, got 0"),
        ({"replicas": 1.5}, "replicas of a serving scenario must be a whole number, got 1.5"),
        ({"route": "random"}, "route must be 'round_robin' or 'least_busy', got 'random'"),
        ({"prefill": None}, "prefill must be a mapping, got None"),
        ({"prefill": {"mode": "lazy"}}, "prefill mode must be .*, got 'lazy'"),
        ({"prefill": {"tokens": "x"}}, "tokens of prefill must be a whole number, got 'x'"),
        ({"prefill": {"link": 5}}, "prefill link must be a mapping, got 5"),
        ({"objective": {"ttft": 1}}, "objective does not know ttft; it takes latency_seconds, tpot_seconds"),
        ({"objective": None}, "objective must be a mapping, got None"),
        ({"memory": {"kv_tokens": 32}}, "request .* grows to .* tokens with its draft, but the KV memory holds 32"),
        ({"warm_up": "some"}, "warm_up, unless it is auto, must be a whole number, got 'some'"),
        ({"warm_up": 2.5}, "warm_up, unless it is auto, must be a whole number, got 2.5"),
        ({"warm_up": 40}, "warm-up must leave a request, got 40 of 40"),
    ],
)
def test_a_wrong_serving_scenario_is_one_line_that_names_the_key(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says) as raised:
        run_scenario(SERVING | changes, 0)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"batch_limit": 5}, "a single scenario does not know batch_limit"),
        ({"rounds": 10}, "give exactly one of rounds and max_new_tokens, got rounds=10 and max_new_tokens=60"),
        ({"max_new_tokens": "x"}, "max_new_tokens of a single scenario must be a whole number, got 'x'"),
        ({"requests": 0}, "requests must be a whole number >= 1, got 0"),
        ({"prompt_tokens": -5}, "prompt_tokens must be a whole number >= 0, got -5"),
        ({"prompt_tokens": "x"}, "prompt_tokens must be a whole number, got 'x'"),
        ({"latency": {"target": TARGET, "link": {}}}, "latency does not know link"),
        ({"latency": {"target": TARGET, "baseline_overhead_seconds": -1}}, "baseline_overhead_seconds must be .* -1"),
        ({"kind": "pair"}, "scenario kind must be single, serving, remote_draft, pearl, dsi or edge_cloud, got 'pair'"),
    ],
)
def test_a_wrong_single_scenario_is_one_line_that_names_the_key(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says) as raised:
        run_scenario(SINGLE | changes, 0)
    assert "\n" not in str(raised.value)


def test_a_single_scenario_is_that_of_the_engine() -> None:
    host = {"overhead_seconds": 0.004, "proposal_seconds": 0.001, "baseline_overhead_seconds": 0.002}
    got = run_scenario(SINGLE | {"latency": SINGLE["latency"] | host, "prompt_tokens": 7}, 5)
    scenario = Scenario(
        AffineLatency(0.02, 1e-4), ConstantLatency(0.002), IidAcceptance(0.7), 3, 3, 7, max_new_tokens=60,
        overhead_seconds=0.004, proposal_seconds=0.001, request_devices="own",
    )  # fmt: skip
    expected = simulate_speedup(scenario, 5, baseline_overhead_seconds=0.002)
    assert got["speedup"] == expected["speedup"]
    assert [got["speedup_lo"], got["speedup_hi"]] == expected["speedup_ci"]
    assert got == run_scenario(SINGLE | {"latency": SINGLE["latency"] | host, "prompt_tokens": 7}, 5)
    assert "rounds_per_second" not in got


@pytest.mark.parametrize("policy", [None, {"kind": "none"}, {"kind": "fixed", "gamma": 0}])
def test_without_a_policy_nothing_is_drafted_and_nothing_gained(policy: dict[str, Any] | None) -> None:
    single = run_scenario(SINGLE | {"policy": policy}, 0)
    assert (single["speedup"], single["block_efficiency"], single["rounds"]) == (1, 1, 180)
    served = run_scenario(SERVING | {"policy": policy}, 0)
    np.testing.assert_equal(served, run_scenario(without(without(SERVING, "policy"), "acceptance"), 0))


def test_a_lookup_has_no_draft_forwards() -> None:
    lookup = SINGLE | {"latency": {"target": TARGET, "draft": None, "proposal_seconds": 0.01}}
    scenario, baseline_overhead = single_from_json(lookup)
    assert (scenario.draft, scenario.proposal_seconds, baseline_overhead) == (None, 0.01, None)
    served = serving_from_json(SERVING | {"latency": lookup["latency"]}, 0)
    assert serve(served, 0).step_table()["draft_seconds"].max() == 0.01


@pytest.mark.parametrize(("given", "expected"), [({}, "auto"), ({"warm_up": "auto"}, "auto"), ({"warm_up": 7}, 7)])
def test_the_warm_up_is_found_or_given(given: dict[str, Any], expected: Any) -> None:
    assert warm_up_from_json(given) == expected
    measured = run_scenario(SERVING | given, 0)
    assert measured["warm_up_requests"] == (7 if expected == 7 else 0)
    assert measured["requests"] == 40 - measured["warm_up_requests"]


TOPOLOGY: dict[str, Any] = {"target": TARGET, "draft": DRAFT, "acceptance": {"kind": "iid", "alpha": 0.7}, "gamma": 3}
LINK = {"bandwidth": 1e9, "latency": 1e-3}
TOPOLOGIES: list[dict[str, Any]] = [
    TOPOLOGY | {"kind": "remote_draft", "link": LINK, "max_new_tokens": 40},
    TOPOLOGY | {"kind": "pearl", "max_new_tokens": 40},
    without(TOPOLOGY, "gamma") | {"kind": "dsi", "target_servers": 2, "lookahead": 3, "max_new_tokens": 40},
    TOPOLOGY | {"kind": "edge_cloud", "batch_limit": 4, "clients": [{"count": 3, "link": LINK}], "max_new_tokens": 40},
]


@pytest.mark.parametrize("scenario", TOPOLOGIES, ids=[one["kind"] for one in TOPOLOGIES])
def test_topologies_run_by_their_kind(scenario: dict[str, Any]) -> None:
    measures = run_scenario(scenario, 0)
    assert measures == run_scenario(scenario, 0)
    assert measures["seconds"] > 0
    assert measures["speedup"] > 0
