"""Runs one method set over the targets, smallest first; each is an ordinary run, and what is done is not done again."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from rich.console import Console

from methods import registry
from methods.core.backend import backend as named_backend
from methods.core.errors import UserError, unknown
from methods.core.target import Target
from methods.registry import Resolved
from specbench import suites, targets
from specbench.config.options import Options
from specbench.measure import runner
from specbench.measure.session import DEFAULT_BACKEND, prepare, resolve
from specbench.store.manifest import FILE as MANIFEST
from specbench.store.manifest import RunManifest
from specbench.studies.roofline.cost import Cost, Device
from specbench.studies.roofline.count import NEW_TOKENS, draft_cost
from specbench.studies.roofline.measure import device_numbers
from specbench.studies.roofline.run import text
from specbench.studies.scale import sizes
from specbench.targets.shapes import SHAPES
from specbench.util import memory
from specbench.util.files import whole
from specbench.util.memory import make_room

FILE = "scale.json"
COUNTED_PAST = 128  # tokens before the rounds in which the drafters' calls are counted


@dataclass(frozen=True)
class Asked:
    """A sweep as asked for, defaults resolved."""

    methods: Sequence[str]
    targets: Sequence[str]
    suite: str
    limit: int
    max_new_tokens: int
    dtype: str
    device: str
    backend: str

    @classmethod
    def of(
        cls,
        methods: Sequence[str],
        names: Sequence[str],
        suite: str,
        limit: int,
        max_new_tokens: int,
        dtype: str | None,
        device: str | None,
        backend: str | None,
    ) -> "Asked":
        """Raises UserError for whatever no target could be run with."""
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        targets.check_device(device)
        for name in names:
            if name not in SHAPES:
                raise unknown("cost-matched target", name, SHAPES)
        dtype = dtype or targets.default_dtype(device)
        if dtype not in targets.DTYPES:
            raise unknown("dtype", dtype, targets.DTYPES)
        asked = cls(list(methods), list(names), suite, limit, max_new_tokens, dtype, device, backend or DEFAULT_BACKEND)
        named_backend(asked.backend, torch.device(device))
        asked.arms()
        asked.options(names[0])
        suites.load(suite, limit=limit)
        return asked

    def arms(self) -> dict[str, Resolved]:
        return resolve(self.methods, (), self.device, self.backend)

    def options(self, target: str) -> Options:
        return Options(
            methods=self.methods,
            target=target,
            suite=self.suite,
            limit=self.limit,
            max_new_tokens=self.max_new_tokens,
            dtype=self.dtype,
            device=self.device,
            backend=self.backend,
        )


@dataclass
class Found:
    """What a sweep knows beside the runs in its folder: ``scale.json``."""

    asked: Asked
    device: Device
    load_s: dict[str, float] = field(default_factory=dict)  # by target: until it and its drafters were in memory
    draft: dict[str, dict[str, Cost]] = field(default_factory=dict)  # by target and arm: of one round's drafting
    left_out: dict[str, str] = field(default_factory=dict)  # by target: why

    @classmethod
    def at(cls, out: Path, asked: Asked) -> "Found":
        """What the folder holds, or a new one. Raises UserError where that is of another sweep."""
        path = out / FILE
        if not path.is_file():
            return cls(asked, device_numbers(torch.device(asked.device), targets.DTYPES[asked.dtype]))
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            then, device = Asked(**stored["asked"]), Device(**stored["device"])
            draft = {target: {arm: Cost(*cost) for arm, cost in costs.items()} for target, costs in stored["draft"].items()}
            found = cls(asked, device, stored["load_s"], draft)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is not what a sweep wrote ({error}); use another --out") from None
        for name, value in asdict(asked).items():
            if name != "targets" and value != getattr(then, name):
                raise UserError(f"{out} holds a sweep with other settings ({name} {getattr(then, name)} -> {value}); choose another --out")
        return found

    def measured(self, out: Path) -> list[str]:
        """The targets whose runs are finished, smallest first."""
        return [name for name in sizes.smallest_first(SHAPES) if name in self.draft and _complete(out / name)]

    def write(self, out: Path) -> None:
        with whole(out / FILE) as file:
            file.write_text(json.dumps(asdict(self) | {"device": self.device._asdict()}, indent=1) + "\n", encoding="utf-8")


def sweep(asked: Asked, out: Path, console: Console) -> Found:
    """Measure what the folder does not hold yet, a target a folder. Raises UserError where not even the smallest can be run."""
    found = Found.at(out, asked)
    measured = found.measured(out)
    for name in sizes.smallest_first(asked.targets):
        if name in measured:
            console.print(f"{name}: measured already", markup=False)
            continue
        make_room()
        try:
            _check_room(name, asked)
            with targets.within_memory(name, asked.dtype, asked.device):
                _measure(name, found, out, console)
            measured.append(name)
        except UserError as error:
            if not measured:  # what ails the smallest is not its size
                raise
            found.left_out[name] = str(error)
            console.print(f"left out: {error}", markup=False, soft_wrap=True)
    return found


def _check_room(name: str, asked: Asked) -> None:
    """Raises UserError for a target that will not fit; better than a system that kills the process in the middle of building it."""
    size, left = sizes.sized(name), memory.free(asked.device)
    need = sizes.needed(size, asked.arms().values(), targets.DTYPES[asked.dtype], asked.device)
    if need > left:
        raise UserError(
            f"target {name} in {asked.dtype} with its drafters takes up to {need / 2**30:.1f} GiB, of which {asked.device} has "
            f"{left / 2**30:.1f} free; choose a smaller --target or --dtype"
        )


def _measure(name: str, found: Found, out: Path, console: Console) -> None:
    console.print(f"{name}: {sizes.sized(name).parameters / 1e6:,.0f} M parameters", markup=False)
    if name not in found.draft:
        found.draft[name] = _draft_costs(name, found.asked)
        make_room()
    start = time.perf_counter()
    session = prepare(found.asked.options(name))
    found.load_s.setdefault(name, round(time.perf_counter() - start, 3))
    found.write(out)
    runner.run(session, out / name, console)


def _draft_costs(name: str, asked: Asked) -> dict[str, Cost]:
    """Counted on the eager back end, which alone runs modules as they are; so the target is built once more for it."""
    loaded = targets.load(name, device=asked.device, dtype=asked.dtype, attention="sdpa")
    target, prompt = Target(loaded.model, capacity=COUNTED_PAST + NEW_TOKENS), text(loaded, COUNTED_PAST)
    return {arm: draft_cost(target, *registry.build(each, target, loaded.drafter_for(each)), prompt) for arm, each in asked.arms().items()}


def _complete(run_dir: Path) -> bool:
    return (run_dir / MANIFEST).is_file() and RunManifest.read(run_dir).status == "complete"
