"""Token Recycling (Luo et al., 2024, arXiv 2408.08696): a static tree read off the target's own earlier guesses. Training-free.

A table holds the 8 likeliest successors of every token, as the target ranked them where it last scored that token, accepted
or not. The published table begins empty once, when the program starts, and goes on from question to question (its paper:
each query inherits the one before's). Here it does so with ``scope=session``, where results depend on the order of the
questions, those of the warm-up included. The default forgets it with every turn, as every other method forgets its state.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from methods.core.acceptance import Accepted, Sampling
from methods.core.decode import Drafter
from methods.core.errors import UserError
from methods.core.policies import check_tree, choices_of, static_tree
from methods.core.recycling import SuccessorTable
from methods.core.target import Scores, Target
from methods.core.tree import DraftTree

SUCCESSORS = 8  # of each token
# Tree 2.2.2 of the published code, 80 drafts listed level by level. Here best first, as far as can be told without measuring:
# by 1 + rank summed along the way, as if every rank were as much less likely than the last.
TEMPLATE = tuple(
    sorted(
        choices_of(
            "0 1 2 3 4 5 6 7 00 01 02 03 04 05 06 07 10 11 12 13 20 21 22 30 31 40 50 60 70 000 001 002 003 004 005 006 007 "
            "010 011 012 020 021 030 040 050 060 070 100 101 110 200 300 400 500 0000 0001 0002 0003 0004 0010 0011 0020 0030 "
            "0040 0100 0200 1000 2000 3000 00000 00001 00002 00010 00020 00100 01000 10000 000000 000001 000100"
        ),
        key=lambda choice: (sum(choice) + len(choice), len(choice), choice),
    )
)


@dataclass(frozen=True)
class Config:
    nodes: int  # drafts handed to the target each round
    scope: Literal["turn", "session"] = "turn"  # how long what was learned is kept; session: as published

    def __post_init__(self) -> None:
        check_tree(self.nodes)
        if self.nodes > len(TEMPLATE):
            raise UserError(f"nodes is {self.nodes}; Token Recycling's tree has {len(TEMPLATE)}: choose 1 to {len(TEMPLATE)}")

    @property
    def state(self) -> str:
        """What outlives a turn."""
        return "its table of successors" if self.scope == "session" else ""


class TokenRecycling:
    reads = ()

    def __init__(self, config: Config, target: Target):
        self.tree, self._forgets, self._device = static_tree(TEMPLATE[: config.nodes]), config.scope == "turn", target.device
        self.sizes = (self.tree.size,)
        self.table = SuccessorTable(target.config.vocab_size, SUCCESSORS, target.device)
        self._learn, self._draft = target.backend.piece(self.table.learn), target.backend.piece(self._grow)

    def begin(self, prompt: list[int], first: Accepted, scores: Scores, sampling: Sampling) -> None:
        if self._forgets:
            self.table.clear()
        self._learn(torch.tensor(prompt[-1:], device=self._device), scores.logits_NV)
        self.root = first.emitted_P[-1]

    def observe(self, tree: DraftTree, accepted: Accepted, scores: Scores) -> None:
        self._learn(tree.tokens_N, scores.logits_NV)
        self.root = accepted.emitted_P[-1]

    def draft(self, tokens: list[int]) -> DraftTree:
        return self._draft(self.root)

    def _grow(self, root: Tensor) -> DraftTree:
        return self.tree.fill(root, self.table.after(root[None]), lambda tokens_W, rows_W, level: self.table.after(tokens_W))


def build(config: Config, target: Target, module: None) -> Drafter:
    return TokenRecycling(config, target)
