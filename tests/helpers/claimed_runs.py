"""Runs whose end-to-end speedup is known, to hold against claims."""

from dataclasses import replace

from helpers.scripted_records import OTHER_S, PREFILL_S, turn, write_run
from specbench import claims
from specbench.analysis.frames import turns_frame
from specbench.claims.verdict import judge
from specbench.store.manifest import RunManifest
from specbench.suites import spec_bench

STEPS, PROMPT_S = 12, PREFILL_S + OTHER_S
VANILLA_S = PROMPT_S + STEPS * 0.010
ON_SPEC_BENCH = {"suite": "spec-bench", "suite_sha256": spec_bench.SHA256}
S4C = claims.named("s4c")


def answer(method, number, speedup=1.0, text_tokens=STEPS + 1):
    """One question answered in a round of 12 tokens, or by vanilla in 12 steps; ``speedup`` is end to end."""
    rounds = [0] * STEPS if method == "vanilla" else [STEPS - 1]
    step_s = (VANILLA_S / speedup - PROMPT_S) / len(rounds)
    record = turn(method, f"q{number}", rounds, category=("qa", "rag")[number % 2], depth=STEPS - 1, step_s=(0.0, step_s, 0.0))
    return replace(record, text_tokens=text_tokens)


def records(speedup, method="s4c", *, wobble=0.01, questions=36, vanilla_text_tokens=STEPS + 1):
    """A run of two arms whose speedups alternate about ``speedup`` by the share ``wobble``."""
    for i in range(questions):
        yield answer("vanilla", i, text_tokens=vanilla_text_tokens)
        yield answer(method, i, speedup * (1 + wobble * (1, 1, -1, -1)[i % 4]))


def manifest(tmp_path, questions=36, arms=2, **changes):
    half = questions // 2
    plan = {"categories": {"qa": questions - half, "rag": half}, "units_total": questions * arms, "methods": {"vanilla": "V", "s4c": "S4C"}}
    settings = ON_SPEC_BENCH | changes.pop("settings", {})
    return RunManifest.read(write_run(tmp_path / "run", [], settings=settings, **(plan | changes)))


def verdict_on(tmp_path, found, claim=S4C, method=None, **changes):
    return judge(claim, manifest(tmp_path, **changes), turns_frame(found), method)
