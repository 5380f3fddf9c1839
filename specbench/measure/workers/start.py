"""The start of a run's workers, and their stop however the run ends."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from rich.console import Console

from methods.core.errors import UserError
from specbench.config.options import RunConfig
from specbench.measure.resolve import backend_name, device_name, resolve_methods, split_arms, suite_of
from specbench.measure.workers.driver import WorkerExecutor
from specbench.measure.workers.on_ray import RayPool
from specbench.measure.workers.processes import ProcessPool


@contextmanager
def started(config: RunConfig, workers: int | None, ray_address: str | None, console: Console) -> Iterator[WorkerExecutor]:
    """Yield an executor whose workers have loaded the run, and stop them afterwards.

    Raises UserError for everything that would otherwise fail later.
    """
    if workers is None:
        raise UserError(f"--ray-address {ray_address} says where workers are, not how many; add --workers N")
    if workers < 2:
        raise UserError(f"--workers is {workers}; it must be at least 2: leave it out to measure in this process")

    check_shareable(config)
    suite = suite_of(config)
    on_this_machine = replace(config, device=device_name(config))
    pool = RayPool(config, workers, ray_address) if ray_address else ProcessPool(on_this_machine, workers)
    executor = WorkerExecutor(pool, workers, suite, console)
    try:
        executor.load()
        yield executor
    finally:
        executor.stop()


def check_shareable(config: RunConfig) -> None:
    """Raise UserError for unknown names and options, and for what cannot be shared among workers."""
    if config.device not in ("", "cpu", "cuda"):
        raise UserError(f"--device {config.device} with --workers: every worker has a device of its own; choices: cpu, cuda")
    if config.device_map:
        raise UserError("--device-map spreads one target over the GPUs that --workers would give a target each; leave one of them out")

    own, others = split_arms(config)
    methods = resolve_methods(own, replace(config, device=config.device or "cpu", backend=backend_name(config)))
    endpoints = [arm.name for arm in others if arm.method == "endpoint"]
    if endpoints:
        raise UserError(f"{endpoints[0]} asks one server, which several workers would ask at once; leave out --workers")

    stateful = [name for name, method in methods.items() if method.state]  # its state would differ from worker to worker
    if stateful:
        raise UserError(
            f"{', '.join(stateful)}: state that outlives a question is not shared by workers; leave out --workers or scope=session"
        )
