"""The executor that directs a pool of workers, and its start and stop.

A worker answers whole questions, so that compared arms share a device. A free worker is handed the next question.
It is called for one turn at a time: as in one process, a record is on disk before the next turn starts, and a worker
whose record is being written is not timed. Only this process writes.
"""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

import torch

from methods.core.errors import UserError
from specbench.config.options import RunConfig
from specbench.measure.progress import Sink
from specbench.measure.resolve import backend_name, device_name, resolve_methods, split_arms, suite_of
from specbench.measure.schedule import TRIES, QuestionQueue
from specbench.measure.workers.on_ray import RayPool
from specbench.measure.workers.processes import ProcessPool
from specbench.measure.workers.protocol import (
    QuestionFinished,
    SessionLoaded,
    WarmedUp,
    Worker,
    WorkerEnded,
    WorkerFailed,
    WorkerPool,
)
from specbench.store.manifest import Prepared, RunManifest, differences
from specbench.store.records import Record
from specbench.suites import Question, Suite
from specbench.util.environment import merge_environments
from specbench.util.terminal import Console


class Stage(Enum):
    """A worker's current work. The value is the method of ``WorkerSession`` that starts it."""

    LOADING = "load"
    WARMING = "warm_up"
    FREE = "free"
    ANSWERING = "answer"


@dataclass(eq=False)
class Slot:
    """One of the pool's positions: its present worker, replaced if it ends, and the question that it works on."""

    index: int
    worker: Worker
    stage: Stage = Stage.FREE
    question: Question | None = None

    def begin(self, stage: Stage, *arguments: Any) -> None:
        """Have the worker begin a stage."""
        self.stage = stage
        self.worker.call(stage.value, *arguments)


class WorkerExecutor:
    """An ``Executor`` with a pool of ``count`` workers. Call ``load`` first and ``stop`` in any case."""

    def __init__(self, pool: WorkerPool[Any], count: int, suite: Suite, console: Console):
        self.prepared: list[Prepared] = []
        self._pool, self._count, self.suite, self._console = pool, count, suite, console
        self._loaded: dict[int, SessionLoaded] = {}  # by slot
        self._questions: QuestionQueue | None = None
        self._ended_in_a_row = 0  # workers that ended since a question was finished
        self._slots: list[Slot] = []

    @property
    def manifest(self) -> RunManifest:
        """The run's manifest: what all workers agree on, their environments joined, and this process's command line."""
        environment = merge_environments([self._loaded[slot.index].manifest.environment for slot in self._slots])
        return replace(
            self._loaded[0].manifest,
            environment=replace(environment, workers=self._count, **self._pool.facts),
            argv=sys.argv[1:],
        )

    def load(self) -> None:
        """Start the workers and wait until all have loaded. Raises UserError if one fails or is not like the others."""
        for index in range(self._count):
            self._slots.append(Slot(index, self._pool.start(index)))
            self._slots[index].begin(Stage.LOADING)
        while len(self._loaded) < self._count:
            self._handle_next_reply()

    def warm_up(self, console: Console) -> None:
        """Wait until all workers are warm: none may be timed while another one compiles."""
        console.print(f"making {self._count} workers ready: kernels are compiled and warmed up", markup=False, soft_wrap=True)
        while any(slot.stage is not Stage.FREE for slot in self._slots):
            self._handle_next_reply()

    def measure(self, done: Iterable[Record], write: Callable[[Record], None], progress: Sink) -> None:
        """Write one record for each turn that is not in ``done``. After an interrupt, write what workers have answered."""

        def keep(record: Record) -> None:
            write(record)
            progress.add(record)

        self._questions = QuestionQueue(self.suite, self._loaded[0].manifest, done, keep)
        try:
            while self._hand_out(self._questions):
                self._handle_next_reply()
        except (KeyboardInterrupt, UserError):
            self._collect_finished(self._questions)
            raise

    def stop(self) -> None:
        """Stop every worker and close the pool."""
        for slot in self._slots:
            slot.worker.stop()
        self._pool.close()

    def _hand_out(self, questions: QuestionQueue) -> bool:
        """Give every free worker a question. Return whether any question is still to be answered."""
        for slot in self._slots:
            if slot.stage is Stage.FREE:
                slot.question = slot.question or questions.next()
                if slot.question is not None:
                    slot.begin(Stage.ANSWERING, slot.question.id, questions.records(slot.question))
        return not questions.empty or any(slot.question is not None for slot in self._slots)

    def _handle_next_reply(self) -> None:
        """Wait for the first reply of a worker and do what follows from it."""
        busy = self._busy()
        received = self._pool.wait(list(busy))
        assert received is not None, "without a timeout there is a reply"
        worker, reply = received
        slot = busy[worker]
        match reply:
            case SessionLoaded():
                self._check_alike(slot, reply)
                self._loaded[slot.index] = reply
                slot.begin(Stage.WARMING)
            case WarmedUp(prepared, output):
                self.prepared.append(replace(prepared, worker=slot.index, device=self._loaded[slot.index].device))
                self._print(slot, *output)
                slot.stage = Stage.FREE
            case Record():
                assert self._questions is not None, "questions are handed out before they are answered"
                self._questions.add(reply)
                slot.worker.call("go_on")
            case QuestionFinished():
                slot.stage, slot.question, self._ended_in_a_row = Stage.FREE, None, 0
            case WorkerFailed(message) if slot.stage is Stage.LOADING or self._questions is None:  # nothing has been measured yet
                raise UserError(message)
            case WorkerFailed(reason) | WorkerEnded(reason):
                self._restart(slot, reason)

    def _collect_finished(self, questions: QuestionQueue) -> None:
        """Keep the records that have arrived already, without waiting for more."""
        busy = self._busy()
        while busy and (received := self._pool.wait(list(busy), timeout=0)) is not None:
            worker, reply = received
            del busy[worker]
            if isinstance(reply, Record):
                questions.add(reply)

    def _busy(self) -> dict[Worker, Slot]:
        return {slot.worker: slot for slot in self._slots if slot.stage is not Stage.FREE}

    def _check_alike(self, slot: Slot, new: SessionLoaded) -> None:
        """Raise UserError if a worker loaded something else than the others, as may happen on another machine."""
        for index, other in self._loaded.items():
            changed = differences(other.manifest, new.manifest)
            if changed:
                raise UserError(
                    f"worker {slot.index} is not like worker {index}: {'; '.join(changed)}; "
                    "use the same version and files on every machine, or set what differs by its option"
                )
        if new.manifest.suite.sha256 != self.suite.sha256:
            raise UserError(f"worker {slot.index} reads another suite {self.suite.name} than is here; give every machine the same file")

    def _restart(self, slot: Slot, reason: str) -> None:
        """Replace a slot's worker. The new one gets the same question if it may be tried again."""
        question = slot.question if slot.stage is Stage.ANSWERING else None
        slot.stage = Stage.FREE  # if the run ends here, do not wait for its reply
        slot.worker.stop()
        self._ended_in_a_row += 1
        if question is not None and self._questions is not None and not self._questions.retry(question, reason):
            slot.question = None

        if self._ended_in_a_row > TRIES * self._count:  # each slot's question may end TRIES workers
            raise UserError(
                f"{self._ended_in_a_row} workers ended and no question was finished in between, the last one: {reason}; "
                "everything measured is kept: fix it or ask for fewer --workers, then run the same command again"
            )
        self._print(slot, f"ended ({reason}); another takes its place")
        slot.worker = self._pool.start(slot.index)
        slot.begin(Stage.LOADING)

    def _print(self, slot: Slot, *lines: str) -> None:
        for line in lines:
            self._console.print(f"worker {slot.index}: {line}", markup=False, soft_wrap=True)


@contextmanager
def started(config: RunConfig, workers: int | None, ray_address: str | None, console: Console) -> Iterator[WorkerExecutor]:
    """Yield an executor whose workers have loaded the run, and stop them afterwards.

    Raises UserError for everything that would otherwise fail later.
    """
    if workers is None:
        raise UserError(f"--ray-address {ray_address} says where workers are, not how many; add --workers N")
    if workers < 2:
        raise UserError(f"--workers is {workers}; it must be at least 2: leave it out to measure in this process")

    device = device_name(config, has_gpu=torch.cuda.is_available())
    check_shareable(config, device)
    suite = suite_of(config)
    on_this_machine = replace(config, device=device)
    pool = RayPool(config, workers, ray_address) if ray_address else ProcessPool(on_this_machine, workers)
    executor = WorkerExecutor(pool, workers, suite, console)
    try:
        executor.load()
        yield executor
    finally:
        executor.stop()


def check_shareable(config: RunConfig, device: str) -> None:
    """Raise UserError for unknown names and options, and for what workers on ``device`` cannot share."""
    if config.device not in ("", "cpu", "cuda"):
        raise UserError(f"--device {config.device} with --workers: every worker has a device of its own; choices: cpu, cuda")
    if config.device_map:
        raise UserError("--device-map spreads one target over the GPUs that --workers would give a target each; leave one of them out")

    own, others = split_arms(config)
    methods = resolve_methods(own, replace(config, device=device, backend=backend_name(config)))
    endpoints = [arm.name for arm in others if arm.method == "endpoint"]
    if endpoints:
        raise UserError(f"{endpoints[0]} asks one server, which several workers would ask at once; leave out --workers")

    stateful = [name for name, method in methods.items() if method.state]  # its state would differ from worker to worker
    if stateful:
        raise UserError(
            f"{', '.join(stateful)}: state that outlives a question is not shared by workers; leave out --workers or scope=session"
        )
