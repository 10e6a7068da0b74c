"""Every ratio the lab promises: `make bench` measures and prints them and writes bench.json.

`python -m tests.bench real-head sim` measures some parts again and keeps the rest of bench.json.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from sim.records import write_atomically, write_json
from tests import bench_answers, bench_losslessness, bench_peers_serving, bench_real, bench_serving, bench_sim

BENCHES: dict[str, Callable[[], dict[str, Any]]] = {
    "sim": bench_sim.bench,
    "serving": bench_serving.bench,
    "serving-against_vidur": bench_peers_serving.bench,
    "losslessness": bench_losslessness.bench,
    "import": bench_answers.bench_import,
    "diagnose": bench_answers.bench_diagnose,
    "published": bench_answers.bench_published,
    "plan": bench_answers.bench_plans,
    **bench_real.benches(),
}


def write_readme(results: dict[str, dict[str, Any]], path: Path) -> None:
    """Put the table between its marks."""
    begin, end = "<!-- bench:begin -->\n", "<!-- bench:end -->"
    rows = ["| what | measured | asked |", "|---|---|---|"]
    for what, row in results.items():
        sign = "≤" if row.get("lower_is_better") else "≥"
        asked = f"{sign} {row['target']:,.4g}" if "target" in row else ""
        rows.append(f"| {what.replace('_', ' ')} | {row['value']:,.3g} | {asked} |")
    before, rest = path.read_text().split(begin)
    text = before + begin + "\n".join(rows) + "\n" + end + rest.split(end)[1]
    write_atomically(path, lambda part: Path(part).write_text(text))


def main() -> None:
    chosen = sys.argv[1:] or list(BENCHES)
    unknown = sorted(set(chosen) - set(BENCHES))
    if unknown:
        raise SystemExit(f"no such parts {unknown}; there are {list(BENCHES)}")
    before = json.loads(Path("bench.json").read_text()) if len(chosen) < len(BENCHES) else {}
    results: dict[str, dict[str, float | bool | str]] = {}
    for name, bench in BENCHES.items():
        if name in chosen:
            results |= {what: row | {"part": name} for what, row in bench().items()}
        else:
            results |= {what: row for what, row in before.items() if row.get("part") == name}
    write_json(results, Path("bench.json"))
    write_readme(results, Path("README.md"))
    table = Table("what", "measured", "asked", "", box=None, pad_edge=False)
    for name, row in results.items():
        lower = row.get("lower_is_better", False)
        goal = row.get("target")
        met = goal is None or (row["value"] <= goal if lower else row["value"] >= goal)
        asked = "" if goal is None else f"{'<=' if lower else '>='} {goal:,.4g}"
        table.add_row(name, f"{row['value']:,.4g}", asked, "" if met else "short")
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
