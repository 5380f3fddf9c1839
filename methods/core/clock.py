"""Clocks that time the parts of a decode step without synchronising inside the loop.

CUDA kernels run after the host has launched them, so host time would charge a kernel to whichever
later part first waits for it. On CUDA the marks are therefore events, read once after the turn.
"""

import itertools
import time
from typing import Protocol

import torch


class Clock(Protocol):
    """A stopwatch that is read once, at the end."""

    def mark(self) -> None:
        """Note the present moment."""
        ...

    def laps(self) -> list[float]:
        """Return the seconds between consecutive marks since the last call, and forget the marks."""
        ...


class HostClock:
    """A clock that marks the host's time."""

    def __init__(self) -> None:
        self._marks: list[float] = []

    def mark(self) -> None:
        """Note the host's time."""
        self._marks.append(time.perf_counter())

    def laps(self) -> list[float]:
        """Return the seconds between consecutive marks, and forget the marks."""
        marks, self._marks = self._marks, []
        return [b - a for a, b in itertools.pairwise(marks)]


class CudaClock:
    """A clock that records CUDA events on the current stream."""

    def __init__(self) -> None:
        self._marks: list[torch.cuda.Event] = []

    def mark(self) -> None:
        """Record an event on the current stream."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._marks.append(event)

    def laps(self) -> list[float]:
        """Return the seconds between consecutive events, and forget them; waits for the device."""
        marks, self._marks = self._marks, []
        torch.cuda.synchronize()
        return [a.elapsed_time(b) / 1e3 for a, b in itertools.pairwise(marks)]


def clock_for(device: torch.device) -> Clock:
    """Return a clock that measures work on ``device``."""
    return CudaClock() if device.type == "cuda" else HostClock()
