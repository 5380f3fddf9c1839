"""The commands ``specbench check`` and ``specbench baseline set``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from specbench.cli.common import AsJson, console
from specbench.util.terminal import print_json

if TYPE_CHECKING:
    from specbench.lossless.differences import LosslessReport

baseline = typer.Typer(help="Write baseline files for the regression gate.", no_args_is_help=True)

Runs = Annotated[
    list[Path], typer.Argument(metavar="RUN", help="Finished run directories with the same settings; several are pooled as repeats.")
]


def check(
    runs: Runs,
    base: Annotated[
        list[Path], typer.Option("--baseline", metavar="BASE", help="A baseline file, or a run directory; repeatable to pool runs.")
    ],
    junit: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write JUnit XML with one test case per check; inconclusive ones are skipped.")
    ] = None,
    markdown: Annotated[Path | None, typer.Option(metavar="FILE", help="Write Markdown, for example for a CI step summary.")] = None,
    as_json: AsJson = False,
) -> None:
    """Compare a run with a baseline: is it slower, does it draft worse, do its outputs differ?

    Exit codes: 0 every check passes, 1 one fails, 2 misuse or the two cannot be compared, 3 none fails but one is
    inconclusive, which is no pass. If the two cannot be compared, the error names what differs.
    """
    from specbench.gate import outputs, snapshot
    from specbench.gate.baseline import load_baseline
    from specbench.gate.rules import GateResult, run_checks
    from specbench.util.files import check_writable, write_text

    used = [source for source in base if not source.is_dir()]
    for option, file in (("--junit", junit), ("--markdown", markdown)):
        if file:
            check_writable(file, option=option, inputs=used)
            used.append(file)
    base_numbers = load_baseline(base)
    pooled = snapshot.read_runs(runs)
    numbers = snapshot.take_snapshot(pooled)
    warnings = snapshot.check_compatible(numbers, base_numbers)
    result = GateResult(numbers.source, base_numbers.source, run_checks(pooled, numbers, base_numbers, explain), warnings)

    if junit:
        write_text(junit, outputs.junit(result))
    if markdown:
        write_text(markdown, outputs.markdown(result))
    if as_json:
        print_json(outputs.to_json(result))
    else:
        outputs.show(result, console)
    raise SystemExit(result.exit_code)


@baseline.command("set")
def set_baseline(
    runs: Runs,
    out: Annotated[
        Path | None, typer.Option(help="File to write. Default: baselines/<target, suite, machine, versions, settings>.json.")
    ] = None,
) -> None:
    """Write a baseline file to review and commit.

    Exit codes: 0 written, 2 misuse, which includes an unfinished run and one with failed turns or losslessness violations.
    """
    from specbench.gate import snapshot
    from specbench.gate.baseline import baseline_of, changes, default_path, read_baseline, write_baseline
    from specbench.util.files import check_writable
    from specbench.util.text import one_line

    if out:
        check_writable(out)
    new = baseline_of(snapshot.read_runs(runs), explain)
    path = out or default_path(new)
    lines = changes(read_baseline(path), new) if path.exists() else None
    write_baseline(new, path)
    console.print(f"{'new' if lines is None else 'replaced'}: {path}", markup=False, soft_wrap=True)
    for line in ["nothing changed but numbers of single questions"] if lines == [] else lines or []:
        console.print(f"  {one_line(line)}", markup=False, soft_wrap=True)


def explain(run_dir: Path) -> "LosslessReport":
    """Compare a run's outputs with vanilla's, with the target's logits. Loads the target."""
    from specbench.lossless import divergence

    return divergence.explain(run_dir)
