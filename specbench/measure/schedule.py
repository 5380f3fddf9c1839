"""The schedule of a run: its units of work, their order, and the queue from which workers get whole questions."""

import hashlib
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from specbench.store.manifest import RunManifest
from specbench.store.records import Key, Record
from specbench.suites import Question, Suite

TRIES = 2  # for each question, each in a fresh worker


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


def units_of(suite: Suite, manifest: RunManifest) -> Iterator[Unit]:
    """Yield every unit of a run in the order it is measured."""
    return schedule(suite.questions, list(manifest.arms), manifest.settings.repeats)


def turn_seed(seed: int, unit: Unit) -> int:
    """Return the sampling seed of a turn: the same in every arm and after a resume, different for each turn and repeat."""
    text = f"{seed}/{unit.question.id}/{unit.turn}/{unit.repeat}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")


class QuestionQueue:
    """Every question with a turn that is not in ``done``, in the suite's order. ``keep`` is called with each new record."""

    def __init__(self, suite: Suite, manifest: RunManifest, done: Iterable[Record], keep: Callable[[Record], None]):
        self._keep = keep
        self._units: dict[str, list[Unit]] = defaultdict(list)  # by question id, like the next three
        for unit in units_of(suite, manifest):
            self._units[unit.question.id].append(unit)

        self._records: dict[str, dict[Key, Record]] = defaultdict(dict)
        for record in done:
            self._records[record.question_id][record.key] = record

        self._waiting = deque(question for question in suite.questions if self._missing(question))
        self._failures: Counter[str] = Counter()  # workers that ended over a question

    @property
    def empty(self) -> bool:
        """Whether every question was handed out."""
        return not self._waiting

    def next(self) -> Question | None:
        """Return a question for a free worker, or None if every question was handed out."""
        return self._waiting.popleft() if self._waiting else None

    def records(self, question: Question) -> list[Record]:
        """Return the records of a question so far."""
        return list(self._records[question.id].values())

    def add(self, record: Record) -> None:
        """Keep a new record."""
        self._records[record.question_id][record.key] = record
        self._keep(record)

    def retry(self, question: Question, reason: str) -> bool:
        """Return whether to try a question again over which a worker ended for ``reason``.

        If not, its missing turns are recorded as errors.
        """
        self._failures[question.id] += 1
        if self._failures[question.id] < TRIES:
            return True
        for unit in self._missing(question):
            self.add(Record(*unit.facts, status="error", error=f"{TRIES} workers ended over this question, the last one: {reason}"))
        return False

    def _missing(self, question: Question) -> list[Unit]:
        return [unit for unit in self._units[question.id] if unit.key not in self._records[question.id]]
