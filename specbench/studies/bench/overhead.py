"""Measures rounds and V(n) on the random-weight shapes: every dtype, both back ends, taking turns."""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from transformers import PreTrainedModel

from methods.core.acceptance import Sampling
from methods.core.backend import BACKENDS, backend
from methods.core.decode import StepTrace, warm
from methods.core.target import Target
from specbench.engines.own import Arm
from specbench.studies.bench.ratios import TREES, VerifyRatio
from specbench.studies.bench.rounds import RoundTime, Subject
from specbench.studies.bench.shapes import SUBJECTS, random_arm, random_model
from specbench.studies.profiling.run import traced
from specbench.studies.profiling.split import Split
from specbench.studies.roofline import measure
from specbench.studies.roofline.cost import Device, target_cost
from specbench.studies.roofline.count import NEW_TOKENS as COUNTED
from specbench.studies.roofline.count import draft_cost
from specbench.targets import DTYPES
from specbench.util.memory import unhindered

PROMPT, NEW_TOKENS = 16, 96  # as the reference code was measured
PAST = PROMPT + NEW_TOKENS // 2
ANSWERS = 4


def overhead(dtypes: Sequence[str], device: torch.device, console: Console) -> tuple[list[RoundTime], list[VerifyRatio]]:
    """The rounds of every subject, profiled at last, and the V(n) of their targets, in every dtype on both back ends."""
    times: list[tuple[RoundTime, Arm]] = []
    ratios: list[VerifyRatio] = []
    for dtype in dtypes:
        limits = measure.device_numbers(device, DTYPES[dtype])
        for layers in sorted({subject.layers for subject in SUBJECTS}):
            console.print(f"measuring: rounds and V(n) on random weights, {layers} layers, {dtype}", markup=False)
            model = random_model(layers, DTYPES[dtype], device)
            targets = [Target(model, capacity=PROMPT + NEW_TOKENS, backend=backend(name, device)) for name in BACKENDS]
            for subject in (each for each in SUBJECTS if each.layers == layers):
                arms = [random_arm(subject.arm, target) for target in targets]
                floors_s = floors(model, subject, limits)
                times += [
                    (RoundTime(subject, dtype, arm.target.backend.name, rounds, *floors_s), arm)
                    for arm, rounds in zip(arms, _rounds(arms), strict=True)
                ]
            ratios += [verify_ratio(f"random, {layers} layers", dtype, target, PAST) for target in targets]
    console.print("profiling the rounds, after everything that is timed", markup=False)
    return [replace(each, split=_profiled(arm)) for each, arm in times], ratios


def verify_ratio(name: str, dtype: str, target: Target, past: int) -> VerifyRatio:
    return VerifyRatio(name, dtype, target.backend.name, past, measure.curve(target, (1, *TREES), past))


def floors(model: PreTrainedModel, subject: Subject, limits: Device) -> tuple[float, float]:
    """Seconds that drafting and verifying need at the least, in the middle of an answer."""
    target = Target(model, capacity=PAST + COUNTED)
    arm = random_arm(subject.arm, target)
    draft = draft_cost(target, arm.drafter, arm.accept, measure.filler(PAST, target.config.vocab_size))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    verify = target_cost(target.config, parameters, max(arm.drafter.sizes), PAST, target.dtype.itemsize)
    return draft.seconds(limits), verify.seconds(limits)


def _rounds(arms: Sequence[Arm]) -> list[list[StepTrace]]:
    """Of each arm, which take turns."""
    found: list[list[StepTrace]] = [[] for _ in arms]
    for arm in arms:
        warm(arm.target, arm.drafter, arm.accept, Sampling(NEW_TOKENS))
        _answer(arm)
    with unhindered():
        for _ in range(ANSWERS):
            for arm, rounds in zip(arms, found, strict=True):
                rounds += _answer(arm)
    return found


def _answer(arm: Arm) -> list[StepTrace]:
    return measure.rounds(arm.target, arm.drafter, arm.accept, _prompt(arm), NEW_TOKENS)


def _prompt(arm: Arm) -> list[int]:
    return measure.filler(PROMPT, arm.target.config.vocab_size)


def _profiled(arm: Arm) -> Split:
    with tempfile.TemporaryDirectory() as folder:
        return traced(arm, [_prompt(arm)], Sampling(NEW_TOKENS), Path(folder) / "trace.json.gz")
