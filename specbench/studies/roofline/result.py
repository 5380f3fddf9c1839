"""The result of `specbench roofline`: conditions and measurements, and the rows that are derived from them."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import pandas as pd

from specbench.studies.base import Conditions
from specbench.studies.roofline.cost import KNEE, Cost, Device, knee

VERIFY, DRAFT = "verify", "draft"  # kinds of rows


class Verified(NamedTuple):
    """The time to score a tree of ``nodes`` drafts; 0 is a plain step."""

    nodes: int
    cost: Cost
    seconds: float


class Drafted(NamedTuple):
    """A method's step, as medians of seconds; ``cost`` is of drafting alone."""

    arm: str
    title: str
    nodes: int  # drafts of its tree
    cost: Cost
    draft_s: float
    verify_s: float
    commit_s: float

    @property
    def step_s(self) -> float:
        """The seconds of the whole step."""
        return self.draft_s + self.verify_s + self.commit_s


@dataclass(frozen=True)
class Roofline:
    """The measurements of one target on one back end, and the device's limit for each."""

    conditions: Conditions
    past: int  # committed tokens before the trees
    device: Device
    verified: Sequence[Verified]  # the plain step first
    drafted: Sequence[Drafted]  # vanilla first
    limit: dict[int, float]  # the cost model's seconds by drafted nodes, from 0 to the most measured
    load_s: float  # until the target and its drafters were in memory
    prepare_s: float  # until everything had run once; includes compiling and capturing
    peak_bytes: int

    @property
    def plain_s(self) -> float:
        """The seconds of scoring the root alone: T(1)."""
        return self.verified[0].seconds

    def step_cost(self, drafted: Drafted) -> float:
        """Return the step cost R: a method's whole step over vanilla's."""
        return drafted.step_s / self.drafted[0].step_s

    @property
    def knee(self) -> int:
        """The most drafted nodes that are verified nearly for free, as measured."""
        return knee({tree.nodes: tree.seconds / self.plain_s for tree in self.verified})

    @property
    def knee_at_limit(self) -> int:
        """The most drafted nodes that are verified nearly for free, by the cost model."""
        return knee({nodes: seconds / self.limit[0] for nodes, seconds in self.limit.items()})

    def frame(self) -> pd.DataFrame:
        """Return one row for each tree, with V(n), and one for each method, with the step cost R."""
        rows = [
            {
                "what": VERIFY,
                "arm": "",
                "nodes": tree.nodes,
                "tree_size": tree.nodes + 1,
                **self._against_limit(tree.cost, tree.seconds),
                "v": tree.seconds / self.plain_s,
                "v_predicted": tree.cost.seconds(self.device) / self.limit[0],
            }
            for tree in self.verified
        ]
        rows += [
            {
                "what": DRAFT,
                "arm": drafted.arm,
                "nodes": drafted.nodes,
                "tree_size": drafted.nodes + 1,
                **self._against_limit(drafted.cost, drafted.draft_s),
                "verify_ms": 1e3 * drafted.verify_s,
                "commit_ms": 1e3 * drafted.commit_s,
                "step_cost": self.step_cost(drafted),
            }
            for drafted in self.drafted
        ]
        return pd.DataFrame(rows)

    def json(self) -> dict[str, Any]:
        """Return everything, derived rows included; what a row lacks is null."""
        frame = self.frame().astype(object)
        return {
            **asdict(self.conditions),
            "past": self.past,
            "limits": self.device._asdict(),
            "knee": {"at_most": KNEE, "nodes": self.knee, "nodes_at_limit": self.knee_at_limit},
            "load_s": self.load_s,
            "prepare_s": self.prepare_s,
            "peak_bytes": self.peak_bytes,
            "rows": frame.where(frame.notna(), None).to_dict("records"),
        }

    def _against_limit(self, cost: Cost, seconds: float) -> dict[str, Any]:
        predicted = cost.seconds(self.device)
        return {
            "bytes": cost.bytes,
            "gflop": cost.flops / 1e9,
            "predicted_ms": 1e3 * predicted,
            "measured_ms": 1e3 * seconds,
            "share_of_limit": predicted / seconds,
            "bound_by": cost.bound(self.device) if predicted else "",
        }
