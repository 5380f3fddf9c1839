"""What a whole round of a large tree takes, beside what it needs at the least and what the reference code takes."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, NamedTuple

from methods.core.decode import StepTrace
from specbench.studies.bench.finding import MET, MISSED, Quartiles
from specbench.studies.profiling.split import Split
from specbench.util.table import TextTable, number, percent

PARTS = ("draft_s", "verify_s", "commit_s")
NAMED_OPS = 5


class Subject(NamedTuple):
    """A method on the random target with ``layers``, and what the reference code took for its round, on another machine."""

    what: str
    arm: str
    layers: int
    reference_ms: float

    @property
    def wanted_s(self) -> float:
        """Half of the reference."""
        return self.reference_ms / 2e3


@dataclass(frozen=True)
class RoundTime:
    """One subject in one dtype on one back end; the floors are the cost model's seconds on this device."""

    subject: Subject
    dtype: str
    backend: str
    rounds: Sequence[StepTrace]
    draft_floor_s: float
    verify_floor_s: float
    split: Split | None = None  # of one more answer, under the profiler

    @property
    def quartiles(self) -> Quartiles:
        return Quartiles.of([sum(getattr(each, part) for part in PARTS) for each in self.rounds])

    @property
    def floor_s(self) -> float:
        return self.draft_floor_s + self.verify_floor_s

    @property
    def verdict(self) -> str:
        return MET if self.quartiles.median <= self.subject.wanted_s else MISSED

    def part_s(self, name: str) -> float:
        """The median of one of ``PARTS``."""
        return median(getattr(each, name) for each in self.rounds)

    @property
    def furthest(self) -> str:
        """The phase that takes most above its floor."""
        return "draft" if self.part_s("draft_s") - self.draft_floor_s > self.part_s("verify_s") - self.verify_floor_s else "verify"

    def row(self) -> dict[str, Any]:
        """For the CSV."""
        low, middle, high = (1e3 * each for each in self.quartiles)
        return {
            "what": f"round of {self.subject.what}, {self.subject.layers} layers",
            "dtype": self.dtype,
            "backend": self.backend,
            "median": middle,
            "low": low,
            "high": high,
            "count": len(self.rounds),
            "unit": "ms",
            "wanted": 1e3 * self.subject.wanted_s,
            "verdict": self.verdict,
            "reference": self.subject.reference_ms,
            "floor": 1e3 * self.floor_s,
            "share_of_floor": 1e3 * self.floor_s / middle,
            **{part.replace("_s", "_ms"): 1e3 * self.part_s(part) for part in PARTS},
        }

    def cells(self) -> list[str]:
        low, middle, high = (1e3 * each for each in self.quartiles)
        floor_ms, wanted_ms = 1e3 * self.floor_s, 1e3 * self.subject.wanted_s
        who = [self.subject.what, str(self.subject.layers), self.dtype, self.backend]
        times = [number(middle), f"{low:.2f} to {high:.2f}", *(number(1e3 * self.part_s(part)) for part in PARTS)]
        floors = [number(1e3 * self.draft_floor_s), number(1e3 * self.verify_floor_s), percent(floor_ms / middle)]
        return [*who, *times, *floors, number(self.subject.reference_ms, 1), f"at most {wanted_ms:.2f}", self.verdict]


def table(times: Sequence[RoundTime]) -> TextTable:
    who = ["Method", "Layers", "dtype", "Back end"]
    measured = ["Round ms", "Quartiles", "Draft", "Verify", "Commit"]
    floors = ["Draft floor", "Verify floor", "Floor's share"]
    headers = [*who, *measured, *floors, "Reference ms", "Wanted", "Verdict"]
    return TextTable("Milliseconds of a whole round on random weights", headers, [each.cells() for each in times])


def ops(split: Split, phase: str) -> str:
    """The ops that take most of a phase: milliseconds and calls, a round."""
    found = split.ops.get(phase, [])[:NAMED_OPS]
    return ", ".join(f"{op.name} {number(1e3 * op.seconds / split.rounds)} ({number(op.calls / split.rounds, 0)})" for op in found)


def ops_table(times: Sequence[RoundTime]) -> TextTable:
    """What drafting, whose floor is furthest below what it takes, spends its time on."""
    rows = [
        [
            *(each.subject.what, str(each.subject.layers), each.dtype, each.backend),
            *(number(1e3 * each.part_s("draft_s")), number(1e3 * each.split.busy["draft"] / each.split.rounds)),
            ops(each.split, "draft"),
        ]
        for each in times
        if each.split
    ]
    headers = ["Method", "Layers", "dtype", "Back end", "Draft ms", "In ops, profiled", f"The {NAMED_OPS} that take most"]
    return TextTable("Drafting under the torch profiler", headers, rows)
