"""How a drafter is trained, and on what."""

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from methods.core.errors import UserError, unknown
from methods.core.training import MAX_DEPTH
from specbench.train.data.corpus import Source
from specbench.train.loop import SCHEDULES

CORPUS_SHARE = 1 / 3  # of the budget spent on the corpus before the target's own text


@dataclass(frozen=True)
class Recipe:
    """The defaults are what ships was trained with. A step reads ``accumulate`` parts in each process, a part ``rows`` windows
    of ``seq`` tokens; from a part it learns at a quarter of its places at most.

    ``regenerate`` prompts of each category are answered by the target itself, in ``max_new_tokens`` tokens at most, for the
    last two thirds of the budget; 0 leaves the whole budget to the corpus as it is. Raises UserError for what makes no training.
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
        least = {"lr": 0.0, "seq": MAX_DEPTH + 4, "rows": 1, "accumulate": 1, "regenerate": 0, "max_new_tokens": 1, "temperature": 0.0}
        for name, bound in least.items():
            if not bound <= getattr(self, name) < math.inf:
                raise UserError(f"--{name.replace('_', '-')} is {getattr(self, name)}; it must be at least {bound}")
        if self.schedule not in SCHEDULES:
            raise unknown("value of --schedule", self.schedule, SCHEDULES)

    @property
    def positions(self) -> int:
        """Places of a part that are learnt from, at most."""
        return self.seq * self.rows // 4

    def parts(self, processes: int) -> int:
        """Of a step, in all processes."""
        return self.accumulate * processes

    def facts(self, processes: int) -> dict[str, Any]:
        """What the weights depend on: how the parts of a step are shared out is not among it."""
        return {**asdict(self), "accumulate": self.parts(processes)}

    def step_tokens(self, processes: int) -> int:
        return self.seq * self.rows * self.parts(processes)

    def steps(self, processes: int) -> tuple[int, int]:
        """Steps on the corpus, and then on the target's own text. Raises UserError where not one fits the budget."""
        steps = self.tokens // self.step_tokens(processes)
        if not steps:
            raise UserError(f"--tokens is {self.tokens:,}, less than a step's {self.step_tokens(processes):,}; raise it, or lower --rows")
        corpus = int(steps * CORPUS_SHARE) if self.regenerate else steps
        return corpus, steps - corpus


@dataclass(frozen=True)
class Job:
    """What to train from what, and where to leave it: weights in the file ``out``, work to resume from in the folder ``work``."""

    kind: str
    target: str
    source: Source
    out: Path
    work: Path
    options: dict[str, str] = field(default_factory=dict)  # of the drafter's architecture, as typed
    recipe: Recipe = Recipe()
    device: str = "cpu"
    device_map: str | None = None  # this and the next four as in targets.load
    revision: str | None = None
    template: str | None = None
    system_prompt: str | None = None
    thinking: str | None = None
    cache_features: bool = False
    log_dir: Path | None = None
