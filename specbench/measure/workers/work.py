"""The questions of a run that are still to be answered, dealt to workers and taken back from those that ended."""

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable

from specbench.measure.schedule import Unit, units
from specbench.store.manifest import Settings
from specbench.store.records import Record
from specbench.suites import Question, Suite

TRIES = 2  # of a question, each in a fresh worker


class Work:
    """Every question with a turn that is not in ``done``, in the suite's order; ``keep`` is called with each new record."""

    def __init__(self, suite: Suite, settings: Settings, done: Iterable[Record], keep: Callable[[Record], None]):
        self._keep = keep
        self._units: dict[str, list[Unit]] = defaultdict(list)
        for unit in units(suite.questions, settings.methods, settings.repeats):
            self._units[unit.question.id].append(unit)
        self._known: dict[str, dict[tuple[str, str, int, int], Record]] = defaultdict(dict)
        for record in done:
            self._known[record.question_id][record.key] = record
        self._todo = deque(question for question in suite.questions if self._missing(question))
        self._lost: Counter[str] = Counter()

    def next(self) -> Question | None:
        """A question for a worker that is free; None where all are dealt."""
        return self._todo.popleft() if self._todo else None

    @property
    def waiting(self) -> bool:
        """Whether there is one."""
        return bool(self._todo)

    def known(self, question: Question) -> list[Record]:
        return list(self._known[question.id].values())

    def add(self, record: Record) -> None:
        self._known[record.question_id][record.key] = record
        self._keep(record)

    def lost(self, question: Question, why: str) -> bool:
        """A worker ended over it: whether it is to be tried again. If not, its missing turns are recorded as errors."""
        self._lost[question.id] += 1
        if self._lost[question.id] < TRIES:
            return True
        for unit in self._missing(question):
            self.add(Record(*unit.facts, status="error", error=f"{TRIES} workers ended over this question, the last one: {why}"))
        return False

    def _missing(self, question: Question) -> list[Unit]:
        return [unit for unit in self._units[question.id] if unit.key not in self._known[question.id]]
