"""The run of a visit: every method beside static and eager vanilla, on Spec-Bench if it can be loaded."""

import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from specbench.config.arm import BASELINE, Arm
from specbench.config.options import RunConfig
from specbench.config.tuned import Tuned
from specbench.measure import measurer, runner
from specbench.measure.runner import LocalExecutor
from specbench.measure.session import Session, prepare
from specbench.store import records
from specbench.studies.base import write_json
from specbench.util.stored import read_json
from specbench.util.terminal import Console
from tools.gpu_visit.plan import LADDER, RunPlan, paces, plan
from tools.gpu_visit.visit import FORMAT, Visit

METHODS = ("pld", "medusa", "eagle", "eagle2", "s4c")
REPEATED = "s4c"  # in the A/A test
EAGER = tuple(f"{name}:backend=eager" for name in ("medusa", "eagle2", "s4c"))
AROUND_S = 25.0  # seconds of the step before this code runs, imports among them, and after the last turn


def run_dir(visit: Visit) -> Path:
    """Return the run directory."""
    return visit.out / "run"


def tuned_file(visit: Visit) -> Path:
    """Return the path of the tuned options; the file exists only if the visit tunes."""
    return visit.out / "tune.toml"


def measure(visit: Visit, console: Console) -> dict[str, Any]:
    """Plan the run to fit ``visit.seconds`` and measure it; return its plan.

    The plan, which includes the tuned options, is kept once an answer is recorded; later calls measure
    the rest of it. Targets always have room for the longest answer of any plan, because compiled code
    depends on that.
    """
    began = time.monotonic()
    run, path = run_dir(visit), visit.out / "plan.json"
    if records.read(run)[0]:
        given = read_json(path, FORMAT)
        chosen = RunPlan(**given["plan"])
        session = prepare(run_config(visit, given, [arm for arm in chosen.arms if arm != Arm.parse(REPEATED).again().name]))
    else:
        shutil.rmtree(run, ignore_errors=True)  # a manifest of an earlier plan, without records
        given = plan_inputs(visit)
        session = prepare(run_config(visit, given, [*METHODS, f"{BASELINE}:backend=eager", *EAGER]))
        console.print(f"preparing {len(session.own)} arms and measuring how fast each is here, to plan the run", markup=False)
        measurer.warm_up(session, console)
        measured, turns = paces(session), session.manifest.units_total // len(session.own)
        remaining_s = visit.seconds - AROUND_S - (time.monotonic() - began)
        chosen = plan(measured, EAGER, turns, len(session.warmup), remaining_s)
        write_json(path, {**given, "plan": chosen._asdict()})

    console.print(f"plan: {chosen.why}", markup=False, soft_wrap=True)
    session = narrowed(session, chosen)
    runner.run(LocalExecutor(session), run, console)
    return {"suite": given["suite"], "note": given["note"], "questions": len(session.suite.questions), **chosen._asdict()}


def narrowed(session: Session, chosen: RunPlan) -> Session:
    """Return the session with the plan's arms and tokens only; its targets keep their room for longer answers."""
    manifest = session.manifest
    engines = tuple(engine for engine in session.own if engine.name in chosen.arms)
    arms = {engine.name: manifest.arms[engine.name] for engine in engines}
    methods = [name for name, facts in arms.items() if not facts.repeat_of]
    settings = replace(manifest.settings, methods=methods, max_new_tokens=chosen.max_new_tokens)
    units = manifest.units_total // len(session.own) * len(engines)
    return replace(session, own=engines, manifest=replace(manifest, settings=settings, arms=arms, units_total=units))


def plan_inputs(visit: Visit) -> dict[str, Any]:
    """Return what the plan takes from the steps before it: the suite that can be loaded, and the tuned options or None."""
    facts = visit.done("environment")
    assert facts is not None, "the run needs it"
    tuned = Tuned.read(tuned_file(visit)) if tuned_file(visit).is_file() else None
    return {"suite": facts["suite"], "note": facts["suite_note"], "tuned": asdict(tuned) if tuned else None}


def run_config(visit: Visit, given: dict[str, Any], arms: Sequence[str]) -> RunConfig:
    """Return the settings of the run with some arms; ``given`` are the plan's inputs."""
    return replace(
        visit.config,
        methods=list(arms),
        suite=given["suite"],
        max_new_tokens=LADDER[-1],
        backend="static",
        aa=REPEATED,
        tuned=TypeAdapter(Tuned).validate_python(given["tuned"]) if given["tuned"] else None,
    )
