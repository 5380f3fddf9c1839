"""What a drafter guessed at one place of a text, kept whole, so that smaller trees can be cut from it afterwards.

Shape letters: A rows of a level that a narrower tree expands, R rows that were expanded, K guesses kept of each.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from methods.core.policies import GrownTree


class Setting(NamedTuple):
    """Tree options of a method; ``depth`` and ``width`` are 0 where it has no such options."""

    nodes: int
    depth: int = 0
    width: int = 0

    @property
    def options(self) -> dict[str, int]:
        """As ``--set`` takes them."""
        return {name: value for name, value in self._asdict().items() if value}


class Guess(Protocol):
    def needs(self, following: Sequence[int], depth: int, width: int) -> list[int]:
        """How many drafts a tree must have to hold the first 1, 2, … tokens of what followed; ends where no tree would."""
        ...

    def size(self, setting: Setting) -> int:
        """Nodes the target would score, root and padding included."""
        ...


@dataclass(frozen=True)
class FixedGuess:
    """A tree whose nodes come in a fixed order: node i is drafted by every tree of ``order[i]`` nodes or more; node 0 is the root."""

    tokens: Sequence[int]
    parents: Sequence[int]
    order: Sequence[int]

    def needs(self, following: Sequence[int], depth: int, width: int) -> list[int]:
        node, found = 0, []
        for wanted in following:
            children = (i for i in range(node + 1, len(self.tokens)) if self.parents[i] == node)
            child = next((i for i in children if self.tokens[i] == wanted), None)
            if child is None:
                break
            node = child
            found.append(self.order[node])
        return found

    def size(self, setting: Setting) -> int:
        return 1 if len(self.tokens) == 1 else 1 + setting.nodes


class Level(NamedTuple):
    """The rows expanded at one level: which row of the level before each came from and by which token, and its best guesses."""

    rows_R: NDArray[np.int64]
    tokens_R: NDArray[np.int64]
    guess_RK: NDArray[np.int64]
    logq_RK: NDArray[np.float32]


@dataclass(frozen=True)
class GrownGuess:
    """A grown tree before it is cut: all guesses of all rows that the widest and deepest tree expanded.

    Shallower trees and any number of nodes are cut from it exactly. A narrower tree may expand a row that was none of the
    widest tree's best; what would follow it is not known and counts as not drafted.
    """

    levels: Sequence[Level]

    def needs(self, following: Sequence[int], depth: int, width: int) -> list[int]:
        if not following or following[0] not in self.levels[0].guess_RK[0, :width]:
            return []
        rows_A, scores_A = np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.float32)
        drafted: list[NDArray[np.float32]] = []
        path: list[Any] = []  # scores of the nodes that came true
        on: int | None = 0  # the row that stands for what came true so far
        levels = self.levels[:depth]
        for number, level in enumerate(levels):
            scores_AK = scores_A[:, None] + level.logq_RK[rows_A, :width]
            guess_AK = level.guess_RK[rows_A, :width]
            drafted.append(scores_AK.ravel())
            here = [] if on is None else np.flatnonzero(rows_A == on).tolist()
            ranks = np.flatnonzero(guess_AK[here[0]] == following[number]).tolist() if here and number < len(following) else []
            path += [scores_AK[here[0], rank] for rank in ranks]
            if number + 1 == len(levels):
                break
            beam = np.argsort(-scores_AK, axis=None, kind="stable")[:width]
            deeper = levels[number + 1]
            place = {pair: row for row, pair in enumerate(zip(deeper.rows_R.tolist(), deeper.tokens_R.tolist(), strict=True))}
            pairs = [(int(rows_A[i // scores_AK.shape[1]]), int(guess_AK.flat[i])) for i in beam]
            expanded = [(place[pair], i) for pair, i in zip(pairs, beam.tolist(), strict=True) if pair in place]
            on = place.get((on, following[number])) if ranks and on is not None else None
            rows_A = np.array([row for row, _ in expanded], dtype=np.int64)
            scores_A = scores_AK.ravel()[[i for _, i in expanded]]
        scores = np.concatenate(drafted)
        return [1 + int((scores > score).sum()) for score in path]

    def size(self, setting: Setting) -> int:
        return GrownTree(*setting).size
