"""The interface of engines, the programs that answer one prompt at a time, and of their answers."""

from dataclasses import dataclass
from typing import Protocol

from methods.core.acceptance import Sampling
from specbench.store.records import Drafting, Steps, Timing


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
