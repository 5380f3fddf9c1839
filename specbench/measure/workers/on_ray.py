"""Workers as actors of a Ray cluster (``pip install 'specbench[ray]'``): one for each GPU, or with equal shares of the CPUs."""

import logging
import os
import socket
from collections.abc import Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any

from methods.core.errors import UserError
from specbench.config.options import RunConfig
from specbench.measure.resolve import device_name
from specbench.measure.workers.protocol import WorkerEnded, WorkerReply
from specbench.measure.workers.worker_session import WorkerSession
from specbench.util.environment import THREAD_VARIABLES, configure_thread_waiting
from specbench.util.text import one_line

LOCAL = "local"  # the address for which a cluster is started here
CONNECT_S = 10.0  # longest wait for a cluster to accept a connection
CONNECTION_ERRORS = (OSError, RuntimeError, ValueError)  # raised by ray.init for an address that is malformed or not Ray's


class RayWorker:
    """A ``Worker`` that is a Ray actor. ``ref`` refers to the reply that is awaited."""

    def __init__(self, ray: ModuleType, handle: Any):
        self._ray, self.handle = ray, handle
        self.ref: Any = None

    def call(self, method: str, *arguments: Any) -> None:
        """Send a call."""
        self.ref = self.handle.call.remote(method, *arguments)

    def reply(self) -> WorkerReply:
        """Return the reply, or how the worker ended."""
        try:
            reply: WorkerReply = self._ray.get(self.ref)
        except self._ray.exceptions.RayError as error:  # the actor died, or raised something else than UserError
            return WorkerEnded(str(error).rstrip().splitlines()[-1][:200])
        return reply

    def stop(self) -> None:
        """Kill the actor."""
        self._ray.kill(self.handle)


class RayPool:
    """A ``WorkerPool`` on the Ray cluster at an address, or on one that is started here and ends with the run (``local``).

    Raises UserError if Ray is missing, or if the cluster cannot be reached or has too few GPUs or CPUs.
    """

    def __init__(self, config: RunConfig, workers: int, address: str):
        self._ray = ray = _import_ray()
        _connect(ray, address)
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        gpus = int(sum(node.get("GPU", 0) for node in nodes))
        self.device = device_name(config, has_gpu=gpus > 0)
        self.facts = {"ray": ray.__version__}
        self._config, self._workers = replace(config, device=self.device), workers

        cpus = [int(node.get("CPU", 0)) for node in nodes]
        self._cpus = 0 if self.device == "cuda" else cpus_per_worker(cpus, workers)
        if not self._cpus and (self.device == "cpu" or gpus < workers):  # Ray would wait for machines to join
            self.close()
            has = f"{sum(cpus)} CPUs" if self.device == "cpu" else f"{gpus} GPUs"
            raise UserError(f"--workers {workers} on the Ray cluster at {address}, which has {has}: each needs one; ask for fewer")

    def start(self, index: int) -> RayWorker:
        """Start an actor with its share of the cluster."""
        remote = self._ray.remote(WorkerSession).options(
            num_cpus=self._cpus,
            num_gpus=1 if self.device == "cuda" else 0,
            max_restarts=0,  # the executor starts another worker itself, since that has to load and warm up again
            runtime_env={"env_vars": self._environment()},
        )
        return RayWorker(self._ray, remote.remote(self._config, index, self._workers))

    def wait(self, workers: Sequence[RayWorker], timeout: float | None = None) -> tuple[RayWorker, WorkerReply] | None:
        """Return the first reply, or None if there is none within ``timeout`` seconds."""
        by_ref = {worker.ref: worker for worker in workers}
        ready, _ = self._ray.wait(list(by_ref), num_returns=1, timeout=timeout)
        if not ready:
            return None
        return by_ref[ready[0]], by_ref[ready[0]].reply()

    def close(self) -> None:
        """Disconnect, and end a cluster that was started here."""
        self._ray.shutdown()

    def _environment(self) -> dict[str, str]:
        """Return the environment variables that set a worker's threads. They must be set before it imports torch."""
        configure_thread_waiting()
        own = {name: os.environ[name] for name in THREAD_VARIABLES if name in os.environ}
        return own | ({"OMP_NUM_THREADS": str(self._cpus)} if self._cpus else {})


def cpus_per_worker(cpus: Sequence[int], workers: int) -> int:
    """Return how many CPUs each worker gets: the most for which all fit, none spread over two machines; 0 if too few.

    ``cpus`` holds the number of CPUs of each machine.
    """
    return next((share for share in range(max(cpus, default=0), 0, -1) if sum(count // share for count in cpus) >= workers), 0)


def _import_ray() -> ModuleType:
    try:
        import ray
    except ImportError:
        raise UserError("--ray-address needs Ray: pip install 'specbench[ray]'") from None
    return ray


def _connect(ray: ModuleType, address: str) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray reports usage to its makers by default
    local = {"include_dashboard": False} if address == LOCAL else {}
    try:
        _check_reachable(address)
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **local)
    except CONNECTION_ERRORS as error:
        reason = one_line(str(error))[:200]
        raise UserError(f"no Ray cluster at {address} ({reason}); give the address `ray start` printed, or `{LOCAL}`") from None


def _check_reachable(address: str) -> None:
    """Raise OSError if nothing answers at HOST:PORT. Ray itself would wait for many minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()
