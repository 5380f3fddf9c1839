"""``specbench profile``: the parts of a step's time."""

from pathlib import Path
from typing import Annotated

import typer

from specbench.cli.common import RESULTS, configured, console
from specbench.config.options import DEFAULT_METHODS, RunConfig


@configured(
    "methods",
    "target",
    "suite",
    "suite_file",
    "max_new_tokens",
    "dtype",
    "device",
    "backend",
    defaults={"max_new_tokens": 32},
    helps={
        "methods": f"Method to profile; repeatable. vanilla always runs. Default: {', '.join(DEFAULT_METHODS)}.",
        "suite": "Questions: mini, spec-bench, or hf:ID; the first of each category is asked. Default: mini.",
    },
)
def profile(
    config: RunConfig,
    out: Annotated[Path | None, typer.Option(help="Output folder. Default: results/profile-<target>-<device>-<backend>.")] = None,
) -> None:
    """Split the time of a step into draft, verify, commit, launch gaps, and host, by the torch profiler.

    Writes tables and one Chrome trace for each arm.
    Exit codes: 0 profiled, 2 misuse.
    """
    from specbench.studies.base import Conditions, show
    from specbench.studies.profiling import report
    from specbench.studies.profiling.run import prepared, run
    from specbench.util.files import check_writable

    check_writable(out or RESULTS, folder=True)
    session = prepared(config)
    folder = out or RESULTS / Conditions.of_run(session.manifest).folder_name("profile")
    profiled = run(session, folder, console)
    report.write(profiled, folder)
    shares = report.split_table(profiled.arms).drop_if_empty("Launch gaps").drop_if_empty("Waits")
    show(console, [profiled.sentence, profiled.conditions.note], [shares], f"profile: {folder / 'profile.md'}")
