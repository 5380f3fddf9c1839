"""Measures rounds and V(n) on the random-weight shapes: every dtype, both back ends, taking turns."""

from collections.abc import Sequence

import torch
from rich.console import Console
from transformers import PreTrainedModel

from methods.core.backend import BACKENDS, backend
from methods.core.decode import StepTrace
from methods.core.target import Target
from specbench.bench.decoding import unhindered
from specbench.bench.ratios import TREES, VerifyRatio
from specbench.bench.rounds import RoundTime, Subject
from specbench.bench.shapes import SUBJECTS, random_arm, random_model
from specbench.roofline import measure
from specbench.roofline.cost import Device, target_cost
from specbench.roofline.count import NEW_TOKENS as COUNTED
from specbench.roofline.count import draft_cost
from specbench.runner import Arm
from specbench.targets import DTYPES

PROMPT, NEW_TOKENS = 16, 96  # as the reference code was measured
PAST = PROMPT + NEW_TOKENS // 2
ANSWERS = 4


def overhead(dtypes: Sequence[str], device: torch.device, console: Console) -> tuple[list[RoundTime], list[VerifyRatio]]:
    """The rounds of every subject and the V(n) of their targets, in every dtype on both back ends."""
    times: list[RoundTime] = []
    ratios: list[VerifyRatio] = []
    for dtype in dtypes:
        limits = measure.device_numbers(device, DTYPES[dtype])
        for layers in sorted({subject.layers for subject in SUBJECTS}):
            console.print(f"measuring: rounds and V(n) on random weights, {layers} layers, {dtype}", markup=False)
            model = random_model(layers, DTYPES[dtype], device)
            targets = [Target(model, capacity=PROMPT + NEW_TOKENS, backend=backend(name, device)) for name in BACKENDS]
            for subject in (each for each in SUBJECTS if each.layers == layers):
                rounds = _rounds([random_arm(subject.arm, target) for target in targets])
                draft_s, verify_s = floors(model, subject, limits)
                times += [RoundTime(subject, dtype, name, found, draft_s, verify_s) for name, found in rounds.items()]
            ratios += [verify_ratio(f"random, {layers} layers", dtype, target, PAST) for target in targets]
    return times, ratios


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


def _rounds(arms: Sequence[Arm]) -> dict[str, list[StepTrace]]:
    """Of a method on each back end, by its name."""
    found: dict[str, list[StepTrace]] = {arm.target.backend.name: [] for arm in arms}
    for arm in arms:
        _answer(arm)  # what is compiled once is compiled here
    with unhindered():
        for _ in range(ANSWERS):
            for arm in arms:
                found[arm.target.backend.name] += _answer(arm)
    return found


def _answer(arm: Arm) -> list[StepTrace]:
    return measure.rounds(arm.target, arm.drafter, arm.accept, measure.filler(PROMPT, arm.target.config.vocab_size), NEW_TOKENS)
