"""A Chrome trace of the torch profiler as plain intervals. Times in seconds."""

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


class Event(NamedTuple):
    name: str
    start: float
    end: float
    correlation: int  # what links a call to the kernels it launched; -1 where there is none


@dataclass(frozen=True)
class Trace:
    """Events by kind, each kind in the order of their starts; those on the host are of the thread that decodes."""

    labels: list[Event]
    ops: list[Event]
    calls: list[Event]
    device: list[Event]


def read(path: Path) -> Trace:
    """Of a gzipped trace with at least one label."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return of(json.load(file)["traceEvents"])


def of(rows: Iterable[dict[str, Any]]) -> Trace:
    whole = [row for row in rows if row.get("ph") == "X"]
    thread = next(row["tid"] for row in whole if row.get("cat") in LABELS)
    here = [row for row in whole if row["tid"] == thread]
    on_device = [row for row in whole if row.get("cat") in ON_DEVICE]
    return Trace(_events(here, LABELS), _events(here, OPS), _events(here, CALLS), _events(on_device, ON_DEVICE))


def _events(rows: Iterable[dict[str, Any]], kinds: set[str]) -> list[Event]:
    return sorted(_of_kind(rows, kinds), key=lambda event: (event.start, -event.end))


def _of_kind(rows: Iterable[dict[str, Any]], kinds: set[str]) -> Iterator[Event]:
    for row in rows:
        if row.get("cat") in kinds:
            start = row["ts"] / 1e6
            name = COMPILED if COMPILED in row["name"] else row["name"]  # without the hash, which differs from graph to graph
            yield Event(name, start, start + row["dur"] / 1e6, row.get("args", {}).get("correlation", -1))
