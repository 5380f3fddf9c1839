"""Draft trees: the tokens a drafter guesses in one round.

Shape letters of this package: N tree nodes, P nodes on a path (the tree's depth + 1), T tokens, V vocabulary, D hidden
width, L layers, S rows of a cache.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

PADDING = -1  # the token of a node that only fills a tree up to a fixed size; no target chooses it


class Shape(NamedTuple):
    """What of a tree does not depend on its tokens, on the device; parents stand before their children."""

    parents_N: Tensor  # the root is its own parent
    depths_N: Tensor
    sees_NN: Tensor  # bool; row i is true at i and at its ancestors: what node i may attend to within the tree
    depth: int  # no node is deeper


class DraftTree(NamedTuple):
    """N guessed tokens and who follows whom, on the device.

    Node 0 is the root: the last committed token, whose keys and values are not cached yet. A tree of the root alone
    makes a round of plain autoregressive decoding. Siblings stand in the order they are tried, and without ``q_NV``
    they carry distinct tokens.
    """

    tokens_N: Tensor
    shape: Shape
    q_NV: Tensor | None = None  # row i: the distribution node i was drawn from; None: the drafts are not random
    faulty: Tensor | None = None  # bool, no axes: the drafter's logits were NaN

    @classmethod
    def of(cls, tokens: Sequence[int], parents: Sequence[int], device: torch.device, q_NV: Tensor | None = None) -> "DraftTree":
        """From the host. Raises ValueError for lists that do not fit together; see ``shape_of``."""
        if len(parents) != len(tokens):
            raise ValueError(f"{len(tokens)} tokens but {len(parents)} parents")
        return cls(torch.tensor(tokens, device=device), shape_of(tuple(parents), device), q_NV)

    @classmethod
    def chain(cls, tokens: Sequence[int], device: torch.device, q_NV: Tensor | None = None) -> "DraftTree":
        return cls.of(tokens, range(-1, len(tokens) - 1), device, q_NV)

    @property
    def size(self) -> int:
        """N, the root and padding included."""
        return self.tokens_N.shape[0]


@lru_cache(maxsize=4096)
def shape_of(parents: tuple[int, ...], device: torch.device) -> Shape:
    """The shape of a parent list, cached: static trees ask every round.

    Raises ValueError unless ``parents[0] == -1`` and ``0 <= parents[i] < i`` for every other node.
    """
    if not parents or parents[0] != -1 or any(not 0 <= p < i for i, p in enumerate(parents) if i):
        raise ValueError(f"parents must be -1 for the root and point backwards, got {parents}")
    depths = [0]
    for parent in parents[1:]:
        depths.append(depths[parent] + 1)
    return grown_shape(torch.tensor([0, *parents[1:]], device=device), max(depths))


def grown_shape(parents_N: Tensor, depth: int) -> Shape:
    """The shape of parents known to the device alone, none deeper than ``depth``; nothing is read by the host."""
    sees_NN = torch.eye(len(parents_N), dtype=torch.bool, device=parents_N.device)
    ancestor_N = parents_N
    for _ in range(depth.bit_length()):  # doubling: after k passes every node sees its nearest 2^k - 1 ancestors
        sees_NN = sees_NN | sees_NN[ancestor_N]
        ancestor_N = ancestor_N[ancestor_N]
    return Shape(parents_N, sees_NN.sum(dim=1) - 1, sees_NN, depth)


def padded(tree: DraftTree, size: int) -> DraftTree:
    """The tree with padding up to ``size`` nodes, each of which sees only itself and what is committed."""
    extra = size - tree.size
    if extra == 0:
        return tree
    parents_N, depths_N, sees_NN, depth = tree.shape
    sees_MM = torch.nn.functional.pad(sees_NN, (0, extra, 0, extra))
    sees_MM.diagonal().fill_(True)
    fill = torch.nn.functional.pad
    return DraftTree(
        fill(tree.tokens_N, (0, extra), value=PADDING),
        Shape(fill(parents_N, (0, extra)), fill(depths_N, (0, extra)), sees_MM, depth),
        faulty=tree.faulty,
    )
