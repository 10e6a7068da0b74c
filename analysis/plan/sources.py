"""Where a plan's acceptance and costs come from: numbers, round tables, engine logs, and runs of the lab."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from analysis.acceptance.imports import is_import, read_log_or_import
from analysis.acceptance.laws import alpha_of_mean
from analysis.acceptance.sources import drafted_of
from analysis.fit import calibrate, calibration_rounds, fit_proposals, remaining_tokens, stream
from analysis.fit.acceptance import count_acceptance, has_probabilities
from analysis.plan.acceptance import (
    DRAWS,
    DraftLaw,
    exactly,
    from_conditional,
    from_counts,
    from_interval,
    from_pooled,
)
from analysis.plan.batches import batch_factors
from analysis.plan.costs import MeasuredCosts
from analysis.pooling import Index, pool
from sim.forwards import TARGET_ROLE, make_forwards, read_forwards
from sim.records import read_rounds
from sim.tree_search import tree_acceptance

if TYPE_CHECKING:
    from analysis.engine_logs import ImportedLog

FEWEST_REQUESTS = 5
"""with fewer, how requests differ cannot be told, and rounds count as independent"""
INDEPENDENT = "acceptance, from its rounds taken as independent"


def acceptance_from(
    text: str,
    max_gamma: int,
    *,
    interval: tuple[float, float] | None = None,
    rounds: int | None = None,
    draft: str | None = None,
    seed: int = 0,
) -> DraftLaw:
    """The law that an option's text names.

    Args:
        text: an alpha ("0.8"), conditional acceptances by position ("0.8,0.7,0.6"), a round table or a folder that
            holds one, a speculation profile, an engine's log, or what `specdec import` made of one.
        max_gamma: longest draft to plan.
        interval: 95% bounds of an alpha.
        rounds: rounds behind acceptances that are given as numbers; those behind an alpha count as one test each.
        draft: whose rounds to take where a table holds several drafts.
        seed: of the draws.

    Raises:
        ValueError: the text is none of these, or an interval does not go with it.
    """
    numbers = _numbers(text)
    if interval is not None and (numbers is None or len(numbers) != 1):
        raise ValueError(
            f"an interval goes with one alpha, got acceptance {text!r}; give the rounds behind acceptances by position"
        )
    if interval is not None and rounds is not None:
        raise ValueError("give an interval of acceptance or the rounds behind it, not both")
    rng = stream(seed, "plan acceptance")
    if numbers is None:
        if rounds is not None:
            raise ValueError(f"the rounds behind {text} are counted in it; leave their number out")
        return _read(text, max_gamma, draft, rng)
    if interval is not None:
        return from_interval(numbers[0], interval, max_gamma)
    if rounds is None:
        return _remarked(from_conditional(numbers, max_gamma), numbers)
    if rounds < 1:
        raise ValueError(f"the rounds behind an acceptance must be >= 1, got {rounds}")
    from_conditional(numbers, max_gamma)  # refuses what is no probability
    tested = rounds * np.cumprod([1.0, *numbers[:-1]])
    law = from_counts(tested, tested * numbers, max_gamma, rng, INDEPENDENT)
    return _remarked(law, numbers) if len(numbers) > 1 else replace(law, known_gamma=None)


def _remarked(law: DraftLaw, rates: Sequence[float]) -> DraftLaw:
    """The same law; rates by position that fall could be marginal ones, which engines print."""
    if not any(later < rate for rate, later in pairwise(rates)):
        return law
    text = ",".join(f"{rate:g}" for rate in rates)
    told = (
        "acceptances by position are taken as conditional; engines print marginal ones, which "
        f"`specdec convert --marginal {text}` turns into them"
    )
    return replace(law, remarks=(*law.remarks, told))


def _numbers(text: str) -> list[float] | None:
    """Numbers with commas between, or None where the text is something else."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        return None


def _read(text: str, max_gamma: int, draft: str | None, rng: np.random.Generator) -> DraftLaw:
    """The law of a file or folder."""
    path = Path(text)
    if not text or not path.exists():
        raise ValueError(
            f"acceptance must be an alpha such as 0.8, conditional acceptances with commas between, or the path of a "
            f"round table, a speculation profile, an engine's log or an import of one, got {text!r}"
        )
    if path.suffix == ".parquet" or (path.is_dir() and not is_import(path)):
        return of_rounds(read_rounds(path / "rounds.parquet" if path.is_dir() else path), max_gamma, draft, rng)
    log = read_log_or_import([path])
    if log.round_table is not None:
        return of_rounds(log.round_table, max_gamma, draft, rng)
    return of_log(log, max_gamma, rng)


def of_rounds(rounds: pd.DataFrame, max_gamma: int, draft: str | None, rng: np.random.Generator) -> DraftLaw:
    """The law of one draft's rounds in a table.

    Prompts are pooled by category where there are several (`analysis.pooling`); with few, rounds count as independent.

    Raises:
        ValueError: the table holds no drafts, or several and none of the name.
    """
    own = rounds[rounds["gamma"] > 0].reset_index(drop=True)
    own = own[own["draft"] == choose_draft(own, draft)].reset_index(drop=True) if "draft" in own else own
    if own.empty:
        raise ValueError("the round table holds no round that drafted; measure with a draft")
    if "accepted_ranks" in own and own["accepted_ranks"].notna().any():
        found = tree_acceptance(own)
        tested = found.tested[:, 0]
        law = from_counts(tested, found.acceptance[:, 0] * tested, max_gamma, rng, INDEPENDENT)
        return replace(law, ranks=found.acceptance)
    own = own.assign(draft="draft", category=own.get("category", "all"))
    if own["request_id"].nunique() >= FEWEST_REQUESTS:
        rates = pool(count_acceptance(own, probabilities=has_probabilities(own)), rng, DRAWS)
        return from_pooled(rates, fit_proposals(own, rng, DRAWS), rates.categories, max_gamma)
    full = own[remaining_tokens(own) > own["gamma"]]
    full = own if full.empty else full
    accepted, drafted, asked = (full[name].to_numpy() for name in ("accepted", "drafted", "gamma"))
    return of_steps(accepted, drafted, asked, max_gamma, rng)


def choose_draft(rounds: pd.DataFrame, draft: str | None) -> str:
    """The draft of a table: the one of that name, or the only one.

    Raises:
        ValueError: naming those there are.
    """
    names = sorted(rounds["draft"].unique().tolist())
    if draft in names:
        return str(draft)
    if len(names) != 1:
        raise ValueError(f"the table holds the drafts {names}; name one of them, got {draft!r}")
    return str(names[0])


def of_steps(accepted: Index, drafted: Index, asked: Index, max_gamma: int, rng: np.random.Generator) -> DraftLaw:
    """The law of single rounds; how much was proposed counts where it was less than asked for."""
    position = np.arange(int(asked.max()))
    within = position < asked[:, None]
    tested, passed = within & (accepted[:, None] >= position), within & (accepted[:, None] > position)
    law = from_counts(tested.sum(axis=0), passed.sum(axis=0), max_gamma, rng, INDEPENDENT)
    if (drafted >= asked).all():
        return law
    share = (within & (drafted[:, None] > position)).sum(axis=0) / within.sum(axis=0)
    goes_on = share[-1] / share[-2] if len(share) > 1 and share[-2] > 0 else 1.0
    longer = share[-1] * goes_on ** np.arange(1, max(max_gamma - len(share), 0) + 1)
    at_least = np.minimum.accumulate(np.concatenate([share, longer])[:max_gamma])
    return replace(law, drafted=exactly(at_least[None, None]))


def of_log(log: ImportedLog, max_gamma: int, rng: np.random.Generator) -> DraftLaw:
    """The law of an engine's log: from its rounds, its histogram, its acceptance by position, or its mean length.

    Raises:
        ValueError: the log holds only a mean, and not the draft length it was measured at.
    """
    remarks = tuple(log.warnings)
    if log.steps is not None and "drafted" in log.steps and log.steps["drafted"].notna().all():
        steps = log.steps
        accepted, drafted = (steps[name].to_numpy(np.int64) for name in ("accepted", "drafted"))
        asked = np.full(len(steps), max(log.gamma or 0, int(drafted.max())))
        law = of_steps(accepted, drafted, asked, max_gamma, rng)
        return replace(law, remarks=remarks)
    shorter = drafted_of(log)
    if shorter is not None:
        remarks += (
            f"the log's drafts had {shorter:.2f} of {log.gamma} tokens; they are priced as full, though one that stops "
            "where it is unsure would be accepted less if it went on",
        )
    if log.marginal_acceptance:
        marginal = np.asarray(log.marginal_acceptance)
        before = np.concatenate([[1.0], marginal[:-1]])
    elif log.mean_acceptance_length is not None and log.gamma:
        length = shorter or log.gamma
        alpha = alpha_of_mean(log.mean_acceptance_length, length)
        before = alpha ** np.arange(math.ceil(length))
        marginal = alpha * before
        remarks += (f"the log holds a mean length only: alpha {alpha:.3f} at every position is what yields it",)
    else:
        mean = log.mean_acceptance_length
        way_out = "" if mean is None else f", which `specdec convert --mean-length {mean:.4g} --gamma N` works out"
        raise ValueError(
            "the log holds neither acceptance by position nor a mean length with its draft length; give an alpha"
            + way_out
        )
    if not log.rounds:
        law = from_conditional((marginal[before > 0] / before[before > 0]).tolist(), max_gamma)
    else:
        law = from_counts(log.rounds * before, log.rounds * marginal, max_gamma, rng, INDEPENDENT)
    return replace(law, remarks=remarks)


@dataclass(frozen=True)
class MeasuredRun:
    """A run of the lab, fitted for plans."""

    draft: str
    law: DraftLaw
    costs: MeasuredCosts
    context: float
    """mean tokens known before a calibration round"""


def read_run(
    folder: Path, max_gamma: int, draft: str | None = None, categories: Sequence[str] = (), seed: int = 0
) -> MeasuredRun:
    """Fit a folder of `specdec lab` (its calibration rounds) or `specdec measure` (all rounds).

    `specdec measure` leaves no forward table; the forwards of its architecture.json stand in, and a model's drafting
    is then priced by the rounds themselves.

    Raises:
        ValueError: a table is missing or does not suit, or the draft or category was not measured.
    """
    rounds = read_rounds(folder / "rounds.parquet")
    if (folder / "forwards.parquet").exists():
        forwards = read_forwards(folder / "forwards.parquet")
    else:
        forwards, rounds = forwards_of_architecture(folder / "architecture.json"), rounds.drop(columns="phase")
    return fit_run(rounds, forwards, max_gamma, draft, categories, seed)


def fit_run(
    rounds: pd.DataFrame,
    forwards: pd.DataFrame,
    max_gamma: int,
    draft: str | None = None,
    categories: Sequence[str] = (),
    seed: int = 0,
    batched: pd.DataFrame | None = None,
) -> MeasuredRun:
    """Fit rounds at batch 1, and forwards at every batch to be planned for; see `read_run`.

    Args:
        rounds, forwards, max_gamma: as they say.
        draft: whose rounds; may be left out where there is one.
        categories: of prompts to plan for, in equal parts; all of them if left out.
        seed: of the fits.
        batched: rounds decoded in batches of one size; None: the sweeps alone say what a batch costs.
    """
    used = calibration_rounds(rounds)
    name = choose_draft(used[used["gamma"] > 0], draft)
    if "accepted_ranks" in used and used.loc[used["draft"] == name, "accepted_ranks"].notna().any():
        raise ValueError(
            f"'{name}' drafted trees, whose rounds do not price chains; give the run as acceptance beside latencies"
        )
    # the baseline and this draft alone: the fits of others would take time
    calibration = calibrate(used[(used["gamma"] == 0) | (used["draft"] == name)], forwards, seed, DRAWS)
    fit = calibration.drafts[name]
    factors = {}
    if batched is not None:
        own = batched[(batched["gamma"] == 0) | (batched["draft"] == name)]
        factors = batch_factors(own, calibration.baseline, fit.costs)
    costs = MeasuredCosts(calibration.baseline, fit.costs, factors)
    chosen = categories or fit.rates.categories
    law = from_pooled(fit.rates, fit.proposals, chosen, int(min(max_gamma, costs.most_gamma)))
    steps = used[(used["gamma"] == 0) & used["category"].isin(chosen)]
    return MeasuredRun(name, law, costs, float(steps["context"].mean()))


def forwards_of_architecture(path: Path) -> pd.DataFrame:
    """The forward table in what `specdec measure` says of an architecture.

    Raises:
        ValueError: the file is missing or damaged.
    """
    try:
        rows = pd.DataFrame(json.loads(path.read_text())["forwards"])
        columns = {name: rows[name].tolist() for name in ("batch", "new_tokens", "context", "repeat", "seconds")}
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"{path.parent} holds neither forwards.parquet nor a readable architecture.json ({error}); plan from a "
            "folder of `specdec lab` or `specdec measure`"
        ) from error
    return make_forwards(role=TARGET_ROLE, **columns)
