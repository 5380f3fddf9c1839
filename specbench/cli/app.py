"""The command line: the registration of every command, and exit codes for errors.

Commands import torch inside their functions: how its threads wait must be set before, and ``--help`` must not wait for it.
"""

from collections.abc import Sequence

import typer

from specbench.cli.agree import agree
from specbench.cli.bench import bench
from specbench.cli.check import baseline, check
from specbench.cli.import_answers import import_answers
from specbench.cli.list_options import methods, targets
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
    help="Measure speculative decoding methods against plain decoding, side by side.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


for command in (run, resume, report, methods, targets, agree, verify, check, roofline, tune, profile, scale, bench, train, card, held_out):
    app.command()(command)
app.command("import")(import_answers)
app.add_typer(baseline, name="baseline")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line. An error that the user can correct becomes one line on stderr and exit code 2."""
    configure_thread_waiting()
    with exit_codes():
        app(args=argv)
