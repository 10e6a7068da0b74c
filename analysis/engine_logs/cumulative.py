"""Counters that only grow while a process lives: how much they grew over a log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Labels = tuple[tuple[bytes, bytes], ...]
"""names and values that tell one process of a server from another"""


class Counters:
    """Follows one process's counters; a fall means that the process was started again at zero."""

    def __init__(self) -> None:
        self.first: dict[str, float] = {}
        self.latest: dict[str, float] = {}
        self.before: dict[str, float] = {}
        """sums of the process's earlier lives"""
        self.readings = 0
        self.restarts = 0

    def read(self, values: Mapping[str, float]) -> dict[str, float]:
        """Take a reading; what was counted since the one before it (since the start, for the first)."""
        restarted = any(value < self.latest.get(name, 0) for name, value in values.items())
        if restarted:
            self.restarts += 1
            for name, value in self.latest.items():
                self.before[name] = self.before.get(name, 0) + value
            self.latest = {}
        grown = {name: value - self.latest.get(name, 0) for name, value in values.items()}
        if self.readings == 0:
            self.first = dict(values)
        self.latest.update(values)
        self.readings += 1
        return grown

    def since_start(self, name: str) -> float | None:
        """All that was counted, or None for a counter that was never read."""
        if name not in self.latest and name not in self.before:
            return None
        return self.before.get(name, 0) + self.latest.get(name, 0)


class Snapshots:
    """Counters of several processes, read together: how much they grew from the first snapshot to the last.

    A process that appears later began at zero; what one that disappears still counted is not known.
    """

    def __init__(self) -> None:
        self.processes: dict[Labels, Counters] = {}
        self.at_first: frozenset[Labels] = frozenset()
        self.latest: Mapping[Labels, Mapping[str, float]] = {}
        self.readings = 0

    def read(self, snapshot: Mapping[Labels, Mapping[str, float]]) -> list[dict[str, float]]:
        """Take each process's counters by name; what each counted since its reading before, or its start."""
        if self.readings == 0:
            self.at_first = frozenset(snapshot)
        self.readings += 1
        self.latest = snapshot
        return [self.processes.setdefault(process, Counters()).read(counts) for process, counts in snapshot.items()]

    def total(self, name: str, of_all: bool = True) -> int | None:
        """Over all processes: the growth between snapshots, or since the start where there is one snapshot only.

        None where no process counts this, where one lacks it on the first or the last snapshot, or, with `of_all`,
        where some process never counted it.
        """
        sums: list[float] = []
        for process in self.latest:
            counters = self.processes[process]
            total = counters.since_start(name)
            if total is None:
                if of_all:
                    return None
                continue
            if self._lacks(process, name):
                return None
            if self.readings > 1:
                total -= counters.first[name] if process in self.at_first else 0
            sums.append(total)
        return int(sum(sums)) if sums else None

    def restarts(self) -> int:
        """How often a process's counters fell."""
        return sum(counters.restarts for counters in self.processes.values())

    def warnings(self, of: str) -> list[str]:
        """What makes the growth doubtful; `of` names the snapshots, as in 'metrics page'."""
        found = []
        if self.readings == 1:
            found.append(
                f"one {of}: it counts everything since the server started, warm-up included; "
                f"give a {of} from before and one from after to measure what lies between"
            )
        if self.restarts():
            found.append(
                f"counters fall {self.restarts()} times, which was taken for restarts of the server and added up; "
                f"if {of}s are in the wrong order, give the earlier one first"
            )
        gone = len(self.processes) - len(self.latest)
        if gone:
            found.append(f"the counters of {gone} engines are not on the last {of} and were left out")
        new = len(self.latest.keys() - self.at_first)
        if new:
            found.append(f"the counters of {new} engines are not on the first {of}: all that they count was taken")
        lacking = sum(self._lacks(process, name) for process in self.latest for name in self.processes[process].latest)
        if lacking:
            found.append(f"{lacking} counters are not on both the first and the last {of}: their growth is not known")
        return found

    def _lacks(self, process: Labels, name: str) -> bool:
        """Does the first or the last snapshot lack a counter of a process that is on both?"""
        first = self.processes[process].first
        return process in self.at_first and (name not in first or name not in self.latest[process])


def added(grown: Sequence[Mapping[str, float]], name: str) -> float | None:
    """What several processes counted between two snapshots; None where one does not count it."""
    return sum(one[name] for one in grown) if all(name in one for one in grown) else None
