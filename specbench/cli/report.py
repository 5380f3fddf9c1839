"""The command ``specbench report``."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from methods.core.errors import UserError
from specbench.cli.common import console


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run directories.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the report. Default for one run: report/ in its directory.")] = None,
    show_prompts: Annotated[
        bool, typer.Option("--show-prompts", help="Also show prompts of third-party suites, which must not be published.")
    ] = False,
) -> None:
    """Write tables and figures of finished or unfinished runs as HTML, Markdown, LaTeX, CSV, and Parquet.

    Exit codes: 0 written, 2 misuse.
    """
    for run_dir in runs:
        if not run_dir.is_dir():
            raise UserError(f"run directory {run_dir} does not exist; give one that `specbench run` printed")
    if out is None and len(runs) > 1:
        raise UserError(f"a report on {len(runs)} runs belongs to none of them; say where it goes: --out DIR")
    write_report(runs, out or runs[0] / "report", show_prompts)


def write_report(runs: Sequence[Path], out: Path, show_prompts: bool) -> None:
    """Write the report of runs and print its path. Raises UserError if it cannot be written."""
    from specbench.report.compose import build

    try:
        written = build(runs, out, console, show_prompts=show_prompts)
    except OSError as error:
        raise UserError(
            f"cannot write the report to {out} ({error.strerror}); choose another place: specbench report RUN --out DIR"
        ) from None
    console.print(f"report: {written}", markup=False, soft_wrap=True)
