"""Measure what the figures show of the embedded pair: trees by width, acceptance by rank, block verification.

`python -m paper_figs.measure_pair --runs runs/figures` runs `specdec measure` once for each of `RUNS` (one to three
minutes each on one core, about an hour in all), keeps what is already there, and writes the CSV files in
`paper_figs/data` that the figures read. Only counts of tokens go into them, which do not depend on the machine's speed.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from paper_figs.pair_counts import BLOCK_CSV, RANK_CSV, TREE_CSV
from sim.records import read_rounds, write_atomically

WIDTHS = (1, 2, 3, 4, 5)
CHAIN_RULES = {"token": "rejection_sampling", "block": "block_verification"}
TREE_RULES = ("multi_round", "without_replacement")
RANK_TREE = "8,4"
"""wide at the first two tokens: where acceptance by rank is counted"""


@dataclass(frozen=True)
class Run:
    """One `specdec measure` of the embedded pair."""

    kind: str
    """'block', 'tree' or 'ranks': which CSV it goes to"""
    draft: str
    rule: str | None
    """None: greedy decoding, which has no other"""
    gamma: int = 0
    tree: str = ""
    seed: int = 0
    prompts: int = 4
    """of each of the six categories"""
    max_new_tokens: int = 64

    @property
    def name(self) -> str:
        """Of its folder."""
        length = f"gamma{self.gamma}" if self.gamma else "tree" + self.tree.replace(",", "-")
        return f"{self.draft}_{length}_{self.rule or 'greedy'}_{self.seed}"

    @property
    def words(self) -> list[str]:
        """What follows `specdec measure`, without --out."""
        length = ["--gamma", str(self.gamma)] if self.gamma else ["--tree", self.tree]
        rule = ["--temperature", "1", "--rule", self.rule] if self.rule else ["--temperature", "0"]
        size = ["--limit", str(self.prompts), "--max-new-tokens", str(self.max_new_tokens), "--batch", "12"]
        return ["--draft", self.draft, *length, *rule, *size, "--threads", "1", "--seed", str(self.seed), "--json"]


RUNS: tuple[Run, ...] = (
    *(Run("ranks", "distilled", rule, tree=RANK_TREE, prompts=3, max_new_tokens=48) for rule in (*TREE_RULES, None)),
    *(
        Run("tree", "distilled", rule, tree=f"{width},1,1,1", prompts=3, max_new_tokens=48)
        for width in WIDTHS
        for rule in (*TREE_RULES, None)
    ),
    *(
        Run("block", draft, rule, gamma=gamma, seed=seed)
        for seed in range(2)
        for draft, gamma in (("int8", 8), ("int8", 4), ("distilled", 4))
        for rule in CHAIN_RULES.values()
    ),
)


def measure(run: Run, folder: Path) -> pd.DataFrame:
    """The rounds of a run, measured unless the folder holds them.

    Args:
        run: what to measure.
        folder: of all runs; each has its own folder in it.
    """
    done = folder / run.name
    if not done.exists():
        part = done.with_name(done.name + ".part")
        shutil.rmtree(part, ignore_errors=True)
        words = [sys.executable, "-m", "specdec_lab", "measure", *run.words, "--out", str(part)]
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
        part.rename(done)
    return read_rounds(done / "rounds.parquet")


def full_rounds(rounds: pd.DataFrame, size: int) -> pd.DataFrame:
    """Rounds that drafted all they may.

    What is left out are the last rounds of a prompt, whose drafts are shortened. That is known before a round begins,
    so it biases nothing.
    """
    return rounds[(rounds["gamma"] > 0) & (rounds["drafted"] == size)]


def per_prompt(run: Run, rounds: pd.DataFrame) -> pd.DataFrame:
    """One row a prompt: rounds, drafted tokens accepted in them, and what was run."""
    kept = full_rounds(rounds, int(rounds["gamma"].max()))
    table = kept.groupby("request_id")["accepted"].agg(rounds="size", accepted="sum").reset_index()
    table = table.rename(columns={"request_id": "prompt"})
    length = {"gamma": run.gamma} if run.gamma else {"width": int(run.tree.split(",")[0])}
    labels: dict[str, str | int] = {"draft": run.draft, "rule": run.rule or "greedy", **length, "seed": run.seed}
    for place, (name, value) in enumerate(labels.items()):
        table.insert(place, name, value)
    return table


def per_rank(run: Run, rounds: pd.DataFrame) -> pd.DataFrame:
    """How often each sibling was tested and accepted, by depth."""
    kept = full_rounds(rounds, int(rounds["gamma"].max()))
    offered = [int(width) for width in run.tree.split(",")]
    rows = []
    for depth, width in enumerate(offered):
        ranks = np.array([row[depth] for row in kept["accepted_ranks"] if len(row) > depth])
        for rank in range(width):
            tested = int(((ranks < 0) | (ranks >= rank)).sum())
            rows.append((run.rule or "greedy", depth + 1, rank + 1, tested, int((ranks == rank).sum())))
    return pd.DataFrame(rows, columns=["rule", "depth", "rank", "tested", "accepted"])


def tables(runs: Iterable[Run], folder: Path) -> dict[Path, pd.DataFrame]:
    """The three CSV files, from runs that are measured or will be."""
    made: dict[Path, list[pd.DataFrame]] = {BLOCK_CSV: [], TREE_CSV: [], RANK_CSV: []}
    for run in runs:
        rounds = measure(run, folder)
        match run.kind:
            case "block":
                made[BLOCK_CSV].append(per_prompt(run, rounds))
            case "tree":
                made[TREE_CSV].append(per_prompt(run, rounds))
            case _:
                made[RANK_CSV].append(per_rank(run, rounds))
        print(f"{run.name}: {len(rounds):,} rounds", flush=True)
    return {path: pd.concat(parts, ignore_index=True) for path, parts in made.items() if parts}


def main() -> None:
    """Measure what is missing, and write the CSV files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs/figures"), help="Folder of the runs.")
    folder = parser.parse_args().runs
    folder.mkdir(parents=True, exist_ok=True)
    for path, table in tables(RUNS, folder).items():
        write_atomically(path, partial(table.to_csv, index=False))


if __name__ == "__main__":
    main()
