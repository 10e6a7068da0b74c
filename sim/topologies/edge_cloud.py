"""Clients at the edge, each with its own draft and link, and one target in the cloud that batches what waits."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import simpy

from sim.hardware import Link
from sim.latency import LatencyModel
from sim.rounds import Rounds, plan_rounds, round_table
from sim.scenario import Scenario
from sim.theory import FloatArray
from sim.topologies.remote_draft import (
    TOKEN_BYTES,
    TOKENS_ALONE,
    DraftMessage,
    draft_then_verify_forwards,
    transfer_seconds,
)
from sim.topologies.run import check_apart, speedup_figures, successive_starts


@dataclass(frozen=True)
class EdgeClient:
    """One client: one request at a time of its own, drafted on its own device."""

    scenario: Scenario
    """draft_device "own"; the target is the cloud's, the same for all clients"""
    link: Link
    """to the cloud; its latency is one way, half of a round trip"""
    message: DraftMessage = TOKENS_ALONE


@dataclass(frozen=True)
class EdgeRun:
    """One simulated run of a cloud and its clients."""

    table: pd.DataFrame
    """a round table (see `sim.records`), one request_id per client"""
    summary: dict[str, float]
    clients: pd.DataFrame
    """one row per client: tokens, seconds, tokens_per_second, and the same of autoregressive decoding in the cloud as
    autoregressive_seconds and autoregressive_tokens_per_second"""
    jobs: pd.DataFrame
    """one row per verification, in order of arrival: arrived_seconds, started_seconds, service_seconds, batch"""


Client = Generator[simpy.Event, Any, "list[Job]"]


@dataclass
class Job:
    """A verification, or a plain step, that a client asks the cloud for."""

    drafted: int
    context: int
    done: simpy.Event
    arrived_seconds: float
    started_seconds: float = 0.0
    service_seconds: float = 0.0
    """of the whole batch"""
    batch: int = 0


@dataclass
class Cloud:
    """One target that serves, in order of arrival, all that wait when it comes free, up to a limit."""

    env: simpy.Environment
    target: LatencyModel
    batch_limit: int
    waiting: list[Job] = field(default_factory=list)
    jobs: list[Job] = field(default_factory=list)
    batches: int = 0
    busy_seconds: float = 0.0
    waiting_area: float = 0.0
    """integral of the number of waiting jobs over time"""
    counted_until: float = 0.0
    bell: simpy.Event = field(init=False)
    """rings when a job arrives at a cloud that has nothing to do"""

    def __post_init__(self) -> None:
        self.bell = self.env.event()

    def ask(self, drafted: int, context: int) -> Job:
        """Queue a job; its `done` event ends it."""
        self.count_waiting()
        job = Job(drafted, context, self.env.event(), self.env.now)
        self.waiting.append(job)
        self.jobs.append(job)
        if not self.bell.triggered:
            self.bell.succeed()
        return job

    def count_waiting(self) -> None:
        """Bring the integral of waiting jobs up to now; their number is about to change."""
        self.waiting_area += len(self.waiting) * (self.env.now - self.counted_until)
        self.counted_until = self.env.now

    def serve(self) -> Iterator[simpy.Event]:
        """Serve for ever.

        A batch is priced at its longest draft and its mean context, which is exact where latency is affine in context.
        """
        while True:
            while not self.waiting:
                self.bell = self.env.event()
                yield self.bell
            # whatever arrives at this very instant joins the batch
            yield self.env.timeout(0)
            self.count_waiting()
            batch = self.waiting[: self.batch_limit]
            del self.waiting[: self.batch_limit]
            drafted, context = max(job.drafted for job in batch), np.mean([job.context for job in batch])
            seconds = float(self.target.forward_seconds(len(batch), drafted + 1, context))
            for job in batch:
                job.started_seconds, job.service_seconds, job.batch = self.env.now, seconds, len(batch)
            self.batches += 1
            self.busy_seconds += seconds
            yield self.env.timeout(seconds)
            for job in batch:
                job.done.succeed()


def edge_cloud(clients: Sequence[EdgeClient], batch_limit: int, seed: int | np.random.Generator) -> EdgeRun:
    """Simulate clients that draft at the edge and are verified in the cloud, until all have what they asked for.

    A client's round drafts, sends the draft, waits, is verified in a batch, and receives the verdict. The baseline is
    the same clients decoding the same numbers of tokens autoregressively in the same cloud, which streams each token
    over the link and does not wait for it to arrive.

    Args:
        clients: at least one, all with the same target.
        batch_limit: most verifications in one forward.
        seed: the run's seed, or a generator to draw from; clients draw one after another.

    Returns:
        A round table with one request_id per client, where verify_seconds are the batch's and other_seconds hold
        overhead, transfers and waiting; and the figures: clients, rounds, tokens, seconds (until the last verdict
        arrives), tokens_per_second (mean over clients) and its least, block_efficiency, speedup with speedup_lo and
        speedup_hi (over all clients' seconds), cloud_utilisation, mean_batch, mean_waiting_seconds, mean_waiting
        (verifications waiting, over time), draft_forwards, wasted_draft_forwards, target_forwards (batches),
        wasted_target_forwards (0); and, of the baseline, autoregressive_tokens_per_second,
        autoregressive_cloud_utilisation and autoregressive_mean_batch.

    Raises:
        ValueError: there is no client, targets differ, the limit is below 1, or a scenario has something that is not
            simulated here.
    """
    target = check_clients(clients, batch_limit)
    rng = np.random.default_rng(seed)
    plans = [plan_rounds(client.scenario, rng) for client in clients]
    cloud = Cloud(simpy.Environment(), target, batch_limit)
    jobs = run_clients(cloud, [speculating(cloud, *pair) for pair in zip(clients, plans, strict=True)])
    played = [played_rounds(*triple) for triple in zip(clients, plans, jobs, strict=True)]
    tokens = [int(rounds.emitted.sum()) for rounds in played]
    plain = Cloud(simpy.Environment(), target, batch_limit)
    steps = run_clients(plain, [stepping(plain, *pair) for pair in zip(clients, tokens, strict=True)])
    baseline = [streamed_seconds(*pair) for pair in zip(clients, steps, strict=True)]

    each = pd.DataFrame({"tokens": tokens, "seconds": [rounds.wall_seconds.sum() for rounds in played]})
    each["tokens_per_second"] = each["tokens"] / each["seconds"]
    each["autoregressive_seconds"] = [seconds.sum() for seconds in baseline]
    each["autoregressive_tokens_per_second"] = each["tokens"] / each["autoregressive_seconds"]
    tables = [client_table(i, *triple) for i, triple in enumerate(zip(clients, played, jobs, strict=True))]
    names = ("arrived_seconds", "started_seconds", "service_seconds", "batch")
    queue = pd.DataFrame({name: [getattr(job, name) for job in cloud.jobs] for name in names})
    summary = summarise_clients(each, played, baseline, cloud, plain)
    return EdgeRun(pd.concat(tables, ignore_index=True), summary, each, queue)


def summarise_clients(
    each: pd.DataFrame, played: list[Rounds], baseline: list[FloatArray], cloud: Cloud, plain: Cloud
) -> dict[str, float]:
    """The figures that `edge_cloud` lists.

    Args:
        each: the clients' tokens and rates.
        played: the clients' rounds.
        baseline: seconds of each token of each client, decoded autoregressively.
        cloud: the cloud that verified.
        plain: the cloud that decoded.
    """
    counts = np.array([len(rounds.emitted) for rounds in played])
    forwards = [draft_then_verify_forwards(rounds) for rounds in played]
    seconds = cloud.env.now
    figures = {
        "clients": len(each),
        "rounds": counts.sum(),
        "tokens": each["tokens"].sum(),
        "seconds": seconds,
        "tokens_per_second": each["tokens_per_second"].mean(),
        "least_tokens_per_second": each["tokens_per_second"].min(),
        "block_efficiency": each["tokens"].sum() / counts.sum(),
        "cloud_utilisation": cloud.busy_seconds / seconds,
        "mean_batch": len(cloud.jobs) / cloud.batches,
        "mean_waiting_seconds": np.mean([job.started_seconds - job.arrived_seconds for job in cloud.jobs]),
        "mean_waiting": cloud.waiting_area / seconds,
        "draft_forwards": sum(one.draft for one in forwards),
        "wasted_draft_forwards": sum(one.wasted_draft for one in forwards),
        "target_forwards": cloud.batches,
        "wasted_target_forwards": 0,
        "autoregressive_tokens_per_second": each["autoregressive_tokens_per_second"].mean(),
        "autoregressive_cloud_utilisation": plain.busy_seconds / plain.env.now,
        "autoregressive_mean_batch": len(plain.jobs) / plain.batches,
    }
    emitted = np.concatenate([rounds.emitted for rounds in played])
    wall = np.concatenate([rounds.wall_seconds for rounds in played])
    speedup = speedup_figures(counts, emitted, wall, np.concatenate(baseline))
    return {name: float(value) for name, value in figures.items()} | speedup


def check_clients(clients: Sequence[EdgeClient], batch_limit: int) -> LatencyModel:
    """Check what `edge_cloud` is given, and give the clients' common target."""
    if not clients:
        raise ValueError("edge_cloud needs at least one client, got none")
    if batch_limit < 1 or batch_limit != int(batch_limit):
        raise ValueError(f"batch_limit must be a whole number >= 1, got {batch_limit}")
    target = clients[0].scenario.target
    for i, client in enumerate(clients):
        check_apart("edge_cloud", client.scenario)
        if client.scenario.target is not target and client.scenario.target != target:
            raise ValueError(f"all clients share one target, but client {i}'s differs from client 0's; give them one")
    return target


def run_clients(cloud: Cloud, clients: list[Client]) -> list[list[Job]]:
    """Run the cloud until every client is done, and give each one's jobs."""
    cloud.env.process(cloud.serve())
    done = cloud.env.all_of([cloud.env.process(client) for client in clients])
    jobs: list[list[Job]] = list(cloud.env.run(until=done).values())
    cloud.count_waiting()
    return jobs


def speculating(cloud: Cloud, client: EdgeClient, plan: Rounds) -> Client:
    """A client that drafts at the edge: its rounds one after another."""
    there, back = transfer_seconds(client.link, client.message, plan.drafted)
    away = (plan.draft_seconds + there).tolist()
    back_seconds = float(back) + plan.overhead_seconds
    jobs = []
    for seconds, drafted, context in zip(away, plan.drafted.tolist(), plan.context.tolist(), strict=True):
        yield cloud.env.timeout(seconds)
        job = cloud.ask(drafted, context)
        jobs.append(job)
        yield job.done
        yield cloud.env.timeout(back_seconds)
    return jobs


def stepping(cloud: Cloud, client: EdgeClient, tokens: int) -> Client:
    """A client that decodes autoregressively in the cloud."""
    jobs = []
    for output in range(tokens):
        job = cloud.ask(0, client.scenario.prompt_tokens + output)
        jobs.append(job)
        yield job.done
        if client.scenario.overhead_seconds:
            yield cloud.env.timeout(client.scenario.overhead_seconds)
    return jobs


def streamed_seconds(client: EdgeClient, steps: list[Job]) -> FloatArray:
    """Seconds between the arrivals of successive tokens at a client, from the start of its first step [tokens].

    A token leaves when it is there and the token before it has been sent.
    """
    ended = np.array([job.started_seconds + job.service_seconds for job in steps]) + client.scenario.overhead_seconds
    sending = TOKEN_BYTES / client.link.bandwidth
    position = np.arange(len(ended))
    sent = np.maximum.accumulate(ended - position * sending) + (position + 1) * sending
    return np.diff(sent + client.link.latency, prepend=0.0)


def played_rounds(client: EdgeClient, plan: Rounds, jobs: list[Job]) -> Rounds:
    """A client's rounds as the cloud served them."""
    there, back = transfer_seconds(client.link, client.message, plan.drafted)
    waited = np.array([job.started_seconds - job.arrived_seconds for job in jobs])
    served = np.array([job.service_seconds for job in jobs])
    rounds = replace(plan, verify_seconds=served, waiting_seconds=there + back + waited)
    return replace(rounds, start_seconds=successive_starts(rounds.wall_seconds))


def client_table(client: int, setting: EdgeClient, rounds: Rounds, jobs: list[Job]) -> pd.DataFrame:
    """A client's rounds as a round table."""
    table = round_table(rounds, setting.scenario)
    return table.assign(request_id=str(client), batch=np.array([job.batch for job in jobs], dtype=np.int64))
