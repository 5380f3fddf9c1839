"""The check of the device's results: every method that runs as shipped, on both back ends, token for token against static vanilla."""

import shutil
from dataclasses import replace
from typing import Any

from methods import registry
from specbench import targets
from specbench.config.options import RunConfig
from specbench.lossless import text
from specbench.lossless.differences import ArmAgreement
from specbench.lossless.divergence import explain
from specbench.measure import runner
from specbench.measure.runner import LocalExecutor
from specbench.measure.session import prepare
from specbench.util.terminal import Console, print_table
from tools.gpu_visit.visit import Visit

STRICT = "fp32"
QUESTIONS = 1  # in each category of the mini suite
TOKENS = 48


def correctness(visit: Visit, console: Console) -> dict[str, Any]:
    """Run the shipped target in fp32 and in the visit's dtype; ``wrong`` lists what is not as it must be.

    A difference from static vanilla is wrong unless the target's logits, in fp32, explain it as a rounding
    tie (``specbench.lossless.divergence``). An answer that failed is wrong too. A run with something wrong is set
    aside, so that the next call measures anew.
    """
    facts: dict[str, Any] = {"wrong": []}
    for dtype in dict.fromkeys([STRICT, visit.config.dtype]):
        run_dir = visit.out / f"correctness-{dtype}"
        config = replace(shipped_methods(), dtype=dtype, device=visit.config.device)
        runner.run(LocalExecutor(prepare(config)), run_dir, console)
        explained = explain(run_dir)
        print_table(console, text.table(explained))
        facts[dtype] = [_counts(agreement) for agreement in explained.arms]
        wrong = [f"{dtype}: {line}" for line in (*text.violations(explained), *_failed(explained.arms))]
        if wrong:
            aside = run_dir.with_name(f"{run_dir.name}-wrong")
            shutil.rmtree(aside, ignore_errors=True)
            run_dir.rename(aside)
        facts["wrong"] += wrong
    return facts


def shipped_methods() -> RunConfig:
    """Return the settings of a short run of the shipped target with every method that runs as shipped, on both back ends."""
    rows = registry.METHODS.items()
    names = [name for name, row in rows if row.model or row.weights in (None, *registry.SHIPPED_WEIGHTS)]
    return RunConfig(
        methods=[*names, *(f"{name}:backend=eager" for name in names)],
        target=targets.SHIPPED,
        limit=QUESTIONS,
        max_new_tokens=TOKENS,
        backend="static",
        drafters={row.weights: targets.shipped_folder() for _, row in rows if row.weights and row.model},  # the target drafts itself
    )


def _counts(arm: ArmAgreement) -> dict[str, Any]:
    return {"arm": arm.arm, "compared": arm.compared, "same": arm.same, "ties": len(arm.ties), "violations": len(arm.violations)}


def _failed(arms: tuple[ArmAgreement, ...]) -> list[str]:
    return [f"{arm.arm}: {arm.unanswered} turn(s) failed in it or in vanilla" for arm in arms if arm.unanswered]
