"""The command line of a visit to a GPU."""

import re
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from methods.core.errors import UserError, unknown
from specbench.cli.common import FAULT, INTERRUPTED, RESULTS
from specbench.util.threads import patient_threads

if TYPE_CHECKING:
    from tools.gpu_visit.work import Asked, Work

BUDGET_S = 480.0  # for all pieces; with imports before them and a piece that has to be stopped, still under nine minutes
LIMIT = 20  # questions a category: 120 of Spec-Bench

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def gpu(
    only: Annotated[str | None, typer.Option(metavar="PIECE", help="Do this piece alone, in this process.")] = None,
    budget: Annotated[float, typer.Option(metavar="SECONDS", help="For everything, or for the piece.")] = BUDGET_S,
    out: Annotated[
        Path | None, typer.Option(help="Where everything goes; default: results/gpu-<GPU>-<settings, code and versions as 8 hex digits>.")
    ] = None,
    target: Annotated[str | None, typer.Option(help="Target by name or folder; default: tiny-7b on CUDA.")] = None,
    dtype: Annotated[str | None, typer.Option(help="Default: what the device is fastest in.")] = None,
    device: Annotated[str, typer.Option(help="cuda, or cpu to try the pieces without one.")] = "cuda",
    limit: Annotated[int, typer.Option(help="Questions a category of the run.")] = LIMIT,
    tuning: Annotated[Path | None, typer.Option(help="Suite file to tune on, as `specbench held-out` writes.")] = None,
) -> None:
    """Environment, correctness, tuning, run and report; then agreement, roofline, bench, profile. What is done is not done again.

    Exit codes: 0 all done, 1 wrong results, 2 misuse, 3 something is left to do, 130 interrupted.
    """
    from specbench.store.rundir import check_writable
    from tools.gpu_visit.driver import drive, self_command
    from tools.gpu_visit.steps import PIECES, due
    from tools.gpu_visit.work import Work

    if only is not None and only not in PIECES:
        raise unknown("piece", only, PIECES)
    asked, name = _asked(target, device, dtype, limit, tuning)
    work = Work(asked, out or RESULTS / f"gpu-{name}-{asked.fingerprint()}", budget)
    check_writable(work.out)
    work.claim()
    console = Console()
    if only is not None:
        raise SystemExit(_piece(work, only, console))
    given = ["--out", str(work.out), "--target", asked.target, "--dtype", asked.dtype, "--device", device, "--limit", str(limit)]
    given += ["--tuning", str(tuning)] if tuning else []
    code = drive(work, due(work), self_command(given), console)
    console.print(*work.listing(), sep="\n", markup=False, soft_wrap=True)
    raise SystemExit(code)


def _piece(work: "Work", name: str, console: Console) -> int:
    """Do one piece and note it, unless what it found is wrong."""
    from tools.gpu_visit.driver import DONE, WRONG
    from tools.gpu_visit.steps import PIECES, due

    for needed in PIECES[name].needs:
        if needed in due(work) and work.done(needed) is None:
            raise UserError(f"{name} needs the piece {needed}, which is not done in {work.out}; do that first: --only {needed}")
    began = time.monotonic()
    facts = PIECES[name].run(work, console)
    if facts.get("wrong"):
        console.print(*(f"wrong: {line}" for line in facts["wrong"]), sep="\n", markup=False, highlight=False, soft_wrap=True)
        return WRONG
    work.finish(name, {"seconds": round(time.monotonic() - began, 1), **facts})
    return DONE


def _asked(target: str | None, device: str, dtype: str | None, limit: int, tuning: Path | None) -> tuple["Asked", str]:
    """The settings with defaults resolved, and the device's name as a folder may have it."""
    import torch

    from specbench import targets
    from tools.gpu_visit.work import Asked

    targets.check_device(device)
    if tuning is not None and not tuning.is_file():
        raise UserError(f"tuning file {tuning} does not exist; make one with: specbench held-out --data FILE --out {tuning}")
    name = torch.cuda.get_device_name(device) if device != "cpu" else "cpu"
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    chosen = Asked(
        target or targets.default_name(device), device, dtype or targets.default_dtype(device), limit, str(tuning) if tuning else None
    )
    return chosen, slug


def main() -> None:
    """Exit codes as everywhere: 2 with one line for what the user can mend, 70 with a traceback for what only we can."""
    patient_threads()
    try:
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
    except Exception:  # Python's own exit code 1 would read as a wrong result
        traceback.print_exc()
        raise SystemExit(FAULT) from None


if __name__ == "__main__":
    main()
