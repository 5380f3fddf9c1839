"""Measurement of the time of a run outside decoding: prompts, records, progress, and everything else."""

import contextlib
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from methods.core.errors import UserError
from specbench.measure import measurer
from specbench.measure.progress import RunProgress, Sink
from specbench.measure.session import Session
from specbench.store import records
from specbench.store.records import Record
from specbench.studies.bench.finding import Finding

REPEATS = 2
WANTED = 0.02


@dataclass
class Spent:
    """The seconds of one question in one repeat."""

    wall: float = 0.0
    decoding: float = 0.0


class Stopwatch:
    """A sink around another one that measures the wall-clock time between turns, by question and repeat."""

    def __init__(self, inner: Sink):
        self._inner = inner
        self._last: float | None = None
        self.spent: dict[tuple[int, str], Spent] = {}

    def add(self, record: Record) -> None:
        """Take a finished turn. Raises UserError for one that failed."""
        if record.status != "ok":
            raise UserError(f"{record.arm}, question {record.question_id}: {record.error}; a run that fails cannot be timed")
        self._inner.add(record)
        now = time.perf_counter()
        spent = self.spent.setdefault((record.repeat, record.question_id), Spent())
        if self._last is not None:
            spent.wall += now - self._last
            spent.decoding += record.total_s
        self._last = now


def harness_finding(session: Session, parent: Path, console: Console, repeats: int = REPEATS) -> Finding:
    """Return 1 - decoding / wall-clock time for every question of a short run; its records go to a temporary folder in ``parent``.

    The first question is left out: the start of its first turn is not known.
    """
    what = "the harness' share of wall-clock time outside decoding"
    console.print(f"measuring: {what}", markup=False)
    settings = replace(session.manifest.settings, repeats=repeats)
    manifest = replace(session.manifest, settings=settings, units_total=session.manifest.units_total * repeats)
    session = replace(session, manifest=manifest)

    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=parent) as folder:
        progress = RunProgress(console, list(manifest.arms), manifest.units_total, [])
        stopwatch = Stopwatch(progress)
        with contextlib.closing(records.Writer(Path(folder))) as writer, progress:
            measurer.warm_up(session, console)
            measurer.measure(session, [], writer.write, stopwatch)
    _, *rest = stopwatch.spent.values()
    return Finding(what, [1 - spent.decoding / spent.wall for spent in rest], WANTED, is_share=True)
