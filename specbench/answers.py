"""An answer as a run records it, and who can give one: specbench's own arms and other engines alike."""

import time
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch

from methods.core.acceptance import AcceptanceRule, Sampling
from methods.core.clock import clock_for
from methods.core.decode import DecodeResult, Drafter, decode, warm
from methods.core.target import Target
from specbench.records import Drafting, Steps


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


class Arm(NamedTuple):
    """One method, ready to decode: an ``Answerer``. Arms of one back end share their target."""

    name: str
    target: Target
    drafter: Drafter
    accept: AcceptanceRule

    def warm(self, sampling: Sampling) -> None:
        warm(self.target, self.drafter, self.accept, sampling)

    def answer(self, prompt: list[int], sampling: Sampling) -> Answer:
        clock = clock_for(self.target.device)
        synchronize(self.target.device)
        start = time.perf_counter()
        result = decode(self.target, self.drafter, self.accept, prompt, sampling, clock)
        synchronize(self.target.device)
        return Answer(result.tokens, result.stop, result.prefill_s, time.perf_counter() - start, _steps(result))

    def recover(self) -> None:
        for cache in self.target.caches:
            cache.wipe()


def _steps(result: DecodeResult) -> Steps:
    steps = result.steps
    return Steps(
        nodes=[step.nodes for step in steps],
        depth=[step.depth for step in steps],
        accepted=[step.accepted for step in steps],
        emitted=[step.emitted for step in steps],
        draft_s=[step.draft_s for step in steps],
        verify_s=[step.verify_s for step in steps],
        commit_s=[step.commit_s for step in steps],
    )


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
