"""The measurement of a roofline: the target's trees, each method's step, then the device alone."""

import time
from collections.abc import Sequence
from dataclasses import replace
from statistics import median

import torch

from methods import registry
from methods.core.acceptance import Sampling
from methods.core.backend import EAGER, Backend, backend
from methods.core.decode import StepTrace
from methods.core.errors import UserError
from methods.core.target import Target
from methods.core.tree import MAX_TREE_SIZE
from methods.registry import Resolved
from specbench import targets
from specbench.config.options import RunConfig
from specbench.measure.resolve import settle
from specbench.measure.session import load_target
from specbench.store.records import STEP_PARTS
from specbench.studies.base import Conditions, engine_of, own_methods, text_of, with_weights
from specbench.studies.roofline import NODES, PAST, measure
from specbench.studies.roofline.cost import Cost, draft_cost, target_cost
from specbench.studies.roofline.result import Drafted, Roofline, Verified
from specbench.targets import Loaded
from specbench.util.memory import PeakMemory, release_unused_memory
from specbench.util.terminal import Console

NEW_TOKENS = 64  # of an answer whose steps are timed
ANSWERS = 3
MOST = MAX_TREE_SIZE - 1  # drafted nodes of the largest tree


def run(config: RunConfig, console: Console, past: int = PAST, nodes: Sequence[int] = NODES) -> Roofline:
    """Load the target and measure trees of ``nodes`` drafts after ``past`` tokens, and a step of every method.

    Without ``config.methods`` these are all that the target has weights for. Raises UserError for
    anything that cannot be loaded, built, or held in memory.
    """
    wrong = [count for count in nodes if not 0 <= count <= MOST]
    if wrong:
        raise UserError(f"--nodes has {wrong[0]}; choose 0 to {MOST} drafted nodes, as in --nodes 0,7,63")
    if past < 1:
        raise UserError(f"--past is {past}; it must be at least 1")
    config = settle(config)
    methods = own_methods(replace(config, methods=config.methods or list(registry.METHODS)), "time")
    for method in methods.values():
        if method.backend != config.backend:
            raise UserError(f"{method.arm} is not of the back end {config.backend}, and one is measured at a time; choose it by --backend")

    release_unused_memory()
    memory = PeakMemory(torch.device(config.device))
    memory.reset()
    with targets.within_memory(config.target, config.dtype, config.device):
        start = time.perf_counter()
        loaded = load_target(config)
        room = loaded.model.config.max_position_embeddings - NEW_TOKENS
        if past > room:
            raise UserError(f"--past is {past}; beside {NEW_TOKENS} new tokens the context of {config.target} has room for {room}")
        usable = with_weights(loaded, methods.values(), required=bool(config.methods))
        load_s = time.perf_counter() - start
        return _measured(loaded, config, usable, past, sorted({0, *nodes}), memory, load_s, console)


def _measured(
    loaded: Loaded,
    config: RunConfig,
    methods: Sequence[Resolved],
    past: int,
    nodes: Sequence[int],
    memory: PeakMemory,
    load_s: float,
    console: Console,
) -> Roofline:
    prompt, capacity = text_of(loaded, past), past + NEW_TOKENS
    chosen: Backend = backend(config.backend, loaded.model.device)
    tree_sizes = [count + 1 for count in nodes]

    start = time.perf_counter()
    target = Target(loaded.model, capacity=capacity, backend=chosen)
    engines = [engine_of(method, loaded, target) for method in methods]
    console.print(f"preparing {loaded.name}, {chosen.name}, and {len(engines)} methods", markup=False)
    target.warm_up(tree_sizes)
    for engine in engines:
        engine.warm_up(Sampling(NEW_TOKENS))
        measure.steps(engine, prompt, NEW_TOKENS)
    prepare_s = time.perf_counter() - start

    console.print(f"measuring trees of {', '.join(map(str, nodes))} nodes after {past} tokens", markup=False)
    seconds = measure.curve(target, tree_sizes, past)
    traces: list[list[StepTrace]] = [[] for _ in engines]
    for _ in range(ANSWERS):  # methods take turns, so that drift of the machine affects them alike
        for engine, steps in zip(engines, traces, strict=True):
            steps += measure.steps(engine, prompt, NEW_TOKENS)
    peak = memory.peak()

    console.print("counting the drafters' module calls", markup=False)
    plain = target if chosen is EAGER else Target(loaded.model, capacity=capacity)
    costs = [draft_cost(engine_of(method, loaded, plain), prompt) for method in methods]
    console.print("measuring the device's best rates", markup=False)
    device = measure.device_numbers(target.device, target.dtype)
    limits = {count: _cost(loaded, target, count + 1, past) for count in range(nodes[-1] + 1)}
    return Roofline(
        conditions=Conditions.of_target(loaded, config),
        past=past,
        device=device,
        verified=[Verified(count, limits[count], seconds[count + 1]) for count in nodes],
        drafted=[_drafted(*each) for each in zip(methods, traces, costs, strict=True)],
        limit={count: cost.seconds(device) for count, cost in limits.items()},
        load_s=load_s,
        prepare_s=prepare_s,
        peak_bytes=peak,
    )


def _cost(loaded: Loaded, target: Target, tree_size: int, past: int) -> Cost:
    return target_cost(target.config, loaded.parameters, tree_size, past, target.dtype.itemsize)


def _drafted(method: Resolved, steps: Sequence[StepTrace], cost: Cost) -> Drafted:
    seconds = {part: median(getattr(step, part) for step in steps) for part in STEP_PARTS}
    return Drafted(method.arm, method.title, int(median(step.tree_size for step in steps)) - 1, cost, **seconds)
