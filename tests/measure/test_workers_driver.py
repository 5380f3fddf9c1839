"""The worker executor with scripted workers: what it does with each reply, without any process."""

import dataclasses
from types import SimpleNamespace

import pytest
from helpers.worker_processes import quiet, small_config

from methods.core.errors import UserError
from specbench import suites
from specbench.measure.session import prepare, suite_of
from specbench.measure.workers.driver import WorkerExecutor
from specbench.measure.workers.protocol import QuestionFinished, SessionLoaded, WarmedUp, WorkerEnded, WorkerFailed
from specbench.store.manifest import Prepared
from specbench.store.records import Record

NO_PROGRESS = SimpleNamespace(add=lambda record: None)
WARM = WarmedUp(Prepared(1.0, 0), [])


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return small_config(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def loaded(config):
    return SessionLoaded(prepare(config).manifest, "A CPU #cpu")


class ScriptedPool:
    """A pool whose workers give the replies of a script, in its order. An exception in it is raised by ``wait``.

    ``calls`` holds every call as (index, method, arguments); ``stopped`` holds the indexes of stopped workers.
    """

    device = "cpu"

    def __init__(self, *replies):
        self.facts: dict[str, object] = {}
        self.replies, self.calls, self.stopped = list(replies), [], []

    def start(self, index):
        pool = self

        class ScriptedWorker:
            def call(self, *call):
                pool.calls.append((index, *call))

            def stop(self):
                pool.stopped.append(index)

        return ScriptedWorker()

    def wait(self, workers, timeout=None):
        if not self.replies:
            return None
        index, reply = self.replies.pop(0)
        if isinstance(reply, BaseException):
            raise reply
        return workers[index], reply

    def close(self):
        self.stopped.append("pool")


def scripted(suite, *replies) -> tuple[WorkerExecutor, ScriptedPool]:
    """Return an executor of two workers, and its pool."""
    pool = ScriptedPool(*replies)
    return WorkerExecutor(pool, 2, suite, quiet()), pool


def test_answers_that_have_arrived_at_ctrl_c_are_kept(config, loaded):
    records = [Record("vanilla", question, "letters", 0, 0, "error", error="e") for question in ("a1", "a2")]
    ready = [(0, loaded), (1, loaded), (0, WARM), (0, WARM)]  # with one worker warm, the other is the first that is busy
    executor, pool = scripted(suite_of(config), *ready, (0, KeyboardInterrupt()), (1, records[1]), (0, records[0]))
    executor.load()
    executor.warm_up(quiet())
    kept: list[Record] = []
    with pytest.raises(KeyboardInterrupt):
        executor.measure([], kept.append, NO_PROGRESS)
    assert kept == [records[1], records[0]]
    assert [call[:2] for call in pool.calls[-2:]] == [(0, "answer"), (1, "answer")]


def test_workers_that_loaded_different_things_are_refused(config, loaded):
    manifest = loaded.manifest
    settings = dataclasses.replace(manifest.settings, dtype="bf16")
    other = dataclasses.replace(loaded, manifest=dataclasses.replace(manifest, settings=settings))
    with pytest.raises(UserError, match=r"^worker 1 is not like worker 0: dtype fp64 -> bf16;"):
        scripted(suite_of(config), (0, loaded), (1, other))[0].load()
    with pytest.raises(UserError, match=r"^worker 0 reads another suite"):
        scripted(suites.load("mini"), (0, loaded))[0].load()


def test_refusal_while_warming_up_ends_the_run(config, loaded):
    ready = [(0, loaded), (1, loaded)]
    executor, pool = scripted(suite_of(config), *ready, (1, WorkerFailed("vanilla failed to warm up")))
    executor.load()
    with pytest.raises(UserError, match=r"^vanilla failed to warm up$"):
        executor.warm_up(quiet())
    assert pool.stopped == []


def test_lost_device_ends_its_worker_and_the_question_is_tried_again(config, loaded):
    ready = [(0, loaded), (1, loaded), (0, WARM), (0, WARM)]
    again = [(0, WorkerFailed("the device failed")), (0, WorkerEnded("exit code 1")), (0, loaded), (0, WARM), (0, QuestionFinished())]
    executor, pool = scripted(suite_of(config), *ready, *again, (0, KeyboardInterrupt()))
    executor.load()
    executor.warm_up(quiet())
    with pytest.raises(KeyboardInterrupt):
        executor.measure([], lambda record: pytest.fail(f"{record} arrived"), NO_PROGRESS)
    assert pool.stopped == [0, 0]
    assert [call[2] for call in pool.calls if call[:2] == (0, "answer")] == ["a1", "a1", "n1"]
