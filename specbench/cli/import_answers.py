"""The command ``import``: a run directory made of answers that another tool measured."""

from pathlib import Path
from typing import Annotated

import typer

from methods.core.errors import unknown
from specbench.cli.common import console

FORMATS = ("spec-bench",)


def import_answers(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Answer file of the method.")],
    baseline: Annotated[Path, typer.Option(metavar="FILE", help="Answer file of plain decoding on the same questions.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Run directory to write.")],
    layout: Annotated[str, typer.Option("--format", help=f"Format of the files: {', '.join(FORMATS)}.")] = FORMATS[0],
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Tokenizer of the target, to count the baseline's tokens as Spec-Bench does. Default: none; those counts stay unknown.",
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the method's arm. Default: the file's name without its suffix.")] = None,
) -> None:
    """Turn answer files of another tool into a run directory, for `specbench report`.

    Exit codes: 0 imported, 2 misuse.
    """
    from specbench.importers.run import import_spec_bench

    if layout not in FORMATS:
        raise unknown("format", layout, FORMATS)
    imported = import_spec_bench(file, baseline, name=name, tokenizer=tokenizer, out=out)
    for line in (*imported.notices, f"imported {imported.turns} turns; next: specbench report {imported.run_dir}"):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
