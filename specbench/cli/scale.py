"""The command that runs one method set over the cost-matched targets."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

LIMIT = 2  # questions a category
MAX_NEW_TOKENS = 64


def scale(
    out: Annotated[Path, typer.Option(help="Where it goes: a run directory a target, and the tables and the figure.")],
    method: Annotated[
        list[str] | None, typer.Option(metavar="NAME[:KEY=VALUE,...]", help="Repeatable; default: those of specbench run.")
    ] = None,
    target: Annotated[
        list[str] | None, typer.Option(help="A cost-matched target; repeatable; default: tiny-160m to tiny-33b, those that fit.")
    ] = None,
    suite: Annotated[str, typer.Option(help="mini or spec-bench.")] = "mini",
    limit: Annotated[int, typer.Option(help="Questions a category.")] = LIMIT,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = MAX_NEW_TOKENS,
    dtype: Annotated[str | None, typer.Option(help="fp32, bf16, fp16 or fp64; default: what the device is fastest in.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; default: cuda where there is one.")] = None,
    backend: Annotated[str | None, typer.Option(help="static (default) or eager.")] = None,
) -> None:
    """Round cost R, V(n) and speedup over the target's size, beside the cost model. The same command again does only what is missing.

    Exit codes: 0 measured, 2 misuse, 130 interrupted (every finished turn is kept).
    """
    from specbench.cli.common import DEFAULT_METHODS, INTERRUPTED
    from specbench.store.rundir import check_writable
    from specbench.studies.scale import report
    from specbench.studies.scale.sweep import Asked, sweep
    from specbench.targets.shapes import SHAPES

    console = Console()
    check_writable(out)
    asked = Asked.of(method or DEFAULT_METHODS, target or list(SHAPES), suite, limit, max_new_tokens, dtype, device, backend)
    try:
        found = sweep(asked, out, console)
    except KeyboardInterrupt:
        console.print("interrupted; the same command goes on from here", markup=False)
        raise SystemExit(INTERRUPTED) from None
    for table in report.write(found, out):
        console.print(table.rich())
    console.print(report.HOW[0], f"scale: {out / 'scale.md'}", sep="\n", markup=False, soft_wrap=True)
