"""The interface of engines, the programs that answer one prompt at a time, and of their answers."""

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from methods.core.acceptance import Sampling
from specbench.store.manifest import ArmFacts
from specbench.store.records import Drafting, Steps, Timing

SHARED_WITH = "sps"  # the method whose draft model is used if an engine is given none of its own


@dataclass(frozen=True)
class Answer:
    """One answer, as its engine reports it. Fields mean what they mean in a ``Record``."""

    output_ids: list[int]
    stop: str
    prefill_s: float
    total_s: float
    steps: Steps
    timing: Timing = "parts"
    prefill_tokens: int = 1
    tokens: int | None = None
    output_text: str | None = None  # None: the text of the ids
    drafting: Drafting | None = None
    remote: bool = False  # computed by another process, whose memory and device are unknown here


class Engine(Protocol):
    """A program that answers the prompts of one arm, one at a time."""

    @property
    def name(self) -> str:
        """The arm's name."""
        ...

    def warm_up(self, sampling: Sampling) -> None:
        """Do once what no answer should wait for: compile, capture, allocate."""
        ...

    def answer(self, prompt: list[int], sampling: Sampling) -> Answer:
        """Answer one prompt, timed end to end by the host's clock with the device idle at both ends.

        Raises RuntimeError, FloatingPointError, or ContextOverflow for a failure of this answer alone.
        """
        ...

    def recover(self) -> None:
        """Get ready for another answer after one that failed."""
        ...


@dataclass(frozen=True)
class ResolvedEngine:
    """The arm of an engine other than specbench's own, with every option settled."""

    arm: str
    name: str
    title: str
    config: Any  # an object of the engine's options class
    drafter: bool = False  # whether --drafter can name a draft model for it

    @property
    def drafter_keys(self) -> set[str]:
        """The names by which --drafter may give it a draft model."""
        return {self.arm, self.name, SHARED_WITH} if self.drafter else set()


class BuiltEngine(NamedTuple):
    """An engine that is ready to answer, and its facts for the manifest."""

    engine: Engine
    facts: ArmFacts
