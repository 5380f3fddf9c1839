"""The questions of a run that are still to be answered: handed out to workers, and taken back from workers that ended."""

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable

from specbench.measure.schedule import Unit, schedule
from specbench.store.manifest import RunManifest
from specbench.store.records import Record
from specbench.suites import Question, Suite

TRIES = 2  # for each question, each in a fresh worker


class QuestionQueue:
    """Every question with a turn that is not in ``done``, in the suite's order. ``keep`` is called with each new record."""

    def __init__(self, suite: Suite, manifest: RunManifest, done: Iterable[Record], keep: Callable[[Record], None]):
        self._keep = keep
        self._units: dict[str, list[Unit]] = defaultdict(list)  # by question id, like the next three
        for unit in schedule(suite.questions, list(manifest.arms), manifest.settings.repeats):
            self._units[unit.question.id].append(unit)

        self._records: dict[str, dict[tuple[str, str, int, int], Record]] = defaultdict(dict)
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
