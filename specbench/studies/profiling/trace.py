"""The torch profiler's trace of decode steps: labels that mark a step's parts in it, and its events as plain intervals.

Labels are set by wrapping target and drafter; the decode loop is unchanged. Times are in seconds.
"""

import gzip
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch.profiler import record_function

from methods.core.acceptance import Accepted, Sampling
from methods.core.decode import Drafter
from methods.core.target import Scores, Target
from methods.core.tree import DraftTree
from specbench.engines.own import OwnEngine

ANSWER, DRAFT, COMMIT = "specbench.answer", "specbench.draft", "specbench.commit"
SCORE, OBSERVE = "specbench.score", "specbench.observe"  # for the reader of a trace
OPS = {"cpu_op"}
CALLS = {"cuda_runtime", "cuda_driver"}
ON_DEVICE = {"kernel", "gpu_memcpy", "gpu_memset"}
LABELS = {"user_annotation"}
COMPILED = "CompiledFxGraph"


class LabelledTarget:
    """The part of a target that the decode loop calls, labelled."""

    def __init__(self, inner: Target):
        self._inner = inner

    @property
    def device(self) -> torch.device:
        """The inner target's device."""
        return self._inner.device

    @property
    def context(self) -> int:
        """The inner target's context, in tokens."""
        return self._inner.context

    def prefill(self, prompt: list[int], reads: tuple[int, ...]) -> Scores:
        """Prefill, unlabelled."""
        return self._inner.prefill(prompt, reads)

    def score(self, tree: DraftTree, past: int, reads: tuple[int, ...]) -> Scores:
        """Score a tree."""
        with record_function(SCORE):
            return self._inner.score(tree, past, reads)

    def commit(self, accepted: Accepted) -> None:
        """Commit a path."""
        with record_function(COMMIT):
            self._inner.commit(accepted)


class LabelledDrafter:
    """A drafter whose calls are labelled."""

    def __init__(self, inner: Drafter):
        self._inner = inner

    @property
    def sizes(self) -> Sequence[int]:
        """The inner drafter's tree sizes."""
        return self._inner.sizes

    @property
    def reads(self) -> tuple[int, ...]:
        """The target's layers that the inner drafter reads."""
        return self._inner.reads

    def begin(self, prompt: list[int], first: Accepted, scores: Scores, sampling: Sampling) -> None:
        """Begin a text, unlabelled."""
        self._inner.begin(prompt, first, scores, sampling)

    def draft(self, tokens: list[int]) -> DraftTree:
        """Draft a tree."""
        with record_function(DRAFT):
            return self._inner.draft(tokens)

    def observe(self, tree: DraftTree, accepted: Accepted, scores: Scores) -> None:
        """Observe what was accepted."""
        with record_function(OBSERVE):
            self._inner.observe(tree, accepted, scores)

    def wipe(self) -> None:
        """Wipe the inner drafter."""
        self._inner.wipe()


def labelled(engine: OwnEngine) -> OwnEngine:
    """Return the engine with labels around its target and its drafter."""
    return engine._replace(target=cast(Target, LabelledTarget(engine.target)), drafter=LabelledDrafter(engine.drafter))


class TraceEvent(NamedTuple):
    """One interval of a trace."""

    name: str
    start: float
    end: float
    correlation: int  # links a call to the kernels it launched; -1: none


@dataclass(frozen=True)
class Trace:
    """A trace's events by kind, each kind in order of start. Host events are those of the thread that decodes."""

    labels: list[TraceEvent]
    ops: list[TraceEvent]
    calls: list[TraceEvent]
    device: list[TraceEvent]


def read(path: Path) -> Trace:
    """Read a gzipped trace that has at least one label."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return from_rows(json.load(file)["traceEvents"])


def from_rows(rows: Iterable[dict[str, Any]]) -> Trace:
    """Return the trace of ``traceEvents`` that hold at least one label."""
    whole = [row for row in rows if row.get("ph") == "X"]
    thread = next(row["tid"] for row in whole if row.get("cat") in LABELS)
    here = [row for row in whole if row["tid"] == thread]
    on_device = [row for row in whole if row.get("cat") in ON_DEVICE]
    return Trace(_events(here, LABELS), _events(here, OPS), _events(here, CALLS), _events(on_device, ON_DEVICE))


def _events(rows: Iterable[dict[str, Any]], kinds: set[str]) -> list[TraceEvent]:
    return sorted(_of_kind(rows, kinds), key=lambda event: (event.start, -event.end))


def _of_kind(rows: Iterable[dict[str, Any]], kinds: set[str]) -> Iterator[TraceEvent]:
    for row in rows:
        if row.get("cat") in kinds:
            start = row["ts"] / 1e6
            name = COMPILED if COMPILED in row["name"] else row["name"]  # without its hash, so that graphs are counted together
            yield TraceEvent(name, start, start + row["dur"] / 1e6, row.get("args", {}).get("correlation", -1))
