"""The run of the benchmark: the decode loops, the harness, a long prompt, then steps and V(n) on random weights."""

import contextlib
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from methods.core.errors import UserError
from specbench.config.options import RunConfig
from specbench.measure import measurer
from specbench.measure.progress import RunProgress, Sink
from specbench.measure.session import Session
from specbench.store import records
from specbench.store.records import Record
from specbench.studies.base import Conditions
from specbench.studies.bench import overhead
from specbench.studies.bench.decoding import decoding_findings, prepared
from specbench.studies.bench.finding import Finding
from specbench.studies.bench.prefill import prefill_finding
from specbench.studies.bench.steps import StepTimes, VerifyTimes
from specbench.util.terminal import Console

DTYPES = ("bf16", "fp32")  # of the steps, beside the session's own
REPEATS = 2  # of the questions whose time outside decoding is measured
WANTED = 0.02  # the most of that time, as a share


@dataclass(frozen=True)
class Benchmark:
    """The benchmark's results, and their conditions in one line."""

    conditions: Conditions
    sentence: str
    findings: Sequence[Finding]
    steps: Sequence[StepTimes] = ()
    verified: Sequence[VerifyTimes] = ()


def run(config: RunConfig, scratch: Path, console: Console) -> Benchmark:
    """Measure everything; records of a short run go to a temporary folder in ``scratch``. Raises UserError as ``prepare`` does."""
    session = prepared(config)
    settings = session.manifest.settings
    findings = [*decoding_findings(session, console), harness_finding(session, scratch, console)]
    findings.append(prefill_finding(session.target.dtype, session.target.device, console))
    targets = dict.fromkeys(engine.target for engine in session.own)
    verified = [overhead.verify_times(settings.target, settings.dtype, target, overhead.PAST) for target in targets]
    steps, random = overhead.overhead(list(dict.fromkeys([settings.dtype, *DTYPES])), session.target.device, console)
    return benchmark(session, findings, steps, [*verified, *random])


def benchmark(
    session: Session, findings: Sequence[Finding], steps: Sequence[StepTimes] = (), verified: Sequence[VerifyTimes] = ()
) -> Benchmark:
    """Return the results with the conditions of their session."""
    settings, conditions = session.manifest.settings, Conditions.of_run(session.manifest)
    conditions = replace(conditions, backend=" and ".join(sorted({engine.target.backend.name for engine in session.own})))
    sentence = conditions.sentence(f"attention {settings.attention}", f"{settings.max_new_tokens} new tokens, greedy")
    return Benchmark(conditions, sentence, findings, steps, verified)


@dataclass
class Spent:
    """The seconds of one question in one repeat."""

    wall: float = 0.0
    decoding: float = 0.0


class Stopwatch:
    """A sink around another one that measures the wall-clock time between turns, by question and repeat."""

    def __init__(self, inner: Sink):
        self._inner = inner
        self._last: float | None = None
        self.spent: dict[tuple[int, str], Spent] = {}

    def add(self, record: Record) -> None:
        """Take a finished turn. Raises UserError for one that failed."""
        if record.status != "ok":
            raise UserError(f"{record.arm}, question {record.question_id}: {record.error}; a run that fails cannot be timed")
        self._inner.add(record)
        now = time.perf_counter()
        spent = self.spent.setdefault((record.repeat, record.question_id), Spent())
        if self._last is not None:
            spent.wall += now - self._last
            spent.decoding += record.total_s
        self._last = now


def harness_finding(session: Session, parent: Path, console: Console, repeats: int = REPEATS) -> Finding:
    """Return 1 - decoding / wall-clock time for every question of a short run; its records go to a temporary folder in ``parent``.

    The first question is left out: the start of its first turn is not known.
    """
    what = "the harness' share of wall-clock time outside decoding"
    console.print(f"measuring: {what}", markup=False)
    settings = replace(session.manifest.settings, repeats=repeats)
    manifest = replace(session.manifest, settings=settings, units_total=session.manifest.units_total * repeats)
    session = replace(session, manifest=manifest)

    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=parent) as folder:
        progress = RunProgress(console, list(manifest.arms), manifest.units_total, [])
        stopwatch = Stopwatch(progress)
        with contextlib.closing(records.Writer(Path(folder))) as writer, progress:
            measurer.warm_up(session, console)
            measurer.measure(session, [], writer.write, stopwatch)
    _, *rest = stopwatch.spent.values()
    return Finding(what, [1 - spent.decoding / spent.wall for spent in rest], WANTED, is_share=True)
