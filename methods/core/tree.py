"""Draft trees: the tokens a drafter guesses in one step.

Shape letters of this package: N tree nodes, T tokens, V vocabulary, D hidden width, L layers.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Shape(NamedTuple):
    """What of a tree does not depend on its tokens, on the host."""

    depths: tuple[int, ...]
    children: tuple[tuple[int, ...], ...]


@lru_cache(maxsize=4096)
def shape_of(parents: tuple[int, ...]) -> Shape:
    """The shape of a parent list, cached: static trees ask every step.

    Raises ValueError unless ``parents[0] == -1`` and ``0 <= parents[i] < i`` for every other node.
    """
    if not parents or parents[0] != -1 or any(not 0 <= p < i for i, p in enumerate(parents) if i):
        raise ValueError(f"parents must be -1 for the root and point backwards, got {parents}")
    depths = [0]
    children: list[list[int]] = [[] for _ in parents]
    for i, parent in enumerate(parents[1:], start=1):
        depths.append(depths[parent] + 1)
        children[parent].append(i)
    return Shape(tuple(depths), tuple(map(tuple, children)))


class DeviceShape(NamedTuple):
    """The same for the target's forward pass."""

    depths_N: Tensor
    ancestors_NN: Tensor  # bool; row i is true at i and at its ancestors: what node i may attend to within the tree


@lru_cache(maxsize=4096)
def device_shape_of(parents: tuple[int, ...], device: torch.device) -> DeviceShape:
    sees_NN = np.eye(len(parents), dtype=bool)
    for i, parent in enumerate(parents[1:], start=1):
        sees_NN[i] |= sees_NN[parent]
    return DeviceShape(torch.tensor(shape_of(parents).depths, device=device), torch.from_numpy(sees_NN).to(device))


@dataclass(frozen=True)
class DraftTree:
    """N guessed tokens and who follows whom, on the host.

    Node 0 is the root: the last committed token, whose keys and values are not cached yet. A tree of the root alone
    makes a step of plain autoregressive decoding. Siblings stand in the order they are tried, and without ``q_NV``
    they carry distinct tokens.
    """

    tokens: list[int]
    parents: tuple[int, ...]
    q_NV: Tensor | None = None  # row i: the distribution node i was drawn from; None: the drafts are not random

    def __post_init__(self) -> None:
        if len(self.parents) != len(self.tokens):
            raise ValueError(f"{len(self.tokens)} tokens but {len(self.parents)} parents")

    @classmethod
    def chain(cls, tokens: list[int], q_NV: Tensor | None = None) -> "DraftTree":
        return cls(tokens, tuple(range(-1, len(tokens) - 1)), q_NV)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def shape(self) -> Shape:
        return shape_of(self.parents)

    @property
    def depth(self) -> int:
        return max(self.shape.depths)
