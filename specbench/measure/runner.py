"""The run of an executor into a run directory, and the executors: of this process here, of workers in ``measure.workers``."""

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from methods.core.errors import UserError
from specbench.measure import measurer
from specbench.measure.progress import RunProgress, Sink, Tally
from specbench.measure.schedule import units_of
from specbench.measure.session import Session
from specbench.store import records, rundir
from specbench.store.manifest import Prepared, RunManifest
from specbench.store.records import Record
from specbench.suites import Suite
from specbench.util.terminal import Console


class Executor(Protocol):
    """The measuring side of a run: ``LocalExecutor`` or ``workers.driver.WorkerExecutor``."""

    prepared: list[Prepared]  # the warm-up of this process, or of each worker that was started

    @property
    def manifest(self) -> RunManifest:
        """The run's manifest."""
        ...

    @property
    def suite(self) -> Suite:
        """The questions that the run asks."""
        ...

    def warm_up(self, console: Console) -> None:
        """Do everything that is done once, before the first timed turn."""
        ...

    def measure(self, done: Iterable[Record], write: Callable[[Record], None], progress: Sink) -> None:
        """Write one record for each turn that is not in ``done``."""
        ...


class LocalExecutor:
    """An ``Executor`` that measures a session in this process."""

    def __init__(self, session: Session):
        self.manifest, self.suite, self._session = session.manifest, session.suite, session
        self.prepared: list[Prepared] = []

    def warm_up(self, console: Console) -> None:
        """Warm up every arm."""
        count = len(self._session.engines)
        console.print(f"preparing {count} arms: compiling kernels and warming up", markup=False, soft_wrap=True)
        self.prepared.append(measurer.warm_up(self._session, console))

    def measure(self, done: Iterable[Record], write: Callable[[Record], None], progress: Sink) -> None:
        """Write one record for each turn that is not in ``done``."""
        measurer.measure(self._session, done, write, progress)


def run(executor: Executor, run_dir: Path, console: Console, *, retry_errors: bool = False) -> dict[str, Tally]:
    """Measure the turns that the directory does not hold yet, with ``retry_errors`` also those that failed.

    Returns the sums over all turns of each arm. After Ctrl-C, which is raised again as KeyboardInterrupt, the run can be
    resumed. Raises UserError for a full disk or a directory of another run. Every finished turn is kept.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        with rundir.claimed(run_dir):
            return _measure_missing(executor, run_dir, console, retry_errors)
    except OSError as error:
        raise UserError(f"cannot write to {run_dir} ({error.strerror}); make room, then: specbench resume {run_dir}") from None


def _measure_missing(executor: Executor, run_dir: Path, console: Console, retry_errors: bool) -> dict[str, Tally]:
    expected = [unit.key for unit in units_of(executor.suite, executor.manifest)]
    manifest, done = rundir.open_run(executor.manifest, expected, run_dir, console, retry_errors=retry_errors)
    progress = RunProgress(console, list(manifest.arms), len(expected), done)

    def write_status(status: str) -> None:
        ending = None if status == "running" else rundir.ending_of(run_dir)
        replace(manifest, status=status, ending=ending, prepared=[*manifest.prepared, *executor.prepared]).write(run_dir)

    if len(done) == len(expected):
        console.print(f"{run_dir}: all {len(expected)} turns are measured", markup=False, soft_wrap=True)
    else:
        try:
            executor.warm_up(console)
            write_status("running")
            with contextlib.closing(records.Writer(run_dir)) as writer, progress:
                executor.measure(done, writer.write, progress)
        except BaseException:
            with contextlib.suppress(UserError):  # on a full disk the manifest keeps saying "running"
                write_status("interrupted")
            raise
    if manifest.status != "complete":
        write_status("complete")
    return progress.tallies
