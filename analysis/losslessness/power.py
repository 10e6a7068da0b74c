"""What a sample can see: before a token is drawn, the total variation that it would detect, and the other way round.

For counts N with a total variation d from the target, G is about noncentral chi-square with noncentrality at least
4 N d^2 (Cauchy-Schwarz: sum (p'-p)^2 / p >= (sum |p'-p|)^2), least when every cell is off by the same factor. The
e-value reaches 1/a about where G passes 2 (1 + 1/r) (ln(1/a) + df/2 ln(1 + r)), r the sample over the prior's
concentration, at the best of the concentrations that are averaged.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import brentq
from scipy.stats import ncx2

from analysis.losslessness.evidence import CONCENTRATIONS

FALSE_ALARM = 1e-9
"""Chance that a correct sampler is ever rejected, all hypotheses and all looks together."""
POWER = 0.999
TOTAL_VARIATION = 0.005


def needed_g(samples: float, labels: int, tokens: int, hypotheses: int, false_alarm: float = FALSE_ALARM) -> float:
    """The G at which the e-value of a [labels, tokens] table with `samples` counts rejects."""
    df = labels * (tokens - 1)
    r = samples / labels / CONCENTRATIONS
    evidence = np.log(hypotheses * len(CONCENTRATIONS) / false_alarm)
    return float((2 * (1 + 1 / r) * (evidence + 0.5 * df * np.log1p(r))).min())


def detectable_tv(
    samples: float,
    labels: int,
    tokens: int,
    hypotheses: int,
    false_alarm: float = FALSE_ALARM,
    power: float = POWER,
) -> float:
    """The total variation that `samples` counts in a [labels, tokens] table detect with the given power; at most 1."""
    if samples < 1 or tokens < 2:
        return 1.0
    line, df = needed_g(samples, labels, tokens, hypotheses, false_alarm), labels * (tokens - 1)

    def lacking(noncentrality: float) -> float:
        return float(ncx2.sf(line, df, noncentrality)) - power

    high = 4.0 * line + 200.0
    return float(min(1.0, np.sqrt(brentq(lacking, 1e-9, high) / (4 * samples))))


def samples_for(tv: float, labels: int, tokens: int, hypotheses: int, false_alarm: float = FALSE_ALARM) -> int:
    """Counts in a [labels, tokens] table that detect `tv` with 99.9% power.

    Raises:
        ValueError: tv is not in (0, 1).
    """
    if not 0 < tv < 1:
        raise ValueError(f"tv must be in (0, 1), got {tv}; the default is {TOTAL_VARIATION}")

    def excess(log_samples: float) -> float:
        return detectable_tv(np.exp(log_samples), labels, tokens, hypotheses, false_alarm) - tv

    return int(np.ceil(np.exp(brentq(excess, np.log(2.0), np.log(1e13)))))
