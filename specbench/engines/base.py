"""An answer as a run records it, and who can give one: specbench's own arms and other engines alike."""

from dataclasses import dataclass
from typing import Protocol

from methods.core.acceptance import Sampling
from specbench.store.records import Drafting, Steps


@dataclass(frozen=True)
class Answer:
    """What whoever answered tells of it; fields mean what they mean in a ``Record``."""

    output_ids: list[int]
    stop: str
    prefill_s: float
    total_s: float
    steps: Steps
    timing: str = "parts"
    prefill_tokens: int = 1
    tokens: int | None = None
    output_text: str | None = None  # None: that of the ids
    drafting: Drafting | None = None
    elsewhere: bool = False  # in a process whose memory cannot be read from here


class Answerer(Protocol):
    """Answers under a name, one prompt at a time."""

    @property
    def name(self) -> str: ...

    def warm(self, sampling: Sampling) -> None:
        """Does once what no answer should have to wait for."""
        ...

    def answer(self, prompt: list[int], sampling: Sampling) -> Answer:
        """Timed end to end by the host's clock, the device idle at both ends.

        Raises RuntimeError, FloatingPointError or ContextOverflow for what is wrong with this answer alone.
        """
        ...

    def recover(self) -> None:
        """Makes it fit for another answer after one that failed."""
        ...
