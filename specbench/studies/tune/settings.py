"""Which settings a method could run with: as many candidates for every method, and the largest tree, from which all are cut."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from methods import registry
from methods.core.errors import UserError
from methods.core.policies import GrownTree
from methods.core.training import MAX_DEPTH
from methods.core.weights import Trained
from methods.registry import METHODS, Resolved
from specbench.studies.tune.guess import Setting

CANDIDATES = 60  # settings looked at of every method; fewer only where its weights allow no more trees
MOST = 63  # drafts: 64 nodes with the root
WIDTHS = (2, 4, 10)
DEPTHS = 4  # choices of a depth
# Drafts of the timed settings: with the root they make sizes that no back end pads.
KNOTS = (3, 7, 31, 63)
GROWN_KNOT = 15

UNTUNABLE = {"vanilla": "drafts nothing", "recycling": "learns from the trees it had verified, which no recording of others' holds"}
TUNABLE = tuple(name for name in METHODS if name not in UNTUNABLE)


@dataclass(frozen=True)
class Space:
    """The trees of one method: static ones or chains of up to ``most`` drafts, or with ``depths`` grown ones."""

    most: int
    depths: tuple[int, ...] = ()

    @property
    def largest(self) -> Setting:
        return Setting(self.most, self.depths[-1], WIDTHS[-1]) if self.depths else Setting(self.most)

    def candidates(self) -> list[Setting]:
        if not self.depths:
            return [Setting(nodes) for nodes in spread(1, self.most, CANDIDATES)]
        shapes = [(depth, width) for depth in self.depths for width in WIDTHS]
        return [
            Setting(nodes, depth, width)
            for depth, width in shapes
            for nodes in spread(depth, GrownTree(self.most, depth, width).size - 1, CANDIDATES // len(shapes))
        ]

    def knots(self) -> list[Setting]:
        """The settings, four if there are as many, at which rounds are timed; between them their cost is interpolated."""
        if not self.depths:
            return [Setting(nodes) for nodes in sorted({min(nodes, self.most) for nodes in KNOTS})]
        ends = (self.depths[0], self.depths[-1])
        return [Setting(min(GROWN_KNOT, GrownTree(self.most, d, w).size - 1), d, w) for d in ends for w in (WIDTHS[0], WIDTHS[-1])]


def space_of(resolved: Resolved, trained: Trained | None) -> Space:
    """The trees that a method and its weights allow."""
    if "depth" not in registry.options(resolved.name) or getattr(resolved.config, "policy", "grown") != "grown":
        return Space(len(trained.choices(MOST)) or MOST if trained else MOST)
    deepest = getattr(trained.module.architecture, "depth", MAX_DEPTH - 1) if trained else MAX_DEPTH - 1
    deepest = max(deepest, resolved.config.depth)  # a layer that repeats drafts deeper than it was trained
    return Space(MOST, tuple(range(max(1, deepest - DEPTHS + 1), deepest + 1)))


def refuse(names: Sequence[str]) -> None:
    """Raise UserError for what is no method, a variant of one, or has no tree to tune."""
    for name in names:
        method, own = registry.split(name)
        registry.method_named(method)
        if own or ":" in name:
            raise UserError(f"tune takes methods, not variants such as {name!r}; pass --method {method}")
        if method not in TUNABLE:
            raise UserError(f"{method} {UNTUNABLE[method]}, so that there is nothing to tune; choose from {', '.join(TUNABLE)}")


def default_of(resolved: Resolved, space: Space) -> Setting:
    """What the method runs with on this device unless told otherwise."""
    config: Mapping[str, Any] = vars(resolved.config)
    return Setting(config["nodes"], config["depth"], config["width"]) if space.depths else Setting(config["nodes"])


def spread(low: int, high: int, count: int) -> list[int]:
    """``count`` different whole numbers from ``low`` to ``high``, each about as many times the one before; all where there are fewer."""
    if high - low + 1 <= count:
        return list(range(low, high + 1))
    found = np.geomspace(low, high, count).round().astype(int).tolist()
    for i in range(1, count):
        found[i] = max(found[i], found[i - 1] + 1)
    return [min(value, high - (count - 1 - i)) for i, value in enumerate(found)]
