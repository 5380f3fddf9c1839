"""The command that chooses tree options for this device."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from specbench.cli.common import pairs


def tune(
    method: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Repeatable; default: all with tree options that the target has weights for.")
    ] = None,
    target: Annotated[str | None, typer.Option(help="Target by name or folder; default: tiny-160m on a CPU, tiny-7b on CUDA.")] = None,
    suite_file: Annotated[
        Path | None, typer.Option(help="Tuning prompts, JSONL of Spec-Bench's schema; `specbench held-out` makes one.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(metavar="FILE|hf:ID", help="Or chat records to train on, whose held-out prompts are taken.")
    ] = None,
    prompts: Annotated[int, typer.Option(help="Prompts at most, as many of each category.")] = 20,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer recorded, in tokens.")] = 64,
    dtype: Annotated[str | None, typer.Option(help="fp32, bf16, fp16 or fp64; default: what the device is fastest in.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; default: cuda where there is one.")] = None,
    backend: Annotated[str | None, typer.Option(help="static (default) or eager.")] = None,
    out: Annotated[Path | None, typer.Option(help="The file to write; default: results/tune-<target>-<device>-<backend>.toml.")] = None,
    drafter: Annotated[
        list[str] | None, typer.Option(metavar="KIND=FILE|FOLDER|HUB_ID", help="Whose drafter a method uses, as in specbench run.")
    ] = None,
) -> None:
    """Choose tree sizes for this device by recorded acceptance and measured costs; `specbench run --config FILE` uses them.

    Never on the questions of a suite that results are reported on. Exit codes: 0 tuned, 2 misuse.
    """
    from specbench.cli.common import RESULTS
    from specbench.config import tuned
    from specbench.store.rundir import check_writable
    from specbench.studies.tune import report
    from specbench.studies.tune.run import Options, run
    from specbench.util.files import writable

    console = Console()
    files = {kind: Path(file) for kind, file in pairs("--drafter", drafter).items()}
    options = Options(method or (), target, dtype, device, backend, suite_file, data, prompts, max_new_tokens, files)
    check_writable(out.parent if out else RESULTS)
    tuning = run(options, console)
    facts = tuning.facts
    path = writable(out or RESULTS / f"tune-{Path(str(facts['target'])).name}-{facts['device']}-{facts['backend']}.toml")
    chosen = {each.method: each.best.setting.options for each in tuning.choices}
    tuned.write(path, chosen, facts, {each.method: report.comments(each, tuning) for each in tuning.choices})
    if tuning.note:
        console.print(tuning.note, markup=False)
    for table in (report.settings_table(tuning.choices), report.check_table(tuning)):
        console.print(table.rich())
    console.print(report.HOW, markup=False)
    console.print(f"config: {path}\nuse it with: specbench run --config {path}", markup=False, soft_wrap=True)
