"""Everything one design has shown so far: its tables, its bonus tokens, and its scans over lags."""

from __future__ import annotations

import numpy as np
from scipy.special import logsumexp

from analysis.losslessness.designs import Design
from analysis.losslessness.evidence import effect, g_test, log_e_value, worst_cell
from analysis.losslessness.lags import log_e_all_lags
from analysis.losslessness.power import detectable_tv
from analysis.losslessness.result import HypothesisResult
from analysis.losslessness.rows import Ints
from analysis.losslessness.rules import Sampler
from analysis.losslessness.tables import Table, check_emission, tabulate

BONUS = "bonus token emitted"
LAG_SCANS = ("stream at all lags", "first token at all lags of rounds", "first token after an earlier round's last")
MAX_SCANS = 8
SCANNED_ROUNDS = 2**15


def hypotheses_of(design: Design) -> int:
    """How many hypotheses this design brings; fixed before anything is drawn."""
    two_rounds = np.zeros((2, design.p.shape[1]), dtype=np.int64)
    tables = sum(1 for _ in tabulate(design, np.zeros(2, dtype=np.int64), two_rounds))
    return tables + 1 + len(LAG_SCANS) * design.stationary


class Gathered:
    """The counts of one design, added to stream by stream."""

    def __init__(self, design: Design) -> None:
        self.design = design
        self.tables: dict[str, Table] = {}
        self.scans: dict[str, list[tuple[float, int]]] = {name: [] for name in LAG_SCANS} if design.stationary else {}
        self.largest_scan = self.drawn = 0
        self.reached, self.bonus = 0, 0

    def add(self, sampler: Sampler, n: int, harness: np.random.Generator, source: np.random.Generator) -> None:
        """Draw one stream of n rounds and count it."""
        self.drawn += n
        types, p, q = self.design.rounds(n, harness)
        gamma, vocab = self.design.q.shape[-2:]
        tokens = check_emission(sampler(p, q, n, source), n, gamma, vocab)
        for table in tabulate(self.design, types, tokens):
            self.tables[table.name] = self.tables[table.name].plus(table) if table.name in self.tables else table
        self.reached += int((tokens[:, gamma - 1] >= 0).sum())
        self.bonus += int((tokens[:, gamma] >= 0).sum())
        if self.scans and n > self.largest_scan and len(self.scans[LAG_SCANS[0]]) < MAX_SCANS:
            self.largest_scan = n
            self._scan(tokens[:SCANNED_ROUNDS], harness)

    def _scan(self, tokens: Ints, harness: np.random.Generator) -> None:
        law = self.design.p[0, 0]
        stream = tokens[tokens >= 0]
        first, last = tokens[:, 0], tokens[np.arange(len(tokens)), (tokens >= 0).sum(1) - 1]
        if law[stream].min() <= 0:
            return  # an impossible token: its table already holds infinite evidence
        for name, later, earlier in zip(LAG_SCANS, (stream, first, first), (stream, first, last), strict=True):
            self.scans[name].append(log_e_all_lags(later, earlier, law, harness))

    def scan_evidence(self) -> dict[str, float]:
        """ln E of each scan: the mean over a fixed number of looks, those still to come counted as zero."""
        return {
            name: float(logsumexp([log_e for log_e, _ in looks]) - np.log(MAX_SCANS)) if looks else 0.0
            for name, looks in self.scans.items()
        }

    def bonus_evidence(self) -> float:
        """ln E that the bonus token is missing: it follows the gamma-th token less often than exact match would.

        Any rule that accepts at least as often as `sample from p, compare` emits a bonus token in a share
        b = sum p q of the rounds that reach position gamma; at most half that share would be a rule that forgets it.
        """
        least = float((self.design.p[:, -2] * self.design.q[:, -1]).sum(-1).min())
        missing = self.reached - self.bonus
        if least <= 0:
            return 0.0
        return float(self.bonus * np.log(0.5) + missing * (np.log1p(-0.5 * least) - np.log1p(-least)))

    def strongest(self) -> float:
        """The largest ln E of any hypothesis of this design."""
        tables = max(log_e_value(table) for table in self.tables.values())
        return max(tables, self.bonus_evidence(), *self.scan_evidence().values())

    def results(self, hypotheses: int) -> list[HypothesisResult]:
        """Every hypothesis of this design, with its evidence."""
        design = self.design.name
        results = [_of_table(design, table, hypotheses) for table in self.tables.values()]
        cell: dict[str, float | int] = {"observed": self.bonus, "reached": self.reached}
        results.append(HypothesisResult(design, BONUS, self.reached, self.bonus_evidence(), worst_cell=cell))
        for name, log_e in self.scan_evidence().items():
            lag = max(self.scans[name])[1] if self.scans[name] else 0
            results.append(HypothesisResult(design, name, self.drawn, log_e, worst_cell={"lag": lag}))
        return results


def _of_table(design: str, table: Table, hypotheses: int) -> HypothesisResult:
    samples = int(table.counts.sum())
    g, df, p_value = g_test(table)
    tokens = int((table.law > 0).sum(-1).max())
    sees = detectable_tv(samples, len(table.law), tokens, hypotheses)
    cell = worst_cell(table)
    label = int(cell["label"])
    return HypothesisResult(
        design, table.name, samples, log_e_value(table), g, df, p_value, effect(table), sees, cell,
        tuple(table.law[label].tolist()), tuple(table.counts[label].tolist()),
    )  # fmt: skip
