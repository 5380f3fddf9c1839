"""Splits the wall-clock of decoding rounds: which part was busy drafting, verifying, committing, and what was busy with nothing.

On a CPU busy means inside an op of torch. On CUDA it means that the device runs a kernel or a copy, counted for the part of
the round that launched it; an idle device waits either for a launch (the host is inside an op or a CUDA call) or for the
host itself (it is inside neither).
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import nan
from typing import NamedTuple

from specbench.studies.profiling.labels import ANSWER, COMMIT, DRAFT
from specbench.studies.profiling.trace import Event, Trace

PHASES = ("draft", "verify", "commit")
TOP_OPS = 12
CPU_READS = {"aten::_local_scalar_dense"}
WAITS = {"cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize"}
Interval = tuple[float, float]


class Phase(NamedTuple):
    """One part of one round; the three of a round follow each other without a gap, as the decode loop's clock has them."""

    name: str
    start: float
    end: float


class Cost(NamedTuple):
    name: str
    seconds: float
    calls: int


@dataclass(frozen=True)
class Split:
    """Sums over all rounds, in seconds. The parts ``busy``, ``gaps`` (NaN on a CPU) and ``host`` add up to ``wall``.

    On CUDA what is left of it is work that was launched before the rounds and still ran in them.
    """

    rounds: int
    wall: float
    busy: dict[str, float]  # by phase
    gaps: float
    host: float
    reads: int  # values the host read from the device
    waits: int | None  # calls in which the host waited for the device; None on a CPU
    ops: dict[str, list[Cost]]  # by phase, those that take most time first: ops' own time on a CPU, kernels on CUDA


def split(trace: Trace) -> Split:
    phases = list(_phases(trace.labels))
    assert phases, "a trace without a round"
    return _on_cuda(trace, phases) if trace.device else _on_cpu(trace, phases)


def _phases(labels: Sequence[Event]) -> Iterator[Phase]:
    """Draft until its label ends, verify until commit begins, commit until the next draft or the answer's end."""
    for answer in (label for label in labels if label.name == ANSWER):
        inside = [label for label in labels if answer.start <= label.start < answer.end]
        drafts = [label for label in inside if label.name == DRAFT]
        commits = [label for label in inside if label.name == COMMIT]
        for number, (draft, commit) in enumerate(zip(drafts, commits, strict=True)):
            end = drafts[number + 1].start if number + 1 < len(drafts) else answer.end
            yield Phase("draft", draft.start, draft.end)
            yield Phase("verify", draft.end, commit.start)
            yield Phase("commit", commit.start, end)


def _on_cpu(trace: Trace, phases: Sequence[Phase]) -> Split:
    at = _Places(phases)
    own: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in PHASES}
    for op, seconds in _own_times(trace.ops):
        phase = at.of(op.start)
        if phase is not None:
            own[phase.name][op.name].append(seconds)
    busy = dict.fromkeys(PHASES, 0.0)
    for start, end in _union((op.start, op.end) for op in trace.ops):
        for phase in at.touched(start, end):
            busy[phase.name] += min(end, phase.end) - max(start, phase.start)
    reads = sum(op.name in CPU_READS and at.of(op.start) is not None for op in trace.ops)
    wall = sum(phase.end - phase.start for phase in phases)
    return Split(len(phases) // len(PHASES), wall, busy, nan, wall - sum(busy.values()), reads, None, _top(own))


def _on_cuda(trace: Trace, phases: Sequence[Phase]) -> Split:
    at = _Places(phases)
    launched = {call.correlation: call.start for call in trace.calls}
    own: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in PHASES}
    busy, covered, idle = dict.fromkeys(PHASES, 0.0), float("-inf"), list[Interval]()
    reads = 0
    for event in trace.device:
        phase = at.of(launched.get(event.correlation, event.start))
        if event.start > covered:
            idle.append((covered, event.start))
        if phase is not None:
            own[phase.name][event.name].append(event.end - event.start)
            reads += "DtoH" in event.name
            busy[phase.name] += max(0.0, event.end - max(event.start, covered))
        covered = max(covered, event.end)
    idle.append((covered, float("inf")))
    rounds = _union((phase.start, phase.end) for phase in phases)
    waiting = _common(rounds, idle)
    launching = _common(waiting, _union((event.start, event.end) for event in (*trace.ops, *trace.calls)))
    waits = sum(call.name in WAITS and at.of(call.start) is not None for call in trace.calls)
    gaps = _length(launching)
    wall = _length(rounds)
    return Split(len(phases) // len(PHASES), wall, busy, gaps, _length(waiting) - gaps, reads, waits, _top(own))


class _Places:
    """Finds the phase at a time, among phases that do not overlap."""

    def __init__(self, phases: Sequence[Phase]):
        self._phases = sorted(phases, key=lambda phase: phase.start)
        self._starts = [phase.start for phase in self._phases]

    def of(self, time: float) -> Phase | None:
        place = bisect_right(self._starts, time) - 1
        found = self._phases[place] if place >= 0 else None
        return found if found is not None and time < found.end else None

    def touched(self, start: float, end: float) -> Iterator[Phase]:
        for phase in self._phases[max(0, bisect_right(self._starts, start) - 1) :]:
            if phase.start >= end:
                return
            if phase.end > start:
                yield phase


def _own_times(ops: Sequence[Event]) -> Iterator[tuple[Event, float]]:
    """Each op with its time less that of the ops inside it; ``ops`` in the order of their starts, outer ones first."""
    open_ops: list[int] = []
    seconds = [op.end - op.start for op in ops]
    for number, op in enumerate(ops):
        while open_ops and ops[open_ops[-1]].end <= op.start:
            open_ops.pop()
        if open_ops:
            seconds[open_ops[-1]] -= op.end - op.start
        open_ops.append(number)
    yield from zip(ops, seconds, strict=True)


def _top(own: dict[str, dict[str, list[float]]]) -> dict[str, list[Cost]]:
    costs = {phase: [Cost(name, sum(times), len(times)) for name, times in ops.items()] for phase, ops in own.items()}
    return {phase: sorted(found, key=lambda cost: -cost.seconds)[:TOP_OPS] for phase, found in costs.items()}


def _union(intervals: Iterable[Interval]) -> list[Interval]:
    """Intervals that cover the same, in order and apart."""
    found: list[Interval] = []
    for start, end in sorted(intervals):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, end))
    return found


def _common(some: Sequence[Interval], others: Sequence[Interval]) -> list[Interval]:
    """What two lists of intervals, each in order and apart, both cover."""
    found, i, j = [], 0, 0
    while i < len(some) and j < len(others):
        start, end = max(some[i][0], others[j][0]), min(some[i][1], others[j][1])
        if start < end:
            found.append((start, end))
        if some[i][1] < others[j][1]:
            i += 1
        else:
            j += 1
    return found


def _length(intervals: Iterable[Interval]) -> float:
    return sum(end - start for start, end in intervals)
