"""Worker processes for tests: forked from a server that has imported everything, and some that die on command.

A worker imports what it is given by name: these functions are of a module, so that it finds them.
"""

import contextlib
import io
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from helpers.tiny_target import write_suite, write_target
from specbench.config.options import Options
from specbench.measure import runner
from specbench.measure.runner import run
from specbench.measure.workers import processes
from specbench.measure.workers.start import started
from specbench.store import records
from specbench.store.records import Record

DEADLY = ("pld", "n1", 1, 0)  # the unit that kills
serve = processes.serve


def small_options(folder: Path) -> Options:
    target, suite_file = write_target(folder / "target"), write_suite(folder / "suite.jsonl")
    return Options(
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


def forked() -> multiprocessing.context.BaseContext:
    """Instead of spawned, which would import torch for every worker."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["specbench.measure.workers.bench", "worker_processes"])
    return context


def quiet() -> Console:
    return Console(file=io.StringIO(), width=200)


def run_by_two(options: Options, run_dir: Path) -> str:
    """What was printed."""
    console = quiet()
    with started(options, 2, None, console) as crew:
        run(crew, run_dir, console)
    return console.file.getvalue()


def but_for_times(run_dir: Path) -> list[Record]:
    found, torn = records.read(run_dir)
    assert not torn
    timeless = [replace(r.steps, draft_s=[], verify_s=[], commit_s=[]) for r in found]
    kept = [replace(r, prefill_s=0, total_s=1, peak_bytes=0, device="", steps=steps) for r, steps in zip(found, timeless, strict=True)]
    return sorted(kept, key=lambda record: record.key)


def lines_of(run_dir: Path) -> int:
    path = run_dir / records.FILE
    return path.read_bytes().count(b"\n") if path.exists() else 0


def until(condition, seconds: float = 60.0) -> None:
    patience = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < patience, "it does not come"
        time.sleep(0.01)


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False


@contextlib.contextmanager
def before_each(act) -> Iterator[None]:
    """``act`` on every unit before it is measured."""
    attempt = runner._Measurer.attempt

    def acting(self, unit, max_new_tokens):
        act(unit)
        return attempt(self, unit, max_new_tokens)

    runner._Measurer.attempt = acting
    try:
        yield
    finally:
        runner._Measurer.attempt = attempt


def die(unit) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killed_once(pipe, options, index, workers) -> None:
    mark = Path(options.suite_file).with_name("killed")

    def once(unit) -> None:
        if unit.key == DEADLY and not mark.exists():
            mark.touch()
            die(unit)

    with before_each(once):
        serve(pipe, options, index, workers)


def killed_each_time(pipe, options, index, workers) -> None:
    with before_each(lambda unit: unit.key == DEADLY and die(unit)):
        serve(pipe, options, index, workers)


def killed_at_once(pipe, options, index, workers) -> None:
    """At any question; the prompts of the warm-up are no question's."""
    with before_each(lambda unit: unit.question.id in ("a1", "a2", "n1", "n2") and die(unit)):
        serve(pipe, options, index, workers)


def crew_to_be_killed(options: Options, run_dir: Path) -> None:
    processes.CONTEXT = multiprocessing.get_context("fork")
    run_by_two(options, run_dir)
