"""Workers that measure one run, each answering whole questions, so that arms that are compared share a device.

Questions are dealt one at a time to whoever is free. A worker is asked for one turn at a time: as in one process, a record is on disk
before the next turn starts, and between the two nobody is timed. Only this process writes.
"""

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from rich.console import Console

from methods.core.errors import UserError
from specbench.measure.executor import Sink
from specbench.measure.workers.protocol import Ended, Finished, Loaded, Place, Refused, Warmed, Worker
from specbench.measure.workers.work import TRIES, Work
from specbench.store.manifest import RunManifest, differences
from specbench.store.records import Record
from specbench.suites import Question, Suite
from specbench.util.environment import joined


class Stage(Enum):
    LOADING = "load"
    WARMING = "warm"
    FREE = "free"
    ANSWERING = "answer"


@dataclass(eq=False)
class _Seat:
    """A place in the crew: its worker, replaced when that ends, and the question it has in hand."""

    index: int
    worker: Worker
    stage: Stage = Stage.FREE
    question: Question | None = None

    def ask(self, stage: Stage, *arguments: Any) -> None:
        self.stage = stage
        self.worker.ask(stage.value, *arguments)


class Workers:
    """A ``crew.Crew`` of ``count`` workers. First ``load``; ``stop`` in any case."""

    def __init__(self, place: Place[Any], count: int, suite: Suite, console: Console):
        self.prepared: list[dict[str, Any]] = []
        self._place, self._count, self._suite, self._console = place, count, suite, console
        self._loaded: dict[int, Loaded] = {}
        self._work: Work | None = None
        self._fruitless = 0  # workers that ended since a question was finished
        self._seats: list[_Seat] = []

    @property
    def manifest(self) -> RunManifest:
        """The run's, as every worker prepared it; what was asked for is not said of them but of this process."""
        environment = joined([self._loaded[seat.index].manifest.environment for seat in self._seats])
        facts = {**environment, **self._place.facts, "workers": self._count}
        return replace(self._loaded[0].manifest, environment=facts, argv=sys.argv[1:])

    def load(self) -> None:
        """Until ``manifest`` is known. Raises UserError for whatever a worker refuses."""
        for index in range(self._count):
            self._seats.append(_Seat(index, self._place.start(index)))
            self._seats[index].ask(Stage.LOADING)
        while len(self._loaded) < self._count:
            self._listen()

    def warm_up(self, console: Console) -> None:
        """Until all are ready: whoever began earlier would be timed while others compile."""
        console.print(f"making {self._count} workers ready: kernels are compiled and warmed up", markup=False, soft_wrap=True)
        while any(seat.stage is not Stage.FREE for seat in self._seats):
            self._listen()

    def measure(self, done: Iterable[Record], write: Callable[[Record], None], progress: Sink) -> None:
        """One record for each turn not in ``done``. Interrupted, it keeps what workers have answered."""

        def keep(record: Record) -> None:
            write(record)
            progress.add(record)

        self._work = Work(self._suite, self._loaded[0].manifest.settings, done, keep)
        try:
            while self._deal(self._work):
                self._listen()
        except (KeyboardInterrupt, UserError):
            asked = self._asked()
            while asked and (heard := self._place.wait(list(asked), timeout=0)) is not None:
                worker, reply = heard
                del asked[worker]
                if isinstance(reply, Record):
                    self._work.add(reply)
            raise

    def stop(self) -> None:
        for seat in self._seats:
            seat.worker.stop()
        self._place.close()

    def _deal(self, work: Work) -> bool:
        """Whether any question is in hand, or waits for workers that are being made ready."""
        for seat in self._seats:
            if seat.stage is Stage.FREE:
                seat.question = seat.question or work.next()
                if seat.question is not None:
                    seat.ask(Stage.ANSWERING, seat.question.id, work.known(seat.question))
        return work.waiting or any(seat.question is not None for seat in self._seats)

    def _asked(self) -> dict[Worker, _Seat]:
        return {seat.worker: seat for seat in self._seats if seat.stage is not Stage.FREE}

    def _listen(self) -> None:
        """To the first reply."""
        asked = self._asked()
        heard = self._place.wait(list(asked))
        assert heard is not None, "without a timeout there is a reply"
        seat, reply = asked[heard[0]], heard[1]
        match reply:
            case Loaded():
                self._check(seat, reply)
                self._loaded[seat.index] = reply
                seat.ask(Stage.WARMING)
            case Warmed(facts, told):
                self.prepared.append({"worker": seat.index, "device": self._loaded[seat.index].device, **facts})
                self._tell(seat, *told)
                seat.stage = Stage.FREE
            case Record():
                assert self._work is not None, "questions are dealt before they are answered"
                self._work.add(reply)
                seat.worker.ask("go_on")
            case Finished():
                seat.stage, seat.question, self._fruitless = Stage.FREE, None, 0
            case Refused(why) if seat.stage is Stage.LOADING:
                raise UserError(why)
            case Refused(why) | Ended(why):
                self._replace(seat, why)

    def _check(self, seat: _Seat, new: Loaded) -> None:
        """Raise UserError where a worker is not like the others, as on another machine it may not be."""
        for index, other in self._loaded.items():
            apart = differences(other.manifest, new.manifest)
            if apart:
                raise UserError(
                    f"worker {seat.index} is not like worker {index}: {'; '.join(apart)}; make them alike, or ask for one by name"
                )
        if new.manifest.settings.suite_sha256 != self._suite.sha256:
            raise UserError(f"worker {seat.index} reads another suite {self._suite.name} than is here; give every machine the same file")

    def _replace(self, seat: _Seat, why: str) -> None:
        """Another worker for the seat, with the question in hand if it may be tried again."""
        over = seat.question if seat.stage is Stage.ANSWERING else None
        seat.stage = Stage.FREE  # nothing more is heard of it
        seat.worker.stop()
        self._fruitless += 1
        if over is not None and self._work is not None and not self._work.lost(over, why):
            seat.question = None
        if self._fruitless > TRIES * self._count:  # as many can end over one bad question each
            raise UserError(
                f"{self._fruitless} workers ended and no question was finished in between, the last one: {why}; everything measured is "
                "kept: mend that or ask for fewer --workers, then do the same again"
            )
        self._tell(seat, f"ended ({why}); another takes its place")
        seat.worker = self._place.start(seat.index)
        seat.ask(Stage.LOADING)

    def _tell(self, seat: _Seat, *lines: str) -> None:
        for line in lines:
            self._console.print(f"worker {seat.index}: {line}", markup=False, soft_wrap=True)
