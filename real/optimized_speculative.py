"""The speculative loop: draft, verify in one forward, emit what the rule accepts and one token more.

Three slips of the algorithm as it is often printed are avoided here. The correction token comes AFTER the accepted
tokens. When all drafted tokens are accepted, one more is sampled from the target's last row, for free. And row i of the
target's logits is the distribution after i drafted tokens, since the forward begins with the last known token.

Rows of a batch accept different numbers of tokens and end at different times; each row's output is what it would be
alone. The host waits for the device once a round, to learn which tokens were accepted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from real.cache import KVCache
from real.candidate_verification import CandidateRule, without_replacement
from real.decoder import Decoder
from real.proposals import Draft, Proposal
from real.requests import Batch, Generation, OnTokens, Round, Step, check_limits, collect, prepare_cache
from real.sampling import SamplingSettings, probabilities
from real.tensor_parallel import same_number_on_all_ranks
from real.timing import Stopwatch
from real.tree_attention import Tail
from real.tree_verification import TreeTable, verify_tree, verify_tree_greedily
from real.verification import VerificationRule, greedy, rejection_sampling
from sim.controllers import Controller, FixedGamma, RoundOutcome
from sim.trees import TokenTree

DraftLength = int | Controller | TokenTree
"""How much to draft a round: a chain of so many tokens, one whose length a controller chooses, or a tree."""

Rule = VerificationRule | CandidateRule


def generate(
    decoder: Decoder,
    draft: Draft,
    prompt_ids: Tensor,
    *,
    gamma: DraftLength,
    max_new_tokens: int,
    settings: SamplingSettings,
    rule: Rule | None = None,
    stop_ids: frozenset[int] = frozenset(),
    seed: int = 0,
    on_tokens: OnTokens | None = None,
    cache: KVCache | None = None,
) -> Generation:
    """Generate for one prompt [n]; see `generate_batch`."""
    return generate_batch(
        decoder, draft, [prompt_ids], gamma=gamma, max_new_tokens=max_new_tokens, settings=settings, rule=rule,
        stop_ids=stop_ids, seeds=[seed], on_tokens=on_tokens, cache=cache,
    )[0]  # fmt: skip


def generate_batch(
    decoder: Decoder,
    draft: Draft,
    prompts: Sequence[Tensor],
    *,
    gamma: DraftLength,
    max_new_tokens: int,
    settings: SamplingSettings,
    rule: Rule | None = None,
    stop_ids: frozenset[int] = frozenset(),
    seeds: Sequence[int] | None = None,
    on_tokens: OnTokens | None = None,
    cache: KVCache | None = None,
) -> list[Generation]:
    """Generate with the target's own distribution, several tokens per forward (Leviathan et al. 2023, Algorithm 1).

    Args:
        decoder: the target.
        draft: proposes tokens; shapes its distribution with the same `settings`.
        prompts: [n] int64 each, on the decoder's device.
        gamma: tokens drafted per round, fewer where less than gamma + 1 are still wanted; or a controller that chooses
            it, or a tree to draft.
        max_new_tokens: never overshot.
        settings: temperature 0 is greedy.
        rule: verification rule; by default greedy matching at temperature 0, else rejection sampling for chains and
            sampling without replacement for trees.
        stop_ids: a request ends with the first of these, also inside an accepted block; it is part of the output.
        seeds: of each request's draft and verification; 0, 1, 2, ... if left out.
        on_tokens: called with the new tokens of every round, for streaming.
        cache: the target's, prefilled, to continue (see `prefill`); it is rolled back to the prompts first.

    Returns:
        For each prompt its new tokens and one `Round` per round. The prefill of target and draft is in no round.

    Raises:
        ValueError: gamma is below 1, the rule does not fit, or a prompt is unusable (see `prefill`).
    """
    steps = decode(
        decoder, draft, prompts, gamma=gamma, max_new_tokens=max_new_tokens, settings=settings, rule=rule,
        stop_ids=stop_ids, seeds=seeds, cache=cache,
    )  # fmt: skip
    return collect(steps, len(prompts), stop_ids, on_tokens)


@torch.inference_mode()
def decode(
    decoder: Decoder,
    draft: Draft,
    prompts: Sequence[Tensor],
    *,
    gamma: DraftLength,
    max_new_tokens: int,
    settings: SamplingSettings,
    rule: Rule | None = None,
    stop_ids: frozenset[int],
    seeds: Sequence[int] | None = None,
    cache: KVCache | None = None,
) -> Iterator[list[Step]]:
    """The rounds of `generate_batch`, one at a time, so that several generations can take turns."""
    tree = gamma if isinstance(gamma, TokenTree) else None
    controller = as_controller(gamma)
    rule = choose_rule(rule, settings, tree is not None)
    seeds = check_limits(max_new_tokens, prompts, seeds)
    capacity = max(map(len, prompts), default=0) + max_new_tokens + controller.max_gamma + 1
    cache = prepare_cache(decoder, prompts, capacity, draft.feature_layers, cache)
    batch = Batch(prompts, max_new_tokens, capacity, stop_ids, seeds, decoder.device)
    # Drawn, not counted up from the seed: the draft of one run must not share noise with another run's verification.
    draft.start(batch, cache, [_draw_seed(generator) for generator in batch.generators])
    controller.reset()
    keep_drafting = controller.keep_drafting if controller.stops_early else None
    clock = Stopwatch(decoder.device)
    while batch.rows:
        begin = clock.mark()
        # processes of one sharded target must agree, though a controller may go by times that differ between them
        asked = int(same_number_on_all_ranks(controller.next_gamma(batch.rows), decoder.device))
        limits = [min(asked, wanted - 1) for wanted in batch.wanted]
        if draft.feature_layers:  # what reads features has none to read after a single token
            limits = [limit if length > 1 else 0 for limit, length in zip(limits, batch.lengths, strict=True)]
        if max(limits) == 0:
            proposal = Proposal(batch.token_ids.new_empty((batch.rows, 0)), None)
        elif tree is not None:
            proposal = draft.propose_tree(batch, tree, isinstance(rule, CandidateRule) and rule.replacement)
            proposal = without_rows(proposal, [row for row, limit in enumerate(limits) if limit == 0])
        else:
            proposal = draft.propose(batch, limits, keep_drafting)
        proposed = clock.mark()
        table = None
        if proposal.trees is not None and proposal.token_ids.shape[1]:
            table = TreeTable.of(proposal.trees, proposal.token_ids.shape[1], decoder.device)
        tail = None if table is None else Tail(table.visible, table.depths)
        fed = torch.cat([batch.latest([1] * batch.rows), proposal.token_ids.clamp_min(0)], dim=1)
        logits = decoder.forward(fed, cache, tail=tail)
        verified = clock.mark()
        verdict = verify(logits, proposal, table, rule, settings, batch.generators)
        contexts = batch.lengths
        emitted = [batch.append(row, tokens) for row, tokens in enumerate(verdict.blocks)]
        if table is None:
            cache.rollback([length - 1 for length in batch.lengths])
        else:
            for row, tokens in enumerate(emitted):
                path = [0, *verdict.paths[row]][: len(tokens)]
                cache.keep_slots(row, contexts[row] - 1, [contexts[row] - 1 + node for node in path])
        end = clock.mark()
        lengths = [len(tokens) for tokens in emitted]
        controller.observe(RoundOutcome(asked, verdict.drafted, verdict.accepted, lengths, clock.seconds(begin, end)))
        steps = []
        for row, tokens in enumerate(emitted):
            drafted, accepted = verdict.drafted[row], verdict.accepted[row]
            measured = Round(
                context=contexts[row],
                gamma=controller.max_gamma,
                drafted=drafted,
                accepted=accepted,
                emitted=len(tokens),
                cut=len(tokens) < accepted + 1,
                start_seconds=clock.seconds(clock.origin, begin),
                draft_seconds=clock.seconds(begin, proposed),
                verify_seconds=clock.seconds(proposed, verified),
                other_seconds=clock.seconds(verified, end),
                batch=batch.rows,
                accept_probability=verdict.accept_probability[row],
                depth=drafted if proposal.trees is None else proposal.trees[row].depth,
                accepted_ranks=verdict.ranks[row],
            )
            steps.append(Step(batch.requests[row], tokens, measured))
        yield steps
        rows = batch.unfinished()
        if len(rows) < batch.rows:
            cache.keep_rows(rows)
            draft.keep_rows(rows)
            batch.keep_rows(rows)


@dataclass(frozen=True)
class Verdicts:
    """What a verification decided, on the host, row by row.

    Attributes:
        blocks: accepted tokens and the one after them.
        drafted, accepted: how many tokens.
        accept_probability: min(1, p/q) of each drafted token of a chain, none where none was drafted; None for trees.
        paths: the accepted nodes of each tree, 1 being the first drafted token.
        ranks: which sibling was accepted at each depth reached, -1 where none was; None where no tree was drafted.
    """

    blocks: list[list[int]]
    drafted: list[int]
    accepted: list[int]
    accept_probability: list[tuple[float, ...] | None]
    paths: list[list[int]]
    ranks: list[tuple[int, ...] | None]


def verify(
    logits: Tensor,
    proposal: Proposal,
    table: TreeTable | None,
    rule: Rule,
    settings: SamplingSettings,
    generators: Sequence[torch.Generator],
) -> Verdicts:
    """Apply a rule to the target's logits [rows, drafted + 1, vocab]; waits for the device once, for the outcome."""
    ids = proposal.token_ids
    p = logits if settings.greedy else probabilities(logits, settings)
    if table is None:
        assert not isinstance(rule, CandidateRule) or not ids.shape[1]
        chain_rule = (greedy if settings.greedy else rejection_sampling) if isinstance(rule, CandidateRule) else rule
        chain = chain_rule(p, proposal.probs, ids, generators)
        host = torch.cat([ids, chain.accepted[:, None], chain.next_token[:, None]], dim=1).tolist()
        chances = chain.accept_probability.tolist()
        drafted = [sum(token >= 0 for token in row[:-2]) for row in host]
        return Verdicts(
            [[*row[: row[-2]], row[-1]] for row in host], drafted, [row[-2] for row in host],
            [tuple(row[:n]) for row, n in zip(chances, drafted, strict=True)],
            [list(range(1, row[-2] + 1)) for row in host], [None] * len(host),
        )  # fmt: skip
    assert proposal.trees is not None
    drafted = [tree.size for tree in proposal.trees]
    if settings.greedy:
        found = verify_tree_greedily(logits, ids, table)
    else:
        assert isinstance(rule, CandidateRule)
        found = verify_tree(p, proposal.probs, ids, table, rule, generators)
    depth = table.depth
    host = torch.cat([found.accepted[:, None], found.next_token[:, None], found.path, found.ranks, ids], dim=1).tolist()
    blocks, paths = [], []
    ranks: list[tuple[int, ...] | None] = []
    for (accepted, next_token, *rest), own_depth in zip(host, table.row_depths, strict=True):
        path, tokens = rest[:accepted], rest[2 * depth :]
        siblings = rest[depth : depth + min(accepted + 1, own_depth)]
        blocks.append([*(tokens[node - 1] for node in path), next_token])
        paths.append(path)
        chosen = tuple(-1 if place == accepted else rank for place, rank in enumerate(siblings))
        ranks.append(chosen or None)  # a row that drafted nothing offered no siblings
    return Verdicts(
        blocks, drafted, [row[0] for row in host], [None if size else () for size in drafted], paths, ranks
    )  # fmt: skip


def without_rows(proposal: Proposal, rows: Sequence[int]) -> Proposal:
    """Trees for all rows but these, which would draft nothing if they were alone."""
    if not rows or proposal.trees is None:
        return proposal
    token_ids = proposal.token_ids.clone()
    token_ids[rows] = -1
    trees = tuple(TokenTree(()) if row in rows else tree for row, tree in enumerate(proposal.trees))
    return Proposal(token_ids, proposal.probs, trees)


def as_controller(gamma: DraftLength) -> Controller:
    """The controller behind a draft length; a tree counts as its number of tokens.

    Raises:
        ValueError: nothing would be drafted, or the controller must be told what will be accepted.
    """
    size = gamma.size if isinstance(gamma, TokenTree) else gamma
    if not isinstance(size, int):
        if size.foresees:
            raise ValueError(
                f"{type(size).__name__} must be told what the target will accept, which only a simulation knows; "
                "measure another controller"
            )
        return size
    if size < 1:
        raise ValueError(f"gamma must be >= 1, got {size}; use baseline_autoregressive.generate to decode without")
    return FixedGamma(size)


def choose_rule(rule: Rule | None, settings: SamplingSettings, for_tree: bool) -> Rule:
    """The default rule, or the given one if it fits.

    Raises:
        ValueError: a sampling rule at temperature 0, or a rule of trees for a chain, or of chains for a tree.
    """
    if settings.greedy:
        if rule is not None and rule is not greedy:
            raise ValueError("temperature 0 is verified by the greedy rule; leave `rule` out, or raise the temperature")
        return greedy
    if rule is None:
        return without_replacement if for_tree else rejection_sampling
    if isinstance(rule, CandidateRule) != for_tree:
        raise ValueError(
            "a tree is verified by multi_round or without_replacement, a chain by one of the other rules; "
            f"got {rule} for a {'tree' if for_tree else 'chain'}"
        )
    return rule


def _draw_seed(generator: torch.Generator) -> int:
    return int(torch.randint(2**62, (1,), generator=generator, device=generator.device))
