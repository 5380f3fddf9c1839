"""Is what this device computes right? Every method that runs as shipped on both back ends, token for token against static vanilla."""

import shutil
from pathlib import Path
from typing import Any

from rich.console import Console

from methods import registry
from specbench import targets
from specbench.config.options import Options
from specbench.lossless import text
from specbench.lossless.divergence import ArmAgreement, explain
from specbench.measure import runner
from specbench.measure.session import prepare
from tools.gpu_visit.work import Work

STRICT = "fp32"
QUESTIONS = 1  # a category of the mini suite
TOKENS = 48


def correctness(work: Work, console: Console) -> dict[str, Any]:
    """Runs the shipped target in fp32 and in the visit's dtype; ``wrong`` lists what must not be, empty where all is right.

    Static equals eager where both equal static vanilla. A difference counts as wrong unless the target, asked in fp32, was
    torn between the two tokens (``specbench.divergence``); an answer that failed counts as wrong too. A run
    with something wrong is set aside, so that what is asked next is judged by its own answers.
    """
    facts: dict[str, Any] = {"wrong": []}
    for dtype in dict.fromkeys([STRICT, work.asked.dtype]):
        run_dir = work.out / f"correctness-{dtype}"
        _run(work.asked.device, dtype, run_dir, console)
        explained = explain(run_dir)
        console.print(text.table(explained).rich())
        facts[dtype] = [_counts(arm) for arm in explained.arms]
        wrong = [f"{dtype}: {line}" for line in (*text.violations(explained), *_missing(explained.arms))]
        if wrong:
            aside = run_dir.with_name(f"{run_dir.name}-wrong")
            shutil.rmtree(aside, ignore_errors=True)
            run_dir.rename(aside)
        facts["wrong"] += wrong
    return facts


def _run(device: str, dtype: str, run_dir: Path, console: Console) -> None:
    rows = registry.METHODS.items()
    names = [name for name, row in rows if row.model or row.weights in (None, *registry.SHIPPED_WEIGHTS)]
    options = Options(
        methods=[*names, *(f"{name}:backend=eager" for name in names)],
        target=targets.SHIPPED,
        limit=QUESTIONS,
        max_new_tokens=TOKENS,
        dtype=dtype,
        device=device,
        backend="static",
        drafter_files={row.weights: targets.shipped_folder() for _, row in rows if row.weights and row.model},  # it drafts for itself
    )
    runner.run(prepare(options), run_dir, console)


def _counts(arm: ArmAgreement) -> dict[str, Any]:
    return {"arm": arm.method, "compared": arm.compared, "same": arm.same, "ties": len(arm.ties), "violations": len(arm.violations)}


def _missing(arms: tuple[ArmAgreement, ...]) -> list[str]:
    return [f"{arm.method}: {arm.unanswered} turn(s) failed in it or in vanilla" for arm in arms if arm.unanswered]
