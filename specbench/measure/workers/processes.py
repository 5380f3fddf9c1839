"""Workers as processes of this machine: one for each GPU, or on a CPU with the threads divided among them.

They are spawned, not forked: CUDA and torch's threads do not survive a fork.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing import connection, resource_tracker
from multiprocessing.connection import Connection
from typing import Any

import torch

from methods.core.errors import UserError
from specbench.config.options import RunConfig
from specbench.measure.workers.protocol import WorkerEnded, WorkerReply
from specbench.util.environment import configure_thread_waiting

CONTEXT = multiprocessing.get_context("spawn")


class ProcessWorker:
    """A ``Worker`` that is a process of this machine."""

    def __init__(self, config: RunConfig, index: int, workers: int):
        self.pipe, theirs = CONTEXT.Pipe()
        self._process = CONTEXT.Process(target=serve, args=(theirs, config, index, workers), daemon=True)
        _start_resource_tracker()

        # A terminal sends Ctrl-C to every process of the group. Workers inherit the blocked signal, so only this process gets it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()  # so that our end reads EOF when the worker ends

    def call(self, method: str, *arguments: Any) -> None:
        """Send a call. A worker that has ended is noticed by ``reply``."""
        with contextlib.suppress(ConnectionError):
            self.pipe.send((method, *arguments))

    def reply(self) -> WorkerReply:
        """Return the reply in the pipe, or how the worker ended."""
        try:
            return self.pipe.recv()
        except (EOFError, OSError):  # OSError: it ended in the middle of a message
            self._process.join()
            code = self._process.exitcode or 0
            return WorkerEnded(f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}")

    def stop(self) -> None:
        """Kill the process: every record that it has sent is on disk."""
        self._process.kill()
        self._process.join()
        self.pipe.close()


class ProcessPool:
    """A ``WorkerPool`` on this machine; ``config`` names the device. Raises UserError if it has fewer GPUs, or cores, than workers."""

    def __init__(self, config: RunConfig, workers: int):
        self.device = config.device
        self.facts: dict[str, Any] = {}
        self._config, self._workers = config, workers
        self._threads = max(1, torch.get_num_threads() // workers)

        cores, gpus = os.cpu_count() or 1, torch.cuda.device_count()
        if self.device == "cpu" and cores < workers:
            raise UserError(f"--workers {workers} on {cores} CPU cores: they would wait for each other; ask for {cores} at most")
        if self.device == "cuda" and gpus < workers:
            raise UserError(f"--workers {workers} needs as many GPUs, torch sees {gpus}; ask for fewer, or --device cpu")

    def start(self, index: int) -> ProcessWorker:
        """Start a worker on its share of the machine."""
        configure_thread_waiting()
        with _environment(self._share(index)):
            return ProcessWorker(self._config, index, self._workers)

    def wait(self, workers: Sequence[ProcessWorker], timeout: float | None = None) -> tuple[ProcessWorker, WorkerReply] | None:
        """Return the first reply, or None if there is none within ``timeout`` seconds."""
        by_pipe = {worker.pipe: worker for worker in workers}
        ready = connection.wait(list(by_pipe), timeout)
        if not ready:
            return None
        worker = next(by_pipe[pipe] for pipe in by_pipe if pipe in ready)
        return worker, worker.reply()

    def close(self) -> None:
        """Do nothing: stopped processes leave nothing behind."""

    def _share(self, index: int) -> dict[str, str]:
        """Return the environment variables that limit a worker to its share. They must be set before it imports torch."""
        if self.device == "cpu":
            return {"OMP_NUM_THREADS": str(self._threads)}
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        return {"CUDA_VISIBLE_DEVICES": visible.split(",")[index].strip() if visible else str(index)}


def _start_resource_tracker() -> None:
    """Start Python's resource tracker before the first worker: starting it unblocks SIGINT, which must stay blocked then.

    It removes what a killed worker leaves in the system. Its warnings about that are of no use to the user.
    """
    with _environment({"PYTHONWARNINGS": "ignore:resource_tracker:UserWarning"}):
        resource_tracker.ensure_running()


@contextlib.contextmanager
def _environment(changes: Mapping[str, str]) -> Iterator[None]:
    """Change this process's environment for a while. Processes that are started meanwhile inherit it."""
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def serve(pipe: Connection, config: RunConfig, index: int, workers: int) -> None:
    """Run a worker process: answer calls until it is killed or the executor's process is gone."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    from specbench.measure.workers.worker_session import WorkerSession  # takes seconds, in which the executor may end

    session = WorkerSession(config, index, workers)
    while True:
        try:
            method, *arguments = pipe.recv()
        except EOFError:
            return  # the executor's process is gone
        pipe.send(session.call(method, *arguments))


def _end_with_parent() -> None:
    """End this worker when its parent process ends.

    A killed parent cannot stop its workers, and a worker in the middle of a turn does not read its pipe.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker has a parent"
    parent.join()
    os._exit(1)
