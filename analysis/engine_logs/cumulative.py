"""Counters that only grow while a process lives: how much they grew over a log."""

from __future__ import annotations

from collections.abc import Mapping


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

    def since_first(self, name: str) -> float | None:
        """What was counted after the first reading, or None for a counter that was never read."""
        total = self.since_start(name)
        return None if total is None else total - self.first.get(name, 0)
