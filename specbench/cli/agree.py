"""``specbench agree``: compare every arm's tokens with vanilla's."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

WHAT = "first differences put to the target"


def agree(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="Directory of a greedy run.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON and nothing else.")] = False,
) -> None:
    """Compare every arm's tokens with vanilla's and ask the target, in fp32, about each first difference.

    Other engines are compared too, but decide nothing.
    Exit code 0: no violation; 1: a token differs where the target was not torn between the two; 2: cannot be compared.
    """
    from specbench.engines.registry import is_peer
    from specbench.lossless import text
    from specbench.lossless.divergence import explain
    from specbench.util.progress import counted

    with counted(Console(stderr=True), WHAT) as told:
        explained = explain(run_dir, told)
    if as_json:
        print(json.dumps(text.as_fields(explained), indent=1, ensure_ascii=False, allow_nan=False))
    else:
        console = Console()
        console.print(text.table(explained).rich())
        for line in (explained.rule, *text.violations(explained)):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    if any(not is_peer(each.method) for each in explained.violations):
        raise SystemExit(1)
