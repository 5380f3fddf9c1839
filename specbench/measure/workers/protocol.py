"""The replies of workers to the executor, and the interface of a pool of workers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from specbench.store.manifest import Prepared, RunManifest
from specbench.store.records import Record


@dataclass(frozen=True)
class SessionLoaded:
    """The reply to ``load``: the session can be warmed up."""

    manifest: RunManifest  # as this worker alone would write it
    device: str  # the device that its records name


@dataclass(frozen=True)
class WarmedUp:
    """The reply to ``warm_up``: the worker is ready for timed turns."""

    prepared: Prepared
    output: list[str]  # lines for the user


@dataclass(frozen=True)
class QuestionFinished:
    """The reply to ``answer`` or ``go_on`` when every turn of the question has been answered."""


@dataclass(frozen=True)
class WorkerFailed:
    """The reply of a worker that raised UserError: about the user's input, a warm-up of vanilla, or a lost device."""

    message: str


@dataclass(frozen=True)
class WorkerEnded:
    """The pool's report that a worker process has ended."""

    reason: str


WorkerReply = SessionLoaded | WarmedUp | Record | QuestionFinished | WorkerFailed | WorkerEnded


class Worker(Protocol):
    """A worker process, as the executor sees it."""

    def call(self, method: str, *arguments: Any) -> None:
        """Call ``WorkerSession.<method>`` in the worker.

        Its single reply, or ``WorkerEnded`` if it died, is returned by ``WorkerPool.wait``.
        """
        ...

    def stop(self) -> None:
        """Stop the worker at once, even if it is busy or has ended. Its device is free afterwards."""
        ...


W = TypeVar("W", bound=Worker)


class WorkerPool(Protocol[W]):
    """A source of workers: processes of this machine, or actors of a Ray cluster."""

    device: str  # the device each worker's session is to run on
    facts: dict[str, Any]  # fields of the run's environment

    def start(self, index: int) -> W:
        """Start worker ``index``. An earlier worker of the same index must have been stopped."""
        ...

    def wait(self, workers: Sequence[W], timeout: float | None = None) -> tuple[W, WorkerReply] | None:
        """Return the first reply of workers that were called, or None if there is none within ``timeout`` seconds."""
        ...

    def close(self) -> None:
        """Release the pool, after every worker was stopped."""
        ...
