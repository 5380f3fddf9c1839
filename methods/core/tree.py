"""Draft trees: the tokens a drafter guesses in one step.

Shape letters of this package: N tree nodes, P nodes on a path (the tree's depth + 1), T tokens,
V vocabulary, D hidden width, L layers, S rows of a cache, K tokens of a row of q.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

PADDING = -1  # token of a node that only fills a tree up to a fixed size; never accepted
MAX_TREE_SIZE = 128  # size of the largest tree, root included


class Shape(NamedTuple):
    """The part of a tree that does not depend on its tokens, on the device.

    Parents stand before their children.
    """

    parents_N: Tensor  # the root is its own parent
    depths_N: Tensor
    sees_NN: Tensor  # bool; row i is true at i and its ancestors: what i attends to in the tree
    depth: int  # upper bound of depths_N, known to the host


class SparseRows(NamedTuple):
    """A distribution for each node, over few tokens: node i has ``tokens_NK[i, k]`` with probability ``q_NK[i, k]``.

    The tokens of a row are distinct. The row of the root, which is not drawn, means nothing.
    """

    q_NK: Tensor
    tokens_NK: Tensor


class DraftTree(NamedTuple):
    """N guessed tokens and each one's parent, on the device.

    Node 0 is the root: the last committed token, whose keys and values are not cached yet. A tree
    of the root alone makes a step of plain autoregressive decoding. Siblings stand in the order in
    which they are tried; without ``q`` they carry distinct tokens.
    """

    tokens_N: Tensor
    shape: Shape
    q: SparseRows | None = None  # what each node was drawn from; None: not random
    faulty: Tensor | None = None  # bool without axes: whether the drafter's logits were NaN

    @classmethod
    def of(cls, tokens: Sequence[int], parents: Sequence[int], device: torch.device, q: SparseRows | None = None) -> "DraftTree":
        """Build a tree from host lists.

        Raises ValueError for lists of different lengths or an invalid parent list (``shape_of``).
        """
        if len(parents) != len(tokens):
            raise ValueError(f"{len(tokens)} tokens but {len(parents)} parents")
        return cls(torch.tensor(tokens, device=device), shape_of(tuple(parents), device), q)

    @classmethod
    def chain(cls, tokens: Sequence[int], device: torch.device) -> "DraftTree":
        """Build a tree without branches: each token follows the one before."""
        return cls.of(tokens, range(-1, len(tokens) - 1), device)

    @property
    def size(self) -> int:
        """The number of nodes N, root and padding included."""
        return self.tokens_N.shape[0]


@lru_cache(maxsize=4096)
def shape_of(parents: tuple[int, ...], device: torch.device) -> Shape:
    """Return the shape of a parent list, cached because static trees ask for it in every step.

    Raises ValueError unless ``parents[0] == -1`` and ``0 <= parents[i] < i`` for every other node.
    """
    if not parents or parents[0] != -1 or any(not 0 <= p < i for i, p in enumerate(parents) if i):
        raise ValueError(f"parents must be -1 for the root and smaller than the node's own number elsewhere, got {parents}")
    depths = [0]
    for parent in parents[1:]:
        depths.append(depths[parent] + 1)
    return grown_shape(torch.tensor([0, *parents[1:]], device=device), max(depths))


def grown_shape(parents_N: Tensor, depth: int) -> Shape:
    """Return the shape of parents that only the device knows; no node is deeper than ``depth``.

    Nothing is read back by the host.
    """
    sees_NN = torch.eye(len(parents_N), dtype=torch.bool, device=parents_N.device)
    ancestor_N = parents_N
    for _ in range(depth.bit_length()):  # doubling: after k passes a node sees 2^k - 1 ancestors
        sees_NN = sees_NN | sees_NN[ancestor_N]
        ancestor_N = ancestor_N[ancestor_N]
    return Shape(parents_N, sees_NN.sum(dim=1) - 1, sees_NN, depth)


def padded(tree: DraftTree, size: int) -> DraftTree:
    """Return the tree padded to ``size`` nodes; a padding node sees itself and the committed text."""
    extra = size - tree.size
    if extra == 0:
        return tree

    parents_N, depths_N, sees_NN, depth = tree.shape
    sees_MM = F.pad(sees_NN, (0, extra, 0, extra))
    sees_MM.diagonal().fill_(True)

    return DraftTree(
        F.pad(tree.tokens_N, (0, extra), value=PADDING),
        Shape(F.pad(parents_N, (0, extra)), F.pad(depths_N, (0, extra)), sees_MM, depth),
        faulty=tree.faulty,
    )
