"""The command that holds a run against a published claim."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def verify(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory, with vanilla among its arms.")],
    claim: Annotated[str, typer.Option(metavar="NAME", help="s4c, or a leaderboard row such as medusa-vicuna-7b.")],
    method: Annotated[str | None, typer.Option(metavar="ARM", help="Arm of the run; default: the claim's.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
) -> None:
    """Hold a run against a published speedup: the verdict, its conditions, and what the number is made of.

    Exit codes: 0 reproduced or above, 1 below, 2 misuse, 3 inconclusive or not comparable.
    Under different conditions the verdict is on this run alone, not on the published one; the text lists what differs.
    """
    from specbench import claims
    from specbench.analysis.frames import turns_frame
    from specbench.claims import text
    from specbench.claims.verdict import judge
    from specbench.store import records
    from specbench.store.manifest import RunManifest

    chosen, manifest = claims.named(claim), RunManifest.read(run_dir)
    verdict = judge(chosen, manifest, turns_frame(records.read(run_dir)[0]), method)
    if as_json:
        print(json.dumps(text.to_json(verdict), indent=1, ensure_ascii=False, allow_nan=False))
    else:
        text.show(verdict, Console())
    raise SystemExit(verdict.exit_code)
