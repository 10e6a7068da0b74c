"""Clocks for the segments of a round: CUDA events on a GPU, perf_counter on a CPU."""

from __future__ import annotations

import time
from typing import Any

import torch


class Stopwatch:
    """Marks points in time and reads the seconds between them.

    On a GPU a mark is an event on the current stream, so marking does not wait for the device; reading does.
    """

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.origin = self.mark()

    def mark(self) -> Any:
        """This point in time."""
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        event.record()
        return event

    def seconds(self, start: Any, end: Any) -> float:
        """Seconds from one mark to another; waits until the device has passed the second."""
        if not self.cuda:
            return float(end - start)
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3
