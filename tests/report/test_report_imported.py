"""Facts that imported answers lack are shown as unknown."""

from dataclasses import replace
from math import nan
from typing import Any

from helpers.scripted_records import turn, write_run

from specbench.report.compose import build
from specbench.store.manifest import ImportSource, RunManifest
from specbench.store.records import Steps
from specbench.util.terminal import Console

ACCEPTED = {"vanilla": [0] * 12, "theirs": [2, 3, 1, 2]}


def imported(method, question):
    """Return a turn of which only token counts and wall time are known."""
    whole = turn(method, question, ACCEPTED[method], prompt=f"unknown, {method}")
    steps = Steps(accepted=whole.steps.accepted, emitted=whole.steps.emitted)
    unknown: dict[str, Any] = {"output_ids": [], "prompt_tokens": 0, "prefill_s": 0.0, "peak_bytes": 0, "stop": ""}
    return replace(whole, **unknown, tokens=13, output_text="their words", steps=steps)


def test_unknown_stays_unknown(tmp_path):
    rows = [imported(m, q) for q in "ab" for m in ACCEPTED]
    settings = {"temperature": nan, "max_new_tokens": 0, "seed": 0, "target": str(tmp_path / "none")}
    target = {"name": "unknown", "label": "imported", "note": "Imported.", "parameters": None}
    run = write_run(
        tmp_path / "run",
        rows,
        methods={"vanilla": "Vanilla", "theirs": "Theirs"},
        settings=settings,
        target=target,
        suite={"categories": {"qa": 2}},
        imported=[ImportSource("theirs", "theirs.jsonl", "a" * 64, [])],
    )
    manifest = RunManifest.read(run)
    replace(manifest, arms={name: replace(facts, lossless=None) for name, facts in manifest.arms.items()}).write(run)
    text = build([run], tmp_path / "out", Console(record=True)).with_suffix(".md").read_text(encoding="utf-8")
    assert "ossy" not in text.split("### Definitions")[0]
    assert "| Theirs | — | — | — | — | — | — | — | — | — |" in text
    assert "no turn of another arm is known to have vanilla's prompt" in text
    assert "**Theirs** (13 tokens in 4 steps)" in text
    assert "unknown (imported), unknown parameters" in text
    assert "temperature unknown, at most unknown tokens a turn, seed unknown" in text
    assert "Batch size 1" not in text
