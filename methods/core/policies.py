"""Tree policies: how a drafter's distributions become a draft tree.

A drafter gives the logits after the root and an ``Expand`` function that goes one token deeper. The
policy decides which guesses are expanded and which are handed to the target. Policies run on the
device with fixed shapes and read nothing on the host.

Shape letters: W rows expanded together, K guesses kept of each, V vocabulary of the drafter's logits.
A drafter that guesses among some of the target's tokens only (U of them) gives a policy ``tokens_U``, the
token of each column of its logits; everything a policy returns or passes on is the target's token.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from methods.core.errors import UserError, check_range
from methods.core.tree import MAX_TREE_SIZE, DraftTree, grown_shape, shape_of

Choice = tuple[int, ...]  # a node of a static tree by the ranks on its path: (0, 2) is the third guess after the best
S = TypeVar("S")

MAX_WIDTH = 32


def choices_of(text: str) -> tuple[Choice, ...]:
    """Parse a static tree: ``0 1 00`` are the best guess, the second, and the best after the best."""
    return tuple(tuple(map(int, ranks)) for ranks in text.split())


def best_first(choices: Sequence[Choice]) -> tuple[Choice, ...]:
    """Sort a published tree that is listed level by level so that every prefix is a good tree.

    Without measured accuracies the order is an estimate: each rank counts as less likely than the
    one before by the same factor, so nodes are ordered by the sum of 1 + rank along their path.
    """
    return tuple(sorted(choices, key=lambda choice: (sum(choice) + len(choice), len(choice), choice)))


def check_tree(nodes: int, depth: int = 1, width: int = 1) -> None:
    """Raise UserError for a tree that cannot be drafted or verified; for the methods' options."""
    check_range("nodes", nodes, MAX_TREE_SIZE - 1)
    check_range("depth", depth, MAX_TREE_SIZE - 1)
    check_range("width", width, MAX_WIDTH)
    if (depth - 1) * width > MAX_TREE_SIZE:  # the spare rows of a drafter's cache
        raise UserError(f"depth {depth} x width {width} grows too large a tree; keep (depth - 1) x width within {MAX_TREE_SIZE}")


class Expand(Protocol[S]):
    """A drafter's function that goes one level deeper.

    ``state`` is whatever the drafter carries from level to level. It consists of tensors and
    numbers and is passed explicitly, so that growing a tree can be captured and leaves nothing
    behind.
    """

    def __call__(self, tokens_W: Tensor, rows_W: Tensor, level: int, state: S, /) -> tuple[Tensor, S]:
        """Return the logits WV after each token, and the state of the next level.

        The logits are 1V where they do not depend on the tokens. ``rows_W`` says from which row of
        the previous logits each token was guessed; ``level`` counts from 1.
        """
        ...


class TreePolicy(Protocol):
    """A way to build draft trees from a drafter's logits."""

    @property
    def size(self) -> int:
        """The size of its trees, root included."""
        ...

    def grow(self, root: Tensor, logits_WV: Tensor, state: S, expand: Expand[S]) -> DraftTree:
        """Build a tree on ``root``, a token without axes.

        ``logits_WV`` is one row, the drafter's logits after the root; ``state`` is passed to the
        first call of ``expand``.
        """
        ...


@runtime_checkable
class GrowsTrees(Protocol):
    """A drafter whose trees are built by a policy.

    The policy can be replaced by one of the same size, for instance to record what it is given. Do
    so before the first draft: captured functions keep the policy they were captured with.
    """

    policy: TreePolicy


@dataclass(frozen=True)
class GrownTree:
    """EAGLE-2's tree (Li et al., 2024b): grown by cumulative log q, then cut to its best nodes.

    Each level expands the ``width`` best nodes of the level before into their ``width`` best
    continuations; the ``nodes`` best of all guesses by cumulative log q are verified. Scores fall
    along a path, so the kept nodes form a tree.
    """

    nodes: int
    depth: int
    width: int
    tokens_U: Tensor | None = field(default=None, compare=False)

    @property
    def size(self) -> int:
        """The size of its trees, root included."""
        inner = sum(min(self.width, self.width**level) for level in range(1, self.depth))
        return 1 + min(self.nodes, self.width * (1 + inner))

    def grow(self, root: Tensor, logits_WV: Tensor, state: S, expand: Expand[S]) -> DraftTree:
        """Build a tree on ``root``; see ``TreePolicy.grow``."""
        device = logits_WV.device
        score_W, parent_W = torch.zeros(1, device=device), torch.zeros(1, dtype=torch.long, device=device)
        scores, tokens, parents, grown = [], [], [], 0

        for level in range(1, self.depth + 1):
            guess_WK, logq_WK = likeliest(logits_WV, self.width, len(score_W), self.tokens_U)
            tokens.append(guess_WK.flatten())
            scores.append((score_W[:, None] + logq_WK).flatten())
            parents.append(parent_W.repeat_interleave(self.width))
            if level < self.depth:
                score_W, chosen = scores[-1].topk(min(self.width, len(scores[-1])))
                parent_W = 1 + grown + chosen
                logits_WV, state = expand(tokens[-1][chosen], chosen // self.width, level, state)
            grown += len(tokens[-1])

        kept = torch.cat(scores).topk(min(self.nodes, grown))
        best = kept.indices.sort().values
        node_ids = torch.cat([best.new_zeros(1), best + 1])
        places = torch.searchsorted(node_ids, torch.cat(parents)[best])
        shape = grown_shape(torch.cat([places.new_zeros(1), places]), self.depth)
        return DraftTree(torch.cat([root[None], torch.cat(tokens)[best]]), shape, faulty=kept.values.isnan().any())


class _Level(NamedTuple):
    rows: Tensor  # each node's parent, as a row of this level's logits
    ranks: Tensor
    expanded: Tensor  # the nodes of this level that have children
    expanded_rows: Tensor  # the rows those were guessed from


class StaticTree:
    """A tree of fixed shape: the same ranks in every step.

    Medusa (Cai et al., 2024, section 2.1.2) and EAGLE-1 draft such trees. Raises ValueError unless
    ``choices`` has each node once and the parent of every node.
    """

    def __init__(self, choices: Sequence[Choice], tokens_U: Tensor | None = None):
        self._tokens_U = tokens_U
        self.choices = ordered = sorted(choices, key=lambda choice: (len(choice), choice))  # its nodes after the root
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

    def grow(self, root: Tensor, logits_WV: Tensor, state: S, expand: Expand[S]) -> DraftTree:
        """Build a tree on ``root``; see ``TreePolicy.grow``."""

        def ranked(tokens_W: Tensor, rows_W: Tensor, level: int, state: S) -> tuple[Tensor, S]:
            logits_WV, state = expand(tokens_W, rows_W, level, state)
            return self._ranked(logits_WV), state

        return self.fill(root, self._ranked(logits_WV), state, ranked)

    def fill(self, root: Tensor, guess_WK: Tensor, state: S, expand: Expand[S]) -> DraftTree:
        """Build a tree from guessed tokens by rank; K is at least the tree's width.

        ``expand`` returns such tokens WK in place of logits.
        """
        tokens, parent_rows = [root[None]], 1
        for depth, (rows, ranks, expanded, expanded_rows) in enumerate(self._on(guess_WK.device), start=1):
            tokens.append(guess_WK.expand(parent_rows, -1)[rows, ranks])
            parent_rows = len(expanded)
            if depth < self.depth:
                guess_WK, state = expand(tokens[-1][expanded], expanded_rows, depth, state)
        return DraftTree(torch.cat(tokens), shape_of(self.parents, guess_WK.device))

    def _ranked(self, logits_WV: Tensor) -> Tensor:
        best_WK = logits_WV.topk(self.width).indices
        return best_WK if self._tokens_U is None else self._tokens_U[best_WK]

    def _on(self, device: torch.device) -> list[_Level]:
        if device not in self._levels:
            self._levels[device] = [_Level(*(t.to(device) for t in level)) for level in self._levels[torch.device("cpu")]]
        return self._levels[device]


@lru_cache(maxsize=64)
def best_choices(rank_accuracy: tuple[tuple[float, ...], ...], nodes: int) -> tuple[Choice, ...]:
    """Return the ``nodes`` drafts with the greatest expected acceptance, best first.

    This is the greedy construction of Medusa's appendix. ``rank_accuracy[d][k]`` is how often the
    drafter's guess of rank k is the target's token at depth d + 1, given that its ancestors were
    right; it is measured on held-out prompts when the drafter is trained. Every prefix of the result
    is a tree, the best of its size.
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
    """Return the static tree of these nodes, cached because each keeps index tensors on the device."""
    return StaticTree(choices)


def likeliest(logits_WV: Tensor, k: int, rows: int, tokens_U: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return tokens and log q (fp32) of the ``k`` best guesses of each row, both ``rows`` x K.

    ``tokens_U`` is applied to the kept guesses only, which is cheaper than spreading the logits over the
    target's vocabulary in every level. log q is kept slightly below zero: a certain guess would tie with
    its own parent and could be kept without it.
    """
    top = logits_WV.topk(k)
    logq_WK = top.values.float() - logits_WV.float().logsumexp(dim=-1, keepdim=True)
    guess_WK = top.indices if tokens_U is None else tokens_U[top.indices]
    return guess_WK.expand(rows, -1), logq_WK.clamp(max=-1e-4).expand(rows, -1)
