"""A sweep: runs of the same methods on several targets, smallest first. Each is an ordinary run, and finished runs are kept."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from methods.core.errors import UserError, unknown
from methods.core.target import Target
from methods.registry import Resolved
from specbench import targets
from specbench.config.options import RunConfig
from specbench.measure import runner
from specbench.measure.resolve import own_arms, plan, suite_of
from specbench.measure.runner import LocalExecutor
from specbench.measure.session import load_target, prepare
from specbench.store.manifest import FILE as MANIFEST
from specbench.store.manifest import RunManifest
from specbench.studies.base import engine_of, text_of, write_json
from specbench.studies.roofline.cost import COUNTED_TOKENS, Cost, Device, draft_cost
from specbench.studies.roofline.measure import device_numbers
from specbench.studies.scale import sizes
from specbench.targets.widen import SHAPES
from specbench.util import memory
from specbench.util.memory import release_unused_memory
from specbench.util.stored import FileFormat, read_json
from specbench.util.terminal import Console

FILE = "scale.json"
SETTINGS = ("suite", "limit", "max_new_tokens", "dtype", "device", "backend")  # the same for every target, as the methods are
COUNTED_PAST = 128  # tokens before the steps in which the drafters' calls are counted


@dataclass(frozen=True)
class Request:
    """A sweep as asked for, checked: settled settings, targets, and the methods by arm."""

    config: RunConfig
    targets: Sequence[str]
    methods: Mapping[str, Resolved]

    @classmethod
    def of(cls, config: RunConfig, names: Sequence[str]) -> "Request":
        """Check a request without loading anything. Raises UserError for whatever no target could be run with."""
        for name in names:
            if name not in SHAPES:
                raise unknown("cost-matched target", name, SHAPES)
        if config.dtype and config.dtype not in targets.DTYPES:
            raise unknown("dtype", config.dtype, targets.DTYPES)
        own_arms(config, "time")
        planned = plan(replace(config, target=names[0]))
        suite_of(planned.config)
        return cls(planned.config, names, planned.methods)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that all runs of a sweep share."""
        return {"methods": list(self.methods), **{name: getattr(self.config, name) for name in SETTINGS}}


@dataclass
class Sweep:
    """The results of a sweep beside the runs in its folder: ``scale.json``."""

    request: Request
    device: Device
    load_s: dict[str, float] = field(default_factory=dict)  # by target: until it and its drafters were in memory
    draft: dict[str, dict[str, Cost]] = field(default_factory=dict)  # by target and arm: drafting in one step
    left_out: dict[str, str] = field(default_factory=dict)  # the reason, by target

    @classmethod
    def read(cls, out: Path, request: Request) -> "Sweep":
        """Return the sweep in a folder, or a new one. Raises UserError if the folder holds a sweep with other settings."""
        path, config = out / FILE, request.config
        if not path.is_file():
            return cls(request, device_numbers(torch.device(config.device), targets.DTYPES[config.dtype]))
        stored = read_json(path, FileFormat("sweep", None, "use another --out"))
        try:
            then = {name: stored["settings"][name] for name in request.settings}
            draft = {target: {arm: Cost(*cost) for arm, cost in costs.items()} for target, costs in stored["draft"].items()}
            sweep = cls(request, Device(**stored["device"]), stored["load_s"], draft)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is not what a sweep wrote ({error}); use another --out") from None
        for name, value in request.settings.items():
            if value != then[name]:
                raise UserError(f"{out} holds a sweep with other settings ({name} {then[name]} -> {value}); choose another --out")
        return sweep

    def measured(self, out: Path) -> list[str]:
        """Return the targets whose runs are finished, smallest first."""
        return [name for name in sizes.smallest_first(SHAPES) if name in self.draft and _complete(out / name)]

    def write(self, out: Path) -> None:
        """Write ``scale.json``. Raises UserError if it cannot be written."""
        content = {
            "settings": self.request.settings,
            "targets": list(self.request.targets),
            "device": self.device._asdict(),
            "load_s": self.load_s,
            "draft": self.draft,
            "left_out": self.left_out,
        }
        write_json(out / FILE, content)


def run(request: Request, out: Path, console: Console) -> Sweep:
    """Measure what the folder does not hold yet, one run directory a target.

    Raises UserError if not even the smallest target can be run.
    """
    sweep = Sweep.read(out, request)
    config, measured = request.config, sweep.measured(out)
    for name in sizes.smallest_first(request.targets):
        if name in measured:
            console.print(f"{name}: measured already", markup=False)
            continue
        release_unused_memory()
        try:
            _check_memory(name, request)
            with targets.within_memory(name, config.dtype, config.device):
                _measure(name, sweep, out, console)
            measured.append(name)
        except UserError as error:
            if not measured:  # the smallest does not fail for its size
                raise
            sweep.left_out[name] = str(error)
            console.print(f"left out: {error}", markup=False, soft_wrap=True)
    return sweep


def _check_memory(name: str, request: Request) -> None:
    """Raise UserError for a target that will not fit, so that the system does not kill the process while it is built."""
    config = request.config
    need = sizes.needed(sizes.size_of(name), request.methods.values(), targets.DTYPES[config.dtype], config.device)
    left = memory.free_memory(config.device)
    if need > left:
        raise UserError(
            f"target {name} in {config.dtype} with its drafters takes up to {need / 2**30:.1f} GiB, of which {config.device} has "
            f"{left / 2**30:.1f} free; choose a smaller --target or --dtype"
        )


def _measure(name: str, sweep: Sweep, out: Path, console: Console) -> None:
    console.print(f"{name}: {sizes.size_of(name).parameters / 1e6:,.0f} M parameters", markup=False)
    config = replace(sweep.request.config, target=name)
    if name not in sweep.draft:
        sweep.draft[name] = draft_costs(config, sweep.request.methods)
        release_unused_memory()
    start = time.perf_counter()
    session = prepare(config)
    sweep.load_s.setdefault(name, round(time.perf_counter() - start, 3))
    sweep.write(out)
    runner.run(LocalExecutor(session), out / name, console)


def draft_costs(config: RunConfig, methods: Mapping[str, Resolved]) -> dict[str, Cost]:
    """Return by arm the cost of drafting in one step.

    Calls can only be counted on the eager back end, so the target is loaded once more for it.
    """
    loaded = load_target(config)
    target, prompt = Target(loaded.model, capacity=COUNTED_PAST + COUNTED_TOKENS), text_of(loaded, COUNTED_PAST)
    return {arm: draft_cost(engine_of(method, loaded, target), prompt) for arm, method in methods.items()}


def _complete(run_dir: Path) -> bool:
    return (run_dir / MANIFEST).is_file() and RunManifest.read(run_dir).status == "complete"
