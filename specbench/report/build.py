"""The files of a report: one HTML file, one Markdown file, and a folder per run with tables and figures."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from methods.core.errors import UserError
from specbench.analysis.frames import LIST_COLUMNS
from specbench.report import compose, findings, html, latex, markdown, tables
from specbench.report.run import Run, load_runs
from specbench.store import describe

__all__ = ["build"]


def build(run_dirs: Sequence[Path], out: Path, console: Console, show_prompts: bool = False) -> Path:
    """Write ``report.html``, ``report.md``, and a folder per run to ``out``, and print the main tables.

    Returns the path of the HTML file. Prompts of third-party suites are shown only with ``show_prompts``.
    Raises UserError for a directory that is not a run, an ``out`` that cannot be written, and prompts that cannot
    be loaded.
    """
    runs = load_runs(run_dirs)
    try:
        for run in runs:
            (out / run.slug).mkdir(parents=True, exist_ok=True)
            if run.answered:
                _write_tables(run, out / run.slug)
        blocks = compose.report(runs, out, show_prompts)
        (out / "report.md").write_text(markdown.render(blocks, out), encoding="utf-8")
        path = out / "report.html"
        path.write_text(html.render(blocks), encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write the report to {out} ({error.strerror}); choose another --out or make room there") from None
    for run in runs:
        _print_summary(run, console)
    return path


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
    # A terminal narrower than a table wraps its lines: rich would cut off digits instead.
    console.print(tables.headline(run.comparison, run.arms, tables.SHORT, f"{run.manifest.name}: all categories").rich(), crop=False)
    console.print(tables.by_category(run.comparison, run.shown, run.categories, tables.speedup, "Speedup by category").rich(), crop=False)
    for line in [*findings.noise(run), *findings.outputs(run), *findings.warnings(run)]:
        console.print(line, markup=False)
