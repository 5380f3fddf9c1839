"""The pieces, in order: each leaves files in the visit's folder and returns what is noted of it."""

import json
import lzma
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console

from specbench import records
from specbench.environment import _output, environment, git_state
from specbench.gpu.correctness import correctness
from specbench.gpu.measured import METHODS, measured, run_dir, tuned
from specbench.gpu.work import Work
from specbench.train.files import whole

CLOCKS = "name,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.draw,power.limit,temperature.gpu,memory.total"
BENCH_TOKENS, BENCH_PAIRS = 32, 6
TRACED = ("vanilla", "s4c")
TRACED_TOKENS = 16


class Piece(NamedTuple):
    seconds: float  # it may take, where others are left to do after it
    run: Callable[[Work, Console], dict[str, Any]]
    needs: str | None = None  # another piece


def facts(work: Work, console: Console) -> dict[str, Any]:
    """What this machine is and runs."""
    found = {**environment(torch.device(work.asked.device)), "git": git_state(), "clocks": clocks()}
    console.print(*(f"{name}: {value}" for name, value in found.items()), sep="\n", markup=False)
    return found


def clocks() -> dict[str, str]:
    """The GPU's clocks, power and heat as its driver reads them now; {} where it does not."""
    names, values = CLOCKS.split(","), _output("nvidia-smi", f"--query-gpu={CLOCKS}", "--format=csv,noheader").split("\n")[0]
    return dict(zip(names, map(str.strip, values.split(",")), strict=True)) if values else {}


def roofline(work: Work, console: Console) -> dict[str, Any]:
    """How far from the device's limit the target is, on both back ends."""
    from specbench.roofline import report
    from specbench.roofline.run import Options, run

    noted = {}
    for backend in ("static", "eager"):
        found = run(Options(work.asked.target, work.asked.dtype, work.asked.device, backend), console)
        report.write(found, work.out / f"roofline-{backend}")
        noted[backend] = report.summary(found)
        console.print(*noted[backend], sep="\n", markup=False)
    return noted


def tune(work: Work, console: Console) -> dict[str, Any]:
    """Tree options for this device, where there are prompts to choose them on; else the table's defaults stay."""
    from specbench.tune.cli import tune as command

    asked = work.asked
    if asked.tuning is None:
        why = "no tuning prompts given (TUNING=FILE, as `specbench held-out` writes): every method keeps its default tree"
        console.print(why, markup=False, soft_wrap=True)
        return {"tuned": False, "why": why}
    command(
        method=list(METHODS),
        target=asked.target,
        suite_file=Path(asked.tuning),
        dtype=asked.dtype,
        device=asked.device,
        backend="static",
        out=tuned(work),
    )
    return {"tuned": True}


def bench(work: Work, console: Console) -> dict[str, Any]:
    """Our loops beside transformers' own generate, on half of the benchmark's questions and tokens."""
    from specbench.bench import report
    from specbench.bench.decoding import decoding_findings
    from specbench.bench.setup import conditions, prepared

    session = prepared(work.asked.target, dtype=work.asked.dtype, device=work.asked.device)
    settings = replace(session.manifest.settings, max_new_tokens=BENCH_TOKENS)
    suite = replace(session.suite, questions=session.suite.questions[::2])
    session = replace(session, suite=suite, manifest=replace(session.manifest, settings=settings))
    findings = decoding_findings(session, console, pairs=BENCH_PAIRS)
    report.write(conditions(session), findings, [], [], work.out / "bench")
    return {each.what: each.row() for each in findings}


def profile(work: Work, console: Console) -> dict[str, Any]:
    """Where the time of a round goes, apart from every timed run."""
    from specbench.profiling.cli import profile as command

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
    """The run's losslessness, report and verdict; its records packed, so that they can be brought back."""
    from specbench import agree_cli, claims
    from specbench import report as reports
    from specbench.claims import text
    from specbench.claims.verdict import judge
    from specbench.divergence import explain
    from specbench.manifest import RunManifest
    from specbench.turns import turns_frame

    run = run_dir(work)
    explained = explain(run)
    _json(run / "agreement.json", agree_cli.as_fields(explained))
    reports.build([run], work.out / "report", console)
    verdict = judge(claims.named("s4c"), RunManifest.read(run), turns_frame(records.read(run)[0]))
    text.show(verdict, console)
    _json(work.out / "verdict.json", text.to_json(verdict))
    pack(run)
    return {"sentence": text.sentence(verdict), "wrong": list(agree_cli.violations(explained))}


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


# Seconds are those of an H100 with room to spare; what a piece does not need the next may use.
PIECES: Mapping[str, Piece] = {
    "environment": Piece(15, facts),
    "correctness": Piece(110, correctness),
    "roofline": Piece(80, roofline),
    "tune": Piece(50, tune),
    "run": Piece(150, measured),
    "bench": Piece(45, bench),
    "profile": Piece(40, profile),
    "report": Piece(40, report, needs="run"),
}
