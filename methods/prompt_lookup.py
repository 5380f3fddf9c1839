"""Prompt lookup decoding (Saxena, 2023): copy the tokens that followed an earlier n-gram.

The n-gram is the text's last one, and its first occurrence is used. Training-free.
"""

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
    """Options of prompt lookup."""

    nodes: int = 10  # most tokens copied
    max_ngram: int = 3  # longest n-gram looked up; shorter ones are tried next

    def __post_init__(self) -> None:
        check_tree(self.nodes)
        if self.max_ngram < 1:
            raise UserError(f"max_ngram is {self.max_ngram}; it must be at least 1")


class PromptLookup:
    """A drafter that keeps, for every n-gram of the text, where it first ended.

    The published method searches the text from the left and finds the same place. Here a lookup
    costs the same however long the text is.
    """

    reads = ()

    def __init__(self, config: Config, device: torch.device):
        self.config, self._device = config, device
        self.sizes = (1, 1 + config.nodes)
        self._indexed = 0  # tokens whose n-grams are in the table
        self._first_end: dict[tuple[int, ...], int] = {}

    def begin(self, prompt: list[int], first: Accepted, scores: Scores, sampling: Sampling) -> None:
        """Forget the n-grams of the turn before."""
        self._indexed = 0
        self._first_end = {}

    def draft(self, tokens: list[int]) -> DraftTree:
        """Return a chain of copied tokens, padded to one size; the root alone if nothing is found."""
        self._index(tokens)
        copied = self._copy(tokens)
        filler = [PADDING] * (self.config.nodes - len(copied) if copied else 0)
        return DraftTree.chain([tokens[-1], *copied, *filler], self._device)

    def observe(self, tree: DraftTree, accepted: Accepted, scores: Scores) -> None:
        """Do nothing: ``draft`` is given the whole text."""

    def wipe(self) -> None:
        """Do nothing: ``begin`` resets the table."""

    def _index(self, tokens: list[int]) -> None:
        """Add the n-grams that end before the last token; what follows the last token is not known yet."""
        for end in range(self._indexed + 1, len(tokens)):
            for n in range(1, min(self.config.max_ngram, end) + 1):
                self._first_end.setdefault(tuple(tokens[end - n : end]), end)
        self._indexed = len(tokens) - 1

    def _copy(self, tokens: list[int]) -> list[int]:
        for n in range(min(self.config.max_ngram, len(tokens)), 0, -1):
            end = self._first_end.get(tuple(tokens[-n:]))
            if end is not None:
                return tokens[end : end + self.config.nodes]
        return []


def build(config: Config, target: Target, module: None) -> Drafter:
    """Build the drafter for a target."""
    return PromptLookup(config, target.device)
