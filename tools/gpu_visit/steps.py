"""The pieces, in order: each leaves files in the visit's folder and returns what is noted of it."""

import json
import lzma
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

import torch
from rich.console import Console

from methods import registry
from methods.core.errors import UserError
from specbench import suites
from specbench.store import records
from specbench.store.records import BASELINE
from specbench.targets.shapes import SHAPES
from specbench.util.environment import environment, git_state, output_of
from specbench.util.files import whole
from tools.gpu_visit.correctness import correctness
from tools.gpu_visit.measured import METHODS, measured, run_dir, tuned
from tools.gpu_visit.work import Work

CLOCKS = "name,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.draw,power.limit,temperature.gpu,memory.total"
BENCH_TOKENS, BENCH_PAIRS = 32, 6
TRACED = ("vanilla", "s4c")
TRACED_TOKENS = 16
EAGER_NODES = (1, 8, 64)
PROBE_S = 8.0


class Piece(NamedTuple):
    seconds: float  # it may take, where others are left to do after it
    run: Callable[[Work, Console], dict[str, Any]]
    needs: Sequence[str] = ()  # other pieces
    first: bool = False  # of what one visit is to give, whatever else is left
    gate: bool = False  # nothing after it is begun without it


def facts(work: Work, console: Console) -> dict[str, Any]:
    """What this machine is and runs, and which suite is at hand here."""
    suite, note = _suite()
    found = {**environment(torch.device(work.asked.device)), "git": git_state(), "clocks": clocks(), "suite": suite, "suite_note": note}
    console.print(*(f"{name}: {value}" for name, value in found.items()), sep="\n", markup=False)
    return found


def _suite() -> tuple[str, str]:
    """Spec-Bench, or the mini suite and why: a network that answers nothing would hold a download for minutes."""
    said = []

    def load() -> None:
        try:
            suites.load("spec-bench")
            said.append("")
        except UserError as error:
            said.append(str(error))

    asking = Thread(target=load, daemon=True)
    asking.start()
    asking.join(PROBE_S)
    why = said[0] if said else f"no answer within {PROBE_S:.0f} s"
    if not why:
        return "spec-bench", ""
    return "mini", f"Spec-Bench is not at hand ({why}); the run is on our own mini suite and says nothing of Spec-Bench's questions"


def clocks() -> dict[str, str]:
    """The GPU's clocks, power and heat as its driver reads them now; {} where it does not."""
    names, values = CLOCKS.split(","), output_of("nvidia-smi", f"--query-gpu={CLOCKS}", "--format=csv,noheader").split("\n")[0]
    return dict(zip(names, map(str.strip, values.split(",")), strict=True)) if values else {}


def roofline(work: Work, console: Console, backend: str) -> dict[str, Any]:
    """How far from the device's limit the target is on a back end: every method's round on static, vanilla's alone on eager."""
    from specbench.studies.roofline import report
    from specbench.studies.roofline.run import Options, run

    options = Options(work.asked.target, work.asked.dtype, work.asked.device, backend)
    if backend == "eager":
        options = replace(options, methods=[BASELINE], nodes=EAGER_NODES)
    found = run(options, console)
    report.write(found, work.out / f"roofline-{backend}")
    noted = report.summary(found)
    console.print(*noted, sep="\n", markup=False)
    return {"summary": noted}


def tune(work: Work, console: Console) -> dict[str, Any]:
    """Tree options for this device, chosen on the prompts given."""
    from specbench.cli.tune import tune as command

    asked = work.asked
    if asked.tuning is None:
        raise UserError("tune needs prompts; pass --tuning FILE, as `specbench held-out` writes")
    command(
        method=list(METHODS),
        target=asked.target,
        suite_file=Path(asked.tuning),
        dtype=asked.dtype,
        device=asked.device,
        backend="static",
        out=tuned(work),
    )
    return {"methods": list(METHODS)}


def bench(work: Work, console: Console) -> dict[str, Any]:
    """Our loops beside transformers' own generate, on half of the benchmark's questions and tokens."""
    from specbench.studies.bench import report
    from specbench.studies.bench.decoding import decoding_findings
    from specbench.studies.bench.setup import conditions, prepared

    session = prepared(work.asked.target, dtype=work.asked.dtype, device=work.asked.device)
    settings = replace(session.manifest.settings, max_new_tokens=BENCH_TOKENS)
    suite = replace(session.suite, questions=session.suite.questions[::2])
    session = replace(session, suite=suite, manifest=replace(session.manifest, settings=settings))
    findings = decoding_findings(session, console, pairs=BENCH_PAIRS)
    report.write(conditions(session), findings, [], [], work.out / "bench")
    return {each.what: each.row() for each in findings}


def profile(work: Work, console: Console) -> dict[str, Any]:
    """Where the time of a round goes, apart from every timed run."""
    from specbench.cli.profile import profile as command

    asked = work.asked
    command(
        method=list(TRACED),
        target=asked.target,
        dtype=asked.dtype,
        device=asked.device,
        backend="static",
        max_new_tokens=TRACED_TOKENS,
        out=work.out / "profile",
    )
    return {"methods": list(TRACED)}


def report(work: Work, console: Console) -> dict[str, Any]:
    """The run's report and verdict; its records packed, so that they can be brought back."""
    from specbench import claims
    from specbench.analysis.frames import turns_frame
    from specbench.claims import text
    from specbench.claims.verdict import judge
    from specbench.report import build as reports
    from specbench.store.manifest import RunManifest

    run = run_dir(work)
    reports.build([run], work.out / "report", console)
    verdict = judge(claims.named("s4c"), RunManifest.read(run), turns_frame(records.read(run)[0]))
    text.show(verdict, console)
    _json(work.out / "verdict.json", text.to_json(verdict))
    pack(run)
    return {"sentence": text.sentence(verdict)}


def agreement(work: Work, console: Console) -> dict[str, Any]:
    """The run's losslessness, judged by its target in fp32 where that fits, and the report again with it."""
    from specbench.lossless import text
    from specbench.lossless.divergence import explain
    from specbench.report import build as reports
    from specbench.util.progress import counted

    target, device = work.asked.target, work.asked.device
    if not referee_fits(target, device):
        why = f"{target} in fp32 does not fit {device}: differences from vanilla are counted in the report, ties not told from violations"
        console.print(why, markup=False, soft_wrap=True)
        return {"judged": False, "why": why}
    run = run_dir(work)
    with counted(console, "first differences put to the target") as told:
        explained = explain(run, told)
    _json(run / "agreement.json", text.as_fields(explained))
    reports.build([run], work.out / "report", console)
    return {"judged": True, "wrong": list(text.violations(explained))}


def referee_fits(target: str, device: str) -> bool:
    """Whether the memory that is free holds a cost-matched target in fp32; any other is small enough to be tried."""
    from specbench.studies.scale.sizes import needed, sized
    from specbench.util.memory import free

    if target not in SHAPES:
        return True
    return needed(sized(target), [registry.resolve(BASELINE, {}, device)], torch.float32, device) <= free(device)


def pack(run: Path) -> None:
    """Records as a published run has them; a run that is packed is left as it is."""
    plain = run / records.FILE
    if plain.is_file():
        with whole(run / records.PACKED) as file:
            file.write_bytes(lzma.compress(plain.read_bytes(), preset=6))
        os.unlink(plain)


def _json(path: Path, found: dict[str, Any]) -> None:
    with whole(path) as file:
        file.write_text(json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


# Seconds are an H100's, estimated: at least so many are left to a piece, or it waits for the next visit. A first visit gives
# what comes first; nothing but facts is noted before the device was found to compute what it should.
CHECKED = ("correctness",)
PIECES: Mapping[str, Piece] = {
    "environment": Piece(20, facts, first=True),
    "correctness": Piece(150, correctness, first=True, gate=True),
    "tune": Piece(60, tune, CHECKED, first=True),
    "run": Piece(200, measured, ("environment", *CHECKED, "tune"), first=True),
    "report": Piece(45, report, ("run",), first=True),
    "agreement": Piece(70, agreement, ("report",)),
    "roofline-static": Piece(100, partial(roofline, backend="static"), CHECKED),
    "roofline-eager": Piece(50, partial(roofline, backend="eager"), CHECKED),
    "bench": Piece(100, bench, CHECKED),
    "profile": Piece(60, profile, CHECKED),
}


def due(work: Work) -> dict[str, Piece]:
    """The pieces of a visit: tuning is one where there are prompts to tune on."""
    return {name: piece for name, piece in PIECES.items() if name != "tune" or work.asked.tuning}
