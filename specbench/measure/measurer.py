"""Measurement of a session: every arm answers every turn of every question, and each answer becomes one record.

Read from top to bottom: ``warm_up`` runs once, then ``measure`` takes the turns in the order of the schedule, and
``Measurer.attempt`` makes a record of each.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import torch

from methods.core.acceptance import Sampling
from methods.core.errors import UserError
from specbench.config.arm import BASELINE
from specbench.engines.base import Engine
from specbench.measure.progress import Sink
from specbench.measure.schedule import Unit, turn_seed, units_of
from specbench.measure.session import Session
from specbench.store.manifest import Prepared
from specbench.store.records import Record
from specbench.targets import chat
from specbench.util.memory import PeakMemory, gc_paused
from specbench.util.terminal import Console

WARMUP_TOKENS = 32  # for each warm-up turn: enough for allocators, kernels and caches to settle


def warm_up(session: Session, console: Console) -> Prepared:
    """Compile and capture what every arm needs, then answer the warm-up questions. Return the time and peak memory.

    Before, print what a back end does not do on this machine.
    If an arm fails to warm up, print a warning and continue. Its turns are recorded as errors; other arms are still measured.
    Raises UserError if vanilla fails: no other arm could be compared.
    """
    memory, start = PeakMemory(*session.target.devices), time.perf_counter()
    memory.reset()
    for notice in dict.fromkeys(engine.target.backend.notice for engine in session.own):
        if notice:
            console.print(notice, markup=False, soft_wrap=True)

    measurer = Measurer(session, done=[])
    max_new_tokens = min(WARMUP_TOKENS, session.manifest.settings.max_new_tokens)

    for engine in session.engines:
        failure = measurer.warm_up(engine)
        for question in session.warmup:
            record = measurer.attempt(Unit(engine.name, question, turn=0, repeat=0), max_new_tokens)
            failure = failure or record.error
        if failure and engine.name == BASELINE:
            raise UserError(f"{BASELINE} failed to warm up ({failure}), so nothing is measured; try another --backend or --dtype")
        if failure:
            console.print(f"{engine.name} failed to warm up: {failure}", markup=False, soft_wrap=True)

    return Prepared(round(time.perf_counter() - start, 3), memory.peak())


def measure(session: Session, done: Iterable[Record], write: Callable[[Record], None], progress: Sink) -> None:
    """Measure every turn of the run that is not in ``done``, and write its record. The arms must be warm."""
    with gc_paused():
        for record in answers(session, done, units_of(session.suite, session.manifest)):
            write(record)
            progress.add(record)


def answers(session: Session, done: Iterable[Record], units: Iterable[Unit]) -> Iterator[Record]:
    """Yield one record for each unit that is not in ``done``, measured when it is asked for. The arms must be warm."""
    measurer = Measurer(session, done)
    for unit in units:
        if unit.key not in measurer.records:
            record = measurer.attempt(unit, session.manifest.settings.max_new_tokens)
            measurer.records[unit.key] = record
            yield record


class Measurer:
    """Makes records of a session's units. ``records`` holds those that are known, by key: later turns need them."""

    def __init__(self, session: Session, done: Iterable[Record]):
        self.records = {record.key: record for record in done}
        self._session, self._settings = session, session.manifest.settings
        chosen = self._settings
        self._sampling = Sampling(WARMUP_TOKENS, chosen.temperature, top_k=chosen.top_k, top_p=chosen.top_p)
        self._engines = {engine.name: engine for engine in session.engines}
        self._memory = PeakMemory(*session.target.devices)

    def attempt(self, unit: Unit, max_new_tokens: int) -> Record:
        """Answer one turn and return its record.

        A failure of this turn alone becomes the record's error, so that the run goes on. Raises UserError if the device failed.
        """
        record = Record(*unit.facts, status="error", device=self._session.device)

        history = self._history(unit)
        for earlier in history:
            if earlier.status != "ok":
                whose = "" if earlier.arm == unit.arm else f" of {earlier.arm}"
                return replace(record, error=f"turn {earlier.turn + 1}{whose} failed")

        sampling = replace(
            self._sampling, max_new_tokens=max_new_tokens, stop_ids=self._session.stop_ids, seed=turn_seed(self._settings.seed, unit)
        )
        engine = self._engines[unit.arm]
        try:
            prompt = self._session.chat.encode(unit.question.turns[: unit.turn + 1], [earlier.output_text for earlier in history])
            record = replace(record, prompt_sha256=chat.ids_sha256(prompt), prompt_tokens=len(prompt))
            return self._answered(record, engine, prompt, sampling)
        except Exception as error:  # templates, kernels and other engines raise what they like
            failure = describe_failure(error)
        self._recover(engine)  # after the except block, since the error's traceback holds the failed turn's tensors
        return replace(record, error=failure)

    def warm_up(self, engine: Engine) -> str:
        """Prepare an arm for every turn that can come. Return what went wrong, or ""."""
        try:
            engine.warm_up(self._sampling)
            return ""
        except Exception as error:
            failure = describe_failure(error)
        self._recover(engine)
        return failure

    def _history(self, unit: Unit) -> list[Record]:
        """Return the records whose answers the prompt holds: of the arm's own earlier turns, or of vanilla's."""
        source = unit.arm if self._settings.turns == "own" else BASELINE
        return [self.records[source, unit.question.id, turn, unit.repeat] for turn in range(unit.turn)]

    def _answered(self, record: Record, engine: Engine, prompt: list[int], sampling: Sampling) -> Record:
        """Return the record with the engine's answer."""
        self._memory.reset()
        answer = engine.answer(prompt, sampling)
        peak_bytes = 0 if answer.remote else self._memory.peak()

        tokenizer = self._session.tokenizer
        text = tokenizer.decode(answer.output_ids, skip_special_tokens=True) if answer.output_text is None else answer.output_text
        assert isinstance(text, str), "one sequence decodes to one text"
        return replace(
            record,
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
            device="" if answer.remote else record.device,
            steps=answer.steps,
            timing=answer.timing,
            drafting=answer.drafting,
        )

    def _recover(self, engine: Engine) -> None:
        """Make an arm fit for another turn after a failed one, and return the memory that the failed turn took."""
        engine.recover()
        if self._session.target.device.type == "cuda":
            torch.cuda.empty_cache()


def describe_failure(error: Exception) -> str:
    """Return the error of a turn's record. Raises UserError if the device failed: every later turn would fail too."""
    reason = next(iter(str(error).splitlines()), "")[:300]
    if isinstance(error, torch.AcceleratorError):
        raise UserError(f"the device failed ({reason}); every turn before is kept, resume in a new process") from None
    return f"{type(error).__name__}: {reason}"
