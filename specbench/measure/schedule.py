"""The schedule of a run: its units of work and their order."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from specbench.suites import Question


class Unit(NamedTuple):
    """The work that one record describes: one turn of one question by one arm, in one repeat."""

    arm: str
    question: Question
    turn: int
    repeat: int

    @property
    def key(self) -> tuple[str, str, int, int]:
        """The key of the unit's record."""
        return (self.arm, self.question.id, self.turn, self.repeat)

    @property
    def facts(self) -> tuple[str, str, str, int, int]:
        """The first fields of the unit's record."""
        return (self.arm, self.question.id, self.question.category, self.turn, self.repeat)


def schedule(questions: Sequence[Question], arms: Sequence[str], repeats: int) -> Iterator[Unit]:
    """Yield every unit in the order it is measured.

    The arms of a turn follow each other directly, so that drift of the machine affects them alike. The arm that goes first
    rotates with the question and the repeat.
    """
    for repeat in range(repeats):
        for index, question in enumerate(questions):
            first = (index + repeat) % len(arms)
            for turn in range(len(question.turns)):
                for arm in (*arms[first:], *arms[:first]):
                    yield Unit(arm, question, turn, repeat)


def turn_seed(seed: int, unit: Unit) -> int:
    """Return the sampling seed of a turn: the same in every arm and after a resume, different for each turn and repeat."""
    text = f"{seed}/{unit.question.id}/{unit.turn}/{unit.repeat}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")
