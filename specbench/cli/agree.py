"""The command ``specbench agree``."""

from pathlib import Path
from typing import Annotated

import typer

from specbench.cli.common import AsJson, console
from specbench.util.terminal import Console, print_json, print_table

WORK = "first differences put to the target"


def agree(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="Directory of a greedy run.")],
    as_json: AsJson = False,
) -> None:
    """Compare every arm's tokens with vanilla's and ask the target, in fp32, about each first difference.

    Other engines are compared too but do not decide the exit code.

    Exit codes: 0 no violation, 1 outputs differ and rounding ties do not explain it, 2 misuse or the outputs cannot be compared.
    """
    from specbench.lossless import text
    from specbench.lossless.divergence import explain
    from specbench.measure.progress import show_progress

    with show_progress(Console(stderr=True), WORK) as on_progress:
        report = explain(run_dir, on_progress)
    if as_json:
        print_json(text.as_fields(report))
    else:
        print_table(console, text.table(report))
        for line in (report.rule, *([report.undigested] if report.undigested else []), *text.violations(report)):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    if report.own_violations:
        raise SystemExit(1)
