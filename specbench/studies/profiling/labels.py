"""Labels of a step's parts for the profiler, set by wrapping target and drafter; the decode loop is unchanged."""

from collections.abc import Sequence
from typing import cast

import torch
from torch.profiler import record_function

from methods.core.acceptance import Accepted, Sampling
from methods.core.decode import Drafter
from methods.core.target import Scores, Target
from methods.core.tree import DraftTree
from specbench.engines.own import OwnEngine

ANSWER, DRAFT, COMMIT = "specbench.answer", "specbench.draft", "specbench.commit"
SCORE, OBSERVE = "specbench.score", "specbench.observe"  # for the reader of a trace


class LabelledTarget:
    """The part of a target that the decode loop calls, labelled."""

    def __init__(self, inner: Target):
        self._inner = inner

    @property
    def device(self) -> torch.device:
        """The inner target's device."""
        return self._inner.device

    @property
    def context(self) -> int:
        """The inner target's context, in tokens."""
        return self._inner.context

    def prefill(self, prompt: list[int], reads: tuple[int, ...]) -> Scores:
        """Prefill, unlabelled."""
        return self._inner.prefill(prompt, reads)

    def score(self, tree: DraftTree, past: int, reads: tuple[int, ...]) -> Scores:
        """Score a tree."""
        with record_function(SCORE):
            return self._inner.score(tree, past, reads)

    def commit(self, accepted: Accepted) -> None:
        """Commit a path."""
        with record_function(COMMIT):
            self._inner.commit(accepted)


class LabelledDrafter:
    """A drafter whose calls are labelled."""

    def __init__(self, inner: Drafter):
        self._inner = inner

    @property
    def sizes(self) -> Sequence[int]:
        """The inner drafter's tree sizes."""
        return self._inner.sizes

    @property
    def reads(self) -> tuple[int, ...]:
        """The target's layers that the inner drafter reads."""
        return self._inner.reads

    def begin(self, prompt: list[int], first: Accepted, scores: Scores, sampling: Sampling) -> None:
        """Begin a text, unlabelled."""
        self._inner.begin(prompt, first, scores, sampling)

    def draft(self, tokens: list[int]) -> DraftTree:
        """Draft a tree."""
        with record_function(DRAFT):
            return self._inner.draft(tokens)

    def observe(self, tree: DraftTree, accepted: Accepted, scores: Scores) -> None:
        """Observe what was accepted."""
        with record_function(OBSERVE):
            self._inner.observe(tree, accepted, scores)

    def wipe(self) -> None:
        """Wipe the inner drafter."""
        self._inner.wipe()


def labelled(engine: OwnEngine) -> OwnEngine:
    """Return the engine with labels around its target and its drafter."""
    return engine._replace(target=cast(Target, LabelledTarget(engine.target)), drafter=LabelledDrafter(engine.drafter))
