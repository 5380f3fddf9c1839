"""The report: its content and order, the same in every format, and its files."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from methods.core.errors import UserError
from specbench.analysis.frames import LIST_COLUMNS
from specbench.analysis.metrics import SPEEDUPS
from specbench.claims.verdict import Verdict
from specbench.config.arm import BASELINE
from specbench.report import compare, figures, findings, html, latex, lossless, markdown, samples, tables, verdict
from specbench.report.blocks import Block, Bullets, Figure, Heading, Paragraph, Terms
from specbench.report.canvas import FigureContext
from specbench.report.figure_text import LABEL_WIDTH, chosen_categories, families, labels, numbered, plain, wrapped
from specbench.report.run import Run, load_runs
from specbench.store import describe
from specbench.util.files import check_writable
from specbench.util.terminal import Console, print_table

TITLE = "specbench report"
PAGES = "report.html", "report.md"
ARMS = "Every arm, all categories together"
MAY_DROP = ("Cut by length", "Peak MiB", "Questions", "Left out")  # columns to drop if they are equal for all arms
CAPTIONS = {  # a caption, and a text for readers who cannot see the figure
    "speedup": (
        "End-to-end speedup over vanilla per category, with 95 % intervals.",
        "Bar chart; the numbers are in the table Speedup by category.",
    ),
    "step_cost": (
        "Decode speedup against mean accepted tokens (MAT). The lines mark equal step cost R: decode speedup = MAT / R.",
        "Scatter plot of arms and categories; the numbers of the arms are in the first table.",
    ),
    "time_split": (
        "Milliseconds per output token spent on drafting, verification, commits, the rest, and prefill.",
        "Stacked bars, one per arm; the shares are in the table Milliseconds per step.",
    ),
    "acceptance": (
        "Acceptance by depth. Solid: share of all steps that accept at least d drafts. Dashed: the same share among steps that accepted "
        "d \N{MINUS SIGN} 1 drafts and whose tree reaches depth d.",
        "Line chart, one line per arm; the numbers are in the table Acceptance by depth.",
    ),
    "along": (
        "MAT along the answer, in bins of 16 output tokens. Later bins hold long answers only, and the token limit clips their last steps.",
        "Line chart, one line per arm; the numbers are in along_the_answer.csv.",
    ),
}


def build(run_dirs: Sequence[Path], out: Path, console: Console, show_prompts: bool = False) -> Path:
    """Write ``report.html``, ``report.md``, and a folder per run to ``out``, and print the main tables.

    Returns the path of the HTML file. Prompts of third-party suites are shown only with ``show_prompts``.
    Raises UserError for a directory that is not a run, an ``out`` that cannot be written, and prompts that cannot
    be loaded.
    """
    for name in PAGES:
        check_writable(out / name)
    runs = load_runs(run_dirs)
    try:
        for run in runs:
            (out / run.slug).mkdir(parents=True, exist_ok=True)
            if run.answered:
                _write_tables(run, out / run.slug)
        blocks = report(runs, out, show_prompts)
        page, text = (out / name for name in PAGES)
        text.write_text(markdown.render(blocks, out), encoding="utf-8")
        page.write_text(html.render(blocks), encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write the report to {out} ({error.strerror}); choose another --out or make room there") from None
    for run in runs:
        _print_summary(run, console)
    return page


def _write_tables(run: Run, folder: Path) -> None:
    frames = {
        "comparison": run.comparison,
        "time_split": run.split,
        "acceptance": run.acceptance,
        "along_the_answer": run.along,
        "turns": run.turns.drop(columns=LIST_COLUMNS),
    }
    engines = {name: facts.engine for name, facts in run.manifest.arms.items()}
    for name, frame in frames.items():
        if "engine" not in frame:
            frame = frame.assign(engine=frame["arm"].map(engines))
        frame.to_csv(folder / f"{name}.csv", index=False)
        frame.to_parquet(folder / f"{name}.parquet", index=False)
    (folder / "tables.tex").write_text(latex.render(run), encoding="utf-8")


def _print_summary(run: Run, console: Console) -> None:
    for line in [*describe.cost_matched([run.manifest]), *findings.state(run)[:1]]:
        console.print(line, markup=False)
    if not run.answered:
        return
    print_table(console, tables.headline(run.comparison, run.arms, tables.SHORT, f"{run.manifest.name}: all categories"))
    print_table(console, tables.by_category(run.comparison, run.shown, run.categories, tables.speedup, "Speedup by category"))
    for line in [*findings.noise(run), *findings.outputs(run), *findings.warnings(run)]:
        console.print(line, markup=False)


def report(runs: Sequence[Run], out: Path, show_prompts: bool) -> list[Block]:
    """Return the report in reading order. Draws the figures into the folders of the runs in ``out``."""
    opening = [Paragraph(line) for line in describe.cost_matched([run.manifest for run in runs])]
    beside = compare.blocks(runs) if len(runs) > 1 else []
    return [Heading(1, TITLE), *opening, *beside, *(block for run in runs for block in _run(run, out / run.slug, show_prompts))]


def _run(run: Run, folder: Path, show_prompts: bool) -> list[Block]:
    first, *missing = findings.state(run)
    parts: list[Block] = [Heading(2, f"Run {run.manifest.name}"), Paragraph(first, warning=bool(missing))]
    if missing or len(run.turns) < run.manifest.units_total or not (run.turns["status"] == "ok").all():
        parts += [*map(Paragraph, missing), findings.turn_counts(run)]

    s4c_verdict = verdict.judge_run(run) if run.answered else None
    if run.answered:
        parts += _results(run, s4c_verdict, folder)

    failed = findings.failures(run)
    if failed is not None:
        parts += [Heading(3, "Failed turns"), failed]

    if run.answered:
        shown = samples.blocks(run, show_prompts)
        parts += [Heading(3, "Sample outputs"), *shown] if shown else []
        parts += verdict.detail(s4c_verdict)
    parts += [Heading(3, "Machine and settings"), Terms(describe.conditions(run.manifest))]
    if run.answered:
        parts += [Heading(3, "Definitions"), Terms(tables.definitions()), Heading(3, "Caveats"), Bullets(findings.caveats(run))]
    return parts


def _results(run: Run, s4c_verdict: Verdict | None, folder: Path) -> list[Block]:
    drawn = _figures(run, folder)
    return [
        Heading(3, "Verdict"),
        *verdict.summary(run, s4c_verdict),
        *verdict.others(run),
        *(Paragraph(line, warning=True) for line in findings.outputs(run)),
        *map(Paragraph, findings.fastest(run)),
        Heading(3, "All categories"),
        *_main(run),
        *map(Paragraph, findings.noise(run)),
        *(Paragraph(line, warning=True) for line in findings.warnings(run)),
        *_present(drawn, "speedup", "step_cost"),
        *_by_category(run),
        *_by_definition(run),
        Heading(3, "Where the time goes"),
        tables.time_split(run.split, run.shown),
        *_present(drawn, "time_split"),
        *_acceptance(run, drawn),
        *_divergences(run),
        Paragraph(
            "specbench report also writes these tables as CSV, Parquet, and LaTeX, the numbers of every turn, and the figures as PNG and "
            f"SVG, to the folder {run.slug}."
        ),
    ]


def _main(run: Run) -> list[Block]:
    table, constant = tables.drop_constant_columns(tables.headline(run.comparison, run.arms, tables.FULL, ARMS), MAY_DROP)
    values = ", ".join(f"{name[:1].lower()}{name[1:]} {cell}" for name, cell in constant.items())
    return [*([Paragraph(f"The same for every arm: {values}.")] if values else []), table]


def _figures(run: Run, folder: Path) -> dict[str, Figure]:
    subtitle, categories = findings.subtitle(run), chosen_categories(run.categories, run.manifest.suite.categories)
    fonts, missing = families([*run.shown.values(), *run.categories.values(), subtitle])
    arms, names = labels(run.shown, "arm", missing), labels(run.categories, "category", missing)
    context = FigureContext(
        {name: wrapped(label, LABEL_WIDTH) for name, label in arms.items()},
        {name: names[name] for name in categories},
        plain(subtitle, missing),
        verdict.claim_shown(run),
        tuple(fonts),
    )
    paths = figures.draw(run.comparison, run.split, run.acceptance, run.along, context, folder)

    arm_notes, notes = numbered(arms, run.shown, missing), numbered(context.categories, run.categories, missing)
    if len(categories) < len(run.categories):
        notes.insert(0, f"drawn are the {len(categories) - 1} categories with the most questions, the table has all")
    return {
        name: Figure(path, _with_notes(CAPTIONS[name][0], arm_notes + notes if name == "speedup" else arm_notes), CAPTIONS[name][1])
        for name, path in paths.items()
    }


def _with_notes(caption: str, notes: Sequence[str]) -> str:
    return f"{caption} Note: {'; '.join(notes)}." if notes else caption


def _present(drawn: Mapping[str, Figure], *names: str) -> list[Block]:
    return [drawn[name] for name in names if name in drawn]


def _by_category(run: Run) -> list[Block]:
    return [
        Heading(3, "By category"),
        tables.by_category(
            run.comparison, run.shown, run.categories, tables.speedup_with_interval, "Speedup by category, with 95 % intervals"
        ),
        tables.by_category(run.comparison, run.shown, run.categories, tables.mat, "MAT by category"),
    ]


def _by_definition(run: Run) -> list[Block]:
    if not run.has_vanilla or not run.drafting:
        return []
    overall = [row for name, row in run.overall.items() if name in run.drafting]
    return [
        Heading(3, "Speedup by definition"),
        Paragraph("The same records under each definition of speedup; see Definitions. A dash means not recorded in this run."),
        tables.by_definition(overall, run.arms, [metric.__name__ for metric in SPEEDUPS]),
    ]


def _acceptance(run: Run, drawn: Mapping[str, Figure]) -> list[Block]:
    table = [tables.acceptance(run.acceptance, run.shown)] if len(run.acceptance) else [Paragraph("No method drafted anything.")]
    return [Heading(3, "Acceptance by depth and along the answer"), *table, *_present(drawn, "acceptance", "along")]


def _divergences(run: Run) -> list[Block]:
    if not run.has_vanilla or set(run.arms) == {BASELINE}:
        return []
    overall = [row for name, row in run.overall.items() if name != BASELINE]
    heading = Heading(3, "Divergences from vanilla")
    if not any(row["comparable_turns"] for row in overall):
        return [heading, Paragraph("Outputs cannot be compared, because no turn of another arm is known to have vanilla's prompt.")]
    judged = run.losslessness is not None and not any(row["compared_by_text"] for row in overall)
    counts = [] if judged else [tables.agreement(overall, run.arms)]  # the losslessness report has them too
    return [heading, *counts, *lossless.blocks(run.losslessness, run.manifest, run.arms)]
