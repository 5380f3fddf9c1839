import dataclasses
from types import SimpleNamespace

import pytest
from helpers.worker_processes import quiet, small_options

from methods.core.errors import UserError
from specbench import suites
from specbench.measure.session import prepare, suite_of
from specbench.measure.workers.driver import Workers
from specbench.measure.workers.protocol import Ended, Finished, Loaded, Refused, Warmed
from specbench.store.records import Record

NOBODY = SimpleNamespace(add=lambda record: None)


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    return small_options(tmp_path_factory.mktemp("inputs"))


class Scripted:
    """A place whose workers reply as told, in order; ``asked`` is all they were asked."""

    device, facts = "cpu", {}

    def __init__(self, *replies):
        self.replies, self.asked, self.stopped = list(replies), [], []

    def start(self, index):
        place = self

        class Worker:
            def ask(self, *what):
                place.asked.append((index, *what))

            def stop(self):
                place.stopped.append(index)

        return Worker()

    def wait(self, asked, timeout=None):
        if not self.replies:
            return None
        index, reply = self.replies.pop(0)
        if isinstance(reply, BaseException):
            raise reply
        return asked[index], reply

    def close(self):
        self.stopped.append("place")


@pytest.fixture(scope="module")
def loaded(options):
    return Loaded(prepare(options).manifest, "A CPU #cpu")


def scripted(options, *replies) -> tuple[Workers, Scripted]:
    place = Scripted(*replies)
    return Workers(place, 2, suite_of(options), quiet()), place


def test_answers_that_are_there_at_ctrl_c_are_kept(options, loaded, tmp_path):
    rows = [Record("vanilla", question, "letters", 0, 0, "error", error="e") for question in ("a1", "a2")]
    ready = [(0, loaded), (1, loaded), (0, Warmed({}, [])), (0, Warmed({}, []))]
    crew, place = scripted(options, *ready, (0, KeyboardInterrupt()), (1, rows[1]), (0, rows[0]))
    crew.load()
    crew.warm_up(quiet())
    kept = []
    with pytest.raises(KeyboardInterrupt):
        crew.measure([], kept.append, NOBODY)
    assert kept == [rows[1], rows[0]]
    assert [each[:2] for each in place.asked[-2:]] == [(0, "answer"), (1, "answer")]


def test_workers_that_are_not_alike_do_not_measure_one_run(options, loaded):
    manifest = loaded.manifest
    other = dataclasses.replace(
        loaded, manifest=dataclasses.replace(manifest, settings=dataclasses.replace(manifest.settings, dtype="bf16"))
    )
    with pytest.raises(UserError, match=r"^worker 1 is not like worker 0: dtype fp64 -> bf16;"):
        scripted(options, (0, loaded), (1, other))[0].load()
    crew, _ = scripted(options, (0, loaded))
    crew._suite = suites.load("mini")
    with pytest.raises(UserError, match=r"^worker 0 reads another suite"):
        crew.load()


def test_a_device_that_is_lost_ends_its_worker_and_not_the_question(options, loaded):
    ready = [(0, loaded), (1, loaded), (0, Warmed({}, [])), (0, Warmed({}, []))]
    again = [(0, Refused("the device failed")), (0, Ended("exit code 1")), (0, loaded), (0, Warmed({}, [])), (0, Finished())]
    crew, place = scripted(options, *ready, *again, (0, KeyboardInterrupt()))
    crew.load()
    crew.warm_up(quiet())
    with pytest.raises(KeyboardInterrupt):
        crew.measure([], pytest.fail, NOBODY)
    assert place.stopped == [0, 0]
    assert [each[2] for each in place.asked if each[:2] == (0, "answer")] == ["a1", "a1", "n1"]
