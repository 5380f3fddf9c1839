"""Workers from what the user asked for: checked before anything is loaded, stopped whatever happens."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

from methods.core.backend import DEFAULT_BACKEND
from methods.core.errors import UserError
from specbench.config.options import Options
from specbench.engines import registry as engines
from specbench.measure.session import resolve, suite_of
from specbench.measure.workers.driver import Workers
from specbench.measure.workers.on_ray import Actors
from specbench.measure.workers.processes import Processes
from specbench.suites import Suite


@contextmanager
def started(options: Options, workers: int | None, ray_address: str | None, console: Console) -> Iterator[Workers]:
    """Workers that have loaded what the run needs, stopped on leaving. Raises UserError for whatever would only fail later."""
    if workers is None:
        raise UserError(f"--ray-address {ray_address} says where workers are, not how many; add --workers N")
    if workers < 2:
        raise UserError(f"--workers is {workers}; it must be at least 2: leave it out to measure in this process")
    suite = _checked(options)
    place = Actors(options, workers, ray_address) if ray_address else Processes(options, workers)
    crew = Workers(place, workers, suite, console)
    try:
        crew.load()
        yield crew
    finally:
        crew.stop()


def _checked(options: Options) -> Suite:
    """The questions; raises UserError for what is unknown, and for what cannot be shared among workers."""
    if options.device not in (None, "cpu", "cuda"):
        raise UserError(f"--device {options.device} with --workers: every worker has a device of its own; choices: cpu, cuda")
    if options.device_map:
        raise UserError("--device-map spreads one target over the GPUs that --workers would give a target each; leave one of them out")
    own, others = engines.apart(options.methods, options.aa)
    arms = resolve(own, options.overrides, options.device or "cpu", options.backend or DEFAULT_BACKEND, options.aa, options.config)
    asked = [name for name in others if name.partition(":")[0] == "endpoint"]
    if asked:
        raise UserError(f"{asked[0]} asks one server, which several workers would ask at once; leave out --workers")
    keeping = [name for name, arm in arms.items() if arm.state]  # it would be another in every worker
    if keeping:
        raise UserError(
            f"{', '.join(keeping)}: state that outlives a question is not shared by workers; leave out --workers or scope=session"
        )
    return suite_of(options)
