"""What a crew and its workers say to each other, and what a place for workers has to offer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from specbench.store.manifest import RunManifest
from specbench.store.records import Record


@dataclass(frozen=True)
class Loaded:
    """The session is ready to be warmed up."""

    manifest: RunManifest  # as of a run of this worker alone
    device: str  # what its records will say


@dataclass(frozen=True)
class Warmed:
    """Ready for timed turns."""

    facts: dict[str, float]  # seconds and peak bytes
    told: list[str]  # lines for the user


@dataclass(frozen=True)
class Finished:
    """Every turn of the question is answered."""


@dataclass(frozen=True)
class Refused:
    """A UserError: of the user's input while loading, else of a device that is lost."""

    why: str


@dataclass(frozen=True)
class Ended:
    """The worker is no more; said by its place."""

    why: str


Reply = Loaded | Warmed | Record | Finished | Refused | Ended


class Worker(Protocol):
    def ask(self, what: str, *arguments: Any) -> None:
        """Have it do ``Bench``'s method of this name; its one reply comes by ``Place.wait``, that it has ended too."""
        ...

    def stop(self) -> None:
        """At once, whatever it does, even if it has ended; its device is then another's to have."""
        ...


W = TypeVar("W", bound=Worker)


class Place(Protocol[W]):
    """Where workers live: processes of this machine, or actors of a Ray cluster."""

    device: str  # what each worker's session is asked to run on
    facts: dict[str, Any]  # for the run's environment

    def start(self, index: int) -> W:
        """A worker for a seat of the crew; the seat's earlier one has been stopped."""
        ...

    def wait(self, asked: Sequence[W], timeout: float | None = None) -> tuple[W, Reply] | None:
        """The first reply of workers that were asked and have not replied; None after so many seconds without one."""
        ...

    def close(self) -> None:
        """After every worker was stopped."""
        ...
