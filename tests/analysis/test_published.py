import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.published import (
    BETWEEN_PROMPTS,
    predict_published,
    predict_row,
    prompts_of,
    score_published,
    tokens_over_time,
    tokens_per_round,
)
from analysis.published.costs import NotGivenError, draft_cost, eager_table, find_device, find_shape, verify_cost
from analysis.published.other_sources import missed_by_others
from analysis.published.rows import COLUMNS, PublishedRow, Range, TreeShape, read_published, tree_shape
from sim.acceptance import IidAcceptance
from sim.engine import simulate_speedup
from sim.latency import ConstantLatency, TableLatency
from sim.records import read_rounds
from sim.scenario import Scenario
from sim.theory import expected_tokens

ROOT = Path(__file__).parents[2]
COMMITTED = ROOT / "paper_figs" / "data" / "published_speedups.csv"
CHAIN = {"source": "paper", "gamma": "4", "tau": "3.00", "c": "0.100", "speedup_measured": "2.00"}


def write(path: Path, *rows: dict[str, str]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="")
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture
def one(tmp_path: Path):
    """Reads a table of a single row: CHAIN with changes."""
    return lambda **changes: read_published(write(tmp_path / "one.csv", CHAIN | changes))[0]


@pytest.fixture(scope="module")
def committed() -> list[PublishedRow]:
    return read_published(COMMITTED)


@pytest.fixture(scope="module")
def predictions(committed: list[PublishedRow]) -> pd.DataFrame:
    return predict_published(committed, reference=committed)


@pytest.fixture(scope="module")
def scores(predictions: pd.DataFrame) -> pd.DataFrame:
    table = score_published(predictions)
    return table.set_index(table["source"].str.extract(r"(Leviathan|MagicDec|SpecInfer|Fu|Jella|shreyansh26|Chen)")[0])


def test_errors_by_source_stay_within_their_targets(scores: pd.DataFrame) -> None:
    assert scores.loc["MagicDec", "mape"] < 3
    assert scores.loc["SpecInfer", "mape"] < 8
    assert scores.loc["Leviathan", "mape"] < scores.loc["Leviathan", "source_mape"] < 17.7
    assert scores.loc[["MagicDec", "SpecInfer", "Leviathan", "Fu"], "predicted"].tolist() == [45, 26, 12, 6]
    compared = scores[scores["formula_rows"] > 0]
    assert (compared["same_rows_mape"] <= compared["formula_mape"]).all()


def test_the_plain_formula_has_the_errors_known_of_it(scores: pd.DataFrame) -> None:
    assert scores.loc["Leviathan", "formula_mape"] == pytest.approx(17.7, abs=0.05)
    assert scores.loc["MagicDec", "formula_mape"] == pytest.approx(9.8, abs=0.05)
    assert scores.loc["SpecInfer", "formula_mape"] == pytest.approx(10.1, abs=0.05)


def test_no_measured_speedup_enters_a_prediction(committed: list[PublishedRow], predictions: pd.DataFrame) -> None:
    rng = np.random.default_rng(0)
    other = [
        replace(
            row,
            numbers={**row.numbers, "speedup_measured": Range(*[rng.uniform(0.5, 4)] * 3)},
            text={**row.text, "sd_latency_ms_per_token": f"{rng.uniform(1, 40)}"},
        )
        for row in committed
    ]
    kept = ["predicted", "lo_inputs", "hi_inputs", "formula", "basis", "reason"]
    pd.testing.assert_frame_equal(predict_published(other)[kept], predictions[kept])
    assert not np.allclose(predict_published(other)["measured"], predictions["measured"])


def test_a_sources_own_measurements_do_not_widen_its_intervals(committed: list[PublishedRow]) -> None:
    name = "arXiv:2408.11049 MagicDec ICLR 2025"
    slower = [
        replace(row, numbers={**row.numbers, "speedup_measured": Range(0.1, 0.1, 0.1)})
        if row.text["source"] == name
        else row
        for row in committed
    ]
    kept = ["source", "lo", "hi"]
    before, after = (predict_published(committed, reference=rows)[kept].dropna() for rows in (committed, slower))
    own = before["source"] == name
    pd.testing.assert_frame_equal(before[own], after[own])
    assert (after[~own]["lo"] < before[~own]["lo"]).all()


def test_most_intervals_hold_what_a_source_not_seen_before_measured(scores: pd.DataFrame) -> None:
    held = (scores["coverage"] * scores["predicted"]).sum() / scores["predicted"].sum()
    assert 0.90 < held < 0.99
    assert held > 2 * (scores["coverage_by_inputs"] * scores["predicted"]).sum() / scores["predicted"].sum()


class TestWhatOthersMissed:
    """Sources of 400 rows each, whose measured log speedups are normal about a prediction of known inputs."""

    def table(self, biases: dict[str, float], spread: float, seed: int = 0) -> pd.DataFrame:
        rng = np.random.default_rng(seed)
        parts = [
            pd.DataFrame({"source": name, "measured": 2 * np.exp(bias + spread * rng.standard_normal(400))})
            for name, bias in biases.items()
        ]
        return pd.concat(parts).assign(half_printed=0.0, lo_inputs=1.9, hi_inputs=2.1)

    def test_intervals_of_a_new_source_hold_what_they_should(self) -> None:
        table = self.table({"a": 0.0, "b": 0.0, "c": 0.0, "new": 0.0}, spread=0.2)
        found = missed_by_others(table, "new")
        new = table.loc[table["source"] == "new", "measured"]
        # 400 rows at 95% have a standard error of 1.1%, and the quantiles of 1,200 others one of 0.9%
        assert new.between(1.9 * found.lower, 2.1 * found.upper).mean() == pytest.approx(0.95, abs=4 * 0.0143)
        assert new.between(1.9, 2.1).mean() < 0.3

    def test_a_source_counts_once_however_many_rows_it_has(self) -> None:
        table = self.table({"a": -0.5, "b": 0.0, "c": 0.0}, spread=0.01)
        few = pd.concat([table[table["source"] != "a"], table[table["source"] == "a"].head(3)])
        # a third of the weight lies at -0.5, with 400 rows as with 3
        for rows in (table, few):
            assert missed_by_others(rows, "new").lower == pytest.approx(2 * np.exp(-0.5) / 1.9, rel=0.04)

    def test_it_never_narrows_and_says_nothing_from_two_sources(self) -> None:
        table = self.table({"a": 0.0, "b": 0.0, "c": 0.0}, spread=0.001)
        assert missed_by_others(table, "new") == (1.0, 1.0)
        assert missed_by_others(self.table({"a": -0.5, "b": -0.5, "new": 0.0}, spread=0.1), "new") == (1.0, 1.0)


def test_every_row_is_predicted_or_says_why_not(predictions: pd.DataFrame) -> None:
    missing = predictions["predicted"].isna()
    assert (predictions["reason"].notna() == missing).all()
    assert predictions.loc[~missing].eval("lo <= lo_inputs <= predicted <= hi_inputs <= hi").all()
    assert (
        predictions.loc[predictions["source"].str.contains("Chen et al."), "reason"].str.startswith("alpha, tau").all()
    )


@pytest.mark.parametrize("number", [2, 12, 20, 45, 62, 82])
def test_the_closed_form_is_what_the_simulator_gives(committed: list[PublishedRow], number: int) -> None:
    row = committed[number - 1]
    found, gamma = predict_row(row), row.gamma
    assert gamma
    once = found.draft.share.value / gamma
    seconds = {1: 1.0, gamma + 1: found.verify.share.value}
    verify = [{"batch": 1, "new_tokens": n, "context": 0, "seconds": s} for n, s in seconds.items()]
    alpha = row.given("alpha")
    if alpha:
        acceptance, requests, rounds = prompts_of(alpha.value, BETWEEN_PROMPTS), 40_000, 5
    else:
        low, high = 0.0, 1.0  # the alpha that yields tau
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if expected_tokens(middle, gamma) < found.tokens.value else (low, middle)
        acceptance, requests, rounds = IidAcceptance(low), 1, 200_000
    scenario = Scenario(
        TableLatency(verify), ConstantLatency(once), acceptance, gamma, requests, rounds=rounds, request_devices="own"
    )
    result = simulate_speedup(scenario, seed=number)
    half = (result["speedup_ci"][1] - result["speedup_ci"][0]) / 2
    # 4.2 standard errors: a false alarm in 40 000 for each of the rows
    assert abs(result["speedup"] - found.speedup.value) < 4.2 / 1.96 * half
    assert half < 0.01 * result["speedup"]


def test_the_spread_over_prompts_is_that_of_our_own_run() -> None:
    rounds = read_rounds(ROOT / "docs" / "lab" / "rounds.parquet")
    shares = []
    for _, of_draft in rounds[rounds["draft"] != "none"].groupby("draft"):
        tested = of_draft[["request_id", "accept_probability"]].explode("accept_probability").dropna()
        prompts = tested.astype({"accept_probability": float}).groupby("request_id")["accept_probability"]
        table = prompts.agg(["mean", "var", "count"])
        table = table[table["count"] >= 5]
        between = (
            table["mean"].var() - (table["var"] / table["count"]).mean()
        )  # what few tokens a prompt add is taken off
        shares.append(between / (table["mean"].mean() * (1 - table["mean"].mean())))
    assert len(shares) == 2
    assert np.mean(shares) == pytest.approx(BETWEEN_PROMPTS, abs=0.001)


@pytest.mark.parametrize("gamma", [1, 5, 9])
@pytest.mark.parametrize("alpha", [0.1, 0.6, 0.95])
def test_tokens_over_time_are_the_harmonic_mean_over_prompts(alpha: float, gamma: int) -> None:
    drawn = np.random.default_rng(gamma).beta(alpha * 9, (1 - alpha) * 9, 400_000)
    inverse = 1 / expected_tokens(drawn, gamma)
    error = inverse.std() / np.sqrt(len(inverse))
    # 5 standard errors: a false alarm in a million for each case
    assert abs(1 / tokens_over_time(alpha, 0.1, gamma) - inverse.mean()) < 5 * error
    iid = float(expected_tokens(alpha, gamma))
    assert tokens_over_time(alpha, 0.1, gamma) < iid
    over_prompts = prompts_of(alpha, 0.1).expected_block_efficiency(gamma)
    assert over_prompts > 1.005 * iid if gamma > 1 else over_prompts == pytest.approx(iid)


def test_prompts_that_never_or_always_accept_are_all_alike() -> None:
    assert tokens_over_time(0.0, 0.1, 4) == 1
    assert tokens_over_time(1.0, 0.1, 4) == prompts_of(1.0, 0.1).expected_block_efficiency(4) == 5


def test_tokens_per_round_takes_what_is_measured_first(one) -> None:
    assert tokens_per_round(one(alpha="0.9", alpha_iid_from_tau="0.5")).value == 3
    assert tokens_per_round(one(tau="", alpha_iid_from_tau="0.5")).value == pytest.approx(expected_tokens(0.5, 4))
    counted = one(tau="", alpha="0.5", alpha_kind="accepted/proposed")
    assert tokens_per_round(counted).value == 3
    spread = tokens_per_round(one(tau="", alpha="0.50"))
    assert spread.lo < expected_tokens(0.495, 4) < expected_tokens(0.5, 4) < spread.value < spread.hi


def test_latencies_go_before_the_cost_ratio(one) -> None:
    assert draft_cost(one()).share.value == pytest.approx(0.4)
    row = one(draft_latency_ms="3.0", target_latency_ms="10.0", verify_latency_ms="12.0")
    assert draft_cost(row).share.value == pytest.approx(1.2)
    assert verify_cost(row).share.value == pytest.approx(1.2)
    assert predict_row(row).speedup.value == pytest.approx(3 / 2.4)


def test_an_interval_is_as_wide_as_the_last_digits(one) -> None:
    fine = predict_row(one()).speedup
    assert fine.lo == pytest.approx(2.995 / (4 * 0.1005 + 1))
    assert fine.hi == pytest.approx(3.005 / (4 * 0.0995 + 1))
    coarse = predict_row(one(tau="3.0", c="0.1")).speedup
    assert coarse.lo < fine.lo < fine.value == coarse.value < fine.hi < coarse.hi
    exact = predict_row(one(c="0")).draft.share
    assert exact == Range(0, 0, 0)


def test_a_verification_is_priced_by_published_forwards_of_the_same_model_on_the_same_device(one) -> None:
    known = {
        "target": "Llama2-13B",
        "hardware": "1x L40",
        "target_latency_ms": "50.0",
        "note": "TREE 5x8",
        "gamma": "8",
    }
    table = eager_table("llama-2-13b", "l40")
    assert table
    more = float(table.forward_seconds(1, 41, 0) - table.forward_seconds(1, 1, 0))
    cost = verify_cost(one(**known))
    assert (cost.share.value, cost.basis) == (pytest.approx(1 + more / 0.05), "verification by published forwards")
    assert 1.1 < cost.share.value < 1.25
    other = verify_cost(one(**known | {"hardware": "1x H100"}))
    assert (other.basis, other.share.value) == ("verification by roofline", pytest.approx(1.01, abs=0.01))
    assert verify_cost(one(**known | {"hardware": "1x L40, vLLM"})).basis == "verification by roofline"
    assert verify_cost(one(**known | {"target": "GPT-5"})).share == Range(1, 1, 1)
    assert verify_cost(one(**known | {"note": "TREE of some size"})).share == Range(1, 1, 1)


def test_published_forwards_never_fall_with_more_tokens() -> None:
    table = eager_table("llama-2-7b", "a100")
    assert table
    assert (np.diff(table.grid.ravel()) >= 0).all()


def test_eager_drafts_cost_the_hosts_time_per_layer(one) -> None:
    eager = {"target": "Llama-3.1-8B-Instruct", "draft": "Llama-3.2-1B-Instruct", "hardware": "1x A100-40GB, HF eager"}
    row = one(**eager, c="", target_latency_ms="28.9", gamma="1", tau="1.9")
    cost = draft_cost(row).share
    assert cost.value == pytest.approx(16 / 32, abs=1e-9)  # layers, since the host sets the pace of both
    assert 0.3 < cost.lo < cost.value
    with pytest.raises(NotGivenError, match="target_latency_ms"):
        draft_cost(one(**eager, c=""))


def test_a_head_costs_its_share_of_the_targets_forward(one) -> None:
    head = {
        "target": "Llama-3.1-8B",
        "draft": "EAGLE-3 head (chain)",
        "hardware": "1x H100, vLLM",
        "c": "",
        "gamma": "1",
    }
    cost = draft_cost(one(**head, tau="1.5")).share
    assert 0.04 < cost.lo < cost.value < 0.06 < cost.hi  # 0.066 to 0.072 by those who measured it
    for change, says in (
        ({"batch": "8"}, "at batch 8"),
        ({"draft": "Llama-3.2-1B"}, "kernel by kernel"),
        ({"draft": "a secret one"}, "shape of a secret one"),
        ({"hardware": "1x H100"}, "names no engine"),
        ({"hardware": "laptop"}, "no known model on a known device"),
    ):
        with pytest.raises(NotGivenError, match=says):
            draft_cost(one(**head | change, tau="1.5"))


def test_a_parallel_draft_costs_one_pass(one) -> None:
    assert draft_cost(one(note="drafts all tokens in ONE pass")).share.value == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"tau": ""}, "alpha, tau: neither"),
        ({"gamma": ""}, "gamma: neither"),
        ({"tau": "", "alpha": "0.5", "note": "TREE size=9 depth=3"}, "tau: what a tree yields"),
    ],
)
def test_a_row_without_an_input_is_not_predicted(one, changes: dict[str, str], says: str) -> None:
    table = predict_published([one(**changes)])
    assert np.isnan(table.loc[0, "predicted"])
    assert table.loc[0, "reason"].startswith(says)
    assert score_published(table).loc[0, "predicted"] == 0


def test_a_row_without_a_measurement_is_predicted_but_not_scored(one) -> None:
    table = predict_published([one(speedup_measured="")])
    assert table.loc[0, "predicted"] == pytest.approx(3 / 1.4)
    assert table.loc[0, "covered"] is None
    assert table.loc[0, "covered_by_inputs"] is None
    assert score_published(table).loc[0, ["rows", "predicted"]].tolist() == [1, 0]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"alpha": "1.7"}, r"row 2, column alpha: must be in \[0, 1\], got 1.7"),
        ({"gamma": "four"}, "row 2, column gamma: must be a number or blank, got 'four'"),
        ({"gamma": "2.5"}, "row 2, column gamma: must be a whole number"),
        ({"gamma": "0"}, "row 2, column gamma: must be finite and >= 1"),
        ({"c": "-0.1"}, "row 2, column c: must be finite and >= 0"),
        ({"c": "nan"}, "row 2, column c: must be finite and >= 0, got nan"),
        ({"target_latency_ms": "0"}, "row 2, column target_latency_ms: must be finite and > 0"),
        ({"speedup_measured": "inf"}, "row 2, column speedup_measured: must be finite and > 0"),
        ({"tau": "5.6"}, "row 2, column tau: must be at most 5"),
        ({"source": " "}, "row 2, column source: must name"),
    ],
)
def test_a_broken_cell_is_named_by_row_and_column(tmp_path: Path, changes: dict[str, str], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        read_published(write(tmp_path / "two.csv", CHAIN, CHAIN | changes))


def test_a_file_that_is_no_table_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file.csv"
    for text, says in (
        ("", "lacks the columns"),
        ("source,gamma\na,3\n", "lacks the columns"),
        (",".join(COLUMNS) + "\n", "has no rows"),
        (",".join(COLUMNS) + "\n" + "paper" + "," * len(COLUMNS) + "\n", "row 1: must have 18 cells"),
        ("\x00", "lacks the columns|not a readable"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=says):
            read_published(path)
    path.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ValueError, match="not a readable CSV"):
        read_published(path)


@pytest.mark.parametrize(
    ("note", "shape"),
    [
        ("TREE: SpecInfer 5x8 = 5 independent sequences of length 8", TreeShape(40, 8)),
        ("TREE size=16 depth=3; measured draft total 128.1 ms", TreeShape(16, 3)),
        ("TREE: Sequoia (128, 10)", TreeShape(128, 10)),
        ("tree of 64 nodes, depth 7", TreeShape(64, 7)),
        ("A_tree", TreeShape(None, None)),
        ("a chain of size 5", None),
    ],
)
def test_a_note_tells_the_shape_of_a_tree(note: str, shape: TreeShape | None) -> None:
    assert tree_shape(note) == shape


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("8xA100 TP8", "a100"),
        ("1x A100-40GB, HF eager bf16", "a100-40gb"),
        ("1x A100 80GB, fp16", "a100"),
        ("2xL4", "l4"),
        ("1x L40", "l40"),
        ("16x TPU v4", "tpu-v4"),
        ("1x H100 (Modal), vLLM 0.23/0.24", "h100"),
        ("1x RTX 3090, fp16", None),
        ("not stated here", None),
    ],
)
def test_devices_are_found_in_text(text: str, name: str | None) -> None:
    device = find_device(text)
    assert (device and device.name) == name


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Llama2-7B", "llama-2-7b"),
        ("LLaMA-2-7B-32K", "llama-2-7b"),
        ("Llama3.1-8B", "llama-3.1-8b"),
        ("DeepSeek-R1-Distill-Llama-8B", "llama-3.1-8b"),
        ("T5-XXL 11B", "t5-xxl"),
        ("Vicuna-13B-v1.3", "llama-2-13b"),
        ("Qwen2.5-7B-Instruct", "qwen2.5-7b"),
        ("PaLM-2-S", None),
        ("", None),
    ],
)
def test_models_are_found_in_text(text: str, name: str | None) -> None:
    shape = find_shape(text)
    assert (shape and shape.name) == name


def test_scores_are_those_of_their_definitions(tmp_path: Path) -> None:
    rows = [CHAIN | {"c": "0.000", "tau": "2.00", "speedup_measured": speedup} for speedup in ("1.60", "2.50", "2.00")]
    rows.append(CHAIN | {"c": "", "source": "other"})
    table = score_published(predict_published(read_published(write(tmp_path / "rows.csv", *rows))))
    first, other = table.to_dict(orient="records")
    assert first["mape"] == pytest.approx((25 + 20 + 0) / 3)
    assert first["bias"] == pytest.approx((25 - 20 + 0) / 3)
    assert first["max_error"] == pytest.approx(25)
    assert first["coverage"] == pytest.approx(1 / 3)
    assert first["formula_mape"] == pytest.approx(first["mape"])
    assert (other["rows"], other["predicted"], np.isnan(other["mape"])) == (1, 0, True)


def test_the_citations_name_every_source(committed: list[PublishedRow]) -> None:
    cited = (COMMITTED.parent / "README.md").read_text()
    for source in {row.text["source"] for row in committed}:
        words = source.removeprefix("arXiv:").replace("(", " ").split()
        assert words[0] in cited, source


def test_the_printed_results_are_the_current_ones(scores: pd.DataFrame) -> None:
    text = (COMMITTED.parent / "README.md").read_text()
    lines = text.splitlines()
    weights = scores["predicted"] / scores["predicted"].sum()
    by_all, by_inputs = ((scores[name].fillna(0) * weights).sum() for name in ("coverage", "coverage_by_inputs"))
    held = f"Of all {scores['predicted'].sum()} measured speedups the intervals hold {by_all:.0%}"
    assert f"{held}, those from the inputs alone {by_inputs:.0%}." in text
    for name, row in scores[scores["predicted"] > 0].iterrows():
        line = next(line for line in lines if line.startswith(f"| {name} ") and line.endswith("% |"))
        cells = [cell.strip() for cell in line.strip("| ").split("|")]
        assert cells[1:4] == [str(row["rows"]), str(row["predicted"]), f"{row['mape']:.1f}"]
        assert cells[4] == f"{row['bias']:+.1f}".replace("-", "−")
        assert cells[7:] == [f"{row['coverage_by_inputs']:.0%}", f"{row['coverage']:.0%}"]
