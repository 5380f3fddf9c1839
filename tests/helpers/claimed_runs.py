"""Runs whose end-to-end speedup is known, to hold against claims."""

from dataclasses import replace

from helpers.scripted_records import OTHER_S, PREFILL_S, frame, turn, write_run
from specbench.claims.claim import claim_named
from specbench.claims.verdict import judge
from specbench.store.manifest import RunManifest
from specbench.suites import spec_bench

STEPS, PROMPT_S = 12, PREFILL_S + OTHER_S
VANILLA_S = PROMPT_S + STEPS * 0.010
ON_SPEC_BENCH = {"name": "spec-bench", "sha256": spec_bench.SHA256}  # facts of the suite
S4C = claim_named("s4c")


def answer(arm, number, speedup=1.0, text_tokens=STEPS + 1, steps=1, draft_s=0.0):
    """Return one answered question: 12 tokens in ``steps`` equal steps, or by vanilla in 12; ``speedup`` is end to end.

    ``draft_s`` seconds of each step are drafting.
    """
    steps = STEPS if arm == "vanilla" else steps
    step_s = (VANILLA_S / speedup - PROMPT_S) / steps
    times = (draft_s, step_s - draft_s, 0.0)
    record = turn(arm, f"q{number}", [STEPS // steps - 1] * steps, category=("qa", "rag")[number % 2], depth=STEPS - 1, step_s=times)
    return replace(record, text_tokens=text_tokens)


def records(speedup, arm="s4c", *, wobble=0.01, questions=36, vanilla_text_tokens=STEPS + 1):
    """Yield a run of two arms whose speedups alternate around ``speedup`` by the share ``wobble``."""
    for i in range(questions):
        yield answer("vanilla", i, text_tokens=vanilla_text_tokens)
        yield answer(arm, i, speedup * (1 + wobble * (1, 1, -1, -1)[i % 4]))


THREE_ARMS = {"vanilla": "V", "eagle3": "EAGLE-3", "confu": "ConFu"}


def beside(gain, *, wobble=0.0, over=2.0, ours=None, theirs=None, questions=36):
    """Yield a run of three arms: EAGLE-3 with the speedup ``over``, and ConFu with ``gain`` times that, alternating by ``wobble``.

    ``ours`` and ``theirs`` are further arguments of ``answer`` for ConFu and EAGLE-3.
    """
    for i in range(questions):
        yield answer("vanilla", i)
        yield answer("eagle3", i, over, **(theirs or {}))
        yield answer("confu", i, over * gain * (1 + wobble * (1, 1, -1, -1)[i % 4]), **(ours or {}))


def manifest(tmp_path, questions=36, arms=2, **changes):
    """Return the manifest of a written run without records, on Spec-Bench's questions; ``changes`` are those of ``write_run``."""
    half = questions // 2
    suite = {**ON_SPEC_BENCH, "categories": {"qa": questions - half, "rag": half}, **changes.pop("suite", {})}
    plan = {"units_total": questions * arms, "methods": {"vanilla": "V", "s4c": "S4C"}}
    return RunManifest.read(write_run(tmp_path / "run", [], suite=suite, **(plan | changes)))


def verdict_on(tmp_path, found, claim=S4C, arm=None, over=None, **changes):
    """Return the verdict of a claim on records; ``changes`` are those of ``manifest``."""
    return judge(claim, manifest(tmp_path, **changes), frame(found), arm, over)
