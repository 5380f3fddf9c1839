"""The steps of a visit, in order. Each leaves files in the visit's folder and returns the facts to store."""

import lzma
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

import torch

from methods import registry
from methods.core.errors import UserError
from specbench import suites
from specbench.config.arm import BASELINE
from specbench.store import records
from specbench.studies.base import show, write_json
from specbench.studies.roofline import NODES, PAST
from specbench.targets.widen import SHAPES
from specbench.util.environment import environment, git_state, output_of
from specbench.util.files import atomic_write
from specbench.util.terminal import Console
from tools.gpu_visit.correctness import correctness
from tools.gpu_visit.measurement import METHODS, measure, run_dir, tuned_file
from tools.gpu_visit.visit import Visit

CLOCKS = "name,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.draw,power.limit,temperature.gpu,memory.total"
BENCH_TOKENS, BENCH_PAIRS = 32, 6
TRACED = ("vanilla", "s4c")
TRACED_TOKENS = 16
EAGER_NODES = (0, 7, 63)
PROBE_S = 8.0


class VisitStep(NamedTuple):
    """A step of a visit, and how the time of a visit is shared with it."""

    reserved_s: float  # kept for it while steps before it run; it does not start with less
    run: Callable[[Visit, Console], dict[str, Any]]
    needs: Sequence[str] = ()  # steps that must be done before
    early: bool = False  # belongs in the first visit: reserves no time for steps that do not
    may_use_all: bool = False  # may take all the time that is left, because the others need it


def describe_machine(visit: Visit, console: Console) -> dict[str, Any]:
    """Return the machine's facts, and the suite that can be loaded here."""
    suite, note = available_suite()
    machine = asdict(environment(torch.device(visit.config.device)))
    facts = {**machine, "git": asdict(git_state()), "clocks": clocks(), "suite": suite, "suite_note": note}
    console.print(*(f"{name}: {value}" for name, value in facts.items()), sep="\n", markup=False)
    return facts


def available_suite() -> tuple[str, str]:
    """Return Spec-Bench, or the mini suite and why. A network that does not answer would hold a download for minutes."""
    answers = []

    def load() -> None:
        try:
            suites.load("spec-bench")
            answers.append("")
        except UserError as error:
            answers.append(str(error))

    probe = Thread(target=load, daemon=True)
    probe.start()
    probe.join(PROBE_S)
    why = answers[0] if answers else f"no answer within {PROBE_S:.0f} s"
    if not why:
        return "spec-bench", ""
    return "mini", f"Spec-Bench cannot be loaded ({why}); the run is on our own mini suite and says nothing of Spec-Bench's questions"


def clocks() -> dict[str, str]:
    """Return the GPU's clocks, power and temperature as its driver reads them now; {} if it does not."""
    names, values = CLOCKS.split(","), output_of("nvidia-smi", f"--query-gpu={CLOCKS}", "--format=csv,noheader").split("\n")[0]
    return dict(zip(names, map(str.strip, values.split(",")), strict=True)) if values else {}


def roofline(visit: Visit, console: Console, backend: str) -> dict[str, Any]:
    """Measure the roofline of a back end: every method's step on static, vanilla's alone on eager."""
    from specbench.studies.roofline import report
    from specbench.studies.roofline.run import run

    methods, nodes = ([BASELINE], EAGER_NODES) if backend == "eager" else ([], NODES)
    measured = run(replace(visit.config, backend=backend, methods=methods), console, PAST, nodes)
    report.write(measured, visit.out / f"roofline-{backend}")
    summary = report.summary(measured)
    console.print(*summary, sep="\n", markup=False)
    return {"summary": summary}


def tune(visit: Visit, console: Console) -> dict[str, Any]:
    """Choose tree sizes for this device on the tuning prompts."""
    from specbench.studies.tune import MAX_NEW_TOKENS, PROMPTS, report, run

    if visit.settings.tuning is None:
        raise UserError("tune needs prompts; pass --tuning FILE, as `specbench held-out` writes")
    config = replace(
        visit.config, methods=list(METHODS), suite_file=visit.settings.tuning, max_new_tokens=MAX_NEW_TOKENS, backend="static", limit=None
    )
    tuning = run.run(config, None, PROMPTS, console)
    path = tuned_file(visit)
    report.write(tuning, path)
    show(console, [tuning.conditions.note], [report.settings_table(tuning.methods), report.check_table(tuning)], f"config: {path}")
    return {"methods": list(METHODS)}


def bench(visit: Visit, console: Console) -> dict[str, Any]:
    """Compare our loops with transformers' own generate, on half of the benchmark's questions and tokens."""
    from specbench.studies.bench import report
    from specbench.studies.bench.decoding import decoding_findings, prepared
    from specbench.studies.bench.run import benchmark

    session = prepared(visit.config)
    settings = replace(session.manifest.settings, max_new_tokens=BENCH_TOKENS)
    suite = replace(session.suite, questions=session.suite.questions[::2])
    session = replace(session, suite=suite, manifest=replace(session.manifest, settings=settings))
    findings = decoding_findings(session, console, pairs=BENCH_PAIRS)
    report.write(benchmark(session, findings), visit.out / "bench")
    return {finding.what: finding.row() for finding in findings}


def profile(visit: Visit, console: Console) -> dict[str, Any]:
    """Profile a step, separately from every timed run."""
    from specbench.studies.profiling import report
    from specbench.studies.profiling.run import prepared, run

    config = replace(visit.config, methods=list(TRACED), max_new_tokens=TRACED_TOKENS, backend="static")
    folder = visit.out / "profile"
    profiled = run(prepared(config), folder, console)
    report.write(profiled, folder)
    show(console, [profiled.sentence], [report.split_table(profiled.arms)], f"profile: {folder / 'profile.md'}")
    return {"methods": list(TRACED)}


def report(visit: Visit, console: Console) -> dict[str, Any]:
    """Write the run's report and its verdict, and pack its records so that they can be brought back."""
    from specbench.analysis.frames import turns_frame
    from specbench.claims import text
    from specbench.claims.claim import claim_named
    from specbench.claims.verdict import judge
    from specbench.report.compose import build
    from specbench.store.rundir import read_run

    run = run_dir(visit)
    build([run], visit.out / "report", console)
    stored = read_run(run)
    verdict = judge(claim_named("s4c"), stored.manifest, turns_frame(stored.records, stored.manifest.arms))
    text.show(verdict, console)
    write_json(visit.out / "verdict.json", text.to_json(verdict))
    pack(run)
    return {"sentence": text.sentence(verdict)}


def agreement(visit: Visit, console: Console) -> dict[str, Any]:
    """Judge the run's losslessness by its target in fp32, if that fits, and write the report again with it."""
    from specbench.lossless import text
    from specbench.lossless.divergence import explain
    from specbench.measure.progress import show_progress
    from specbench.report.compose import build

    target, device = visit.config.target, visit.config.device
    if not reference_fits(target, device):
        why = f"{target} in fp32 does not fit {device}: the report counts differences from vanilla, but cannot tell ties from violations"
        console.print(why, markup=False, soft_wrap=True)
        return {"judged": False, "why": why}
    run = run_dir(visit)
    with show_progress(console, "first differences put to the target") as progress:
        explained = explain(run, progress)
    write_json(run / "agreement.json", text.as_fields(explained))
    build([run], visit.out / "report", console)
    return {"judged": True, "wrong": list(text.violations(explained))}


def reference_fits(target: str, device: str) -> bool:
    """Return whether the free memory holds a cost-matched target in fp32; any other target is small enough to be tried."""
    from specbench.studies.scale.sizes import needed, size_of
    from specbench.util.memory import free_memory

    if target not in SHAPES:
        return True
    return needed(size_of(target), [registry.resolve(BASELINE, {}, device)], torch.float32, device) <= free_memory(device)


def pack(run: Path) -> None:
    """Compress a run's records as those of a published run; a run that is packed stays as it is."""
    plain = run / records.FILE
    if plain.is_file():
        with atomic_write(run / records.PACKED) as file:
            file.write_bytes(lzma.compress(plain.read_bytes(), preset=6))
        os.unlink(plain)


# Reserved seconds are estimates for an H100. Every step but the first needs a device whose results were checked.
CHECKED = ("correctness",)
STEPS: Mapping[str, VisitStep] = {
    "environment": VisitStep(20, describe_machine, early=True),
    "correctness": VisitStep(150, correctness, early=True, may_use_all=True),
    "tune": VisitStep(60, tune, CHECKED, early=True),
    "run": VisitStep(200, measure, ("environment", *CHECKED, "tune"), early=True),
    "report": VisitStep(45, report, ("run",), early=True),
    "agreement": VisitStep(70, agreement, ("report",)),
    "roofline-static": VisitStep(100, partial(roofline, backend="static"), CHECKED),
    "roofline-eager": VisitStep(50, partial(roofline, backend="eager"), CHECKED),
    "bench": VisitStep(100, bench, CHECKED),
    "profile": VisitStep(60, profile, CHECKED),
}


def steps_of(visit: Visit) -> dict[str, VisitStep]:
    """Return the steps of a visit: all, but tuning only if there are prompts to tune on."""
    return {name: step for name, step in STEPS.items() if name != "tune" or visit.settings.tuning}
