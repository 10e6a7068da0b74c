"""Verification rules: from target and draft probabilities to accepted tokens, with no model in sight.

A round drafts gamma tokens, x_i ~ q[i], and the target then gives gamma+1 laws p[0..gamma], p[i] after i drafted
tokens. A rule decides how many of them to keep and which token follows. Every rule here is two pure functions:

    marginal_acceptance(p, q, draft_ids) -> [..., gamma]   P(at least i+1 tokens are accepted | draft_ids)
    correction(p, q, draft_ids, accepted) -> [..., vocab]  weights of the token that follows `accepted` drafted ones

and a draw from them, shared by all. So a test that enumerates those two functions has tested what runs in production:
the draw is one uniform against the marginals and one inverse of a cumulative sum, and nothing else is random.

Past its last row q counts as zero: nothing was drafted there, so the bonus token's weights (p - q)+ are p itself. Rows
of a batch may have drafted fewer tokens than others: their draft_ids end in -1 and their q in rows of zeros, and a
place with q(x) = 0 is never accepted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from real.rows import (
    Randomness,
    at,
    check_rows,
    check_shapes,
    invert,
    one_hot,
    pad_row,
    positive_part,
    row,
    uniforms,
)


@dataclass(frozen=True)
class Verdict:
    """What one verification decided. Leading batch dimensions are those of the input."""

    accepted: Tensor
    """[...] int64, drafted tokens kept, 0..gamma."""
    next_token: Tensor
    """[...] int64, the correction (accepted < gamma) or the bonus token, emitted AFTER the accepted ones."""
    accept_probability: Tensor
    """[..., gamma] min(1, p/q) of every drafted token, reached or not: its mean estimates alpha."""


MarginalAcceptance = Callable[[Tensor, Tensor, Tensor], Tensor]
Correction = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class ChainRule:
    """A verification rule for a chain of drafted tokens: `rule(p, q, draft_ids, generator) -> Verdict`."""

    marginal_acceptance: MarginalAcceptance
    correction: Correction
    lossless: bool = True

    def __call__(self, p: Tensor, q: Tensor | None, draft_ids: Tensor, generator: Randomness = None) -> Verdict:
        """Verify one round, or a batch of rounds.

        Args:
            p: [..., gamma+1, vocab] target probabilities; row i follows i drafted tokens.
            q: [..., gamma, vocab] draft probabilities, or None for a deterministic draft (one-hot at draft_ids).
            draft_ids: [..., gamma] int64, -1 after a row's last drafted token; gamma may be 0, and the token is then
                sampled from p[0].
            generator: source of the two uniforms per round, on the device of `p`; one for all or one a row.

        Raises:
            ValueError: shapes disagree; or, on the CPU, a row is no distribution (a device's values are left unread,
                since reading them would stall it).
        """
        check_shapes(p, q, draft_ids)
        check_rows("p", p)
        if q is None:
            q = one_hot(draft_ids, p)
        else:
            check_rows("q", q, blank=draft_ids < 0)
        marginals = self.marginal_acceptance(p, q, draft_ids)
        uniform = uniforms((*draft_ids.shape[:-1], 2), p.device, generator)
        accepted = (uniform[..., :1] < marginals).sum(-1)
        next_token = invert(self.correction(p, q, draft_ids, accepted), uniform[..., 1])
        return Verdict(accepted, next_token, accept_probability(p, q, draft_ids))


# ---- rejection sampling and its relatives


def accept_probability(p: Tensor, q: Tensor, draft_ids: Tensor, lenience: float = 1.0) -> Tensor:
    """[..., gamma] min(1, p(x) / (lenience q(x))) of each drafted token x; 0 wherever p(x) is 0."""
    return (draft_ratio(p, q, draft_ids) / lenience).clamp_max(1.0)


def draft_ratio(p: Tensor, q: Tensor, draft_ids: Tensor) -> Tensor:
    """[..., gamma] p(x) / q(x) of each drafted token x; 0 where q(x) is 0, as where nothing was drafted."""
    p_drafted, q_drafted = at(p[..., :-1, :], draft_ids), at(q, draft_ids)
    return torch.where(q_drafted > 0, p_drafted / q_drafted.clamp_min(torch.finfo(p.dtype).tiny), 0.0)


def rejection_marginals(p: Tensor, q: Tensor, draft_ids: Tensor) -> Tensor:
    """P(0..i accepted) = prod_j min(1, p_j(x_j) / q_j(x_j)) (Leviathan et al. 2023, arXiv:2211.17192, Algorithm 1)."""
    return accept_probability(p, q, draft_ids).cumprod(-1)


def residual(p: Tensor, q: Tensor, draft_ids: Tensor, accepted: Tensor) -> Tensor:
    """Weights (p - q)+ at the first rejected position, p for the bonus token (Leviathan et al. 2023, Algorithm 1)."""
    return positive_part(row(p, accepted), row(q, accepted))


def lenient(lenience: float) -> ChainRule:
    """LOSSY: q is multiplied by `lenience` in (0, 1] before it is compared with p (Leviathan et al. 2023, App. A.5).

    Accepts with min(1, p / (lenience q)), so alpha = sum min(q, p / lenience) >= the lossless alpha, and no token
    comes out with more than p / lenience. lenience = 1 is rejection sampling.
    """
    if not 0 < lenience <= 1:
        raise ValueError(f"lenience must be in (0, 1], got {lenience}; 1 is lossless")

    def marginals(p: Tensor, q: Tensor, draft_ids: Tensor) -> Tensor:
        return accept_probability(p, q, draft_ids, lenience).cumprod(-1)

    return ChainRule(marginals, residual, lossless=lenience == 1)


def typical(epsilon: float = 0.09, delta: float = 0.3) -> ChainRule:
    """LOSSY: keep x when p(x) > min(epsilon, delta exp(-H(p))), H in nats (Medusa, arXiv:2401.10774, section 2.3.1).

    q plays no part; the token after the accepted ones is sampled from p. The defaults are those of the paper's code.
    alpha = sum of q over the tokens above the threshold.
    """
    if not (0 < epsilon <= 1 and delta > 0):
        raise ValueError(f"typical acceptance needs epsilon in (0, 1] and delta > 0, got {epsilon} and {delta}")

    def marginals(p: Tensor, q: Tensor, draft_ids: Tensor) -> Tensor:
        drafted_rows = p[..., :-1, :]
        entropy = torch.special.entr(drafted_rows).sum(-1)
        threshold = (delta * torch.exp(-entropy)).clamp_max(epsilon)
        kept = (at(drafted_rows, draft_ids) > threshold) & (draft_ids >= 0)
        return kept.to(p.dtype).cumprod(-1)

    return ChainRule(marginals, lambda p, q, draft_ids, accepted: row(p, accepted), lossless=False)


def exact_match_marginals(p: Tensor, q: Tensor, draft_ids: Tensor) -> Tensor:
    """Sample y_i ~ p_i and accept while y_i = x_i: prod_j p_j(x_j), the q of a one-hot draft (engines' simplest rule).

    alpha = sum p q, never more than rejection sampling's sum min(p, q); equal when the draft is deterministic.
    """
    return rejection_marginals(p, one_hot(draft_ids, p), draft_ids)


def exact_match_correction(p: Tensor, q: Tensor, draft_ids: Tensor, accepted: Tensor) -> Tensor:
    """The target's own sample, known to differ from the drafted token: p without it."""
    return residual(p, one_hot(draft_ids, p), draft_ids, accepted)


# ---- block verification


def block_weight(p: Tensor, q: Tensor, draft_ids: Tensor) -> Tensor:
    """[..., gamma+1] w_0 = 1, w_i = min(1, w_{i-1} p(x_i) / q(x_i)) (Sun et al. 2024, arXiv:2403.10444, Algorithm 2).

    w_i is P(at least i tokens accepted | x_1..x_i); token by token it would be the product of min(1, p/q).
    """
    ratio = draft_ratio(p, q, draft_ids)
    weights = [torch.ones_like(p[..., 0, 0])]
    for i in range(draft_ids.shape[-1]):
        weights.append((weights[-1] * ratio[..., i]).clamp_max(1.0))
    return torch.stack(weights, dim=-1)


def block_marginals(p: Tensor, q: Tensor, draft_ids: Tensor) -> Tensor:
    """P(accepted >= i | x) = 1 - prod_{k >= i} (1 - h_k), h_k the chance that position k ends the accepted block.

    h_k = e_k / (e_k + 1 - w_k), e_k = sum (w_k p_k - q_k)+ (Sun et al. 2024, Algorithm 2); with q zero past its last
    row this gives h_gamma = w_gamma. Where e_k and 1 - w_k both vanish p_k = q_k, position k+1 is then always
    accepted, and h_k does not matter.
    """
    weight = block_weight(p, q, draft_ids)
    excess = (weight[..., None] * p - pad_row(q)).clamp_min(0.0).sum(-1)
    total = excess + 1.0 - weight
    h = torch.where(total > 0, excess / total, 1.0)[..., 1:]
    return 1.0 - (1.0 - h).flip(-1).cumprod(-1).flip(-1)


def block_correction(p: Tensor, q: Tensor, draft_ids: Tensor, accepted: Tensor) -> Tensor:
    """Weights (w p - q)+ after the accepted block, w its weight (Sun et al. 2024, Algorithm 2)."""
    weight = block_weight(p, q, draft_ids).gather(-1, accepted[..., None])
    return positive_part(row(p, accepted) * weight, row(q, accepted))


# ---- greedy


def greedy(p: Tensor, q: Tensor | None, draft_ids: Tensor, generator: Randomness = None) -> Verdict:
    """Keep drafted tokens while they are the target's argmax; then emit the target's argmax. Draws nothing.

    `p` may be logits: only the order within a row counts, and logits can differ where probabilities have rounded to a
    tie. Ties go to the first index. `accept_probability` is 1 where the token matches, else 0.

    Raises:
        ValueError: shapes disagree, or a row on the CPU holds NaN.
    """
    check_shapes(p, q, draft_ids)
    if p.device.type == "cpu" and bool(p.isnan().any()):
        raise ValueError(f"p holds NaN in row {tuple(p.isnan().any(-1).nonzero()[0].tolist())}")
    best = p.argmax(-1)
    match = best[..., :-1] == draft_ids
    accepted = match.cumprod(-1).sum(-1)
    return Verdict(accepted, best.gather(-1, accepted[..., None]).squeeze(-1), match.to(torch.get_default_dtype()))


rejection_sampling = ChainRule(rejection_marginals, residual)
block_verification = ChainRule(block_marginals, block_correction)
exact_match = ChainRule(exact_match_marginals, exact_match_correction)
typical_acceptance = typical()
lenience = lenient(0.5)

VerificationRule = Callable[[Tensor, Tensor | None, Tensor, Randomness], Verdict]

RULES: dict[str, VerificationRule] = {
    "greedy": greedy,
    "rejection_sampling": rejection_sampling,
    "block_verification": block_verification,
    "exact_match": exact_match,
    "typical_acceptance": typical_acceptance,
    "lenience": lenience,
}
"""Every chain rule by name; `typical_acceptance` and `lenience` change the distribution on purpose."""
