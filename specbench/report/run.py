"""A run as the report reads it, with its data frames and labels."""

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
from specbench.config.arm import BASELINE
from specbench.report.lossless import SavedLosslessReport, read_lossless_report
from specbench.store.describe import arm_label
from specbench.store.manifest import RunManifest
from specbench.store.rundir import StoredRun, read_run
from specbench.suites import TITLES


@dataclass(frozen=True)
class Run:
    """A run, the frames formed from its records, and the labels of arms and categories."""

    folder: Path
    stored: StoredRun
    losslessness: SavedLosslessReport | None  # None if the directory holds none
    slug: str  # name of the run's folder in the report

    @property
    def manifest(self) -> RunManifest:
        """The run's manifest."""
        return self.stored.manifest

    @cached_property
    def turns(self) -> pd.DataFrame:
        """The turns, one row each."""
        return turns_frame(self.stored.records, self.manifest.arms)

    @property
    def arms(self) -> dict[str, str]:
        """The label of every arm, by name."""
        return {name: arm_label(facts) for name, facts in self.manifest.arms.items()}

    @property
    def shown(self) -> dict[str, str]:
        """The labels of arms without those that repeat another arm to measure the noise."""
        return {name: label for name, label in self.arms.items() if not self.manifest.arms[name].repeat_of}

    @property
    def other_engines(self) -> dict[str, str]:
        """The labels of the arms of other engines."""
        return {name: label for name, label in self.shown.items() if self.manifest.arms[name].engine}

    @property
    def drafting(self) -> dict[str, str]:
        """The labels of the shown arms without vanilla."""
        return {name: label for name, label in self.shown.items() if name != BASELINE}

    @property
    def categories(self) -> dict[str, str]:
        """The label of every category, by name; all categories together come last."""
        return {name: TITLES.get(name, name) for name in self.manifest.suite.categories} | {OVERALL: "Overall"}

    @property
    def has_vanilla(self) -> bool:
        """Whether vanilla answered or failed any turn."""
        return BASELINE in set(self.turns["arm"])

    @property
    def answered(self) -> bool:
        """Whether any turn was answered."""
        return bool((self.turns["status"] == "ok").any())

    @cached_property
    def comparison(self) -> pd.DataFrame:
        """The comparison table, one row per arm and category."""
        return metrics.comparison(self.turns, list(self.arms), list(self.manifest.suite.categories))

    @property
    def overall(self) -> dict[str, dict[str, Any]]:
        """The comparison table's row over all categories, by arm."""
        rows = self.comparison[self.comparison["category"] == OVERALL].to_dict("records")
        return {row["arm"]: {str(name): value for name, value in row.items()} for row in rows}

    @cached_property
    def split(self) -> pd.DataFrame:
        """The time by part of a step."""
        return breakdown.time_split(self.turns, list(self.shown), list(self.manifest.suite.categories))

    @cached_property
    def acceptance(self) -> pd.DataFrame:
        """The acceptance rates by depth."""
        return breakdown.acceptance(self.turns, list(self.shown), list(self.manifest.suite.categories))

    @cached_property
    def along(self) -> pd.DataFrame:
        """MAT by position in the answer."""
        return breakdown.along_the_answer(self.turns, list(self.drafting))

    @cached_property
    def noise(self) -> dict[str, Estimate]:
        """The speedup of each A/A repeat over the arm that it repeats, by the name of that arm."""
        twice = [facts.repeat_of for facts in self.manifest.arms.values() if facts.repeat_of]
        return {name: metrics.noise_floor(self.turns, name) for name in twice}


def load_runs(run_dirs: Sequence[Path]) -> list[Run]:
    """Return the runs, each with its own folder name.

    Raises UserError for a directory that is not a run, or whose losslessness report belongs to other records.
    """
    runs: list[Run] = []
    for run_dir in run_dirs:
        stored = read_run(run_dir)
        losslessness = read_lossless_report(run_dir, stored.manifest, stored.records)
        runs.append(Run(run_dir, stored, losslessness, _slug(stored.manifest.name, {run.slug for run in runs})))
    return runs


def _slug(name: str, taken: set[str]) -> str:
    plain = re.sub(r"[^\w.-]+", "-", name).strip("-.") or "run"
    numbered = (f"{plain}-{number}" for number in count(2))
    return plain if plain not in taken else next(slug for slug in numbered if slug not in taken)
