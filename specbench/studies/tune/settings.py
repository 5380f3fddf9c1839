"""Tree settings of a method: the candidates, equally many for every method, and the largest tree, from which all are cut."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from methods import registry
from methods.core.errors import UserError
from methods.core.policies import GrownTree
from methods.core.training import LOOKAHEAD
from methods.core.weights import Trained
from methods.registry import METHODS, Resolved
from specbench.config.arm import Arm

CANDIDATES = 60  # settings of every method; fewer if its weights allow fewer trees
MOST = 63  # nodes, which makes trees of size 64
WIDTHS = (2, 4, 10)
DEPTHS = 4  # candidate depths
# Nodes of the timed settings: with the root they make tree sizes that no back end pads.
KNOTS = (3, 7, 31, 63)
GROWN_KNOT = 15

UNTUNABLE = {"vanilla": "drafts nothing", "recycling": "learns from its own verified trees, which a recording of other trees lacks"}
TUNABLE = tuple(name for name in METHODS if name not in UNTUNABLE)


class Setting(NamedTuple):
    """The tree options of a method; ``depth`` and ``width`` are 0 for a method without these options."""

    nodes: int
    depth: int = 0
    width: int = 0

    @property
    def options(self) -> dict[str, int]:
        """The options as ``--set`` takes them."""
        return {name: value for name, value in self._asdict().items() if value}

    def arm(self, method: str) -> str:
        """Return the name of an arm that runs a method at this setting, as in ``s4c:nodes=8,depth=3,width=2``."""
        return f"{method}:{','.join(f'{name}={value}' for name, value in self.options.items())}"


@dataclass(frozen=True)
class Space:
    """The trees of one method: static ones or chains of up to ``most`` nodes, or grown ones of some ``depths``."""

    most: int
    depths: tuple[int, ...] = ()

    @property
    def largest(self) -> Setting:
        """The setting of the largest tree."""
        return Setting(self.most, self.depths[-1], WIDTHS[-1]) if self.depths else Setting(self.most)

    def candidates(self) -> list[Setting]:
        """Return the settings to choose from."""
        if not self.depths:
            return [Setting(nodes) for nodes in spread(1, self.most, CANDIDATES)]
        shapes = [(depth, width) for depth in self.depths for width in WIDTHS]
        return [
            Setting(nodes, depth, width)
            for depth, width in shapes
            for nodes in spread(depth, GrownTree(self.most, depth, width).size - 1, CANDIDATES // len(shapes))
        ]

    def knots(self) -> list[Setting]:
        """Return the settings, at most four, at which steps are timed; costs are interpolated between them."""
        if not self.depths:
            return [Setting(nodes) for nodes in sorted({min(nodes, self.most) for nodes in KNOTS})]
        ends = (self.depths[0], self.depths[-1])
        return [Setting(min(GROWN_KNOT, GrownTree(self.most, d, w).size - 1), d, w) for d in ends for w in (WIDTHS[0], WIDTHS[-1])]


def space_of(resolved: Resolved, trained: Trained | None) -> Space:
    """Return the trees that a method and its weights allow."""
    if "depth" not in registry.options(resolved.name) or getattr(resolved.config, "policy", "grown") != "grown":
        return Space(len(trained.choices(MOST)) or MOST if trained else MOST)
    deepest = getattr(trained.module.architecture, "depth", trained.module.lookahead - 1) if trained else LOOKAHEAD - 1
    deepest = max(deepest, resolved.config.depth)  # a recurrent layer can draft deeper than it was trained
    return Space(MOST, tuple(range(max(1, deepest - DEPTHS + 1), deepest + 1)))


def check_tunable(names: Sequence[str]) -> None:
    """Raise UserError for a name that is no method, a variant of one, or a method without a tree to tune."""
    for name in names:
        arm = Arm.parse(name)
        registry.method_named(arm.method)
        if arm.options:
            raise UserError(f"tune takes methods, not variants such as {name!r}; pass --method {arm.method}")
        if arm.method not in TUNABLE:
            raise UserError(f"{arm.method} {UNTUNABLE[arm.method]}, so that there is nothing to tune; choose from {', '.join(TUNABLE)}")


def default_of(resolved: Resolved, space: Space) -> Setting:
    """Return the method's default setting on this device."""
    config: Mapping[str, Any] = vars(resolved.config)
    return Setting(config["nodes"], config["depth"], config["width"]) if space.depths else Setting(config["nodes"])


def spread(low: int, high: int, count: int) -> list[int]:
    """Return ``count`` different whole numbers from ``low`` to ``high`` that grow by about equal factors; all if there are fewer."""
    if high - low + 1 <= count:
        return list(range(low, high + 1))
    numbers = np.geomspace(low, high, count).round().astype(int).tolist()
    for i in range(1, count):
        numbers[i] = max(numbers[i], numbers[i - 1] + 1)
    return [min(value, high - (count - 1 - i)) for i, value in enumerate(numbers)]
