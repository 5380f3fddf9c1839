"""The command line: the registration of every command, and exit codes for errors.

Commands import torch inside their functions: how its threads wait must be set before, and ``--help`` must not wait for it.
"""

import importlib.metadata
import io
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from methods.core.errors import UserError
from specbench.cli.agree import agree
from specbench.cli.bench import bench
from specbench.cli.check import baseline, check
from specbench.cli.common import console
from specbench.cli.import_answers import import_answers
from specbench.cli.list_options import claims, methods, targets
from specbench.cli.profile import profile
from specbench.cli.report import report
from specbench.cli.roofline import roofline
from specbench.cli.run import resume, run
from specbench.cli.scale import scale
from specbench.cli.train import card, held_out, train
from specbench.cli.tune import tune
from specbench.cli.verify import verify
from specbench.util.environment import configure_thread_waiting
from specbench.util.exits import exit_codes

app = typer.Typer(
    name="specbench",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


for command in (
    run,
    resume,
    report,
    methods,
    targets,
    claims,
    agree,
    verify,
    check,
    roofline,
    tune,
    profile,
    scale,
    bench,
    train,
    card,
    held_out,
):
    app.command()(command)
app.command("import")(import_answers)
app.add_typer(baseline, name="baseline")


def _print_version(asked: bool) -> None:
    if asked:
        console.print(f"specbench {importlib.metadata.version('specbench')}", highlight=False)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)] = False,
) -> None:
    """Measure speculative decoding methods against plain decoding, side by side."""


TEXTS = ("--system-prompt", "--stop")  # options whose values are no paths, whatever they start with
MAY_BE_EMPTY = "--system-prompt"
HOME = re.compile(r"(^|=)~(?=/|$)")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line. An error that the user can correct becomes one line on stderr and exit code 2."""
    configure_thread_waiting()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that is not UTF-8 lacks some of our signs
    with exit_codes():
        app(args=_checked(sys.argv[1:] if argv is None else argv))


def _checked(argv: Sequence[str]) -> list[str]:
    """Return the arguments with ``~`` expanded where a path starts, which shells leave in ``--out=~/x``.

    Raises UserError for an option that is given an empty text.
    """
    checked = []
    for before, argument in zip(("", *argv), argv, strict=False):
        option, has_value, value = argument.partition("=") if argument.startswith("--") else (before, "=", argument)
        if has_value and not value and option != MAY_BE_EMPTY:
            raise UserError(f"{option or 'the command'} is empty; give it a value or leave it out")
        checked.append(argument if option in TEXTS else HOME.sub(lambda start: f"{start[1]}{Path.home()}", argument))
    return checked
