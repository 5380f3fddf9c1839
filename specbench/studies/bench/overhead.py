"""Measurement of steps and V(n) on the random-weight targets in every dtype, both back ends taking turns."""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from transformers import PreTrainedModel

from methods.core.acceptance import Sampling
from methods.core.backend import BACKENDS, backend
from methods.core.decode import StepTrace
from methods.core.target import Target
from specbench.engines.own import OwnEngine
from specbench.studies.bench.steps import SUBJECTS, TREE_SIZES, StepTimes, Subject, VerifyTimes, random_engine, random_model
from specbench.studies.profiling.run import traced
from specbench.studies.profiling.split import Split
from specbench.studies.roofline import measure
from specbench.studies.roofline.cost import COUNTED_TOKENS, Device, draft_cost, target_cost
from specbench.targets import DTYPES
from specbench.util.memory import gc_paused
from specbench.util.terminal import Console

PROMPT, NEW_TOKENS = 16, 96  # as in the measurements of the reference code
PAST = PROMPT + NEW_TOKENS // 2
ANSWERS = 4


def overhead(dtypes: Sequence[str], device: torch.device, console: Console) -> tuple[list[StepTimes], list[VerifyTimes]]:
    """Return the steps of every subject and the V(n) of their targets, in every dtype on both back ends.

    The steps are profiled last, so that the profiler affects no time.
    """
    timed: list[tuple[StepTimes, OwnEngine]] = []
    verified: list[VerifyTimes] = []
    for dtype in dtypes:
        limits = measure.device_numbers(device, DTYPES[dtype])
        for layers in sorted({subject.layers for subject in SUBJECTS}):
            console.print(f"measuring: steps and V(n) on random weights, {layers} layers, {dtype}", markup=False)
            model = random_model(layers, DTYPES[dtype], device)
            targets = [Target(model, capacity=PROMPT + NEW_TOKENS, backend=backend(name, device)) for name in BACKENDS]
            for subject in (one for one in SUBJECTS if one.layers == layers):
                engines = [random_engine(subject.arm, target) for target in targets]
                floors_s = floors(model, subject, limits)
                for engine, steps in zip(engines, _steps(engines), strict=True):
                    timed.append((StepTimes(subject, dtype, engine.target.backend.name, steps, *floors_s), engine))
            verified += [verify_times(f"random, {layers} layers", dtype, target, PAST) for target in targets]

    console.print("profiling the steps", markup=False)
    return [replace(times, split=_profiled(engine)) for times, engine in timed], verified


def verify_times(name: str, dtype: str, target: Target, past: int) -> VerifyTimes:
    """Return the times of scoring trees on a target after ``past`` tokens."""
    return VerifyTimes(name, dtype, target.backend.name, past, measure.curve(target, (1, *TREE_SIZES), past))


def floors(model: PreTrainedModel, subject: Subject, limits: Device) -> tuple[float, float]:
    """Return the least seconds that drafting and verifying need, in the middle of an answer."""
    engine = random_engine(subject.arm, Target(model, capacity=PAST + COUNTED_TOKENS))
    target = engine.target
    draft = draft_cost(engine, measure.filler(PAST, target.config.vocab_size))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    verify = target_cost(target.config, parameters, max(engine.drafter.sizes), PAST, target.dtype.itemsize)
    return draft.seconds(limits), verify.seconds(limits)


def _steps(engines: Sequence[OwnEngine]) -> list[list[StepTrace]]:
    """Return the steps of each engine; engines take turns."""
    by_engine: list[list[StepTrace]] = [[] for _ in engines]
    for engine in engines:
        engine.warm_up(Sampling(NEW_TOKENS))
        measure.steps(engine, _prompt(engine), NEW_TOKENS)
    with gc_paused():
        for _ in range(ANSWERS):
            for engine, steps in zip(engines, by_engine, strict=True):
                steps += measure.steps(engine, _prompt(engine), NEW_TOKENS)
    return by_engine


def _prompt(engine: OwnEngine) -> list[int]:
    return measure.filler(PROMPT, engine.target.config.vocab_size)


def _profiled(engine: OwnEngine) -> Split:
    with tempfile.TemporaryDirectory() as folder:
        return traced(engine, [_prompt(engine)], Sampling(NEW_TOKENS), Path(folder) / "trace.json.gz")
