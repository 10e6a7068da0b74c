import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.records import (
    REQUIRED,
    SCHEMA_VERSION,
    RunMetadata,
    check_rounds,
    make_rounds,
    read_metadata,
    read_rounds,
    summarise,
    write_atomically,
    write_json,
    write_metadata,
    write_rounds,
)
from sim.tree_search import tree_acceptance


def three_rounds(**changes: Any) -> dict[str, Any]:
    """A full round, one with a rejection, one cut by a stop token; times that no decimal holds exactly."""
    columns: dict[str, Any] = {
        "request_id": ["0", "0", "1"],
        "round_index": [0, 1, 0],
        "batch": 1,
        "context": [10, 13, 7],
        "gamma": 2,
        "drafted": [2, 2, 1],
        "accepted": [2, 0, 1],
        "emitted": [3, 1, 1],
        "cut": [False, False, True],
        "start_seconds": [0.0, 1 / 3, 1e-9 / 7],
        "draft_seconds": [0.1 + 0.2, math.pi * 1e-7, 0.0],
        "verify_seconds": [1 / 7, 2 / 7, 3 / 7],
        "other_seconds": 1e-6 / 3,
    }
    return columns | changes


CHANCES = [[1 / 3, 1.0], [0.0, 2 / 3], [1e-17]]


@pytest.mark.parametrize("name", ["rounds.parquet", "rounds.jsonl"])
@pytest.mark.parametrize("chances", [None, CHANCES, [[0.1, 0.2], None, [0.3]]])
def test_a_table_comes_back_exactly_as_it_was_written(tmp_path: Path, name: str, chances: Any) -> None:
    optional = {} if chances is None else {"accept_probability": chances}
    table = make_rounds(**three_rounds(), draft="lookup", category="code", phase="evaluation", **optional)
    write_rounds(table, tmp_path / "deep" / name)
    once = read_rounds(tmp_path / "deep" / name)
    write_rounds(once, tmp_path / name)
    for back in (once, read_rounds(tmp_path / name)):
        plain = [column for column in table.columns if column != "accept_probability"]
        pd.testing.assert_frame_equal(back[plain], table[plain], check_exact=True)
        if chances is not None:
            assert [None if row is None else list(row) for row in back["accept_probability"]] == chances
    assert [path.name for path in (tmp_path / "deep").iterdir()] == [name], "no temporary file stays"


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"accepted": [2, -1, 1], "emitted": [3, 1, 1]}, "accepted >= 0"),
        ({"accepted": [2, 3, 1], "emitted": [3, 4, 1]}, "accepted <= drafted"),
        ({"drafted": [2, 3, 1]}, "drafted <= gamma"),
        ({"emitted": [3, 0, 1], "cut": True}, "emitted >= 1"),
        ({"emitted": [3, 2, 1]}, r"emitted <= accepted \+ 1"),
        ({"accepted": [2, 1, 1]}, r"emitted == accepted \+ 1 unless cut"),
        ({"batch": [1, 0, 1]}, "batch >= 1"),
        ({"context": [10, -1, 7]}, "context >= 0"),
        ({"start_seconds": [0.0, -1.0, 0.0]}, "start_seconds finite and >= 0"),
        ({"draft_seconds": [0.0, math.nan, 0.0]}, "draft_seconds finite and >= 0"),
        ({"verify_seconds": [0.0, math.inf, 0.0]}, "verify_seconds finite and >= 0"),
        ({"other_seconds": [0.0, -1e-9, 0.0]}, "other_seconds finite and >= 0"),
        ({"accept_probability": [[0.5, 0.5], [0.5], [0.5]]}, "one accept_probability per drafted token"),
        ({"accept_probability": [[0.5, 0.5], [0.5, 1.5], [0.5]]}, r"accept_probability in \[0, 1\]"),
        ({"accept_probability": [None, [0.5, math.nan], [0.5]]}, r"accept_probability in \[0, 1\]"),
    ],
)
def test_a_broken_identity_is_named_with_its_row(changes: dict[str, Any], rule: str) -> None:
    with pytest.raises(ValueError, match=rf"round table breaks '{rule}' in row 1: .*'round_index'"):
        make_rounds(**three_rounds(**changes))


def test_rows_are_counted_by_place_whatever_the_index() -> None:
    table = make_rounds(**three_rounds(accept_probability=CHANCES))
    worse = table.copy()
    worse["accept_probability"] = pd.Series([*CHANCES[:2], [2.0]])
    check_rounds(pd.concat([table, table]))
    with pytest.raises(ValueError, match=r"accept_probability in \[0, 1\]' in row 5"):
        check_rounds(pd.concat([table, worse]))


def test_missing_and_unknown_columns_are_named() -> None:
    columns = three_rounds()
    with pytest.raises(ValueError, match=r"unknown round-table columns \['speed'\]"):
        make_rounds(**columns, speed=1)
    del columns["cut"]
    with pytest.raises(ValueError, match=r"lacks the columns \['cut'\]"):
        make_rounds(**columns)
    with pytest.raises(ValueError, match=r"lacks the columns \['cut'\]"):
        check_rounds(pd.DataFrame(columns))


@st.composite
def tables(draw: st.DrawFn) -> pd.DataFrame:
    gamma = draw(st.integers(0, 6))
    rounds = draw(st.lists(st.tuples(st.integers(0, gamma), st.integers(0, gamma), st.integers(0, 3)), min_size=1))
    drafted = np.array([max(pair[:2]) for pair in rounds])
    accepted = np.array([min(pair[:2]) for pair in rounds])
    request = np.array([pair[2] for pair in rounds])
    cut = draw(st.booleans()) and bool(accepted[-1] > 0)
    emitted = accepted + 1
    emitted[-1] -= cut
    columns = three_rounds(
        request_id=request.astype(str), round_index=np.arange(len(rounds)), context=0, gamma=gamma, drafted=drafted
    )
    columns |= {"accepted": accepted, "emitted": emitted, "cut": emitted <= accepted}
    columns |= dict.fromkeys(("start_seconds", "draft_seconds", "verify_seconds", "other_seconds"), 0.5)
    return make_rounds(**columns)


@settings(deadline=None, max_examples=150, derandomize=True)
@given(tables())
def test_aggregates_agree_with_each_other(table: pd.DataFrame) -> None:
    summary = summarise(table)
    depth = int(table["drafted"].max())
    marginal, conditional = np.array(summary["marginal_acceptance"]), np.array(summary["conditional_acceptance"])
    assert summary["rounds"] == len(table) == sum(summary["histogram"])
    assert sum(j * count for j, count in enumerate(summary["histogram"])) == summary["accepted"]
    assert summary["accepted"] == table["accepted"].sum()
    assert summary["block_efficiency"] == pytest.approx(summary["emitted"] / len(table), rel=1e-12)
    assert 1 + marginal.sum() == pytest.approx((summary["emitted"] + table["cut"].sum()) / len(table), rel=1e-12)
    assert summary["seconds"] == 1.5 * len(table)
    assert (np.diff(marginal) <= 0).all()
    for i in range(depth):
        reached = [a >= i for a, d in zip(table["accepted"], table["drafted"], strict=True) if d > i]
        assert conditional[i] == pytest.approx(sum(table["accepted"] > i) / sum(reached)) if any(reached) else True
    if (table["drafted"] == table["gamma"]).all() and depth:
        known = conditional[~np.isnan(conditional)]
        np.testing.assert_allclose(np.cumprod(known), marginal[: len(known)], atol=1e-12)


def test_means_over_rounds_and_over_requests_differ() -> None:
    """Request 0 emits 3 and 1 tokens, request 1 emits 1: 5/3 a round, (2 + 1)/2 over requests."""
    summary = summarise(make_rounds(**three_rounds()))
    assert summary["block_efficiency"] == pytest.approx(5 / 3)
    assert summary["block_efficiency_per_request"] == pytest.approx(1.5)


def test_an_empty_table_has_no_summary() -> None:
    with pytest.raises(ValueError, match="without rows"):
        summarise(make_rounds(**three_rounds()).iloc[:0])


@pytest.mark.parametrize("name", ["rounds.parquet", "rounds.jsonl"])
def test_missing_and_damaged_files_are_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=f"no round table at .*{name}; `specdec measure`"):
        read_rounds(tmp_path / name)
    (tmp_path / name).write_text('{"request_id": "0", "batc')
    with pytest.raises(ValueError, match=f"{name} is not a readable round table"):
        read_rounds(tmp_path / name)


def test_jsonl_of_other_objects_and_types_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rounds.jsonl"
    path.write_text('{"prompt": "hello"}\n')
    with pytest.raises(ValueError, match=r"lacks the columns \['accepted'"):
        read_rounds(path)
    path.write_text('{"accepted": "many"}\n')
    with pytest.raises(ValueError, match="not a readable round table"):
        read_rounds(path)


def test_metadata_comes_back_and_newer_schemas_are_refused(tmp_path: Path) -> None:
    metadata = RunMetadata("sim", 7, "t", ("a", "b"), versions={"numpy": "2"}, settings={"gamma": [1, 2]})
    write_metadata(metadata, tmp_path / "run.json")
    assert read_metadata(tmp_path / "run.json") == metadata
    write_json({"source": "sim", "seed": 1, "schema_version": SCHEMA_VERSION + 1}, tmp_path / "new.json")
    with pytest.raises(ValueError, match=f"schema version {SCHEMA_VERSION + 1}, this program knows {SCHEMA_VERSION}"):
        read_metadata(tmp_path / "new.json")
    with pytest.raises(ValueError, match="not readable run metadata"):
        read_metadata(tmp_path / "none.json")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    write_json({"old": True}, path)
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json({"x": math.nan}, path)
    with pytest.raises(ZeroDivisionError):
        write_atomically(path, lambda part: Path(part).write_text("half") / 0)
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.json"]
    assert "old" in path.read_text()


def test_every_required_column_says_what_it_is() -> None:
    assert all(column.meaning and column.dtype for column in REQUIRED.values())


def tree_rounds() -> pd.DataFrame:
    """Three rounds of a tree with nine nodes and depth two: accepted 2, 1 and 0 tokens."""
    return make_rounds(
        request_id="a", round_index=[0, 1, 2], batch=1, context=[5, 8, 10], gamma=9, drafted=9, accepted=[2, 1, 0],
        emitted=[3, 2, 1], cut=False, start_seconds=[0.0, 1.0, 2.0], draft_seconds=0.1, verify_seconds=0.5,
        other_seconds=0.0, depth=2, accepted_ranks=[[0, 1], [2, -1], [-1]],
    )  # fmt: skip


def test_a_tree_is_summarised_by_its_depth_and_not_by_its_size() -> None:
    summary = summarise(tree_rounds())
    assert summary["marginal_acceptance"] == pytest.approx([2 / 3, 1 / 3])
    assert summary["conditional_acceptance"] == pytest.approx([2 / 3, 1 / 2])
    assert summary["block_efficiency"] == pytest.approx(1 + 2 / 3 + 1 / 3)


def test_more_accepted_than_the_tree_is_deep_is_refused() -> None:
    with pytest.raises(ValueError, match="accepted <= depth <= drafted"):
        check_rounds(tree_rounds().assign(depth=1))


def test_ranks_of_a_tree_survive_both_formats(tmp_path: Path) -> None:
    for name in ("rounds.parquet", "rounds.jsonl"):
        write_rounds(tree_rounds(), tmp_path / name)
        ranks = [list(row) for row in read_rounds(tmp_path / name)["accepted_ranks"]]
        assert ranks == [[0, 1], [2, -1], [-1]]


def test_acceptance_by_rank_is_read_from_the_rounds() -> None:
    """At the root ranks 0, 2 and none of three siblings; below it rank 1 and none of two."""
    table = tree_acceptance(tree_rounds())
    assert table.tested.tolist() == [[3, 2, 2], [2, 2, 0]]
    with pytest.raises(ValueError, match="hold no trees"):
        tree_acceptance(tree_rounds().drop(columns="accepted_ranks"))
