"""The run itself: every method beside static vanilla, eager vanilla beside them, on Spec-Bench where it is at hand."""

import json
import shutil
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from specbench.config.options import Options
from specbench.config.tuned import Config
from specbench.measure import runner
from specbench.measure.session import Session, prepare
from specbench.store import records
from specbench.store.records import AGAIN, EAGER_BASELINE
from specbench.util.files import whole
from tools.gpu_visit.plan import LADDER, Plan, paces, plan
from tools.gpu_visit.work import Work

METHODS = ("pld", "medusa", "eagle", "eagle2", "s4c")
TWICE = "s4c"
EAGER = tuple(f"{name}:backend=eager" for name in ("medusa", "eagle2", "s4c"))
AROUND_S = 25.0  # seconds of the piece before this code runs, imports among them, and after the last turn


def run_dir(work: Work) -> Path:
    return work.out / "run"


def tuned(work: Work) -> Path:
    """The options the run takes where there was something to tune on."""
    return work.out / "tune.toml"


def measured(work: Work, console: Console) -> dict[str, Any]:
    """Plans the run to fit ``work.seconds`` and measures it; once an answer is recorded the plan stays, and the rest of it is measured.

    The plan holds the tuned options too. Whichever call measures, targets have room for the longest answer of any plan: what
    is compiled depends on it.
    """
    began = time.monotonic()
    run, path = run_dir(work), work.out / "plan.json"
    if records.read(run)[0]:
        kept = json.loads(path.read_text(encoding="utf-8"))
        chosen = Plan(**kept["plan"])
        session = prepare(_options(work, kept, [arm for arm in chosen.arms if not arm.endswith(AGAIN)]))
    else:
        shutil.rmtree(run, ignore_errors=True)  # the manifest of a plan that nothing was measured by
        kept = _given(work)
        session = prepare(_options(work, kept, [*METHODS, EAGER_BASELINE, *EAGER]))
        console.print(f"making {len(session.arms)} arms ready and measuring how fast each is here, to plan the run", markup=False)
        runner.warm_up(session, console)
        found, turns = paces(session), session.manifest.units_total // len(session.arms)
        left = work.seconds - AROUND_S - (time.monotonic() - began)
        chosen = plan(found, EAGER, turns, len(session.warmup), left)
        with whole(path) as file:
            file.write_text(json.dumps({**kept, "plan": chosen._asdict()}, indent=1) + "\n", encoding="utf-8")
    console.print(f"plan: {chosen.why}", markup=False, soft_wrap=True)
    session = narrowed(session, chosen)
    runner.run(session, run, console)
    return {"suite": kept["suite"], "note": kept["note"], "questions": len(session.suite.questions), **chosen._asdict()}


def narrowed(session: Session, chosen: Plan) -> Session:
    """The session with the plan's arms and tokens alone; its targets keep their room for more."""
    manifest = session.manifest
    kept = tuple(arm for arm in session.arms if arm.name in chosen.arms)
    names = [arm.name for arm in kept]
    settings = replace(manifest.settings, methods=names, max_new_tokens=chosen.max_new_tokens)
    facts = {name: manifest.methods[name] for name in names}
    units = manifest.units_total // len(session.arms) * len(kept)
    return replace(session, arms=kept, manifest=replace(manifest, settings=settings, methods=facts, units_total=units))


def _given(work: Work) -> dict[str, Any]:
    """What the plan takes from the pieces before it: the suite that was found at hand, and the tuned options or None."""
    found = work.done("environment")
    assert found is not None, "the run needs it"
    config = Config.read(tuned(work)) if tuned(work).is_file() else None
    return {"suite": found["suite"], "note": found["suite_note"], "config": asdict(config) if config else None}


def _options(work: Work, kept: dict[str, Any], arms: list[str]) -> Options:
    asked = work.asked
    return Options(
        methods=arms,
        target=asked.target,
        suite=kept["suite"],
        limit=asked.limit,
        max_new_tokens=LADDER[-1],
        dtype=asked.dtype,
        device=asked.device,
        backend="static",
        aa=TWICE,
        config=Config(**kept["config"]) if kept["config"] else None,
    )
