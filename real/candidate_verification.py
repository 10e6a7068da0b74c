"""Verification rules for several candidates at one position: what token trees are verified by, node by node.

Candidate s was drawn from the draft's law, independently or without those before it, and is held against what is left
of the target's. Like the rules of chains these are pure functions and a draw (`real.verification`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from real.rows import Randomness, at, check_rows, draw, invert, one_hot, positive_part, uniforms
from real.verification import RULES, VerificationRule


@dataclass(frozen=True)
class CandidateVerdict:
    """What was decided at one position. Leading batch dimensions are those of the input."""

    chosen: Tensor
    """[...] int64, index of the accepted candidate, or their number when none was accepted."""
    token: Tensor
    """[...] int64, the accepted candidate, or the correction drawn from what is left of p."""


@dataclass(frozen=True)
class CandidateRule:
    """Verify k candidates for one position of a token tree: `rule(p, q, candidates, generator) -> CandidateVerdict`."""

    replacement: bool
    """Whether candidates were drawn from q independently, or each without those before it (see `candidate_law`)."""

    def choice(self, p: Tensor, q: Tensor | None, candidates: Tensor) -> tuple[Tensor, Tensor]:
        """[..., k+1] the chance that each candidate, or none, is accepted, and [..., vocab] what is left of p then.

        Candidate s is accepted with min(1, p_s(x) / q_s(x)), p_1 = p; a rejection leaves p_{s+1} = norm((p_s - q_s)+)
        (SpecInfer's multi-round sampling: Miao et al. 2024, arXiv:2305.09781; without replacement Sequoia: Chen et al.
        2024, arXiv:2402.12374). A candidate -1 is none: it is passed over.
        """
        undecided = torch.ones_like(p[..., 0])
        chances = []
        for s in range(candidates.shape[-1]):
            drafted = candidates[..., s]
            law = one_hot(drafted, p) if q is None else candidate_law(q, candidates[..., :s], self.replacement)
            q_drafted = at(law, drafted)
            tiny = torch.finfo(p.dtype).tiny
            ratio = (at(p, drafted) / q_drafted.clamp_min(tiny)).clamp_max(1.0)
            accept = torch.where((drafted >= 0) & (q_drafted > 0), ratio, 0.0)
            chances.append(undecided * accept)
            undecided = undecided * (1.0 - accept)
            left = positive_part(p, law)
            p = torch.where((drafted >= 0)[..., None], left / left.sum(-1, keepdim=True), p)
        return torch.stack([*chances, undecided], dim=-1), p

    def __call__(
        self, p: Tensor, q: Tensor | None, candidates: Tensor, generator: Randomness = None
    ) -> CandidateVerdict:
        """Verify the candidates of one position, or of a batch of positions.

        Args:
            p: [..., vocab] target probabilities.
            q: [..., vocab] the draft's; with replacement also [..., k, vocab], a law for each candidate. None for
                candidates that were not sampled: each has a one-hot law.
            candidates: [..., k] int64, in the order in which they were drawn, distinct where q is None; k may be 0,
                and -1 stands for a candidate that is not there.
            generator: source of the two uniforms per position.

        Raises:
            ValueError: shapes disagree, or a row on the CPU is no distribution.
        """
        k, vocab = candidates.shape[-1], p.shape[-1]
        shared = (*candidates.shape[:-1], vocab)
        allowed = (shared, (*candidates.shape, vocab)) if self.replacement else (shared,)
        fits = q is None or q.shape in allowed
        if p.shape != shared or not fits or (k > vocab and not self.replacement):
            raise ValueError(
                f"p must be {list(shared)} and q {' or '.join(str(list(x)) for x in allowed)} for candidates "
                f"{list(candidates.shape)}, got {list(p.shape)} and {None if q is None else list(q.shape)}"
            )
        check_rows("p", p)
        if q is not None:
            check_rows("q", q)
        return self.decide(p, q, candidates, uniforms((*candidates.shape[:-1], 2), p.device, generator))

    def decide(self, p: Tensor, q: Tensor | None, candidates: Tensor, uniform: Tensor) -> CandidateVerdict:
        """The verdict that two given uniforms [..., 2] lead to; see `__call__`, whose checks it leaves out."""
        chances, left = self.choice(p, q, candidates)
        chosen = invert(chances, uniform[..., 0])
        correction = invert(left, uniform[..., 1])
        offered = torch.cat([candidates, correction[..., None]], dim=-1)
        return CandidateVerdict(chosen, offered.gather(-1, chosen[..., None]).squeeze(-1))


def candidate_law(q: Tensor, earlier: Tensor, replacement: bool) -> Tensor:
    """[..., vocab] the law of the candidate drawn after `earlier` [..., s].

    Without replacement it is q without the earlier candidates; where q has nothing left, uniform over untried tokens.
    """
    if replacement:
        return q if q.dim() == earlier.dim() else q[..., earlier.shape[-1], :]
    untried = torch.ones_like(q).scatter(-1, earlier.clamp_min(0), 0.0)  # the missing come after the last of a row
    left = q * untried
    left = torch.where(left.sum(-1, keepdim=True) > 0, left, untried)
    return left / left.sum(-1, keepdim=True)


def draw_candidates(q: Tensor, k: int, replacement: bool, generator: Randomness = None) -> Tensor:
    """[..., k] candidates from q [..., vocab], drawn as `CandidateRule(replacement)` takes them to have been."""
    candidates = torch.empty((*q.shape[:-1], 0), dtype=torch.int64, device=q.device)
    for _ in range(k):
        token = draw(candidate_law(q, candidates, replacement), generator)
        candidates = torch.cat([candidates, token[..., None]], dim=-1)
    return candidates


multi_round = CandidateRule(replacement=True)
without_replacement = CandidateRule(replacement=False)

CANDIDATE_RULES: dict[str, CandidateRule] = {"multi_round": multi_round, "without_replacement": without_replacement}
"""Every rule for several candidates at one position, by name."""


def rule_named(name: str) -> VerificationRule | CandidateRule:
    """A rule for chains or for trees by its name.

    Raises:
        ValueError: there is none of that name.
    """
    rules: dict[str, VerificationRule | CandidateRule] = {**RULES, **CANDIDATE_RULES}
    if name not in rules:
        raise ValueError(
            f"unknown rule '{name}'; for chains {', '.join(RULES)}, for trees {', '.join(CANDIDATE_RULES)}"
        )
    return rules[name]
