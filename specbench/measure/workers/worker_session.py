"""The worker's side of a shared run: it loads a session and answers one question at a time, like a run in one process."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import replace

from methods.core.errors import UserError
from specbench.config.options import RunConfig
from specbench.measure import measurer
from specbench.measure.schedule import units_of
from specbench.measure.session import prepare
from specbench.measure.workers.protocol import QuestionFinished, SessionLoaded, WarmedUp, WorkerFailed, WorkerReply
from specbench.store.records import Record
from specbench.util.environment import device_id
from specbench.util.memory import freeze_gc
from specbench.util.terminal import Console


class WorkerSession:
    """The session of worker ``index`` of ``workers``.

    The executor calls ``load``, then ``warm_up``; then for each question ``answer`` once and ``go_on`` until it is finished.
    """

    def __init__(self, config: RunConfig, index: int, workers: int):
        self._config, self._index, self._workers = config, index, workers
        self._records: Iterator[Record] = iter(())  # of the question in progress, each measured when it is asked for

    def call(self, method: str, *arguments: object) -> WorkerReply:
        """Return what a method of this class replies, or ``WorkerFailed`` if it raises UserError."""
        try:
            reply: WorkerReply = getattr(self, method)(*arguments)
        except UserError as error:
            return WorkerFailed(str(error))
        return reply

    def load(self) -> SessionLoaded:
        """Load everything the run needs."""
        session = prepare(self._config)
        self._session = replace(session, device=device_id(session.model.device, self._index, self._workers))
        return SessionLoaded(session.manifest, self._session.device)

    def warm_up(self) -> WarmedUp:
        """Warm up every arm."""
        output = io.StringIO()
        prepared = measurer.warm_up(self._session, Console(file=output))
        freeze_gc()
        return WarmedUp(prepared, output.getvalue().splitlines())

    def answer(self, question_id: str, done: Sequence[Record]) -> Record | QuestionFinished:
        """Answer the question's first turn that is not in ``done``."""
        units = units_of(self._session.suite, self._session.manifest)
        self._records = measurer.answers(self._session, done, [unit for unit in units if unit.question.id == question_id])
        return self.go_on()

    def go_on(self) -> Record | QuestionFinished:
        """Answer the same question's next turn."""
        return next(self._records, QuestionFinished())
