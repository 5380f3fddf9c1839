"""The commands ``run`` and ``resume``: measure the turns of a run, then write its report."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from methods.core.errors import UserError
from specbench.cli.common import RESULTS, configured, console
from specbench.cli.report import write_report
from specbench.config.options import RunConfig
from specbench.util.exits import INTERRUPTED, TURNS_FAILED
from specbench.util.terminal import tell

if TYPE_CHECKING:
    from specbench.measure.runner import Executor

Workers = Annotated[
    int | None, typer.Option(metavar="N", help="Share the questions among N GPUs, or among N processes on a CPU. Default: one process.")
]
RayAddress = Annotated[
    str | None,
    typer.Option(metavar="ADDRESS", help="Run the workers on this Ray cluster; `local` starts one here (needs the `ray` extra)."),
]


@configured()
def run(
    config: RunConfig,
    workers: Workers = None,
    ray_address: RayAddress = None,
    out: Annotated[Path | None, typer.Option(help="Run directory. Default: results/<suite>-<target>-<hash of the settings>.")] = None,
) -> None:
    """Measure every method on every question, then write a report. Running the same command again resumes the run.

    Exit codes: 0 measured, 2 misuse, 4 measured but turns failed, 130 interrupted (every finished turn is kept).
    """
    measure(config, out, workers, ray_address)


def resume(
    run_dir: Annotated[Path, typer.Argument(metavar="DIR", help="Run directory that `specbench run` wrote.")],
    workers: Workers = None,
    ray_address: RayAddress = None,
    retry_errors: Annotated[bool, typer.Option("--retry-errors", help="Measure the turns that failed again.")] = False,
) -> None:
    """Finish an interrupted run with the settings in its manifest, then write its report.

    Exit codes: 0 measured, 2 misuse, 4 measured but turns failed, 130 interrupted (every finished turn is kept).
    """
    from specbench.store.manifest import RunManifest

    manifest = RunManifest.read(run_dir)
    if manifest.imported:
        raise UserError(f"{manifest.name} was imported, not measured here: it cannot be resumed, only reported")
    measure(manifest.settings, run_dir, workers, ray_address, retry_errors)


def measure(config: RunConfig, out: Path | None, workers: int | None, ray_address: str | None, retry_errors: bool = False) -> None:
    """Measure a run in this process or by workers, then write its report. ``out`` None: a directory under results/.

    Exits with ``TURNS_FAILED`` and a line that names the arms if any turn failed, now or at an earlier start.
    """
    from specbench.measure import runner
    from specbench.measure.progress import describe_failures
    from specbench.measure.runner import LocalExecutor
    from specbench.measure.session import prepare
    from specbench.measure.workers.driver import started
    from specbench.util.files import check_writable

    check_writable(out or RESULTS, folder=True)
    executor_context: AbstractContextManager[Executor]
    if workers is None and ray_address is None:
        executor_context = nullcontext(LocalExecutor(prepare(config)))
    else:
        executor_context = started(config, workers, ray_address, console)

    with executor_context as executor:
        manifest = executor.manifest
        run_dir = out or RESULTS / f"{manifest.name}-{manifest.fingerprint()}"
        if manifest.target.note:
            console.print(manifest.target.note, markup=False, soft_wrap=True)
        try:
            tallies = runner.run(executor, run_dir, console, retry_errors=retry_errors)
        except KeyboardInterrupt:
            tell(f"interrupted; resume with: specbench resume {run_dir}")
            raise SystemExit(INTERRUPTED) from None

    write_report([run_dir], run_dir / "report", show_prompts=False)
    failures = describe_failures(tallies)
    if failures:
        tell(f"{failures}; measure them again with: specbench resume {run_dir} --retry-errors")
        raise SystemExit(TURNS_FAILED)
