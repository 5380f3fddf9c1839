"""Worker processes for tests: they are forked from a server that has imported everything, and some kill themselves.

A worker process imports its target function by module and name, so these functions cannot be local to a test.
"""

import contextlib
import io
import multiprocessing
import os
import signal
import time
import unittest.mock
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from helpers.consoles import printed
from helpers.tiny_target import write_suite, write_target
from specbench.config.options import RunConfig
from specbench.measure import measurer
from specbench.measure.runner import run
from specbench.measure.workers import processes
from specbench.measure.workers.driver import started
from specbench.store import records
from specbench.store.records import Record
from specbench.util.terminal import Console

DEADLY = ("pld", "n1", 1, 0)  # key of the unit that kills its worker
serve = processes.serve


def small_config(folder: Path) -> RunConfig:
    """Return the settings of a small run with two arms, whose target and suite are written into the folder."""
    target, suite_file = write_target(folder / "target"), write_suite(folder / "suite.jsonl")
    return RunConfig(
        ["pld"],
        str(target),
        suite_file=suite_file,
        max_new_tokens=16,
        temperature=0.8,
        repeats=2,
        dtype="fp64",
        device="cpu",
        backend="eager",
    )


def forked() -> multiprocessing.context.ForkServerContext:
    """Return a context that forks workers from a server; spawned ones would import torch each."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["specbench.measure.workers.worker_session", "helpers.worker_processes"])
    return context


def quiet() -> Console:
    """Return a console that keeps what is printed."""
    return Console(file=io.StringIO(), width=200)


def run_by_two(config: RunConfig, run_dir: Path) -> str:
    """Measure a run by two workers and return what was printed."""
    console = quiet()
    with started(config, 2, None, console) as executor:
        run(executor, run_dir, console)
    return printed(console)


def records_without_times(run_dir: Path) -> list[Record]:
    """Return a run's records by key, without times, memory and device, which differ from run to run."""
    found, torn, *_ = records.read(run_dir)
    assert not torn
    timeless = [replace(r.steps, draft_s=[], verify_s=[], commit_s=[]) for r in found]
    kept = [replace(r, prefill_s=0, total_s=1, peak_bytes=0, device="", steps=steps) for r, steps in zip(found, timeless, strict=True)]
    return sorted(kept, key=lambda record: record.key)


def count_records(run_dir: Path) -> int:
    """Return the number of records on disk."""
    path = run_dir / records.FILE
    return path.read_bytes().count(b"\n") if path.exists() else 0


def wait_until(condition, seconds: float = 60.0) -> None:
    """Wait until a function returns true. Raises AssertionError after so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition does not become true"
        time.sleep(0.01)


def children_of(pid: int) -> list[int]:
    """Return the process ids of a process's children."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    """Return whether a process exists and is no zombie."""
    with contextlib.suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False


@contextlib.contextmanager
def before_each_unit(action) -> Iterator[None]:
    """Call ``action(unit)`` before each unit is measured."""
    attempt = measurer.Measurer.attempt

    def act_and_attempt(self, unit, max_new_tokens):
        action(unit)
        return attempt(self, unit, max_new_tokens)

    with unittest.mock.patch.object(measurer.Measurer, "attempt", act_and_attempt):
        yield


def die_if(condition: bool) -> None:
    """Kill this process if the condition holds."""
    if condition:
        os.kill(os.getpid(), signal.SIGKILL)


def killed_once(pipe, config, index, workers) -> None:
    """Serve as a worker; the first one to reach the deadly unit dies."""
    mark = Path(config.suite_file).with_name("killed")

    def die_once(unit) -> None:
        first = unit.key == DEADLY and not mark.exists()
        if first:
            mark.touch()
        die_if(first)

    with before_each_unit(die_once):
        serve(pipe, config, index, workers)


def killed_each_time(pipe, config, index, workers) -> None:
    """Serve as a worker; every one that reaches the deadly unit dies."""
    with before_each_unit(lambda unit: die_if(unit.key == DEADLY)):
        serve(pipe, config, index, workers)


def killed_at_once(pipe, config, index, workers) -> None:
    """Serve as a worker that dies at its first question; warm-up questions are none of the suite's."""
    with before_each_unit(lambda unit: die_if(unit.question.id in ("a1", "a2", "n1", "n2"))):
        serve(pipe, config, index, workers)


def run_to_be_killed(config: RunConfig, run_dir: Path) -> None:
    """Measure a run by two forked workers, in a process that the test kills."""
    setattr(processes, "CONTEXT", multiprocessing.get_context("fork"))  # noqa: B010 (another kind of context)
    run_by_two(config, run_dir)
