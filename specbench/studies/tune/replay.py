"""Replay of recorded guesses at any setting: the steps that a run would have taken, and what they would cost.

A guess is a drafter's largest tree at one place of a text; smaller trees are cut from it.

Shape letters: A rows of a level that a narrower tree expands, R rows that were expanded, K guesses kept of each.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from methods.core.policies import GrownTree
from specbench.studies.tune.cost import DraftCost, VerifyCost
from specbench.studies.tune.settings import Setting


class Guess(Protocol):
    """The guesses of a drafter at one place of a text."""

    def needs(self, following: Sequence[int], depth: int, width: int) -> list[int]:
        """Return how many nodes a tree needs to hold the first 1, 2, … of the tokens that followed.

        The list ends where no tree would hold more.
        """
        ...

    def size(self, setting: Setting) -> int:
        """Return the size of the tree that the target would score, root and padding included."""
        ...


@dataclass(frozen=True)
class FixedGuess:
    """A tree whose nodes come in a fixed order; node 0 is the root.

    Node i is in every tree of ``order[i]`` nodes or more.
    """

    tokens: Sequence[int]
    parents: Sequence[int]
    order: Sequence[int]

    def needs(self, following: Sequence[int], depth: int, width: int) -> list[int]:
        """Return how many nodes a tree needs; see ``Guess.needs``."""
        node, needed = 0, []
        for wanted in following:
            children = (i for i in range(node + 1, len(self.tokens)) if self.parents[i] == node)
            child = next((i for i in children if self.tokens[i] == wanted), None)
            if child is None:
                break
            node = child
            needed.append(self.order[node])
        return needed

    def size(self, setting: Setting) -> int:
        """Return the size of the scored tree; see ``Guess.size``."""
        return 1 if len(self.tokens) == 1 else 1 + setting.nodes


class ExpandedRows(NamedTuple):
    """The rows that were expanded at one level: their parents' rows in the level before, their tokens, and their best guesses."""

    rows_R: NDArray[np.int64]
    tokens_R: NDArray[np.int64]
    guess_RK: NDArray[np.int64]
    logq_RK: NDArray[np.float32]


@dataclass(frozen=True)
class GrownGuess:
    """A grown tree before it is cut: all guesses of all rows that the widest and deepest tree expanded.

    Shallower trees and trees of fewer nodes are cut from it exactly. A narrower tree may expand a row
    that the widest tree did not; the guesses after such a row are unknown and count as not drafted.
    """

    levels: Sequence[ExpandedRows]

    def needs(self, following: Sequence[int], depth: int, width: int) -> list[int]:
        """Return how many nodes a tree needs; see ``Guess.needs``."""
        if not following or following[0] not in self.levels[0].guess_RK[0, :width]:
            return []
        rows_A, scores_A = np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.float32)
        drafted: list[NDArray[np.float32]] = []
        path: list[Any] = []  # scores of the nodes that hold the text
        on: int | None = 0  # the row of the last of these nodes; None once it is unknown

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
        """Return the size of the scored tree; see ``Guess.size``."""
        return GrownTree(*setting).size


class Recording(NamedTuple):
    """A greedy answer; ``guesses[method][i]`` is the method's guess of the tokens after ``tokens[i]``."""

    tokens: Sequence[int]
    guesses: Mapping[str, Sequence[Guess]]


@dataclass(frozen=True)
class Replayed:
    """The steps of a replay; ``sizes`` counts them by the size of the scored tree."""

    emitted: int
    sizes: Mapping[int, int]

    @property
    def steps(self) -> int:
        """The number of steps."""
        return sum(self.sizes.values())

    @property
    def mat(self) -> float:
        """The mean accepted tokens."""
        return self.emitted / self.steps


class Replay:
    """One method's recorded guesses, replayed at any setting.

    A drafter's guess depends on the committed text alone, so the steps are those that a greedy run
    would have taken: tokens are counted as in ``decode``, clipped at the end of the answer.
    """

    def __init__(self, recordings: Sequence[Recording], method: str):
        self._recordings, self._method = recordings, method
        self._needs: dict[tuple[int, int], list[list[list[int]]]] = {}

    def at(self, setting: Setting) -> Replayed:
        """Return the steps at a setting."""
        emitted, sizes = 0, Counter[int]()
        for recording, needs in zip(self._recordings, self._needed(setting.depth, setting.width), strict=True):
            guesses, place = recording.guesses[self._method], 0
            while place < len(guesses):
                accepted = sum(need <= setting.nodes for need in needs[place])
                sizes[guesses[place].size(setting)] += 1
                tokens = min(accepted + 1, len(guesses) - place)
                emitted += tokens
                place += tokens
        return Replayed(emitted, sizes)

    def _needed(self, depth: int, width: int) -> list[list[list[int]]]:
        if (depth, width) not in self._needs:
            self._needs[depth, width] = [
                [guess.needs(recording.tokens[i + 1 :], depth, width) for i, guess in enumerate(recording.guesses[self._method])]
                for recording in self._recordings
            ]
        return self._needs[depth, width]


@dataclass(frozen=True)
class StepCosts:
    """The costs of a method's step on this device; ``plain_s`` is a step of vanilla."""

    verify: VerifyCost
    draft: DraftCost
    plain_s: float


@dataclass(frozen=True)
class Prediction:
    """The replayed steps of a setting at the device's step costs, in seconds; ``plain_s`` is a step of vanilla."""

    setting: Setting
    mat: float
    draft_s: float  # of a step beside verifying: drafting, acceptance, commit
    verify_s: float  # of a step: the mean over the tree sizes that came up
    plain_s: float

    @property
    def step_cost(self) -> float:
        """The step cost R, in vanilla steps."""
        return (self.draft_s + self.verify_s) / self.plain_s

    @property
    def speedup(self) -> float:
        """The decode speedup, without prefill."""
        return self.mat / self.step_cost


def predict(replay: Replay, setting: Setting, costs: StepCosts) -> Prediction:
    """Return the prediction for one setting."""
    replayed = replay.at(setting)
    verify_s = sum(count * costs.verify.at(size) for size, count in replayed.sizes.items()) / replayed.steps
    return Prediction(setting, replayed.mat, costs.draft.at(setting), verify_s, costs.plain_s)


def ranked(replay: Replay, candidates: Sequence[Setting], costs: StepCosts) -> list[Prediction]:
    """Return the predictions for all candidates, the fastest first."""
    predictions = [predict(replay, setting, costs) for setting in candidates]
    return sorted(predictions, key=lambda prediction: -prediction.speedup)
