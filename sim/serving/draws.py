"""What each request's rounds would accept, drawn ahead for whole groups of requests.

A request's draws depend on the seed and on its place in the workload, never on when it is served or by which replica.
So two servers with one seed see the same requests accept the same drafts: common random numbers.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sim.acceptance import AcceptanceModel, Draws, IntArray, TraceAcceptance
from sim.confidence import ConfidenceAcceptance
from sim.serving.scenario import Speculation
from sim.serving.slots import RequestDraws

GROUP = 256
"""requests drawn together"""


class AcceptanceRows:
    """The draws of every request's rounds at the longest draft length; a shorter draft accepts what fits of it."""

    def __init__(self, speculation: Speculation, output_tokens: IntArray, seed: np.random.SeedSequence) -> None:
        self.speculation = speculation
        self.output_tokens = output_tokens
        self.seed = seed
        self.groups: dict[int, tuple[Draws, int]] = {}

    def take(self, request: int) -> RequestDraws:
        """The draws of one request [output tokens]; each is taken once, and its group forgotten after the last."""
        group = request // GROUP
        if group not in self.groups:
            size = min(GROUP, len(self.output_tokens) - group * GROUP)
            self.groups[group] = (self._draw(group), size)
        draws, left = self.groups.pop(group)
        if left > 1:
            self.groups[group] = (draws, left - 1)
        drafted, accepted = (column[request % GROUP, : self.output_tokens[request]] for column in draws)
        always_most = draws.drafted.strides == (0, 0)
        return RequestDraws(None if always_most else drafted.astype(np.int16), accepted.astype(np.int16))

    def _draw(self, group: int) -> Draws:
        tokens = self.output_tokens[group * GROUP : (group + 1) * GROUP]
        shape = int(tokens.max()), len(tokens)
        model: AcceptanceModel = self.speculation.acceptance
        gamma = self.speculation.max_gamma
        rng = np.random.default_rng(np.random.SeedSequence(self.seed.entropy, spawn_key=(*self.seed.spawn_key, group)))
        if isinstance(model, TraceAcceptance):
            model = rotated(model, group * GROUP)
            if self.speculation.by_position:
                return model.sample_positions(gamma, *shape)
        policy = self.speculation.policy
        if isinstance(model, ConfidenceAcceptance) and getattr(policy, "stops_early", False):
            return model.sample_confident(rng, gamma, *shape, policy.keep_drafting)  # type: ignore[union-attr]  # no tree
        return model.sample(rng, gamma, *shape)


def rotated(model: TraceAcceptance, first: int) -> TraceAcceptance:
    """The traces in the order in which requests from `first` on replay them."""
    start = first % len(model.lengths)
    lengths, available = model.lengths, model.available
    return replace(
        model,
        lengths=lengths[start:] + lengths[:start],
        available=None if available is None else available[start:] + available[:start],
    )
