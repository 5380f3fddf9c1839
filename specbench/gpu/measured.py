"""The run itself: every method beside static vanilla, eager vanilla beside them, on Spec-Bench where it is at hand."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from methods.core.errors import UserError
from specbench import runner, suites
from specbench.gpu.plan import LADDER, Plan, paces, plan
from specbench.gpu.work import Work
from specbench.records import AGAIN, BASELINE
from specbench.runner import Session
from specbench.session import Options, prepare
from specbench.train.files import whole
from specbench.tune.config import Config

METHODS = ("pld", "medusa", "eagle", "eagle2", "s4c")
TWICE = "s4c"
OTHER_BASELINE = f"{BASELINE}:backend=eager"
EAGER = tuple(f"{name}:backend=eager" for name in ("medusa", "eagle2", "s4c"))
AROUND_S = 15.0  # seconds before this code runs and after the last turn


def run_dir(work: Work) -> Path:
    return work.out / "run"


def tuned(work: Work) -> Path:
    """The options the run takes where there was something to tune on."""
    return work.out / "tune.toml"


def measured(work: Work, console: Console) -> dict[str, Any]:
    """Plans the run to fit ``work.seconds`` once, keeps to that plan, and measures what is missing of it."""
    began = time.monotonic()
    suite, note = _suite(console)
    path = work.out / "plan.json"
    if path.is_file():
        chosen = Plan(**json.loads(path.read_text(encoding="utf-8")))
        arms = [arm for arm in chosen.arms if not arm.endswith(AGAIN)]
        session = prepare(_options(work, suite, arms, chosen.max_new_tokens))
    else:
        session = prepare(_options(work, suite, [*METHODS, OTHER_BASELINE, *EAGER], LADDER[-1]))
        console.print(f"making {len(session.arms)} arms ready and measuring how fast each is here, to plan the run", markup=False)
        runner.warm_up(session)
        found, turns = paces(session), session.manifest.units_total // len(session.arms)
        left = work.seconds - AROUND_S - (time.monotonic() - began)
        chosen = plan(found, EAGER, turns, len(session.warmup), left)
        with whole(path) as file:
            file.write_text(json.dumps(chosen._asdict(), indent=1) + "\n", encoding="utf-8")
        session = narrowed(session, chosen)
    console.print(f"plan: {chosen.why}", markup=False, soft_wrap=True)
    runner.run(session, run_dir(work), console)
    return {"suite": suite, "note": note, "questions": len(session.suite.questions), **chosen._asdict()}


def narrowed(session: Session, chosen: Plan) -> Session:
    """The session with the plan's arms and tokens alone; its targets keep their room for more."""
    manifest = session.manifest
    kept = tuple(arm for arm in session.arms if arm.name in chosen.arms)
    names = [arm.name for arm in kept]
    settings = replace(manifest.settings, methods=names, max_new_tokens=chosen.max_new_tokens)
    facts = {name: manifest.methods[name] for name in names}
    units = manifest.units_total // len(session.arms) * len(kept)
    return replace(session, arms=kept, manifest=replace(manifest, settings=settings, methods=facts, units_total=units))


def _options(work: Work, suite: str, arms: list[str], max_new_tokens: int) -> Options:
    asked = work.asked
    return Options(
        methods=arms,
        target=asked.target,
        suite=suite,
        limit=asked.limit,
        max_new_tokens=max_new_tokens,
        dtype=asked.dtype,
        device=asked.device,
        backend="static",
        aa=TWICE,
        config=Config.read(tuned(work)) if tuned(work).is_file() else None,
    )


def _suite(console: Console) -> tuple[str, str]:
    """Spec-Bench, or the mini suite with the reason why."""
    try:
        suites.load("spec-bench")
    except UserError as error:
        note = f"Spec-Bench is not at hand ({error}); the run is on our own mini suite and says nothing of Spec-Bench's questions"
        console.print(note, markup=False, soft_wrap=True)
        return "mini", note
    return "spec-bench", ""
