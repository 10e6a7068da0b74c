"""How good plans are on the embedded pair: `python -m tests.bench_plan` measures every draft length and compares.

A case is a draft, a batch and a set of prompts. Its plan is made from calibration prompts (one draft length, and timed
forwards); then drafts of 1 to 8 tokens and plain decoding take turns, round by round, on evaluation prompts. A plan is
good if the draft length that it names is within 3% of the fastest one measured, plain decoding being one of them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from rich.console import Console
from rich.table import Table

from analysis.compare import measured
from analysis.interruptions import cap_interruptions
from analysis.plan import choose
from analysis.plan.acceptance import DraftLaw, of_outputs
from analysis.plan.sources import MeasuredRun, fit_run
from real.loading import EMBEDDED, Target, load_draft, load_target
from real.measure import Configuration, measure_prompts, time_forwards
from real.prompt_sets import Prompt, read_prompts
from real.prompt_sets import choose as choose_prompts
from real.sampling import SamplingSettings
from sim.records import ROUND_SECONDS

GREEDY = SamplingSettings(0.0)
DRAFTS = ("int8", "distilled", "prompt-lookup", "suffix")
COPYING = ("summarise", "extract")
WITHIN = 0.03


@dataclass(frozen=True)
class Sizes:
    """How much to measure."""

    calibration_prompts: int = 2
    """per category"""
    calibration_tokens: int = 48
    evaluation_prompts: int = 1
    """per category; of copying categories twice as many"""
    evaluation_tokens: int = 32
    batch_tokens: int = 64
    """of each prompt of a batch"""
    sweeps: int = 6
    gammas: tuple[int, ...] = tuple(range(1, 9))


@dataclass(frozen=True)
class Case:
    """What was planned and what was measured."""

    draft: str
    batch: int
    prompts: str
    gamma: int
    planned: float
    """speedup, as the plan says"""
    measured: float
    """speedup of the planned draft length"""
    best_gamma: int
    best: float

    @property
    def good(self) -> bool:
        """Whether the planned draft length is as fast as the fastest, but for 3%."""
        return self.measured >= self.best * (1 - WITHIN)


@dataclass(frozen=True)
class Calibrated:
    """What plans are made from."""

    rounds: pd.DataFrame
    """at batch 1, at the longest draft length"""
    batched: pd.DataFrame | None
    """the same at the largest batch; None where that is 1"""
    forwards: pd.DataFrame
    """timed at every batch"""

    def run(self, draft: str, sizes: Sizes, categories: Sequence[str] = ()) -> MeasuredRun:
        """The fits of one draft."""
        return fit_run(
            self.rounds, self.forwards, max(sizes.gammas), draft, categories, batched=self.batched
        )  # fmt: skip


def calibrate_on(target: Target, drafts: Sequence[str], batches: Sequence[int], sizes: Sizes) -> Calibrated:
    """Decode calibration prompts at the longest draft length, one by one and together, and time forwards.

    Sweeps over forwards come between the prompts, so that a slow spell of the machine does not hit them alone.
    """
    loaded = [load_draft(name, target, GREEDY) for name in drafts]
    longest, together = max(sizes.gammas), max(batches)
    configurations = [Configuration(None, 0), *(Configuration(draft, longest) for draft in loaded)]
    prompts = choose_prompts(read_prompts(), "calibration", sizes.calibration_prompts)

    def decoded(groups: Sequence[Sequence[Prompt]]) -> pd.DataFrame:
        return decode(target, groups, configurations, sizes.calibration_tokens, "calibration")

    decoded([prompts[:1]])  # warms up
    rounds, forwards = [], []
    for sweep in range(sizes.sweeps):
        for batch in batches:
            (table,) = time_forwards(
                target, loaded, new_tokens=range(1, longest + 2), contexts=(64, 192), repeats=1, seed=sweep, batch=batch
            )
            forwards.append(table.assign(repeat=sweep))
        rounds.append(decoded([[prompt] for prompt in prompts[sweep :: sizes.sweeps]]))
    batched = decoded([prompts[:together]]) if together > 1 else None
    return Calibrated(pd.concat(rounds, ignore_index=True), batched, pd.concat(forwards, ignore_index=True))


def evaluation_of(
    target: Target, draft: str, groups: Sequence[Sequence[Prompt]], sizes: Sizes, new_tokens: int
) -> pd.DataFrame:
    """Rounds of one draft at every draft length, and of the baseline."""
    loaded = load_draft(draft, target, GREEDY)
    configurations = [Configuration(None, 0), *(Configuration(loaded, gamma) for gamma in sizes.gammas)]
    return decode(target, groups, configurations, new_tokens, "evaluation")


def decode(
    target: Target,
    groups: Sequence[Sequence[Prompt]],
    configurations: Sequence[Configuration],
    new_tokens: int,
    phase: str,
) -> pd.DataFrame:
    """Rounds of all configurations, taking turns on each group."""
    return pd.concat(
        (
            measure_prompts(
                target, group, configurations, max_new_tokens=new_tokens, settings=GREEDY, seed=seed, phase=phase
            )
            for seed, group in enumerate(groups)
        ),
        ignore_index=True,
    )


def case_of(
    run: MeasuredRun, law: DraftLaw, speedups: Mapping[int, float], batch: int, context: float, prompts: str
) -> Case:
    """Compare a plan with the speedups that were measured, by draft length; plain decoding is among them."""
    found = {0: 1.0, **speedups}
    planned = {0: 1.0} | {one.gamma: one.speedup for one in choose(law, run.costs, batch, context).by_gamma}
    # of the draft lengths that were measured
    gamma, best = (max(found, key=lambda gamma: curve[gamma]) for curve in (planned, found))
    return Case(run.draft, batch, prompts, gamma, planned[gamma], found[gamma], best, found[best])


def of_requests(run: MeasuredRun, rounds: pd.DataFrame, sizes: Sizes, prompts: str) -> Case:
    """The case of prompts that were decoded one by one; the plan knows how long outputs are."""
    table = measured(rounds.assign(category="all"))
    speedups = dict(zip(table["gamma"].tolist(), table["measured"].tolist(), strict=True))
    law = of_outputs(run.law, sizes.evaluation_tokens, shortened=True)
    return case_of(run, law, speedups, 1, context_of(rounds), prompts)


def of_batch(run: MeasuredRun, rounds: pd.DataFrame, batch: int) -> Case:
    """The case of prompts that were decoded together, as long as all of them were.

    A plan's batches stay full, so each request counts by its seconds per token until the first of them ended.
    """
    full = cap_interruptions(rounds[rounds["batch"] == batch])
    sums = full.groupby(["gamma", "request_id"])[["emitted", *ROUND_SECONDS]].sum()
    tpot = (sums[list(ROUND_SECONDS)].sum(axis=1) / sums["emitted"]).groupby("gamma").mean()
    speedups = {int(gamma): float(tpot[0] / tpot[gamma]) for gamma in tpot.index if gamma}
    return case_of(run, run.law, speedups, batch, context_of(full), "mixed")


def context_of(rounds: pd.DataFrame) -> float:
    """Mean tokens known before a step without speculation."""
    return float(rounds.loc[rounds["gamma"] == 0, "context"].mean())


def bench(
    drafts: Sequence[str] = DRAFTS,
    batches: Sequence[int] = (1, 4),
    sizes: Sizes | None = None,
    target: Target | None = None,
) -> list[Case]:
    """Plan and measure every draft: one by one on all categories and on those whose answers copy, and in batches.

    Args:
        drafts: their names.
        batches: evaluation prompts are decoded so many at a time; a batch of several takes the first ones, once, and
            its plan is for their categories.
        sizes: how much to measure.
        target: the embedded one, if it is loaded already.
    """
    sizes = sizes or Sizes()
    target = target or load_target(EMBEDDED, torch.device("cpu"))
    calibrated = calibrate_on(target, drafts, batches, sizes)
    chosen = choose_prompts(read_prompts(), "evaluation", 2 * sizes.evaluation_prompts)
    half = len(chosen) // 2
    singles = [[prompt] for prompt in chosen[:half]]
    singles += [[prompt] for prompt in chosen[half:] if prompt.category in COPYING]
    cases = []
    for draft in drafts:
        rounds = evaluation_of(target, draft, singles, sizes, sizes.evaluation_tokens)
        first = rounds["request_id"].isin([prompt.id for prompt in chosen[:half]])
        cases.append(of_requests(calibrated.run(draft, sizes), rounds[first], sizes, "all"))
        own = rounds[rounds["category"].isin(COPYING)]
        cases.append(of_requests(calibrated.run(draft, sizes, COPYING), own, sizes, "copying"))
        for batch in batches:
            if batch > 1:
                rounds = evaluation_of(target, draft, [chosen[:batch]], sizes, sizes.batch_tokens)
                mixed = calibrated.run(draft, sizes, [prompt.category for prompt in chosen[:batch]])
                cases.append(of_batch(mixed, rounds, batch))
    return cases


def main() -> int:
    """Print the cases and how many plans are good, and return that number; --reduced measures a few of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reduced", action="store_true", help="four cases at batch 1, fewer tokens and draft lengths")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    began = time.perf_counter()
    reduced = ("int8", "prompt-lookup"), (1,), Sizes(sweeps=4, gammas=(1, 2, 4, 8))
    cases = bench(*reduced) if options.reduced else bench()
    print_cases(cases)
    good = sum(case.good for case in cases)
    print(f"{good} of {len(cases)} plans within {WITHIN:.0%} of the best; {time.perf_counter() - began:.0f} seconds")
    return good


def print_cases(cases: Sequence[Case]) -> None:
    """A row per case."""
    table = Table("draft", "batch", "prompts", "gamma", "planned", "measured", "best gamma", "best", "", box=None)
    for case in cases:
        numbers = (f"{value:.3f}" for value in (case.planned, case.measured))
        table.add_row(
            case.draft, str(case.batch), case.prompts, str(case.gamma), *numbers, str(case.best_gamma),
            f"{case.best:.3f}", "" if case.good else "short",
        )  # fmt: skip
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
