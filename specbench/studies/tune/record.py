"""Records what every method would have drafted at every token of the target's own greedy answers: one pass for all of them."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

import numpy as np
from torch import Tensor

from methods.core.acceptance import Accepted, Sampling, match
from methods.core.clock import HostClock
from methods.core.decode import Drafter, decode
from methods.core.policies import Choice, GrownTree, StaticTree, Step, likeliest
from methods.core.target import Scores, Target
from methods.core.tree import PADDING, DraftTree
from methods.vanilla import Vanilla
from specbench.studies.tune.guess import FixedGuess, GrownGuess, Guess, Level
from specbench.studies.tune.replay import Answer


class Watch(Protocol):
    """A drafter whose guesses are noted."""

    drafter: Drafter

    def guess(self, tokens: list[int]) -> Guess: ...


class WatchedFixed:
    """A drafter whose smaller trees are parts of its largest: ``order`` says from how many nodes on each node is drafted."""

    def __init__(self, drafter: Drafter, order: Sequence[int]):
        self.drafter, self._order = drafter, order

    def guess(self, tokens: list[int]) -> Guess:
        tree = self.drafter.draft(tokens)
        drafted = [token for token in tree.tokens_N.tolist() if token != PADDING]
        return FixedGuess(drafted, tree.shape.parents_N.tolist(), self._order)


class WatchedGrown:
    """A drafter that grows its trees, on the eager back end, where its policy can be looked over the shoulder."""

    def __init__(self, drafter: Drafter, width: int):
        self.drafter = drafter
        policy_owner = cast(Any, drafter)
        self._noted = policy_owner.policy = _Noted(policy_owner.policy, width)

    def guess(self, tokens: list[int]) -> Guess:
        self.drafter.draft(tokens)
        return GrownGuess(self._noted.levels())


class _Noted:
    """A tree policy that notes what it was told."""

    def __init__(self, policy: GrownTree, width: int):
        self._policy, self._width = policy, width

    @property
    def size(self) -> int:
        return self._policy.size

    def grow(self, root: Tensor, logits_WV: Tensor, step: Step) -> DraftTree:
        start = root[None].new_zeros(1)
        self._told: list[tuple[Tensor, Tensor, Tensor]] = [(start, root[None], logits_WV)]

        def noted(tokens_W: Tensor, rows_W: Tensor, level: int) -> Tensor:
            logits_WV = step(tokens_W, rows_W, level)
            self._told.append((rows_W, tokens_W, logits_WV))
            return logits_WV

        return self._policy.grow(root, logits_WV, noted)

    def levels(self) -> list[Level]:
        found = []
        for rows_R, tokens_R, logits_RV in self._told:
            guess_RK, logq_RK = likeliest(logits_RV, self._width, len(rows_R), self._policy.tokens_V)
            rows, tokens, guess = (np.array(each.tolist()) for each in (rows_R, tokens_R, guess_RK))
            found.append(Level(rows, tokens, guess, np.array(logq_RK.tolist(), dtype=np.float32)))
        return found


class Recorder:
    """A drafter that drafts nothing, so that every token of the answer begins a round, and notes each watched drafter's guess there."""

    sizes = (1,)

    def __init__(self, watched: Mapping[str, Watch], target: Target):
        self._watched, self._plain = watched, Vanilla(target.device)
        self.reads = reads_of(self._drafters())
        self.guesses: dict[str, list[Guess]] = {}

    def begin(self, prompt: list[int], first: Accepted, scores: Scores, sampling: Sampling) -> None:
        self.guesses = {name: [] for name in self._watched}
        for drafter in self._drafters():
            drafter.begin(prompt, first, scores, sampling)

    def draft(self, tokens: list[int]) -> DraftTree:
        for name, watch in self._watched.items():
            self.guesses[name].append(watch.guess(tokens))
        return self._plain.draft(tokens)

    def observe(self, tree: DraftTree, accepted: Accepted, scores: Scores) -> None:
        for drafter in self._drafters():
            drafter.observe(tree, accepted, scores)

    def _drafters(self) -> list[Drafter]:
        return [self._plain, *(watch.drafter for watch in self._watched.values())]


def reads_of(drafters: Sequence[Drafter]) -> tuple[int, ...]:
    """What drafters that see the same scores read; those that read layers of the target read the same ones."""
    wanted = {drafter.reads for drafter in drafters} - {()}
    assert len(wanted) <= 1, f"drafters beside each other read different layers: {wanted}"
    return wanted.pop() if wanted else ()


def record(target: Target, watched: Mapping[str, Watch], prompt: list[int], sampling: Sampling) -> Answer:
    """One greedy answer with every watched drafter's guess at each of its tokens."""
    recorder = Recorder(watched, target)
    result = decode(target, recorder, match, prompt, sampling, HostClock())
    return Answer(result.tokens, recorder.guesses)


def static_order(choices: Sequence[Choice]) -> list[int]:
    """For each node of a static tree of ``choices``, best first: from how many drafts on it is in the tree; 0 for the root."""
    first = {choice: drafts for drafts, choice in enumerate(choices, start=1)}
    return [0, *(first[choice] for choice in StaticTree(choices).choices)]
