"""A draft on a device of its own, a link away from the target."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from sim.acceptance import IntArray
from sim.hardware import Link
from sim.rounds import Rounds, plan_rounds, round_table
from sim.scenario import Scenario
from sim.theory import FloatArray, check_cost, check_gamma
from sim.topologies.run import Forwards, TopologyRun, check_apart, successive_starts, summarise_request

TOKEN_BYTES = 4
"""a token id, and a count, as 32-bit integers"""
VERDICT_BYTES = 2 * TOKEN_BYTES
"""how many tokens were accepted, and the token after them"""


@dataclass(frozen=True)
class DraftMessage:
    """What the draft's device sends each round: token ids, and for sampling the draft's distribution q at each."""

    vocab: int | None = None
    """entries of q; None: greedy decoding, which needs no q"""
    bytes_per_probability: int = 2
    top_k: int | None = None
    """send only the k likeliest entries, each with its token id; None: send all, in order of token id"""

    def __post_init__(self) -> None:
        for name in ("vocab", "bytes_per_probability", "top_k"):
            value = getattr(self, name)
            if value is not None and not value >= 1:
                raise ValueError(f"{name} must be >= 1, got {value}; vocab=None sends token ids alone")
        if self.top_k is not None and (self.vocab is None or self.top_k > self.vocab):
            raise ValueError(f"top_k must be at most vocab {self.vocab}, got {self.top_k}")

    @property
    def bytes_per_token(self) -> int:
        """Bytes that go with each drafted token, its id included."""
        if self.vocab is None:
            return TOKEN_BYTES
        if self.top_k is None:
            return TOKEN_BYTES + self.vocab * self.bytes_per_probability
        return TOKEN_BYTES + self.top_k * (self.bytes_per_probability + TOKEN_BYTES)

    def size_bytes(self, drafted: ArrayLike) -> IntArray:
        """Bytes of a message with so many drafted tokens."""
        return np.asarray(check_gamma(drafted) * self.bytes_per_token, dtype=np.int64)[()]


TOKENS_ALONE = DraftMessage()


def transfer_seconds(link: Link, message: DraftMessage, drafted: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Seconds of a round's draft on its way to the target, and of the verdict on its way back.

    Raises:
        ValueError: the link's latency is not finite and >= 0, or its bandwidth not > 0.
    """
    check_cost("a link's latency", link.latency)
    if not link.bandwidth > 0:
        raise ValueError(f"a link's bandwidth must be > 0 bytes/s, got {link.bandwidth}; infinity makes size free")
    return link.seconds(message.size_bytes(drafted)), link.seconds(VERDICT_BYTES)


def remote_draft(
    scenario: Scenario, link: Link, seed: int | np.random.Generator, message: DraftMessage = TOKENS_ALONE
) -> TopologyRun:
    """Simulate one request whose draft sits a link away from its target.

    A round drafts, sends the draft, verifies, and sends the verdict back; nothing overlaps, so a lone request never
    waits for a device and its clock is a sum. Both messages are sent every round, also where nothing could be drafted.
    With a link that takes no time the rounds are those of `sim.engine.simulate`.

    Args:
        scenario: one request with draft_device "own"; any acceptance model.
        link: between the draft's device and the target's; its latency is one way, half of a round trip.
        seed: the run's seed, or a generator to draw from.
        message: what the draft sends each round.

    Returns:
        A round table with transfers in other_seconds, and the figures of `summarise_request` with `transfer_seconds`
        and `draft_bytes` in all. The baseline decodes on the target's device, without the link.

    Raises:
        ValueError: the scenario has something that is not simulated here.
    """
    check_apart("remote_draft", scenario)
    rounds, transfers = plan_transfers(scenario, link, message, np.random.default_rng(seed))
    rounds = replace(rounds, waiting_seconds=transfers)
    wall = rounds.wall_seconds
    rounds = replace(rounds, start_seconds=successive_starts(wall))
    summary = summarise_request(scenario, rounds.emitted, wall, draft_then_verify_forwards(rounds))
    summary["transfer_seconds"] = float(transfers.sum())
    summary["draft_bytes"] = float(message.size_bytes(rounds.drafted).sum())
    return TopologyRun(round_table(rounds, scenario), summary)


def plan_transfers(
    scenario: Scenario, link: Link, message: DraftMessage, rng: np.random.Generator
) -> tuple[Rounds, FloatArray]:
    """The request's rounds before any clock runs, and the seconds that each spends on the link, both ways together."""
    rounds = plan_rounds(scenario, rng)
    there, back = transfer_seconds(link, message, rounds.drafted)
    return rounds, there + back


def draft_then_verify_forwards(rounds: Rounds) -> Forwards:
    """Forwards of rounds that draft and then verify: a rejected token is wasted, a verification never is."""
    drafted = int(rounds.drafted.sum())
    used = int(np.minimum(rounds.accepted, rounds.emitted).sum())
    return Forwards(drafted, drafted - used, len(rounds.drafted), 0)
