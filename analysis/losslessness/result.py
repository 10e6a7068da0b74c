"""What a check of a sampler says: a verdict in words, the evidence behind it, and what it could have seen."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class HypothesisResult:
    """One hypothesis: the evidence against it and the deviation it could have detected."""

    design: str
    name: str
    samples: int
    """Tokens counted."""
    log_e: float
    """Natural logarithm of the e-value; 1/E is a p-value."""
    statistic: float = 0.0
    """G of the G-test."""
    df: int = 0
    chi_square_p: float = 1.0
    """Asymptotic p-value of G, for reading; the verdict rests on the e-value."""
    tv: float = 0.0
    """Estimated total variation, less what noise alone would show."""
    detectable_tv: float = 1.0
    """Total variation that this many samples detect with 99.9% power."""
    worst_cell: dict[str, float | int] = field(default_factory=dict)
    law: tuple[float, ...] = ()
    """[vocab] the target's law in the row of the worst cell."""
    counts: tuple[int, ...] = ()
    """[vocab] tokens counted in that row; `paper_figs.mass_moved` draws the two."""

    @property
    def p_value(self) -> float:
        """min(1, 1/E): exact, and valid whenever one looks."""
        return float(np.exp(min(0.0, -self.log_e)))


@dataclass(frozen=True)
class CheckResult:
    """The verdict on one sampler."""

    lossless: bool
    verdict: str
    log_e_value: float
    """Of the strongest hypothesis, after the correction for looking at all of them."""
    samples: int
    """Rounds drawn."""
    hypotheses: int
    false_alarm: float
    detectable_tv: float
    """Worst over positions and pairs of the best over designs; a deviation this large is seen with 99.9% power."""
    effect_tv: float
    """Estimated total variation in the table with the strongest evidence."""
    power: float
    """Chance of detecting a deviation of `detectable_tv`."""
    worst_cell: dict[str, Any]
    tests: tuple[HypothesisResult, ...]
    rejected: tuple[str, ...] = ()
    """Names of the hypotheses that Holm's correction rejects."""

    @property
    def e_value(self) -> float:
        """Evidence against losslessness after the correction; capped so that it stays a number in JSON."""
        return float(np.exp(min(self.log_e_value, 700.0)))

    @property
    def p_value(self) -> float:
        """min(1, 1/E) after the correction for all hypotheses."""
        return float(np.exp(min(0.0, -self.log_e_value)))

    def to_dict(self) -> dict[str, Any]:
        """Everything, with finite numbers only."""
        fields = asdict(self) | {"e_value": self.e_value, "p_value": self.p_value}
        fields["log_e_value"] = float(np.clip(self.log_e_value, -1e6, 1e6))
        fields["tests"] = [
            asdict(test) | {"log_e": float(np.clip(test.log_e, -1e6, 1e6)), "p_value": test.p_value}
            for test in self.tests
        ]
        for test in fields["tests"]:
            test["statistic"] = float(np.clip(test["statistic"], 0.0, 1e12))
        return fields

    def to_json(self) -> str:
        """`to_dict` as JSON."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)

    def table(self) -> str:
        """The ten strongest hypotheses, one to a line."""
        lines = [f"{'design':<12}{'hypothesis':<44}{'samples':>10}{'G':>10}{'df':>6}{'ln E':>9}{'TV':>9}{'sees TV':>9}"]
        for test in sorted(self.tests, key=lambda test: -test.log_e)[:10]:
            lines.append(
                f"{test.design:<12}{test.name:<44}{test.samples:>10}{test.statistic:>10.1f}{test.df:>6}"
                f"{test.log_e:>9.1f}{test.tv:>9.4f}{test.detectable_tv:>9.4f}"
            )
        return "\n".join(lines)
