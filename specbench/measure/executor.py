"""Executors, which measure the turns of a run: in this process here, by worker processes in ``measure.workers``."""

from collections.abc import Callable, Iterable
from typing import Protocol

from rich.console import Console

from specbench.measure import measurer
from specbench.measure.progress import Sink
from specbench.measure.session import Session
from specbench.store.manifest import Prepared, RunManifest
from specbench.store.records import Record


class Executor(Protocol):
    """The measuring side of a run: ``LocalExecutor`` or ``workers.driver.WorkerExecutor``."""

    prepared: list[Prepared]  # the warm-up of this process, or of each worker that was started

    @property
    def manifest(self) -> RunManifest:
        """The run's manifest."""
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
        self.manifest, self._session = session.manifest, session
        self.prepared: list[Prepared] = []

    def warm_up(self, console: Console) -> None:
        """Warm up every arm."""
        count = len(self._session.engines)
        console.print(f"preparing {count} arms: compiling kernels and warming up", markup=False, soft_wrap=True)
        self.prepared.append(measurer.warm_up(self._session, console))

    def measure(self, done: Iterable[Record], write: Callable[[Record], None], progress: Sink) -> None:
        """Write one record for each turn that is not in ``done``."""
        measurer.measure(self._session, done, write, progress)
