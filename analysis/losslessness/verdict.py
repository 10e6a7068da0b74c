"""From the evidence of all hypotheses to one verdict in words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from analysis.losslessness.gather import BONUS, LAG_SCANS
from analysis.losslessness.power import POWER
from analysis.losslessness.result import CheckResult, HypothesisResult


def conclude(
    results: Sequence[HypothesisResult], hypotheses: int, drawn: int, false_alarm: float, sees: float | None = None
) -> CheckResult:
    """Correct for all hypotheses (Holm), and say what was found or what would have been."""
    tests = tuple(sorted(results, key=lambda test: -test.log_e))
    rejected = []
    for rank, test in enumerate(tests):  # Holm: the k-th strongest must pass a (hypotheses - k) fold correction
        if test.log_e < np.log((hypotheses - rank) / false_alarm):
            break
        rejected.append(f"{test.design}: {test.name}")
    worst = tests[0]
    sees = _sees(tests) if sees is None else sees
    cell = {"design": worst.design, "test": worst.name} | worst.worst_cell
    corrected = worst.log_e - float(np.log(hypotheses))
    if rejected:
        verdict = (
            f"not lossless: {_finding(worst)} ({worst.design} design), ln E = {min(worst.log_e, 1e6):.1f} after "
            f"{drawn} rounds; {len(rejected)} of {hypotheses} hypotheses rejected"
        )
    elif sees < 1:
        verdict = (
            f"lossless as far as {drawn} rounds can see: a total variation of {sees:.2g} at any position or pair would "
            f"have been detected with {POWER:.1%} power; chance of a false alarm {false_alarm:g}"
        )
    else:
        verdict = (
            f"nothing found in {drawn} rounds, but some positions were reached too seldom to judge them; chance of a "
            f"false alarm {false_alarm:g}"
        )
    return CheckResult(
        not rejected, verdict, corrected, drawn, hypotheses, false_alarm, sees, worst.tv, POWER, cell, tests,
        tuple(rejected),
    )  # fmt: skip


def _finding(test: HypothesisResult) -> str:
    """What the strongest hypothesis found, in words."""
    match test.name:
        case name if name == BONUS:
            cell = test.worst_cell
            return f"{cell['reached']} rounds reached the last position and {cell['observed']} got a bonus token"
        case name if name in LAG_SCANS:
            return f"{name}: tokens {test.worst_cell['lag']} apart depend on each other"
    if "expected" not in test.worst_cell:
        return f"{test.name}, {test.worst_cell}"
    if test.worst_cell["expected"] == 0 and test.worst_cell["observed"]:
        return f"{test.name}: token {test.worst_cell['token']} came out, whose probability is zero"
    return f"{test.name} departs from the target, total variation about {test.tv:.3g}"


def _sees(tests: Sequence[HypothesisResult]) -> float:
    """Worst over positions and pairs of the best over designs."""
    best: dict[str, float] = {}
    for test in tests:
        pair = test.name.endswith("after a token") or "after the last round's" in test.name
        if pair or test.name.split()[-1].isdigit() or test.name == "bonus position":
            best[test.name] = min(best.get(test.name, 1.0), test.detectable_tv)
    return max(best.values())
