"""From run directories to a report: one HTML file, Markdown beside it, and a folder a run with tables and figures."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from methods.core.errors import UserError
from specbench.analysis.frames import LISTS
from specbench.report import compose, findings, html, latex, markdown, tables
from specbench.report.run import Run, read
from specbench.store import describe
from specbench.util.table import number

__all__ = ["build"]


def build(run_dirs: Sequence[Path], out: Path, console: Console, show_prompts: bool = False) -> Path:
    """Write ``report.html``, ``report.md`` and a folder a run to ``out``, print the main tables, and return the HTML's path.

    Prompts of suites other than ours are shown with ``show_prompts`` only. Raises UserError for a directory that is no run,
    for an ``out`` that cannot be written, and for prompts that cannot be had.
    """
    runs = read(run_dirs)
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
        _show(run, console)
    return path


def _write_tables(run: Run, folder: Path) -> None:
    frames = {
        "comparison": run.comparison,
        "time_split": run.split,
        "acceptance": run.acceptance,
        "along_the_answer": run.along,
        "turns": run.turns.drop(columns=LISTS),
    }
    engines = {name: facts.engine for name, facts in run.manifest.methods.items()}
    for name, frame in frames.items():
        frame = frame.assign(engine=frame["method"].map(engines))
        frame.to_csv(folder / f"{name}.csv", index=False)
        frame.to_parquet(folder / f"{name}.parquet", index=False)
    (folder / "tables.tex").write_text(latex.render(run), encoding="utf-8")


def _show(run: Run, console: Console) -> None:
    for line in [*describe.cost_matched([run.manifest]), *findings.state(run)[:1]]:
        console.print(line, markup=False)
    if not run.answered:
        return
    console.print(tables.headline(run.comparison, run.methods, tables.SHORT, f"{run.manifest.name}: all categories").rich())
    cell: tables.Cell = lambda row: number(row["speedup"])  # noqa: E731
    console.print(tables.by_category(run.comparison, run.shown, run.categories, cell, "Speedup by category").rich())
    for line in [*findings.noise(run), *findings.outputs(run), *findings.warnings(run)]:
        console.print(line, markup=False)
