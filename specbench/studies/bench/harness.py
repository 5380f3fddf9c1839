"""What the harness costs beside decoding: prompts, records, progress and everything else of a measured run."""

import contextlib
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from methods.core.errors import UserError
from specbench.measure import runner
from specbench.measure.progress import RunProgress
from specbench.measure.runner import Sink
from specbench.measure.session import Session
from specbench.store import records
from specbench.store.records import Record
from specbench.studies.bench.finding import Finding

REPEATS = 2
WANTED = 0.02


@dataclass
class Spent:
    """Seconds, of one question in one repeat."""

    wall: float = 0.0
    decoding: float = 0.0


class Stopwatch:
    """A sink around another: the wall-clock from one finished turn to the next, by question and repeat."""

    def __init__(self, inner: Sink):
        self._inner = inner
        self._last: float | None = None
        self.spent: dict[tuple[int, str], Spent] = {}

    def add(self, record: Record) -> None:
        if record.status != "ok":
            raise UserError(f"{record.method}, question {record.question_id}: {record.error}; nothing can be said of a run that fails")
        self._inner.add(record)
        now = time.perf_counter()
        spent = self.spent.setdefault((record.repeat, record.question_id), Spent())
        if self._last is not None:
            spent.wall += now - self._last
            spent.decoding += record.total_s
        self._last = now


def harness_finding(session: Session, parent: Path, console: Console, repeats: int = REPEATS) -> Finding:
    """1 - decoding / wall-clock of every question of a short run, whose records go to a passing folder in ``parent``.

    The first question is left out: when its first turn began is not known from outside.
    """
    what = "the harness' share of wall-clock outside decoding"
    console.print(f"measuring: {what}", markup=False)
    settings = replace(session.manifest.settings, repeats=repeats)
    session = replace(session, manifest=replace(session.manifest, settings=settings, units_total=session.manifest.units_total * repeats))
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=parent) as folder:
        progress = RunProgress(console, settings.methods, session.manifest.units_total, [])
        stopwatch = Stopwatch(progress)
        with contextlib.closing(records.Writer(Path(folder))) as writer, progress:
            runner.warm_up(session, console)
            runner.measure(session, [], writer.write, stopwatch)
    _, *rest = stopwatch.spent.values()
    return Finding(what, [1 - each.decoding / each.wall for each in rest], WANTED, is_share=True)
