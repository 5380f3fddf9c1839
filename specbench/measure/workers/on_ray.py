"""Workers as actors of a Ray cluster, one a GPU or with an equal share of the CPUs (``pip install 'specbench[ray]'``)."""

import logging
import os
import socket
from collections.abc import Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any

from methods.core.errors import UserError
from specbench.config.options import Options
from specbench.measure.workers.bench import Bench
from specbench.measure.workers.protocol import Ended, Reply
from specbench.util.threads import SETTLED_BY, patient_threads

LOCAL = "local"
PATIENCE_S = 10.0  # for a cluster to answer
NO_CLUSTER = (OSError, RuntimeError, ValueError)  # what ray.init raises for an address that is none, or of something else


class Actor:
    """A ``protocol.Worker``; ``ref`` is of the reply that is awaited."""

    def __init__(self, ray: ModuleType, handle: Any):
        self._ray, self.handle = ray, handle
        self.ref: Any = None

    def ask(self, what: str, *arguments: Any) -> None:
        self.ref = self.handle.do.remote(what, *arguments)

    def reply(self) -> Reply:
        try:
            reply: Reply = self._ray.get(self.ref)
        except self._ray.exceptions.RayError as error:  # the actor died, or raised what is no UserError
            return Ended(str(error).rstrip().splitlines()[-1][:200])
        return reply

    def stop(self) -> None:
        self._ray.kill(self.handle)


class Actors:
    """A ``protocol.Place``: a Ray cluster by its address, or one that is started here and ends with the run (``local``).

    Raises UserError without Ray, for a cluster that cannot be reached, and for one with too few GPUs or CPUs.
    """

    def __init__(self, options: Options, workers: int, address: str):
        self._ray = ray = _ray()
        _connect(ray, address)
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        gpus = int(sum(node.get("GPU", 0) for node in nodes))
        self.device = options.device or ("cuda" if gpus else "cpu")
        self.facts = {"ray": ray.__version__}
        self._options, self._workers = replace(options, device=self.device), workers
        cpus = [int(node.get("CPU", 0)) for node in nodes]
        self._cpus = 0 if self.device == "cuda" else _share(cpus, workers)
        if not self._cpus and (self.device == "cpu" or gpus < workers):  # Ray would wait for machines to join
            self.close()
            has = f"{sum(cpus)} CPUs" if self.device == "cpu" else f"{gpus} GPUs"
            raise UserError(f"--workers {workers} on the Ray cluster at {address}, which has {has}: each needs one; ask for fewer")

    def start(self, index: int) -> Actor:
        remote = self._ray.remote(Bench).options(
            num_cpus=self._cpus,
            num_gpus=1 if self.device == "cuda" else 0,
            max_restarts=0,  # a fresh one has to load again: the crew asks it to
            runtime_env={"env_vars": self._environment()},
        )
        return Actor(self._ray, remote.remote(self._options, index, self._workers))

    def wait(self, asked: Sequence[Actor], timeout: float | None = None) -> tuple[Actor, Reply] | None:
        by_ref = {worker.ref: worker for worker in asked}
        ready, _ = self._ray.wait(list(by_ref), num_returns=1, timeout=timeout)
        if not ready:
            return None
        return by_ref[ready[0]], by_ref[ready[0]].reply()

    def close(self) -> None:
        self._ray.shutdown()

    def _environment(self) -> dict[str, str]:
        """What a worker's threads are told, before its torch is imported."""
        patient_threads()
        own = {name: os.environ[name] for name in SETTLED_BY if name in os.environ}
        return own | ({"OMP_NUM_THREADS": str(self._cpus)} if self._cpus else {})


def _ray() -> ModuleType:
    try:
        import ray
    except ImportError:
        raise UserError("--ray-address needs Ray: pip install 'specbench[ray]'") from None
    return ray


def _connect(ray: ModuleType, address: str) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a benchmark reports to nobody
    local = {"include_dashboard": False} if address == LOCAL else {}
    try:
        _call(address)
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **local)
    except NO_CLUSTER as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"no Ray cluster at {address} ({reason}); give the address `ray start` printed, or `{LOCAL}`") from None


def _call(address: str) -> None:
    """Raise OSError where nothing answers at HOST:PORT, for which Ray itself would wait many minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), PATIENCE_S).close()


def _share(cpus: Sequence[int], workers: int) -> int:
    """The most CPUs that each of so many workers can have, none spread over two machines; 0 where there are too few."""
    return next((share for share in range(max(cpus, default=0), 0, -1) if sum(each // share for each in cpus) >= workers), 0)
