"""Where the chunks of a sweep run: in this process, on all cores through joblib, or on a Dask cluster."""

from __future__ import annotations

import gc
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import CancelledError
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import joblib

CONNECT_SECONDS = 10
"""how long a scheduler may take to answer, and then to find a worker"""

DIED = "a worker or its scheduler died; finished chunks are kept: run the same again, with fewer jobs if memory ran out"


class Workers(NamedTuple):
    """Processes or threads that take chunks."""

    number: int
    run_all: Callable[[Callable[[Any], Any], Iterator[Any]], Generator[Any]]
    """(function, chunks) -> what the function makes of each chunk, in the order of finishing; chunks are taken from the
    iterator no earlier than they are sent out, at most two a worker"""


@contextmanager
def open_workers(jobs: int | None, dask: str | None) -> Iterator[Workers]:
    """Workers on a Dask cluster where an address is given, else `jobs` processes; None for as many as cores.

    Raises:
        ValueError: the cluster does not answer or has no worker, Dask is not installed, or (from `run_all`) a worker
            died.
    """
    if jobs is not None and (jobs < 1 or dask is not None):
        raise ValueError(f"jobs must be >= 1, and not given together with dask, got jobs={jobs} and dask={dask}")
    if dask is not None:
        client = connect(dask)
        try:
            yield Workers(sum(client.nthreads().values()), partial(on_cluster, client))
        finally:
            client.close()
    elif (number := jobs or joblib.cpu_count()) == 1:
        yield Workers(1, in_process)
    else:
        yield Workers(number, partial(on_cores, number))


def in_process(run: Callable[[Any], Any], chunks: Iterator[Any]) -> Generator[Any]:
    """One chunk after another."""
    for chunk in chunks:
        yield run(chunk)


def on_cores(jobs: int, run: Callable[[Any], Any], chunks: Iterator[Any]) -> Generator[Any]:
    """Chunks in processes of this machine; closing the generator ends the processes."""
    # chunks already are batches; memory maps would only serve arrays, which chunks do not hold
    pool = joblib.Parallel(
        n_jobs=jobs,
        backend="loky",
        return_as="generator_unordered",
        batch_size=1,
        pre_dispatch=2 * jobs,
        max_nbytes=None,
    )
    try:
        yield from pool(joblib.delayed(run)(chunk) for chunk in chunks)
    except BrokenProcessPool as error:
        raise ValueError(DIED) from error


def connect(address: str) -> Any:
    """A `distributed.Client` of the scheduler at an address, which has at least one worker."""
    try:
        from distributed import Client
    except ImportError as error:
        raise ValueError("a Dask cluster needs the extra 'dask': pip install 'specdec-lab[dask]'") from error
    client, reason = None, ""
    try:
        client = Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
    except Exception as error:  # a server of another kind can answer anything
        reason = str(error)
    if client is None:
        # what is left of a failed client stops its thread when it is collected: left to chance, that can fall into the
        # start of another client, and the two then wait for each other for ever
        gc.collect()
        raise ValueError(f"no Dask scheduler answers at {address} ({reason}); `dask scheduler` starts one")
    try:
        client.wait_for_workers(1, timeout=CONNECT_SECONDS)
    except OSError as error:
        client.close()
        raise ValueError(f"the Dask scheduler at {address} has no workers; `dask worker {address}` adds one") from error
    return client


def on_cluster(client: Any, run: Callable[[Any], Any], chunks: Iterator[Any]) -> Generator[Any]:
    """Chunks on a Dask cluster; closing the generator cancels what has not finished."""
    from distributed import KilledWorker, as_completed

    first = [client.submit(run, chunk, pure=False) for chunk in islice(chunks, 2 * sum(client.nthreads().values()))]
    finished = as_completed(first, loop=client.loop)
    running = set(first)
    try:
        for future in finished:
            running.discard(future)
            for chunk in islice(chunks, 1):
                another = client.submit(run, chunk, pure=False)
                running.add(another)
                finished.add(another)
            yield future.result()
    except (KilledWorker, CancelledError) as error:
        raise ValueError(DIED) from error
    finally:
        client.cancel(list(running))
