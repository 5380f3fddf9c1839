"""``specbench check`` and ``specbench baseline set``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from methods.core.errors import UserError

if TYPE_CHECKING:
    from specbench.lossless.divergence import Explained

console = Console()
baseline = typer.Typer(help="Baseline files of the regression gate.", no_args_is_help=True)

Runs = Annotated[list[Path], typer.Argument(metavar="RUN", help="Finished run directories of one kind, pooled as repeats.")]


def check(
    runs: Runs,
    base: Annotated[
        list[Path], typer.Option("--baseline", metavar="BASE", help="A baseline file, or a run directory; repeat to pool several runs.")
    ],
    junit: Annotated[
        Path | None, typer.Option(metavar="FILE", help="JUnit XML, one test case a check; inconclusive ones are skipped.")
    ] = None,
    markdown: Annotated[Path | None, typer.Option(metavar="FILE", help="Markdown, as for a CI step summary.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Only JSON on stdout.")] = False,
) -> None:
    """Compare a run with a baseline: did it get slower, guess worse or say something else?

    Exit code 0: every check passes. 1: one fails. 3: none fails but one is inconclusive, which is no pass. 2: wrong
    usage, or the two cannot be compared; what differs is named.
    """
    from specbench.gate import baseline as baselines
    from specbench.gate import compatible, outputs, snapshot
    from specbench.gate.rules import Result, judge

    for file in (junit, markdown):
        if file:
            _check_writable(file)
    before = baselines.load(base)
    side = snapshot.read(runs)
    now = snapshot.snapshot(side)
    warnings = compatible.check(now, before)
    result = Result(now.source, before.source, judge(side, now, before, explain), warnings)
    if junit:
        _write(junit, outputs.junit(result))
    if markdown:
        _write(markdown, outputs.markdown(result))
    if as_json:
        print(outputs.to_json(result))
    else:
        outputs.show(result, console)
    raise SystemExit(result.exit_code)


@baseline.command("set")
def set_baseline(
    runs: Runs,
    out: Annotated[
        Path | None, typer.Option(help="The file; default: baselines/<target, suite, machine, versions, settings>.json.")
    ] = None,
) -> None:
    """Write a baseline file to review and commit; nothing else changes one.

    Exit codes: 0 written, 2 misuse, which an unfinished run is and one with failed turns or losslessness violations.
    """
    from specbench.gate import baseline as baselines
    from specbench.gate import snapshot
    from specbench.gate.outputs import one_line

    new = baselines.admit(snapshot.read(runs), explain)
    path = out or baselines.default_path(new)
    lines = baselines.changes(baselines.read(path), new) if path.exists() else None
    baselines.write(new, path)
    console.print(f"{'new' if lines is None else 'replaced'}: {path}", markup=False, soft_wrap=True)
    for line in ["nothing changed but numbers of single questions"] if lines == [] else lines or []:
        console.print(f"  {one_line(line)}", markup=False, soft_wrap=True)


def explain(run_dir: Path) -> "Explained":
    """Loads the target, which only runs with a diverging text need."""
    from specbench.lossless import divergence

    return divergence.explain(run_dir)


def _check_writable(path: Path) -> None:
    """Asked before judging, which may take minutes; leaves no file behind."""
    new = not path.exists()
    try:
        path.open("a").close()
    except OSError as error:
        raise _unwritable(path, error) from None
    if new:
        path.unlink()


def _unwritable(path: Path, error: OSError) -> UserError:
    return UserError(f"cannot write {path} ({error.strerror}); choose another place")


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise _unwritable(path, error) from None
