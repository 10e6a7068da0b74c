"""Every ratio the lab promises, measured in one run: `make bench` prints them and writes bench.json."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from sim.records import write_json
from tests import bench_losslessness, bench_real, bench_sim

BENCHES: list[Callable[[], dict[str, dict[str, float | bool]]]] = [
    bench_sim.bench,
    bench_losslessness.bench,
    bench_real.bench,
]


def main() -> None:
    results: dict[str, dict[str, float | bool]] = {}
    for bench in BENCHES:
        results |= bench()
    write_json(results, Path("bench.json"))
    table = Table("what", "measured", "asked", "", box=None, pad_edge=False)
    for name, row in results.items():
        lower = row.get("lower_is_better", False)
        met = row["value"] <= row["target"] if lower else row["value"] >= row["target"]
        asked = f"{'<=' if lower else '>='} {row['target']:,.4g}"
        table.add_row(name, f"{row['value']:,.4g}", asked, "" if met else "short")
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
