"""Records with forced acceptance and fake times, and a manifest to go with them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from specbench.store.manifest import MethodFacts, RunManifest, Settings
from specbench.store.records import Record, Steps, Writer

STEP_S = {"vanilla": (0.0, 0.010, 0.0)}  # draft, verify, commit
DRAFTING_STEP_S = (0.002, 0.012, 0.001)
PREFILL_S = 0.030
OTHER_S = 0.001


def turn(
    method: str,
    question: str,
    accepted: Sequence[int],
    *,
    category: str = "qa",
    number: int = 0,
    repeat: int = 0,
    depth: int = 3,
    step_s: tuple[float, float, float] | None = None,
    ids: Sequence[int] | None = None,
    prompt: str = "p",
) -> Record:
    """A turn whose steps accept ``accepted`` drafts of a tree of ``depth``, each emitting one more; ids count up unless given."""
    draft, verify, commit = step_s or STEP_S.get(method, DRAFTING_STEP_S)
    count = len(accepted)
    emitted = [a + 1 for a in accepted]
    return Record(
        method, question, category, number, repeat, "ok",
        prompt_sha256=prompt, prompt_tokens=7, output_ids=list(ids if ids is not None else range(1 + sum(emitted))), stop="length",
        prefill_s=PREFILL_S, total_s=PREFILL_S + count * (draft + verify + commit) + OTHER_S, peak_bytes=3 * 2**20,
        steps=Steps(
            [1 if method == "vanilla" else depth + 1] * count, [0 if method == "vanilla" else depth] * count,
            list(accepted), emitted, [draft] * count, [verify] * count, [commit] * count,
        ),
    )  # fmt: skip


def failed(method: str, question: str, *, category: str = "qa", number: int = 0, error: str = "out of memory") -> Record:
    return Record(method, question, category, number, 0, "error", error=error)


def write_run(run_dir: Path, records: Sequence[Record], **changes: Any) -> Path:
    """A run directory; ``changes`` replace the manifest's fields (``settings`` and ``target`` are merged)."""
    run_dir.mkdir(parents=True)
    methods = changes.pop("methods", {"vanilla": "Vanilla", "medusa": "Medusa", "s4c": "S4C"})
    lossy = changes.pop("lossy", ())
    settings = Settings(
        list(methods), "tiny-160m", "mini", "f" * 64, None, [], 32, 0.0, 0, "bfloat16", "cpu", "sdpa", 1, "own"
    )  # fmt: skip
    fields: dict[str, Any] = {
        "name": run_dir.name,
        "created": "2026-01-02T03:04:05+00:00",
        "settings": Settings(**{**vars(settings), **changes.pop("settings", {})}),
        "methods": {
            name: MethodFacts(title, name not in lossy, name == "s4c", {"nodes": 12}, "typical" if name in lossy else "match", None)
            for name, title in methods.items()
        },
        "target": {"name": "tiny-160m", "label": "", "note": "", "parameters": 160_000_000, "weights_sha256": "e" * 64}
        | changes.pop("target", {}),
        "categories": {"qa": 2, "rag": 2},
        "units_total": 4 * len(methods),
        "suite_version": "1",
        "template_sha256": "d" * 64,
        "environment": {"python": "3.11", "torch": "2.13", "cpu": "A CPU", "threads": 2},
        "git": {"sha": "c" * 40, "dirty": True},
        "argv": ["specbench", "run"],
        "overrides": [],
        "suite_file": None,
        "hf_columns": {},
        "drafter_files": {},
        "status": "complete",
    }
    RunManifest(**(fields | changes)).write(run_dir)
    writer = Writer(run_dir)
    for record in records:
        writer.write(record)
    writer.close()
    return run_dir
