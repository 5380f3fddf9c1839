"""Counts what a drafter's round moves and computes, from the calls it really makes."""

from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from methods.core.acceptance import AcceptanceRule, Accepted, Sampling
from methods.core.clock import HostClock
from methods.core.decode import Drafter, decode
from methods.core.target import Scores, Target
from methods.core.tree import DraftTree
from specbench.studies.roofline.cost import NOTHING, Cost, attention_cost, linear_cost

NEW_TOKENS = 32  # decoded while counting: a handful of rounds at least


def draft_cost(target: Target, drafter: Drafter, accept: AcceptanceRule, prompt: list[int]) -> Cost:
    """Of one round of a drafter in the steady state, ``observe`` included: the median over a few rounds.

    Every linear layer called counts, the target's head among them: its weights once a call, and 2 FLOPs a weight and row.
    Attention counts as in ``cost``, over the text so far. Modules are watched as they run, so target and drafter have to be
    of the eager back end, which runs them as they are.
    """
    assert target.backend.name == "eager", "compiled modules hide their calls"
    counted = _Counted(drafter, target.dtype.itemsize)
    decode(target, counted, accept, prompt, Sampling(NEW_TOKENS), HostClock())
    settled = counted.rounds[1:]
    return Cost(median(cost.bytes for cost in settled), median(cost.flops for cost in settled))


class _Counted:
    """A drafter whose calls of linear layers are counted, round by round; what ``begin`` does belongs to no round."""

    def __init__(self, drafter: Drafter, dtype_bytes: int):
        self._drafter, self._dtype_bytes, self.sizes, self.reads = drafter, dtype_bytes, drafter.sizes, drafter.reads
        self._seen = self._query = 0
        self._names: dict[nn.Module, str] = {}
        self.rounds: list[Cost] = []

    def begin(self, prompt: list[int], first: Accepted, scores: Scores, sampling: Sampling) -> None:
        self._drafter.begin(prompt, first, scores, sampling)

    def draft(self, tokens: list[int]) -> DraftTree:
        self.rounds.append(NOTHING)
        self._seen = len(tokens)
        with self._counting():
            return self._drafter.draft(tokens)

    def observe(self, tree: DraftTree, accepted: Accepted, scores: Scores) -> None:
        with self._counting():
            self._drafter.observe(tree, accepted, scores)

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
        self.rounds[-1] = self.rounds[-1].plus(cost)
