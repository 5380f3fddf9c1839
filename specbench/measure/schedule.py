"""The work one record describes, and the order in which a run does it."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from specbench.suites import Question


class Unit(NamedTuple):
    """The work one record describes."""

    method: str
    question: Question
    turn: int
    repeat: int

    @property
    def key(self) -> tuple[str, str, int, int]:
        return (self.method, self.question.id, self.turn, self.repeat)

    @property
    def facts(self) -> tuple[str, str, str, int, int]:
        """A record's first fields."""
        return (self.method, self.question.id, self.question.category, self.turn, self.repeat)


def units(questions: Sequence[Question], methods: Sequence[str], repeats: int) -> Iterator[Unit]:
    """Every unit in the order it is measured.

    A question's arms follow each other directly, so that drift of the machine hits them alike; who goes first rotates
    with the question and the repeat.
    """
    for repeat in range(repeats):
        for index, question in enumerate(questions):
            first = (index + repeat) % len(methods)
            for turn in range(len(question.turns)):
                for method in (*methods[first:], *methods[:first]):
                    yield Unit(method, question, turn, repeat)


def turn_seed(seed: int, unit: Unit) -> int:
    """Differs from turn to turn and from repeat to repeat, is the same in every arm and after a resume."""
    text = f"{seed}/{unit.question.id}/{unit.turn}/{unit.repeat}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")
