"""The comparison of several runs: their numbers in one table, and the conditions in which they differ.

No ratio is formed across runs.
"""

from collections.abc import Sequence

from specbench.report import tables
from specbench.report.blocks import Block, Bullets, Heading, Paragraph
from specbench.report.run import Run
from specbench.store import describe
from specbench.store.manifest import RunManifest, changed_facts, differences
from specbench.util.text import NONE, TextTable

ENVIRONMENT_FACTS = ("gpu", "cpu", "driver", "cuda", "threads", "workers", "python", "torch", "transformers")
NO_RATIOS = "Every speedup is over vanilla of the same run. Numbers of different runs are not divided by one another."


def blocks(runs: Sequence[Run]) -> list[Block]:
    """Return the comparison of two or more runs. The conditions of each are compared with those of the first."""
    rows = [row for run in runs for row in _rows(run)]
    headers = ["Run", "Target", "Device", "Dtype", "Suite", "Method", *tables.SHORT]
    table = TextTable("All categories of every run", headers, rows).drop_if_empty(tables.OVER_EAGER)
    changes: list[Block] = []
    for other in runs[1:]:
        changes.append(Paragraph(f"{other.slug} differs from {runs[0].slug} in:"))
        changes.append(Bullets(changed_conditions(runs[0].manifest, other.manifest) or ["nothing that is recorded"]))
    return [Heading(2, "The runs beside each other"), Paragraph(NO_RATIOS), table, *changes]


def changed_conditions(old: RunManifest, new: RunManifest) -> list[str]:
    """Return ``name old -> new`` for each changed condition: settings, machine, versions, and code."""
    machines = [{**{name: getattr(run.environment, name) for name in ENVIRONMENT_FACTS}, "code": run.git.sha} for run in (old, new)]
    return differences(old, new) + changed_facts(*machines)


def _rows(run: Run) -> list[list[str]]:
    manifest = run.manifest
    conditions = [run.slug, describe.target(manifest), describe.processor(manifest), manifest.settings.dtype, manifest.settings.suite]
    if not run.answered:
        return [[*conditions, "nothing answered", *[NONE] * len(tables.SHORT)]]
    return [[*conditions, run.arms[name], *(cell(row) for cell in tables.SHORT.values())] for name, row in run.overall.items()]
