"""``specbench bench``: the speed of specbench's own loop and harness."""

from pathlib import Path
from typing import Annotated

import typer

from specbench.cli.common import RESULTS, configured, console
from specbench.config.options import RunConfig

REPORT = Path("reports/bench")


@configured("target", "dtype", "device")
def bench(config: RunConfig, out: Annotated[Path, typer.Option(help="Output folder.")] = REPORT) -> None:
    """Compare the decode loop with transformers' generate, and steps with the reference code and the device's limits.

    A missed bound is a row of a table, not a failure.
    Exit codes: 0 measured, 2 misuse.
    """
    from specbench.studies.base import show
    from specbench.studies.bench import report
    from specbench.studies.bench.run import run
    from specbench.util.files import check_writable

    for folder in (RESULTS, out):
        check_writable(folder, folder=True)
    results = run(config, RESULTS, console)
    report.write(results, out)
    tables = [table for table, _ in report.tables(results)]
    show(console, [results.sentence, results.conditions.note], tables, f"benchmark: {out / 'bench.md'}")
