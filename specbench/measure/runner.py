"""The run of an executor into a run directory: claim it, measure the missing turns, and note in the manifest how it ended."""

import contextlib
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from methods.core.errors import UserError
from specbench.measure.executor import Executor
from specbench.measure.progress import RunProgress
from specbench.store import records, rundir


def run(executor: Executor, run_dir: Path, console: Console) -> None:
    """Measure the turns that the directory does not hold yet.

    After Ctrl-C, which is raised again as KeyboardInterrupt, the run can be resumed. Raises UserError for a full disk or a
    directory of another run. Every finished turn is kept.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        with rundir.claimed(run_dir):
            _measure_missing(executor, run_dir, console)
    except OSError as error:
        raise UserError(f"cannot write to {run_dir} ({error.strerror}); make room, then: specbench resume {run_dir}") from None


def _measure_missing(executor: Executor, run_dir: Path, console: Console) -> None:
    manifest, done = rundir.open_run(executor.manifest, run_dir, console)
    total = manifest.units_total

    def write_status(status: str) -> None:
        replace(manifest, status=status, prepared=[*manifest.prepared, *executor.prepared]).write(run_dir)

    if len(done) == total:
        console.print(f"{run_dir}: all {total} turns are measured", markup=False, soft_wrap=True)
    else:
        progress = RunProgress(console, list(manifest.arms), total, done)
        try:
            executor.warm_up(console)
            write_status("running")
            with contextlib.closing(records.Writer(run_dir)) as writer, progress:
                executor.measure(done, writer.write, progress)
        except BaseException:
            with contextlib.suppress(UserError):  # on a full disk the manifest keeps saying "running"
                write_status("interrupted")
            raise
    if manifest.status != "complete":
        write_status("complete")
