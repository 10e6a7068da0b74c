"""Dependence at every lag at once: one exact e-value from a few Fourier transforms.

Noise that is used twice need not show between neighbours: a ring buffer of random numbers repeats after its length.
Take two maps f, g of tokens to signs. Under the target the sign f(x_t) has a known mean m given the past, g(x_{t-k}) is
past, so for any small b

    E_k = prod_t exp(b f(x_t) g(x_{t-k})) / (cosh b + m g(x_{t-k}) sinh b)

has mean one, for every lag k. Its logarithm needs only sum_t f g at lag k, which one cross-correlation gives for all
lags, and the sum of g. The mean over lags, sign maps and b is again an e-value, at a price of ln(how many).
"""

from __future__ import annotations

import numpy as np
from scipy.fft import irfft, next_fast_len, rfft
from scipy.special import logsumexp

from analysis.losslessness.rows import Floats, Ints

SIGN_MAPS = 12
LEAST_OVERLAP = 256


def balanced_signs(p: Floats, maps: int, rng: np.random.Generator) -> Floats:
    """[maps, vocab] signs, each splitting `p` about evenly: tokens in random order go to the lighter side."""
    signs = np.empty((maps, len(p)))
    for sign in signs:
        weight = {1.0: 0.0, -1.0: 0.0}
        for token in rng.permutation(len(p)):
            side = 1.0 if weight[1.0] <= weight[-1.0] else -1.0
            sign[token] = side
            weight[side] += p[token]
    return signs


def log_e_all_lags(later: Ints, earlier: Ints, p: Floats, rng: np.random.Generator) -> tuple[float, int]:
    """ln E that `later[t]` depends on `earlier[t-k]` for some lag k >= 1, and the lag that speaks loudest.

    Args:
        later: [n] tokens, each of law `p` given everything before it.
        earlier: [n] tokens of the same stream, `earlier[t-1]` and before known when `later[t]` is drawn.
        p: [vocab] the target's law.
        rng: chooses the sign maps; must not be the sampler's own.
    """
    n = len(later)
    lags = np.arange(1, max(2, n - LEAST_OVERLAP))
    if n <= 2 * LEAST_OVERLAP:
        return 0.0, 0
    f_maps, g_maps = balanced_signs(p, SIGN_MAPS, rng), balanced_signs(p, SIGN_MAPS, rng)
    size = next_fast_len(2 * n, real=True)
    strength = np.sqrt(2 * np.log(1e10 * n) / n)
    best, loudest, logs = -np.inf, 0, []
    for f, g in zip(f_maps, g_maps, strict=True):
        f_t, g_t = f[later], g[earlier]
        correlation = irfft(rfft(f_t, size) * rfft(g_t, size).conj(), size)[lags]
        g_sum = np.cumsum(g_t)[n - 1 - lags]
        overlap = n - lags
        mean = float(p @ f)
        for b in (strength, -strength, 8 * strength, -8 * strength):
            plus = np.log(np.cosh(b) + mean * np.sinh(b))
            minus = np.log(np.cosh(b) - mean * np.sinh(b))
            log_e = b * correlation - 0.5 * ((overlap + g_sum) * plus + (overlap - g_sum) * minus)
            if log_e.max() > best:
                best, loudest = float(log_e.max()), int(lags[log_e.argmax()])
            logs.append(logsumexp(log_e))
    return float(logsumexp(logs) - np.log(len(logs) * len(lags))), loudest
