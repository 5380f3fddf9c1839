"""A Chrome trace of the torch profiler, read as plain intervals. Times are in seconds."""

import gzip
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

OPS = {"cpu_op"}
CALLS = {"cuda_runtime", "cuda_driver"}
ON_DEVICE = {"kernel", "gpu_memcpy", "gpu_memset"}
LABELS = {"user_annotation"}
COMPILED = "CompiledFxGraph"


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
