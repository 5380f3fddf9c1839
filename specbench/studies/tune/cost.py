"""Measurement of the cost of a step on this device: T(n) of the target, and the rest of each method's step at a few settings.

Costs in between are interpolated. T(n) is the time to score a tree of size n (root counted).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TypeVar

import numpy as np

from methods import registry
from methods.core.acceptance import Sampling
from methods.core.backend import Backend
from methods.core.decode import StepTrace
from methods.core.target import Target
from methods.core.weights import Trained
from methods.registry import Resolved
from specbench.engines.own import OwnEngine
from specbench.studies.base import decoded
from specbench.studies.roofline import measure
from specbench.studies.tune.settings import Setting
from specbench.targets import drafters

TREE_SIZES = (1, 2, 4, 8, 16, 32, 64)  # every further one would be compiled, and captured, for this alone
STEP_TOKENS = 48  # of the answers whose steps are timed
ANSWERS = 3

K = TypeVar("K")


@dataclass(frozen=True)
class VerifyCost:
    """T(n) at ``TREE_SIZES`` in seconds, linear in between. A tree costs what the size costs that the back end pads it to."""

    seconds: Mapping[int, float]
    backend: Backend

    def at(self, tree_size: int) -> float:
        """Return the seconds of scoring a tree."""
        sizes = sorted(self.seconds)
        return float(np.interp(self.backend.tree_size(tree_size), sizes, [self.seconds[size] for size in sizes]))


@dataclass(frozen=True)
class DraftCost:
    """Seconds of a step beside T(n) (drafting, acceptance, commit) at the timed settings, linear in between.

    Interpolated in depth and width for a method that has them, else in nodes.
    """

    seconds: Mapping[Setting, float]

    def at(self, setting: Setting) -> float:
        """Return the seconds at a setting."""
        if not setting.depth:
            return _between({timed.nodes: seconds for timed, seconds in self.seconds.items()}, setting.nodes)
        by_depth: dict[int, dict[int, float]] = {}
        for timed, seconds in self.seconds.items():
            by_depth.setdefault(timed.depth, {})[timed.width] = seconds
        return _between({depth: _between(by_width, setting.width) for depth, by_width in by_depth.items()}, setting.depth)


def verify_cost(target: Target, past: int) -> VerifyCost:
    """Measure T(n) after ``past`` committed tokens."""
    return VerifyCost(measure.curve(target, TREE_SIZES, past), target.backend)


def engine_at(setting: Setting, method: Resolved, target: Target, trained: Trained | None) -> OwnEngine:
    """Return the method at a setting, on the target's back end."""
    options = {name: str(value) for name, value in setting.options.items()}
    resolved = registry.resolve(method.name, options, target.device.type, target.backend.name)
    with drafters.with_next_step():
        return OwnEngine(setting.arm(method.name), target, *registry.build(resolved, target, trained))


def beside_verifying(verify: VerifyCost, engines: Mapping[K, OwnEngine], prompts: Sequence[list[int]]) -> dict[K, float]:
    """Return each engine's median seconds of a step without T(n), over the later halves of a few answers.

    Engines are warmed up, then take turns, so that drift of the machine affects them alike.
    """
    rests: dict[K, list[float]] = {name: [] for name in engines}
    for engine in engines.values():
        engine.warm_up(Sampling(STEP_TOKENS))
        _rests(verify, engine, prompts[0])
    for prompt in prompts[:ANSWERS]:
        for name, engine in engines.items():
            rests[name] += _rests(verify, engine, prompt)
    return {name: median(seconds) for name, seconds in rests.items()}


def _rests(verify: VerifyCost, engine: OwnEngine, prompt: list[int]) -> list[float]:
    steps = decoded(engine, prompt, Sampling(STEP_TOKENS)).steps
    return [step.total_s - verify.at(_scored(step, engine)) for step in steps[len(steps) // 2 :]]


def _scored(step: StepTrace, engine: OwnEngine) -> int:
    """Return the size of a step's tree with its padding, which the trace does not count."""
    return min(size for size in engine.drafter.sizes if size >= step.tree_size)


def _between(points: Mapping[int, float], at: int) -> float:
    places = sorted(points)
    return float(np.interp(at, places, [points[place] for place in places]))
