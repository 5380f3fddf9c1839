"""Who measures a run, as the runner sees them."""

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from rich.console import Console

from specbench.store.manifest import RunManifest
from specbench.store.records import Record


class Sink(Protocol):
    def add(self, record: Record) -> None: ...


class Crew(Protocol):
    """This process alone (``runner.Alone``), or workers (``workers.driver``)."""

    prepared: list[dict[str, Any]]  # what it took to make each ready, those started later included

    @property
    def manifest(self) -> RunManifest: ...

    def warm_up(self, console: Console) -> None:
        """Everything that is done once, before the first timed turn."""
        ...

    def measure(self, done: Iterable[Record], write: Callable[[Record], None], progress: Sink) -> None:
        """One record for each turn not in ``done``."""
        ...
