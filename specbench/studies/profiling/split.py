"""The wall-clock time of decode steps, split into drafting, verifying, committing, launch gaps, and host.

On a CPU a phase is busy inside torch's ops. On CUDA it is busy while the device runs a kernel or a
copy that the phase launched. An idle device waits for a launch (the host is inside an op or a CUDA
call) or for the host (it is inside neither).
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import nan
from typing import NamedTuple

from specbench.studies.profiling.trace import ANSWER, COMMIT, DRAFT, Trace, TraceEvent

PHASES = ("draft", "verify", "commit")
TOP_OPS = 12
CPU_READS = {"aten::_local_scalar_dense"}
WAITS = {"cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize"}
Interval = tuple[float, float]


class StepPart(NamedTuple):
    """One phase of one step. The three of a step follow each other without a gap, as in the decode loop's clock."""

    name: str
    start: float
    end: float


class OpTime(NamedTuple):
    """The time spent in all calls of an op or a kernel."""

    name: str
    seconds: float
    calls: int


@dataclass(frozen=True)
class Split:
    """Sums over all steps, in seconds. ``busy``, ``gaps`` (NaN on a CPU) and ``host`` add up to ``wall``.

    On CUDA the rest of ``wall`` is work that was launched before the steps and still ran in them.
    """

    steps: int
    wall: float
    busy: dict[str, float]  # by phase
    gaps: float
    host: float
    reads: int  # values the host read from the device
    waits: int | None  # calls in which the host waited for the device; None on a CPU
    ops: dict[str, list[OpTime]]  # by phase, slowest first: ops' own time on a CPU, kernels on CUDA


def split(trace: Trace) -> Split:
    """Return how the time of a trace's steps was spent. The trace needs at least one step."""
    phases = list(_phases(trace.labels))
    assert phases, "the trace has no step"
    return _on_cuda(trace, phases) if trace.device else _on_cpu(trace, phases)


def _phases(labels: Sequence[TraceEvent]) -> Iterator[StepPart]:
    """Yield the phases: draft to the end of its label, verify to the start of commit, commit to the next draft or the answer's end."""
    for answer in (label for label in labels if label.name == ANSWER):
        inside = [label for label in labels if answer.start <= label.start < answer.end]
        drafts = [label for label in inside if label.name == DRAFT]
        commits = [label for label in inside if label.name == COMMIT]
        for number, (draft, commit) in enumerate(zip(drafts, commits, strict=True)):
            end = drafts[number + 1].start if number + 1 < len(drafts) else answer.end
            yield StepPart("draft", draft.start, draft.end)
            yield StepPart("verify", draft.end, commit.start)
            yield StepPart("commit", commit.start, end)


def _on_cpu(trace: Trace, phases: Sequence[StepPart]) -> Split:
    finder = _PhaseFinder(phases)
    own: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in PHASES}
    for op, seconds in _own_times(trace.ops):
        phase = finder.at(op.start)
        if phase is not None:
            own[phase.name][op.name].append(seconds)
    busy = dict.fromkeys(PHASES, 0.0)
    for start, end in _union((op.start, op.end) for op in trace.ops):
        for phase in finder.within(start, end):
            busy[phase.name] += min(end, phase.end) - max(start, phase.start)
    reads = sum(op.name in CPU_READS and finder.at(op.start) is not None for op in trace.ops)
    wall = sum(phase.end - phase.start for phase in phases)
    return Split(len(phases) // len(PHASES), wall, busy, nan, wall - sum(busy.values()), reads, None, _top(own))


def _on_cuda(trace: Trace, phases: Sequence[StepPart]) -> Split:
    finder = _PhaseFinder(phases)
    launched = {call.correlation: call.start for call in trace.calls}
    own: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in PHASES}
    busy, covered, idle = dict.fromkeys(PHASES, 0.0), float("-inf"), list[Interval]()
    reads = 0
    for event in trace.device:
        phase = finder.at(launched.get(event.correlation, event.start))
        if event.start > covered:
            idle.append((covered, event.start))
        if phase is not None:
            own[phase.name][event.name].append(event.end - event.start)
            reads += "DtoH" in event.name
            busy[phase.name] += max(0.0, event.end - max(event.start, covered))
        covered = max(covered, event.end)
    idle.append((covered, float("inf")))
    steps = _union((phase.start, phase.end) for phase in phases)
    waiting = _common(steps, idle)
    launching = _common(waiting, _union((event.start, event.end) for event in (*trace.ops, *trace.calls)))
    waits = sum(call.name in WAITS and finder.at(call.start) is not None for call in trace.calls)
    gaps = _length(launching)
    wall = _length(steps)
    return Split(len(phases) // len(PHASES), wall, busy, gaps, _length(waiting) - gaps, reads, waits, _top(own))


class _PhaseFinder:
    """Finds phases by time. The phases do not overlap."""

    def __init__(self, phases: Sequence[StepPart]):
        self._phases = sorted(phases, key=lambda phase: phase.start)
        self._starts = [phase.start for phase in self._phases]

    def at(self, time: float) -> StepPart | None:
        place = bisect_right(self._starts, time) - 1
        phase = self._phases[place] if place >= 0 else None
        return phase if phase is not None and time < phase.end else None

    def within(self, start: float, end: float) -> Iterator[StepPart]:
        for phase in self._phases[max(0, bisect_right(self._starts, start) - 1) :]:
            if phase.start >= end:
                return
            if phase.end > start:
                yield phase


def _own_times(ops: Sequence[TraceEvent]) -> Iterator[tuple[TraceEvent, float]]:
    """Yield each op with its time less that of the ops inside it. ``ops`` are in order of start, outer ones first."""
    open_ops: list[int] = []
    seconds = [op.end - op.start for op in ops]
    for number, op in enumerate(ops):
        while open_ops and ops[open_ops[-1]].end <= op.start:
            open_ops.pop()
        if open_ops:
            seconds[open_ops[-1]] -= op.end - op.start
        open_ops.append(number)
    yield from zip(ops, seconds, strict=True)


def _top(own: dict[str, dict[str, list[float]]]) -> dict[str, list[OpTime]]:
    times = {phase: [OpTime(name, sum(seconds), len(seconds)) for name, seconds in ops.items()] for phase, ops in own.items()}
    return {phase: sorted(ops, key=lambda op: -op.seconds)[:TOP_OPS] for phase, ops in times.items()}


def _union(intervals: Iterable[Interval]) -> list[Interval]:
    """Return sorted, disjoint intervals that cover the same times."""
    merged: list[Interval] = []
    for start, end in sorted(intervals):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def _common(some: Sequence[Interval], others: Sequence[Interval]) -> list[Interval]:
    """Return the times that two lists of sorted, disjoint intervals both cover."""
    shared, i, j = [], 0, 0
    while i < len(some) and j < len(others):
        start, end = max(some[i][0], others[j][0]), min(some[i][1], others[j][1])
        if start < end:
            shared.append((start, end))
        if some[i][1] < others[j][1]:
            i += 1
        else:
            j += 1
    return shared


def _length(intervals: Iterable[Interval]) -> float:
    return sum(end - start for start, end in intervals)
