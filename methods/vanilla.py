"""Plain autoregressive decoding: no drafts, one token per step. The baseline of every comparison."""

from dataclasses import dataclass

import torch
from torch import Tensor

from methods.core.acceptance import Accepted, Sampling
from methods.core.decode import Drafter
from methods.core.target import Scores, Target
from methods.core.tree import DraftTree, shape_of


@dataclass(frozen=True)
class Config:
    """The options of vanilla: none."""


class Vanilla:
    """A drafter that drafts nothing: its tree is the root alone."""

    sizes = (1,)
    reads = ()

    def __init__(self, device: torch.device):
        self._device = device
        self._next: Tensor  # the last committed token, set by ``begin`` and ``observe``

    def begin(self, prompt: list[int], first: Accepted, scores: Scores, sampling: Sampling) -> None:
        """Start a new turn with its first token as the root."""
        self._next = first.emitted_P

    def draft(self, tokens: list[int]) -> DraftTree:
        """Return the root alone."""
        return DraftTree(self._next, shape_of((-1,), self._device))

    def observe(self, tree: DraftTree, accepted: Accepted, scores: Scores) -> None:
        """Take the emitted token as the next root."""
        self._next = accepted.emitted_P

    def wipe(self) -> None:
        """Do nothing: it keeps only a token, which ``begin`` replaces."""


def build(config: Config, target: Target, module: None) -> Drafter:
    """Build the drafter for a target."""
    return Vanilla(target.device)
