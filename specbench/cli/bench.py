"""Prints every finding of the benchmark and writes them to ``reports/bench``; a miss is a row of a table, not a failure."""

import sys
from pathlib import Path

from rich.console import Console

from methods.core.errors import UserError
from specbench.util.threads import patient_threads

REPORT = Path("reports/bench")
DTYPES = ("bf16", "fp32")  # of the rounds, beside the run's own


def main() -> None:
    patient_threads()
    from specbench.cli.common import RESULTS
    from specbench.store.rundir import check_writable
    from specbench.studies.bench import report
    from specbench.studies.bench.decoding import decoding_findings
    from specbench.studies.bench.harness import harness_finding
    from specbench.studies.bench.overhead import PAST, overhead, verify_ratio
    from specbench.studies.bench.setup import conditions, prepared

    console = Console()
    try:
        for folder in (RESULTS, REPORT):
            check_writable(folder)
        session = prepared()
        console.print(conditions(session), markup=False)
        findings = [*decoding_findings(session, console), harness_finding(session, RESULTS, console)]
        settings = session.manifest.settings
        targets = dict.fromkeys(arm.target for arm in session.arms)
        verified = [verify_ratio(settings.target, settings.dtype, target, PAST) for target in targets]
        times, random = overhead(list(dict.fromkeys([settings.dtype, *DTYPES])), session.target.device, console)
        report.write(conditions(session), findings, times, [*verified, *random], REPORT)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    for table, _ in report.tables(findings, times, [*verified, *random]):
        console.print(table.rich())
    console.print(f"benchmark: {REPORT / 'bench.md'}", markup=False)


if __name__ == "__main__":
    main()
