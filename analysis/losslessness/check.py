"""Check any sampler: draw, count, look, and stop as soon as the evidence is in.

The check is sequential. It starts with a few hundred rounds of every design and doubles, and after each stage it looks
at every hypothesis. E-values allow that: the chance that a correct sampler is EVER rejected, over all looks and all
hypotheses, is at most 1e-9. A gross bug is caught within the first thousand rounds; a sampler that survives the whole
budget is lossless up to the total variation that the budget can see, which `plan` says before anything is drawn.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from analysis.losslessness.designs import Design, default_designs
from analysis.losslessness.gather import Gathered, hypotheses_of
from analysis.losslessness.power import FALSE_ALARM, TOTAL_VARIATION, detectable_tv, samples_for
from analysis.losslessness.result import CheckResult
from analysis.losslessness.rules import Sampler
from analysis.losslessness.tables import token_classes
from analysis.losslessness.verdict import conclude

FIRST_STAGE = 512
LARGEST_STREAM = 2**17
"""Rounds in one call: 40 MB of p at gamma 4 and vocab 8 where rows differ."""


@dataclass(frozen=True)
class Plan:
    """What a budget of rounds will see, worked out before it is spent."""

    rounds: int
    hypotheses: int
    detectable_tv: float
    """At the bonus position after a token, the rarest pair, if the sampler accepts as rejection sampling does."""


def plan(gamma: int = 4, vocab: int = 8, max_samples: int | None = None, tv: float = TOTAL_VARIATION) -> Plan:
    """Rounds that detect `tv` with 99.9% power at every position and pair, or what `max_samples` rounds detect."""
    designs = default_designs(gamma, vocab)
    hypotheses = sum(map(hypotheses_of, designs))
    classes = int(token_classes(vocab).max()) + 1
    main = designs[0]
    reach = main.share * float(np.minimum(main.p[0, :-1], main.q[0]).sum(-1).prod())
    if max_samples is None:
        max_samples = int(np.ceil(1.05 * samples_for(tv, classes, classes, hypotheses) / reach))
    if max_samples < FIRST_STAGE:
        raise ValueError(f"max_samples must be >= {FIRST_STAGE}, got {max_samples}; fewer rounds see nothing")
    return Plan(max_samples, hypotheses, detectable_tv(max_samples * reach, classes, classes, hypotheses))


def check(
    sampler: Sampler,
    gamma: int = 4,
    vocab: int = 8,
    max_samples: int | None = None,
    seed: int = 0,
    designs: Sequence[Design] | None = None,
    false_alarm: float = FALSE_ALARM,
    stop_early: bool = True,
    progress: Callable[[str], None] | None = None,
) -> CheckResult:
    """Say whether a black-box sampler is lossless.

    Args:
        sampler: `sampler(p, q, n, rng) -> int [n, gamma+1]`, p [gamma+1, vocab] or [n, gamma+1, vocab], q alike with
            gamma rows; row i is round i of ONE stream, emitted tokens first, -1 after the last.
        gamma: draft length.
        vocab: vocabulary of the trial, at least 3.
        max_samples: rounds at most; None for what detects a total variation of 0.005 at every position and pair.
        seed: of the harness's own choices and of the generators handed to the sampler.
        designs: p and q to try instead of the default six.
        false_alarm: chance that a correct sampler is rejected, all looks and hypotheses together.
        stop_early: stop at the first look with enough evidence.
        progress: called with a line after every stage.

    Raises:
        ValueError: the arguments are out of range, or the sampler breaks the contract.
    """
    if not 0 < false_alarm < 1:
        raise ValueError(f"false_alarm must be in (0, 1), got {false_alarm}; the default is {FALSE_ALARM}")
    designs = default_designs(gamma, vocab) if designs is None else tuple(designs)
    hypotheses = sum(map(hypotheses_of, designs))
    rounds = plan(gamma, vocab, max_samples).rounds
    harness, source = (np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(2))
    gathered = [Gathered(design) for design in designs]
    line = np.log(hypotheses / false_alarm)
    drawn, looked_at = 0, FIRST_STAGE
    while True:
        for one in gathered:
            while (left := int(np.ceil(one.design.share * looked_at)) - one.drawn) > 0:
                one.add(sampler, min(left, LARGEST_STREAM), harness, source)
        drawn = sum(one.drawn for one in gathered)
        strongest = max(one.strongest() for one in gathered)
        if progress is not None:
            progress(f"{drawn} rounds: ln E {strongest:.1f}, rejected at {line:.1f}")
        if looked_at == rounds or (stop_early and strongest >= line):
            break
        looked_at = min(2 * looked_at, looked_at + 2**20, rounds)
    tests = [test for one in gathered for test in one.results(hypotheses)]
    return conclude(tests, hypotheses, drawn, false_alarm)


def load_callable(reference: str) -> Sampler:
    """Import `module:callable`, looking in the current directory too.

    Raises:
        ValueError: the reference has no colon, the module does not import, or it holds no such callable.
    """
    module_name, colon, name = reference.partition(":")
    if not (module_name and colon and name):
        raise ValueError(
            f"a sampler is named module:callable, got {reference!r}; for example my_engine.sampling:verify"
        )
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found: Any = importlib.import_module(module_name)
    except ImportError as error:
        raise ValueError(f"cannot import {module_name!r} for {reference!r}: {error}") from error
    for part in name.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise ValueError(f"{module_name!r} has no callable {name!r}")
    sampler: Sampler = found
    return sampler
