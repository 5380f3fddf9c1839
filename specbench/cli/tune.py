"""``specbench tune``: tree sizes for this device."""

from pathlib import Path
from typing import Annotated

import typer

from specbench.cli.common import RESULTS, configured, console
from specbench.config.options import RunConfig
from specbench.studies.tune import MAX_NEW_TOKENS, PROMPTS


@configured(
    "methods",
    "target",
    "suite_file",
    "max_new_tokens",
    "dtype",
    "device",
    "backend",
    "drafters",
    defaults={"max_new_tokens": MAX_NEW_TOKENS},
    helps={
        "methods": "Method to tune; repeatable. Default: all with tree options that the target has weights for.",
        "suite_file": "Tuning prompts in a JSONL file of Spec-Bench's schema, as `specbench held-out` writes.",
        "max_new_tokens": "Longest recorded answer, in tokens.",
        "drafters": "Drafter weights for a kind of drafter; repeatable.",
    },
)
def tune(
    config: RunConfig,
    data: Annotated[
        str | None,
        typer.Option(metavar="FILE|hf:ID", help="Training corpus whose held-out prompts are used instead of --suite-file."),
    ] = None,
    prompts: Annotated[int, typer.Option(help="Largest number of prompts, taken equally from the categories.")] = PROMPTS,
    out: Annotated[Path | None, typer.Option(help="File to write. Default: results/tune-<target>-<device>-<backend>.toml.")] = None,
) -> None:
    """Choose tree sizes for this device from recorded acceptance and measured costs.

    `specbench run --config FILE` uses them. Tuning refuses prompts of a suite on which results are reported.
    Exit codes: 0 tuned, 2 misuse.
    """
    from specbench.studies.base import show
    from specbench.studies.tune import report
    from specbench.studies.tune.run import run
    from specbench.util.files import check_writable

    inputs = (config.suite_file, data, config.target, *config.drafters.values())
    check_writable(out or RESULTS / "tune.toml", inputs=inputs)
    tuning = run(config, data, prompts, console)
    path = out or RESULTS / f"{tuning.conditions.folder_name('tune')}.toml"
    report.write(tuning, path)
    tables = (report.settings_table(tuning.methods), report.check_table(tuning))
    show(console, [tuning.conditions.note], tables, report.HOW)
    console.print(f"config: {path}\nuse it with: specbench run --config {path}", markup=False, soft_wrap=True)
