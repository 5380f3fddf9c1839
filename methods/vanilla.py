"""Plain autoregressive decoding: no drafts, one token a step. The other arm of every comparison."""

from dataclasses import dataclass

from methods.core.decode import Drafter
from methods.core.target import Scores, Target
from methods.core.tree import DraftTree


@dataclass(frozen=True)
class Config:
    pass


class Vanilla:
    def begin(self, prompt: list[int], scores: Scores) -> None:
        pass

    def draft(self, tokens: list[int]) -> DraftTree:
        return DraftTree.chain(tokens[-1:])

    def observe(self, tree: DraftTree, path: list[int], scores: Scores) -> None:
        pass


def build(config: Config, target: Target, module: None) -> Drafter:
    return Vanilla()
