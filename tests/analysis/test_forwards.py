from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sim.forwards import check_forwards, make_forwards, read_forwards, write_forwards
from tests.analysis.synthetic import make_sweep


def test_forward_table_survives_writing_and_reading(tmp_path: Path) -> None:
    table = make_sweep(np.random.default_rng(0), repeats=3)
    write_forwards(table, tmp_path / "forwards.parquet")
    pd.testing.assert_frame_equal(read_forwards(tmp_path / "forwards.parquet"), table)
    assert [path.name for path in tmp_path.iterdir()] == ["forwards.parquet"]


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("seconds", 0.0, "seconds finite and > 0"),
        ("seconds", np.nan, "seconds finite and > 0"),
        ("batch", 0, "batch >= 1"),
        ("new_tokens", 0, "new_tokens >= 1"),
        ("context", -1, "context >= 0"),
        ("role", "", "role named"),
    ],
)
def test_bad_forward_row_is_refused_by_name(column: str, value: object, message: str) -> None:
    good = {"role": "target", "batch": 1, "new_tokens": [1, 2], "context": 5, "repeat": 0, "seconds": [0.1, 0.2]}
    table = make_forwards(**good)
    table[column] = [table[column].iloc[0], value]
    with pytest.raises(ValueError, match=f"{message}' in row 1"):
        check_forwards(table)


def test_missing_unknown_and_empty_forwards_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="lacks the columns"):
        check_forwards(pd.DataFrame({"role": ["target"]}))
    with pytest.raises(ValueError, match=r"unknown forward-table columns \['colour'\]"):
        make_forwards(colour=1)
    with pytest.raises(ValueError, match="no rows"):
        check_forwards(make_sweep(np.random.default_rng(0), repeats=3).iloc[:0])
    with pytest.raises(ValueError, match="no forward table"):
        read_forwards(tmp_path / "none.parquet")
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 torn")
    with pytest.raises(ValueError, match="not a readable forward table"):
        read_forwards(tmp_path / "torn.parquet")
