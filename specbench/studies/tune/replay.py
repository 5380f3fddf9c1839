"""What a setting would have made of recorded answers: every round it would have run, from the text and the guesses at each place."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from specbench.studies.tune.guess import Guess, Setting


class Answer(NamedTuple):
    """A greedy answer; ``guesses[method][i]`` is what the method's drafter said of the tokens after ``tokens[i]``."""

    tokens: Sequence[int]
    guesses: Mapping[str, Sequence[Guess]]


@dataclass(frozen=True)
class Replayed:
    """``sizes`` counts the rounds by how many nodes the target scored."""

    emitted: int
    sizes: Mapping[int, int]

    @property
    def rounds(self) -> int:
        return sum(self.sizes.values())

    @property
    def mat(self) -> float:
        return self.emitted / self.rounds


class Replay:
    """One method's recorded guesses, asked for any setting.

    A drafter's guess depends on the committed text alone, so the rounds are those a greedy run would have had: tokens are
    counted as in ``decode``, clipped at the end of the answer.
    """

    def __init__(self, answers: Sequence[Answer], method: str):
        self._answers, self._method = answers, method
        self._needs: dict[tuple[int, int], list[list[list[int]]]] = {}

    def of(self, setting: Setting) -> Replayed:
        emitted, sizes = 0, Counter[int]()
        for answer, needs in zip(self._answers, self._needed(setting.depth, setting.width), strict=True):
            guesses, place = answer.guesses[self._method], 0
            while place < len(guesses):
                accepted = sum(need <= setting.nodes for need in needs[place])
                sizes[guesses[place].size(setting)] += 1
                step = min(accepted + 1, len(guesses) - place)
                emitted += step
                place += step
        return Replayed(emitted, sizes)

    def _needed(self, depth: int, width: int) -> list[list[list[int]]]:
        if (depth, width) not in self._needs:
            self._needs[depth, width] = [
                [guess.needs(answer.tokens[i + 1 :], depth, width) for i, guess in enumerate(answer.guesses[self._method])]
                for answer in self._answers
            ]
        return self._needs[depth, width]
