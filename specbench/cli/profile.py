"""The command that shows where a round's time goes."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def profile(
    method: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME[:KEY=VALUE,...]", help="Repeatable; default: those of `specbench run`; vanilla always."),
    ] = None,
    target: Annotated[str | None, typer.Option(help="Target by name or folder; default: tiny-160m on a CPU, tiny-7b on CUDA.")] = None,
    suite: Annotated[str | None, typer.Option(help="mini (default), spec-bench or hf:ID; one question of each category is asked.")] = None,
    suite_file: Annotated[Path | None, typer.Option(help="JSONL of Spec-Bench's schema.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.", min=2)] = 32,
    dtype: Annotated[str | None, typer.Option(help="fp32, bf16, fp16 or fp64; default: what the device is fastest in.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; default: cuda where there is one.")] = None,
    backend: Annotated[str | None, typer.Option(help="static (default) or eager.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where it goes; default: results/profile-<target>-<device>-<backend>.")] = None,
) -> None:
    """Split a round's wall-clock into draft, verify, commit, launch gaps and host, by the torch profiler; Chrome traces beside it.

    Exit codes: 0 profiled, 2 misuse.
    """
    from specbench.cli.common import DEFAULT_METHODS, RESULTS
    from specbench.config.options import Options
    from specbench.engines.registry import only_own
    from specbench.measure.session import prepare
    from specbench.store.rundir import check_writable
    from specbench.studies.profiling import report
    from specbench.studies.profiling.run import run

    console = Console()
    only_own(method or (), "profile")
    check_writable(out or RESULTS)
    session = prepare(
        Options(
            method or DEFAULT_METHODS,
            target,
            suite=suite,
            suite_file=suite_file,
            limit=1,
            max_new_tokens=max_new_tokens,
            dtype=dtype,
            device=device,
            backend=backend,
        )
    )
    settings = session.manifest.settings
    folder = out or RESULTS / f"profile-{Path(settings.target).name}-{settings.device.partition(':')[0]}-{settings.backend}"
    found = run(session, folder, console)
    report.write(found, session.manifest, folder)
    note = session.manifest.target["note"]
    console.print(report.conditions(session.manifest), *filter(None, [note]), sep="\n", markup=False)
    console.print(report.split_table(found).telling("Launch gaps").telling("Waits").rich())
    console.print(f"profile: {folder / 'profile.md'}", markup=False, soft_wrap=True)
