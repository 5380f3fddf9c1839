"""Prints every finding of the benchmark on the default target; a miss is a row of the table, not a failure."""

import os
import sys

from rich.console import Console

from methods.core.errors import UserError


def main() -> None:
    # Before torch is imported, for the reason given in specbench.cli.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from specbench.bench.decoding import decoding_findings
    from specbench.bench.finding import table
    from specbench.bench.harness import harness_finding
    from specbench.bench.setup import conditions, prepared
    from specbench.cli import RESULTS
    from specbench.rundir import check_writable

    console = Console()
    try:
        check_writable(RESULTS)
        session = prepared()
        console.print(conditions(session), markup=False)
        findings = [*decoding_findings(session, console), harness_finding(session, RESULTS, console)]
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    console.print(table(findings))


if __name__ == "__main__":
    main()
