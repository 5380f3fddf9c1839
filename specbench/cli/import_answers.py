"""``specbench import``: results that another tool measured, as a run directory."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from methods.core.errors import unknown

FORMATS = ("spec-bench",)


def import_answers(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Answer file of the method.")],
    baseline: Annotated[Path, typer.Option(metavar="FILE", help="Answer file of plain decoding.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="The run directory to write.")],
    layout: Annotated[str, typer.Option("--format", help=f"What wrote the files: {', '.join(FORMATS)}.")] = FORMATS[0],
    tokenizer: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="The target's tokenizer; Spec-Bench counts its baseline's tokens with it.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="The method's name here; default: the file's, without its ending.")] = None,
) -> None:
    """Turn another tool's answer files into a run directory, for `specbench report`."""
    from specbench.importers.run import import_spec_bench

    if layout not in FORMATS:
        raise unknown("format", layout, FORMATS)
    done = import_spec_bench(file, baseline, name=name, tokenizer=tokenizer, out=out)
    console = Console()
    for line in (*done.notices, f"imported {done.turns} turns; next: specbench report {done.run_dir}"):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
