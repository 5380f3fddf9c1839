"""The report's content, composed once: what comes in which order, in every format."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from specbench.analysis.metrics import SPEEDUPS
from specbench.claims.verdict import Verdict
from specbench.report import compare, figures, findings, lossless, reading, samples, tables, verdict
from specbench.report.blocks import Block, Bullets, Figure, Heading, Paragraph, Terms
from specbench.report.run import Run
from specbench.store import describe
from specbench.store.records import BASELINE
from specbench.util.table import number
from specbench.util.text import visible

TITLE = "Spec-Bench report"
ARMS = "Every arm, all categories together"
LEGEND = 44  # characters of a line of a figure's legend
CAPTIONS = {  # and what a reader who cannot see the figure is told
    "speedup": (
        "End-to-end speedup over vanilla per category, with 95 % intervals",
        "Bars; the numbers are in the table Speedup by category.",
    ),
    "round_cost": (
        "Decode speedup against mean accepted tokens, with lines of equal round cost R: decode speedup is MAT / R exactly",
        "Scatter of arms and categories; the numbers of the arms are in the first table.",
    ),
    "time_split": (
        "Milliseconds per output token spent in drafting, verification, commits, the rest and prefill",
        "Stacked bars, one an arm; the numbers are in the table of milliseconds per step.",
    ),
    "acceptance": (
        "Acceptance by depth: share of all rounds that accept at least d drafts (1 + the sum over depths is MAT before clipping); dashed, "
        "of the rounds that accepted d \N{MINUS SIGN} 1 and whose tree goes to d",
        "Lines, one an arm; the numbers are in the table Acceptance by depth.",
    ),
    "along": (
        "MAT along the answer: all steps that begin in the same 16 output tokens. Later bins hold long answers only, and the length limit "
        "clips their last steps",
        "Lines, one an arm; the numbers are in along_the_answer.csv.",
    ),
}


def report(runs: Sequence[Run], out: Path, show_prompts: bool) -> list[Block]:
    """Everything in reading order; draws the figures into the runs' folders under ``out``."""
    opening = [Paragraph(line) for line in describe.cost_matched([run.manifest for run in runs])]
    beside = compare.blocks(runs) if len(runs) > 1 else []
    return [Heading(1, TITLE), *opening, *beside, *(block for run in runs for block in _run(run, out / run.slug, show_prompts))]


def _run(run: Run, folder: Path, show_prompts: bool) -> list[Block]:
    whole, *missing = findings.state(run)
    found: list[Block] = [Heading(2, f"Run {run.manifest.name}"), Paragraph(whole, warning=bool(missing))]
    if missing or len(run.turns) < run.manifest.units_total or not (run.turns["status"] == "ok").all():
        found += [*map(Paragraph, missing), findings.turn_counts(run)]
    claimed = verdict.judged(run) if run.answered else None
    if run.answered:
        found += _results(run, claimed, folder)
    failed = findings.failures(run)
    if failed is not None:
        found += [Heading(3, "Failed turns"), failed]
    if run.answered:
        shown = samples.blocks(run, show_prompts)
        found += [Heading(3, "Sample outputs"), *shown] if shown else []
        found += verdict.detail(claimed)
    found += [Heading(3, "Machine and settings"), Terms(describe.conditions(run.manifest))]
    if run.answered:
        found += [Heading(3, "Definitions"), Terms(reading.definitions()), Heading(3, "Caveats"), Bullets(findings.caveats(run))]
    return found


def _results(run: Run, claimed: Verdict | None, folder: Path) -> list[Block]:
    drawn = _figures(run, folder)
    return [
        Heading(3, "Verdict"),
        *verdict.opening(run, claimed),
        *(Paragraph(line, warning=True) for line in findings.outputs(run)),
        *map(Paragraph, findings.fastest(run)),
        Heading(3, "All categories"),
        *_main(run),
        *map(Paragraph, findings.noise(run)),
        *(Paragraph(line, warning=True) for line in findings.warnings(run)),
        *_present(drawn, "speedup", "round_cost"),
        *_by_category(run),
        *_by_definition(run),
        Heading(3, "Where the time goes"),
        tables.time_split(run.split, run.shown),
        *_present(drawn, "time_split"),
        *_acceptance(run, drawn),
        *_divergences(run),
        Paragraph(
            f"In the folder {run.slug}: these tables as CSV, Parquet and LaTeX, every turn's numbers, and the figures as PNG and SVG."
        ),
    ]


def _main(run: Run) -> list[Block]:
    table, alike = tables.shared(tables.headline(run.comparison, run.methods, tables.FULL, ARMS), ("Questions", "Left out"))
    said = ", ".join(f"{name.lower()} {cell}" for name, cell in alike.items())
    return [*([Paragraph(f"The same for every arm: {said}.")] if said else []), table]


def _figures(run: Run, folder: Path) -> dict[str, Figure]:
    methods, categories = (
        {name: textwrap.fill(visible(label), LEGEND) for name, label in labels.items()} for labels in (run.shown, run.categories)
    )
    look = figures.Look(methods, categories, visible(findings.subtitle(run)))
    paths = figures.draw(run.comparison, run.split, run.acceptance, run.along, look, folder)
    return {name: Figure(path, *CAPTIONS[name]) for name, path in paths.items()}


def _present(drawn: Mapping[str, Figure], *names: str) -> list[Block]:
    return [drawn[name] for name in names if name in drawn]


def _by_category(run: Run) -> list[Block]:
    speedup: tables.Cell = lambda row: tables.with_interval(row, "speedup")  # noqa: E731
    mat: tables.Cell = lambda row: number(row["mat"])  # noqa: E731
    return [
        Heading(3, "By category"),
        tables.by_category(run.comparison, run.shown, run.categories, speedup, "Speedup by category, with 95 % intervals"),
        tables.by_category(run.comparison, run.shown, run.categories, mat, "MAT by category"),
    ]


def _by_definition(run: Run) -> list[Block]:
    if not run.has_vanilla or not run.drafting:
        return []
    overall = [row for name, row in run.overall.items() if name in run.drafting]
    return [
        Heading(3, "What the definition does to the speedup"),
        Paragraph("The same records under each definition; what each one is stands under Definitions. A dash: not recorded in this run."),
        tables.by_definition(overall, run.methods, [each.__name__ for each in SPEEDUPS]),
    ]


def _acceptance(run: Run, drawn: Mapping[str, Figure]) -> list[Block]:
    table = [tables.acceptance(run.acceptance, run.shown)] if len(run.acceptance) else [Paragraph("No method drafted anything.")]
    return [Heading(3, "Acceptance by depth and along the answer"), *table, *_present(drawn, "acceptance", "along")]


def _divergences(run: Run) -> list[Block]:
    if not run.has_vanilla or set(run.methods) == {BASELINE}:
        return []
    overall = [row for name, row in run.overall.items() if name != BASELINE]
    heading = Heading(3, "Divergences from vanilla")
    if not any(row["comparable_turns"] for row in overall):
        return [heading, Paragraph("No turn of another arm is known to have vanilla's prompt, so outputs cannot be compared.")]
    return [heading, tables.agreement(overall, run.methods), *lossless.blocks(run.judged, run.manifest, run.methods)]
