"""Clocks of the decode loop: laps between marks, without a host sync in the loop.

Host time alone would charge a CUDA kernel to whichever later step first waits for it, so on CUDA the marks are events,
read once after the turn.
"""

import itertools
import time
from typing import Protocol

import torch


class Clock(Protocol):
    def mark(self) -> None: ...

    def laps(self) -> list[float]:
        """Seconds between consecutive marks since the last call; forgets the marks."""
        ...


class HostClock:
    def __init__(self) -> None:
        self._marks: list[float] = []

    def mark(self) -> None:
        self._marks.append(time.perf_counter())

    def laps(self) -> list[float]:
        marks, self._marks = self._marks, []
        return [b - a for a, b in itertools.pairwise(marks)]


class CudaClock:
    def __init__(self) -> None:
        self._marks: list[torch.cuda.Event] = []

    def mark(self) -> None:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._marks.append(event)

    def laps(self) -> list[float]:
        marks, self._marks = self._marks, []
        torch.cuda.synchronize()
        return [a.elapsed_time(b) / 1e3 for a, b in itertools.pairwise(marks)]


def clock_for(device: torch.device) -> Clock:
    return CudaClock() if device.type == "cuda" else HostClock()
