"""From run directories to a report: Markdown, tables as CSV and Parquet, figures, and the terminal's tables."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd
from rich.console import Console

from methods.core.errors import UserError
from specbench import breakdown, figures, metrics, notes, records, tables
from specbench.manifest import RunManifest
from specbench.records import BASELINE
from specbench.suites import TITLES
from specbench.turns import LISTS, OVERALL, turns_frame

CAPTIONS = {
    "speedup": "End-to-end speedup over vanilla per category, with 95 % intervals",
    "round_cost": "Decode speedup against mean accepted tokens, with lines of equal round cost",
    "time_split": "Milliseconds per output token spent in drafting, verification, commits, the rest and prefill",
    "acceptance": "Acceptance by depth of the draft tree",
}


@dataclass(frozen=True)
class Run:
    """A run directory as read, and the frames formed from it."""

    manifest: RunManifest
    turns: pd.DataFrame
    torn: bool
    slug: str  # its folder within the report

    @property
    def methods(self) -> dict[str, str]:
        facts = self.manifest.methods
        return {name: tables.method_label(name, facts[name]) for name in self.manifest.settings.methods}

    @property
    def categories(self) -> dict[str, str]:
        return {name: TITLES.get(name, name) for name in self.manifest.categories} | {OVERALL: "Overall"}

    @property
    def has_vanilla(self) -> bool:
        return BASELINE in set(self.turns["method"])

    @cached_property
    def comparison(self) -> pd.DataFrame:
        return metrics.comparison(self.turns, list(self.methods), list(self.manifest.categories))

    @cached_property
    def split(self) -> pd.DataFrame:
        return breakdown.time_split(self.turns, list(self.methods), list(self.manifest.categories))

    @cached_property
    def acceptance(self) -> pd.DataFrame:
        return breakdown.acceptance(self.turns, list(self.methods), list(self.manifest.categories))


def build(run_dirs: Sequence[Path], out: Path, console: Console) -> Path:
    """Write ``out/report.md`` and one folder per run beside it, print the main tables, and return the report's path.

    Raises UserError for a directory that is no run and for an ``out`` that cannot be written.
    """
    runs = read(run_dirs)
    try:
        out.mkdir(parents=True, exist_ok=True)
        sections = [_section(run, out) for run in runs]
        path = out / "report.md"
        opening = notes.cost_matched([run.manifest for run in runs])
        path.write_text("\n\n".join(["# Spec-Bench report", *opening, *sections]) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write the report to {out} ({error.strerror}); choose another --out or make room there") from None
    for run in runs:
        _show(run, console)
    return path


def read(run_dirs: Sequence[Path]) -> list[Run]:
    """The runs, each with a folder name of its own."""
    runs: list[Run] = []
    for run_dir in run_dirs:
        manifest = RunManifest.read(run_dir)
        found, torn = records.read(run_dir)
        slug = re.sub(r"[^\w.-]+", "-", manifest.name).strip("-.") or "run"
        taken = sum(run.manifest.name == manifest.name for run in runs)
        runs.append(Run(manifest, turns_frame(found), torn, f"{slug}-{taken + 1}" if taken else slug))
    return runs


def _section(run: Run, out: Path) -> str:
    folder = out / run.slug
    folder.mkdir(exist_ok=True)
    parts = [f"## Run {tables.escape(run.manifest.name)}", *notes.state(run.manifest, run.turns, run.torn, run.methods)]
    if (run.turns["status"] == "ok").any():
        _write_frames(run, folder)
        parts += _results(run, _draw(run, folder))
    parts += notes.failures(run.turns, run.methods)
    return "\n\n".join([*parts, "### Conditions", notes.conditions(run.manifest)])


def _write_frames(run: Run, folder: Path) -> None:
    turns = run.turns.drop(columns=LISTS)
    for name, frame in {"comparison": run.comparison, "time_split": run.split, "acceptance": run.acceptance, "turns": turns}.items():
        frame.to_csv(folder / f"{name}.csv", index=False)
        frame.to_parquet(folder / f"{name}.parquet", index=False)


def _draw(run: Run, folder: Path) -> dict[str, str]:
    look = figures.Look(run.methods, run.categories, notes.subtitle(run.manifest, run.turns))
    drawn = figures.draw(run.comparison, run.split, run.acceptance, look, folder)
    return {name: f"![{CAPTIONS[name]}]({run.slug}/{path.name})" for name, path in drawn.items()}


def _results(run: Run, images: dict[str, str]) -> list[str]:
    methods, categories, numbers = run.methods, run.categories, run.comparison
    speedups = tables.by_category(numbers, methods, categories, lambda row: tables.with_interval(row, "speedup"), "Speedup")
    mats = tables.by_category(numbers, methods, categories, lambda row: tables.number(row["mat"]), "MAT")
    return [
        "### All categories",
        tables.headline(numbers, methods, tables.FULL, "All categories").markdown(),
        *notes.warnings(run.manifest, numbers, methods, run.has_vanilla),
        notes.READING,
        "### Speedup by category",
        speedups.markdown(),
        *_present(images, "speedup"),
        "### MAT by category, and the cost of a round",
        mats.markdown(),
        *_present(images, "round_cost"),
        "### Where the time goes",
        tables.time_split(run.split, methods).markdown(),
        *_present(images, "time_split"),
        "### Acceptance by depth",
        *([tables.acceptance(run.acceptance, methods).markdown()] if len(run.acceptance) else ["No method drafted anything."]),
        *_present(images, "acceptance"),
        f"Tables as CSV and Parquet, figures also as SVG: `{run.slug}/`.",
    ]


def _present(images: dict[str, str], name: str) -> list[str]:
    return [images[name]] if name in images else []


def _show(run: Run, console: Console) -> None:
    for line in [*notes.cost_matched([run.manifest]), *notes.state(run.manifest, run.turns, run.torn, run.methods)[:1]]:
        console.print(line, markup=False)
    if not (run.turns["status"] == "ok").any():
        return
    console.print(tables.headline(run.comparison, run.methods, tables.SHORT, f"{run.manifest.name}: all categories").rich())
    cell: tables.Cell = lambda row: tables.number(row["speedup"])  # noqa: E731
    console.print(tables.by_category(run.comparison, run.methods, run.categories, cell, "Speedup by category").rich())
    for line in notes.warnings(run.manifest, run.comparison, run.methods, run.has_vanilla):
        console.print(line, markup=False)
