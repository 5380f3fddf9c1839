"""What a round costs on this device: T(n) of the target, and all else of each method's round at a few settings, interpolated."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TypeVar

import numpy as np

from methods import registry
from methods.core.acceptance import AcceptanceRule, Sampling
from methods.core.backend import Backend
from methods.core.clock import clock_for
from methods.core.decode import Drafter, StepTrace, decode, warm
from methods.core.target import Target
from methods.core.weights import Trained
from methods.registry import Resolved
from specbench.studies.roofline import measure
from specbench.studies.tune.guess import Setting

SIZES = (1, 2, 4, 8, 16, 32, 64)  # every further one would be compiled, and captured, for this alone
ROUND_TOKENS = 48  # of the answers whose rounds are timed
ANSWERS = 3

A = TypeVar("A")


@dataclass(frozen=True)
class Verifying:
    """T(n) at ``SIZES``, seconds; linear in between. A tree costs what the size does that the back end pads it to."""

    seconds: Mapping[int, float]
    backend: Backend

    def of(self, nodes: int) -> float:
        sizes = sorted(self.seconds)
        return float(np.interp(self.backend.tree_size(nodes), sizes, [self.seconds[size] for size in sizes]))


@dataclass(frozen=True)
class Drafting:
    """Seconds of a round beside T(n) (drafting, acceptance, commit) at the settings timed; linear in between.

    In depth and width where the method has them, else in nodes.
    """

    seconds: Mapping[Setting, float]

    def of(self, setting: Setting) -> float:
        if not setting.depth:
            return _between({timed.nodes: seconds for timed, seconds in self.seconds.items()}, setting.nodes)
        by_depth: dict[int, dict[int, float]] = {}
        for timed, seconds in self.seconds.items():
            by_depth.setdefault(timed.depth, {})[timed.width] = seconds
        return _between({depth: _between(by_width, setting.width) for depth, by_width in by_depth.items()}, setting.depth)


def verifying(target: Target, past: int) -> Verifying:
    return Verifying(measure.curve(target, SIZES, past), target.backend)


def built(target: Target, method: Resolved, trained: Trained | None, setting: Setting) -> tuple[Drafter, AcceptanceRule]:
    """The method at a setting, on the target's back end."""
    options = {name: str(value) for name, value in setting.options.items()}
    return registry.build(registry.resolve(method.name, options, target.device.type, target.backend.name), target, trained)


def beside(
    verifying: Verifying, target: Target, arms: Mapping[A, tuple[Drafter, AcceptanceRule]], asked: Sequence[list[int]]
) -> dict[A, float]:
    """Of each arm the median seconds of a round less T(n), over the later halves of a few answers.

    Arms take turns, so that drift of the machine hits them alike; each is warm before.
    """
    found: dict[A, list[float]] = {name: [] for name in arms}
    for arm in arms.values():
        warm(target, *arm, Sampling(ROUND_TOKENS))
        _rests(verifying, target, *arm, asked[0])
    for prompt in asked[:ANSWERS]:
        for name, arm in arms.items():
            found[name] += _rests(verifying, target, *arm, prompt)
    return {name: median(seconds) for name, seconds in found.items()}


def _rests(verifying: Verifying, target: Target, drafter: Drafter, accept: AcceptanceRule, prompt: list[int]) -> list[float]:
    steps = decode(target, drafter, accept, prompt, Sampling(ROUND_TOKENS), clock_for(target.device)).steps
    return [each.draft_s + each.verify_s + each.commit_s - verifying.of(_scored(each, drafter)) for each in steps[len(steps) // 2 :]]


def _scored(step: StepTrace, drafter: Drafter) -> int:
    """The size of a round's tree with its padding, which a trace leaves out."""
    return min(size for size in drafter.sizes if size >= step.nodes)


def _between(points: Mapping[int, float], at: int) -> float:
    places = sorted(points)
    return float(np.interp(at, places, [points[place] for place in places]))
