"""What ``specbench roofline`` finds: facts and measurements, and the rows that are derived from them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pandas as pd

from specbench.studies.roofline.cost import KNEE, Cost, Device, knee

VERIFY, DRAFT = "verify", "draft"  # what a row is about


class Verified(NamedTuple):
    """Scoring a tree of ``nodes``; 1 is a plain step."""

    nodes: int
    cost: Cost
    seconds: float


class Drafted(NamedTuple):
    """A method's round, medians of seconds; ``cost`` is drafting's alone."""

    method: str
    title: str
    nodes: int  # of its tree, root included
    cost: Cost
    draft_s: float
    verify_s: float
    commit_s: float

    @property
    def round_s(self) -> float:
        return self.draft_s + self.verify_s + self.commit_s


@dataclass(frozen=True)
class Roofline:
    facts: dict[str, Any]  # target, its note and parameters, dtype, device, backend, past, environment, git, argv, created
    device: Device
    verified: Sequence[Verified]  # 1 node first
    drafted: Sequence[Drafted]  # vanilla first
    limit: dict[int, float]  # the cost model's T(n) in seconds, for every n up to the largest measured
    load_s: float  # until the target and its drafters were in memory
    prepare_s: float  # until everything had run once: compiling and capturing, where the back end does
    peak_bytes: int

    @property
    def plain_s(self) -> float:
        return self.verified[0].seconds

    def round_cost(self, each: Drafted) -> float:
        """R, as ``metrics.round_cost`` has it: a whole round over vanilla's whole round."""
        return each.round_s / self.drafted[0].round_s

    @property
    def knee(self) -> int:
        return knee({each.nodes: each.seconds / self.plain_s for each in self.verified})

    @property
    def knee_at_limit(self) -> int:
        return knee({nodes: seconds / self.limit[1] for nodes, seconds in self.limit.items()})

    def frame(self) -> pd.DataFrame:
        """One row a tree size and one a drafter; V(n) of trees, and the round's cost R of methods."""
        rows = [
            {
                "what": VERIFY,
                "method": "",
                "nodes": each.nodes,
                **self._against_limit(each.cost, each.seconds),
                "v": each.seconds / self.plain_s,
                "v_predicted": each.cost.seconds(self.device) / self.limit[1],
            }
            for each in self.verified
        ]
        rows += [
            {
                "what": DRAFT,
                "method": each.method,
                "nodes": each.nodes,
                **self._against_limit(each.cost, each.draft_s),
                "verify_ms": 1e3 * each.verify_s,
                "commit_ms": 1e3 * each.commit_s,
                "round_cost": self.round_cost(each),
            }
            for each in self.drafted
        ]
        return pd.DataFrame(rows)

    def json(self) -> dict[str, Any]:
        """Everything, derived rows included; what a row lacks is null."""
        frame = self.frame().astype(object)
        return {
            **self.facts,
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
