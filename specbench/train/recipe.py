"""A drafter training's settings: the recipe, and the job that applies it."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from methods.core.errors import UserError, unknown
from specbench.train.data.corpus import Source
from specbench.train.loop import SCHEDULES

CORPUS_SHARE = 1 / 3  # of the token budget, spent on the corpus before the target's own text


@dataclass(frozen=True)
class Recipe:
    """The hyperparameters of a drafter's training. The defaults are those of the shipped drafters.

    In an optimizer step each process reads ``accumulate`` micro-batches of ``rows`` windows of ``seq``
    tokens, and learns from a quarter of their positions at most. The target itself answers
    ``regenerate`` prompts of each category, in ``max_new_tokens`` tokens at most; the last two thirds of
    the budget are spent on these answers. With 0 the whole budget goes to the corpus. Raises UserError
    for settings that cannot be trained with.
    """

    tokens: int = 8_000_000
    lr: float = 4e-3
    schedule: str = "wsd"
    seq: int = 1024
    rows: int = 2
    accumulate: int = 1
    regenerate: int = 480
    max_new_tokens: int = 160
    temperature: float = 0.0

    def __post_init__(self) -> None:
        least = {"lr": 0.0, "seq": 1, "rows": 1, "accumulate": 1, "regenerate": 0, "max_new_tokens": 1, "temperature": 0.0}
        for name, bound in least.items():
            if not bound <= getattr(self, name) < math.inf:
                raise UserError(f"--{name.replace('_', '-')} is {getattr(self, name)}; it must be at least {bound}")
        if self.schedule not in SCHEDULES:
            raise unknown("value of --schedule", self.schedule, SCHEDULES)

    @property
    def positions(self) -> int:
        """The largest number of positions of a micro-batch that are learnt from."""
        return self.seq * self.rows // 4

    def micro_batches(self, processes: int) -> int:
        """Return the number of micro-batches in an optimizer step, over all processes."""
        return self.accumulate * processes

    def determining_settings(self, processes: int) -> dict[str, Any]:
        """Return the settings that determine the weights; how processes share the micro-batches does not."""
        return {**asdict(self), "accumulate": self.micro_batches(processes)}

    def step_tokens(self, processes: int) -> int:
        """Return the number of tokens read in an optimizer step, over all processes."""
        return self.seq * self.rows * self.micro_batches(processes)

    def steps(self, processes: int) -> tuple[int, int]:
        """Return the number of steps on the corpus and on the target's own text. Raises UserError for less than one in all."""
        steps = self.tokens // self.step_tokens(processes)
        if not steps:
            raise UserError(f"--tokens is {self.tokens:,}, less than a step's {self.step_tokens(processes):,}; raise it, or lower --rows")
        corpus = int(steps * CORPUS_SHARE) if self.regenerate else steps
        return corpus, steps - corpus


@dataclass(frozen=True)
class Job:
    """A drafter to train: its kind, target and data, the file ``out`` for its weights, and a folder to resume from."""

    kind: str
    target: str
    source: Source
    out: Path
    work: Path
    options: dict[str, str] = field(default_factory=dict)  # of the drafter's architecture, as typed
    recipe: Recipe = Recipe()
    device: str = "cpu"
    device_map: str | None = None  # this and the next five as in targets.load
    revision: str | None = None
    template: str | None = None
    system_prompt: str | None = None
    thinking: str | None = None
    stop: Sequence[str] = ()
    cache_features: bool = False
    log_dir: Path | None = None
