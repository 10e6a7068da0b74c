"""Rounds that something else interrupted: another process held a core, and the round took many times its time.

On a shared machine one such round can outweigh a hundred others, and which configuration it hits is chance. So the
parts of a round are capped at what rounds of their kind take at most when nothing interferes; slow spells, which stay
for longer than a few rounds, remain, and hit the baseline of the same prompt too.
"""

from __future__ import annotations

import pandas as pd

from sim.records import ROUND_SECONDS

DEVIATIONS = 5.0
"""Robust standard deviations above the median at which a part of a round is capped; 1 in 3 million for normal noise."""
LEAST_ROUNDS = 20
"""Kinds with fewer rounds are judged with all rounds of their draft and draft length."""


def cap_interruptions(rounds: pd.DataFrame) -> pd.DataFrame:
    """Cap the seconds of every part of a round at median + 5 robust standard deviations of its kind.

    A kind is a phase, a draft, a draft length and a number of drafted tokens. The robust standard deviation is 1.4826
    times the median absolute deviation (Hampel 1974).

    Returns:
        The table with draft_seconds, verify_seconds and other_seconds capped; the input is not changed.
    """
    broad = [name for name in ("phase", "draft", "gamma") if name in rounds]
    narrow = rounds.groupby([*broad, "drafted"])["gamma"].transform("size") >= LEAST_ROUNDS
    capped = {}
    for part in ROUND_SECONDS:
        fine, coarse = _cap(rounds, part, [*broad, "drafted"]), _cap(rounds, part, broad)
        capped[part] = rounds[part].clip(upper=fine.where(narrow, coarse))
    return rounds.assign(**capped)


def _cap(rounds: pd.DataFrame, part: str, kind: list[str]) -> pd.Series[float]:
    keys = [rounds[name] for name in kind]
    median = rounds.groupby(keys)[part].transform("median")
    deviation = (rounds[part] - median).abs().groupby(keys).transform("median")
    return median + DEVIATIONS * 1.4826 * deviation
