"""A worker's side: one target, all arms, one question at a time, by the runner that measures in one process too."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import replace

from rich.console import Console

from methods.core.errors import UserError
from specbench.config.options import Options
from specbench.measure import runner
from specbench.measure.schedule import units
from specbench.measure.session import prepare
from specbench.measure.workers.protocol import Finished, Loaded, Refused, Reply, Warmed
from specbench.store.records import Record
from specbench.util.environment import device_id
from specbench.util.memory import freeze


class Bench:
    """Worker ``index`` of ``workers``. To be asked ``load``, then ``warm``, then for each question ``answer`` and ``go_on`` until
    it is finished.
    """

    def __init__(self, options: Options, index: int, workers: int):
        self._options, self._index, self._workers = options, index, workers
        self._answers: Iterator[Record] = iter(())

    def do(self, what: str, *arguments: object) -> Reply:
        """What the method of this name replies."""
        try:
            reply: Reply = getattr(self, what)(*arguments)
        except UserError as error:
            return Refused(str(error))
        return reply

    def load(self) -> Loaded:
        session = prepare(self._options)
        self._session = replace(session, device=device_id(session.model.device, self._index, self._workers))
        return Loaded(session.manifest, self._session.device)

    def warm(self) -> Warmed:
        said = io.StringIO()
        facts = runner.warm_up(self._session, Console(file=said))
        freeze()
        return Warmed(facts, said.getvalue().splitlines())

    def answer(self, question_id: str, done: Sequence[Record]) -> Record | Finished:
        """The question's first turn that is not in ``done``."""
        settings = self._session.manifest.settings
        everything = units(self._session.suite.questions, settings.methods, settings.repeats)
        self._answers = runner.answers(self._session, done, [unit for unit in everything if unit.question.id == question_id])
        return self.go_on()

    def go_on(self) -> Record | Finished:
        """The same question's next turn."""
        return next(self._answers, Finished())
