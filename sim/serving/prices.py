"""What a serving step costs: drafting and verifying for a batch, prompts read beside it or before it.

Models of latency price a forward by batch, new tokens and context; requests of one step that differ in these are priced
at their means, which keeps the sums of tokens and of cached tokens that a forward's work depends on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sim.acceptance import IntArray
from sim.latency import LatencyModel, burst_seconds
from sim.serving.scenario import ServingScenario
from sim.theory import FloatArray
from sim.tree_acceptance import tree_seconds
from sim.trees import TokenTree


class StepSeconds(NamedTuple):
    """Where the time of steps goes [steps]."""

    draft: FloatArray
    verify: FloatArray
    """the target's forward, prompts that it reads along included"""
    other: FloatArray
    """host overhead, and what crosses a link"""

    @property
    def total(self) -> float:
        """Seconds of all steps together."""
        return float(self.draft.sum() + self.verify.sum() + self.other.sum())


class Chunk(NamedTuple):
    """Prompt tokens that one step reads."""

    requests: int = 0
    tokens: int = 0
    context: int = 0
    """tokens of these prompts that were read before, all together"""


@dataclass(frozen=True)
class StepPrices:
    """Prices of the steps of one scenario."""

    scenario: ServingScenario

    def decode(
        self,
        asked: int,
        drafted: IntArray | None,
        batch: IntArray,
        context: IntArray,
        chunk: Chunk,
    ) -> StepSeconds:
        """Seconds of steps that draft and verify for a batch, and read a chunk of prompts in the same forward.

        Args:
            asked: draft length of each request.
            drafted: tokens that each request's draft had, -1 where the request is done [steps, requests]; None: asked.
            batch: requests that decode [steps].
            context: tokens known of these requests, all together [steps].
            chunk: prompts read along, none unless it is a single step.
        """
        requests = np.maximum(batch, 1)
        tokens = batch * asked if drafted is None else np.maximum(drafted, 0).sum(axis=1)
        drafting = self._draft(asked, drafted, requests, context / requests) * (batch > 0)
        rows = batch + chunk.requests
        verifying = self.scenario.target.forward_seconds(
            rows, (batch + tokens + chunk.tokens) / rows, (context + chunk.context) / rows
        )
        if chunk.tokens:
            drafting = drafting + self._draft_reads(chunk)
        other = np.full(len(batch), self.scenario.overhead_seconds)
        speculation = self.scenario.speculation
        if speculation is not None and speculation.link is not None and asked:
            there = speculation.link.seconds(tokens * speculation.bytes_per_drafted_token)
            other = other + there + speculation.link.seconds(batch * speculation.bytes_per_drafted_token)
        return StepSeconds(np.broadcast_to(drafting, batch.shape), np.broadcast_to(verifying, batch.shape), other)

    def prefill(self, chunk: Chunk) -> StepSeconds:
        """Seconds of one step that only reads prompts, into the draft's cache as well."""
        verifying = self.scenario.target.forward_seconds(
            chunk.requests, chunk.tokens / chunk.requests, chunk.context / chunk.requests
        )
        return StepSeconds(
            np.array([self._draft_reads(chunk)]), np.array([verifying]), np.array([self.scenario.overhead_seconds])
        )

    def _draft_reads(self, chunk: Chunk) -> float:
        speculation = self.scenario.speculation
        if speculation is None or speculation.draft is None or speculation.max_gamma == 0:
            return 0.0
        new_tokens, context = chunk.tokens / chunk.requests, chunk.context / chunk.requests
        return float(speculation.draft.forward_seconds(chunk.requests, new_tokens, context))

    def _draft(self, asked: int, drafted: IntArray | None, batch: IntArray, context: FloatArray) -> FloatArray | float:
        """Seconds of the draft's forwards and the lookup [steps]; `context` is the mean."""
        speculation = self.scenario.speculation
        if asked == 0 or speculation is None:
            return 0.0
        if speculation.draft is None:
            return speculation.proposal_seconds
        if isinstance(speculation.policy, TokenTree):
            seconds = tree_seconds(speculation.draft, speculation.policy, context, batch)
        elif drafted is None:
            seconds = burst_seconds(speculation.draft, asked, context, batch)
        else:
            seconds = ragged_seconds(speculation.draft, drafted, context)
        return seconds + speculation.proposal_seconds


def ragged_seconds(draft: LatencyModel, drafted: NDArray[np.integer], context: FloatArray) -> FloatArray:
    """Seconds of drafting token by token where requests stop at different lengths [steps].

    Args:
        draft: the draft's latency.
        drafted: tokens of each request, -1 for none at all [steps, requests].
        context: mean tokens known before [steps].
    """
    total = np.zeros(len(drafted))
    for place in range(int(drafted.max(initial=0))):
        rows = (drafted > place).sum(axis=1)
        going = rows > 0
        total[going] += draft.forward_seconds(rows[going], 1, context[going] + place)
    return total
