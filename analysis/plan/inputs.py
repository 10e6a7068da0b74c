"""What to plan for: names, files and runs turned into what rounds yield, what they cost, and what memory holds."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.acceptance.laws import LONGEST_DRAFT
from analysis.fit import stream
from analysis.plan import check_plan
from analysis.plan.acceptance import DRAWS, DraftLaw, of_outputs
from analysis.plan.costs import CostRatio, ModelCosts, PlanCosts, roofline_factors
from analysis.plan.emit_flags import METHODS
from analysis.plan.load import Load
from analysis.plan.memory import Room, room
from analysis.plan.sources import acceptance_from, read_run
from sim.architectures.catalogue import find_architecture
from sim.hardware import find_device
from sim.latency import LatencyModel, latency_from_json

LOOKUP = re.compile(r"(ngram|prompt-lookup|suffix)(?::(\d+))?")

NOT_OF_A_RUN = (
    *("target", "device", "target_latency", "draft_latency", "draft_cost_ratio"),
    *("acceptance", "acceptance_ci", "acceptance_rounds"),
    *("overhead_seconds", "baseline_overhead_seconds", "proposal_seconds"),
)
"""what a plan from a run would not heed"""
HEAD_HINT = "; the latency of a draft head (EAGLE, MTP) is given by its cost ratio"


@dataclass(frozen=True)
class Wanted:
    """A plan's inputs; see `specdec plan --help`."""

    target: str | None = None
    draft: str | None = None
    device: str | None = None
    target_latency: Mapping[str, Any] | None = None
    draft_latency: Mapping[str, Any] | None = None
    run: Path | None = None
    categories: tuple[str, ...] = ()
    """of a run's prompts; all of them if left out"""
    draft_cost_ratio: float | None = None
    method: str | None = None
    acceptance: str | None = None
    acceptance_ci: tuple[float, float] | None = None
    acceptance_rounds: int | None = None
    batches: tuple[int, ...] = ()
    """1, 8 and 32 if left out; 1 for a run, whose forwards were timed at batch 1"""
    contexts: tuple[float, ...] = ()
    max_gamma: int = 16
    max_tree_tokens: int = 16
    max_batch: int | None = None
    output_tokens: int | None = None
    """of each request; None: without end"""
    dtype: str = "bf16"
    draft_dtype: str | None = None
    kv_dtype: str = "bf16"
    tensor_parallel: int = 1
    draft_tensor_parallel: int | None = None
    """None: as the target, which is how engines place a draft"""
    overhead_seconds: float = 0.0
    baseline_overhead_seconds: float | None = None
    proposal_seconds: float = 0.0
    price_per_hour: float | None = None
    load: Load | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("max_gamma", "max_tree_tokens", "max_batch", "tensor_parallel", "draft_tensor_parallel"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be >= 1, got {value}")
        if self.max_gamma > LONGEST_DRAFT:
            raise ValueError(f"max_gamma must be at most {LONGEST_DRAFT} drafted tokens, got {self.max_gamma}")
        if any(batch < 1 for batch in self.batches):
            raise ValueError(f"batches must be whole numbers >= 1, got {list(self.batches)}")
        if not all(0 <= context < math.inf for context in self.contexts):
            raise ValueError(f"contexts must be finite numbers of tokens >= 0, got {list(self.contexts)}")
        if self.method is not None and self.method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, got {self.method!r}")

    @property
    def draft_devices(self) -> int:
        """Devices that share the draft."""
        return self.draft_tensor_parallel or self.tensor_parallel

    @property
    def lookup(self) -> re.Match[str] | None:
        """The draft's name, if it is a lookup's."""
        return LOOKUP.fullmatch(self.draft or "")


@dataclass(frozen=True)
class Inputs:
    """What a plan is made from."""

    draft: str | None
    law: DraftLaw
    costs: PlanCosts
    contexts: tuple[float, ...]
    batches: tuple[int, ...]
    room: Room | None = None
    remarks: tuple[str, ...] = ()
    """what to know of the models"""


def read_inputs(wanted: Wanted) -> Inputs:
    """Find and check everything that a plan needs.

    Raises:
        ValueError: what is missing, contradicts itself or cannot be read; says which options give it.
    """
    if wanted.run is not None:
        given = [name for name in NOT_OF_A_RUN if getattr(wanted, name) not in (None, 0.0)]
        if given:
            raise ValueError(f"a run gives latency and acceptance; leave {', '.join(given)} out")
        run = read_run(wanted.run, wanted.max_gamma, wanted.draft, wanted.categories, wanted.seed)
        return Inputs(
            run.draft,
            limited(wanted, run.law, run.costs),
            run.costs,
            wanted.contexts or (run.context,),
            wanted.batches or (1,),
        )
    if wanted.device is not None:
        find_device(wanted.device)  # before anything is read that takes longer
    if wanted.categories:
        raise ValueError("categories are those of a run's prompts; name the run, or leave them out")
    if wanted.acceptance is None:
        raise ValueError("a plan needs acceptance: an alpha, acceptances by position, a round table or a log; or a run")
    target = model_of(wanted, "target")
    draft: LatencyModel | None = None
    if wanted.draft_cost_ratio is not None:
        if wanted.lookup or wanted.draft_latency is not None:
            raise ValueError("a cost ratio prices a draft head; leave it out for a lookup or a draft with a latency")
        draft = CostRatio(target, wanted.draft_cost_ratio)
    elif not wanted.lookup:
        draft = model_of(wanted, "draft")
    law = acceptance_from(
        wanted.acceptance, wanted.max_gamma, interval=wanted.acceptance_ci, rounds=wanted.acceptance_rounds,
        draft=wanted.draft, seed=wanted.seed,
    )  # fmt: skip
    factors = roofline_factors(target, draft, stream(wanted.seed, "plan roofline"), DRAWS)
    costs = ModelCosts(
        target, draft, wanted.overhead_seconds, wanted.baseline_overhead_seconds, wanted.proposal_seconds, **factors
    )
    contexts, batches = wanted.contexts or (1024.0,), wanted.batches or (1, 8, 32)
    return Inputs(
        wanted.draft, limited(wanted, law, costs), costs, contexts, batches, room_of(wanted), remarks_of(wanted)
    )  # fmt: skip


def limited(wanted: Wanted, law: DraftLaw, costs: PlanCosts) -> DraftLaw:
    """The law for the draft lengths that are priced, and for outputs as long as asked for.

    Our own loop drafts no more than is wanted of an output; engines do, and drop it.
    """
    law = check_plan(law, costs)
    return law if wanted.output_tokens is None else of_outputs(law, wanted.output_tokens, wanted.run is not None)


def model_of(wanted: Wanted, role: str) -> LatencyModel:
    """The latency of the target or the draft, from its file, or by a roofline on the device.

    Raises:
        ValueError: neither is there, or a name is not known.
    """
    given, name = getattr(wanted, f"{role}_latency"), getattr(wanted, role)
    if given is not None:
        return latency_from_json(given)
    if name is None or wanted.device is None:
        way_out = "" if role == "target" else ", a lookup (ngram, prompt-lookup, suffix), or its cost ratio"
        raise ValueError(f"the {role}'s latency needs its architecture and a device, or a latency file{way_out}")
    own = role == "target"
    try:
        return latency_from_json(
            {
                "kind": "roofline",
                "architecture": name,
                "device": wanted.device,
                "dtype": wanted.dtype if own else wanted.draft_dtype or wanted.dtype,
                "tensor_parallel": wanted.tensor_parallel if own else wanted.draft_devices,
                "cache_dtype": wanted.kv_dtype,
            }
        )
    except ValueError as error:
        hint = ""
        if not own:
            hint = "; draft_tensor_parallel is its own" if "tensor_parallel" in str(error) else HEAD_HINT
        raise ValueError(f"{role}: {error}{hint}") from error


def remarks_of(wanted: Wanted) -> tuple[str, ...]:
    """What to know of the models: whether the draft has the target's tokens, and whether its memory is counted."""
    if wanted.target is None or wanted.lookup:
        return ()
    if wanted.draft_cost_ratio is not None:
        return ("the draft head's weights and cache are not in the memory",) if wanted.device else ()
    try:
        target, draft = (find_architecture(name or "").vocab for name in (wanted.target, wanted.draft))
    except ValueError:  # names beside latency files say which flags to emit only
        return ()
    if target == draft:
        return ()
    return (
        f"the target's vocabulary has {target:,} tokens and the draft's {draft:,}: engines need a draft model with the "
        "target's own tokens, but for vLLM's use_heterogeneous_vocab; take a draft of the target's family",
    )


def room_of(wanted: Wanted) -> Room | None:
    """Memory, where the target's architecture and device are known; a draft head's is not counted."""
    if wanted.target is None or wanted.device is None or wanted.target_latency is not None:
        return None
    counts = not wanted.lookup and wanted.draft_cost_ratio is None and wanted.draft_latency is None
    return room(
        wanted.target, wanted.draft if counts else None, wanted.device, wanted.tensor_parallel, wanted.dtype,
        wanted.draft_dtype, wanted.kv_dtype,
    )  # fmt: skip
