"""Token Recycling (Luo et al., 2024, arXiv 2408.08696): a static tree read off a table. Training-free.

The table holds the 8 likeliest successors of every token, as the target ranked them where it last
scored that token, accepted or not. In the published code it starts empty once, when the program
starts, and is carried over from question to question (the paper: each query inherits the previous
one's). ``scope=session`` does the same; results then depend on the order of the questions, warm-up
included. The default clears the table with every turn, as every other method resets its state.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from methods.core.acceptance import Accepted, Sampling
from methods.core.decode import Drafter
from methods.core.errors import UserError
from methods.core.policies import best_first, check_tree, choices_of, static_tree
from methods.core.recycling import SuccessorTable
from methods.core.target import Scores, Target
from methods.core.tree import DraftTree

SUCCESSORS = 8  # per token
# Tree 2.2.2 of the published code, 80 drafts.
TEMPLATE = best_first(
    choices_of(
        "0 1 2 3 4 5 6 7 00 01 02 03 04 05 06 07 10 11 12 13 20 21 22 30 31 40 50 60 70 000 001 002 003 004 005 006 007 "
        "010 011 012 020 021 030 040 050 060 070 100 101 110 200 300 400 500 0000 0001 0002 0003 0004 0010 0011 0020 0030 "
        "0040 0100 0200 1000 2000 3000 00000 00001 00002 00010 00020 00100 01000 10000 000000 000001 000100"
    )
)


@dataclass(frozen=True)
class Config:
    """Options of Token Recycling."""

    nodes: int  # drafts per step
    scope: Literal["turn", "session"] = "turn"  # how long the table is kept; session: as published

    def __post_init__(self) -> None:
        check_tree(self.nodes)
        if self.nodes > len(TEMPLATE):
            raise UserError(f"nodes is {self.nodes}; Token Recycling's tree has {len(TEMPLATE)}: choose 1 to {len(TEMPLATE)}")

    @property
    def state(self) -> str:
        """The state that outlives a turn, in words; empty if none does."""
        return "its table of successors" if self.scope == "session" else ""


class TokenRecycling:
    """A drafter that fills a static tree from a table of successors."""

    reads = ()

    def __init__(self, config: Config, target: Target):
        self.tree, self._forgets, self._device = static_tree(TEMPLATE[: config.nodes]), config.scope == "turn", target.device
        self.sizes = (self.tree.size,)
        self.table = SuccessorTable(target.config.vocab_size, SUCCESSORS, target.device)
        self._learn, self._draft = target.backend.capture(self.table.learn), target.backend.capture(self._grow)
        self._root: Tensor  # the last committed token, set by ``begin`` and ``observe``

    def begin(self, prompt: list[int], first: Accepted, scores: Scores, sampling: Sampling) -> None:
        """Start a new turn; with ``scope=turn`` the table is cleared."""
        if self._forgets:
            self.table.clear()
        self._learn(torch.tensor(prompt[-1:], device=self._device), scores.logits_NV)
        self._root = first.emitted_P[-1]

    def observe(self, tree: DraftTree, accepted: Accepted, scores: Scores) -> None:
        """Learn the successors of all nodes of the tree."""
        self._learn(tree.tokens_N, scores.logits_NV)
        self._root = accepted.emitted_P[-1]

    def draft(self, tokens: list[int]) -> DraftTree:
        """Return the static tree filled from the table; unknown successors are padding."""
        return self._draft(self._root)

    def wipe(self) -> None:
        """Do nothing: a failure leaves no invalid entry, since the table holds token ids only."""

    def _grow(self, root: Tensor) -> DraftTree:
        return self.tree.fill(root, self.table.after(root[None]), None, self._successors)

    def _successors(self, tokens_W: Tensor, rows_W: Tensor, level: int, state: None) -> tuple[Tensor, None]:
        return self.table.after(tokens_W), None


def build(config: Config, target: Target, module: None) -> Drafter:
    """Build the drafter for a target."""
    return TokenRecycling(config, target)
