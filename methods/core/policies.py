"""Tree policies: how a drafter's distributions become a draft tree.

A drafter gives the logits after the root and a ``Step`` that goes one token deeper; the policy decides which guesses are
expanded and which are handed to the target. Both policies run on the device with fixed shapes and ask the host nothing.

Shape letters: W rows expanded together, K guesses kept of each, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from methods.core.errors import UserError, check_range
from methods.core.target import MAX_NODES
from methods.core.tree import DraftTree, grown_shape, shape_of

Choice = tuple[int, ...]  # a node of a static tree as the ranks on its way: (0, 2) is the third guess after the first


MAX_WIDTH = 32


def choices_of(text: str) -> tuple[Choice, ...]:
    """Published trees as they are written here: ``0 1 00`` are the best guess, the second, and the best one after the best."""
    return tuple(tuple(map(int, ranks)) for ranks in text.split())


def check_tree(nodes: int, depth: int = 1, width: int = 1) -> None:
    """For the methods' Configs: raise UserError on a tree that cannot be drafted or verified."""
    check_range("nodes", nodes, MAX_NODES - 1)
    check_range("depth", depth, MAX_NODES - 1)
    check_range("width", width, MAX_WIDTH)
    if (depth - 1) * width > MAX_NODES:  # rows a drafter's cache has to spare
        raise UserError(f"depth {depth} x width {width} grows too large a tree; keep (depth - 1) x width within {MAX_NODES}")


class Step(Protocol):
    def __call__(self, tokens_W: Tensor, rows_W: Tensor, level: int) -> Tensor:
        """Logits WV (or 1V, where they do not depend on the tokens) after each token.

        ``rows_W`` says which row of the previous logits each token was guessed from; ``level`` counts from 1.
        """
        ...


class TreePolicy(Protocol):
    @property
    def size(self) -> int:
        """Of its trees, root included."""
        ...

    def grow(self, root: Tensor, logits_WV: Tensor, step: Step) -> DraftTree:
        """``root`` is a token without axes; ``logits_WV`` one row, of what follows it."""
        ...


@dataclass(frozen=True)
class GrownTree:
    """EAGLE-2's tree (Li et al., 2024b): grown by cumulative log q, then cut to its best nodes.

    Each level expands the ``width`` best nodes of the level before into their ``width`` best continuations; of all
    guesses the ``nodes`` best by cumulative log q are verified. Scores fall along a path, so the kept set is a tree.

    ``tokens_V`` says which of the target's tokens the logits' columns are, for a drafter that guesses among some alone.
    """

    nodes: int
    depth: int
    width: int
    tokens_V: Tensor | None = field(default=None, compare=False)

    @property
    def size(self) -> int:
        inner = sum(min(self.width, self.width**level) for level in range(1, self.depth))
        return 1 + min(self.nodes, self.width * (1 + inner))

    def grow(self, root: Tensor, logits_WV: Tensor, step: Step) -> DraftTree:
        device = logits_WV.device
        score_W, parent_W = torch.zeros(1, device=device), torch.zeros(1, dtype=torch.long, device=device)
        scores, tokens, parents, grown = [], [], [], 0
        for level in range(1, self.depth + 1):
            guess_WK, logq_WK = likeliest(logits_WV, self.width, len(score_W), self.tokens_V)
            tokens.append(guess_WK.flatten())
            scores.append((score_W[:, None] + logq_WK).flatten())
            parents.append(parent_W.repeat_interleave(self.width))
            if level < self.depth:
                score_W, chosen = scores[-1].topk(min(self.width, len(scores[-1])))
                parent_W = 1 + grown + chosen
                logits_WV = step(tokens[-1][chosen], chosen // self.width, level)
            grown += len(tokens[-1])
        kept = torch.cat(scores).topk(min(self.nodes, grown))
        best = kept.indices.sort().values
        node_ids = torch.cat([best.new_zeros(1), best + 1])
        places = torch.searchsorted(node_ids, torch.cat(parents)[best])
        shape = grown_shape(torch.cat([places.new_zeros(1), places]), self.depth)
        return DraftTree(torch.cat([root[None], torch.cat(tokens)[best]]), shape, faulty=kept.values.isnan().any())


class _Level(NamedTuple):
    rows: Tensor  # of each node: its parent's row in the logits of this level
    ranks: Tensor
    expanded: Tensor  # which nodes of this level have children
    expanded_rows: Tensor  # the rows those were guessed from


class StaticTree:
    """A tree of fixed shape (Medusa, Cai et al., 2024, section 2.1.2; EAGLE-1): the same ranks every round."""

    def __init__(self, choices: Sequence[Choice]):
        self.choices = ordered = sorted(choices, key=lambda choice: (len(choice), choice))  # of its nodes after the root
        place = {choice: i for i, choice in enumerate([(), *ordered])}
        if len(place) != len(choices) + 1 or any(choice[:-1] not in place for choice in ordered):
            raise ValueError("a static tree needs each node once and the parent of every node")
        self.parents = (-1, *(place[choice[:-1]] for choice in ordered))
        self.size = len(self.parents)
        self.depth, self.width = len(ordered[-1]), 1 + max(choice[-1] for choice in ordered)
        levels: list[_Level] = []
        expanded: list[Choice] = [()]
        for depth in range(1, self.depth + 1):
            nodes = [choice for choice in ordered if len(choice) == depth]
            rows = [expanded.index(choice[:-1]) for choice in nodes]
            inner = [i for i, choice in enumerate(nodes) if any(c[:-1] == choice for c in ordered)]
            ranks = [choice[-1] for choice in nodes]
            levels.append(_Level(*map(torch.tensor, (rows, ranks, inner, [rows[i] for i in inner]))))
            expanded = [nodes[i] for i in inner]
        self._levels = {torch.device("cpu"): levels}

    def grow(self, root: Tensor, logits_WV: Tensor, step: Step) -> DraftTree:
        def ranked(tokens_W: Tensor, rows_W: Tensor, level: int) -> Tensor:
            return step(tokens_W, rows_W, level).topk(self.width).indices

        return self.fill(root, logits_WV.topk(self.width).indices, ranked)

    def fill(self, root: Tensor, guess_WK: Tensor, ranked: Callable[[Tensor, Tensor, int], Tensor]) -> DraftTree:
        """The tree from guessed tokens by rank, K at least its width; ``ranked`` is a ``Step`` that gives such tokens, not logits."""
        tokens, parent_rows = [root[None]], 1
        for depth, (rows, ranks, expanded, expanded_rows) in enumerate(self._on(guess_WK.device), start=1):
            tokens.append(guess_WK.expand(parent_rows, -1)[rows, ranks])
            parent_rows = len(expanded)
            if depth < self.depth:
                guess_WK = ranked(tokens[-1][expanded], expanded_rows, depth)
        return DraftTree(torch.cat(tokens), shape_of(self.parents, guess_WK.device))

    def _on(self, device: torch.device) -> list[_Level]:
        if device not in self._levels:
            self._levels[device] = [_Level(*(t.to(device) for t in level)) for level in self._levels[torch.device("cpu")]]
        return self._levels[device]


@lru_cache(maxsize=64)
def best_choices(rank_accuracy: tuple[tuple[float, ...], ...], nodes: int) -> tuple[Choice, ...]:
    """The ``nodes`` drafts with the greatest expected acceptance, best first (Medusa, appendix: greedy construction).

    ``rank_accuracy[d][k]`` is how often the drafter's guess of rank k is the target's token d + 1 places ahead, given that
    the places before were right; measured on held-out prompts when the drafter was trained. Every beginning of the row is
    a tree, the best one of its size.
    """
    chosen: list[Choice] = []
    frontier: dict[Choice, float] = {(k,): p for k, p in enumerate(rank_accuracy[0])}
    while len(chosen) < nodes and frontier:
        best = max(frontier, key=lambda choice: frontier[choice])
        p = frontier.pop(best)
        chosen.append(best)
        if len(best) < len(rank_accuracy):
            frontier |= {(*best, k): p * child for k, child in enumerate(rank_accuracy[len(best)])}
    return tuple(chosen)


@lru_cache(maxsize=64)
def static_tree(choices: tuple[Choice, ...]) -> StaticTree:
    """Cached, as each keeps its places on the device."""
    return StaticTree(choices)


def likeliest(logits_WV: Tensor, k: int, rows: int, tokens_V: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Tokens and log q (fp32) of the ``k`` best guesses of each row; ``tokens_V``: the tokens of the columns, if not their numbers.

    Only the guesses kept are looked up: logits spread over the target's vocabulary would be written and searched a level.
    log q is held below zero by a hair: a certain guess would tie with its own parent and could be kept without it.
    """
    top = logits_WV.topk(k)
    logq_WK = top.values.float() - logits_WV.float().logsumexp(dim=-1, keepdim=True)
    guess_WK = top.indices if tokens_V is None else tokens_V[top.indices]
    return guess_WK.expand(rows, -1), logq_WK.clamp(max=-1e-4).expand(rows, -1)
