"""The command that holds a target and its drafters against what this device allows."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from methods.core.errors import UserError
from specbench.studies.roofline import NODES, PAST

SIZES = ",".join(map(str, NODES))


def roofline(
    target: Annotated[str | None, typer.Option(help="Target by name or folder; default: tiny-160m on a CPU, tiny-7b on CUDA.")] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME[:KEY=VALUE,...]", help="Repeatable; default: all the target has weights for; vanilla always."),
    ] = None,
    past: Annotated[int, typer.Option(metavar="TOKENS", help="Committed tokens before the trees.")] = PAST,
    nodes: Annotated[str, typer.Option(metavar="N,N,...", help="Tree sizes, the root included; 1 is always measured.")] = SIZES,
    dtype: Annotated[str | None, typer.Option(help="fp32, bf16, fp16 or fp64; default: what the device is fastest in.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; default: cuda where there is one.")] = None,
    backend: Annotated[str | None, typer.Option(help="static (default) or eager.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where it goes; default: results/roofline-<target>-<device>-<backend>.")] = None,
) -> None:
    """How far from this device's limit verifying and drafting are: bytes and FLOPs, predicted and measured, V(n) and its knee.

    Exit codes: 0 measured, 2 misuse.
    """
    from specbench.cli.common import RESULTS
    from specbench.store.rundir import check_writable
    from specbench.studies.roofline import report
    from specbench.studies.roofline.run import Options, run

    console = Console()
    options = Options(target, dtype, device, backend, method or (), past, _sizes(nodes))
    check_writable(out or RESULTS)
    found = run(options, console)
    facts = found.facts
    folder = out or RESULTS / f"roofline-{Path(facts['target']).name}-{facts['device']}-{facts['backend']}"
    report.write(found, folder)
    console.print(report.conditions(found), *filter(None, [facts["note"]]), *report.summary(found), sep="\n", markup=False)
    for table in report.tables(found):
        console.print(table.rich())
    console.print(f"roofline: {folder / 'roofline.md'}", markup=False, soft_wrap=True)


def _sizes(text: str) -> list[int]:
    try:
        return [int(size) for size in text.split(",")]
    except ValueError:
        raise UserError(f"--nodes {text!r} is not a list of whole numbers; as in --nodes 1,8,64") from None
