"""How fast the losslessness harness is on one core: rounds a second of each sampler, and of a whole check.

Run it with `OMP_NUM_THREADS=1 python tests/bench_losslessness.py`; it takes about ten seconds and prints a JSON object.
"""

from __future__ import annotations

import json
import time
from statistics import median

import numpy as np

from analysis.losslessness import CORRECT, check
from analysis.losslessness.designs import default_designs
from analysis.losslessness.rules import RULES

ROUNDS = 2**17
REPEATS = 7


def bench() -> dict[str, dict[str, float]]:
    """Median rounds per CPU second of every pure rule's sampler over the fixed designs, gamma 4 and vocab 8."""
    figures = {}
    for name in RULES:
        rates = []
        for repeat in range(REPEATS):
            rng = np.random.default_rng(repeat)
            designs = [design for design in default_designs(4, 8) if len(design.p) == 1]
            begin = time.process_time()
            for design in designs:
                CORRECT[name](design.p[0], design.q[0], ROUNDS, rng)
            rates.append(len(designs) * ROUNDS / (time.process_time() - begin))
        figures[f"{name}_rounds_per_second"] = {"value": median(rates), "target": 1e6}
    begin = time.process_time()
    result = check(CORRECT["rejection_sampling"])
    seconds = time.process_time() - begin
    figures["default_check_seconds"] = {"value": seconds, "target": 60.0, "lower_is_better": True}
    figures["default_check_rounds_per_second"] = {"value": result.samples / seconds, "target": 5e5}
    return figures


if __name__ == "__main__":
    print(json.dumps(bench(), indent=2))
