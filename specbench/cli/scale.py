"""``specbench scale``: the same methods on the cost-matched targets."""

from pathlib import Path
from typing import Annotated

import typer

from specbench.cli.common import configured, console
from specbench.config.options import DEFAULT_METHODS, RunConfig
from specbench.util.exits import INTERRUPTED


@configured(
    "methods",
    "suite",
    "limit",
    "max_new_tokens",
    "dtype",
    "device",
    "backend",
    defaults={"limit": 2, "max_new_tokens": 64},
    helps={
        "methods": f"Method to measure; repeatable. vanilla always runs. Default: {', '.join(DEFAULT_METHODS)}.",
        "limit": "Questions of each category.",
    },
)
def scale(
    config: RunConfig,
    out: Annotated[Path, typer.Option(help="Output folder: one run directory a target, the tables, and the figure.")],
    target: Annotated[
        list[str] | None, typer.Option(help="Cost-matched target; repeatable. Default: those of tiny-160m to tiny-33b that fit in memory.")
    ] = None,
) -> None:
    """Measure step cost R, V(n), and speedup over the target's size, beside the cost model.

    Running the same command again measures only what is missing.
    Exit codes: 0 measured, 2 misuse, 130 interrupted (every finished turn is kept).
    """
    from specbench.studies.base import show
    from specbench.studies.scale import report
    from specbench.studies.scale.sweep import Request, run
    from specbench.targets.widen import SHAPES
    from specbench.util.files import check_writable

    check_writable(out, folder=True)
    request = Request.of(config, target or list(SHAPES))
    try:
        sweep = run(request, out, console)
    except KeyboardInterrupt:
        console.print("interrupted; resume with the same command", markup=False)
        raise SystemExit(INTERRUPTED) from None
    tables = report.write(sweep, out)
    show(console, [report.WARNING], tables, f"scale: {out / 'scale.md'}")
