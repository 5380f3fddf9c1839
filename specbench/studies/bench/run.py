"""The run of the benchmark: the decode loops, the harness, then steps and V(n) on random weights."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from specbench.config.options import RunConfig
from specbench.measure.session import Session
from specbench.studies.base import Conditions
from specbench.studies.bench import overhead
from specbench.studies.bench.decoding import decoding_findings, prepared
from specbench.studies.bench.finding import Finding
from specbench.studies.bench.harness import harness_finding
from specbench.studies.bench.steps import StepTimes, VerifyTimes

DTYPES = ("bf16", "fp32")  # of the steps, beside the session's own


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
