"""Closed forms against enumeration, limits and each other; simulations are held against them where they are tested."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.hardware import Link
from sim.theory import expected_tokens
from sim.topologies.remote_draft import DraftMessage
from sim.topologies.theory import (
    break_even_latency_seconds,
    dsi_bound_seconds,
    dsi_expected_seconds,
    dsi_lookahead,
    dsi_servers,
    edge_batch_rounds_per_second,
    edge_rounds_per_second,
    pearl_cycle,
    pearl_tokens_per_second,
    remote_round_seconds,
    si_expected_seconds,
)

ALPHAS = st.floats(0, 0.99)


def test_a_remote_round_by_hand() -> None:
    """5 drafts of 20 ms; 20 bytes of tokens and 10 kB of q at 1 MB/s; 1 s of verification; 8 bytes; 50 ms each way."""
    link, message = Link(1e6, 0.05), DraftMessage(vocab=1000, bytes_per_probability=2)
    assert remote_round_seconds(5, 0.02, 1.0, link, message) == pytest.approx(
        0.1 + (0.05 + 10_020e-6) + 1.0 + (0.05 + 8e-6), rel=1e-14
    )


def test_at_the_break_even_latency_a_remote_draft_is_as_fast_as_the_target() -> None:
    tokens, message = float(expected_tokens(0.8, 4)), DraftMessage(vocab=32_000)
    latency = break_even_latency_seconds(tokens, 4, 0.05, 1.1, 1.0, 1e7, message)
    assert latency > 0
    assert remote_round_seconds(4, 0.05, 1.1, Link(1e7, latency), message) == pytest.approx(tokens, rel=1e-12)
    assert break_even_latency_seconds(tokens, 4, 0.05, 1.1, 1.0, 1e5, message) < 0, "q alone takes 2.5 s"


@given(ALPHAS, st.integers(1, 9))
def test_an_iid_pearl_cycle_emits_what_an_endless_draft_would(alpha: float, gamma: int) -> None:
    tokens, posts = pearl_cycle(alpha, gamma)
    assert tokens == pytest.approx(1 / (1 - alpha), rel=1e-12)
    assert posts == pytest.approx(alpha / (1 - alpha**gamma), rel=1e-12)
    assert tokens >= expected_tokens(alpha, gamma) * (1 - 1e-12), "more than draft-then-verify"


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), max_size=9), st.floats(0, 0.8), st.integers(1, 6))
def test_a_pearl_cycle_is_the_sum_over_its_length(head: list[float], last: float, gamma: int) -> None:
    """By brute force: the chance of each number of agreeing tokens, up to where none is left."""
    agreeing = np.cumprod([*head, *[last] * 400])
    chance = -np.diff(np.concatenate([[1.0], agreeing, [0.0]]))
    count = np.arange(len(chance))
    tokens, posts = pearl_cycle([*head, last], gamma)
    assert tokens == pytest.approx(float(chance @ (count + 1)), rel=1e-9)
    assert posts == pytest.approx(float(chance @ -(-count // gamma)), rel=1e-9, abs=1e-12)


def test_pearl_with_a_window_of_one_is_the_target_alone_and_without_errors_never_pauses() -> None:
    assert pearl_tokens_per_second(0.7, 1, 0.1, 1.0, 1.0) == pytest.approx(1.0, rel=1e-12)
    assert pearl_tokens_per_second(1.0, 8, 0.1, 1.0, 1.25) == 8 / 1.25
    assert pearl_tokens_per_second((0.2, 1.0), 8, 0.1, 1.0, 1.25) == 8 / 1.25, "in the end no correction comes again"


@pytest.mark.parametrize("alpha", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("ratio", [2, 3, 5, 10])
def test_the_best_pearl_window_is_the_ratio_of_speeds(alpha: float, ratio: int) -> None:
    """Liu et al. 2024: the window that keeps both devices busy, whatever alpha is."""
    rates = [pearl_tokens_per_second(alpha, gamma, 1 / ratio, 1.0, 1.0) for gamma in range(1, 31)]
    assert 1 + int(np.argmax(rates)) == ratio


def until_done(foreseen: tuple[bool, ...], draft: float, target: float, lookahead: int) -> float:
    """DSI's latency of one request, told block by block; `foreseen` says which tokens the draft gets right."""
    seconds, output, tokens = 0.0, 0, len(foreseen)
    while output < tokens:
        left = tokens - output
        agreeing = next((i for i in range(left) if not foreseen[output + i]), left)
        emitted = min(agreeing + 1, left)
        # the first block end at or past the draft before the token that ends the speculation
        end = next(d for d in [*range(0, left, lookahead), left - 1] if d >= emitted - 1)
        seconds += min(end, left - 1) * draft + target
        output += emitted
    return seconds


@pytest.mark.parametrize("lookahead", [1, 2, 3, 5])
def test_dsi_expectation_is_the_sum_over_all_patterns(lookahead: int) -> None:
    """All 2^8 patterns of right and wrong drafts, each with its probability."""
    alpha, tokens = 0.7, 8
    total = 0.0
    for foreseen in itertools.product((True, False), repeat=tokens):
        total += (
            alpha ** sum(foreseen)
            * (1 - alpha) ** (tokens - sum(foreseen))
            * until_done(foreseen, 0.15, 1.0, lookahead)
        )
    assert dsi_expected_seconds(alpha, tokens, 0.15, 1.0, lookahead) == pytest.approx(total, rel=1e-12)


@given(ALPHAS, st.integers(1, 60), st.floats(0, 2))
def test_dsi_proposition_1_is_exact_for_a_faster_draft_and_a_bound_for_any(
    alpha: float, tokens: int, draft: float
) -> None:
    expected = dsi_expected_seconds(alpha, tokens, draft, 1.0)
    bound = dsi_bound_seconds(alpha, tokens, draft, 1.0)
    assert expected <= bound * (1 + 1e-12)
    if draft <= 1:
        assert expected == pytest.approx(bound, rel=1e-12)
    else:
        assert expected == pytest.approx(tokens, rel=1e-12), "the target alone"


@settings(deadline=None, max_examples=50)
@given(ALPHAS, st.integers(1, 40), st.floats(0.01, 1), st.integers(1, 10))
def test_dsi_is_at_least_as_fast_as_si_and_the_target(alpha: float, tokens: int, draft: float, lookahead: int) -> None:
    """Timor et al. 2024, Theorems 1 and 2, where lookahead 1 has its servers."""
    expected = dsi_expected_seconds(alpha, tokens, draft, 1.0)
    assert expected <= si_expected_seconds(alpha, tokens, draft, 1.0, lookahead) * (1 + 1e-12)
    assert expected <= tokens * (1 + 1e-12)


def test_si_expectation_is_leviathan_theorem_3_8_in_the_long_run() -> None:
    """Seconds per token far from the end: a round's seconds over eq. 1."""
    far, near = (si_expected_seconds(0.8, tokens, 0.1, 1.0, 4) for tokens in (600, 300))
    assert (far - near) / 300 == pytest.approx(1.4 / expected_tokens(0.8, 4), rel=1e-9)
    assert si_expected_seconds(0.8, 1, 0.1, 1.0, 4) == 1.0, "the last token is never drafted"


def test_dsi_servers_and_lookahead_are_each_others_least() -> None:
    assert dsi_servers(0.1, 1.0, 1) == 10
    assert dsi_servers(0.1, 1.1, 1) == 11, "1.1 / 0.1 is a little more than 11 in floating point"
    assert dsi_servers(0.3, 1.0, 4) == 1
    for draft in (0.02, 0.1, 0.37, 2.0):
        for servers in (1, 3, 7):
            lookahead = dsi_lookahead(draft, 1.0, servers)
            assert dsi_servers(draft, 1.0, lookahead) <= servers
            assert lookahead == 1 or dsi_servers(draft, 1.0, lookahead - 1) > servers


def test_edge_rates_by_hand() -> None:
    assert edge_rounds_per_second(1, 3.0, 1.0) == 0.25
    assert edge_rounds_per_second(4, 3.0, 1.0) == 1.0
    assert edge_rounds_per_second(9, 3.0, 1.0) == 1.0, "the cloud is full"
    assert edge_batch_rounds_per_second(9, 3.0, 1.5) == 2.0


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="gamma must be >= 1 with PEARL, got 0"):
        pearl_cycle(0.5, 0)
    with pytest.raises(ValueError, match=r"must be below 1, got 1\.0"):
        pearl_cycle((0.5, 1.0), 2)
    with pytest.raises(ValueError, match=r"conditional acceptance must be in \[0, 1\], got 1\.5"):
        pearl_cycle(1.5, 2)
    with pytest.raises(ValueError, match=r"draft_seconds > 0, got 1 and 0\.0"):
        dsi_servers(0.0, 1.0, 1)
    with pytest.raises(ValueError, match=r"target_servers >= 1 .* got 0"):
        dsi_lookahead(0.1, 1.0, 0)
    with pytest.raises(ValueError, match=r"a block of 5 .* simulate it with sim\.topologies\.dsi"):
        dsi_expected_seconds(0.5, 10, 0.3, 1.0, 5)
    with pytest.raises(ValueError, match=r"a link's bandwidth must be > 0 bytes/s, got 0"):
        remote_round_seconds(1, 0.1, 1.0, Link(0, 0.1), DraftMessage())
    with pytest.raises(ValueError, match=r"a link's latency must be finite and >= 0, got -0\.1"):
        remote_round_seconds(1, 0.1, 1.0, Link(1e6, -0.1), DraftMessage())
