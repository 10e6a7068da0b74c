"""Runs with known truth: a decoding loop over prompts whose acceptance, proposals and latency are ours to set."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from scipy.special import expit

from sim.forwards import make_forwards
from sim.latency import AffineLatency, TableLatency
from sim.records import make_rounds

CATEGORIES = ("chat", "code", "summarise", "extract", "translate", "story")
MODEL_DRAFT, LOOKUP = "early-exit:20", "prompt-lookup"
PROMPT_TOKENS = 60
STEPS = {1: 0.036, 2: 0.040, 3: 0.047, 4: 0.052, 5: 0.054, 6: 0.060, 7: 0.062, 8: 0.065, 9: 0.075}
SECONDS_PER_KV_TOKEN = 8e-6

TARGET = TableLatency(
    [
        {"batch": 1, "new_tokens": n, "context": c, "seconds": s + SECONDS_PER_KV_TOKEN * c}
        for n, s in STEPS.items()
        for c in (0, 1000)
    ]
)
DRAFT = AffineLatency(0.012, 0.0, 2e-6)


@dataclass(frozen=True)
class Truth:
    """What the machine and the models really are."""

    mean_logit: dict[str, float] = field(default_factory=lambda: {MODEL_DRAFT: 1.0, LOOKUP: 0.3})
    between: float = 0.4
    within: float = 0.35
    offset: tuple[float, ...] = (0.0, 0.2, 0.3, 0.3, 0.2, 0.2, 0.2, 0.2)
    propose_logit: float = -0.3
    drift: float = 0.04
    noise: float = 0.015
    in_situ: dict[str, float] = field(default_factory=lambda: {"baseline": 1.03, "verify": 1.06, "draft": 1.1})
    calibration_prompts: int = 6
    evaluation_prompts: int = 6
    max_new_tokens: int = 28
    calibration_gamma: int = 5
    evaluation_gammas: tuple[int, ...] = (2, 3, 7)
    stop_chance: float = 0.0
    """of every emitted token; a stop ends the output there"""


@dataclass
class Loop:
    """The rounds of some prompts, collected in columns."""

    rng: np.random.Generator
    truth: Truth
    columns: dict[str, list[object]] = field(default_factory=dict)

    def decode(
        self, phase: str, category: str, prompt: str, draft: str, gamma: int, eta: float, propose: float, speed: float
    ) -> None:
        """Decode one prompt as the real loop does: never draft more than can still be used."""
        truth, rng = self.truth, self.rng
        rate = expit(eta + np.array(truth.offset))
        speed = speed * float(np.exp(truth.noise * rng.standard_normal()))
        done, index, stopped = 0, 0, False
        while done < truth.max_new_tokens and not stopped:
            drafted = min(gamma, truth.max_new_tokens - done - 1)
            if draft == LOOKUP and rng.random() > propose:
                drafted = 0
            passes = rng.random(drafted) < rate[:drafted]
            accepted = int(np.cumprod(passes).sum())
            stop = np.flatnonzero(rng.random(accepted + 1) < truth.stop_chance)
            stopped = stop.size > 0
            emitted = int(stop[0]) + 1 if stopped else accepted + 1
            context = PROMPT_TOKENS + done
            kind = "verify" if gamma else "baseline"
            drafting = 5e-5 * (gamma > 0)
            if draft == MODEL_DRAFT:
                at = context + np.arange(drafted)
                drafting = truth.in_situ["draft"] * float(np.sum(DRAFT.forward_seconds(1, 1, at)))
            row = {
                "request_id": prompt,
                "round_index": index,
                "batch": 1,
                "context": context,
                "gamma": gamma,
                "drafted": drafted,
                "accepted": accepted,
                "emitted": emitted,
                "cut": emitted < accepted + 1,
                "start_seconds": 0.0,
                "draft_seconds": speed * drafting,
                "verify_seconds": speed * truth.in_situ[kind] * float(TARGET.forward_seconds(1, drafted + 1, context)),
                "other_seconds": speed * (3e-4 + 1e-4 * drafted),
                "phase": phase,
                "draft": draft,
                "category": category,
                "accept_probability": rate[:drafted],
            }
            for name, value in row.items():
                self.columns.setdefault(name, []).append(value)
            done, index = done + emitted, index + 1


def make_run(
    rng: np.random.Generator, truth: Truth | None = None, probabilities: bool = False
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rounds and forwards of a run: calibration at one gamma, evaluation at others on other prompts, and baselines."""
    truth = truth or Truth()
    loop = Loop(rng, truth)
    drafts = tuple(truth.mean_logit)
    for category in CATEGORIES:
        centre = {draft: truth.mean_logit[draft] + truth.between * rng.standard_normal() for draft in drafts}
        propose_centre = truth.propose_logit + truth.between * rng.standard_normal()
        phases: list[tuple[str, int, tuple[int, ...]]] = [
            ("calibration", truth.calibration_prompts, (truth.calibration_gamma,)),
            ("evaluation", truth.evaluation_prompts, truth.evaluation_gammas),
        ]
        for phase, prompts, gammas in phases:
            for i in range(prompts):
                prompt, speed = f"{phase}-{category}-{i}", float(np.exp(truth.drift * rng.standard_normal()))
                loop.decode(phase, category, prompt, "none", 0, 0.0, 0.0, speed)
                for draft in drafts:
                    eta = centre[draft] + truth.within * rng.standard_normal()
                    propose = float(expit(propose_centre + truth.within * rng.standard_normal()))
                    for gamma in gammas:
                        loop.decode(phase, category, prompt, draft, gamma, eta, propose, speed)
    columns = dict(loop.columns)
    if not probabilities:
        del columns["accept_probability"]
    return make_rounds(**columns), make_sweep(rng)


def make_sweep(rng: np.random.Generator, repeats: int = 7, noise: float = 0.02, drift: float = 0.05) -> pd.DataFrame:
    """A forward table: every shape in every repeat, a drift shared by a repeat, and now and then a stolen core."""
    shapes = [("target", n, c) for n in STEPS for c in (40, 80, 120)]
    shapes += [(MODEL_DRAFT, n, c) for n in (1, 2) for c in (40, 80, 120)]
    role, new_tokens, context = (np.array(column) for column in zip(*shapes, strict=True))
    model = np.where(
        role == "target",
        TARGET.forward_seconds(1, new_tokens, context),
        DRAFT.forward_seconds(1, 1, context) * (1 + 0.1 * (new_tokens - 1)),
    )
    factor = np.exp(drift * rng.standard_normal((repeats, 1)) + noise * rng.standard_normal((repeats, len(shapes))))
    factor *= np.where(rng.random(factor.shape) < 0.02, 3.0, 1.0)
    return make_forwards(
        role=np.tile(role, repeats),
        batch=1,
        new_tokens=np.tile(new_tokens, repeats),
        context=np.tile(context, repeats),
        repeat=np.repeat(np.arange(repeats), len(shapes)),
        seconds=(factor * model).ravel(),
    )
