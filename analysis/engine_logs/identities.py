"""Numbers of one log that must agree: which were compared, and which do not agree."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """One identity, checked wherever a log allows."""

    name: str
    compared: int
    """how often both sides were there"""
    failed: int
    example: str
    """the first pair that differs by more than rounding, and where"""

    def warning(self) -> str:
        """The failure in one sentence."""
        often = "" if self.compared == 1 else f" in {self.failed:,} of {self.compared:,} places, first"
        return f"{self.name} does not hold{often}: {self.example}"


class Identities:
    """Compares pairs of numbers under the name of the identity they should fulfil."""

    def __init__(self) -> None:
        self.found: dict[str, list[int]] = {}
        self.examples: dict[str, str] = {}

    def compare(
        self,
        name: str,
        left: tuple[str, float | None],
        right: tuple[str, float | None],
        tolerance: float = 0.0,
        where: str = "",
    ) -> bool:
        """Compare two labelled numbers; True where they agree to within the tolerance, or where one is missing."""
        if left[1] is None or right[1] is None:
            return True
        counts = self.found.setdefault(name, [0, 0])
        counts[0] += 1
        if abs(left[1] - right[1]) <= tolerance + 1e-9 * max(1.0, abs(left[1]), abs(right[1])):
            return True
        counts[1] += 1
        if name not in self.examples:
            place = f" ({where})" if where else ""
            self.examples[name] = f"{left[0]} is {left[1]:.6g}, {right[0]} is {right[1]:.6g}{place}"
        return False

    def agreed(self, name: str, times: int = 1) -> None:
        """Count comparisons that were made elsewhere and held."""
        self.found.setdefault(name, [0, 0])[0] += times

    def checks(self) -> tuple[Check, ...]:
        """All identities compared so far."""
        return tuple(
            Check(name, compared, failed, self.examples.get(name, ""))
            for name, (compared, failed) in self.found.items()
        )
