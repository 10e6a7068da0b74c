"""Does the harness ever accuse a correct sampler? The statistical suite on correct samplers, with fresh seeds.

`python -m analysis.losslessness.false_alarms` runs 200 checks at the default budget (half an hour on one core) and
writes one row for each beside this file. The promise is one false alarm in 1e9 checks, which no study can confirm by
counting; so the table also gives the largest evidence of each run, which for valid e-values passes ln(1/a) in at most a
share a of the runs after correction.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from analysis.losslessness.check import check
from analysis.losslessness.rules import CORRECT

STUDY = Path(__file__).with_name("false_alarms.csv")


def false_alarm_study(
    runs: int = 200, max_samples: int | None = None, first_seed: int = 1000, samplers: Sequence[str] = tuple(CORRECT)
) -> pd.DataFrame:
    """Check correct samplers in turn, each run with its own seed.

    Returns:
        One row per run: sampler, seed, rounds, hypotheses, `corrected_log_e` (of the strongest hypothesis, after the
        correction for all), `smallest_chi_square_p` (asymptotic, uncorrected) and `false_alarm`.
    """
    rows = []
    for run in range(runs):
        name, seed = samplers[run % len(samplers)], first_seed + run
        result = check(CORRECT[name], seed=seed, max_samples=max_samples)
        rows.append(
            {
                "sampler": name,
                "seed": seed,
                "rounds": result.samples,
                "hypotheses": result.hypotheses,
                "corrected_log_e": round(result.log_e_value, 3),
                "smallest_chi_square_p": min(test.chi_square_p for test in result.tests),
                "false_alarm": not result.lossless,
            }
        )
    return pd.DataFrame(rows)


if __name__ == "__main__":
    study = false_alarm_study()
    study.to_csv(STUDY, index=False)
    print(f"{len(study)} runs, {int(study['false_alarm'].sum())} false alarms -> {STUDY}")
