"""Prompt lookup decoding (Saxena, 2023): copy what followed the last n-gram where it first stood. Training-free."""

from dataclasses import dataclass

import torch

from methods.core.acceptance import Accepted, Sampling
from methods.core.decode import Drafter
from methods.core.errors import UserError
from methods.core.policies import check_tree
from methods.core.target import Scores, Target
from methods.core.tree import PADDING, DraftTree


@dataclass(frozen=True)
class Config:
    nodes: int = 10  # tokens copied at most
    max_ngram: int = 3

    def __post_init__(self) -> None:
        check_tree(self.nodes)
        if self.max_ngram < 1:
            raise UserError(f"max_ngram is {self.max_ngram}; it must be at least 1")


class PromptLookup:
    """Keeps, for every n-gram seen, where it first ended, as the published method searches from the left.

    A lookup costs the same however long the text is.
    """

    reads = ()

    def __init__(self, config: Config, device: torch.device):
        self.config, self._device = config, device
        self.sizes = (1, 1 + config.nodes)

    def begin(self, prompt: list[int], first: Accepted, scores: Scores, sampling: Sampling) -> None:
        self.indexed = 0
        self.first_end: dict[tuple[int, ...], int] = {}

    def draft(self, tokens: list[int]) -> DraftTree:
        self._index(tokens)
        copied = self._copy(tokens)
        filler = [PADDING] * (self.config.nodes - len(copied) if copied else 0)
        return DraftTree.chain([tokens[-1], *copied, *filler], self._device)

    def observe(self, tree: DraftTree, accepted: Accepted, scores: Scores) -> None:
        pass

    def _index(self, tokens: list[int]) -> None:
        """Learn the n-grams that end before the last token: what follows the last one is not known yet."""
        for end in range(self.indexed + 1, len(tokens)):
            for n in range(1, min(self.config.max_ngram, end) + 1):
                self.first_end.setdefault(tuple(tokens[end - n : end]), end)
        self.indexed = len(tokens) - 1

    def _copy(self, tokens: list[int]) -> list[int]:
        for n in range(min(self.config.max_ngram, len(tokens)), 0, -1):
            end = self.first_end.get(tuple(tokens[-n:]))
            if end is not None:
                return tokens[end : end + self.config.nodes]
        return []


def build(config: Config, target: Target, module: None) -> Drafter:
    return PromptLookup(config, target.device)
