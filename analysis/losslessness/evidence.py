"""How strongly a table of counts speaks against the target: exact e-values, and the familiar G-test beside them.

An e-value is a ratio whose mean under the null is at most one, so P(E >= 1/a) <= a with no asymptotics (Ville 1939;
Ramdas et al. 2023, arXiv:2210.01948). Here E is the likelihood of the counts when each row's law is drawn from a
Dirichlet around the target's, over their likelihood under the target: as tokens come in one by one, it is a martingale
whatever the labels depend on, so it may be looked at after every round and needs no large counts. Rare cells need no
pooling either, since the prior moves with the cell's own probability.

The prior's concentration says how fine a deviation to expect. We average over six decades, so that gross bugs show
after a few rounds and small leaks after many; the average of e-values is one.
"""

from __future__ import annotations

import numpy as np
from scipy.special import gammaln, logsumexp
from scipy.stats import chi2

from analysis.losslessness.rows import Floats
from analysis.losslessness.tables import Table

CONCENTRATIONS = 10.0 ** np.arange(1, 7)


def log_e_value(table: Table) -> float:
    """ln E of one table; infinite when a token of probability zero was seen.

    E = mean over A of prod_labels [ Gamma(A) / Gamma(A + N) prod_v Gamma(A p_v + N_v) / (Gamma(A p_v) p_v^N_v) ].
    """
    possible = table.law > 0
    if (table.counts[~possible] > 0).any():
        return float("inf")
    seen = table.counts.sum(-1) > 0
    law = np.where(possible, table.law, 1.0)[seen]
    counts, prior = table.counts[seen], CONCENTRATIONS[:, None, None] * law
    cells = gammaln(prior + counts) - gammaln(prior) - counts * np.log(law)
    totals = gammaln(CONCENTRATIONS[:, None]) - gammaln(CONCENTRATIONS[:, None] + counts.sum(-1))
    logs = (cells * possible[seen]).sum((-1, -2)) + totals.sum(-1)
    return float(logsumexp(logs) - np.log(len(CONCENTRATIONS)))


def g_test(table: Table, least_expected: float = 5.0) -> tuple[float, int, float]:
    """G = 2 sum N ln(N / E), its degrees of freedom, and the asymptotic chi-square p-value.

    Cells expected fewer than `least_expected` times are pooled within their row, and a row that keeps one cell is left
    out. The p-value is for reading beside the e-value, which decides: far in the tail chi-square is not exact.
    """
    expected = table.counts.sum(-1, keepdims=True) * table.law
    rare = expected < least_expected
    g, df = 0.0, 0
    kept = ~rare
    pooled_counts = np.where(rare, table.counts, 0).sum(-1)
    pooled_expected = np.where(rare, expected, 0.0).sum(-1)
    counts = np.concatenate([np.where(kept, table.counts, 0), pooled_counts[:, None]], axis=1)
    means = np.concatenate([np.where(kept, expected, 0.0), pooled_expected[:, None]], axis=1)
    cells = (means > 0).sum(-1)
    usable = cells >= 2
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(counts > 0, counts * np.log(counts / means), 0.0)
    g = 2.0 * float(terms[usable].sum())
    df = int((cells[usable] - 1).sum())
    return g, df, float(chi2.sf(g, df)) if df else 1.0


def effect(table: Table) -> float:
    """Estimated total variation of the joint law of label and token, less what noise alone would show; not below 0."""
    total = table.counts.sum()
    if total == 0:
        return 0.0
    rows = table.counts.sum(-1, keepdims=True)
    raw = 0.5 * np.abs(table.counts - rows * table.law).sum() / total
    noise = 0.5 * np.sqrt(2 / np.pi * rows * table.law * (1 - table.law)).sum() / total
    return float(max(0.0, raw - noise))


def worst_cell(table: Table) -> dict[str, float | int]:
    """The cell furthest from its expectation in standard errors."""
    expected = table.counts.sum(-1, keepdims=True) * table.law
    spread: Floats = np.sqrt(np.maximum(expected * (1 - table.law), 1e-300))
    off = np.where(table.counts == expected, 0.0, (table.counts - expected) / spread)
    label, token = np.unravel_index(int(np.abs(off).argmax()), off.shape)
    return {
        "label": int(label),
        "token": int(token),
        "observed": int(table.counts[label, token]),
        "expected": float(expected[label, token]),
        "standard_errors": float(np.clip(off[label, token], -1e6, 1e6)),
    }
