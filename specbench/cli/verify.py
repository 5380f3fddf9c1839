"""The command ``specbench verify``."""

from pathlib import Path
from typing import Annotated

import typer

from specbench.cli.common import AsJson, console
from specbench.util.terminal import print_json


def verify(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory with the two arms that the claim compares.")],
    claim: Annotated[str, typer.Option(metavar="NAME", help="The claim, such as s4c or medusa-vicuna-7b; specbench claims lists them.")],
    method: Annotated[str | None, typer.Option(metavar="ARM", help="Arm of the run to judge. Default: the claim's.")] = None,
    over: Annotated[str | None, typer.Option(metavar="ARM", help="Arm to compare it with. Default: the claim's, mostly vanilla.")] = None,
    as_json: AsJson = False,
) -> None:
    """Compare a run with a published claim and print the verdict, the conditions that differ, and the parts of the speedup.

    Exit codes: 0 reproduced or above, 1 below, 2 misuse, 3 inconclusive or not comparable.
    If conditions differ, the verdict holds for this run only and does not confirm or refute the published number.
    """
    from specbench.analysis.frames import turns_frame
    from specbench.claims import text
    from specbench.claims.claim import claim_named
    from specbench.claims.verdict import judge
    from specbench.store.rundir import read_run

    chosen, run = claim_named(claim), read_run(run_dir)
    verdict = judge(chosen, run.manifest, turns_frame(run.records, run.manifest.arms), method, over, run.undigested)
    if as_json:
        print_json(text.to_json(verdict))
    else:
        text.show(verdict, console)
    raise SystemExit(verdict.exit_code)
