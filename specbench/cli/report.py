"""``specbench report``: tables and figures of runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from methods.core.errors import UserError
from specbench.cli.common import console


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run directories.")],
    out: Annotated[Path | None, typer.Option(help="Where the report goes; default for one run: report/ in its directory.")] = None,
    show_prompts: Annotated[
        bool, typer.Option("--show-prompts", help="Show third-party prompts too, which a published report may not.")
    ] = False,
) -> None:
    """Tables and figures of finished or unfinished runs: HTML, Markdown, LaTeX, CSV and Parquet.

    Exit codes: 0 written, 2 misuse.
    """
    for run_dir in runs:
        if not run_dir.is_dir():
            raise UserError(f"run directory {run_dir} does not exist; give one that `specbench run` printed")
    if out is None and len(runs) > 1:
        raise UserError(f"a report on {len(runs)} runs belongs to none of them; say where it goes: --out DIR")
    write_report(runs, out or runs[0] / "report", show_prompts)


def write_report(runs: Sequence[Path], out: Path, show_prompts: bool) -> None:
    from specbench.report import build as reports

    try:
        written = reports.build(runs, out, console, show_prompts=show_prompts)
    except OSError as error:
        raise UserError(
            f"cannot write the report to {out} ({error.strerror}); choose another place: specbench report RUN --out DIR"
        ) from None
    console.print(f"report: {written}", markup=False, soft_wrap=True)
