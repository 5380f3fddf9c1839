"""A run directory as the report reads it, and the frames formed from it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any

import pandas as pd

from specbench.analysis import breakdown, metrics
from specbench.analysis.frames import OVERALL, turns_frame
from specbench.analysis.stats import Estimate
from specbench.report import lossless, tables
from specbench.report.lossless import Judged
from specbench.store import records
from specbench.store.manifest import RunManifest
from specbench.store.records import AGAIN, BASELINE, Record
from specbench.suites import TITLES


@dataclass(frozen=True)
class Run:
    """The records, their frames, and the names under which methods and categories are shown."""

    folder: Path
    manifest: RunManifest
    records: list[Record]
    torn: bool
    judged: Judged | None  # the losslessness report, where the directory holds one
    slug: str  # its folder within the report

    @cached_property
    def turns(self) -> pd.DataFrame:
        return turns_frame(self.records)

    @property
    def methods(self) -> dict[str, str]:
        """Every arm's label by name."""
        facts = self.manifest.methods
        return {name: tables.method_label(name, facts[name]) for name in self.manifest.settings.methods}

    @property
    def shown(self) -> dict[str, str]:
        """The arms without the one that repeats another to measure the noise."""
        return {name: label for name, label in self.methods.items() if not name.endswith(AGAIN)}

    @property
    def peers(self) -> dict[str, str]:
        """Other engines."""
        return {name: label for name, label in self.shown.items() if self.manifest.methods[name].engine}

    @property
    def drafting(self) -> dict[str, str]:
        return {name: label for name, label in self.shown.items() if name != BASELINE}

    @property
    def categories(self) -> dict[str, str]:
        return {name: TITLES.get(name, name) for name in self.manifest.categories} | {OVERALL: "Overall"}

    @property
    def has_vanilla(self) -> bool:
        return BASELINE in set(self.turns["method"])

    @property
    def answered(self) -> bool:
        return bool((self.turns["status"] == "ok").any())

    @cached_property
    def comparison(self) -> pd.DataFrame:
        return metrics.comparison(self.turns, list(self.methods), list(self.manifest.categories))

    @property
    def overall(self) -> dict[str, dict[str, Any]]:
        """The comparison's row over all categories, by arm."""
        rows = self.comparison[self.comparison["category"] == OVERALL].to_dict("records")
        return {row["method"]: {str(name): value for name, value in row.items()} for row in rows}

    @cached_property
    def split(self) -> pd.DataFrame:
        return breakdown.time_split(self.turns, list(self.shown), list(self.manifest.categories))

    @cached_property
    def acceptance(self) -> pd.DataFrame:
        return breakdown.acceptance(self.turns, list(self.shown), list(self.manifest.categories))

    @cached_property
    def along(self) -> pd.DataFrame:
        return breakdown.along_the_answer(self.turns, list(self.drafting))

    @cached_property
    def noise(self) -> dict[str, Estimate]:
        """By the arm that ran twice: what its two passes differ by."""
        twice = [name.removesuffix(AGAIN) for name in self.methods if name.endswith(AGAIN)]
        return {name: metrics.noise_floor(self.turns, name) for name in twice}


def read(run_dirs: Sequence[Path]) -> list[Run]:
    """The runs, each with a folder name of its own.

    Raises UserError for a directory that is no run, or whose losslessness report is not its own.
    """
    runs: list[Run] = []
    for run_dir in run_dirs:
        manifest = RunManifest.read(run_dir)
        found, torn = records.read(run_dir)
        judged = lossless.read(run_dir, manifest, found)
        runs.append(Run(run_dir, manifest, found, torn, judged, _slug(manifest.name, {run.slug for run in runs})))
    return runs


def _slug(name: str, taken: set[str]) -> str:
    plain = re.sub(r"[^\w.-]+", "-", name).strip("-.") or "run"
    numbered = (f"{plain}-{number}" for number in count(2))
    return plain if plain not in taken else next(slug for slug in numbered if slug not in taken)
