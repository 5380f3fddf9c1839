"""``specbench roofline``: a target and its drafters beside this device's limits."""

from pathlib import Path
from typing import Annotated

import typer

from methods.core.errors import UserError
from specbench.cli.common import RESULTS, configured, console
from specbench.config.options import RunConfig
from specbench.studies.roofline import NODES, PAST


@configured(
    "methods",
    "target",
    "dtype",
    "device",
    "backend",
    helps={"methods": "Method to time; repeatable. vanilla is always timed. Default: all that the target has weights for."},
)
def roofline(
    config: RunConfig,
    past: Annotated[int, typer.Option(metavar="TOKENS", help="Committed tokens before the trees.")] = PAST,
    nodes: Annotated[
        str,
        typer.Option(metavar="N,N,...", help="Drafted nodes of the trees, the root not counted. 0, a plain step, is always measured."),
    ] = ",".join(map(str, NODES)),
    out: Annotated[Path | None, typer.Option(help="Output folder. Default: results/roofline-<target>-<device>-<backend>.")] = None,
) -> None:
    """Measure how close verifying and drafting come to the limits of this device's memory and arithmetic.

    Reports bytes, FLOPs, predicted and measured times, V(n), and its knee.
    Exit codes: 0 measured, 2 misuse.
    """
    from specbench.studies.base import show
    from specbench.studies.roofline import report
    from specbench.studies.roofline.run import run
    from specbench.util.files import check_writable

    counts = _counts(nodes)
    check_writable(out or RESULTS, folder=True)
    measured = run(config, console, past, counts)
    folder = out or RESULTS / measured.conditions.folder_name("roofline")
    report.write(measured, folder)
    lines = [report.sentence(measured), measured.conditions.note, *report.summary(measured)]
    show(console, lines, report.tables(measured), f"roofline: {folder / 'roofline.md'}")


def _counts(text: str) -> list[int]:
    try:
        return [int(count) for count in text.split(",")]
    except ValueError:
        raise UserError(f"--nodes {text!r} is not a list of whole numbers; as in --nodes 0,7,63") from None
