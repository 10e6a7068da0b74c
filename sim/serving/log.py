"""What happened on a server: one row per request, one per step, and every gap between tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from sim.serving.plan import Plan
from sim.serving.prices import Chunk, StepSeconds
from sim.theory import FloatArray
from sim.workload import Workload

BLOCK_ROWS = 65_536

PREFILL_DEVICES = -1
"""stands for a replica in the step table"""

STEP_COLUMNS: dict[str, type] = {
    "replica": np.int32,
    "start_seconds": np.float64,
    "draft_seconds": np.float64,
    "verify_seconds": np.float64,
    "other_seconds": np.float64,
    "batch": np.int32,
    "prefill_tokens": np.int32,
    "drafted": np.int32,
    "accepted": np.int32,
    "emitted": np.int32,
    "kv_tokens": np.int64,
}
"""of the step table: which replica, or PREFILL_DEVICES; requests that decode, prompt tokens read along, tokens
drafted, accepted and emitted, and tokens known of all requests that hold memory when the step starts"""


class Rows:
    """A table that grows by a few rows at a time, in blocks, so that nothing is ever copied."""

    def __init__(self, columns: dict[str, type]) -> None:
        self.columns = columns
        self.full: list[dict[str, NDArray[Any]]] = []
        self.block = self._new()
        self.used = 0

    def _new(self) -> dict[str, NDArray[Any]]:
        return {name: np.empty(BLOCK_ROWS, dtype=dtype) for name, dtype in self.columns.items()}

    def append(self, rows: int, **values: ArrayLike) -> None:
        """Add rows; each value is one number or an array [rows]."""
        if self.used + rows > BLOCK_ROWS:
            self.full.append({name: column[: self.used] for name, column in self.block.items()})
            self.block, self.used = self._new(), 0
        for name, value in values.items():
            self.block[name][self.used : self.used + rows] = value
        self.used += rows

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Every column whole."""
        last = {name: column[: self.used] for name, column in self.block.items()}
        return {name: np.concatenate([block[name] for block in (*self.full, last)]) for name in self.columns}


class ServingLog:
    """Filled in while a server runs."""

    def __init__(self, workload: Workload) -> None:
        requests = len(workload)
        self.workload = workload
        self.admitted = np.full(requests, np.nan)
        """first time that the request was taken out of the queue"""
        self.first_token = np.full(requests, np.nan)
        self.finished = np.full(requests, np.nan)
        self.replica = np.zeros(requests, dtype=np.int32)
        self.emitted, self.preemptions = np.zeros((2, requests), dtype=np.int64)
        self.rounds, self.round_tokens, self.drafted, self.accepted = np.zeros((4, requests), dtype=np.int64)
        self.steps = Rows(STEP_COLUMNS)
        self.gaps = Rows({"end_seconds": np.float64, "seconds": np.float64, "count": np.int64})
        """seconds between two emissions of a request, when the second was, and of how many requests"""

    def write_steps(self, replica: int, plan: Plan, taken: int, chunk: Chunk, reading_tokens: int) -> None:
        """Add the first `taken` steps of a plan; `reading_tokens` are held by prompts that are being read."""
        self.steps.append(
            taken,
            replica=replica,
            start_seconds=plan.ends[:taken],
            draft_seconds=plan.seconds.draft[:taken],
            verify_seconds=plan.seconds.verify[:taken],
            other_seconds=plan.seconds.other[:taken],
            batch=plan.active[:taken].sum(axis=1),
            prefill_tokens=chunk.tokens,
            drafted=plan.drafted[:taken].sum(axis=1),
            accepted=plan.accepted[:taken].sum(axis=1),
            emitted=plan.emitted[:taken].sum(axis=1),
            kv_tokens=plan.context[:taken] + reading_tokens,
        )

    def write_prefill(self, replica: int, start_seconds: float, chunk: Chunk, seconds: StepSeconds, held: int) -> None:
        """Add a step that only reads prompts, with the tokens that memory holds."""
        self.steps.append(
            1,
            replica=replica,
            start_seconds=start_seconds,
            draft_seconds=seconds.draft,
            verify_seconds=seconds.verify,
            other_seconds=seconds.other,
            batch=0,
            prefill_tokens=chunk.tokens,
            drafted=0,
            accepted=0,
            emitted=0,
            kv_tokens=held,
        )

    def write_gaps(self, plan: Plan, taken: int, last_emission: FloatArray) -> None:
        """Add the time since each request's emission before, `last_emission` for a plan's first step."""
        ends, counts = plan.ends[: taken + 1], plan.active[:taken].sum(axis=1)
        # most requests emitted together before too: rows are few where equal gaps share one
        before, first = np.unique(last_emission, return_counts=True)
        self.gaps.append(len(before), end_seconds=ends[1], seconds=ends[1] - before, count=first)
        if taken > 1:
            self.gaps.append(taken - 1, end_seconds=ends[2:], seconds=np.diff(ends)[1:], count=counts[1:])

    def request_table(self) -> pd.DataFrame:
        """One row per request: times on the run's clock; tokens, those that rounds emitted (prefill emits the rest)."""
        workload = self.workload
        outputs = workload.output_tokens
        with np.errstate(invalid="ignore", divide="ignore"):
            tpot = np.where(outputs > 1, (self.finished - self.first_token) / (outputs - 1), np.nan)
        return pd.DataFrame(
            {
                "request_id": np.arange(len(workload)),
                "replica": self.replica,
                "arrival_seconds": workload.arrival_seconds,
                "admitted_seconds": self.admitted,
                "first_token_seconds": self.first_token,
                "finished_seconds": self.finished,
                "prompt_tokens": workload.prompt_tokens,
                "output_tokens": outputs,
                "rounds": self.rounds,
                "round_tokens": self.round_tokens,
                "drafted": self.drafted,
                "accepted": self.accepted,
                "preemptions": self.preemptions,
                "waiting_seconds": self.admitted - workload.arrival_seconds,
                "ttft_seconds": self.first_token - workload.arrival_seconds,
                "tpot_seconds": tpot,
                "latency_seconds": self.finished - workload.arrival_seconds,
            }
        )

    def step_table(self) -> pd.DataFrame:
        """One row per step; see STEP_COLUMNS, and the queue's length when the step starts."""
        table = pd.DataFrame(self.steps.arrays())
        table["queue"] = self._waiting_at(table["start_seconds"].to_numpy(), table["replica"].to_numpy())
        return table

    def _waiting_at(self, times: FloatArray, replicas: NDArray[np.int32]) -> NDArray[np.int64]:
        """Requests of each replica that have arrived by a time, and were not taken out of the queue before it.

        A preempted request counts as waiting only before its first admission.
        """
        waiting = np.zeros(len(times), dtype=np.int64)
        for replica in np.unique(replicas):
            here, mine = replicas == replica, self.replica == replica
            arrived = np.searchsorted(np.sort(self.workload.arrival_seconds[mine]), times[here], side="right")
            admitted = np.searchsorted(np.sort(self.admitted[mine]), times[here], side="right")
            waiting[here] = arrived - admitted
        return waiting

    def gap_table(self) -> pd.DataFrame:
        """Gaps between two emissions of one request: end_seconds, seconds, and of how many requests (count)."""
        gaps = pd.DataFrame(self.gaps.arrays())
        return gaps[gaps["count"] > 0].reset_index(drop=True)
