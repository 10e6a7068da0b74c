"""Predict configurations that calibration never saw, by running the simulator on the fits.

For every draw from the fits, as many prompts as the design will measure are drawn from the posterior of their category
and simulated to their length. So the interval is predictive: it holds what calibration left unknown (a category's
acceptance, the shape and level of latency), and how far a measurement of so few prompts and tokens can fall from its
mean. Predictions read the calibration and the design, and no measurement of what they predict.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.fit import Calibration, DraftFit, stream
from analysis.fit.latency import Array, FittedLatency, Index
from sim.acceptance import Draws
from sim.records import check_rounds
from sim.rounds import Rounds, plan_rounds
from sim.scenario import Scenario

DESIGN_COLUMNS = ("config", "draft", "gamma", "category", "prompts", "max_new_tokens", "prompt_tokens")


@dataclass(frozen=True)
class PromptAcceptance:
    """An AcceptanceModel in which every request has its own rates: the prompts of all draws, side by side.

    A round asks for at most the tokens still wanted less one, as the decoding loop does, so none overshoots the limit.
    """

    acceptance: Array
    """conditional acceptance [requests, gamma]"""
    continues: Array | None
    """chance of proposing one more token after 0, 1, 2, ... [requests, gamma]; None: always"""
    max_new_tokens: int

    def sample(self, rng: np.random.Generator, gamma: int, rounds: int, requests: int = 1) -> Draws:
        """Draw rounds [requests, rounds]; those after the limit draft nothing."""
        if self.acceptance.shape != (requests, gamma):
            raise ValueError(
                f"these prompts answer for (requests, gamma) {self.acceptance.shape}, got {requests, gamma}"
            )
        drafted = np.full((requests, rounds), gamma, dtype=np.int64)
        if self.continues is not None:
            drafted = _run_length(rng, self.continues, rounds)
        accepted = np.minimum(_run_length(rng, self.acceptance, rounds), drafted)
        before = np.cumsum(accepted + 1, axis=1) - (accepted + 1)
        wanted = np.maximum(self.max_new_tokens - before - 1, 0)
        drafted = np.minimum(drafted, wanted)
        return Draws(drafted, np.minimum(accepted, drafted))

    def expected_block_efficiency(self, gamma: int) -> float:
        """Mean tokens per round of prompts that propose gamma tokens in every round."""
        rate = self.acceptance if self.continues is None else self.acceptance * self.continues
        return float(1 + np.cumprod(rate[:, :gamma], axis=1).sum(axis=1).mean())


@dataclass(frozen=True)
class Configuration:
    """One row of a design: what will be measured."""

    config: str
    draft: str
    gamma: int
    category: str
    prompts: int
    max_new_tokens: int
    prompt_tokens: float
    held_out: bool = True

    def __post_init__(self) -> None:
        for name in ("gamma", "prompts", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} of design row '{self.config}' must be >= 1, got {getattr(self, name)}")


def design_of(rounds: pd.DataFrame, max_new_tokens: int) -> pd.DataFrame:
    """The design of a round table: what was asked for, not what came out.

    Reads `draft`, `gamma`, `category`, `request_id`, `phase`, and the context of each request's first round, which is
    its prompt. Evaluation rounds are held out; without a `phase` all are.

    Returns:
        DESIGN_COLUMNS and `held_out`, one row per configuration; `prompt_tokens` is the mean over prompts.
    """
    check_rounds(rounds)
    held_out = rounds["phase"] != "calibration" if "phase" in rounds else pd.Series(True, index=rounds.index)
    asked = rounds.assign(held_out=held_out)[rounds["gamma"] > 0]
    keys = ["draft", "gamma", "category", "held_out"]
    prompts = asked.groupby([*keys, "request_id"], sort=False)["context"].min()
    design = prompts.groupby(level=keys, sort=False).agg(prompts="size", prompt_tokens="mean").reset_index()
    design["max_new_tokens"] = max_new_tokens
    design["config"] = config_names(design)
    return design[[*DESIGN_COLUMNS, "held_out"]]


def make_design(
    calibration: Calibration,
    drafts: Sequence[str],
    gammas: Sequence[int],
    prompts: int,
    max_new_tokens: int,
    prompt_tokens: float,
) -> pd.DataFrame:
    """The design of a measurement that nobody has made yet: every draft at every draft length and category.

    Raises:
        ValueError: a draft was not calibrated.
    """
    unknown = sorted(set(drafts) - set(calibration.drafts))
    if unknown:
        raise ValueError(f"drafts {unknown} were not calibrated; calibrated: {sorted(calibration.drafts)}")
    design = pd.DataFrame(
        [
            {"draft": draft, "gamma": gamma, "category": category}
            for draft in drafts
            for gamma in gammas
            for category in calibration.drafts[draft].rates.categories
        ]
    )
    design["prompts"], design["max_new_tokens"], design["prompt_tokens"] = prompts, max_new_tokens, prompt_tokens
    design["config"] = config_names(design)
    return design[list(DESIGN_COLUMNS)]


def config_names(table: pd.DataFrame) -> pd.Series[str]:
    """The name 'draft|gamma|category' of each row's configuration."""
    return table["draft"].astype(str) + "|" + table["gamma"].astype(str) + "|" + table["category"].astype(str)


def predict(calibration: Calibration, design: pd.DataFrame, seed: int = 0, draws: int = 400) -> pd.DataFrame:
    """Predict the speedup of every row of a design.

    Args:
        calibration: the fits.
        design: DESIGN_COLUMNS, and optionally `held_out` (default True), one row per configuration.
        seed: of the simulation; a row's prediction does not depend on the other rows.
        draws: draws from the fits, each simulating prompts of its own.

    Returns:
        config, draft, gamma, category, held_out; `predicted` (speedup: autoregressive over speculative seconds, summed
        over draws), `predicted_lo` and `predicted_hi` (95%, predictive); and the parts it is made of:
        `block_efficiency` (tokens per round), `draft_seconds`, `verify_seconds`, `other_seconds` (per round) and
        `baseline_seconds` (per token): predicted = block_efficiency * baseline / (draft + verify + other).

    Raises:
        ValueError: the design lacks a column, names a draft that was not calibrated, or needs a shape of forward that
            was not timed.
    """
    missing = [name for name in DESIGN_COLUMNS if name not in design]
    if missing:
        raise ValueError(f"design lacks the columns {missing}; it needs {list(DESIGN_COLUMNS)}")
    columns = [name for name in (*DESIGN_COLUMNS, "held_out") if name in design]
    rows = design[columns].itertuples(index=False, name=None)
    asked = [Configuration(**dict(zip(columns, row, strict=True))) for row in rows]
    return pd.DataFrame([_predict(calibration, configuration, seed, draws) for configuration in asked])


def _predict(calibration: Calibration, asked: Configuration, seed: int, draws: int) -> dict[str, object]:
    """One row of `predict`."""
    if asked.draft not in calibration.drafts:
        raise ValueError(f"draft '{asked.draft}' was not calibrated; calibrated: {sorted(calibration.drafts)}")
    fit, baseline = calibration.drafts[asked.draft], calibration.baseline
    rng = stream(seed, f"predict {asked.config} {asked.held_out}")
    which = np.arange(draws) % calibration.draws
    lengths = draw_lengths(calibration, rng, asked, draws * asked.prompts)
    rounds = simulate_prompts(fit, rng, which, asked, lengths)
    request = np.repeat(np.arange(len(lengths)), rounds.counts)

    parts = fit.costs.price(rounds.drafted, rounds.context)
    draft_seconds, verify_seconds, other_seconds = (float(part.mean()) for part in parts)
    middle = asked.prompt_tokens + (lengths - 1) / 2
    steps = lengths * (baseline.forward.forward_seconds(1, 1, middle) + baseline.other_seconds)

    # Row 0 of the fits, above, is the fit itself; draw i is row i + 1.
    row = np.repeat(which + 1, asked.prompts)
    drawn = np.sum(fit.costs.price(rounds.drafted, rounds.context, row[request]), axis=0)
    noise = np.exp(rng.choice(fit.costs.log_noise, len(lengths)))
    seconds = (np.bincount(request, drawn) * noise).reshape(draws, asked.prompts).sum(axis=1)
    drawn_steps = lengths * (baseline.forward.at(row).forward_seconds(1, 1, middle) + baseline.other_seconds)
    low, high = np.quantile(drawn_steps.reshape(draws, asked.prompts).sum(axis=1) / seconds, [0.025, 0.975])
    return {
        "config": asked.config,
        "draft": asked.draft,
        "gamma": asked.gamma,
        "category": asked.category,
        "held_out": asked.held_out,
        "predicted": float(steps.sum() / np.sum(parts)),
        "predicted_lo": float(low),
        "predicted_hi": float(high),
        "block_efficiency": float(lengths.sum() / len(request)),
        "draft_seconds": draft_seconds,
        "verify_seconds": verify_seconds,
        "other_seconds": other_seconds,
        "baseline_seconds": float(steps.sum() / lengths.sum()),
    }


def simulate_prompts(
    fit: DraftFit, rng: np.random.Generator, which: Index, asked: Configuration, lengths: Index
) -> Rounds:
    """Simulate `asked.prompts` new prompts for every draw in `which`, draw after draw, each to its own length."""
    requests = len(lengths)
    rates = fit.rates.new_prompts(rng, which, asked.category, asked.prompts, asked.gamma)
    continues = _continues(fit, rng, which, asked)
    acceptance = PromptAcceptance(rates.reshape(requests, asked.gamma), continues, asked.max_new_tokens)
    scenario = Scenario(
        target=fit.costs.verify,
        draft=fit.costs.draft if isinstance(fit.costs.draft, FittedLatency) else None,
        acceptance=acceptance,
        gamma=asked.gamma,
        requests=requests,
        prompt_tokens=round(asked.prompt_tokens),
        max_new_tokens=asked.max_new_tokens,
        request_devices="own",
    )
    rounds = plan_rounds(scenario, rng)
    # A draft cannot know where the output will stop: a stop cuts the round in which it comes, and ends the request.
    over = np.repeat(lengths, rounds.counts) <= rounds.context - round(asked.prompt_tokens)
    return _keep(rounds, ~over)


def _keep(rounds: Rounds, kept: NDArray[np.bool_]) -> Rounds:
    """The rounds that are kept; each request keeps its first ones."""
    columns = ("context", "drafted", "accepted", "emitted", "draft_seconds", "verify_seconds")
    counts = np.add.reduceat(kept.astype(np.int64), rounds.offsets)
    return replace(rounds, counts=counts, **{name: getattr(rounds, name)[kept] for name in columns})


def draw_lengths(calibration: Calibration, rng: np.random.Generator, asked: Configuration, requests: int) -> Index:
    """Output tokens of each simulated request: drawn from the category's calibrated outputs, at most max_new_tokens.

    An output as long as calibration's limit had not stopped, and goes on to the limit asked for.
    """
    everything = np.concatenate(list(calibration.output_tokens.values()))
    observed = calibration.output_tokens.get(asked.category, everything)
    drawn = rng.choice(observed, requests)
    return np.where(drawn >= everything.max(), asked.max_new_tokens, np.minimum(drawn, asked.max_new_tokens))


def _continues(fit: DraftFit, rng: np.random.Generator, which: Index, asked: Configuration) -> Array | None:
    """Chances of proposing one more token, for the requests of `simulate_prompts` [requests, gamma]."""
    if fit.proposals is None:
        return None
    first = fit.proposals.proposes.new_prompts(rng, which, asked.category, asked.prompts, 1).reshape(-1, 1)
    further = np.repeat(fit.proposals.continues[which], asked.prompts, axis=0)
    position = np.minimum(np.arange(asked.gamma - 1), further.shape[1] - 1)
    return np.hstack([first, further[:, position]])


def _run_length(rng: np.random.Generator, rates: Array, rounds: int) -> Index:
    """Successes before the first failure, for success chances [requests, depth] by position [requests, rounds]."""
    marginal = np.cumprod(rates, axis=1)
    return np.asarray((rng.random((len(rates), rounds))[:, :, None] < marginal[:, None, :]).sum(axis=2))
