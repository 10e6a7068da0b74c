"""Partial pooling: what a few prompts per category say about the next prompts of that category.

    logit rate of prompt i of category c at position k = eta_i + offset_k
    eta_i ~ Normal(kappa_c, within^2),  kappa_c ~ Normal(mu, between^2)

A category with few prompts borrows from the draft's other categories, by as much as the data say categories are alike
(Gelman & Hill 2007, ch. 12). The posterior is summed exactly on a grid of logits, so nothing is assumed about its
shape: rates near 0 or 1, and variances that may be 0, need no correction for small samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from scipy.stats import halfnorm

from analysis.fit.acceptance import AcceptanceCounts

Array = NDArray[np.float64]
Index = NDArray[np.int64]

LOGITS = np.linspace(-8.0, 8.0, 321)
STEP = float(LOGITS[1] - LOGITS[0])
WITHIN_PRIOR, BETWEEN_PRIOR, OFFSET_PRIOR = 1.0, 1.0, 0.5
"""Scales, in logits, of half-normal priors on the two standard deviations and of the normal prior on offsets: weakly
informative (Gelman 2006). They were chosen before any real run was looked at, and stay."""
QUANTILES = (np.arange(20) + 0.5) / 20
WITHIN = np.asarray(halfnorm.ppf(QUANTILES, scale=WITHIN_PRIOR))
BETWEEN = np.asarray(halfnorm.ppf(QUANTILES, scale=BETWEEN_PRIOR))
"""Grids that are equally probable under their priors, so that sums over them need no weights."""


@dataclass(frozen=True)
class PooledRates:
    """Draws from the posterior of a draft's rates."""

    categories: tuple[str, ...]
    category_logit: Array
    """kappa [draws, categories], at position 0"""
    mean_logit: Array
    """mu [draws]"""
    between: Array
    """standard deviation between categories [draws], in logits"""
    within: Array
    """standard deviation between prompts of a category [draws], in logits"""
    offset: Array
    """of each position [draws, positions], position 0 being 0"""

    def category_rate(self, category: str) -> Array:
        """Rate at position 0 of a typical prompt of the category [draws]."""
        return np.asarray(expit(self.category_logit[:, self.categories.index(category)]))

    def new_prompts(self, rng: np.random.Generator, which: Index, category: str, prompts: int, depth: int) -> Array:
        """Rates of prompts never seen, under the draws `which` [len(which), prompts, depth].

        Positions beyond the calibrated ones have the last one's rate; a category that calibration never saw is drawn
        from the distribution over categories.
        """
        if category in self.categories:
            centre = self.category_logit[which, self.categories.index(category)]
        else:
            centre = self.mean_logit[which] + self.between[which] * rng.standard_normal(len(which))
        eta = centre[:, None] + self.within[which, None] * rng.standard_normal((len(which), prompts))
        offset = self.offset[which][:, np.minimum(np.arange(depth), self.offset.shape[1] - 1)]
        return np.asarray(expit(eta[:, :, None] + offset[:, None, :]))


def pool(counts: AcceptanceCounts, rng: np.random.Generator, draws: int = 400) -> PooledRates:
    """Draw from the posterior of the rates behind `counts` (requests of one draft, all categories).

    mu has the logistic prior (a uniform rate), the standard deviations half-normal priors. Offsets are fitted first
    (`fit_offsets`) and drawn from their normal approximation; the logits of prompts move against them, by the offsets'
    mean weighted with each position's information, because the data fix the sum of the two.
    """
    offset, deviation, share = fit_offsets(counts)
    categories, of_category = np.unique(np.asarray(counts.category), return_inverse=True)
    member = (of_category[:, None] == np.arange(len(categories))).astype(np.float64)
    kernels = _kernels(BETWEEN_PRIOR)

    by_prompt = _log_likelihood(counts, offset)
    # [within, logit kappa, category]: prompts integrated out.
    by_category = _log_average(_kernels(WITHIN_PRIOR), by_prompt) @ member
    # [within, between, logit mu]: categories integrated out.
    joint = np.stack([_log_average(kernels, part).sum(axis=-1) for part in by_category])
    joint += np.log(expit(LOGITS) * expit(-LOGITS))
    chosen = _choose(rng, np.exp(joint - joint.max()).ravel(), draws)
    within, between, mu = np.unravel_index(chosen, joint.shape)

    # [draws, category, logit kappa]
    given = np.log(np.maximum(kernels[between, mu], 1e-300))[:, None, :] + by_category[within].transpose(0, 2, 1)
    cumulative = np.cumsum(np.exp(given - given.max(axis=-1, keepdims=True)), axis=-1)
    level = rng.random((draws, len(categories), 1)) * cumulative[:, :, -1:]
    kappa = LOGITS[np.minimum((cumulative < level).sum(axis=-1), len(LOGITS) - 1)]
    drawn = offset + deviation * rng.standard_normal((draws, len(offset)))
    against = (drawn - offset) @ share
    jitter = STEP * (rng.random((draws, len(categories) + 1)) - 0.5)
    return PooledRates(
        categories=tuple(map(str, categories)),
        category_logit=kappa + jitter[:, 1:] - against[:, None],
        mean_logit=LOGITS[mu] + jitter[:, 0] - against,
        between=BETWEEN[between],
        within=WITHIN[within],
        offset=drawn,
    )


def fit_offsets(counts: AcceptanceCounts, iterations: int = 60) -> tuple[Array, Array, Array]:
    """Logit offsets of positions against position 0, prompts held apart.

    Deep positions are reached on easy prompts more often than on hard ones, so comparing raw pass rates by position
    would take a difference between prompts for one between positions. EM integrates the prompts out (Normal(mu, s^2),
    categories aside), with one Newton step a turn on the offsets under their normal prior.

    Returns:
        Offsets and their posterior standard deviations, both 0 at position 0, and every position's share of the
        information on a prompt's logit [positions].
    """
    tested, passed = counts.weight * counts.tested, counts.weight * counts.passed
    offset, information = np.zeros(tested.shape[1]), np.ones(tested.shape[1])
    mean, variance = 0.0, 1.0
    for _ in range(iterations):
        log_weight = _log_likelihood(counts, offset).T - (LOGITS - mean) ** 2 / (2 * variance)
        weight = np.exp(log_weight - log_weight.max(axis=1, keepdims=True))
        weight /= weight.sum(axis=1, keepdims=True)
        rate = expit(LOGITS[:, None] + offset)
        reached = weight.T @ tested
        gradient = passed.sum(axis=0) - (reached * rate).sum(axis=0) - offset / OFFSET_PRIOR**2
        information = (reached * rate * (1 - rate)).sum(axis=0)
        offset = offset + gradient / (information + 1 / OFFSET_PRIOR**2)
        offset[0] = 0.0
        mean = float((weight @ LOGITS).mean())
        variance = max(float((weight @ (LOGITS - mean) ** 2).mean()), STEP**2)
    deviation = 1 / np.sqrt(information + 1 / OFFSET_PRIOR**2)
    deviation[0] = 0.0
    return offset, deviation, information / information.sum()


def _log_likelihood(counts: AcceptanceCounts, offset: Array) -> Array:
    """Log-likelihood of every prompt on the grid [logits, prompts]."""
    eta = LOGITS[:, None] + offset
    log_pass, log_fail = -np.logaddexp(0.0, -eta), -np.logaddexp(0.0, eta)
    failed = counts.tested - counts.passed
    return np.asarray(counts.weight * (log_pass @ counts.passed.T + log_fail @ failed.T))


@cache
def _kernels(prior: float) -> Array:
    """Normal(centre, scale^2) on the grid for every scale of a prior [scales, centres, logits]; rows sum to 1."""
    scales = np.asarray(halfnorm.ppf(QUANTILES, scale=prior))[:, None, None]
    density: Array = np.exp(-0.5 * ((LOGITS - LOGITS[:, None]) / scales) ** 2)
    density /= density.sum(axis=-1, keepdims=True)
    density.flags.writeable = False
    return density


def _log_average(kernels: Array, log_likelihood: Array) -> Array:
    """log of kernel @ exp(log_likelihood) for every kernel [kernels, logits, columns]."""
    highest = log_likelihood.max(axis=0)
    return np.asarray(np.log(np.maximum(kernels @ np.exp(log_likelihood - highest), 1e-300)) + highest)


def _choose(rng: np.random.Generator, weight: Array, draws: int) -> NDArray[np.intp]:
    """Indices drawn in proportion to `weight`."""
    return rng.choice(len(weight), size=draws, p=weight / weight.sum())
