"""Labels on the parts of a round, put around target and drafter from outside: the decode loop knows nothing of them."""

from collections.abc import Sequence
from typing import cast

import torch
from torch.profiler import record_function

from methods.core.acceptance import Accepted, Sampling
from methods.core.decode import Drafter
from methods.core.target import Scores, Target
from methods.core.tree import DraftTree

ANSWER, DRAFT, COMMIT = "specbench.answer", "specbench.draft", "specbench.commit"
SCORE, OBSERVE = "specbench.score", "specbench.observe"  # for the reader of a trace


class LabelledTarget:
    """What the decode loop asks of a target, labelled."""

    def __init__(self, inner: Target):
        self._inner = inner

    @property
    def device(self) -> torch.device:
        return self._inner.device

    @property
    def context(self) -> int:
        return self._inner.context

    def prefill(self, prompt: list[int], reads: tuple[int, ...]) -> Scores:
        return self._inner.prefill(prompt, reads)

    def score(self, tree: DraftTree, past: int, reads: tuple[int, ...]) -> Scores:
        with record_function(SCORE):
            return self._inner.score(tree, past, reads)

    def commit(self, accepted: Accepted) -> None:
        with record_function(COMMIT):
            self._inner.commit(accepted)


class LabelledDrafter:
    def __init__(self, inner: Drafter):
        self._inner = inner

    @property
    def sizes(self) -> Sequence[int]:
        return self._inner.sizes

    @property
    def reads(self) -> tuple[int, ...]:
        return self._inner.reads

    def begin(self, prompt: list[int], first: Accepted, scores: Scores, sampling: Sampling) -> None:
        self._inner.begin(prompt, first, scores, sampling)

    def draft(self, tokens: list[int]) -> DraftTree:
        with record_function(DRAFT):
            return self._inner.draft(tokens)

    def observe(self, tree: DraftTree, accepted: Accepted, scores: Scores) -> None:
        with record_function(OBSERVE):
            self._inner.observe(tree, accepted, scores)


def labelled(target: Target) -> Target:
    return cast(Target, LabelledTarget(target))
