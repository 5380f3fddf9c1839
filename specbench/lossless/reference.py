"""A run's target again, to be asked about what the arms wrote."""

from dataclasses import replace
from pathlib import Path

from methods.core.errors import UserError
from specbench import suites
from specbench.config.options import Options
from specbench.measure.session import Session, prepare
from specbench.store.manifest import RunManifest
from specbench.store.records import BASELINE

REFEREE = "fp32"


def referee(manifest: RunManifest) -> Session:
    """The run's target alone, in fp32, on whatever device is here. Raises UserError where it or the suite is another one or missing."""
    _same("suite", manifest.settings.suite_sha256, _suite_sha256(manifest))
    asked = replace(Options.of(manifest), dtype=REFEREE, device=None)
    alone = replace(asked, methods=[BASELINE], aa=None, overrides=(), drafter_files={}, base_url=None)
    session = prepare(alone)
    _same("target", manifest.target["weights_sha256"], session.manifest.target["weights_sha256"])
    return session


def _same(what: str, then: str, now: str) -> None:
    if then != now:
        raise UserError(f"the {what} of the run (sha256 {then[:12]}) is not the one here ({now[:12]}); restore it to judge divergences")


def _suite_sha256(manifest: RunManifest) -> str:
    """Of the suite as it is here. What ``suites.load`` advises, an option of `specbench run`, does not help who has a run already."""
    file = manifest.suite_file
    try:
        return suites.load(manifest.settings.suite, suite_file=Path(file) if file else None, hf_columns=manifest.hf_columns).sha256
    except UserError as error:
        reason, _, advice = str(error).rpartition("; ")
        if file:
            advice = f"put the run's questions back at {file}, where its manifest has them"
        elif manifest.settings.suite == "spec-bench":
            advice = "set SPECBENCH_DATA to a folder that holds an unchanged spec_bench/question.jsonl"
        raise UserError(f"{reason}; {advice}") from None
