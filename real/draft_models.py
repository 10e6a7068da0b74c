"""Drafts that run a model, and drafts by name.

`ModelDraft` turns any source of logits into a draft of chains and trees (`real.proposals`): a model with its own cache,
one that shares the target's (`real.draft_sources`), a distilled head (`real.distilled_draft`), a model with another
vocabulary (`real.translated_draft`). Drafts that look text up are in `real.lookup_drafts`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from real.cache import KVCache
from real.candidate_verification import draw_candidates
from real.decoder import Decoder
from real.devices import to_device
from real.draft_sources import LogitSource, OwnCache, SharedCache
from real.lookup_drafts import PromptLookupDraft, SuffixDraft
from real.proposals import Draft, KeepDrafting, Proposal
from real.requests import Batch
from real.rows import invert, uniforms
from real.sampling import SamplingSettings, probabilities
from real.tree_attention import Tail
from sim.trees import TokenTree


def argmax(logits: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """[rows] the most likely token."""
    return logits.argmax(-1)


class ModelDraft:
    """Drafts from a source of logits: token by token in a chain, level by level in a tree.

    Attributes:
        source: gives logits over its own vocabulary.
        law: shapes logits into the probabilities that a token is drafted from.
        choose: greedy decoding's choice.
    """

    def __init__(
        self,
        source: LogitSource,
        settings: SamplingSettings,
        name: str,
        law: Callable[[Tensor, SamplingSettings], Tensor] = probabilities,
        choose: Callable[[Tensor, Sequence[torch.Generator]], Tensor] = argmax,
    ) -> None:
        self.source = source
        self.settings = settings
        self.name = name
        self.law = law
        self.choose = choose
        self.feature_layers = source.feature_layers

    def start(self, batch: Batch, target_cache: KVCache, seeds: Sequence[int]) -> None:
        """See `Draft.start`."""
        device = batch.token_ids.device
        self.generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]
        self.source.start(batch, target_cache)

    def keep_rows(self, rows: Sequence[int]) -> None:
        """See `Draft.keep_rows`."""
        self.generators = [self.generators[row] for row in rows]
        self.source.keep_rows(rows)

    def fork(self) -> ModelDraft:
        """See `Draft.fork`."""
        twin = copy.copy(self)
        twin.source = copy.copy(self.source)
        return twin

    def propose(self, batch: Batch, limits: Sequence[int], keep_drafting: KeepDrafting | None = None) -> Proposal:
        """See `Draft.propose`; the first forward also reads what the last round emitted."""
        limits = list(limits)
        token_ids: list[Tensor] = []
        laws: list[Tensor] = []
        all_accepted = [1.0] * batch.rows
        local = torch.empty(0)
        for place in range(max(limits)):
            if max(limits) <= place:
                break
            logits = self.source.extend(local[:, None])[:, 0] if place else self.source.catch_up(batch)
            drawing = [limit > place for limit in limits]
            if self.settings.greedy:
                local = self.choose(logits, self.generators)
            else:
                law = self.law(logits, self.settings)
                generators = [own if on else None for own, on in zip(self.generators, drawing, strict=True)]
                local = invert(law, uniforms(law.shape[:-1], law.device, generators))
                laws.append(self._widen(law))
            token_ids.append(self._to_target(local))
            if not all(drawing):
                off = to_device(drawing, local.device) == 0
                token_ids[-1] = token_ids[-1].masked_fill(off, -1)
                if laws:
                    laws[-1] = laws[-1].masked_fill(off[:, None], 0.0)
            if keep_drafting is not None:
                limits, all_accepted = self._stop_early(logits, place + 1, limits, all_accepted, keep_drafting)
        if not token_ids:
            return Proposal(batch.token_ids.new_empty((batch.rows, 0)), None)
        return Proposal(torch.stack(token_ids, 1), torch.stack(laws, 1) if laws else None)

    def _stop_early(
        self,
        logits: Tensor,
        drafted: int,
        limits: list[int],
        all_accepted: list[float],
        keep_drafting: KeepDrafting,
    ) -> tuple[list[int], list[float]]:
        """Limits after the rows that lack confidence have stopped at so many tokens; this reads the device.

        Also the product of each row's confidences, this token's included.
        """
        law = torch.softmax(logits.float(), -1) if self.settings.greedy else self.law(logits, self.settings)
        confidence, entropy = law.amax(-1).tolist(), torch.special.entr(law).sum(-1).tolist()
        all_accepted = [before * sure for before, sure in zip(all_accepted, confidence, strict=True)]
        limits = [
            limit if limit <= drafted or keep_drafting(sure, unsure, all_sure) else drafted
            for limit, sure, unsure, all_sure in zip(limits, confidence, entropy, all_accepted, strict=True)
        ]
        return limits, all_accepted

    def propose_tree(self, batch: Batch, tree: TokenTree, replacement: bool) -> Proposal:
        """See `Draft.propose_tree`; one forward a level, over the tokens that have children."""
        token_ids = batch.token_ids.new_full((batch.rows, tree.size), -1)
        blind = [bool(self.feature_layers) and length < 2 for length in batch.lengths]  # their trees are dropped
        generators = [None if off else own for own, off in zip(self.generators, blind, strict=True)]
        logits = self.source.catch_up(batch)[:, None]
        laws = None
        if not self.settings.greedy:
            laws = logits.new_zeros(
                (batch.rows, tree.size + 1, self.source.vocab_size),
                dtype=torch.promote_types(logits.dtype, torch.float32),
            )
        visible = torch.from_numpy(tree.visible()).to(batch.token_ids.device)
        parents: list[int] = [-1]
        forwarded: list[int] = []
        local = batch.token_ids.new_empty((batch.rows, tree.size))
        while True:
            most = max(len(tree.children(parent)) for parent in parents)
            if laws is None:
                drawn = logits.topk(most, dim=-1).indices if most > 1 else self._first(logits)
            else:
                law = self.law(logits, self.settings)
                drawn = draw_candidates(law, most, replacement, generators)
                laws[:, to_device(parents, laws.device) + 1] = self._widen(law)
            for index, parent in enumerate(parents):
                for rank, child in enumerate(tree.children(parent)):
                    local[:, child] = drawn[:, index, rank]
            below = [child for parent in parents for child in tree.children(parent)]
            token_ids[:, below] = self._to_target(local[:, below])
            parents = [child for child in below if tree.children(child)]
            if not parents:
                return Proposal(token_ids, laws, (tree,) * batch.rows)
            earlier = [forwarded.index(tree.parents[node]) if tree.parents[node] >= 0 else -1 for node in parents]
            forwarded += parents
            rows = to_device(parents, visible.device) + 1
            columns = to_device(forwarded, visible.device) + 1
            depths = to_device([tree.depths[node] - 1 for node in parents], visible.device)
            logits = self.source.extend(local[:, parents], earlier, Tail(visible[rows][:, columns], depths))

    def _first(self, logits: Tensor) -> Tensor:
        """[rows, nodes, 1] greedy decoding's choice at each of [rows, nodes, local] logits."""
        return torch.stack([self.choose(logits[:, node], self.generators) for node in range(logits.shape[1])], 1)[
            ..., None
        ]

    def _to_target(self, local: Tensor) -> Tensor:
        """The target's ids of tokens in the source's vocabulary."""
        return local if self.source.target_ids is None else self.source.target_ids[local]

    def _widen(self, law: Tensor) -> Tensor:
        """A law over the source's vocabulary as one over the target's."""
        if self.source.target_ids is None:
            return law
        wide = law.new_zeros((*law.shape[:-1], self.source.vocab_size))
        return wide.index_copy_(-1, self.source.target_ids, law)


def synthetic_draft(target: Decoder, settings: SamplingSettings, alpha: float) -> ModelDraft:
    """The target itself, spoilt to a known acceptance rate; for tests of everything around it.

    Drafts from q = alpha p + (1 - alpha) e_r, r the target's least likely token. Then sum min(p, q) is
    alpha + (1 - alpha) p_r: alpha, up to the probability of the least likely token. Greedy decoding proposes the
    target's own choice with probability alpha, else r.

    Raises:
        ValueError: alpha is no probability.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be in [0, 1], got {alpha}")

    def law(logits: Tensor, settings: SamplingSettings) -> Tensor:
        p = probabilities(logits, settings)
        return (alpha * p).scatter_add(-1, p.argmin(-1, keepdim=True), p.new_full((*p.shape[:-1], 1), 1 - alpha))

    def choose(logits: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        keep = uniforms(logits.shape[:-1], logits.device, generators) < alpha
        return torch.where(keep, logits.argmax(-1), logits.argmin(-1))

    return ModelDraft(OwnCache(target), settings, f"synthetic:{alpha:g}", law, choose)


def make_draft(name: str, target: Decoder, settings: SamplingSettings) -> Draft:
    """Build the draft that a name like 'early-exit:20' stands for.

    Args:
        name: `early-exit:L`, `int8`, `int8:L` (its first L layers), `int8-skip:A-B` (without those),
            `prompt-lookup[:N]`, `suffix[:DEPTH]`, `synthetic:ALPHA`.
        target: the model that will verify.
        settings: the target's, used on both sides.

    Raises:
        ValueError: the name is none of these (a folder or hub id is loaded by `real.loading`), or its number is off.
    """
    from real.quantised import quantise

    kind, _, argument = name.partition(":")
    try:
        match kind:
            case "early-exit":
                return ModelDraft(SharedCache(target.first_layers(int(argument))), settings, name)
            case "int8":
                narrow = quantise(target)
                source = SharedCache(narrow.first_layers(int(argument)) if argument else narrow)
                return ModelDraft(source, settings, name)
            case "int8-skip":
                first, last = argument.split("-")
                thinned = quantise(target).without_layers(range(int(first), int(last) + 1))
                return ModelDraft(SharedCache(thinned), settings, name)
            case "prompt-lookup":
                return PromptLookupDraft(int(argument)) if argument else PromptLookupDraft()
            case "suffix":
                return SuffixDraft(int(argument)) if argument else SuffixDraft()
            case "synthetic":
                return synthetic_draft(target, settings, float(argument))
    except ValueError as error:
        raise ValueError(f"draft '{name}': {error}") from error
    raise ValueError(f"unknown draft '{name}'; use {NAMES}, a folder or hub id")


NAMES = (
    "distilled, int8[:L], int8-skip:A-B, early-exit:L, prompt-lookup[:N], suffix[:DEPTH], synthetic:ALPHA, suffix+NAME"
)
"""Drafts that need no folder, for messages and help."""
