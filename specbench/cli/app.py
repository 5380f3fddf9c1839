"""The command line. Commands with a file of their own are registered below.

torch is imported inside the commands: how its threads wait has to be set first, and ``--help`` should not wait for it.
"""

import sys
import traceback
from collections.abc import Sequence

import typer

from methods.core.errors import UserError
from specbench.cli.agree import agree
from specbench.cli.check import baseline, check
from specbench.cli.common import FAULT
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
from specbench.util.threads import patient_threads

app = typer.Typer(
    name="specbench",
    help="Measure speculative decoding methods against plain decoding, side by side.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


for command in (run, resume, report, methods, targets, agree, verify, check, roofline, tune, profile, scale, train, card, held_out):
    app.command()(command)
app.command("import")(import_answers)
app.add_typer(baseline, name="baseline")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; what the user can correct is one line on stderr and exit code 2."""
    patient_threads()
    try:
        app(args=argv)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except Exception:  # Python's own exit code 1 would read as a verdict: below, a violation, a failed check
        traceback.print_exc()
        raise SystemExit(FAULT) from None
