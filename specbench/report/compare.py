"""Several runs beside each other: their numbers in one table and the conditions in which they differ, never a ratio across runs."""

from collections.abc import Sequence

from specbench.report import tables
from specbench.report.blocks import Block, Bullets, Heading, Paragraph
from specbench.report.run import Run
from specbench.store import describe
from specbench.store.manifest import RunManifest, differences
from specbench.util.table import NONE, TextTable

PLACE = ("gpu", "cpu", "driver", "cuda", "threads", "workers", "python", "torch", "transformers")
NEVER = "Every speedup is over vanilla of the same run. Numbers of different runs are not divided by one another: what differs is listed."


def blocks(runs: Sequence[Run]) -> list[Block]:
    """The comparison of two runs or more; the first is the one the others' conditions are held against."""
    rows = [row for run in runs for row in _rows(run)]
    headers = ["Run", "Target", "Device", "Dtype", "Suite", "Method", *tables.SHORT]
    table = TextTable("All categories of every run", headers, rows).telling(tables.OVER_EAGER)
    listed: list[Block] = []
    for other in runs[1:]:
        listed.append(Paragraph(f"{other.slug} differs from {runs[0].slug} in:"))
        listed.append(Bullets(conditions(runs[0].manifest, other.manifest) or ["nothing that is recorded"]))
    return [Heading(2, "The runs beside each other"), Paragraph(NEVER), table, *listed]


def conditions(old: RunManifest, new: RunManifest) -> list[str]:
    """``name old -> new`` of what a number depends on: the run's identity, the machine and versions, the code."""
    facts = [(name, old.environment.get(name), new.environment.get(name)) for name in PLACE]
    facts += [("code", old.git.get("sha"), new.git.get("sha")), ("arms", old.settings.methods, new.settings.methods)]
    place = [f"{name} {_text(before)} -> {_text(after)}" for name, before, after in facts if before != after]
    return [line for line in differences(old, new) if not line.startswith("methods ")] + place


def _rows(run: Run) -> list[list[str]]:
    manifest = run.manifest
    where = [run.slug, describe.target(manifest), describe.processor(manifest), manifest.settings.dtype, manifest.settings.suite]
    if not run.answered:
        return [[*where, "nothing answered", *[NONE] * len(tables.SHORT)]]
    return [[*where, run.methods[name], *(cell(row) for cell in tables.SHORT.values())] for name, row in run.overall.items()]


def _text(fact: object) -> str:
    return ", ".join(fact) if isinstance(fact, list) else str(fact) if fact is not None else NONE
