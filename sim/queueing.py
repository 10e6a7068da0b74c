"""Closed forms of queues, to check a simulated server against, and the exact waits of one that serves in order.

Arrivals are Poisson unless they are given. Kleinrock is "Queueing Systems, Volume 1" (1975); Gross is Gross, Shortle,
Thompson and Harris, "Fundamentals of Queueing Theory" (4th ed., 2008). Every function broadcasts over arrays and
returns a float for numbers. A mean wait is until service starts, a sojourn until it ends.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaincc, gammaln, lambertw, xlogy

from sim.theory import FloatArray, check_cost, check_probability


def little_number(arrival_rate: ArrayLike, sojourn_seconds: ArrayLike) -> FloatArray:
    """Mean number present, rate times mean stay, in any steady system (Little 1961, Operations Research 9:383)."""
    return (check_cost("arrival_rate", arrival_rate) * check_cost("sojourn_seconds", sojourn_seconds))[()]


def mm1_mean_wait(arrival_rate: ArrayLike, service_seconds: ArrayLike) -> FloatArray:
    """Mean wait in M/M/1: s * load / (1 - load) (Gross, sec. 2.2).

    Args:
        arrival_rate: arrivals per second.
        service_seconds: mean service time s.

    Raises:
        ValueError: the queue is unstable, or an argument is out of its range.
    """
    return mg1_mean_wait(arrival_rate, service_seconds, 1.0)


def mm1_mean_number(arrival_rate: ArrayLike, service_seconds: ArrayLike) -> FloatArray:
    """Mean number in an M/M/1 system, waiting or in service: load / (1 - load) (Kleinrock, eq. 3.24)."""
    load = check_load(arrival_rate, service_seconds)
    return load / (1 - load)


def mm1_sojourn_quantile(arrival_rate: ArrayLike, service_seconds: ArrayLike, q: ArrayLike) -> FloatArray:
    """The quantile q of the sojourn in M/M/1, first come first served: exponential with mean s / (1 - load).

    Gross, sec. 2.2. Raises as `mm1_mean_wait`, or where q is not in [0, 1).
    """
    load, q = check_load(arrival_rate, service_seconds), check_probability("q", q)
    if np.any(q == 1):
        raise ValueError("q must be below 1, got 1.0; a sojourn has no upper bound")
    return -np.log1p(-q) * check_cost("service_seconds", service_seconds) / (1 - load)


def mg1_mean_wait(arrival_rate: ArrayLike, service_seconds: ArrayLike, service_scv: ArrayLike) -> FloatArray:
    """Mean wait in M/G/1 by Pollaczek and Khinchine: s * load * (1 + scv) / (2 (1 - load)) (Gross, sec. 5.1).

    Args:
        arrival_rate: arrivals per second.
        service_seconds: mean service time s.
        service_scv: squared coefficient of variation of the service time: variance / s^2.

    Raises:
        ValueError: the queue is unstable, or an argument is out of its range.
    """
    load, service = check_load(arrival_rate, service_seconds), check_cost("service_seconds", service_seconds)
    return service * load * (1 + check_cost("service_scv", service_scv)) / (2 * (1 - load))


def md1_mean_wait(arrival_rate: ArrayLike, service_seconds: ArrayLike) -> FloatArray:
    """Mean wait in M/D/1, whose service times are all the same: half of M/M/1's; see `mg1_mean_wait`."""
    return mg1_mean_wait(arrival_rate, service_seconds, 0.0)


def erlang_c(arrival_rate: ArrayLike, service_seconds: ArrayLike, servers: ArrayLike) -> FloatArray:
    """Chance that an arrival to M/M/c has to wait (Erlang C; Gross, sec. 2.3).

    B / (1 - load (1 - B)), B being Erlang's loss a^c/c! / sum_k a^k/k! for the offered load a, whose sum is an
    incomplete gamma function.

    Args:
        arrival_rate: arrivals per second.
        service_seconds: mean service time.
        servers: c, at least 1.

    Raises:
        ValueError: the queue is unstable, or an argument is out of its range.
    """
    servers = check_count("servers", servers)
    load = check_load(arrival_rate, service_seconds, servers)
    offered = load * servers
    largest = np.exp(xlogy(servers, offered) - offered - gammaln(servers + 1))
    loss: FloatArray = largest / gammaincc(servers + 1, offered)
    return loss / (1 - load * (1 - loss))


def mmc_mean_wait(arrival_rate: ArrayLike, service_seconds: ArrayLike, servers: ArrayLike) -> FloatArray:
    """Mean wait in M/M/c: Erlang C * s / (c (1 - load)); see `erlang_c` (Gross, sec. 2.3)."""
    servers, service = check_count("servers", servers), check_cost("service_seconds", service_seconds)
    load = check_load(arrival_rate, service_seconds, servers)
    return erlang_c(arrival_rate, service_seconds, servers) * service / (servers * (1 - load))


@dataclass(frozen=True)
class BulkService:
    """The steady state of a server that takes many requests at once; each field broadcasts over the loads."""

    wait_seconds: FloatArray
    """mean time from a request's arrival to the start of its step"""
    sojourn_seconds: FloatArray
    """mean time to the end of its step"""
    waiting: FloatArray
    """mean number of requests that wait, at any time"""
    batch: FloatArray
    """mean number of requests in a step"""
    idle: FloatArray
    """share of time without a step"""


def bulk_service(arrival_rate: ArrayLike, step_seconds: ArrayLike, most: int, least: int = 1) -> BulkService:
    """M/D^[least, most]/1: steps of one length that serve up to `most` requests each, in order of arrival.

    A step starts when the one before has ended and at least `least` requests wait; who arrives during a step waits for
    a next one. The number N left behind by a step is that of N' = max(N - most, 0) + arrivals, whatever `least` is, and
    its generating function follows from the roots of z^most = exp(mu (z - 1)) inside the unit circle (Bailey 1954, JRSS
    B 16:80; Neuts 1967, Ann. Math. Stat. 38:759; Chaudhry and Templeton 1983, "A First Course in Bulk Queues"), here in
    Lambert's W. Waits follow from the requests present over one cycle of idling and step, and from Little's law. No
    approximation is made; rounding leaves about 1e-11 requests where `most` is 1000.

    Args:
        arrival_rate: arrivals per second, above 0.
        step_seconds: length of every step, above 0.
        most: most requests in a step.
        least: fewest requests in a step, 1 to most.

    Raises:
        ValueError: the queue is unstable, or an argument is out of its range.
    """
    if check_count("least", least) > check_count("most", most):
        raise ValueError(f"least must be in [1, most={most}], got {least}; a step cannot wait for more than it takes")
    rate, step = np.asarray(arrival_rate, dtype=np.float64), np.asarray(step_seconds, dtype=np.float64)
    load = check_load(rate, step, np.asarray(most))
    if np.any(load == 0):
        raise ValueError("arrival_rate and step_seconds must be > 0; without arrivals there is nothing to serve")
    arrivals = load * most
    roots = unit_roots(load, most)
    # the mean of max(N - most, 0): the derivative at 1 of the logarithm of N's generating function / exp(mu (z - 1))
    beyond = (arrivals**2 - most * (most - 1)) / (2 * (most - arrivals)) + (1 / (1 - roots)).sum(axis=-1).real
    left = np.arange(least)
    short = left_behind(load, most, roots)[..., :least]
    # while it fills up from j to `least`, a queue of i = j, ..., least - 1 lasts one interarrival time each
    filling = (short * (least * (least - 1) - left * (left - 1)) / 2).sum(axis=-1) / rate
    idle_seconds = (short * (least - left)).sum(axis=-1) / rate
    cycle_seconds = idle_seconds + step
    waiting = (filling + step * (beyond + arrivals / 2)) / cycle_seconds
    wait = waiting / rate
    return BulkService(wait, wait + step, waiting, rate * cycle_seconds, idle_seconds / cycle_seconds)


def unit_roots(load: FloatArray, most: int) -> NDArray[np.complex128]:
    """The roots of z^most = exp(load * most * (z - 1)) inside the unit circle, without z = 1 [..., most - 1].

    With w a root of unity, z = w exp(load (z - 1)), which is z = -W(-load w exp(-load)) / load on the principal branch.
    """
    load = np.asarray(load)[..., None]
    unity = np.exp(2j * np.pi * np.arange(1, most) / most)
    roots: NDArray[np.complex128] = -lambertw(-load * np.exp(-load) * unity) / load
    return roots


def left_behind(load: FloatArray, most: int, roots: NDArray[np.complex128]) -> FloatArray:
    """Chances that a step leaves 0, 1, ..., most - 1 requests behind [..., most].

    N's generating function is Q(z) / (z^most exp(mu (1 - z)) - 1) with the polynomial Q(z) = (most - mu) (z - 1)
    prod (z - root) / (1 - root), so these chances are Q's first coefficients, negated: read off points on the circle.
    """
    points = np.exp(2j * np.pi * np.arange(most + 1) / (most + 1))
    factors = np.log((points[:, None] - roots[..., None, :]) / (1 - roots[..., None, :])).sum(axis=-1)
    values = (1 - load)[..., None] * most * (points - 1) * np.exp(factors)
    return -np.fft.fft(values, axis=-1).real[..., :most] / (most + 1)


def waiting_times(arrival_seconds: ArrayLike, service_seconds: ArrayLike) -> FloatArray:
    """Waits of requests that one server takes in order of arrival, from an empty start: Lindley's recursion.

    wait[n + 1] = max(0, wait[n] + service[n] - (arrival[n + 1] - arrival[n])) (Lindley 1952, Proc. Camb. Phil. Soc.
    48:277), solved by a running maximum over when the server would have had no work left.

    Args:
        arrival_seconds: times of arrival, in order [..., requests].
        service_seconds: each request's service time [..., requests].

    Returns:
        Waits [..., requests].

    Raises:
        ValueError: arrivals are out of order, or a time is negative or not finite.
    """
    arrivals = np.asarray(arrival_seconds, dtype=np.float64)
    services = check_cost("service_seconds", service_seconds)
    if not np.isfinite(arrivals).all() or np.any(np.diff(arrivals, axis=-1) < 0):
        raise ValueError("arrival_seconds must be finite and rise along the last axis; sort the requests by arrival")
    arrivals, services = np.broadcast_arrays(arrivals, services)
    ahead = np.cumsum(services, axis=-1) - services
    slack = arrivals - ahead
    return np.maximum.accumulate(slack, axis=-1) - slack


def check_load(arrival_rate: ArrayLike, service_seconds: ArrayLike, servers: ArrayLike = 1.0) -> FloatArray:
    """The load, rate * service time / servers, where the queue is stable.

    Raises:
        ValueError: the load is 1 or more, or an argument is out of its range.
    """
    rate, service = check_cost("arrival_rate", arrival_rate), check_cost("service_seconds", service_seconds)
    load = np.asarray(rate * service / np.asarray(servers, dtype=np.float64))
    if np.any(load >= 1):
        raise ValueError(f"the load must be < 1, got {load.max():g}: unstable; lower the rate or the service time")
    return load[()]


def check_count(name: str, values: ArrayLike) -> FloatArray:
    """The values as floats, each a whole number >= 1.

    Raises:
        ValueError: naming the first value that is not.
    """
    array = np.asarray(values, dtype=np.float64)
    wrong = ~((array >= 1) & (array < np.inf) & (array == np.floor(array)))
    if wrong.any():
        raise ValueError(f"{name} must be a whole number >= 1, got {array[wrong][0]:g}")
    return array
