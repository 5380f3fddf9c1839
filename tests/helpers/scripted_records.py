"""Records with given acceptance and times, and a manifest to go with them."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from specbench.analysis.frames import turns_frame
from specbench.config.arm import AGAIN, Arm
from specbench.config.options import RunConfig
from specbench.store.manifest import ArmFacts, RunManifest, SuiteFacts, TargetFacts
from specbench.store.records import Record, Steps, Writer
from specbench.util.environment import Environment, GitState

STEP_S = {"vanilla": (0.0, 0.010, 0.0)}  # draft, verify, commit
DRAFTING_STEP_S = (0.002, 0.012, 0.001)
PREFILL_S = 0.030
OTHER_S = 0.001


def turn(
    arm: str,
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
    """Return a turn whose steps accept ``accepted`` drafts of a tree of ``depth``; ids count up unless given."""
    draft, verify, commit = step_s or STEP_S.get(arm, DRAFTING_STEP_S)
    count = len(accepted)
    emitted = [a + 1 for a in accepted]
    return Record(
        arm, question, category, number, repeat, "ok",
        prompt_sha256=prompt, prompt_tokens=7, output_ids=list(ids if ids is not None else range(1 + sum(emitted))), stop="length",
        prefill_s=PREFILL_S, total_s=PREFILL_S + count * (draft + verify + commit) + OTHER_S, peak_bytes=3 * 2**20,
        steps=Steps(
            [1 if arm == "vanilla" else depth + 1] * count, [0 if arm == "vanilla" else depth] * count,
            list(accepted), emitted, [draft] * count, [verify] * count, [commit] * count,
        ),
    )  # fmt: skip


def frame(records: Iterable[Record]) -> pd.DataFrame:
    """Return the turns of records whose arms are named after their method; ``#2`` ends the name of a repeat."""
    found = list(records)
    arms = dict.fromkeys(record.arm for record in found)
    return turns_frame(found, manifest("run", methods={arm: arm for arm in arms}).arms)


def failed(arm: str, question: str, *, category: str = "qa", number: int = 0, error: str = "out of memory") -> Record:
    """Return a failed turn."""
    return Record(arm, question, category, number, 0, "error", error=error)


def arm_facts(title: str, **facts: Any) -> ArmFacts:
    """Return the facts of an arm that ran on the static back end."""
    usual = {"method": title.lower(), "lossless": True, "reconstruction": False, "config": {"nodes": 12}, "acceptance": "match"}
    return ArmFacts(title, **{**usual, "weights_sha256": None, "backend": "eager", **facts})


def manifest(name: str, **changes: Any) -> RunManifest:
    """Return a manifest; ``changes`` replace its fields.

    ``methods`` gives arms by name and title, ``lossy`` names some of them; ``settings``, ``target``, ``suite``, ``environment``
    and ``git`` are merged with the usual ones.
    """
    titles = changes.pop("methods", {"vanilla": "Vanilla", "medusa": "Medusa", "s4c": "S4C"})
    lossy = changes.pop("lossy", ())
    arms = {}
    for arm, title in titles.items():
        base = arm.removesuffix(AGAIN)
        arms[arm] = arm_facts(
            title,
            method=Arm.parse(base).method,
            lossless=arm not in lossy,
            reconstruction=arm == "s4c",
            acceptance="typical" if arm in lossy else "match",
            backend=Arm.parse(base).options.get("backend", "eager"),
            repeat_of=base if base != arm else "",
        )
    settings = RunConfig(
        methods=list(titles),
        target="tiny-160m",
        suite="mini",
        max_new_tokens=32,
        dtype="bf16",
        device="cpu",
        backend="eager",
        template="chat",
    )
    fields: dict[str, Any] = {
        "name": name,
        "created": "2026-01-02T03:04:05+00:00",
        "settings": replace(settings, **changes.pop("settings", {})),
        "arms": arms,
        "target": replace(TargetFacts("tiny-160m", parameters=160_000_000, weights_sha256="e" * 64), **changes.pop("target", {})),
        "suite": replace(SuiteFacts("mini", "1", "f" * 64, {"qa": 2, "rag": 2}), **changes.pop("suite", {})),
        "units_total": 4 * len(arms),
        "template_sha256": "d" * 64,
        "environment": replace(Environment(python="3.11", torch="2.13", cpu="A CPU", threads=2), **changes.pop("environment", {})),
        "git": replace(GitState("c" * 40, True), **changes.pop("git", {})),
        "argv": ["specbench", "run"],
        "status": "complete",
    }
    return RunManifest(**(fields | changes))


def write_run(run_dir: Path, records: Sequence[Record], **changes: Any) -> Path:
    """Write a run directory; ``changes`` are those of ``manifest``."""
    run_dir.mkdir(parents=True)
    manifest(**{"name": run_dir.name, **changes}).write(run_dir)
    writer = Writer(run_dir)
    for record in records:
        writer.write(record)
    writer.close()
    return run_dir
