"""The bytes and FLOPs of a drafter's step, counted from the module calls that it makes."""

from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from methods.core.acceptance import Accepted, Sampling
from methods.core.decode import Drafter
from methods.core.target import Scores
from methods.core.tree import DraftTree
from specbench.engines.own import OwnEngine
from specbench.studies.base import decoded
from specbench.studies.roofline.cost import NOTHING, Cost, attention_cost, linear_cost

NEW_TOKENS = 32  # decoded while counting, which takes several steps


def draft_cost(engine: OwnEngine, prompt: list[int]) -> Cost:
    """Return the cost of drafting in one step, ``observe`` included: the median over an answer's steps but the first.

    Every linear layer called counts, the target's head among them: its weights once a call, and
    2 FLOPs for each weight and row. Attention counts as in ``cost``, over the text so far. The calls
    are observed by hooks, so the engine must be on the eager back end, which does not compile modules.
    """
    assert engine.target.backend.name == "eager", "compiled modules hide their calls"
    counter = _CountingDrafter(engine.drafter, engine.target.dtype.itemsize)
    decoded(engine._replace(drafter=counter), prompt, Sampling(NEW_TOKENS))
    settled = counter.steps[1:]
    return Cost(median(cost.bytes for cost in settled), median(cost.flops for cost in settled))


class _CountingDrafter:
    """A drafter whose calls of linear layers are counted by step; calls in ``begin`` belong to no step."""

    def __init__(self, drafter: Drafter, dtype_bytes: int):
        self._drafter, self._dtype_bytes, self.sizes, self.reads = drafter, dtype_bytes, drafter.sizes, drafter.reads
        self._seen = self._query = 0
        self._names: dict[nn.Module, str] = {}
        self.steps: list[Cost] = []

    def begin(self, prompt: list[int], first: Accepted, scores: Scores, sampling: Sampling) -> None:
        self._drafter.begin(prompt, first, scores, sampling)

    def draft(self, tokens: list[int]) -> DraftTree:
        self.steps.append(NOTHING)
        self._seen = len(tokens)
        with self._counting():
            return self._drafter.draft(tokens)

    def observe(self, tree: DraftTree, accepted: Accepted, scores: Scores) -> None:
        with self._counting():
            self._drafter.observe(tree, accepted, scores)

    def wipe(self) -> None:
        self._drafter.wipe()

    @contextmanager
    def _counting(self) -> Iterator[None]:
        with register_module_forward_pre_hook(self._note):
            yield

    def _note(self, module: nn.Module, args: Any) -> None:
        self._names.update((child, name) for name, child in module.named_children())
        if isinstance(module, nn.Linear):
            self._add(module, self._names.get(module, ""), args[0].shape[-2])

    def _add(self, linear: nn.Linear, name: str, rows: int) -> None:
        cost = linear_cost(sum(parameter.numel() for parameter in linear.parameters()), rows, self._dtype_bytes)
        if name == "q_proj":
            self._query = linear.out_features
        elif name == "k_proj":  # called next, once for each attention
            cost = cost.plus(attention_cost(self._query, linear.out_features, rows, self._seen, self._dtype_bytes))
        self.steps[-1] = self.steps[-1].plus(cost)
