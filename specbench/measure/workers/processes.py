"""Workers as processes of this machine: one a GPU, or on a CPU with the threads divided among them.

They are spawned, not forked: CUDA and torch's threads do not survive a fork.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from multiprocessing import connection, resource_tracker
from multiprocessing.connection import Connection
from typing import Any

import torch

from methods.core.errors import UserError
from specbench.config.options import Options
from specbench.measure.workers.protocol import Ended, Reply
from specbench.util.threads import patient_threads

CONTEXT = multiprocessing.get_context("spawn")


class Process:
    """A ``protocol.Worker``."""

    def __init__(self, options: Options, index: int, workers: int):
        self.pipe, theirs = CONTEXT.Pipe()
        self._process = CONTEXT.Process(target=serve, args=(theirs, options, index, workers), daemon=True)
        _begin_tracking()
        # A terminal sends Ctrl-C to every process of the group: with it blocked from birth a worker goes on until it is stopped.
        unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
        theirs.close()  # so that the pipe ends with the worker

    def ask(self, what: str, *arguments: Any) -> None:
        with contextlib.suppress(ConnectionError):  # it has ended, which is told by its end of the pipe
            self.pipe.send((what, *arguments))

    def reply(self) -> Reply:
        """What is in the pipe, or how it ended."""
        try:
            return self.pipe.recv()
        except (EOFError, OSError):  # OSError: it ended in the middle of a message
            self._process.join()
            code = self._process.exitcode or 0
            return Ended(f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}")

    def stop(self) -> None:
        self._process.kill()  # it holds nothing that is not on disk here
        self._process.join()
        self.pipe.close()


class Processes:
    """A ``protocol.Place``: this machine. Raises UserError where it has fewer GPUs, or cores, than workers."""

    def __init__(self, options: Options, workers: int):
        self.device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.facts: dict[str, Any] = {}
        self._options, self._workers = replace(options, device=self.device), workers
        self._threads = max(1, torch.get_num_threads() // workers)
        cores, gpus = os.cpu_count() or 1, torch.cuda.device_count()
        if self.device == "cpu" and cores < workers:
            raise UserError(f"--workers {workers} on {cores} CPU cores: they would wait for each other; ask for {cores} at most")
        if self.device == "cuda" and gpus < workers:
            raise UserError(f"--workers {workers} needs as many GPUs, torch sees {gpus}; ask for fewer, or --device cpu")

    def start(self, index: int) -> Process:
        patient_threads()
        with _environment(self._own(index)):
            return Process(self._options, index, self._workers)

    def wait(self, asked: Sequence[Process], timeout: float | None = None) -> tuple[Process, Reply] | None:
        by_pipe = {worker.pipe: worker for worker in asked}
        ready = connection.wait(list(by_pipe), timeout)
        if not ready:
            return None
        worker = next(by_pipe[pipe] for pipe in by_pipe if pipe in ready)
        return worker, worker.reply()

    def close(self) -> None:
        pass

    def _own(self, index: int) -> dict[str, str]:
        """What a worker's environment says of its share; to be there before its torch is imported."""
        if self.device == "cpu":
            return {"OMP_NUM_THREADS": str(self._threads)}
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        return {"CUDA_VISIBLE_DEVICES": visible.split(",")[index].strip() if visible else str(index)}


def _begin_tracking() -> None:
    """Python's own clean-up after processes, started before it would unblock what a worker's start blocks.

    It removes what a worker that was stopped leaves in the system, and has no need to warn of that on the user's terminal.
    """
    with _environment({"PYTHONWARNINGS": "ignore:resource_tracker:UserWarning"}):
        resource_tracker.ensure_running()


@contextlib.contextmanager
def _environment(changes: Mapping[str, str]) -> Iterator[None]:
    """This process' environment, which a process it starts inherits, with changes."""
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def serve(pipe: Connection, options: Options, index: int, workers: int) -> None:
    """A worker's whole life: it does what it is asked until it is killed, or this process' parent is no more."""
    threading.Thread(target=_end_with_the_crew, daemon=True).start()
    from specbench.measure.workers.bench import Bench  # takes seconds, in which the crew may end

    bench = Bench(options, index, workers)
    while True:
        try:
            what, *arguments = pipe.recv()
        except EOFError:
            return  # the crew is no more
        pipe.send(bench.do(what, *arguments))


def _end_with_the_crew() -> None:
    """A crew that was killed cannot stop its workers, and one that answers a long turn would not look at the pipe."""
    crew = multiprocessing.parent_process()
    assert crew is not None, "a worker has a parent"
    crew.join()
    os._exit(1)
