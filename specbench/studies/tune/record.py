"""Recording of the trees that every method would draft at every token of the target's own greedy answers, in one pass for all methods."""

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar

import numpy as np
from torch import Tensor

from methods.core.acceptance import Accepted, Sampling, match
from methods.core.clock import HostClock
from methods.core.decode import Drafter, decode
from methods.core.policies import Choice, Expand, GrownTree, GrowsTrees, StaticTree, likeliest
from methods.core.target import Scores, Target
from methods.core.tree import PADDING, DraftTree
from methods.vanilla import Vanilla
from specbench.studies.tune.replay import ExpandedRows, FixedGuess, GrownGuess, Guess, Recording

S = TypeVar("S")


class Watch(Protocol):
    """A drafter whose guesses are recorded."""

    drafter: Drafter

    def guess(self, tokens: list[int]) -> Guess:
        """Draft after ``tokens`` and return the guess."""
        ...


class WatchedFixed:
    """A drafter whose smaller trees are parts of its largest; node i is in every tree of ``order[i]`` nodes or more."""

    def __init__(self, drafter: Drafter, order: Sequence[int]):
        self.drafter, self._order = drafter, order

    def guess(self, tokens: list[int]) -> Guess:
        """Draft after ``tokens`` and return the guess."""
        tree = self.drafter.draft(tokens)
        drafted = [token for token in tree.tokens_N.tolist() if token != PADDING]
        return FixedGuess(drafted, tree.shape.parents_N.tolist(), self._order)


class WatchedGrown:
    """A drafter that grows its trees; its policy is replaced by one that records, which needs the eager back end."""

    def __init__(self, drafter: Drafter, width: int):
        assert isinstance(drafter, GrowsTrees), "this drafter has no policy to record"
        assert isinstance(drafter.policy, GrownTree), "only grown trees are recorded level by level"
        self.drafter: Drafter = drafter
        self._recorded = drafter.policy = _RecordingPolicy(drafter.policy, width)

    def guess(self, tokens: list[int]) -> Guess:
        """Draft after ``tokens`` and return the guess."""
        self.drafter.draft(tokens)
        return GrownGuess(self._recorded.levels())


class _RecordingPolicy:
    """A tree policy that records the rows and logits of every level."""

    def __init__(self, policy: GrownTree, width: int):
        self._policy, self._width = policy, width
        self._expanded: list[tuple[Tensor, Tensor, Tensor]] = []  # rows, tokens, and logits of each level

    @property
    def size(self) -> int:
        """The inner policy's tree size."""
        return self._policy.size

    def grow(self, root: Tensor, logits_WV: Tensor, state: S, expand: Expand[S]) -> DraftTree:
        """Build a tree as the inner policy does; see ``TreePolicy.grow``."""
        start = root[None].new_zeros(1)
        self._expanded = [(start, root[None], logits_WV)]

        def recorded(tokens_W: Tensor, rows_W: Tensor, level: int, state: S) -> tuple[Tensor, S]:
            logits_WV, state = expand(tokens_W, rows_W, level, state)
            self._expanded.append((rows_W, tokens_W, logits_WV))
            return logits_WV, state

        return self._policy.grow(root, logits_WV, state, recorded)

    def levels(self) -> list[ExpandedRows]:
        """Return the levels of the last tree."""
        levels = []
        for rows_R, tokens_R, logits_RV in self._expanded:
            guess_RK, logq_RK = likeliest(logits_RV, self._width, len(rows_R), self._policy.tokens_U)
            rows, tokens, guess = (np.array(tensor.tolist()) for tensor in (rows_R, tokens_R, guess_RK))
            levels.append(ExpandedRows(rows, tokens, guess, np.array(logq_RK.tolist(), dtype=np.float32)))
        return levels


class Recorder:
    """A drafter that drafts nothing, so that every token takes a step, and records each watched drafter's guess there."""

    sizes = (1,)

    def __init__(self, watched: Mapping[str, Watch], target: Target):
        self._watched, self._plain = watched, Vanilla(target.device)
        self.reads = reads_of(self._drafters())
        self.guesses: dict[str, list[Guess]] = {}

    def begin(self, prompt: list[int], first: Accepted, scores: Scores, sampling: Sampling) -> None:
        """Begin a text for every watched drafter."""
        self.guesses = {name: [] for name in self._watched}
        for drafter in self._drafters():
            drafter.begin(prompt, first, scores, sampling)

    def draft(self, tokens: list[int]) -> DraftTree:
        """Record each watched drafter's guess and return the root alone."""
        for name, watch in self._watched.items():
            self.guesses[name].append(watch.guess(tokens))
        return self._plain.draft(tokens)

    def observe(self, tree: DraftTree, accepted: Accepted, scores: Scores) -> None:
        """Show the step to every watched drafter."""
        for drafter in self._drafters():
            drafter.observe(tree, accepted, scores)

    def wipe(self) -> None:
        """Clear the caches of every watched drafter."""
        for drafter in self._drafters():
            drafter.wipe()

    def _drafters(self) -> list[Drafter]:
        return [self._plain, *(watch.drafter for watch in self._watched.values())]


def reads_of(drafters: Sequence[Drafter]) -> tuple[int, ...]:
    """Return the target layers that drafters beside each other read. They must agree, because they see the same scores."""
    wanted = {drafter.reads for drafter in drafters} - {()}
    assert len(wanted) <= 1, f"drafters beside each other read different layers: {wanted}"
    return wanted.pop() if wanted else ()


def record(target: Target, watched: Mapping[str, Watch], prompt: list[int], sampling: Sampling) -> Recording:
    """Return one greedy answer with every watched drafter's guess at each of its tokens."""
    recorder = Recorder(watched, target)
    result = decode(target, recorder, match, prompt, sampling, HostClock())
    return Recording(result.tokens, recorder.guesses)


def static_order(choices: Sequence[Choice]) -> list[int]:
    """Return for each node of a static tree the number of nodes of the smallest tree that has it; 0 for the root.

    ``choices`` are the nodes of the largest tree, best first.
    """
    first = {choice: drafts for drafts, choice in enumerate(choices, start=1)}
    return [0, *(first[choice] for choice in StaticTree(choices).choices)]
