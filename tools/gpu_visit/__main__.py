"""The command line of a visit to a GPU."""

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from methods.core.errors import UserError, unknown
from specbench.util.environment import configure_thread_waiting
from specbench.util.exits import INTERRUPTED, exit_codes
from specbench.util.terminal import Console, tell

if TYPE_CHECKING:
    from tools.gpu_visit.visit import Visit, VisitSettings

BUDGET_S = 480.0  # with imports before the steps and a step that has to be interrupted, still under nine minutes
LIMIT = 20  # questions in each category: 120 of Spec-Bench
RESULTS = Path("results")

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def gpu(
    only: Annotated[str | None, typer.Option(metavar="STEP", help="Do this step alone, in this process.")] = None,
    budget: Annotated[float, typer.Option(metavar="SECONDS", help="Time for all steps, or for the one.")] = BUDGET_S,
    out: Annotated[
        Path | None, typer.Option(help="Output folder. Default: results/gpu-<GPU>-<hash of settings, code, and versions>.")
    ] = None,
    target: Annotated[str | None, typer.Option(help="Target: a name, a folder, or a hub id. Default: tiny-7b on CUDA.")] = None,
    dtype: Annotated[str | None, typer.Option(help="Default: the fastest the device computes natively.")] = None,
    device: Annotated[str, typer.Option(help="cuda, or cpu to try the steps without a GPU.")] = "cuda",
    limit: Annotated[int, typer.Option(help="Questions of each category in the run.")] = LIMIT,
    tuning: Annotated[Path | None, typer.Option(help="Suite file with tuning prompts, as `specbench held-out` writes.")] = None,
) -> None:
    """Do all measurements on a GPU: environment, correctness, tuning, run, report, agreement, roofline, bench, profile.

    Finished steps are not done again.
    Exit codes: 0 all done, 1 wrong results, 2 misuse, 3 something is left to do, 130 interrupted.
    """
    from specbench.util.files import check_writable
    from tools.gpu_visit.driver import drive, self_command
    from tools.gpu_visit.steps import STEPS, steps_of
    from tools.gpu_visit.visit import Visit

    if only is not None and only not in STEPS:
        raise unknown("step", only, STEPS)
    settings = _settings(target, device, dtype, limit, tuning)
    visit = Visit(settings, out or RESULTS / f"gpu-{_device_name(device)}-{settings.fingerprint()}", budget)
    check_writable(visit.out, folder=True)
    visit.claim()
    console = Console()
    if only is not None:
        raise SystemExit(do_step(visit, only, console))

    config = settings.config
    given = ["--out", str(visit.out), "--target", config.target, "--dtype", config.dtype, "--device", device, "--limit", str(limit)]
    given += ["--tuning", str(tuning)] if tuning else []
    code = drive(visit, steps_of(visit), self_command(given), console)
    console.print(*visit.listing(), sep="\n", markup=False, soft_wrap=True)
    raise SystemExit(code)


def do_step(visit: "Visit", name: str, console: Console) -> int:
    """Do one step and store that it is done, unless its results are wrong; return the exit code."""
    from tools.gpu_visit.driver import DONE, WRONG
    from tools.gpu_visit.steps import STEPS, steps_of

    for needed in STEPS[name].needs:
        if needed in steps_of(visit) and visit.done(needed) is None:
            raise UserError(f"{name} needs the step {needed}, which is not done in {visit.out}; do that first: --only {needed}")
    began = time.monotonic()
    facts = STEPS[name].run(visit, console)
    if facts.get("wrong"):
        console.print(*(f"wrong: {line}" for line in facts["wrong"]), sep="\n", markup=False, highlight=False, soft_wrap=True)
        return WRONG
    visit.finish(name, {"seconds": round(time.monotonic() - began, 1), **facts})
    return DONE


def _settings(target: str | None, device: str, dtype: str | None, limit: int, tuning: Path | None) -> "VisitSettings":
    from specbench.config.options import RunConfig
    from specbench.measure.resolve import settle
    from tools.gpu_visit.visit import VisitSettings

    if tuning is not None and not tuning.is_file():
        raise UserError(f"tuning file {tuning} does not exist; make one with: specbench held-out --data FILE --out {tuning}")
    config = RunConfig(target=target or "", device=device, dtype=dtype or "", limit=limit, backend="static")
    return VisitSettings(settle(config), tuning)


def _device_name(device: str) -> str:
    """Return the device's name as a folder name may have it."""
    import torch

    name = torch.cuda.get_device_name(device) if device != "cpu" else "cpu"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def main() -> None:
    """Run the command line with the exit codes of specbench's own."""
    configure_thread_waiting()
    try:
        with exit_codes():
            app()
    except KeyboardInterrupt:
        tell("interrupted; continue with the same command")
        raise SystemExit(INTERRUPTED) from None


if __name__ == "__main__":
    main()
