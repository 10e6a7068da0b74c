"""What rounds yield at every draft length, and how sure that is: the acceptance that `analysis.plan` works with.

A law has an estimate and draws from what is unknown of it, row by row, so that whatever is computed from it has an
interval: the same thing computed on every row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit, logit
from scipy.stats import norm

from analysis.fit import ProposalFit
from analysis.pooling import Array, PooledRates
from sim.theory import check_gamma, check_probability

DRAWS = 400
NODES = np.asarray(norm.ppf((np.arange(15) + 0.5) / 15))
"""prompts of a category that stand for all of them, in standard deviations: equally probable"""


@dataclass(frozen=True)
class DraftLaw:
    """What rounds yield; row 0 is the estimate, the other rows are draws from what is unknown of it."""

    tokens: Array
    """tokens emitted per round by draft length, the mean by which outputs take their time [rows, max_gamma + 1]"""
    drafted: Array | None = None
    """chance that exactly k tokens are proposed where gamma are asked for [rows, gamma, k]; None: always gamma"""
    ranks: Array | None = None
    """acceptance by depth and rank [depth, k], where trees were measured"""
    known_gamma: int | None = None
    """the longest draft that acceptance was measured at; None: what was given holds at every position"""
    spread: str | None = None
    """what the rows' spread stands for; None where all rows are one"""
    remarks: tuple[str, ...] = ()

    @property
    def max_gamma(self) -> int:
        """The longest draft of the law."""
        return int(self.tokens.shape[1]) - 1

    @property
    def conditional(self) -> tuple[float, ...]:
        """Conditional acceptance by position that yields the estimated tokens [max_gamma]."""
        marginal = np.diff(self.tokens[0])
        before = np.concatenate([[1.0], marginal[:-1]])
        return tuple(np.divide(marginal, before, out=np.zeros_like(marginal), where=before > 0).tolist())

    def up_to(self, gamma: int) -> DraftLaw:
        """The same law for drafts of at most gamma tokens."""
        gamma = min(gamma, self.max_gamma)
        drafted = None if self.drafted is None else self.drafted[:, : gamma + 1, : gamma + 1]
        return replace(self, tokens=self.tokens[:, : gamma + 1], drafted=drafted)


def tokens_by_length(conditional: ArrayLike, max_gamma: int) -> Array:
    """Tokens per round at draft lengths 0, 1, ... [rows, max_gamma + 1] from conditional acceptance [rows, positions].

    1 + the sum of marginal acceptances; the last position's acceptance holds for later ones.
    """
    table = np.atleast_2d(check_probability("conditional acceptance", conditional))
    position = np.minimum(np.arange(int(check_gamma(max_gamma))), table.shape[1] - 1)
    marginal = np.cumprod(table[:, position], axis=1)
    return np.hstack([np.ones((len(table), 1)), 1 + np.cumsum(marginal, axis=1)])


def from_interval(alpha: float, interval: tuple[float, float], max_gamma: int, draws: int = DRAWS) -> DraftLaw:
    """One alpha with its 95% interval: draws are normal on the logit scale, with a width to each side.

    Raises:
        ValueError: the interval does not hold alpha, or reaches 0 or 1.
    """
    low, high = interval
    if not 0 < low <= alpha <= high < 1:
        raise ValueError(f"an acceptance interval must satisfy 0 < lo <= alpha <= hi < 1, got {low}, {alpha}, {high}")
    scores = norm.ppf((np.arange(draws) + 0.5) / draws)
    centre = logit(alpha)
    reach = np.where(scores < 0, centre - logit(low), logit(high) - centre) / norm.ppf(0.975)
    rates = np.concatenate([[alpha], expit(centre + reach * scores)])
    return DraftLaw(tokens_by_length(rates[:, None], max_gamma), spread="the interval given for acceptance")


def from_counts(
    tested: ArrayLike, passed: ArrayLike, max_gamma: int, rng: np.random.Generator, spread: str, draws: int = DRAWS
) -> DraftLaw:
    """Tests and passes by position [positions], rounds independent; draws have the Jeffreys prior Beta(1/2, 1/2).

    Raises:
        ValueError: no token was tested at the first position.
    """
    tests, passes = np.asarray(tested, dtype=np.float64), np.asarray(passed, dtype=np.float64)
    reached = int(np.cumprod(tests > 0).sum())
    if not reached:
        raise ValueError("acceptance needs at least one tested token, got none; measure more rounds")
    tests, passes = tests[:reached], np.minimum(passes[:reached], tests[:reached])
    drawn = rng.beta(passes + 0.5, tests - passes + 0.5, size=(draws, reached))
    return DraftLaw(
        tokens_by_length(np.vstack([passes / tests, drawn]), max_gamma), known_gamma=reached, spread=spread
    )  # fmt: skip


def from_conditional(conditional: Sequence[float], max_gamma: int) -> DraftLaw:
    """Conditional acceptance by position, without any interval.

    Raises:
        ValueError: there is none, or one is no probability.
    """
    if not conditional:
        raise ValueError("conditional acceptance must have at least one position, got none")
    known = len(conditional) if len(conditional) > 1 else None
    return DraftLaw(tokens_by_length([list(conditional)], max_gamma), known_gamma=known)


def from_pooled(
    rates: PooledRates,
    proposals: ProposalFit | None,
    categories: Sequence[str],
    max_gamma: int,
    spread: str = "acceptance, from prompts: their category, and how prompts differ",
) -> DraftLaw:
    """The law of new prompts, equally many of each category, from the posterior of their rates.

    Outputs are as long on hard prompts as on easy ones, so the mean over prompts is that of rounds per token.

    Args:
        rates: acceptance of what is proposed.
        proposals: how much is proposed; None: always as much as asked for.
        categories: those that calibration saw, by name.
        max_gamma: longest draft.
        spread: what the draws stand for.
    """
    unknown = sorted(set(categories) - set(rates.categories))
    if unknown or not categories:
        raise ValueError(f"categories {unknown} were not measured; measured: {list(rates.categories)}")
    rounds_per_token, at_least, weight = 0.0, np.zeros(1), np.zeros(1)
    for category in categories:
        marginal = np.cumprod(_prompt_rates(rates, category, max_gamma), axis=2)
        reach = np.ones((len(marginal), 1, max_gamma)) if proposals is None else _reach(proposals, category, max_gamma)
        gained = marginal[:, :, None] * reach[:, None]
        inverse = 1 / (1 + np.cumsum(gained, axis=3))  # [draws, prompts, prompts of proposals, gamma]
        rounds_per_token = rounds_per_token + inverse.mean(axis=(1, 2)) / len(categories)
        of_proposals = inverse.sum(axis=1)
        at_least = at_least + np.einsum("dmg,dmk->dgk", of_proposals, reach)
        weight = weight + of_proposals.sum(axis=1)
    rounds = np.vstack([np.mean(rounds_per_token, axis=0), rounds_per_token])
    tokens = np.hstack([np.ones((len(rounds), 1)), 1 / rounds])
    drafted = None
    if proposals is not None:
        drafted = exactly(
            np.concatenate([at_least.sum(0)[None] / weight.sum(0)[:, None], at_least / weight[..., None]])
        )
    return DraftLaw(tokens, drafted, known_gamma=rates.offset.shape[1], spread=spread)


def of_outputs(law: DraftLaw, output_tokens: int, shortened: bool) -> DraftLaw:
    """The same law for outputs of so many tokens, the last round of which emits no more than is still wanted.

    Walks through an output token by token: from the chance that a round begins after n tokens follow those after more.

    Args:
        law: of outputs without end.
        output_tokens: of each request, the token that prefill yields left out.
        shortened: whether a round drafts at most the tokens still wanted less one, as our loop does; engines draft as
            ever and drop what is too much.

    Raises:
        ValueError: output_tokens is below 1.
    """
    if output_tokens < 1:
        raise ValueError(f"output_tokens must be >= 1, got {output_tokens}; leave it out for outputs without end")
    rows, lengths = law.tokens.shape
    reach = np.hstack([np.ones((rows, 1)), np.minimum.accumulate(np.diff(law.tokens, axis=1), axis=1)])
    rounds, asked = np.ones((rows, lengths)), np.zeros((rows, lengths, lengths))
    for gamma in range(lengths):
        begins = np.zeros((rows, output_tokens + gamma + 2))
        begins[:, 0] = 1.0
        emits = reach[:, : gamma + 1] - np.hstack([reach[:, 1 : gamma + 1], np.zeros((rows, 1))])
        for done in range(output_tokens):
            begins[:, done + 1 : done + gamma + 2] += begins[:, done, None] * emits
            limit = min(gamma, output_tokens - done - 1) if shortened else gamma
            asked[:, gamma, limit] += begins[:, done]
        rounds[:, gamma] = begins[:, :output_tokens].sum(axis=1)
    drafted = law.drafted
    if shortened:
        asked /= rounds[..., None]
        drafted = asked if drafted is None else np.einsum("rga,rak->rgk", asked, drafted)
    return replace(law, tokens=output_tokens / rounds, drafted=drafted)


def exactly(at_least: Array) -> Array:
    """Chance of exactly 0, 1, ... proposed tokens from that of 1, 2, ... or more.

    Args:
        at_least: by draft length 1, 2, ..., or the same for all of them [rows, gamma or 1, k].

    Returns:
        By draft length 0, 1, ... [rows, gamma + 1, k + 1].
    """
    rows, _, longest = at_least.shape
    reached = np.ones((rows, longest + 1, longest + 2))
    reached[:, 1:, 1:-1] = at_least
    reached[:, :, 1:] *= np.arange(1, longest + 2) <= np.arange(longest + 1)[:, None]
    return reached[:, :, :-1] - reached[:, :, 1:]


def _prompt_rates(rates: PooledRates, category: str, depth: int) -> Array:
    """Rates of a category's prompts by position [draws, prompts, depth]."""
    centre = rates.category_logit[:, rates.categories.index(category), None]
    offset = rates.offset[:, np.minimum(np.arange(depth), rates.offset.shape[1] - 1)]
    return np.asarray(expit(centre[..., None] + rates.within[:, None, None] * NODES[:, None] + offset[:, None, :]))


def _reach(proposals: ProposalFit, category: str, depth: int) -> Array:
    """Chance of at least 1, 2, ... proposed tokens [draws, prompts, depth]."""
    first = _prompt_rates(proposals.proposes, category, 1)
    position = np.minimum(np.arange(depth - 1), proposals.continues.shape[1] - 1)
    further = np.cumprod(proposals.continues[:, position], axis=1)
    return np.asarray(first * np.hstack([np.ones((len(first), 1)), further])[:, None, :])
