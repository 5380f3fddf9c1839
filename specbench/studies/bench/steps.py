"""Steps with large trees on random weights: their times, the device's limits, and the reference code's times.

Random drafters are accepted almost never, so a step shows what a method costs, not what it gains.
"""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, NamedTuple

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from methods import registry
from methods.core.decode import StepTrace
from methods.core.target import Target
from methods.core.weights import Trained
from specbench.config.arm import Arm
from specbench.engines.own import OwnEngine
from specbench.store.records import STEP_PARTS
from specbench.studies.base import ms, table
from specbench.studies.bench.finding import MET, MISSED, Quartiles
from specbench.studies.profiling.split import Split
from specbench.util.text import TextTable, number, percent

NAMED_OPS = 5
TREE_SIZES = (8, 64)  # of V(n)
# Rank accuracies of Medusa's heads. They only decide the tree, whose 63 likeliest drafts are four deep.
RANK_ACCURACY = ((0.6, 0.15, 0.08, 0.05, 0.03, 0.02, 0.015, 0.01, 0.008, 0.006),) * 4


class Subject(NamedTuple):
    """A method on the random target with ``layers``, and the time of a step of its reference code on another machine."""

    what: str
    arm: str
    layers: int
    reference_ms: float

    @property
    def wanted_s(self) -> float:
        """The bound for a step: half of the reference code's time."""
        return self.reference_ms / 2e3


SUBJECTS = (
    Subject("Medusa, 63 nodes", "medusa:nodes=63", 6, 17.0),
    Subject("EAGLE-2, 59 nodes", "eagle2:nodes=59,depth=5,width=10", 6, 31.7),
    Subject("EAGLE-2, 59 nodes", "eagle2:nodes=59,depth=5,width=10", 8, 31.7),
)


def random_model(layers: int, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """Return a target 384 wide, 12.2 M parameters with 6 layers; its weights are the same in every dtype."""
    config = LlamaConfig(
        vocab_size=2000,
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=layers,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=1024,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM._from_config(config, attn_implementation="sdpa", dtype=torch.float32)
    model.to(device, dtype)
    return model.eval().requires_grad_(False)


def random_engine(name: str, target: Target) -> OwnEngine:
    """Return an arm with random weights, the same in every dtype and on every back end."""
    arm = Arm.parse(name)
    resolved = registry.resolve(arm.method, arm.options, target.device.type, target.backend.name, arm=name)
    code = importlib.import_module(resolved.method.module)
    torch.manual_seed(1)
    module = code.Module(target.config, code.Architecture()).to(target.device, target.dtype).eval().requires_grad_(False)
    return OwnEngine(name, target, *registry.build(resolved, target, Trained(module, RANK_ACCURACY, sha256="")))


@dataclass(frozen=True)
class StepTimes:
    """The steps of one subject in one dtype on one back end; the floors are the cost model's seconds on this device."""

    subject: Subject
    dtype: str
    backend: str
    steps: Sequence[StepTrace]
    draft_floor_s: float
    verify_floor_s: float
    split: Split | None = None  # of one more answer, under the profiler

    @property
    def quartiles(self) -> Quartiles:
        """The quartiles of the seconds of a step."""
        return Quartiles.of([step.total_s for step in self.steps])

    @property
    def floor_s(self) -> float:
        """The least seconds that drafting and verifying need on this device."""
        return self.draft_floor_s + self.verify_floor_s

    @property
    def verdict(self) -> str:
        """Whether the median keeps the bound: ``MET`` or ``MISSED``."""
        return MET if self.quartiles.median <= self.subject.wanted_s else MISSED

    def part_s(self, name: str) -> float:
        """Return the median of one of ``STEP_PARTS``."""
        return median(getattr(step, name) for step in self.steps)

    @property
    def furthest(self) -> str:
        """The phase, draft or verify, that takes most above its floor."""
        return "draft" if self.part_s("draft_s") - self.draft_floor_s > self.part_s("verify_s") - self.verify_floor_s else "verify"

    @property
    def names(self) -> dict[str, str]:
        """The cells that name the subject."""
        return {"Method": self.subject.what, "Layers": str(self.subject.layers), "dtype": self.dtype, "Back end": self.backend}

    def row(self) -> dict[str, Any]:
        """Return the times as a row of the CSV file."""
        low, middle, high = (1e3 * seconds for seconds in self.quartiles)
        return {
            "what": f"step of {self.subject.what}, {self.subject.layers} layers",
            "dtype": self.dtype,
            "backend": self.backend,
            "median": middle,
            "low": low,
            "high": high,
            "count": len(self.steps),
            "unit": "ms",
            "wanted": 1e3 * self.subject.wanted_s,
            "verdict": self.verdict,
            "reference": self.subject.reference_ms,
            "floor": 1e3 * self.floor_s,
            "share_of_floor": 1e3 * self.floor_s / middle,
            **{part.replace("_s", "_ms"): 1e3 * self.part_s(part) for part in STEP_PARTS},
        }

    def cells(self) -> dict[str, str]:
        """Return the times as a row of the table."""
        low, middle, high = self.quartiles
        return {
            **self.names,
            "Step ms": ms(middle),
            "Quartiles": f"{1e3 * low:.2f} to {1e3 * high:.2f}",
            "Draft": ms(self.part_s("draft_s")),
            "Verify": ms(self.part_s("verify_s")),
            "Commit": ms(self.part_s("commit_s")),
            "Draft floor": ms(self.draft_floor_s),
            "Verify floor": ms(self.verify_floor_s),
            "Floor's share": percent(self.floor_s / middle),
            "Reference ms": number(self.subject.reference_ms, 1),
            "Wanted": f"at most {1e3 * self.subject.wanted_s:.2f}",
            "Verdict": self.verdict,
        }


class VerifyTimes(NamedTuple):
    """The seconds of scoring trees on one target, by tree size: those of a plain step (1) and of ``TREE_SIZES``."""

    target: str
    dtype: str
    backend: str
    past: int
    seconds: Mapping[int, float]

    def rows(self) -> list[dict[str, Any]]:
        """Return V(n) as rows of the CSV file."""
        shared = {"dtype": self.dtype, "backend": self.backend, "unit": "ratio"}
        return [{"what": f"V({n}) of {self.target}", "median": self.seconds[n] / self.seconds[1], **shared} for n in TREE_SIZES]

    def cells(self) -> dict[str, str]:
        """Return V(n) as a row of the table."""
        names = {"Target": self.target, "dtype": self.dtype, "Back end": self.backend, "Past tokens": str(self.past)}
        ratios = {f"V({n})": number(self.seconds[n] / self.seconds[1]) for n in TREE_SIZES}
        return {**names, "T(1) ms": ms(self.seconds[1]), **ratios}


def steps_table(times: Sequence[StepTimes]) -> TextTable:
    """Return the table of steps."""
    return table("Milliseconds of a whole step on random weights", [one.cells() for one in times])


def verify_table(times: Sequence[VerifyTimes]) -> TextTable:
    """Return the table of V(n)."""
    return table("Time of verifying a tree of size n, in plain steps", [one.cells() for one in times])


def slowest_ops(split: Split, phase: str) -> str:
    """Return the ops that take most of a phase, with milliseconds and calls a step."""
    ops = split.ops.get(phase, [])[:NAMED_OPS]
    return ", ".join(f"{op.name} {ms(op.seconds / split.steps)} ({number(op.calls / split.steps, 0)})" for op in ops)


def ops_table(times: Sequence[StepTimes]) -> TextTable:
    """Return the table of the ops that drafting, the phase furthest from its floor, spends its time on."""
    rows = [
        {
            **one.names,
            "Draft ms": ms(one.part_s("draft_s")),
            "In ops, profiled": ms(one.split.busy["draft"] / one.split.steps),
            f"The {NAMED_OPS} slowest": slowest_ops(one.split, "draft"),
        }
        for one in times
        if one.split
    ]
    return table("Drafting under the torch profiler", rows)
