"""Plain autoregressive decoding: no drafts, one token a step. The other arm of every comparison."""

from dataclasses import dataclass

import torch

from methods.core.acceptance import Accepted, Sampling
from methods.core.decode import Drafter
from methods.core.target import Scores, Target
from methods.core.tree import DraftTree, shape_of


@dataclass(frozen=True)
class Config:
    pass


class Vanilla:
    sizes = (1,)
    reads = ()

    def __init__(self, device: torch.device):
        self._device = device

    def begin(self, prompt: list[int], first: Accepted, scores: Scores, sampling: Sampling) -> None:
        self.next = first.emitted_P

    def draft(self, tokens: list[int]) -> DraftTree:
        return DraftTree(self.next, shape_of((-1,), self._device))

    def observe(self, tree: DraftTree, accepted: Accepted, scores: Scores) -> None:
        self.next = accepted.emitted_P


def build(config: Config, target: Target, module: None) -> Drafter:
    return Vanilla(target.device)
