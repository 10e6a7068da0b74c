"""Closed forms of draft and target in different places: a link between them, PEARL, DSI, and clients of one cloud.

Latencies are constants in seconds. Each form says what it is derived from; `sim.topologies` simulates the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from sim.hardware import Link
from sim.theory import FloatArray, check_cost, check_gamma, check_probability
from sim.topologies.remote_draft import DraftMessage, transfer_seconds


def remote_round_seconds(
    gamma: ArrayLike, draft_seconds: ArrayLike, verify_seconds: ArrayLike, link: Link, message: DraftMessage
) -> FloatArray:
    """Seconds of a round whose draft is a link away: drafting, its way there, verification, the verdict's way back.

    Args:
        gamma: draft length in tokens.
        draft_seconds: one draft forward.
        verify_seconds: one target forward with gamma + 1 new tokens.
        link: between the two.
        message: what the draft sends.
    """
    there, back = transfer_seconds(link, message, gamma)
    computing = check_gamma(gamma) * check_cost("draft_seconds", draft_seconds)
    return (computing + check_cost("verify_seconds", verify_seconds)) + (there + back)


def break_even_latency_seconds(
    tokens: float,
    gamma: int,
    draft_seconds: float,
    verify_seconds: float,
    target_seconds: float,
    bandwidth: float,
    message: DraftMessage,
) -> float:
    """The one-way latency at which a remote draft is as fast as the target alone; negative where it never pays.

    The root of tokens * target_seconds = `remote_round_seconds`.

    Args:
        tokens: expected tokens of a round (`sim.theory.expected_tokens`).
        gamma: draft length in tokens.
        draft_seconds: one draft forward.
        verify_seconds: one target forward with gamma + 1 new tokens.
        target_seconds: one target forward with one new token.
        bandwidth: of the link, bytes/s.
        message: what the draft sends.
    """
    near = remote_round_seconds(gamma, draft_seconds, verify_seconds, Link(bandwidth, 0.0), message)
    return float((tokens * target_seconds - near) / 2)


def pearl_cycle(conditional: ArrayLike, gamma: int) -> tuple[float, float]:
    """Expected tokens and post-verify steps from one correction to the next with PEARL (Liu et al. 2024, 2408.11850).

    A cycle is one pre-verify step and then a post-verify step for as long as all agree. Write M_i for the chance that
    the first i drafted tokens agree. The cycle emits those that agree and the correction, 1 + M_1 + M_2 + ..., and the
    j-th post-verify step happens if the first (j - 1) gamma + 1 agree. For one alpha these are 1 / (1 - alpha), what
    draft-then-verify reaches with an endless draft only, and alpha / (1 - alpha^gamma).

    Args:
        conditional: conditional acceptance by position since the last correction [positions]; the last one holds for
            every later position, and is below 1.
        gamma: window size.

    Raises:
        ValueError: an argument is out of its range; a draft that in the end always agrees has no cycle.
    """
    chances = np.atleast_1d(check_probability("conditional acceptance", conditional))
    window = int(check_gamma(gamma))
    if window < 1:
        raise ValueError(f"gamma must be >= 1 with PEARL, got {gamma}")
    last = float(chances[-1])
    if last == 1:
        raise ValueError(
            "the last conditional acceptance must be below 1, got 1.0; then no correction ever ends a cycle"
        )
    steps = max(math.ceil((len(chances) - 1) / window), 1)
    # up to the first post-verify step whose later positions all have the last chance; the rest are geometric series
    explicit = np.append(chances, np.full(max(steps * window + 1 - len(chances), 0), last))[: steps * window + 1]
    agreeing = np.cumprod(explicit)
    tokens = 1 + agreeing[:-1].sum() + agreeing[-1] / (1 - last)
    posts = agreeing[:-1:window].sum() + agreeing[-1] / (1 - last**window)
    return float(tokens), float(posts)


def pearl_tokens_per_second(
    conditional: ArrayLike, gamma: int, draft_seconds: float, target_seconds: float, verify_seconds: float
) -> float:
    """Long-run token rate of PEARL: a cycle's tokens over its seconds (renewal reward), each step as long as its slower
    device.

    Args:
        conditional: as for `pearl_cycle`; one acceptance rate for iid acceptance.
        gamma: window size.
        draft_seconds: one draft forward.
        target_seconds: one target forward with one new token, as in a pre-verify step.
        verify_seconds: one with gamma new tokens, as in a post-verify step.
    """
    before, after = (max(gamma * draft_seconds, seconds) for seconds in (target_seconds, verify_seconds))
    if np.atleast_1d(conditional)[-1] == 1:
        # sooner or later no correction comes any more
        return gamma / after
    tokens, posts = pearl_cycle(conditional, gamma)
    return tokens / (before + posts * after)


def dsi_servers(draft_seconds: float, target_seconds: float, lookahead: int) -> int:
    """Target servers on which no block's verification ever waits [Timor et al. 2024, arXiv:2405.14105, eq. 1].

    ceil(target_seconds / (lookahead * draft_seconds)).

    Raises:
        ValueError: the draft takes no time, or the lookahead is below 1.
    """
    if lookahead < 1 or not draft_seconds > 0:
        raise ValueError(f"needs lookahead >= 1 and draft_seconds > 0, got {lookahead} and {draft_seconds}")
    return whole_steps(target_seconds / (lookahead * draft_seconds))


def dsi_lookahead(draft_seconds: float, target_seconds: float, target_servers: int) -> int:
    """The least lookahead that eq. 1 allows on so many target servers; arguments as for `dsi_servers`."""
    if target_servers < 1 or not draft_seconds > 0:
        raise ValueError(f"needs target_servers >= 1 and draft_seconds > 0, got {target_servers} and {draft_seconds}")
    return whole_steps(target_seconds / (target_servers * draft_seconds))


def whole_steps(ratio: float) -> int:
    """The ratio rounded up, at least 1; a whole number that rounding made a little more stays itself."""
    return max(math.ceil(ratio * (1 - 1e-12)), 1)


def dsi_bound_seconds(alpha: ArrayLike, tokens: int, draft_seconds: float, target_seconds: float) -> FloatArray:
    """Bound on DSI's expected latency with lookahead 1 [Timor et al. 2024, Prop. 1]; exact where the draft is faster.

    t1 p (N - 1) + t2 ((1 - p)(N - 1) + 1): a token costs a draft forward where the draft foresaw it and a target
    forward where not, and the last one costs a target forward.
    """
    alpha = check_probability("alpha", alpha)
    return draft_seconds * alpha * (tokens - 1) + target_seconds * ((1 - alpha) * (tokens - 1) + 1)


def dsi_expected_seconds(
    alpha: float, tokens: int, draft_seconds: float, target_seconds: float, lookahead: int = 1
) -> float:
    """DSI's expected latency where no forward waits for a server and lookahead * draft_seconds <= target_seconds.

    Of a speculation with r tokens to go, the j-th token is known target_seconds after the first block that ends at or
    past draft j - 1 is drafted: at min(ceil((j - 1) / lookahead) * lookahead, r - 1) * draft_seconds + target_seconds.
    The expectation follows by conditioning on the token that ends the speculation; for lookahead 1 it is Prop. 1's
    bound. For lookahead 1 a slower draft counts as the target: it is overtaken at every token.

    Raises:
        ValueError: alpha is outside [0, 1], or a block takes longer to draft than to verify.
    """
    if lookahead == 1:
        draft_seconds = min(draft_seconds, target_seconds)
    if lookahead * draft_seconds > target_seconds:
        raise ValueError(
            f"a block of {lookahead} drafted in {lookahead * draft_seconds} s takes longer than a target forward of "
            f"{target_seconds} s; simulate it with sim.topologies.dsi"
        )

    def until(left: int) -> FloatArray:
        drafts = np.minimum(-(-np.arange(left) // lookahead) * lookahead, left - 1)
        return drafts * draft_seconds + target_seconds

    return _renewal_seconds(alpha, tokens, lambda left: left, until)


def si_expected_seconds(
    alpha: float, tokens: int, draft_seconds: float, target_seconds: float, lookahead: int
) -> float:
    """Expected latency of draft-then-verify rounds of min(lookahead, tokens left - 1) drafted tokens.

    Conditioning on the tokens of the next round (Leviathan et al. 2023, Sec. 3.1), with the bonus token.
    """

    def emitted(left: int) -> int:
        return min(lookahead, left - 1) + 1

    def until(left: int) -> FloatArray:
        return np.full(emitted(left), (emitted(left) - 1) * draft_seconds + target_seconds)

    return _renewal_seconds(alpha, tokens, emitted, until)


def _renewal_seconds(
    alpha: float, tokens: int, most: Callable[[int], int], until: Callable[[int], FloatArray]
) -> float:
    """Expected seconds of `tokens` tokens emitted in steps that start afresh.

    Args:
        alpha: acceptance rate, iid.
        tokens: in all.
        most: the most tokens that a step emits with so many left.
        until: seconds of a step that emits 1, 2, ... of them [most].
    """
    check_probability("alpha", alpha)
    seconds = np.zeros(tokens + 1)
    for left in range(1, tokens + 1):
        longest = most(left)
        chance = alpha ** np.arange(longest) * np.where(np.arange(longest) < longest - 1, 1 - alpha, 1.0)
        seconds[left] = chance @ (until(left) + seconds[left - 1 - np.arange(longest)])
    return float(seconds[tokens])


def edge_rounds_per_second(clients: int, away_seconds: float, verify_seconds: float) -> float:
    """Rounds per second of like clients whose cloud verifies one request at a time: min(clients / cycle, 1 / verify).

    The asymptotic bounds of a closed system with think times (Denning and Buzen 1978, "The Operational Analysis of
    Queueing Network Models", ACM Computing Surveys 10(3)); constant times attain them once the clients are staggered.

    Args:
        clients: how many.
        away_seconds: of a round outside the cloud: drafting, transfers, overhead.
        verify_seconds: one verification.
    """
    return min(clients / (away_seconds + verify_seconds), 1 / verify_seconds)


def edge_batch_rounds_per_second(clients: int, away_seconds: float, verify_seconds: float) -> float:
    """Rounds per second of like clients that start together and are always verified in one batch.

    Args:
        clients: how many, at most the batch limit.
        away_seconds: of a round outside the cloud.
        verify_seconds: one verification of all of them.
    """
    return clients / (away_seconds + verify_seconds)
