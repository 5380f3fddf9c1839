"""Measures a roofline: the target's tree sizes, each method's round, then the device alone."""

import itertools
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from statistics import median
from typing import Any

import torch
from rich.console import Console

from methods import registry
from methods.core.acceptance import Sampling
from methods.core.backend import EAGER, Backend, backend
from methods.core.decode import StepTrace, warm
from methods.core.errors import UserError
from methods.core.target import MAX_NODES, Target
from methods.registry import Resolved
from specbench import suites, targets
from specbench.measure.session import DEFAULT_BACKEND
from specbench.store.records import BASELINE
from specbench.studies.roofline import NODES, PAST, measure
from specbench.studies.roofline.cost import Cost, target_cost
from specbench.studies.roofline.count import draft_cost
from specbench.studies.roofline.result import Drafted, Roofline, Verified
from specbench.targets import Loaded
from specbench.util.environment import environment, git_state
from specbench.util.memory import PeakMemory, make_room

NEW_TOKENS = 64  # of an answer whose rounds are timed
ANSWERS = 3


@dataclass(frozen=True)
class Options:
    """A roofline as asked for; None stands for a default that depends on the device."""

    target: str | None = None
    dtype: str | None = None
    device: str | None = None
    backend: str | None = None
    methods: Sequence[str] = ()  # beside vanilla; none: every method that the target has weights for
    past: int = PAST
    nodes: Sequence[int] = NODES

    def __post_init__(self) -> None:
        wrong = [nodes for nodes in self.nodes if not 1 <= nodes <= MAX_NODES]
        if wrong:
            raise UserError(f"--nodes has {wrong[0]}; choose tree sizes of 1 to {MAX_NODES}, as in --nodes 1,8,64")
        if self.past < 1:
            raise UserError(f"--past is {self.past}; it must be at least 1")


def run(options: Options, console: Console) -> Roofline:
    """Load the target and measure. Raises UserError for whatever cannot be loaded, built or held in memory."""
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    targets.check_device(device)
    name, dtype = options.target or targets.default_name(device), options.dtype or targets.default_dtype(device)
    chosen = backend(options.backend or DEFAULT_BACKEND, torch.device(device))
    asked = [registry.resolve(method, {}, device, chosen.name) for method in dict.fromkeys([BASELINE, *options.methods])]
    for each in asked:
        if each.backend != chosen.name:
            raise UserError(f"{each.arm} is not of the back end {chosen.name}, and one is measured at a time; choose it by --backend")
    make_room()
    memory = PeakMemory(torch.device(device))
    memory.reset()
    with targets.within_memory(name, dtype, device):
        start = time.perf_counter()
        loaded = targets.load(name, device=device, dtype=dtype, attention="sdpa")
        room = loaded.model.config.max_position_embeddings - NEW_TOKENS
        if options.past > room:
            raise UserError(f"--past is {options.past}; beside {NEW_TOKENS} new tokens the context of {name} has room for {room}")
        methods = asked if options.methods else usable(loaded, chosen)
        for each in methods:
            loaded.drafter_for(each)  # reads its weights
        load_s = time.perf_counter() - start
        return _measured(options, loaded, methods, chosen, memory, load_s, console)


def usable(loaded: Loaded, chosen: Backend) -> list[Resolved]:
    """Every method of the table that needs no weights or whose weights the target has."""
    table = [registry.resolve(name, {}, loaded.model.device.type, chosen.name) for name in registry.METHODS]
    return [each for each in table if each.method.weights is None or loaded.drafter_for(each) is not None]


def _measured(
    options: Options, loaded: Loaded, methods: Sequence[Resolved], chosen: Backend, memory: PeakMemory, load_s: float, console: Console
) -> Roofline:
    sizes, prompt = sorted({1, *options.nodes}), text(loaded, options.past)
    capacity = options.past + NEW_TOKENS
    start = time.perf_counter()
    target = Target(loaded.model, capacity=capacity, backend=chosen)
    arms = {each: registry.build(each, target, loaded.drafter_for(each)) for each in methods}
    console.print(f"preparing {loaded.name}, {chosen.name}, and {len(arms)} methods", markup=False)
    target.warm(sizes)
    for arm in arms.values():
        warm(target, *arm, Sampling(NEW_TOKENS))
        measure.rounds(target, *arm, prompt, NEW_TOKENS)
    prepare_s = time.perf_counter() - start
    console.print(f"measuring trees of {', '.join(map(str, sizes))} nodes after {options.past} tokens", markup=False)
    seconds = measure.curve(target, sizes, options.past)
    traces: dict[Resolved, list[StepTrace]] = {each: [] for each in arms}
    for _ in range(ANSWERS):  # methods take turns, so that drift of the machine hits them alike
        for each, arm in arms.items():
            traces[each] += measure.rounds(target, *arm, prompt, NEW_TOKENS)
    peak = memory.peak()
    console.print("counting what the drafters call", markup=False)
    plain = target if chosen is EAGER else Target(loaded.model, capacity=capacity)
    costs = {each: draft_cost(plain, *registry.build(each, plain, loaded.drafter_for(each)), prompt) for each in methods}
    console.print("measuring what the device does at its best", markup=False)
    device = measure.device_numbers(target.device, target.dtype)
    limits = {n: _cost(loaded, target, n, options.past) for n in range(1, sizes[-1] + 1)}
    return Roofline(
        facts=_facts(options, loaded, target),
        device=device,
        verified=[Verified(n, limits[n], seconds[n]) for n in sizes],
        drafted=[_drafted(each, traces[each], costs[each]) for each in methods],
        limit={n: cost.seconds(device) for n, cost in limits.items()},
        load_s=load_s,
        prepare_s=prepare_s,
        peak_bytes=peak,
    )


def text(loaded: Loaded, tokens: int) -> list[int]:
    """A prompt of that length for drafters that read: the warm-up questions, over and over."""
    ids = [token for question in suites.warmup() for token in loaded.chat.encode(question.turns[:1], [])]
    return list(itertools.islice(itertools.cycle(ids), tokens))


def _cost(loaded: Loaded, target: Target, nodes: int, past: int) -> Cost:
    return target_cost(target.config, loaded.parameters, nodes, past, target.dtype.itemsize)


def _drafted(method: Resolved, rounds: Sequence[StepTrace], cost: Cost) -> Drafted:
    seconds = {part: median(getattr(each, part) for each in rounds) for part in ("draft_s", "verify_s", "commit_s")}
    return Drafted(method.arm, method.title, int(median(each.nodes for each in rounds)), cost, **seconds)


def _facts(options: Options, loaded: Loaded, target: Target) -> dict[str, Any]:
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "argv": sys.argv[1:],
        "target": loaded.name,
        "note": loaded.note,
        "parameters": loaded.parameters,
        "dtype": str(target.dtype).removeprefix("torch."),
        "device": target.device.type,
        "backend": target.backend.name,
        "past": options.past,
        "environment": environment(target.device),
        "git": git_state(),
    }
