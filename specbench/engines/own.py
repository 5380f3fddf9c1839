"""specbench's own engine: a method of the methods table, run by the decode loop."""

import time
from typing import NamedTuple

import torch

from methods.core.acceptance import AcceptanceRule, Sampling
from methods.core.clock import clock_for
from methods.core.decode import DecodeResult, Drafter, decode, warm_up
from methods.core.target import Target
from specbench.engines.base import Answer
from specbench.store.records import Steps


class OwnEngine(NamedTuple):
    """An ``Engine`` that decodes by a method. Arms of the same back end share one target."""

    name: str
    target: Target
    drafter: Drafter
    accept: AcceptanceRule

    def warm_up(self, sampling: Sampling) -> None:
        """Compile or capture everything that an answer can need."""
        warm_up(self.target, self.drafter, self.accept, sampling)

    def answer(self, prompt: list[int], sampling: Sampling) -> Answer:
        """Decode one prompt, timed end to end."""
        clock = clock_for(self.target.device)
        synchronize(self.target.device)
        start = time.perf_counter()
        result = decode(self.target, self.drafter, self.accept, prompt, sampling, clock)
        synchronize(self.target.device)
        return Answer(result.tokens, result.stop, result.prefill_s, time.perf_counter() - start, _steps(result))

    def recover(self) -> None:
        """Clear what a failed answer left in the caches."""
        self.target.wipe()
        self.drafter.wipe()


def _steps(result: DecodeResult) -> Steps:
    steps = result.steps
    return Steps(
        tree_size=[step.tree_size for step in steps],
        depth=[step.depth for step in steps],
        accepted=[step.accepted for step in steps],
        emitted=[step.emitted for step in steps],
        draft_s=[step.draft_s for step in steps],
        verify_s=[step.verify_s for step in steps],
        commit_s=[step.commit_s for step in steps],
    )


def synchronize(device: torch.device) -> None:
    """Wait until the device is idle."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
