"""Measures a session: every method answers every turn, arms interleaved, one record a turn."""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.console import Console

from methods.core.acceptance import Sampling
from methods.core.errors import UserError
from methods.core.target import ContextOverflow
from specbench.engines.base import Answerer
from specbench.measure.executor import Crew, Sink
from specbench.measure.progress import RunProgress
from specbench.measure.schedule import Unit, turn_seed, units
from specbench.measure.session import Session
from specbench.store import records, rundir
from specbench.store.records import BASELINE, Record
from specbench.targets import chat
from specbench.util.memory import PeakMemory, unhindered

R = TypeVar("R")

WARMUP_TOKENS = 32  # a turn: enough for allocators, kernels and caches to settle


class Alone:
    """A session measured in this process."""

    def __init__(self, session: Session):
        self.manifest, self._session = session.manifest, session
        self.prepared: list[dict[str, Any]] = []

    def warm_up(self, console: Console) -> None:
        console.print(f"making {len(self._session.answerers)} arms ready: kernels are compiled and warmed up", markup=False, soft_wrap=True)
        self.prepared.append(warm_up(self._session, console))

    def measure(self, done: Iterable[Record], write: Callable[[Record], None], progress: Sink) -> None:
        measure(self._session, done, write, progress)


def run(session: Session | Crew, run_dir: Path, console: Console) -> None:
    """Measure what the directory does not hold yet, in this process or by a crew of workers.

    Ctrl-C leaves a run that resumes and passes on; a full disk is a UserError. Either way every finished turn is kept.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        with rundir.claimed(run_dir):
            _run(Alone(session) if isinstance(session, Session) else session, run_dir, console)
    except OSError as error:
        raise UserError(f"cannot write to {run_dir} ({error.strerror}); make room, then: specbench resume {run_dir}") from None


def _run(crew: Crew, run_dir: Path, console: Console) -> None:
    manifest, done = rundir.open_run(crew.manifest, run_dir, console)
    total = manifest.units_total

    def note(status: str) -> None:
        replace(manifest, status=status, prepared=[*manifest.prepared, *crew.prepared]).write(run_dir)

    if len(done) == total:
        console.print(f"{run_dir}: all {total} turns are measured", markup=False, soft_wrap=True)
    else:
        progress = RunProgress(console, manifest.settings.methods, total, done)
        try:
            crew.warm_up(console)
            note("running")
            with contextlib.closing(records.Writer(run_dir)) as writer, progress:
                crew.measure(done, writer.write, progress)
        except BaseException:
            with contextlib.suppress(OSError):  # a full disk: the manifest on it goes on saying "running"
                note("interrupted")
            raise
    if manifest.status != "complete":
        note("complete")


def warm_up(session: Session, console: Console) -> dict[str, float]:
    """Everything that is done once: kernels compiled, graphs captured, caches settled. What it took: seconds, peak_bytes.

    An arm that fails at it is told of, and fails again turn by turn, so that the others are measured.
    """
    memory, start = PeakMemory(*session.target.devices), time.perf_counter()
    memory.reset()
    measurer = _Measurer(session, [])
    for arm in session.answerers:
        failure = measurer.warm(arm)
        for question in session.warmup:
            tried = measurer.attempt(Unit(arm.name, question, 0, 0), min(WARMUP_TOKENS, session.manifest.settings.max_new_tokens))
            failure = failure or tried.error
        if failure:
            console.print(f"{arm.name} failed while it was warmed up: {failure}", markup=False, soft_wrap=True)
    return {"seconds": round(time.perf_counter() - start, 3), "peak_bytes": memory.peak()}


def measure(session: Session, done: Iterable[Record], write: Callable[[Record], None], progress: Sink) -> None:
    """One record for each unit not in ``done``, by arms that are warm."""
    settings = session.manifest.settings
    with unhindered():
        for record in answers(session, done, units(session.suite.questions, settings.methods, settings.repeats)):
            write(record)
            progress.add(record)


def answers(session: Session, done: Iterable[Record], wanted: Iterable[Unit]) -> Iterator[Record]:
    """One record for each unit wanted and not in ``done``, by arms that are warm."""
    measurer = _Measurer(session, done)
    for unit in wanted:
        if unit.key not in measurer.known:
            measurer.known[unit.key] = measurer.attempt(unit, session.manifest.settings.max_new_tokens)
            yield measurer.known[unit.key]


class _Measurer:
    """Answers units; ``known`` are the records so far, by key."""

    def __init__(self, session: Session, done: Iterable[Record]):
        self.known = {record.key: record for record in done}
        self._session, self._settings = session, session.manifest.settings
        self._arms = {arm.name: arm for arm in session.answerers}
        self._memory = PeakMemory(*session.target.devices)

    def attempt(self, unit: Unit, max_new_tokens: int) -> Record:
        """The unit's record; what goes wrong with this turn alone is its error, so that the run goes on."""
        facts = Record(*unit.facts, status="error", device=self._session.device)
        source = unit.method if self._settings.turns == "own" else BASELINE
        before = [self.known[source, unit.question.id, turn, unit.repeat] for turn in range(unit.turn)]
        for earlier in before:
            if earlier.status != "ok":
                whose = "" if source == unit.method else f" of {source}"
                return replace(facts, error=f"turn {earlier.turn + 1}{whose} failed")
        prompt = self._session.chat.encode(unit.question.turns[: unit.turn + 1], [r.output_text for r in before])
        facts = replace(facts, prompt_sha256=chat.ids_sha256(prompt), prompt_tokens=len(prompt))
        seed = turn_seed(self._settings.seed, unit)
        sampling = Sampling(max_new_tokens, self._settings.temperature, self._session.stop_ids, seed)
        done, failure = self._guarded(self._arms[unit.method], lambda: self._answered(facts, prompt, sampling))
        return done or replace(facts, error=failure)

    def warm(self, arm: Answerer) -> str:
        """Makes an arm ready for every turn that can come; what went wrong, or ""."""
        sampling = Sampling(WARMUP_TOKENS, self._settings.temperature)
        return self._guarded(arm, lambda: arm.warm(sampling))[1]

    def _guarded(self, arm: Answerer, work: Callable[[], R]) -> tuple[R | None, str]:
        """What the work gives, or what failed; the arm is fit for another turn after either."""
        try:
            return work(), ""
        except torch.AcceleratorError as error:
            # After it every further call on the device fails too: rows of errors would hide that.
            raise UserError(f"the device failed ({first_line(error)}); every turn before is kept, resume in a new process") from None
        except (RuntimeError, FloatingPointError, ContextOverflow) as error:  # out of memory is a RuntimeError
            failure = f"{type(error).__name__}: {first_line(error)}"
        arm.recover()
        if self._session.target.device.type == "cuda":
            torch.cuda.empty_cache()
        return None, failure

    def _answered(self, facts: Record, prompt: list[int], sampling: Sampling) -> Record:
        tokenizer = self._session.tokenizer
        self._memory.reset()
        answer = self._arms[facts.method].answer(prompt, sampling)
        peak_bytes = 0 if answer.elsewhere else self._memory.peak()
        text = tokenizer.decode(answer.output_ids, skip_special_tokens=True) if answer.output_text is None else answer.output_text
        assert isinstance(text, str), "one sequence decodes to one text"
        return replace(
            facts,
            status="ok",
            output_ids=answer.output_ids,
            prefill_tokens=answer.prefill_tokens,
            tokens=answer.tokens,
            output_text=text,
            text_tokens=len(tokenizer(text.strip(), add_special_tokens=False).input_ids),
            stop=answer.stop,
            prefill_s=round(answer.prefill_s, 7),
            total_s=round(answer.total_s, 7),
            peak_bytes=peak_bytes,
            device="" if answer.elsewhere else facts.device,
            steps=answer.steps,
            timing=answer.timing,
            drafting=answer.drafting,
        )


def first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "")[:300]
